//! The fleet as the events of the queen's stream tell it.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use hive_contract::TelemetryEvent;
use queen_rbee::fleet::{Change, FleetView, HiveEvent, HiveView, Liveness, QueenBeat, WorkerEvent, WorkerView};

/// Samples of a rate that are kept: one a second.
pub(super) const SAMPLES: usize = 60;

/// One event of `GET /v1/heartbeats/stream`.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Event {
    /// All there is; what was known before counts no more.
    Snapshot(Box<FleetView>),
    /// Something about a worker.
    Worker(Box<WorkerEvent>),
    /// Something about a hive.
    Hive(Box<HiveEvent>),
    /// How busy a host is.
    Telemetry(Box<TelemetryEvent>),
    /// The queen's own figures.
    Queen(Box<QueenBeat>),
}

impl Event {
    /// The event of this name; `None` for a name that this version does not know.
    pub(super) fn parse(name: &str, data: &str) -> Result<Option<Self>, serde_json::Error> {
        Ok(Some(match name {
            "snapshot" => Self::Snapshot(serde_json::from_str(data)?),
            "worker" => Self::Worker(serde_json::from_str(data)?),
            "hive" => Self::Hive(serde_json::from_str(data)?),
            "telemetry" => Self::Telemetry(serde_json::from_str(data)?),
            "queen" => Self::Queen(serde_json::from_str(data)?),
            _ => return Ok(None),
        }))
    }
}

/// A member, and when its newest beat came by this program's clock.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Member<T> {
    /// As the queen tells of it.
    pub(super) view: T,
    beat_at: Duration,
}

impl<T> Member<T> {
    fn new(view: T, beat_age_ms: u64, now: Duration) -> Self {
        Self {
            view,
            beat_at: now.saturating_sub(Duration::from_millis(beat_age_ms)),
        }
    }

    /// Age of its newest beat.
    pub(super) fn beat_age(&self, now: Duration) -> Duration {
        now.saturating_sub(self.beat_at)
    }
}

/// Rates of the last minute, the newest last.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Samples(VecDeque<f64>);

impl Samples {
    fn push(&mut self, value: f64) {
        if self.0.len() == SAMPLES {
            self.0.pop_front();
        }
        self.0.push_back(value);
    }

    /// The newest ones, at most so many.
    pub(super) fn newest(&self, count: usize) -> impl Iterator<Item = f64> {
        self.0.iter().skip(self.0.len().saturating_sub(count)).copied()
    }
}

/// Everything that is known. Times are spans since this program began.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Fleet {
    /// The queen's figures, once she has told them.
    pub(super) queen: Option<QueenBeat>,
    /// By their ids.
    pub(super) hives: BTreeMap<String, Member<HiveView>>,
    /// By their ids.
    pub(super) workers: BTreeMap<String, Member<WorkerView>>,
    rates: BTreeMap<String, Samples>,
    total: Samples,
}

impl Fleet {
    /// Takes an event in.
    pub(super) fn apply(&mut self, event: Event, now: Duration) {
        match event {
            Event::Snapshot(fleet) => self.replace(*fleet, now),
            Event::Worker(event) => {
                let WorkerEvent { change, worker, .. } = *event;
                match change {
                    Change::Left => _ = self.workers.remove(worker.id.as_str()),
                    _ => self.put_worker(worker, now),
                }
            }
            Event::Hive(event) => {
                let HiveEvent { change, hive, .. } = *event;
                match change {
                    Change::Left => _ = self.hives.remove(hive.id.as_str()),
                    _ => self.put_hive(hive, now),
                }
            }
            Event::Telemetry(event) => self.measure(*event),
            Event::Queen(beat) => self.queen = Some(*beat),
        }
    }

    fn replace(&mut self, fleet: FleetView, now: Duration) {
        self.hives.clear();
        self.workers.clear();
        for hive in fleet.hives {
            self.put_hive(hive, now);
        }
        for worker in fleet.workers {
            self.put_worker(worker, now);
        }
    }

    fn put_worker(&mut self, worker: WorkerView, now: Duration) {
        let age = worker.last_beat_age_ms;
        self.workers
            .insert(worker.id.to_string(), Member::new(worker, age, now));
    }

    fn put_hive(&mut self, hive: HiveView, now: Duration) {
        let age = hive.last_beat_age_ms;
        self.hives.insert(hive.id.to_string(), Member::new(hive, age, now));
    }

    fn measure(&mut self, event: TelemetryEvent) {
        for process in &event.workers {
            let id = process.worker_id.as_ref().map(|id| id.as_str());
            if let Some(member) = id.and_then(|id| self.workers.get_mut(id)) {
                member.view.process = Some(process.clone());
            }
        }
        if let Some(member) = self.hives.get_mut(event.hive_id.as_str()) {
            member.view.monitor = event.monitor;
            member.view.workers = event.workers;
        }
    }

    /// Takes one sample of each rate; to be called once a second.
    pub(super) fn sample(&mut self) {
        self.rates.retain(|id, _| self.workers.contains_key(id));
        for (id, member) in &self.workers {
            self.rates.entry(id.clone()).or_default().push(rate(&member.view));
        }
        self.total.push(self.tokens_per_second());
    }

