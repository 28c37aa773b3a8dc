//! What every daemon of rbee does alike: configuration, logs, signals, serving and draining, who may call, and errors.
//!
//! Must not know: what a daemon is for. Nothing here names a queen, a hive or a worker.

pub mod app;
pub mod auth;
pub mod client;
pub mod config;
pub mod error;
pub mod extract;
pub mod logs;
pub mod quantity;
pub mod serve;
pub mod signals;
pub mod sse;

pub use auth::{Guard, Secret};
pub use error::ApiError;
pub use extract::{Json, Query};
pub use serve::ServeOptions;
pub use signals::Shutdown;
