//! The newest changes in their order, as many as fit.

use std::collections::VecDeque;

use bytes::Bytes;

/// The numbered frames of the newest changes. Numbers begin at 1 and never repeat; 0 is the place before the first.
#[derive(Debug)]
pub(crate) struct Ring {
    frames: VecDeque<Bytes>,
    /// The newest number given.
    newest: u64,
    bytes: usize,
    max_frames: usize,
    max_bytes: usize,
}

/// What a reader that has seen everything up to some place gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Next {
    /// The change that follows.
    Change(Bytes),
    /// There is nothing newer.
    Nothing,
    /// What follows is not kept any more, or the place is none of this ring: only a snapshot helps.
    Gone,
}

impl Ring {
    /// Keeps at most `max_frames`, and at most `max_bytes` of them.
    pub(crate) fn new(max_frames: usize, max_bytes: usize) -> Self {
        Self {
            frames: VecDeque::new(),
            newest: 0,
            bytes: 0,
            max_frames,
            max_bytes,
        }
    }

    /// The number of the newest change.
    pub(crate) fn newest(&self) -> u64 {
        self.newest
    }

    /// Takes the frame that `render` makes of the next number.
    pub(crate) fn push(&mut self, render: impl FnOnce(u64) -> Bytes) {
        self.newest += 1;
        let frame = render(self.newest);
        self.bytes += frame.len();
        self.frames.push_back(frame);
        while self.frames.len() > self.max_frames || self.bytes > self.max_bytes {
            let Some(oldest) = self.frames.pop_front() else { return };
            self.bytes -= oldest.len();
        }
    }

    /// Changes were missed: whatever a reader has seen, a snapshot must follow.
    pub(crate) fn break_off(&mut self) {
        self.frames.clear();
        self.bytes = 0;
        self.newest += 1;
    }

    /// What follows a place.
    pub(crate) fn after(&self, place: u64) -> Next {
        if place == self.newest {
            return Next::Nothing;
        }
        let before_oldest = self.newest - self.frames.len() as u64;
        let index = place
            .checked_sub(before_oldest)
            .and_then(|index| usize::try_from(index).ok());
        match index.and_then(|index| self.frames.get(index)) {
            Some(frame) => Next::Change(frame.clone()),
            None => Next::Gone,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(number: u64) -> Bytes {
        Bytes::from(number.to_string())
    }

    fn ring(pushed: usize) -> Ring {
        let mut ring = Ring::new(4, 1_000);
        (0..pushed).for_each(|_| ring.push(number));
        ring
    }

    #[test]
    fn a_reader_gets_each_change_that_is_kept_once_and_in_order() {
        let ring = ring(9);
        for place in 5..9 {
            assert_eq!(ring.after(place), Next::Change(number(place + 1)));
        }
        assert_eq!(ring.after(9), Next::Nothing);
    }

    #[test]
    fn a_place_whose_successor_was_dropped_or_that_never_was_is_gone() {
        let ring = ring(9);
        assert_eq!(ring.after(4), Next::Gone);
        assert_eq!(ring.after(0), Next::Gone);
        assert_eq!(ring.after(10), Next::Gone);
        assert_eq!(ring.after(u64::MAX), Next::Gone);
    }

    #[test]
    fn before_the_first_change_there_is_nothing_to_tell() {
        assert_eq!(ring(0).after(0), Next::Nothing);
        assert_eq!(ring(1).after(0), Next::Change(number(1)));
    }

    #[test]
    fn changes_that_were_missed_leave_nobody_up_to_date() {
        let mut ring = ring(3);
        ring.break_off();
        for place in 0..4 {
            assert_eq!(ring.after(place), Next::Gone, "{place}");
        }
        assert_eq!(ring.after(ring.newest()), Next::Nothing);
        ring.push(number);
        assert_eq!(ring.after(4), Next::Change(number(5)));
    }

    #[test]
    fn the_frames_together_keep_within_the_bytes() {
        let mut ring = Ring::new(100, 10);
        let four = |_| Bytes::from_static(b"four");
        (0..3).for_each(|_| ring.push(four));
        assert_eq!(ring.after(0), Next::Gone);
        assert_eq!(ring.after(1), Next::Change(four(2)));
        ring.push(|_| Bytes::from_static(b"more than there is room for"));
        assert_eq!(ring.after(3), Next::Gone);
        assert_eq!(ring.after(4), Next::Nothing);
        ring.push(four);
        assert_eq!(ring.after(4), Next::Change(four(5)));
    }
}