    /// What all workers make together now.
    pub(super) fn tokens_per_second(&self) -> f64 {
        // The sum of no numbers would be -0.0, which people read as a mistake.
        self.workers.values().fold(0.0, |sum, member| sum + rate(&member.view))
    }

    /// The last minute of all workers together.
    pub(super) fn total(&self) -> &Samples {
        &self.total
    }

    /// The last minute of one worker.
    pub(super) fn rates(&self, worker: &str) -> Option<&Samples> {
        self.rates.get(worker)
    }
}

/// Nobody knows what a lost worker does.
fn rate(worker: &WorkerView) -> f64 {
    match worker.liveness {
        Liveness::Lost => 0.0,
        Liveness::Online | Liveness::Suspect | Liveness::Unreachable => worker.load.tokens_per_second,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::fleet::tests::{hive, worker};

    pub(in crate::top) fn snapshot(hives: &[Value], workers: &[Value]) -> Event {
        let queen = json!({"id": "queen-1", "version": "0.1.0", "uptime_ms": 61_000, "degraded_view": false});
        let fleet = json!({"queen": queen, "hives": hives, "workers": workers});
        Event::parse("snapshot", &fleet.to_string()).unwrap().unwrap()
    }

    pub(in crate::top) fn change(kind: &str, change: &str, member: &Value) -> Event {
        let event = json!({"change": change, "timestamp": "2026-01-02T03:04:05Z", "from": null, "to": null,
                           "reason": null, kind: member});
        Event::parse(kind, &event.to_string()).unwrap().unwrap()
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn members_come_change_and_go() {
        let mut fleet = Fleet::default();
        fleet.apply(snapshot(&[hive("box")], &[worker("w-1")]), at(10));
        fleet.apply(change("worker", "joined", &worker("w-2")), at(11));
        assert_eq!(fleet.workers.len(), 2);
        let mut busy = worker("w-2");
        busy["load"]["tokens_per_second"] = 9.0.into();
        fleet.apply(change("worker", "beat", &busy), at(12));
        assert_eq!(fleet.workers["w-2"].view.load.tokens_per_second, 9.0);
        fleet.apply(change("worker", "left", &worker("w-1")), at(13));
        fleet.apply(change("hive", "left", &hive("box")), at(13));
        assert!(fleet.hives.is_empty() && fleet.workers.contains_key("w-2"));
        fleet.apply(snapshot(&[], &[]), at(14));
        assert!(fleet.workers.is_empty(), "a snapshot replaces all");
        assert_eq!(fleet.tokens_per_second().to_string(), "0");
    }

    #[test]
    fn the_age_of_a_beat_grows_until_the_next_one() {
        let mut fleet = Fleet::default();
        // Its beat was three seconds old when the queen told of it.
        fleet.apply(change("worker", "beat", &worker("w")), at(10));
        assert_eq!(fleet.workers["w"].beat_age(at(15)), at(8));
    }

    #[test]
    fn telemetry_is_of_the_host_and_of_its_processes() {
        let mut fleet = Fleet::default();
        fleet.apply(snapshot(&[hive("gpu-box")], &[worker("w")]), at(0));
        let process = json!({"pid": 7, "group": "llm-worker", "instance": "1", "cpu_pct": 0.0, "rss_mb": 300,
                             "io_r_mb_s": 0.0, "io_w_mb_s": 0.0, "uptime_s": 1, "state": "running", "worker_id": "w"});
        let telemetry = json!({"hive_id": "gpu-box", "timestamp": "2026-01-02T03:04:05Z",
                               "monitor": {"cpu_usage_percent": 77.0}, "workers": [process]});
        fleet.apply(
            Event::parse("telemetry", &telemetry.to_string()).unwrap().unwrap(),
            at(1),
        );
        assert_eq!(fleet.hives["gpu-box"].view.monitor.cpu_usage_percent, 77.0);
        assert_eq!(fleet.workers["w"].view.process.as_ref().unwrap().rss_mb, 300);
    }

    #[test]
    fn rates_are_kept_for_a_minute_and_a_lost_worker_makes_nothing() {
        let mut fleet = Fleet::default();
        fleet.apply(snapshot(&[], &[worker("w")]), at(0));
        for _ in 0..SAMPLES + 3 {
            fleet.sample();
        }
        assert_eq!(fleet.rates("w").unwrap().newest(usize::MAX).count(), SAMPLES);
        assert_eq!(fleet.total().newest(1).collect::<Vec<_>>(), [51.26]);
        let mut lost = worker("w");
        lost["liveness"] = "lost".into();
        fleet.apply(change("worker", "state_changed", &lost), at(1));
        fleet.sample();
        assert_eq!(fleet.total().newest(1).collect::<Vec<_>>(), [0.0]);
    }

    #[test]
    fn an_event_of_a_later_version_is_none() {
        assert_eq!(Event::parse("timeline", "{}").unwrap(), None);
        assert!(Event::parse("worker", "{}").is_err());
    }
}
