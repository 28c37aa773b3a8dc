//! The liveness rule.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

/// Whether a member is there. Says nothing about whether it is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Liveness {
    /// It beats.
    Online,
    /// It beat within the TTL, and there is fast evidence against it: choose others while there are others.
    Suspect,
    /// Silent for the TTL.
    Lost,
}

impl fmt::Display for Liveness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Online => "online",
            Self::Suspect => "suspect",
            Self::Lost => "lost",
        })
    }
}

/// Fast evidence against a member, such as a refused connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suspicion {
    /// What was seen.
    pub reason: Arc<str>,
    /// When.
    pub since: Instant,
}

/// The rule: silence for the TTL decides lost, evidence decides suspect, and only the receiver's clock counts.
pub fn liveness(last_seen: Instant, suspected: bool, now: Instant, ttl: Duration) -> Liveness {
    if now.saturating_duration_since(last_seen) >= ttl {
        Liveness::Lost
    } else if suspected {
        Liveness::Suspect
    } else {
        Liveness::Online
    }
}
