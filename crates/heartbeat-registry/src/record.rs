//! A beat on its way into the registry, and what becomes of it.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use shared_contract::DropReason;

use crate::Pace;

/// Incarnation and sequence number of a beat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Order {
    pub(crate) incarnation: u64,
    pub(crate) seq: u64,
}

impl From<(u64, u64)> for Order {
    fn from((incarnation, seq): (u64, u64)) -> Self {
        Self { incarnation, seq }
    }
}

impl Order {
    /// A sender without an incarnation cannot be put in order: what looks old may be its new start.
    pub(crate) fn is_known(self) -> bool {
        self.incarnation != 0
    }

    pub(crate) fn is_after(self, other: Self) -> bool {
        (self.incarnation, self.seq) > (other.incarnation, other.seq)
    }

    /// Why the beat is no news after this last one; `None` if it is. A sender that stamps its beats is never judged by one
    /// that does not.
    pub(crate) fn stale_after(self, last: Self) -> Option<DropReason> {
        if !self.is_known() || self.is_after(last) {
            return None;
        }
        Some(if self.incarnation < last.incarnation {
            DropReason::OlderIncarnation
        } else if self.seq == last.seq {
            DropReason::Duplicate
        } else {
            DropReason::Reordered
        })
    }
}

/// The circumstances of a beat's arrival.
#[derive(Debug, Clone, Copy)]
pub struct Receipt {
    /// Where it came from.
    pub peer: IpAddr,
    /// When, by the receiver's monotonic clock.
    pub at: Instant,
    /// The same by the receiver's wall clock; only the skew gauge depends on it.
    pub wall: DateTime<Utc>,
    /// What the acknowledgement asks of the sender, and so the TTL that it is given.
    pub pace: Pace,
}

/// What became of a beat.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// A member that was not known.
    New,
    /// A known member.
    Updated,
    /// A known member under a new incarnation.
    Restarted,
    /// The sender's goodbye: it is no member any more.
    Goodbye,
    /// No news of its sender.
    Dropped(DropReason),
}

/// The registry's answer to a beat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recorded {
    /// What became of it.
    pub outcome: Outcome,
    /// Whether to ask the sender for everything.
    pub want_full: bool,
    /// The newest incarnation that is known, where the beat was dropped since its sender is taken for gone. One that lives
    /// goes on above it.
    pub known_incarnation: Option<u64>,
    /// Time since the member's previous beat, pauses of the receiver not counted; `None` from a sender that was no member, and
    /// for a beat that was dropped.
    pub gap: Option<Duration>,
    /// Beats that should have come in that time, and did not.
    pub missed: u64,
    /// How far the sender's wall clock is ahead of the receiver's; negative if behind.
    pub skew_ms: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beats_are_ordered_by_incarnation_then_sequence_and_unstamped_ones_are_always_taken() {
        let stale = |next: (u64, u64), last: (u64, u64)| Order::from(next).stale_after(last.into());
        assert_eq!(stale((5, 3), (5, 3)), Some(DropReason::Duplicate));
        assert_eq!(stale((5, 2), (5, 3)), Some(DropReason::Reordered));
        assert_eq!(stale((4, 9), (5, 3)), Some(DropReason::OlderIncarnation));
        assert_eq!(stale((5, 4), (5, 3)), None);
        assert_eq!(stale((6, 1), (5, 3)), None);
        assert_eq!(stale((0, 0), (5, 3)), None, "a sender without order");
        assert_eq!(stale((0, 1), (0, 7)), None, "a restart of a sender without incarnation");
        assert_eq!(stale((5, 1), (0, 9)), None);
    }
}
