//! One process that beats: the real machine, with a simulated clock and a simulated connection around it, as the client's
//! driver gives it real ones.

use std::time::{Duration, Instant};

use heartbeat_client::{Beat, Machine, Timing};
use heartbeat_registry::Pace;
use shared_contract::HeartbeatAck;

use super::clock::{MachineClock, Time};

/// How a request ended: acknowledged, or refused or reset.
pub(super) type Answer = Option<HeartbeatAck>;

#[derive(Debug, Clone, Copy)]
struct InFlight {
    exchange: u64,
    until: Instant,
}

#[derive(Debug, Clone)]
pub(super) struct Sender {
    pub(super) machine: Machine,
    pub(super) clock: MachineClock,
    /// How far its wall clock is ahead, in milliseconds.
    pub(super) skew_ms: i64,
    /// What it says of itself: changes come with a beat at once.
    pub(super) ready: bool,
    /// It has begun to stop: nothing is polled any more.
    pub(super) leaving: bool,
    /// The newest timer; older ones are void.
    pub(super) timer: u64,
    in_flight: Option<InFlight>,
    /// The answer that came while it was stopped.
    mailbox: Option<(u64, Answer)>,
    exchanges: u64,
}

impl Sender {
    pub(super) fn new(pace: Pace, incarnation: u64, seed: u64, clock: MachineClock, now: Time, skew_ms: i64) -> Self {
        let timing = Timing {
            interval: pace.interval,
            ttl: pace.ttl,
            ..Timing::default()
        };
        Self {
            machine: Machine::new(timing, incarnation, seed, clock.read(now)),
            clock,
            skew_ms,
            ready: true,
            leaving: false,
            timer: 0,
            in_flight: None,
            mailbox: None,
            exchanges: 0,
        }
    }

    /// A copy of the running machine elsewhere: its connections are gone.
    pub(super) fn snapshot(&self, now: Time) -> Self {
        let mut copy = self.clone();
        copy.fail(now);
        copy.mailbox = None;
        copy
    }

    /// The beat that is due, and the number of the exchange that it begins.
    pub(super) fn poll(&mut self, now: Time) -> Option<(Beat, u64)> {
        let now = self.clock.read(now);
        let beat = self.machine.poll(now)?;
        self.exchanges += 1;
        self.in_flight = Some(InFlight {
            exchange: self.exchanges,
            until: now + beat.limit,
        });
        Some((beat, self.exchanges))
    }

    pub(super) fn due(&self) -> Option<Time> {
        self.machine.due().map(|due| self.clock.when(due))
    }

    pub(super) fn is_in_flight(&self) -> bool {
        self.in_flight.is_some()
    }

    /// When the exchange in flight fails for lack of an answer.
    pub(super) fn limit(&self) -> Option<(u64, Time)> {
        self.in_flight.map(|it| (it.exchange, self.clock.when(it.until)))
    }

    /// Takes an answer. False if nobody waits for it any more.
    pub(super) fn settle(&mut self, exchange: u64, answer: &Answer, now: Time) -> bool {
        if self.in_flight.is_none_or(|it| it.exchange != exchange) {
            return false;
        }
        self.in_flight = None;
        match answer {
            Some(ack) => self.machine.acknowledged(self.clock.read(now), ack),
            None => self.machine.failed(self.clock.read(now)),
        }
        true
    }

    /// Keeps an answer until the process runs again.
    pub(super) fn keep(&mut self, exchange: u64, answer: Answer) {
        if self.in_flight.is_some_and(|it| it.exchange == exchange) {
            self.mailbox = Some((exchange, answer));
        }
    }

    /// It runs again. An answer that lies there is read before a limit that has passed is noticed, as in the driver.
    pub(super) fn resume(&mut self, now: Time, slept: Duration) -> Option<Answer> {
        self.clock.sleep(slept);
        let kept = self.mailbox.take();
        if let Some((exchange, answer)) = kept
            && self.settle(exchange, &answer, now)
        {
            return Some(answer);
        }
        self.give_up_if_late(now);
        None
    }

    /// The limit of the exchange in flight has passed, or has it?
    pub(super) fn give_up_if_late(&mut self, now: Time) -> bool {
        let is_late = self.in_flight.is_some_and(|it| self.clock.read(now) >= it.until);
        if is_late {
            self.fail(now);
        }
        is_late
    }

    fn fail(&mut self, now: Time) {
        if self.in_flight.take().is_some() {
            self.machine.failed(self.clock.read(now));
        }
    }

    /// The queen asked for it.
    pub(super) fn pulled(&mut self) {
        if self.machine.discovered_by_pull() {
            self.in_flight = None;
        }
    }

    /// The exchange in flight is of no interest any more: the goodbye goes out.
    pub(super) fn drop_exchange(&mut self) {
        self.in_flight = None;
    }
}
