//! What the registry tells its subscribers.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use shared_contract::HeartbeatItem;

use crate::{Liveness, Member, Report};

/// One thing that happened to one member. The events of one member come in the order in which they happened.
#[derive(Debug)]
pub struct RegistryEvent<T: HeartbeatItem> {
    /// To whom.
    pub member: Arc<Member<T>>,
    /// What the member had said last at that moment; the goodbye itself if it left with one.
    pub report: Arc<Report<T>>,
    /// What happened.
    pub kind: EventKind,
}

// Derived, it would demand the same of `T`.
impl<T: HeartbeatItem> Clone for RegistryEvent<T> {
    fn clone(&self) -> Self {
        Self {
            member: Arc::clone(&self.member),
            report: Arc::clone(&self.report),
            kind: self.kind,
        }
    }
}

/// What happened to a member. A beat that says nothing new is no event: it shows in the member's report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// Its first beat was recorded.
    Joined,
    /// A beat was recorded that says something new, or comes from another address.
    Updated,
    /// A beat was recorded that comes from a new incarnation.
    Restarted,
    /// Its liveness changed.
    StateChanged {
        /// From what.
        from: Liveness,
        /// To what.
        to: Liveness,
    },
    /// Another live sender with its id was noticed, or has fallen silent.
    Contended {
        /// Which of the two.
        began: bool,
    },
    /// It is no member any more.
    Left {
        /// Why.
        reason: LeaveReason,
    },
}

/// Why a member left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeaveReason {
    /// It said so.
    Goodbye,
    /// It was lost for longer than the retention.
    Lost,
    /// Its process is known to have ended.
    Ended,
}

impl LeaveReason {
    /// Its word on the wire and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Goodbye => "goodbye",
            Self::Lost => "lost",
            Self::Ended => "ended",
        }
    }
}
