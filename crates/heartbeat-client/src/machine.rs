//! The decisions: from state, event and now to the next beat. No clock, no network, no runtime.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use serde::{Deserialize, Serialize};
use shared_contract::{Delivery, DropReason, HeartbeatAck, timing};

use crate::{Sequence, Timing};

/// No queen can make a sender beat faster than this on its own account.
const MIN_INTERVAL: Duration = Duration::from_millis(100);
/// Nor be kept silent for longer, whatever her acknowledgement says.
const MAX_INTERVAL: Duration = Duration::from_secs(3_600);
/// Pause between a beat and the next one that was asked for: many changes at once make one beat.
const ASKED_GAP: Duration = Duration::from_millis(50);
/// The same while the queen is not known: a change of status is no news about her.
const ASKED_GAP_IN_DISCOVERY: Duration = Duration::from_secs(1);
/// No queen is looked for more often than this, however fast she wants her beats.
const MIN_GAP: Duration = Duration::from_secs(1);
/// Limit of a try that starts shortly before the next one is due.
const MIN_LIMIT: Duration = Duration::from_secs(1);
/// Limit of the goodbye: a daemon that stops does not wait longer for a queen that may be gone.
pub(crate) const GOODBYE_LIMIT: Duration = Duration::from_secs(2);
/// Jitter to either side, as a share of the pause.
const JITTER: f64 = 0.1;

/// Where a sender stands with its queen.
///
/// ```text
/// Startup        --first try-->                     DiscoveryPush
/// DiscoveryPush  --acknowledged-->                  Discovered
/// DiscoveryPush  --fifth try failed-->              DiscoveryWait
/// DiscoveryWait  --acknowledged-->                  Discovered
/// Startup, DiscoveryPush, DiscoveryWait --pull-->   Discovered       (and beats at once)
/// Discovered     --acknowledged-->                  Heartbeating
/// Discovered, Heartbeating --beat failed-->         DiscoveryPush    (the failed beat was the try at 0 s)
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientState {
    /// Nothing was sent yet.
    Startup,
    /// Tries at 0, 2, 4, 8 and 16 s.
    DiscoveryPush,
    /// The schedule is used up: one try every 30 s with jitter, or at the faster pace that the queen wanted, for ever, and
    /// open to a pull at any time.
    DiscoveryWait,
    /// The queen has acknowledged a first beat or has pulled; the regular beats begin.
    Discovered,
    /// The regular beats are acknowledged.
    Heartbeating,
}

impl ClientState {
    fn is_discovery(self) -> bool {
        matches!(self, Self::Startup | Self::DiscoveryPush | Self::DiscoveryWait)
    }
}

impl fmt::Display for ClientState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Startup => "startup",
            Self::DiscoveryPush => "discovery_push",
            Self::DiscoveryWait => "discovery_wait",
            Self::Discovered => "discovered",
            Self::Heartbeating => "heartbeating",
        })
    }
}

/// A beat that is to be sent now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beat {
    /// The sender's incarnation.
    pub incarnation: u64,
    /// Its sequence number, from 1. Numbers that are left out went to other queens.
    pub seq: u64,
    /// How much it carries.
    pub delivery: Delivery,
    /// Answered later than this, it has failed.
    pub limit: Duration,
}

/// A machine's sequence, which a clone copies.
#[derive(Debug)]
struct Drawn(Arc<Sequence>);

impl Clone for Drawn {
    fn clone(&self) -> Self {
        Self(Arc::new(self.0.copy()))
    }
}

/// The state machine of one sender.
///
/// Its owner asks [`due`](Self::due) when to come back, sends what [`poll`](Self::poll) returns, and reports each beat's end
/// by [`acknowledged`](Self::acknowledged) or [`failed`](Self::failed). At most one beat is in flight.
///
/// A clone is the machine of another process with the same past, as when a virtual machine is copied: it draws from a
/// sequence of its own from then on.
#[derive(Debug, Clone)]
pub struct Machine {
    timing: Timing,
    /// Offsets of the tries from the start of discovery.
    schedule: [Duration; timing::DISCOVERY_SCHEDULE.len()],
    rng: SmallRng,
    state: ClientState,
    sequence: Drawn,
    /// Pace that the queen asked for last, already within bounds.
    interval: Duration,
    /// Upper bound of a pause between two regular beats.
    longest_pause: Duration,
    discovery_started: Instant,
    /// Scheduled tries made since then.
    tries: usize,
    next: Instant,
    last_sent: Option<Instant>,
    in_flight: Option<Beat>,
    asked: bool,
    full_wanted: bool,
    /// The newest acknowledgement took the sender for gone.
    refuted: bool,
}

