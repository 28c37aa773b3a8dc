//! The liveness rule, and what it is decided by.

use std::{fmt, sync::Arc, time::Instant};

use serde::{Deserialize, Serialize};

use crate::Address;

/// Whether a member is there. Says nothing about whether it is ready.
///
/// ```text
/// Online       --evidence, such as a refused connection--> Suspect
/// Suspect      --beat, or an answer from it-->             Online
/// Online, Suspect --call-back failed-->                    Unreachable
/// Unreachable  --an answer from it-->                      Online
/// any          --silent for its TTL-->                     Lost
/// Lost         --beat-->                                   Online
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Liveness {
    /// It beats.
    Online,
    /// It beat within its TTL, and there is fast evidence against it: choose others while there are others.
    Suspect,
    /// It beats, and cannot be reached where it says that it is.
    Unreachable,
    /// Silent for its TTL.
    Lost,
}

impl Liveness {
    /// All of them, the best first.
    pub const ALL: [Self; 4] = [Self::Online, Self::Suspect, Self::Unreachable, Self::Lost];

    /// Its word on the wire and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Suspect => "suspect",
            Self::Unreachable => "unreachable",
            Self::Lost => "lost",
        }
    }

    /// The rule: silence for the TTL decides lost, a failed call-back unreachable, other evidence suspect; and only the
    /// receiver's clock counts.
    pub(crate) fn of(is_silent: bool, reach: &Reach, is_suspected: bool) -> Self {
        match (is_silent, reach) {
            (true, _) => Self::Lost,
            (false, Reach::Unreachable(_)) => Self::Unreachable,
            (false, _) if is_suspected => Self::Suspect,
            (false, _) => Self::Online,
        }
    }
}

impl fmt::Display for Liveness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What speaks against a member, such as a refused connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// What was seen.
    pub reason: Arc<str>,
    /// When it was first seen.
    pub since: Instant,
}

/// Whether a member can be reached at its address: that its beats arrive does not say so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reach {
    /// Not tried since it came to this address, or since it was suspected: it should be called back.
    Unknown,
    /// It answered.
    Reached,
    /// It did not answer.
    Unreachable(Evidence),
}

/// Of whom an answer is, or its failing to come: what is learnt of one process at one address says nothing about the next one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    /// Where it was asked.
    pub address: Address,
    /// Its incarnation at the time.
    pub incarnation: u64,
    /// When it was asked: its answer may be as old as that.
    pub asked: Instant,
}
