//! What becomes of the workers of a supervisor that was killed: this test binary, called again, is the one that dies.

#![cfg(target_os = "linux")]

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use worker_supervisor::{Cgroup, Ending, EventKind, Exit, Options, Record, Recovery, Spec, State, Supervisor};

use support::{LONG, id, next, options, shell, until};

/// Variable by which this binary is told to be a supervisor: the folder.
const FOLDER: &str = "TEST_SUPERVISOR_FOLDER";
/// The same: `name=script` lines.
const WORKERS: &str = "TEST_SUPERVISOR_WORKERS";
/// What an idle worker does.
const IDLE: &str = "echo up; exec sleep 1000";

/// A supervisor that lives until it is killed; without the variables, which only [`Victim::start`] sets, nothing.
#[tokio::test]
async fn supervise_until_killed() {
    let (Ok(folder), Ok(workers)) = (std::env::var(FOLDER), std::env::var(WORKERS)) else {
        return;
    };
    let supervisor = Supervisor::new(options(Path::new(&folder)));
    for line in workers.lines() {
        let (name, script) = line.split_once('=').unwrap();
        supervisor.start(shell(name, script)).unwrap();
    }
    std::fs::write(Path::new(&folder).join("ready"), "").unwrap();
    std::future::pending::<()>().await;
}

/// A supervisor in a process of its own.
struct Victim {
    process: Child,
    folder: TempDir,
}