impl Machine {
    /// In [`ClientState::Startup`], with the first try due `now`. The same seed and events give the same beats. The
    /// incarnation is 0 for a sender that cannot tell one start from the next.
    pub fn new(timing: Timing, incarnation: u64, seed: u64, now: Instant) -> Self {
        Self::drawing_from(Arc::new(Sequence::new(incarnation)), timing, seed, now)
    }

    /// The same for a process with several queens, whose machines draw from one sequence.
    pub fn drawing_from(sequence: Arc<Sequence>, timing: Timing, seed: u64, now: Instant) -> Self {
        let mut machine = Self {
            timing,
            schedule: schedule(timing.interval),
            rng: SmallRng::seed_from_u64(seed),
            state: ClientState::Startup,
            sequence: Drawn(sequence),
            interval: timing.interval,
            longest_pause: timing.interval,
            discovery_started: now,
            tries: 0,
            next: now,
            last_sent: None,
            in_flight: None,
            asked: false,
            full_wanted: false,
            refuted: false,
        };
        machine.set_pace(timing.interval, timing.ttl);
        machine
    }

    /// Where the sender stands with its queen.
    pub fn state(&self) -> ClientState {
        self.state
    }

    /// When [`poll`](Self::poll) will have a beat; `None` while one is in flight.
    pub fn due(&self) -> Option<Instant> {
        if self.in_flight.is_some() {
            return None;
        }
        let asked = self
            .last_sent
            .filter(|_| self.asked)
            .map(|sent| sent + self.asked_gap());
        Some(asked.map_or(self.next, |asked| asked.min(self.next)))
    }

    /// The beat to send now, if one is due.
    pub fn poll(&mut self, now: Instant) -> Option<Beat> {
        if self.due().is_none_or(|due| now < due) {
            return None;
        }
        let (delivery, limit) = if self.state.is_discovery() {
            self.begin_try(now)
        } else {
            let delivery = if self.full_wanted {
                Delivery::Full
            } else {
                Delivery::Brief
            };
            (delivery, self.interval.max(MIN_LIMIT))
        };
        self.asked = false;
        self.full_wanted = false;
        self.last_sent = Some(now);
        let beat = self.beat(delivery, limit.min(self.timing.timeout));
        self.in_flight = Some(beat);
        Some(beat)
    }

    /// The beat in flight was acknowledged.
    pub fn acknowledged(&mut self, now: Instant, ack: &HeartbeatAck) {
        let beat = self.in_flight.take();
        self.set_pace(
            Duration::from_millis(ack.interval_ms),
            Duration::from_millis(ack.ttl_ms),
        );
        self.state = if self.state.is_discovery() {
            ClientState::Discovered
        } else {
            ClientState::Heartbeating
        };
        self.next = now + self.regular_pause();
        if let Some(beat) = beat {
            self.refute(beat, ack);
        }
        if ack.want_full {
            self.full_wanted = true;
            // A queen that asks again right after a full beat gets the next one at the usual pace: no hot loop.
            self.asked |= beat.is_some_and(|beat| beat.delivery == Delivery::Brief);
        }
    }

    /// A queen that takes this sender for gone is wrong: it goes on under an incarnation that is newer than what she knows, in
    /// full since she may have forgotten everything, and at once, unless that has just not helped.
    fn refute(&mut self, beat: Beat, ack: &HeartbeatAck) {
        let is_gone = ack.dropped == Some(DropReason::Departed);
        if is_gone && beat.incarnation != 0 {
            let known = ack.known_incarnation.unwrap_or_default();
            self.sequence.0.rise_above(beat.incarnation.max(known));
            self.full_wanted = true;
            self.asked |= !self.refuted;
        }
        self.refuted = is_gone;
    }

