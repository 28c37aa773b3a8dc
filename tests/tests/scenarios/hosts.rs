//! Several hosts: programs that are killed, stopped and started again on addresses of their own.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use queen_rbee::fleet::{FleetView, Liveness, WorkerView};
use rbee_tests::net::{Host, Lan, Queen, Wall, hive, worker};
use rbee_tests::process::is_alive;
use rbee_tests::{Process, Program, cluster, eventually, models};
use serde_json::json;

/// A queen's settings: losses are seen soon, and a busy machine does not cause them.
pub(crate) const PACE: [&str; 4] = ["--heartbeat-interval-ms", "700", "--heartbeat-ttl-ms", "4000"];

/// A hive on this host.
pub(crate) async fn start_hive(host: &Host, id: &str, queen_url: &str) -> Process {
    let args = ["--port", "0", "--hive-id", id, "--queen-url", queen_url];
    host.daemon(Program::Hive, args).await
}

/// A worker of the small model, started by the hive on this host; yields its id.
pub(crate) async fn spawn_worker(host: &Host, hive: &Process) -> String {
    let spawned = host
        .job(hive, json!({"operation": "worker_spawn", "model": models::SMOLLM2}))
        .await;
    let id = spawned["result"]["worker_id"].as_str();
    id.unwrap_or_else(|| panic!("{spawned:#}")).to_owned()
}

/// A worker of the small model without a hive on this host.
pub(crate) async fn start_worker(host: &Host, id: &str, queen_url: &str) -> Process {
    let args = cluster::worker_args(models::SMOLLM2, queen_url);
    let name = ["--worker-id".to_owned(), id.to_owned()];
    host.daemon(Program::Worker, args.into_iter().chain(name)).await
}

/// Tells a measured time; never asserted, since machines differ.
pub(crate) fn figure(what: &str, time: Duration) {
    println!("figure: {what}: {:.2} s", time.as_secs_f64());
}

pub(crate) fn ready_worker(fleet: &FleetView, id: &str) -> Option<WorkerView> {
    worker(fleet, id).filter(|worker| worker.ready).cloned()
}

fn pid_of(worker: &WorkerView) -> i32 {
    worker.pid.and_then(|pid| i32::try_from(pid).ok()).expect("a pid")
}