impl Victim {
    async fn start(workers: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let lines: Vec<String> = workers
            .iter()
            .map(|(name, script)| format!("{name}={script}"))
            .collect();
        let process = Command::new(std::env::current_exe().unwrap())
            .args(["supervise_until_killed", "--exact"])
            .env(FOLDER, folder.path())
            .env(WORKERS, lines.join("\n"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        until("the supervisor is ready", || folder.path().join("ready").exists()).await;
        Self { process, folder }
    }

    fn record_file(&self, name: &str) -> PathBuf {
        self.folder.path().join("workers").join(format!("{name}.json"))
    }

    fn record(&self, name: &str) -> Record {
        serde_json::from_slice(&std::fs::read(self.record_file(name)).unwrap()).unwrap()
    }

    fn change_record(&self, name: &str, change: impl FnOnce(&mut Record)) {
        let mut record = self.record(name);
        change(&mut record);
        std::fs::write(self.record_file(name), serde_json::to_vec(&record).unwrap()).unwrap();
    }

    async fn printed(&self, name: &str, line: &str) {
        support::printed(&self.successor(), name, line).await;
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    fn successor(&self) -> Supervisor {
        Supervisor::new(Options {
            orphan_grace: LONG,
            ..options(self.folder.path())
        })
    }
}

impl Drop for Victim {
    /// A test that failed half-way leaves nothing running.
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let Ok(files) = std::fs::read_dir(self.folder.path().join("workers")) else {
            return;
        };
        for file in files.filter_map(|file| std::fs::read(file.ok()?.path()).ok()) {
            if let Ok(record) = serde_json::from_slice::<Record>(&file)
                && is_of_worker(record.pid, record.id.as_str())
            {
                signal(record.pid, Signal::SIGKILL);
            }
        }
    }
}

fn signal(pid: u32, signal: Signal) {
    // It may have ended.
    let _ = kill(Pid::from_raw(pid as i32), signal);
}

fn is_of_worker(pid: u32, name: &str) -> bool {
    let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let mark = format!("RBEE_WORKER_ID={name}");
    environ
        .split(|byte| *byte == 0)
        .any(|variable| variable == mark.as_bytes())
}

/// Neither running nor waiting to be asked how it ended.
fn lives(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

async fn gone(pid: u32) {
    until("the process is gone", || !lives(pid)).await;
}

/// Rebuilds every worker as an idle one.
fn idle(record: &Record) -> Option<Spec> {
    Some(Spec {
        label: record.label.clone(),
        ..shell(record.id.as_str(), IDLE)
    })
}

fn names(kept: &[worker_supervisor::Kept]) -> Vec<&str> {
    kept.iter().map(|kept| kept.id.as_str()).collect()
}

#[tokio::test]
async fn a_supervisor_that_was_killed_leaves_its_workers_to_the_next_one() {
    let mut victim = Victim::start(&[("a", IDLE), ("b", IDLE)]).await;
    let pids = [victim.record("a").pid, victim.record("b").pid];
    victim.kill();

    let supervisor = victim.successor();
    let recovery = supervisor.recover(idle);
    assert_eq!(names(&recovery.adopted), ["a", "b"]);
    assert!(recovery.restarted.is_empty() && recovery.forgotten.is_empty() && recovery.orphans.is_empty());
    assert_eq!(supervisor.list(), recovery.adopted);
    let kept = &recovery.adopted[0];
    assert_eq!((kept.state, kept.pid, kept.starts), (State::Running, Some(pids[0]), 1));
    assert_eq!(kept.label, "label of a");
    assert!(pids.into_iter().all(lives));

    assert_eq!(supervisor.stop(&id("a"), LONG).await.unwrap(), Ending::Ended);
    assert!(!lives(pids[0]) && !victim.record_file("a").exists());
    supervisor.kill_all().await;
    assert!(!lives(pids[1]));
}

#[tokio::test]
async fn an_adopted_worker_that_dies_is_started_again_and_is_a_child_then() {
    let mut victim = Victim::start(&[("w", IDLE)]).await;
    let first = victim.record("w").pid;
    victim.kill();
    let supervisor = victim.successor();
    supervisor.recover(idle);
    let mut events = supervisor.subscribe();

    signal(first, Signal::SIGKILL);
    let EventKind::Exited { pid, exit, .. } = next(&mut events).await else {
        panic!("it did not exit")
    };
    assert_eq!(pid, Some(first));
    // Unknown only if its parent asked at once how it ended, and the kernel is older than 6.15.
    assert!(matches!(exit, Exit::Unknown | Exit::Signal(9)), "{exit:?}");
    assert!(matches!(next(&mut events).await, EventKind::Restarting { .. }));
    let EventKind::Started { pid: second, starts: 2 } = next(&mut events).await else {
        panic!("it was not started again")
    };
    assert_eq!((victim.record("w").pid, victim.record("w").starts), (second, 2));
    supervisor.kill_all().await;
}

#[tokio::test]
async fn an_adopted_worker_gets_the_limit_that_it_has_now_when_it_is_started_again() {
    let mut victim = Victim::start(&[("w", IDLE)]).await;
    let first = victim.record("w").pid;
    victim.kill();
    // The earlier supervisor knew no limits. Plain files stand for the kernel's.
    let groups = victim.folder.path().join("cgroup");
    std::fs::create_dir(&groups).unwrap();
    std::fs::write(groups.join("cgroup.controllers"), "memory").unwrap();
    let supervisor = Supervisor::new(Options {
        cgroup: Some(Cgroup::delegated(&groups).unwrap()),
        ..options(victim.folder.path())
    });
    let limited = |record: &Record| {
        Some(Spec {
            memory_max_bytes: Some(1 << 30),
            ..idle(record)?
        })
    };
    let mut events = supervisor.subscribe();
    assert_eq!(names(&supervisor.recover(limited).adopted), ["w"]);
    assert!(!groups.join("worker-w").exists());

    signal(first, Signal::SIGKILL);
    let pid = loop {
        if let EventKind::Started { pid, .. } = next(&mut events).await {
            break pid;
        }
    };
    let read = |name: &str| std::fs::read_to_string(groups.join("worker-w").join(name)).unwrap();
    assert_eq!(
        (read("memory.max"), read("cgroup.procs")),
        ("1073741824".into(), pid.to_string())
    );
    supervisor.kill_all().await;
}

#[tokio::test]
async fn an_adopted_worker_that_is_deaf_is_killed_after_the_grace_period() {
    let deaf = "trap '' TERM; echo deaf; while :; do sleep 0.01; done";
    let mut victim = Victim::start(&[("w", deaf)]).await;
    victim.printed("w", "deaf").await;
    victim.kill();
    let supervisor = victim.successor();
    supervisor.recover(idle);
    let ending = supervisor.stop(&id("w"), Duration::from_millis(20)).await.unwrap();
    assert_eq!(ending, Ending::Killed);
}

#[tokio::test]
async fn a_worker_that_was_asked_to_end_before_is_adopted_and_not_started_again() {
    let mut victim = Victim::start(&[("w", IDLE)]).await;
    victim.kill();
    victim.change_record("w", |record| record.is_ending = true);
    let supervisor = victim.successor();
    let recovery = supervisor.recover(idle);
    assert_eq!(recovery.adopted[0].state, State::Stopping);
    let mut events = supervisor.subscribe();
    signal(recovery.adopted[0].pid.unwrap(), Signal::SIGKILL);
    assert!(matches!(next(&mut events).await, EventKind::Exited { .. }));
    assert_eq!(next(&mut events).await, EventKind::Stopped);
    assert!(!victim.record_file("w").exists());
}

#[tokio::test]
async fn a_worker_that_died_with_its_supervisor_is_started_again() {
    let mut victim = Victim::start(&[("w", IDLE)]).await;
    let pid = victim.record("w").pid;
    victim.kill();
    signal(pid, Signal::SIGKILL);
    gone(pid).await;

    let supervisor = victim.successor();
    let mut events = supervisor.subscribe();
    let recovery = supervisor.recover(idle);
    assert_eq!(names(&recovery.restarted), ["w"]);
    assert_eq!(recovery.restarted[0].state, State::Restarting);
    assert!(matches!(next(&mut events).await, EventKind::Started { starts: 2, .. }));
    supervisor.kill_all().await;
}

#[tokio::test]
async fn workers_that_are_wanted_no_more_or_are_of_an_earlier_boot_are_forgotten_with_the_reason() {
    let mut victim = Victim::start(&[("booted", IDLE), ("dead", IDLE), ("ending", IDLE), ("living", IDLE)]).await;
    let pids: BTreeMap<&str, u32> = ["booted", "dead", "ending", "living"]
        .map(|name| (name, victim.record(name).pid))
        .into();
    victim.kill();
    for name in ["booted", "dead", "ending"] {
        signal(pids[name], Signal::SIGKILL);
        gone(pids[name]).await;
    }
    victim.change_record("booted", |record| record.boot_id = "another".into());
    victim.change_record("ending", |record| record.is_ending = true);

    let supervisor = victim.successor();
    let Recovery {
        forgotten,
        adopted,
        restarted,
        orphans,
    } = supervisor.recover(|record| (record.id != id("dead") && record.id != id("living")).then(|| idle(record))?);
    assert!(adopted.is_empty() && restarted.is_empty() && orphans.is_empty());
    let mut why: BTreeMap<&str, &str> = forgotten.iter().map(|(id, why)| (id.as_str(), why.as_str())).collect();
    for (name, says) in [
        ("booted", "started anew"),
        ("dead", "is gone"),
        ("ending", "as it was asked"),
        ("living", "is being ended"),
    ] {
        let told = why.remove(name).unwrap();
        assert!(told.contains(says), "{name}: {told}");
        assert!(!victim.record_file(name).exists());
    }
    assert!(why.is_empty());
    gone(pids["living"]).await;
}

#[tokio::test]
async fn a_process_without_a_record_is_ended_and_its_children_are_left_to_it() {
    // It ends its child itself when it is asked to end.
    let parent = "sleep 1000 & trap 'kill $!; echo ended my child; exit 0' TERM; echo up; wait";
    let mut victim = Victim::start(&[("w", parent)]).await;
    let pid = victim.record("w").pid;
    victim.printed("w", "up").await;
    victim.kill();
    std::fs::remove_file(victim.record_file("w")).unwrap();

    let supervisor = victim.successor();
    let recovery = supervisor.recover(idle);
    assert_eq!(recovery.orphans, [pid]);
    assert!(recovery.adopted.is_empty());
    gone(pid).await;
    assert_eq!(supervisor.log_tail(&id("w"), 1), ["ended my child"]);
}

#[tokio::test]
async fn an_orphan_that_is_deaf_is_killed() {
    let deaf = "trap '' TERM; echo deaf; while :; do sleep 0.01; done";
    let mut victim = Victim::start(&[("w", deaf)]).await;
    victim.printed("w", "deaf").await;
    let pid = victim.record("w").pid;
    victim.kill();
    std::fs::remove_file(victim.record_file("w")).unwrap();
    let hasty = Supervisor::new(Options {
        orphan_grace: Duration::from_millis(20),
        ..options(victim.folder.path())
    });
    assert_eq!(hasty.recover(idle).orphans, [pid]);
    gone(pid).await;
}

#[tokio::test]
async fn what_is_left_of_a_worker_ends_before_it_is_started_again() {
    let mut victim = Victim::start(&[("w", IDLE)]).await;
    let pid = victim.record("w").pid;
    victim.kill();
    // As after a crash between the start of a process and its record: the record tells of another one.
    victim.change_record("w", |record| record.start_ticks += 1);

    let supervisor = victim.successor();
    let mut events = supervisor.subscribe();
    let recovery = supervisor.recover(idle);
    assert_eq!((names(&recovery.restarted), recovery.orphans), (vec!["w"], vec![pid]));
    assert!(matches!(next(&mut events).await, EventKind::Started { starts: 2, .. }));
    assert!(!lives(pid));
    supervisor.kill_all().await;
}

#[tokio::test]
async fn a_foreign_process_that_has_a_recorded_number_is_never_touched() {
    let mut victim = Victim::start(&[("w", IDLE)]).await;
    let pid = victim.record("w").pid;
    victim.kill();
    signal(pid, Signal::SIGKILL);
    gone(pid).await;
    // One that bears no mark, and one that bears that of another folder's supervisors.
    let start = |instance: Option<&str>| {
        let mut command = Command::new("sleep");
        command.arg("1000").env("RBEE_WORKER_ID", "w");
        command
            .envs(instance.map(|instance| ("RBEE_SUPERVISOR", instance)))
            .spawn()
            .unwrap()
    };
    for mut foreign in [start(None), start(Some("another"))] {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", foreign.id())).unwrap();
        let ticks = stat
            .rsplit_once(')')
            .unwrap()
            .1
            .split_ascii_whitespace()
            .nth(19)
            .unwrap();
        let record = Record {
            id: id("w"),
            pid: foreign.id(),
            start_ticks: ticks.parse().unwrap(),
            boot_id: std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
                .unwrap()
                .trim()
                .into(),
            label: String::new(),
            starts: 1,
            program: "sleep".into(),
            announce: None,
            log: PathBuf::new(),
            is_ending: false,
        };
        std::fs::write(victim.record_file("w"), serde_json::to_vec(&record).unwrap()).unwrap();
        let recovery = victim.successor().recover(|_| None);
        assert!(recovery.adopted.is_empty() && recovery.orphans.is_empty());
        assert!(recovery.forgotten[0].1.contains("is gone"), "{recovery:?}");
        assert_eq!(foreign.try_wait().unwrap(), None);
        foreign.kill().unwrap();
        foreign.wait().unwrap();
    }
}

#[tokio::test]
async fn a_supervisor_of_a_copied_folder_leaves_the_workers_of_the_original_alone() {
    let victim = Victim::start(&[("kept", IDLE), ("unknown", IDLE)]).await;
    let pids = ["kept", "unknown"].map(|name| victim.record(name).pid);
    let copy = tempfile::tempdir().unwrap();
    let records = copy.path().join("workers");
    std::fs::create_dir(&records).unwrap();
    for file in ["instance", "kept.json"] {
        std::fs::copy(victim.folder.path().join("workers").join(file), records.join(file)).unwrap();
    }
    let recovery = Supervisor::new(options(copy.path())).recover(|_| None);
    assert!(recovery.adopted.is_empty() && recovery.orphans.is_empty());
    assert!(recovery.forgotten[0].1.contains("is gone"), "{recovery:?}");
    assert!(pids.into_iter().all(lives));
}

#[tokio::test]
async fn a_supervisor_that_leaves_lets_its_workers_live_for_the_next_one() {
    let folder = tempfile::tempdir().unwrap();
    let first = Supervisor::new(options(folder.path()));
    let pid = first.start(shell("w", IDLE)).unwrap();
    let mut lines = Box::pin(first.log_lines(&id("w"), 10, true).unwrap());
    first.leave();
    assert!(first.list().is_empty());
    assert!(first.start(shell("x", IDLE)).is_err());
    // A follower hears that nothing more comes.
    while futures_util::StreamExt::next(&mut lines).await.is_some() {}
    assert!(lives(pid));

    let second = Supervisor::new(options(folder.path()));
    assert_eq!(second.recover(idle).adopted[0].pid, Some(pid));
    second.kill_all().await;
    assert!(!lives(pid));
}

#[tokio::test]
async fn a_worker_that_dies_when_it_is_left_is_started_again_by_the_next_one() {
    let folder = tempfile::tempdir().unwrap();
    let first = Supervisor::new(options(folder.path()));
    let pid = first.start(shell("w", IDLE)).unwrap();
    signal(pid, Signal::SIGKILL);
    while lives(pid) {
        std::thread::yield_now();
    }
    // The runtime learns of the end, and whoever waits for it runs after this, so that it hears of both at once.
    tokio::task::yield_now().await;
    first.leave();
    tokio::task::yield_now().await;

    let second = Supervisor::new(options(folder.path()));
    assert_eq!(names(&second.recover(idle).restarted), ["w"]);
    second.kill_all().await;
}

#[tokio::test]
async fn a_damaged_record_is_told_and_its_process_ended() {
    let mut victim = Victim::start(&[("w", IDLE)]).await;
    let pid = victim.record("w").pid;
    victim.kill();
    std::fs::write(victim.record_file("w"), "{").unwrap();
    let recovery = victim.successor().recover(idle);
    assert_eq!(recovery.orphans, [pid]);
    assert_eq!(recovery.forgotten[0].0, id("w"));
    gone(pid).await;
}
