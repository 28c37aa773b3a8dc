//! Whole models, small enough to be made up: two backends beside each other, batches beside single sequences, and
//! files that are not what they should be.

mod files;
mod models;
mod tiny;
