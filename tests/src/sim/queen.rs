//! The queen: the real registry, its sweep, and what she does with a beat and with a member that nobody has called back yet.

use std::{sync::Arc, time::Instant};

use chrono::{DateTime, Utc};
use heartbeat_registry::{About, Lease, Outcome, Reach, Receipt, Recorded, Registry, RegistryEvent};
use shared_contract::HeartbeatAck;
use tokio::sync::broadcast::{Receiver, error::TryRecvError};

use super::{
    clock::{MachineClock, Time},
    ground::Ground,
    kind::Kind,
    scenario::Scenario,
};

/// Requests that wait in the sockets of a stopped queen; what comes later is not let in.
const BACKLOG: usize = 1_024;

pub(super) struct Queen<K: Kind> {
    /// Grows with each start.
    pub(super) run: u32,
    /// The sweeps of one time without a stop.
    pub(super) chain: u64,
    /// `None` while she is down.
    pub(super) registry: Option<Registry<K>>,
    pub(super) clock: MachineClock,
    pub(super) running: bool,
    pub(super) backlog: Vec<Letter<K>>,
    pub(super) leases: Vec<(Lease<K>, Time)>,
    events: Option<Receiver<RegistryEvent<K>>>,
    /// Members that she is calling back.
    calling: Vec<bool>,
}

/// A beat under way.
#[derive(Debug, Clone)]
pub(super) struct Letter<K> {
    /// The run of the queen that the connection leads to.
    pub(super) run: u32,
    pub(super) process: usize,
    pub(super) host: usize,
    /// `None` for what nobody waits for: the second copy, the goodbye.
    pub(super) exchange: Option<u64>,
    pub(super) sent: Time,
    pub(super) item: K,
}

impl<K: Kind> Queen<K> {
    pub(super) fn new(slots: usize, base: Instant) -> Self {
        Self {
            run: 0,
            chain: 0,
            registry: None,
            clock: MachineClock::new(base),
            running: false,
            backlog: Vec::new(),
            leases: Vec::new(),
            events: None,
            calling: vec![false; slots],
        }
    }

    pub(super) fn start(&mut self, plan: &Scenario) {
        let registry = Registry::new(plan.options);
        self.run += 1;
        self.events = Some(registry.subscribe());
        self.registry = Some(registry);
        self.run_again();
    }

    /// She runs: her sweeps begin anew.
    pub(super) fn run_again(&mut self) {
        self.running = true;
        self.chain += 1;
    }

    pub(super) fn stop(&mut self) {
        self.registry = None;
        self.events = None;
        self.running = false;
        self.backlog.clear();
        self.leases.clear();
        self.calling.fill(false);
    }

    /// Whether the request was let in.
    pub(super) fn keep(&mut self, letter: Letter<K>) -> bool {
        let has_room = self.backlog.len() < BACKLOG;
        if has_room {
            self.backlog.push(letter);
        }
        has_room
    }

    /// What happened since the last look, those of one member in their order, the members in the order of their slots.
    pub(super) fn news(&mut self, slot_of: impl Fn(&K) -> usize) -> Vec<(usize, RegistryEvent<K>)> {
        let mut news = Vec::new();
        let Some(events) = &mut self.events else { return news };
        loop {
            match events.try_recv() {
                Ok(event) => news.push((slot_of(&event.report.item), event)),
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
                Err(TryRecvError::Lagged(_)) => panic!("the scenario's event capacity is too small"),
            }
        }
        news.sort_by_key(|(slot, _)| *slot);
        news
    }

    /// What the HTTP handler does: record, and answer with the pace.
    pub(super) fn record(&self, plan: &Scenario, letter: &Letter<K>, now: Time) -> (Receipt, Recorded, HeartbeatAck) {
        let registry = self.registry.as_ref().expect("she runs");
        let pace = plan.pace.stretched(registry.count_total(), plan.max_beats_per_s);
        let receipt = Receipt {
            peer: Ground::address(letter.host),
            at: self.clock.read(now),
            wall: wall(now, 0),
            pace,
        };
        let recorded = registry
            .record(letter.item.clone(), receipt)
            .expect("a simulated host's name is an address");
        let ack = HeartbeatAck {
            status: String::new(),
            message: String::new(),
            interval_ms: pace.interval.as_millis() as u64,
            ttl_ms: pace.ttl.as_millis() as u64,
            want_full: recorded.want_full,
            queen_id: None,
            dropped: match recorded.outcome {
                Outcome::Dropped(reason) => Some(reason),
                _ => None,
            },
            known_incarnation: recorded.known_incarnation,
        };
        (receipt, recorded, ack)
    }

    /// Who is to be called back, if the member is: where it is new, and again with the beats of one that did not answer.
    pub(super) fn wants_call(&mut self, slot: usize, now: Time) -> Option<About> {
        let report = self.registry.as_ref()?.get(&K::id_of(slot))?.report();
        if report.reach == Reach::Reached || self.calling[slot] {
            return None;
        }
        self.calling[slot] = true;
        Some(report.about(self.clock.read(now)))
    }

    /// The call-back ended. True if the member is still the one that was called.
    pub(super) fn called(&mut self, slot: usize, about: &About, is_answered: bool, now: Time) -> bool {
        self.calling[slot] = false;
        if is_answered {
            return self.answered(slot, about, now);
        }
        let is_it = self.is_still(slot, about);
        if let Some(registry) = &self.registry {
            registry.mark_unreachable(&K::id_of(slot), about, "connection refused", self.clock.read(now));
        }
        is_it
    }

    /// The member answered. True if it is still the one that was asked.
    pub(super) fn answered(&self, slot: usize, about: &About, now: Time) -> bool {
        let is_it = self.is_still(slot, about);
        if let Some(registry) = &self.registry {
            registry.mark_reached(&K::id_of(slot), about, self.clock.read(now));
        }
        is_it
    }

    /// A request to the member failed. True if it is still the one that was asked, and the registry took it for news.
    pub(super) fn failed(&self, slot: usize, about: &About, now: Time) -> bool {
        let is_it = self.is_still(slot, about);
        let Some(registry) = &self.registry else { return false };
        let reason = "connection reset";
        registry.mark_suspect(&K::id_of(slot), about, reason, self.clock.read(now)) && is_it
    }

    fn is_still(&self, slot: usize, about: &About) -> bool {
        let member = self
            .registry
            .as_ref()
            .and_then(|registry| registry.get(&K::id_of(slot)));
        member.is_some_and(|member| {
            let report = member.report();
            report.address == about.address && report.item.order().0 == about.incarnation
        })
    }

    /// Each lease counts for the member that it was taken from, for as long as it is held.
    pub(super) fn leases_add_up(&self) -> bool {
        self.leases.iter().all(|(lease, _)| {
            let is_same = |(other, _): &&(Lease<K>, Time)| Arc::ptr_eq(other.member(), lease.member());
            lease.member().outstanding() as usize == self.leases.iter().filter(is_same).count()
        })
    }
}

/// A wall clock that is ahead by so much.
pub(super) fn wall(now: Time, ahead_ms: i64) -> DateTime<Utc> {
    let start = 1_700_000_000_000;
    DateTime::from_timestamp_millis(start + now.as_millis() as i64 + ahead_ms).expect("it is within the calendar")
}
