use std::net::{IpAddr, Ipv4Addr};

use chrono::Utc;
use heartbeat_registry::{Pace, Receipt, Registry, RegistryOptions};
use model_store::Catalogue;
use proptest::prelude::*;
use scheduler::{Strategy, decide};
use serde_json::{Value, json};

use super::*;
use crate::supply::known::Sources;

const GIB: u64 = 1 << 30;

fn worker(id: &str) -> WorkerId {
    WorkerId::new(id).unwrap()
}

fn model(id: &str) -> ModelId {
    ModelId::new(id).unwrap()
}

fn known(id: &str) -> KnownModel {
    let catalogue = Catalogue::built_in();
    let sources = Sources {
        entry: catalogue.get("smollm2-135m-instruct"),
        ..Sources::default()
    };
    let known = KnownModel::gather(&model("smollm2-135m-instruct"), sources, []).unwrap();
    KnownModel { id: model(id), ..known }
}

/// A process on `cpu` that was granted so many MiB.
fn process(id: &str, of: &str, state: &str, granted_mb: u64) -> Value {
    json!({"pid": 1, "group": "llm-worker", "instance": "1", "cpu_pct": 0.0, "rss_mb": 0, "io_r_mb_s": 0.0,
           "io_w_mb_s": 0.0, "uptime_s": 0, "model": of, "state": state, "worker_id": id, "device": "cpu",
           "granted_mb": granted_mb})
}

/// A hive `h` with 8 GiB, of which so many MiB are free.
fn host(free_mb: u64, processes: &[Value]) -> HostNow {
    let beat = json!({
        "hive": {"id": "h", "hostname": "", "port": 2, "operational_status": "ready", "health_status": "healthy",
                 "version": "0"},
        "timestamp": Utc::now(), "workers": processes,
        "monitor": {"ram_total_mb": 8192, "ram_free_mb": free_mb},
        "capabilities": {"devices": [{"id": "cpu", "kind": "cpu", "name": "CPU", "memory_total_mb": 8192}],
                         "engines": [{"implementation": "w", "version": "0", "kinds": ["cpu"]}]}});
    let registry: Registry<HiveHeartbeat> = Registry::new(RegistryOptions::default());
    let receipt = Receipt {
        peer: IpAddr::V4(Ipv4Addr::LOCALHOST),
        at: Instant::now(),
        wall: Utc::now(),
        pace: Pace::default(),
    };
    registry.record(serde_json::from_value(beat).unwrap(), receipt).unwrap();
    let id = HiveId::new("h").unwrap();
    HostNow {
        liveness: Liveness::Online,
        closed: None,
        report: registry.get(&id).unwrap().report(),
        told: None,
        id,
    }
}

fn promise(of: &str, bytes: u64) -> Promise {
    Promise {
        hive: HiveId::new("h").unwrap(),
        device: "cpu".into(),
        model: model(of),
        bytes,
        evict: Vec::new(),
        earlier: BTreeSet::new(),
        worker: None,
    }
}

struct Bed {
    hosts: Vec<HostNow>,
    promises: Vec<Promise>,
    leaving: BTreeSet<WorkerId>,
    conduct: Option<Conduct>,
    now: Instant,
}

impl Bed {
    fn new(host: HostNow) -> Self {
        Self {
            hosts: vec![host],
            promises: Vec::new(),
            leaving: BTreeSet::new(),
            conduct: None,
            now: Instant::now() + Duration::from_secs(1_000),
        }
    }

    /// All workers have been idle, and ready, for so long.
    fn idle_for(mut self, idle: Duration, ready: Duration) -> Self {
        self.conduct = Some(Conduct {
            idle_since: Some(self.now - idle),
            ready_since: Some(self.now - ready),
            is_awaited: false,
            is_replica: false,
        });
        self
    }

    fn problem(&self, waited: Duration, in_time: bool) -> Problem {
        let known = known("m");
        let scene = Scene {
            hosts: &self.hosts,
            promises: &self.promises,
            leaving: &self.leaving,
            pinned: &|model| model.as_str() == "pinned",
            conduct: &|_| self.conduct,
            now: self.now,
        };
        scene.problem(&Wish {
            model: &known,
            strategy: Strategy::Spread,
            may_evict: true,
            waited,
            failures: &BTreeMap::new(),
            in_time,
            errand: None,
        })
    }

