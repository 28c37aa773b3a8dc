//! What an event of the stream says besides the member itself.

use std::time::Instant;

use heartbeat_registry::{EventKind, LeaveReason, Liveness, MemberView};
use shared_contract::HeartbeatItem;

use super::Change;
use super::reason::{Audience, conflict_reason, liveness_reason};

/// The part of an event that is the same for workers and hives.
pub(crate) struct Happening {
    pub(crate) change: Change,
    pub(crate) from: Option<Liveness>,
    pub(crate) to: Option<Liveness>,
    pub(crate) reason: Option<String>,
}

impl Happening {
    /// A beat that says nothing new.
    pub(crate) fn beat() -> Self {
        Self::plain(Change::Beat)
    }

    fn plain(change: Change) -> Self {
        Self {
            change,
            from: None,
            to: None,
            reason: None,
        }
    }

    /// `view` is the member as the event has it.
    pub(crate) fn new<T: HeartbeatItem>(kind: EventKind, view: &MemberView<T>, now: Instant) -> Self {
        let plain = Self::plain;
        match kind {
            EventKind::Joined => plain(Change::Joined),
            EventKind::Updated => plain(Change::Updated),
            EventKind::Restarted => plain(Change::Restarted),
            EventKind::StateChanged { from, to } => Self {
                from: Some(from),
                to: Some(to),
                reason: liveness_reason(view, now, Audience::Operators),
                ..plain(Change::StateChanged)
            },
            EventKind::Contended { began } => Self {
                reason: conflict_reason(view).filter(|_| began).or_else(|| {
                    let ended = "the other process with this id has fallen silent";
                    (!began).then(|| ended.to_owned())
                }),
                ..plain(Change::Contended)
            },
            EventKind::Left { reason } => Self {
                reason: Some(leave_reason(reason, view)),
                ..plain(Change::Left)
            },
        }
    }
}

fn leave_reason<T: HeartbeatItem>(reason: LeaveReason, view: &MemberView<T>) -> String {
    match (reason, &view.report.suspicion) {
        (LeaveReason::Goodbye, _) => "said goodbye".to_owned(),
        (LeaveReason::Lost, _) => "lost for too long".to_owned(),
        (LeaveReason::Ended, Some(suspicion)) => suspicion.reason.to_string(),
        (LeaveReason::Ended, None) => "its process ended".to_owned(),
    }
}
