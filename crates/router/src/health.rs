//! What is known of a worker by how it answered.
//!
//! Nothing here is a lock: averages may lose one of two updates that come at the same moment, which no choice feels.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use scheduler::Record;
use tokio::time::Instant;

/// Weight of the newest attempt in the averages: the last ten decide.
const WEIGHT: f32 = 0.2;
/// A worker is overdue when it has been silent for so many times the usual, while it owes a first byte ...
const OVERDUE_TIMES: f32 = 5.0;
/// ... but not before this: the usual is an average over prompts of all lengths.
const OVERDUE_AT_LEAST_MS: u64 = 250;
/// The same for a worker of which nothing is usual yet.
const OVERDUE_UNKNOWN_MS: u64 = 2_000;
/// Times below this differ by how busy the machine was for a moment, not by how fast the worker is.
const ALIKE_BELOW_MS: f32 = 10.0;
/// In place of a moment: it never was.
const NEVER: u64 = u64::MAX;

/// Counts the milliseconds since the router began.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock(Instant);

impl Clock {
    /// Begins now.
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    /// Milliseconds since then.
    pub(crate) fn now_ms(self) -> u64 {
        u64::try_from(self.0.elapsed().as_millis()).unwrap_or(NEVER - 1)
    }

    /// The moment, on the clock of the registry.
    pub(crate) fn moment(self, at_ms: u64) -> std::time::Instant {
        (self.0 + Duration::from_millis(at_ms)).into_std()
    }
}

/// Which answers are compared: a stream's first byte comes early, that of another answer when it is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Plain,
    Stream,
    /// No token is written for it.
    Quick,
}

/// One failure of a worker, for which it is passed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Break(u64);

/// One worker's.
#[derive(Debug)]
pub(crate) struct Health {
    clock: Clock,
    /// Of which process all this is known.
    incarnation: AtomicU64,
    /// As the bits of an `f32`.
    success: AtomicU32,
    /// Milliseconds, as the bits of an `f32`, by [`Kind`]; 0 is unknown.
    first_byte: [AtomicU32; 3],
    /// Attempts that have no first byte yet.
    owed: AtomicU32,
    /// When it last gave a first byte, or began to owe one.
    owing_since: AtomicU64,
    /// When its last lease ended.
    last_end: AtomicU64,
    /// How often it failed, times 2; and 1 more where it has not answered since.
    breaks: AtomicU64,
    /// It is not to be chosen.
    is_held: AtomicBool,
}

impl Health {
    pub(crate) fn new(clock: Clock, incarnation: u64) -> Self {
        Self {
            clock,
            incarnation: AtomicU64::new(incarnation),
            success: AtomicU32::new(1_f32.to_bits()),
            first_byte: Default::default(),
            owed: AtomicU32::new(0),
            owing_since: AtomicU64::new(0),
            last_end: AtomicU64::new(NEVER),
            breaks: AtomicU64::new(0),
            is_held: AtomicBool::new(false),
        }
    }

    /// What the scheduler is told. `now_ms` is the clock's. Who is silent while it owes a first byte is as slow as that, at
    /// the least, whatever its average says.
    pub(crate) fn record(&self, kind: Kind, now_ms: u64) -> Record {
        let (usual, silence) = (self.usual(kind), self.silence_ms(now_ms));
        Record {
            success: f32::from_bits(self.success.load(Ordering::Relaxed)),
            first_byte_ms: match usual {
                0.0 => 0.0,
                usual => usual.max(silence as f32).max(ALIKE_BELOW_MS),
            },
            is_overdue: self.is_overdue(silence),
        }
    }

    fn usual(&self, kind: Kind) -> f32 {
        f32::from_bits(self.first_byte[kind as usize].load(Ordering::Relaxed))
    }

    /// Since when it has said nothing although it owes a first byte.
    fn silence_ms(&self, now_ms: u64) -> u64 {
        match self.owed.load(Ordering::Relaxed) {
            0 => 0,
            _ => now_ms.saturating_sub(self.owing_since.load(Ordering::Relaxed)),
        }
    }

    fn is_overdue(&self, silence_ms: u64) -> bool {
        let usual = [Kind::Plain, Kind::Stream, Kind::Quick].map(|kind| self.usual(kind));
        let usual = usual.into_iter().fold(0.0, f32::max);
        let limit = if usual > 0.0 {
            OVERDUE_AT_LEAST_MS.max((usual * OVERDUE_TIMES) as u64)
        } else {
            OVERDUE_UNKNOWN_MS
        };
        silence_ms > limit
    }

