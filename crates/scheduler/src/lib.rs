//! Decisions of the queen as plain functions of what is known: which worker takes a request.
//!
//! Owns: the rules of the choice and the reasons of a refusal. Must not know: clocks, I/O, any runtime, where its input
//! comes from or what happens with the answer.

mod worker;

pub use worker::{Candidate, Refusal, Standing, Suspects, choose};
