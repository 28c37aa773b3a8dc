//! The supervisor with real processes.

use std::ffi::OsString;
use std::time::Duration;

use shared_contract::WorkerId;
use tempfile::TempDir;
use tokio::sync::broadcast::Receiver;
use worker_supervisor::{Backoff, Ending, Error, Event, EventKind, Exit, Options, Spec, State, Supervisor};

/// Far longer than anything here takes; reached only by a test that fails.
const LONG: Duration = Duration::from_secs(60);

struct Bed {
    supervisor: Supervisor,
    events: Receiver<Event>,
    folder: TempDir,
}

/// A supervisor whose pauses are short.
fn bed() -> Bed {
    let folder = tempfile::tempdir().unwrap();
    let options = Options {
        backoff: Backoff {
            first: Duration::from_millis(1),
            max: Duration::from_millis(5),
            settled: LONG,
            failures: 5,
        },
        max_workers: 2,
        ..Options::new(folder.path().join("logs"))
    };
    let supervisor = Supervisor::new(options);
    let events = supervisor.subscribe();
    Bed {
        supervisor,
        events,
        folder,
    }
}

fn id(text: &str) -> WorkerId {
    WorkerId::new(text).unwrap()
}

fn shell(name: &str, script: &str) -> Spec {
    Spec {
        id: id(name),
        program: "/bin/sh".into(),
        args: vec!["-c".into(), script.into()],
        env: Vec::new(),
        start_number: None,
        announce: None,
    }
}

impl Bed {
    async fn next(&mut self) -> EventKind {
        tokio::time::timeout(LONG, self.events.recv())
            .await
            .expect("an event comes")
            .unwrap()
            .kind
    }

