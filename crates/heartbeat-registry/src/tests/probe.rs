//! A small item, and a registry with a clock that tests move.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use shared_contract::{HeartbeatItem, ModelId, WorkerId};

use crate::{About, Address, EventKind, Outcome, Pace, Receipt, Recorded, Registry, RegistryEvent, RegistryOptions};

pub(super) const TTL: Duration = Duration::from_secs(90);
pub(super) const RETENTION: Duration = Duration::from_secs(600);
pub(super) const TOMBSTONES: Duration = Duration::from_secs(24 * 3_600);
pub(super) const SECOND: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Probe {
    pub(super) id: WorkerId,
    pub(super) incarnation: u64,
    pub(super) seq: u64,
    pub(super) model: Option<ModelId>,
    pub(super) goodbye: bool,
    pub(super) available: bool,
    pub(super) host: Option<String>,
    pub(super) port: u16,
    /// What brief beats leave out.
    pub(super) details: Option<String>,
    pub(super) timestamp: DateTime<Utc>,
}

impl HeartbeatItem for Probe {
    type Id = WorkerId;
    const KIND: &'static str = "probe";

    fn id(&self) -> &WorkerId {
        &self.id
    }
    fn order(&self) -> (u64, u64) {
        (self.incarnation, self.seq)
    }
    fn timestamp(&self) -> DateTime<Utc> {
        self.timestamp
    }
    fn is_goodbye(&self) -> bool {
        self.goodbye
    }
    fn is_available(&self) -> bool {
        self.available
    }
    fn model(&self) -> Option<&ModelId> {
        self.model.as_ref()
    }
    fn host(&self) -> Option<&str> {
        self.host.as_deref()
    }
    fn port(&self) -> u16 {
        self.port
    }
    fn wants_full(&self) -> bool {
        self.details.is_none()
    }
    fn inherit(&mut self, previous: &Self) {
        if self.details.is_none() {
            self.details.clone_from(&previous.details);
        }
    }
    fn is_news_after(&self, previous: &Self) -> bool {
        (&self.model, self.available, &self.details) != (&previous.model, previous.available, &previous.details)
    }
}

pub(super) fn id(text: &str) -> WorkerId {
    WorkerId::new(text).unwrap()
}

pub(super) fn model(text: &str) -> ModelId {
    ModelId::new(text).unwrap()
}

pub(super) fn wall() -> DateTime<Utc> {
    "2025-10-30T15:13:00Z".parse().unwrap()
}

/// A full beat of a member that takes work.
pub(super) fn probe(name: &str, incarnation: u64, seq: u64) -> Probe {
    Probe {
        id: id(name),
        incarnation,
        seq,
        model: Some(model("m")),
        goodbye: false,
        available: true,
        host: None,
        port: 9301,
        details: Some("all".to_owned()),
        timestamp: wall(),
    }
}

pub(super) fn goodbye(name: &str, incarnation: u64, seq: u64) -> Probe {
    Probe {
        goodbye: true,
        available: false,
        ..probe(name, incarnation, seq)
    }
}

pub(super) fn peer() -> IpAddr {
    "10.0.0.7".parse().unwrap()
}

/// A host other than that of [`peer`].
pub(super) fn elsewhere() -> IpAddr {
    "10.0.0.8".parse().unwrap()
}

pub(super) fn receipt(peer: IpAddr, at: Instant) -> Receipt {
    Receipt {
        peer,
        at,
        wall: wall(),
        pace: Pace::default(),
    }
}

pub(super) struct Fixture {
    pub(super) registry: Registry<Probe>,
    pub(super) now: Instant,
}

impl Fixture {
    pub(super) fn new() -> Self {
        Self::with(RegistryOptions::default())
    }

    pub(super) fn with(options: RegistryOptions) -> Self {
        Self {
            registry: Registry::new(options),
            now: Instant::now(),
        }
    }

    pub(super) fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    pub(super) fn record(&self, probe: Probe) -> Recorded {
        self.record_from(peer(), probe)
    }

    pub(super) fn record_from(&self, peer: IpAddr, probe: Probe) -> Recorded {
        self.registry.record(probe, receipt(peer, self.now)).unwrap()
    }

    /// One that is known to the registry.
    pub(super) fn view(&self, name: &str) -> crate::MemberView<Probe> {
        self.registry.view(&id(name), self.now).unwrap()
    }

    /// The member as it is asked now.
    pub(super) fn about(&self, name: &str) -> About {
        let address = || Address::resolve(None, peer(), 9301).unwrap();
        match self.registry.get(&id(name)) {
            Some(member) => member.report().about(self.now),
            None => About {
                address: address(),
                incarnation: 0,
                asked: self.now,
            },
        }
    }

    pub(super) fn suspect(&self, name: &str) -> bool {
        self.registry
            .mark_suspect(&id(name), &self.about(name), "connection refused", self.now)
    }

    pub(super) fn answer(&self, name: &str) -> bool {
        self.registry.mark_reached(&id(name), &self.about(name), self.now)
    }

    pub(super) fn fail(&self, name: &str) -> bool {
        self.registry
            .mark_unreachable(&id(name), &self.about(name), "no route", self.now)
    }

    pub(super) fn address(&self, name: &str) -> Address {
        self.view(name).address().clone()
    }

    pub(super) fn outcome(&self, probe: Probe) -> Outcome {
        self.record(probe).outcome
    }

    /// Names of what a list holds.
    pub(super) fn names(views: &[crate::MemberView<Probe>]) -> Vec<&str> {
        views.iter().map(|view| view.id().as_str()).collect()
    }

    pub(super) fn online(&self) -> Vec<String> {
        Self::names(&self.registry.list_online(self.now))
            .into_iter()
            .map(str::to_owned)
            .collect()
    }
}

/// A sender's clock that is off by `seconds`.
pub(super) fn skewed(probe: Probe, seconds: i64) -> Probe {
    Probe {
        timestamp: wall() + TimeDelta::seconds(seconds),
        ..probe
    }
}

/// The events that came so far.
pub(super) fn drain(events: &mut tokio::sync::broadcast::Receiver<RegistryEvent<Probe>>) -> Vec<(String, EventKind)> {
    let mut seen = Vec::new();
    while let Ok(event) = events.try_recv() {
        seen.push((event.member.id().to_string(), event.kind));
    }
    seen
}
