//! The order of one process's beats.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// What puts the beats of one process in order: its incarnation, and a number that grows with every beat.
///
/// All clients of a process draw from one. Two of them may reach the same queen, and one may be given up and begun anew: had
/// each an order of its own, she would take the beats of one for old beats of the other. Gaps are harmless: she reads only
/// which of two beats is newer.
#[derive(Debug)]
pub struct Sequence {
    incarnation: AtomicU64,
    last: AtomicU64,
}

impl Sequence {
    /// For a process of this incarnation that has not beaten yet. The incarnation is 0 where one start cannot be told from the
    /// next.
    pub fn new(incarnation: u64) -> Self {
        Self {
            incarnation: AtomicU64::new(incarnation),
            last: AtomicU64::new(0),
        }
    }

    /// Incarnation and number of the next beat, newer than all that were drawn before.
    pub(crate) fn draw(&self) -> (u64, u64) {
        // In this order: a number drawn later never goes with an older incarnation.
        let seq = self.last.fetch_add(1, SeqCst) + 1;
        (self.incarnation(), seq)
    }

    pub(crate) fn incarnation(&self) -> u64 {
        self.incarnation.load(SeqCst)
    }

    /// Goes on under an incarnation above this one, if it does not already.
    pub(crate) fn rise_above(&self, incarnation: u64) {
        self.incarnation.fetch_max(incarnation.saturating_add(1), SeqCst);
    }

    /// The sequence of a process that was copied with its memory: it has the same past, and goes on by itself.
    pub(crate) fn copy(&self) -> Self {
        Self {
            incarnation: AtomicU64::new(self.incarnation()),
            last: AtomicU64::new(self.last.load(SeqCst)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, thread};

    use super::*;

    #[test]
    fn every_beat_is_newer_than_the_one_before_also_above_another_incarnation() {
        let sequence = Sequence::new(7);
        assert_eq!([sequence.draw(), sequence.draw()], [(7, 1), (7, 2)]);
        sequence.rise_above(40);
        assert_eq!(sequence.draw(), (41, 3));
        sequence.rise_above(7);
        assert_eq!(sequence.draw(), (41, 4), "it is above that already");
    }

    #[test]
    fn threads_that_draw_while_it_rises_see_it_grow_and_no_order_twice() {
        let sequence = Arc::new(Sequence::new(1));
        let draw = || {
            let sequence = Arc::clone(&sequence);
            thread::spawn(move || {
                let drawn: Vec<_> = (0..1_000)
                    .map(|n| {
                        sequence.rise_above(n);
                        sequence.draw()
                    })
                    .collect();
                assert!(drawn.is_sorted());
                drawn
            })
        };
        let threads = [draw(), draw()];
        let mut all: Vec<_> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 2_000);
    }
}
