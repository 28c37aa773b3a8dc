//! The worker as a whole, over HTTP, with a model that speaks a script.

mod answers;
mod choices;
mod embeddings;
mod life;
mod manners;
mod queens;
mod refusals;
mod requests;
mod resume;
mod structured;
mod support;