    /// The beat in flight failed, for whatever reason. A failed regular beat means that the queen is lost.
    pub fn failed(&mut self, now: Instant) {
        self.in_flight = None;
        if !self.state.is_discovery() {
            self.state = ClientState::DiscoveryPush;
            self.discovery_started = now;
            self.schedule = schedule(self.longest_gap());
            self.tries = 1;
            self.next = now + self.schedule[1];
        } else if self.tries >= self.schedule.len() {
            self.state = ClientState::DiscoveryWait;
        }
    }

    /// Something changed that the queen should know: a beat at once, or right after the one in flight.
    pub fn beat_now(&mut self) {
        self.asked = true;
    }

    /// The queen asked for our capabilities: she is there and knows the way. Ends discovery and beats in full at once.
    ///
    /// Returns true if the try in flight is to be given up, since it may hang on the queen's former self.
    #[must_use]
    pub fn discovered_by_pull(&mut self) -> bool {
        self.asked = true;
        self.full_wanted = true;
        if !self.state.is_discovery() {
            return false;
        }
        self.state = ClientState::Discovered;
        self.in_flight.take().is_some()
    }

    /// The last beat, to be sent in whatever state. Nothing may be polled after it.
    pub fn goodbye(&mut self) -> Beat {
        self.beat(Delivery::Brief, self.timing.timeout.min(GOODBYE_LIMIT))
    }

    fn beat(&self, delivery: Delivery, limit: Duration) -> Beat {
        let (incarnation, seq) = self.sequence.0.draw();
        Beat {
            incarnation,
            seq,
            delivery,
            limit,
        }
    }

    /// Begins a try to find the queen. The limit ends it when the next one is due, so that the schedule holds however the
    /// queen fails.
    fn begin_try(&mut self, now: Instant) -> (Delivery, Duration) {
        if self.state == ClientState::Startup {
            self.state = ClientState::DiscoveryPush;
            self.discovery_started = now;
            self.next = now;
        }
        if now >= self.next {
            // Tries whose time passed meanwhile (a suspended host) are not made up for.
            while self
                .schedule
                .get(self.tries)
                .is_some_and(|offset| self.discovery_started + *offset <= now)
            {
                self.tries += 1;
            }
            self.next = match self.schedule.get(self.tries) {
                Some(offset) => self.discovery_started + *offset,
                None => now + self.retry_pause(),
            };
        }
        (Delivery::Full, (self.next - now).max(MIN_LIMIT))
    }

    fn asked_gap(&self) -> Duration {
        if self.state.is_discovery() {
            ASKED_GAP_IN_DISCOVERY
        } else {
            ASKED_GAP
        }
    }

    fn set_pace(&mut self, interval: Duration, ttl: Duration) {
        self.longest_pause = (ttl / 3).clamp(MIN_INTERVAL, MAX_INTERVAL);
        self.interval = interval.clamp(MIN_INTERVAL, self.longest_pause);
    }

    /// Spread evenly over what the jitter and a third of the TTL allow, so that the cap does not bring senders in step.
    fn regular_pause(&mut self) -> Duration {
        let highest = (1.0 + JITTER).min(self.longest_pause.as_secs_f64() / self.interval.as_secs_f64());
        self.interval.mul_f64(self.rng.random_range(1.0 - JITTER..=highest))
    }

    /// Longest pause between two tries: a queen who wanted beats at a faster pace wants her fleet back at that pace.
    fn longest_gap(&self) -> Duration {
        self.timing.interval.min(self.interval.max(MIN_GAP))
    }

    fn retry_pause(&mut self) -> Duration {
        let pause = timing::DISCOVERY_RETRY.min(self.longest_gap());
        pause.mul_f64(self.rng.random_range(1.0 - JITTER..=1.0 + JITTER))
    }
}

/// Offsets of the tries from the start of discovery: the contract's, none later than `longest_gap` after the one before.
fn schedule(longest_gap: Duration) -> [Duration; timing::DISCOVERY_SCHEDULE.len()] {
    let mut offsets = timing::DISCOVERY_SCHEDULE;
    for i in 1..offsets.len() {
        let gap = timing::DISCOVERY_SCHEDULE[i] - timing::DISCOVERY_SCHEDULE[i - 1];
        offsets[i] = offsets[i - 1] + gap.min(longest_gap);
    }
    offsets
}
