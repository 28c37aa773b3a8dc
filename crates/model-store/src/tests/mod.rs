//! Scenarios against servers on loopback and a real pip: each test's name is a sentence of the specification.

mod hub;
mod interruption;
mod pip;
mod references;
mod repositories;
mod store;
mod support;
