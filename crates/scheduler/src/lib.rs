//! Decisions of queen and hive as plain functions of what is known: which worker takes a request, which device takes a
//! model.
//!
//! Owns: the rules of the choices and the reasons of a refusal. Must not know: clocks, I/O, any runtime, where its input
//! comes from or what happens with the answer.

mod device;
mod worker;

pub use device::{
    KV_BYTES, LEAST_TOKENS, Need, Placed, Promise, Reason, Refused, Room, USUAL_TOKENS, Why, free_bytes, place,
};
pub use worker::{Candidate, Refusal, Standing, Suspects, choose};