    /// Whether it is a process of this incarnation that failed, and has not answered since.
    pub(crate) fn is_broken(&self, incarnation: u64) -> bool {
        is_open(self.breaks.load(Ordering::Relaxed)) && self.is_of(incarnation)
    }

    fn is_of(&self, incarnation: u64) -> bool {
        self.incarnation.load(Ordering::Relaxed) == incarnation
    }

    /// A process of this incarnation is asked: what was known of an earlier one no longer counts. Answers with the newest
    /// failure before.
    pub(crate) fn is_asked(&self, incarnation: u64) -> Break {
        if self.incarnation.swap(incarnation, Ordering::Relaxed) != incarnation {
            self.success.store(1_f32.to_bits(), Ordering::Relaxed);
            self.breaks.fetch_and(!1, Ordering::Relaxed);
            for usual in &self.first_byte {
                usual.store(0, Ordering::Relaxed);
            }
        }
        if self.owed.fetch_add(1, Ordering::Relaxed) == 0 {
            self.owing_since.store(self.clock.now_ms(), Ordering::Relaxed);
        }
        Break(self.breaks.load(Ordering::Relaxed) | 1)
    }

    /// An attempt has its first byte, or will have none.
    pub(crate) fn owes_no_longer(&self) {
        self.owed.fetch_sub(1, Ordering::Relaxed);
    }

    /// It answered, after so long.
    pub(crate) fn answered(&self, kind: Kind, after: Duration) {
        self.owing_since.store(self.clock.now_ms(), Ordering::Relaxed);
        mix(&self.success, 1.0);
        let after_ms = (after.as_secs_f32() * 1_000.0).max(f32::MIN_POSITIVE);
        let usual = &self.first_byte[kind as usize];
        match usual.load(Ordering::Relaxed) {
            0 => usual.store(after_ms.to_bits(), Ordering::Relaxed),
            _ => mix(usual, after_ms),
        }
    }

    /// An attempt was not answered.
    pub(crate) fn failed(&self) {
        mix(&self.success, 0.0);
    }

    /// It is passed over from now on, until it answers. `None` if it was already, or is a process of another incarnation by
    /// now; otherwise somebody has to find out when it answers again.
    pub(crate) fn break_it(&self, incarnation: u64) -> Option<Break> {
        let broken = |breaks: u64| (!is_open(breaks)).then(|| (breaks + 2) | 1);
        let before = self
            .is_of(incarnation)
            .then(|| self.breaks.fetch_update(Ordering::Relaxed, Ordering::Relaxed, broken))?;
        before.ok().and_then(broken).map(Break)
    }

    /// It answered what it was asked since it failed this time. What it failed at since is another time. Whether it was
    /// passed over until now, and is no longer.
    pub(crate) fn mend(&self, broken: Break) -> bool {
        let Break(breaks) = broken;
        // Fails if it is fine, or has failed again since.
        self.breaks
            .compare_exchange(breaks, breaks & !1, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
    }

    /// Whether it has not answered since it failed this time, and is still the same process.
    pub(crate) fn is_still(&self, broken: Break, incarnation: u64) -> bool {
        self.breaks.load(Ordering::Relaxed) == broken.0 && self.is_of(incarnation)
    }

    /// A lease on it ended.
    pub(crate) fn lease_ended(&self) {
        self.last_end.store(self.clock.now_ms(), Ordering::Relaxed);
    }

    /// When its last lease ended.
    pub(crate) fn idle_since(&self) -> Option<std::time::Instant> {
        match self.last_end.load(Ordering::Relaxed) {
            NEVER => None,
            at_ms => Some(self.clock.moment(at_ms)),
        }
    }

    /// Whether it is kept from being chosen.
    pub(crate) fn is_held(&self) -> bool {
        self.is_held.load(Ordering::Relaxed)
    }

    /// Keeps it from being chosen, or lets it. Tells what was.
    pub(crate) fn set_held(&self, is_held: bool) -> bool {
        self.is_held.swap(is_held, Ordering::Relaxed)
    }
}

fn is_open(breaks: u64) -> bool {
    breaks & 1 == 1
}

fn mix(average: &AtomicU32, newest: f32) {
    let old = f32::from_bits(average.load(Ordering::Relaxed));
    average.store((old + (newest - old) * WEIGHT).to_bits(), Ordering::Relaxed);
}

#[cfg(test)]
mod tests;