/// Takes more than five seconds: a real model is loaded.
#[tokio::test]
async fn the_queen_dials_the_address_that_a_workers_heartbeat_came_from() {
    let Some(lan) = Lan::build() else { return };
    let queen = Queen::start(&lan, &["--token", "a-fleet-token"]).await;
    let host = lan.host().await;
    let args = cluster::worker_args(models::SMOLLM2, &queen.url());
    let token = ["--token".to_owned(), "a-fleet-token".to_owned()];
    let _worker = host.daemon(Program::Worker, args.into_iter().chain(token)).await;

    let ready = |fleet: &FleetView| fleet.workers.iter().find(|worker| worker.ready).cloned();
    let (worker, _) = queen.until("the worker is ready", ready).await;
    assert!(
        worker.base_url.starts_with(&format!("http://{}:", host.address)),
        "{}",
        worker.base_url
    );
    let answer = queen.chat(models::SMOLLM2).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

/// Takes more than five seconds: a real model is loaded.
#[tokio::test]
async fn whoever_reaches_only_the_queen_commands_the_whole_fleet() {
    models::smollm2().await;
    let Some(lan) = Lan::build() else { return };
    let token = ["--token", "a-fleet-token"];
    let queen = Queen::start(&lan, &token).await;
    let (host, laptop) = (lan.host().await, lan.host().await);
    host.shut_out(&laptop, Wall::Refuses);
    let url = queen.url();
    let args = ["--port", "0", "--hive-id", "box", "--queen-url", &url];
    let hive_process = host.daemon(Program::Hive, args.into_iter().chain(token)).await;
    queen
        .until("the hive is ready", |fleet| {
            hive(fleet, "box").filter(|hive| hive.ready).cloned()
        })
        .await;
    let rbee = async |args: &[&str]| {
        let mut command = laptop.command(Program::Rbee);
        command
            .env("RBEE_QUEEN_URL", &url)
            .env("RBEE_TOKEN", "a-fleet-token")
            .args(args);
        command.output().await.unwrap()
    };
    let said = async |args: &[&str]| {
        let output = rbee(args).await;
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let unheard = rbee(&["health", &hive_process.url()]).await;
    assert_eq!(unheard.status.code(), Some(1), "the wall stands: {unheard:?}");

    let pulled = said(&["pull", models::SMOLLM2]).await;
    assert!(pulled.contains("is on box"), "{pulled}");
    let spawned = said(&["spawn", models::SMOLLM2]).await;
    assert!(spawned.contains("on box cpu"), "{spawned}");
    let worker = spawned.split_whitespace().next().unwrap();
    eventually("the queen knows that it is ready", async || {
        said(&["models"]).await.contains("1 worker, 1 ready").then_some(())
    })
    .await;
    assert_eq!(said(&["logs", worker, "-n", "1"]).await.lines().count(), 1);
    let in_use = rbee(&["rm", models::SMOLLM2, "--json"]).await;
    let reason = String::from_utf8_lossy(&in_use.stderr);
    assert!(in_use.status.code() == Some(1) && reason.contains(worker), "{reason}");
    let stopped = said(&["stop", &worker[..worker.len() - 1]]).await;
    assert!(stopped.contains("is stopped"), "{stopped}");
    let afterwards = said(&["logs", worker, "--hive", "box"]).await;
    assert!(afterwards.contains("draining"), "{afterwards}");
}

/// Takes more than five seconds: a model is loaded twice.
#[tokio::test]
async fn a_worker_killed_under_a_living_hive_is_known_to_be_gone_at_once() {
    models::smollm2().await;
    let Some(lan) = Lan::build() else { return };
    let queen = Queen::start(&lan, &PACE).await;
    let host = lan.host().await;
    let hive_process = start_hive(&host, "box", &queen.url()).await;
    let id = spawn_worker(&host, &hive_process).await;
    let ready = |fleet: &FleetView| ready_worker(fleet, &id);
    let (before, _) = queen.until("the worker is ready", ready).await;

    kill(Pid::from_raw(pid_of(&before)), Signal::SIGKILL).expect("the worker is there");
    let down = |fleet: &FleetView| {
        let view = worker(fleet, &id);
        let is_same = view.is_some_and(|view| view.pid == before.pid && view.liveness == Liveness::Online);
        (!is_same).then(|| view.and_then(|view| view.reason.clone()))
    };
    let (reason, time) = queen.until("the worker is not online any more", down).await;
    figure("worker killed under its hive, until suspect or gone at the queen", time);
    if let Some(reason) = reason {
        assert!(reason.contains("hive") || reason.contains("starting"), "{reason}");
    }
    let (after, time) = queen.until("its hive has started it again", ready).await;
    figure("worker killed under its hive, until ready again after that", time);
    assert_ne!(after.pid, before.pid);
    assert!(after.incarnation > before.incarnation, "{after:?}");
}

/// Takes more than five seconds: a model is loaded twice.
#[tokio::test]
async fn a_killed_worker_without_a_hive_is_suspect_from_the_first_request_that_fails() {
    models::smollm2().await;
    let Some(lan) = Lan::build() else { return };
    // Long enough that no silence is noticed.
    let queen = Queen::start(
        &lan,
        &["--heartbeat-interval-ms", "20000", "--heartbeat-ttl-ms", "60000"],
    )
    .await;
    let (one, other) = (lan.host().await, lan.host().await);
    let mut first = start_worker(&one, "first", &queen.url()).await;
    let _second = start_worker(&other, "second", &queen.url()).await;
    let both = |fleet: &FleetView| ready_worker(fleet, "first").and(ready_worker(fleet, "second"));
    queen.until("both workers are ready", both).await;

    first.kill().await;
    let start = std::time::Instant::now();
    let suspect = loop {
        let answer = queen.chat(models::SMOLLM2).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let fleet = queen.fleet().await;
        let view = worker(&fleet, "first").expect("it is not forgotten").clone();
        if view.liveness != Liveness::Online {
            break view;
        }
    };
    figure(
        "worker killed without a hive, until suspect, with requests one after the other",
        start.elapsed(),
    );
    assert_eq!(suspect.liveness, Liveness::Suspect);
    assert!(suspect.reason.is_some_and(|reason| reason.contains("refused")));
    for _ in 0..4 {
        let answer = queen.chat(models::SMOLLM2).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
}

/// Takes more than five seconds: a real model is loaded.
#[tokio::test]
async fn a_killed_hive_is_noticed_and_its_worker_goes_on() {
    models::smollm2().await;
    let Some(lan) = Lan::build() else { return };
    let queen = Queen::start(&lan, &PACE).await;
    let host = lan.host().await;
    let mut hive_process = start_hive(&host, "box", &queen.url()).await;
    let id = spawn_worker(&host, &hive_process).await;
    let (before, _) = queen
        .until("the worker is ready", |fleet| ready_worker(fleet, &id))
        .await;

    hive_process.kill().await;
    let at_least = |worst: &'static [Liveness]| {
        move |fleet: &FleetView| {
            let view = hive(fleet, "box").expect("it is not forgotten so soon");
            worst.contains(&view.liveness).then_some(())
        }
    };
    let down = at_least(&[Liveness::Suspect, Liveness::Unreachable, Liveness::Lost]);
    let ((), soon) = queen.until("the hive is not online", down).await;
    figure("hive killed, until suspect at the queen", soon);
    let ((), late) = queen.until("the hive is lost", at_least(&[Liveness::Lost])).await;
    figure("hive killed, until lost (TTL 4 s and one sweep)", soon + late);

    let (after, _) = queen
        .until("its worker is ready", |fleet| ready_worker(fleet, &id))
        .await;
    assert_eq!((after.pid, after.incarnation), (before.pid, before.incarnation));
    let answer = queen.chat(models::SMOLLM2).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

/// Takes more than five seconds: a model is loaded, and the worker is stopped for three times its TTL.
#[tokio::test]
async fn a_worker_that_was_stopped_for_a_while_is_lost_meanwhile_and_is_not_started_again() {
    models::smollm2().await;
    let Some(lan) = Lan::build() else { return };
    let queen = Queen::start(&lan, &PACE).await;
    let host = lan.host().await;
    let hive_process = start_hive(&host, "box", &queen.url()).await;
    let id = spawn_worker(&host, &hive_process).await;
    let ready = |fleet: &FleetView| ready_worker(fleet, &id);
    let (before, _) = queen.until("the worker is ready", ready).await;

    let pid = Pid::from_raw(pid_of(&before));
    kill(pid, Signal::SIGSTOP).expect("the worker is there");
    let lost = |fleet: &FleetView| {
        let view = worker(fleet, &id).expect("it is not forgotten so soon");
        (view.liveness == Liveness::Lost).then_some(())
    };
    let ((), time) = queen.until("the stopped worker is lost", lost).await;
    figure("worker stopped, until lost (TTL 4 s and one sweep)", time);
    queen
        .watch(Duration::from_secs(8), |fleet| {
            assert!(ready_worker(fleet, &id).is_none(), "it cannot answer");
        })
        .await;
    kill(pid, Signal::SIGCONT).expect("the worker is there");
    let (after, time) = queen.until("the worker is ready again", ready).await;
    figure("worker continued, until ready", time);
    assert_eq!((after.pid, after.incarnation), (before.pid, before.incarnation));
    let answer = queen.chat(models::SMOLLM2).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

/// Takes more than five seconds: a model is loaded, and the queen is stopped for three times the TTL.
#[tokio::test]
async fn a_queen_that_was_stopped_for_a_while_takes_nobody_for_lost_when_she_wakes() {
    models::smollm2().await;
    let Some(lan) = Lan::build() else { return };
    let args = [
        "--heartbeat-interval-ms",
        "1000",
        "--heartbeat-ttl-ms",
        "5000",
        "--retention-ms",
        "5000",
    ];
    let queen = Queen::start(&lan, &args).await;
    let (one, other) = (lan.host().await, lan.host().await);
    let busy = start_hive(&one, "busy", &queen.url()).await;
    let _idle = start_hive(&other, "idle", &queen.url()).await;
    let id = spawn_worker(&one, &busy).await;
    let whole = |fleet: &FleetView| ready_worker(fleet, &id).filter(|_| fleet.hives.len() == 2);
    let (before, _) = queen.until("the fleet is whole", whole).await;

    queen.process.signal(Signal::SIGSTOP);
    tokio::time::sleep(Duration::from_secs(15)).await;
    queen.process.signal(Signal::SIGCONT);
    queen
        .watch(Duration::from_secs(6), |fleet| {
            let liveness = fleet.hives.iter().map(|hive| hive.liveness);
            let mut liveness = liveness.chain(fleet.workers.iter().map(|worker| worker.liveness));
            assert!(liveness.all(|liveness| liveness != Liveness::Lost), "{fleet:#?}");
            assert!(fleet.gone.is_empty() && fleet.hives.len() == 2, "{fleet:#?}");
        })
        .await;
    let (after, _) = queen.until("the fleet is whole", whole).await;
    assert_eq!((after.pid, after.incarnation), (before.pid, before.incarnation));
    assert!(is_alive(pid_of(&after)));
}

/// Takes more than five seconds: a real model is loaded.
#[tokio::test]
async fn a_queen_that_starts_again_has_the_whole_fleet_and_no_worker_starts_again() {
    models::smollm2().await;
    let Some(lan) = Lan::build() else { return };
    let mut queen = Queen::start(&lan, &PACE).await;
    let (one, other) = (lan.host().await, lan.host().await);
    let first = start_hive(&one, "first", &queen.url()).await;
    let _second = start_hive(&other, "second", &queen.url()).await;
    let id = spawn_worker(&one, &first).await;
    let whole = |fleet: &FleetView| {
        let known = fleet
            .hives
            .iter()
            .filter(|hive| hive.ready && hive.capabilities.is_some());
        ready_worker(fleet, &id).filter(|_| known.count() == 2)
    };
    let (before, _) = queen.until("the fleet is whole", whole).await;
    let queen_id = queen.fleet().await.queen.id;

    queen.process.kill().await;
    queen.restart().await;
    let (after, time) = queen.until("the fleet is whole again", whole).await;
    figure("queen started again, until the fleet is whole (interval 0.7 s)", time);
    assert_ne!(queen.fleet().await.queen.id, queen_id);
    assert_eq!((after.pid, after.incarnation), (before.pid, before.incarnation));
}
