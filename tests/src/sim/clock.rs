//! Virtual time: what happens next, and what a stopped or sleeping machine's own clock shows meanwhile.

use std::{
    cmp::Ordering,
    collections::BinaryHeap,
    time::{Duration, Instant},
};

/// Time since the start of a run.
pub type Time = Duration;

/// What is to happen, in order of time; what is due at the same time happens in the order in which it was put.
#[derive(Debug)]
pub(super) struct Agenda<E> {
    heap: BinaryHeap<Entry<E>>,
    put: u64,
    now: Time,
}

#[derive(Debug)]
struct Entry<E> {
    at: Time,
    place: u64,
    event: E,
}

impl<E> Agenda<E> {
    pub(super) fn new() -> Self {
        Self {
            heap: BinaryHeap::new(),
            put: 0,
            now: Time::ZERO,
        }
    }

    pub(super) fn now(&self) -> Time {
        self.now
    }

    /// What lies in the past happens now.
    pub(super) fn at(&mut self, at: Time, event: E) {
        self.put += 1;
        let (at, place) = (at.max(self.now), self.put);
        self.heap.push(Entry { at, place, event });
    }

    pub(super) fn after(&mut self, pause: Duration, event: E) {
        self.at(self.now + pause, event);
    }

    /// The next event, if it comes before `until`; the clock moves to it.
    pub(super) fn next(&mut self, until: Time) -> Option<E> {
        if self.heap.peek()?.at >= until {
            return None;
        }
        let entry = self.heap.pop()?;
        self.now = entry.at;
        Some(entry.event)
    }
}

impl<E> Ord for Entry<E> {
    /// The greatest is the next.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.place).cmp(&(self.at, self.place))
    }
}

impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<E> Eq for Entry<E> {}

/// The monotonic clock of one machine. It stands still while the machine sleeps, and goes on while a process is stopped.
#[derive(Debug, Clone, Copy)]
pub(super) struct MachineClock {
    base: Instant,
    slept: Duration,
}

impl MachineClock {
    pub(super) fn new(base: Instant) -> Self {
        Self {
            base,
            slept: Duration::ZERO,
        }
    }

    /// What it shows.
    pub(super) fn read(&self, now: Time) -> Instant {
        self.base + self.elapsed(now)
    }

    /// The same, as the time that has passed on this machine.
    pub(super) fn elapsed(&self, now: Time) -> Duration {
        now.saturating_sub(self.slept)
    }

    /// When it will show `instant`, if the machine stays awake.
    pub(super) fn when(&self, instant: Instant) -> Time {
        instant.saturating_duration_since(self.base) + self.slept
    }

    pub(super) fn sleep(&mut self, lasting: Duration) {
        self.slept += lasting;
    }
}