    /// Waits until the process has written this line.
    async fn printed(&self, name: &str, line: &str) {
        let id = id(name);
        tokio::time::timeout(LONG, async {
            while !self.supervisor.log_tail(&id, 100).iter().any(|last| last == line) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await
        .expect("the line is printed");
    }
}

#[tokio::test]
async fn a_started_process_is_listed_until_it_is_stopped() {
    let mut bed = bed();
    let pid = bed.supervisor.start(shell("w", "exec sleep 1000")).unwrap();
    assert_eq!(bed.next().await, EventKind::Started { pid, starts: 1 });
    let kept = bed.supervisor.get(&id("w")).unwrap();
    assert_eq!((kept.state, kept.pid), (State::Running, Some(pid)));

    let ending = bed.supervisor.stop(&id("w"), LONG).await.unwrap();
    assert_eq!(ending, Ending::Ended);
    assert!(bed.supervisor.list().is_empty());
    let stopped = EventKind::Exited {
        pid: Some(pid),
        exit: Exit::Signal(15),
        reason: "stopped".into(),
    };
    assert_eq!(bed.next().await, stopped);
    assert_eq!(bed.next().await, EventKind::Stopped);
}

#[tokio::test]
async fn a_process_that_ignores_the_request_to_end_is_killed_after_the_grace_period() {
    let bed = bed();
    let script = "trap '' TERM; echo deaf; while :; do sleep 0.01; done";
    bed.supervisor.start(shell("w", script)).unwrap();
    bed.printed("w", "deaf").await;
    let ending = bed.supervisor.stop(&id("w"), Duration::from_millis(50)).await.unwrap();
    assert_eq!(ending, Ending::Killed);
}

#[tokio::test]
async fn a_process_may_use_its_grace_period_to_finish() {
    let bed = bed();
    let script = "trap 'echo finished; exit 0' TERM; echo up; while :; do sleep 0.01; done";
    bed.supervisor.start(shell("w", script)).unwrap();
    bed.printed("w", "up").await;
    assert_eq!(bed.supervisor.stop(&id("w"), LONG).await.unwrap(), Ending::Ended);
    assert_eq!(bed.supervisor.log_tail(&id("w"), 1), ["finished"]);
}

#[tokio::test]
async fn a_killed_process_is_seen_at_once_and_started_again_under_the_same_id() {
    let mut bed = bed();
    let pid = bed.supervisor.start(shell("w", "exec sleep 1000")).unwrap();
    bed.next().await;
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(pid as i32),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    let exited = EventKind::Exited {
        pid: Some(pid),
        exit: Exit::Signal(9),
        reason: "killed by signal 9 (SIGKILL)".into(),
    };
    assert_eq!(bed.next().await, exited);
    assert!(matches!(bed.next().await, EventKind::Restarting { .. }));
    let EventKind::Started { pid: second, starts: 2 } = bed.next().await else {
        panic!("it was not started again")
    };
    assert_ne!(second, pid);
    assert_eq!(bed.supervisor.get(&id("w")).unwrap().pid, Some(second));
    bed.supervisor.kill_all().await;
}

#[tokio::test]
async fn a_process_that_fails_five_times_is_given_up_and_says_why() {
    let mut bed = bed();
    bed.supervisor
        .start(shell("w", "echo no such model >&2; exit 3"))
        .unwrap();
    let reason = loop {
        if let EventKind::Failed { reason } = bed.next().await {
            break reason;
        }
    };
    assert!(
        reason.contains("exit code 3") && reason.contains("no such model"),
        "{reason}"
    );
    let kept = bed.supervisor.get(&id("w")).unwrap();
    assert_eq!((kept.state, kept.starts, kept.pid), (State::Failed, 5, None));
    assert_eq!(kept.reason, Some(reason));

    assert_eq!(bed.supervisor.stop(&id("w"), LONG).await.unwrap(), Ending::Ended);
    assert!(bed.supervisor.list().is_empty());
}

#[tokio::test]
async fn a_process_that_ends_with_status_0_was_done_and_is_not_started_again() {
    let mut bed = bed();
    bed.supervisor.start(shell("w", "exit 0")).unwrap();
    bed.next().await;
    assert!(matches!(
        bed.next().await,
        EventKind::Exited {
            exit: Exit::Code(0),
            ..
        }
    ));
    assert_eq!(bed.next().await, EventKind::Stopped);
    assert!(bed.supervisor.list().is_empty());
}

#[tokio::test]
async fn a_process_that_waits_for_its_restart_can_be_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let patient = Options {
        backoff: Backoff {
            first: LONG,
            max: LONG,
            ..Backoff::default()
        },
        ..Options::new(folder.path())
    };
    let supervisor = Supervisor::new(patient);
    let mut events = supervisor.subscribe();
    supervisor.start(shell("w", "exit 1")).unwrap();
    while !matches!(events.recv().await.unwrap().kind, EventKind::Restarting { .. }) {}
    assert_eq!(supervisor.get(&id("w")).unwrap().state, State::Restarting);
    assert_eq!(supervisor.stop(&id("w"), LONG).await.unwrap(), Ending::Ended);
    assert_eq!(events.recv().await.unwrap().kind, EventKind::Stopped);
    assert!(supervisor.list().is_empty());
}

#[tokio::test]
async fn killing_all_ends_the_deaf_ones_and_takes_no_new_ones() {
    let bed = bed();
    let script = "trap '' TERM; echo deaf; while :; do sleep 0.01; done";
    for name in ["a", "b"] {
        bed.supervisor.start(shell(name, script)).unwrap();
        bed.printed(name, "deaf").await;
    }
    bed.supervisor.kill_all().await;
    assert!(bed.supervisor.list().is_empty());
    let refused = bed.supervisor.start(shell("c", "exit 0"));
    assert!(matches!(refused, Err(Error::Closed(_))));
}

#[tokio::test]
async fn a_taken_id_and_one_process_too_many_are_refused() {
    let bed = bed();
    bed.supervisor.start(shell("a", "exec sleep 1000")).unwrap();
    let twice = bed.supervisor.start(shell("a", "exec sleep 1000"));
    assert!(matches!(twice, Err(Error::Duplicate(_))));
    bed.supervisor.start(shell("b", "exec sleep 1000")).unwrap();
    let third = bed.supervisor.start(shell("c", "exec sleep 1000"));
    assert!(matches!(third, Err(Error::TooMany { limit: 2, .. })));
    let stranger = bed.supervisor.stop(&id("d"), LONG).await;
    assert!(matches!(stranger, Err(Error::Unknown(_))));
    bed.supervisor.kill_all().await;
}

#[tokio::test]
async fn a_program_that_is_not_there_is_named_and_not_kept() {
    let bed = bed();
    let spec = Spec {
        program: "/nowhere/worker".into(),
        ..shell("w", "")
    };
    let error = bed.supervisor.start(spec).unwrap_err();
    assert!(error.to_string().contains("/nowhere/worker"), "{error}");
    assert!(bed.supervisor.list().is_empty());
}

#[tokio::test]
async fn a_process_gets_a_clean_environment_and_no_input() {
    let mut bed = bed();
    let spec = Spec {
        env: vec![("RBEE_TOKEN".into(), OsString::from("secret-token"))],
        ..shell("w", "env; cat; echo end of input")
    };
    assert!(!format!("{spec:?}").contains("secret-token"));
    bed.supervisor.start(spec).unwrap();
    while bed.next().await != EventKind::Stopped {}
    let lines = bed.supervisor.log_tail(&id("w"), 100);
    assert!(lines.iter().any(|line| line == "RBEE_TOKEN=secret-token"), "{lines:?}");
    assert!(lines.iter().any(|line| line.starts_with("PATH=")), "{lines:?}");
    // cargo sets this one for tests; it is on no list.
    assert!(
        !lines.iter().any(|line| line.starts_with("CARGO_MANIFEST_DIR=")),
        "{lines:?}"
    );
    assert_eq!(lines.last().unwrap(), "end of input");
}

#[tokio::test]
async fn what_a_process_announced_is_removed_before_the_next_start() {
    let mut bed = bed();
    let announce = bed.folder.path().join("announce");
    std::fs::write(&announce, "from an earlier life").unwrap();
    let script = format!("test -e {} && exit 9; exec sleep 1000", announce.display());
    let spec = Spec {
        announce: Some(announce.clone()),
        ..shell("w", &script)
    };
    bed.supervisor.start(spec).unwrap();
    bed.next().await;
    assert!(!announce.exists());
    bed.supervisor.stop(&id("w"), LONG).await.unwrap();
    let EventKind::Exited { exit, .. } = bed.next().await else {
        panic!("it did not exit")
    };
    assert_eq!(exit, Exit::Signal(15));
}

#[tokio::test]
async fn each_start_gets_a_greater_number_than_all_before() {
    let mut bed = bed();
    let numbers = bed.folder.path().join("numbers");
    let script = format!("echo $START_NUMBER >> {}; exit 1", numbers.display());
    for name in ["a", "b"] {
        let spec = Spec {
            start_number: Some("START_NUMBER".into()),
            ..shell(name, &script)
        };
        bed.supervisor.start(spec).unwrap();
        while !matches!(bed.next().await, EventKind::Failed { .. }) {}
    }
    let given: Vec<u64> = std::fs::read_to_string(numbers)
        .unwrap()
        .lines()
        .map(|line| line.parse().unwrap())
        .collect();
    assert_eq!(given.len(), 10, "{given:?}");
    assert!(given.is_sorted_by(|a, b| a < b), "{given:?}");
}

#[tokio::test]
async fn a_start_that_failed_is_no_process_that_ended() {
    let mut bed = bed();
    let program = bed.folder.path().join("worker");
    std::os::unix::fs::symlink("/bin/sh", &program).unwrap();
    let script = format!("rm {}; exit 1", program.display());
    let spec = Spec {
        program: program.clone().into(),
        ..shell("w", &script)
    };
    let first = bed.supervisor.start(spec).unwrap();
    let mut ended = Vec::new();
    loop {
        match bed.next().await {
            EventKind::Exited { pid, .. } => ended.push(pid),
            EventKind::Failed { .. } => break,
            _ => {}
        }
    }
    assert_eq!(ended, [Some(first), None, None, None, None]);
}
