//! The supervisor with real processes.

mod support;

use std::ffi::OsString;
use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt;
use tempfile::TempDir;
use tokio::sync::broadcast::Receiver;
use worker_supervisor::{Backoff, Cgroup, Ending, Error, Event, EventKind, Exit, Options, Spec, State, Supervisor};

use support::{LONG, id, options, shell};

struct Bed {
    supervisor: Supervisor,
    events: Receiver<Event>,
    folder: TempDir,
}

/// A supervisor whose pauses are short.
fn bed() -> Bed {
    bed_with(|options, _| options)
}

fn bed_with(change: impl FnOnce(Options, &Path) -> Options) -> Bed {
    let folder = tempfile::tempdir().unwrap();
    let options = Options {
        max_workers: 2,
        ..options(folder.path())
    };
    let supervisor = Supervisor::new(change(options, folder.path()));
    let events = supervisor.subscribe();
    Bed {
        supervisor,
        events,
        folder,
    }
}

impl Bed {
    async fn next(&mut self) -> EventKind {
        support::next(&mut self.events).await
    }

    async fn printed(&self, name: &str, line: &str) {
        support::printed(&self.supervisor, name, line).await;
    }

    /// What the next exit says.
    async fn exit_reason(&mut self) -> String {
        loop {
            if let EventKind::Exited { reason, .. } = self.next().await {
                return reason;
            }
        }
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
async fn a_grace_period_may_be_longer_than_any_time() {
    let bed = bed();
    bed.supervisor.start(shell("w", "exec sleep 1000")).unwrap();
    assert_eq!(
        bed.supervisor.stop(&id("w"), Duration::MAX).await.unwrap(),
        Ending::Ended
    );
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
        ..options(folder.path())
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

#[tokio::test]
async fn a_process_is_recorded_while_it_is_kept_and_without_its_secrets() {
    let bed = bed();
    let spec = Spec {
        env: vec![("RBEE_TOKEN".into(), "secret-token".into())],
        ..shell("w", "exec sleep 1000")
    };
    let pid = bed.supervisor.start(spec).unwrap();
    let path = bed.folder.path().join("workers/w.json");
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(!text.contains("secret-token"), "{text}");
    let record: worker_supervisor::Record = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (record.pid, record.starts, record.label.as_str()),
        (pid, 1, "label of w")
    );
    assert_eq!(bed.supervisor.get(&id("w")).unwrap().label, "label of w");

    bed.supervisor.stop(&id("w"), LONG).await.unwrap();
    assert!(!path.exists());
}

#[tokio::test]
async fn a_process_of_its_own_group_is_not_reached_by_a_ctrl_c_for_its_parent() {
    for survive in [false, true] {
        let bed = bed_with(|options, _| Options { survive, ..options });
        let pid = bed.supervisor.start(shell("w", "exec sleep 1000")).unwrap();
        let group = nix::unistd::getpgid(Some(nix::unistd::Pid::from_raw(pid as i32))).unwrap();
        assert_eq!(group != nix::unistd::getpgrp(), survive);
        bed.supervisor.kill_all().await;
    }
}

#[tokio::test]
async fn a_process_that_was_to_end_is_not_started_again_however_it_ends() {
    let mut bed = bed();
    bed.supervisor
        .start(shell("w", "trap 'exit 7' USR1; echo up; while :; do sleep 0.01; done"))
        .unwrap();
    bed.printed("w", "up").await;
    bed.supervisor.expect_end(&id("w")).unwrap();
    let pid = bed.supervisor.get(&id("w")).unwrap().pid.unwrap();
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(pid as i32),
        nix::sys::signal::Signal::SIGUSR1,
    )
    .unwrap();
    assert_eq!(bed.exit_reason().await, "exit code 7");
    assert_eq!(bed.next().await, EventKind::Stopped);
    assert!(bed.supervisor.list().is_empty());
    let stranger = bed.supervisor.expect_end(&id("w"));
    assert!(matches!(stranger, Err(Error::Unknown(_))));
}

#[tokio::test]
async fn a_process_that_says_it_lacks_memory_is_out_of_memory() {
    let mut bed = bed();
    let script = "echo 'CUDA_ERROR_OUT_OF_MEMORY: out of memory' >&2; exit 1";
    bed.supervisor.start(shell("w", script)).unwrap();
    let reason = bed.exit_reason().await;
    assert!(reason.starts_with("out of memory: exit code 1"), "{reason}");
    bed.supervisor.kill_all().await;
}

#[tokio::test]
async fn a_missing_library_is_named_where_a_process_cannot_be_loaded() {
    let mut bed = bed();
    let script = "echo 'w: error while loading shared libraries: libcuda.so.1: cannot open' >&2; exit 127";
    bed.supervisor.start(shell("w", script)).unwrap();
    let reason = bed.exit_reason().await;
    assert!(reason.contains("libcuda.so.1 is missing"), "{reason}");
    bed.supervisor.kill_all().await;
}

/// Plain files stand for the kernel's.
fn cgroup(root: &Path) -> Cgroup {
    std::fs::create_dir(root).unwrap();
    std::fs::write(root.join("cgroup.controllers"), "cpu memory").unwrap();
    Cgroup::delegated(root).unwrap()
}

#[tokio::test]
async fn a_process_is_put_into_a_group_with_its_limit_which_goes_with_it() {
    let bed = bed_with(|options, folder| Options {
        cgroup: Some(cgroup(&folder.join("cgroup"))),
        ..options
    });
    let group = bed.folder.path().join("cgroup/worker-w");
    let spec = Spec {
        memory_max_bytes: Some(1 << 30),
        ..shell("w", "exec sleep 1000")
    };
    let pid = bed.supervisor.start(spec).unwrap();
    let read = |name: &str| std::fs::read_to_string(group.join(name)).unwrap();
    assert_eq!(read("memory.max"), "1073741824");
    assert_eq!(read("cgroup.procs"), pid.to_string());
    // The kernel's files do not keep a folder from going; plain ones do.
    for name in ["memory.max", "cgroup.procs"] {
        std::fs::remove_file(group.join(name)).unwrap();
    }
    bed.supervisor.stop(&id("w"), LONG).await.unwrap();
    assert!(!group.exists());
}

#[tokio::test]
async fn a_kill_for_want_of_memory_in_its_group_is_told_from_any_other() {
    let mut bed = bed_with(|options, folder| Options {
        cgroup: Some(cgroup(&folder.join("cgroup"))),
        ..options
    });
    let events = bed.folder.path().join("cgroup/worker-w/memory.events");
    let script = format!("echo oom_kill 1 > {}; kill -9 $$", events.display());
    bed.supervisor.start(shell("w", &script)).unwrap();
    let reason = bed.exit_reason().await;
    assert!(reason.starts_with("out of memory: killed by signal 9"), "{reason}");
    // The counter stands at 1 before the second start, and grows no more.
    assert_eq!(bed.exit_reason().await, "killed by signal 9 (SIGKILL)");
    bed.supervisor.kill_all().await;
}

#[tokio::test]
async fn a_limit_without_a_group_to_set_it_by_is_refused() {
    let bed = bed();
    let spec = Spec {
        memory_max_bytes: Some(1),
        ..shell("w", "exec sleep 1000")
    };
    assert!(matches!(bed.supervisor.start(spec), Err(Error::NoCgroup(_))));
    assert!(bed.supervisor.list().is_empty());
}

#[tokio::test]
async fn a_follower_reads_on_over_a_restart_until_the_process_is_given_up() {
    let bed = bed_with(|options, _| Options {
        backoff: Backoff {
            failures: 2,
            ..options.backoff
        },
        ..options
    });
    let go = bed.folder.path().join("go");
    let script = format!("echo run; while [ ! -e {} ]; do sleep 0.01; done; exit 1", go.display());
    bed.supervisor.start(shell("w", &script)).unwrap();
    let mut lines = pin!(bed.supervisor.log_lines(&id("w"), 10, true).unwrap());
    assert_eq!(lines.next().await.unwrap(), "run");
    std::fs::write(go, "").unwrap();
    assert_eq!(lines.next().await.unwrap(), "run");
    assert_eq!(lines.next().await, None);
}

#[tokio::test]
async fn the_log_of_a_worker_that_is_gone_can_be_read_and_of_one_that_never_was_cannot() {
    let mut bed = bed();
    bed.supervisor.start(shell("w", "echo a; echo b")).unwrap();
    while bed.next().await != EventKind::Stopped {}
    let lines: Vec<String> = bed.supervisor.log_lines(&id("w"), 1, true).unwrap().collect().await;
    assert_eq!(lines, ["b"]);
    assert!(matches!(
        bed.supervisor.log_lines(&id("x"), 1, false).map(drop),
        Err(Error::NoLog { .. })
    ));
}
