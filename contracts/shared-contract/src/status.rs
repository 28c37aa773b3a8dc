//! Two axes that are never mixed: what a daemon is doing, and how well its host is.

use serde::{Deserialize, Serialize};

/// What a daemon is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperationalStatus {
    /// Started, not yet able to do its work.
    Starting,
    /// Does its work.
    Ready,
    /// Finishes what it has, takes nothing new.
    Draining,
    /// Gone on purpose: the last thing it says.
    Stopped,
}

/// How well the host is. The last two come with a reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthStatus {
    /// Nothing to report.
    Healthy,
    /// Works, with something missing.
    Degraded,
    /// Cannot do its work.
    Unhealthy,
}
