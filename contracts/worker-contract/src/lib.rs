//! What a worker says of itself, and what can be said to a worker.
//!
//! Owns: [`WorkerInfo`], [`WorkerHeartbeat`], load figures, the `/v1/infer` request and its events,
//! the `/v1/queens` and `/v1/drain` requests, and how a stream goes from one worker to another.
//! Must not know: how a worker is scheduled, started or reached.

mod drain;
mod heartbeat;
mod infer;
mod queens;
mod resume;
mod worker;

pub use drain::{DrainRequest, MAX_GRACE_S};
pub use heartbeat::{WorkerHeartbeat, WorkerLoad};
pub use infer::{FinishReason, InferEvent, InferRequest, InferUsage};
pub use queens::{QueenList, QueenNotice};
pub use resume::{RESUME_MEMBER, Resume, TOKENS_COMMENT, TOKENS_HEADER, TokenCount};
pub use worker::{Endpoint, Feature, StatusDetail, WorkerInfo, WorkerStatus};