    fn free(&self) -> u64 {
        self.problem(Duration::ZERO, false).hosts[0].devices[0].free_bytes
    }

    fn idle(&self, waited: Duration) -> Option<u64> {
        self.problem(waited, false).hosts[0].devices[0].tenants[0].idle_ms
    }
}

#[test]
fn a_promise_counts_until_its_worker_shows_and_never_twice() {
    let mut bed = Bed::new(host(4096, &[]));
    bed.promises = vec![promise("a", GIB), promise("a", GIB)];
    assert_eq!(bed.free(), 2 * GIB);
    // The hive has subtracted the grant of the one that it tells of.
    bed.hosts = vec![host(3072, &[process("w1", "a", "starting", 1024)])];
    assert_eq!(bed.free(), 2 * GIB);
    bed.hosts = vec![host(
        2048,
        &[
            process("w1", "a", "starting", 1024),
            process("w2", "a", "starting", 1024),
        ],
    )];
    assert_eq!(bed.free(), 2 * GIB);
}

#[test]
fn a_worker_that_was_there_before_or_is_anothers_does_not_stand_for_a_promise() {
    let mut bed = Bed::new(host(
        4096,
        &[
            process("old", "a", "running", 1024),
            process("other", "b", "starting", 1024),
        ],
    ));
    let mut late = promise("a", GIB);
    late.earlier.insert(worker("old"));
    bed.promises = vec![late];
    assert_eq!(bed.free(), 3 * GIB);
    let named = Promise {
        worker: Some(worker("new")),
        ..promise("a", GIB)
    };
    bed.promises = vec![named];
    assert_eq!(bed.free(), 3 * GIB, "it does not show yet, whoever else does");
}

#[test]
fn what_the_leaving_give_back_belongs_to_whom_they_leave_for() {
    let mut bed = Bed::new(host(1024, &[process("old", "b", "running", 4096)]));
    bed.promises = vec![Promise {
        evict: vec![worker("old")],
        ..promise("a", 5 * GIB)
    }];
    assert_eq!(bed.free(), 0);
    bed.hosts = vec![host(5120, &[])];
    assert_eq!(bed.free(), 0, "it has gone, and its room is promised");
    bed.promises.clear();
    assert_eq!(bed.free(), 5 * GIB);
}

#[test]
fn a_worker_makes_room_once_it_has_rested_or_the_other_model_has_waited() {
    let running = host(0, &[process("w", "b", "running", 4096)]);
    let (short, long) = (Duration::from_millis(100), Duration::from_secs(5));
    let bed = Bed::new(running.clone()).idle_for(short, long);
    assert_eq!(bed.idle(Duration::ZERO), None);
    assert_eq!(bed.idle(REST_PATIENCE), Some(100));
    let bed = Bed::new(running).idle_for(REST, long);
    assert_eq!(bed.idle(Duration::ZERO), Some(500));
}

#[test]
fn a_worker_whose_model_is_awaited_stays_until_the_other_models_turn_has_come() {
    let mut bed = Bed::new(host(0, &[process("w", "b", "running", 4096)])).idle_for(REST, TURN);
    let conduct = bed.conduct.unwrap();
    for busy in [
        Conduct {
            is_awaited: true,
            ..conduct
        },
        Conduct {
            idle_since: None,
            ..conduct
        },
    ] {
        bed.conduct = Some(busy);
        assert_eq!(bed.idle(TURN - Duration::from_secs(1)), None);
        assert_eq!(bed.idle(TURN), Some(0));
        bed.conduct = Some(Conduct {
            ready_since: Some(bed.now - Duration::from_secs(1)),
            ..busy
        });
        assert_eq!(bed.idle(TURN), None, "it has hardly begun");
    }
}

