//! What becomes of a beat.

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

    /// Whether a beat is a duplicate or was overtaken. A sender that stamps its beats is never judged by one that does not.
    pub(crate) fn is_stale_after(self, last: Self) -> bool {
        self.is_known() && (self.incarnation, self.seq) <= (last.incarnation, last.seq)
    }
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
    /// Dropped: a duplicate, overtaken by a newer beat, or from an older incarnation.
    Stale,
}

/// The registry's answer to a beat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recorded {
    /// What became of it.
    pub outcome: Outcome,
    /// Whether to ask the sender for everything.
    pub want_full: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beats_are_ordered_by_incarnation_then_sequence_and_unstamped_ones_are_always_taken() {
        let stale = |next: (u64, u64), last: (u64, u64)| Order::from(next).is_stale_after(last.into());
        assert!(stale((5, 3), (5, 3)), "a duplicate");
        assert!(stale((5, 2), (5, 3)), "overtaken");
        assert!(stale((4, 9), (5, 3)), "an older incarnation");
        assert!(!stale((5, 4), (5, 3)));
        assert!(!stale((6, 1), (5, 3)));
        assert!(!stale((0, 0), (5, 3)), "a sender without order");
        assert!(!stale((0, 1), (0, 7)), "a restart of a sender without incarnation");
        assert!(!stale((5, 1), (0, 9)));
    }
}
