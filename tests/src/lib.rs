//! A cluster to test: the real programs as real processes on ports that the system picks, and the real test models.
//!
//! Must not know: the inside of any daemon. Scenarios see what a user sees: HTTP, processes, exit codes, files.

pub mod browser;
pub mod chats;
pub mod clients;
pub mod cluster;
pub mod fake;
pub mod gpu;
pub mod http;
pub mod hub;
pub mod models;
pub mod net;
pub mod nvml;
pub mod perplexity;
pub mod process;
pub mod promtool;
pub mod sim;
pub mod terminal;
pub mod wire;

pub use cluster::Cluster;
pub use process::{Process, Program};

use std::time::Duration;

/// Longest that a scenario waits for something that should take a moment. Only a failing test waits this long.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Waits until `probe` yields something, and panics with `what` if it does not within [`PATIENCE`].
///
/// For states that only show by asking, such as another process's answer; it asks ten times a second.
pub async fn eventually<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(value) = probe().await {
            return value;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "waited {PATIENCE:?} in vain until {what}"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
