//! Decisions of queen and hive as plain functions of what is known: which worker takes a request, which device takes a
//! model, on which host and in whose place, and when a model gets one worker more.
//!
//! Owns: the rules of the choices and the reasons of a refusal. Must not know: clocks, I/O, any runtime, where its input
//! comes from or what happens with the answer.

mod device;
mod fleet;
mod replicas;
mod worker;

pub use device::{
    KV_BYTES, LEAST_TOKENS, Need, Placed, Promise, Reason, Refused, Room, USUAL_TOKENS, Why, free_bytes, place,
};
pub use fleet::{
    Choice, Criterion, Decision, Device, Host, ModelNeed, Outcome, Problem, Strategy, Tenant, Verdict, decide,
};
pub use replicas::{Replicas, Scale, scale};
pub use worker::{Candidate, Record, Refusal, Standing, Suspects, Wish, choose};