#[test]
fn who_starts_or_leaves_is_not_asked_to_make_room_and_who_is_pinned_never() {
    let idle = Duration::from_secs(60);
    let bed = Bed::new(host(0, &[process("w", "b", "starting", 4096)])).idle_for(idle, idle);
    assert_eq!(bed.idle(idle), None);
    let mut bed = Bed::new(host(0, &[process("w", "b", "running", 4096)])).idle_for(idle, idle);
    bed.leaving.insert(worker("w"));
    assert_eq!(bed.idle(idle), None);
    let bed = Bed::new(host(0, &[process("w", "pinned", "running", 4096)])).idle_for(idle, idle);
    assert_eq!(decide(&bed.problem(idle, false)).choice, None);
    assert_eq!(decide(&bed.problem(idle, true)).choice, None, "in no time");
    let mut bed = bed;
    bed.leaving.insert(worker("w"));
    assert_eq!(decide(&bed.problem(idle, false)).choice, None);
    assert!(decide(&bed.problem(idle, true)).choice.is_some(), "it is about to go");
}

#[test]
fn waiting_helps_where_somebody_busy_stands_in_the_way_or_a_hive_is_in_doubt() {
    let bed = Bed::new(host(0, &[process("w", "b", "running", 4096)]));
    assert_eq!(decide(&bed.problem(Duration::ZERO, false)).choice, None);
    assert!(decide(&bed.problem(Duration::ZERO, true)).choice.is_some());
    let mut bed = Bed::new(host(4096, &[]));
    bed.hosts[0].closed = Some("its telemetry was cut off".into());
    bed.hosts[0].liveness = Liveness::Suspect;
    assert_eq!(decide(&bed.problem(Duration::ZERO, false)).choice, None);
    assert!(decide(&bed.problem(Duration::ZERO, true)).choice.is_some());
    bed.hosts[0].liveness = Liveness::Lost;
    assert_eq!(decide(&bed.problem(Duration::ZERO, true)).choice, None);
}

#[test]
fn a_device_is_closed_for_an_owner_at_work_a_missing_program_and_memory_that_is_not_told() {
    let why = |edit: fn(&mut HiveHeartbeat)| {
        let mut host = host(4096, &[]);
        let mut report = Report::clone(&host.report);
        edit(&mut report.item);
        host.report = Arc::new(report);
        let problem = Bed::new(host).problem(Duration::ZERO, false);
        let host = &problem.hosts[0];
        host.closed
            .clone()
            .or_else(|| host.devices[0].closed.clone())
            .unwrap_or_default()
    };
    assert_eq!(why(|_| {}), "");
    let engines = |beat: &mut HiveHeartbeat| beat.capabilities.as_mut().unwrap().engines.clear();
    assert!(why(engines).contains("--worker-command"));
    let silent = |beat: &mut HiveHeartbeat| beat.monitor = MonitorData::default();
    assert!(why(silent).contains("does not tell"));
    let no_word = |beat: &mut HiveHeartbeat| beat.capabilities = None;
    assert!(why(no_word).contains("not said yet"));
    let owner = |beat: &mut HiveHeartbeat| {
        let load = json!({"id": "cpu", "owner": {"pid": 1, "name": "game", "vram_mb": 1}});
        beat.monitor.devices = vec![serde_json::from_value(load).unwrap()];
    };
    assert!(why(owner).contains("game"));
}

proptest! {
    /// Loads decide one after the other, with the hive's word as old as it was before the first of them.
    #[test]
    fn however_late_the_hives_word_is_no_memory_is_promised_twice(free_mb in 0..8192_u64, loads in 1..12_usize) {
        let mut bed = Bed::new(host(free_mb, &[]));
        for _ in 0..loads {
            if let Some(choice) = decide(&bed.problem(Duration::ZERO, false)).choice {
                bed.promises.push(promise("m", choice.bytes));
            }
        }
        let promised: u64 = bed.promises.iter().map(|promise| promise.bytes).sum();
        prop_assert!(promised <= free_mb << 20);
    }

    /// Of the promised workers some show by now, in any order, and the hive has subtracted them.
    #[test]
    fn what_is_free_does_not_depend_on_how_many_of_the_promised_show(count in 0..6_usize, shown in 0..6_usize) {
        let shown = shown.min(count);
        let processes: Vec<Value> = (0..shown)
            .rev()
            .map(|number| process(&format!("w{number}"), "m", "starting", 1024))
            .collect();
        let mut bed = Bed::new(host(8192 - 1024 * shown as u64, &processes));
        bed.promises = vec![promise("m", GIB); count];
        prop_assert_eq!(bed.free(), (8 - count as u64) * GIB);
    }
}
