//! What every daemon of rbee does alike: configuration, logs, signals, serving and draining, what is kept over
//! restarts, who may call, and errors.
//!
//! Must not know: what a daemon is for. Nothing here names a queen, a hive or a worker.

pub mod access;
pub mod app;
pub mod auth;
pub mod build;
pub mod client;
pub mod config;
pub mod error;
pub mod extract;
pub mod logs;
pub mod metrics;
pub mod origin;
pub mod quantity;
pub mod serve;
pub mod signals;
pub mod sse;
pub mod state_folder;
pub mod traces;

pub use auth::{Guard, Secret};
pub use error::ApiError;
pub use extract::{Json, Query};
pub use origin::PageGuard;
pub use serve::ServeOptions;
pub use signals::Shutdown;
pub use state_folder::{StateFolder, StateFolderError};
