//! What the tests of real processes share.

use std::path::Path;
use std::time::Duration;

use shared_contract::WorkerId;
use tokio::sync::broadcast::Receiver;
use worker_supervisor::{Backoff, Event, EventKind, Options, Spec, Supervisor};

/// Far longer than anything here takes; reached only by a test that fails.
pub(crate) const LONG: Duration = Duration::from_secs(60);

pub(crate) fn id(text: &str) -> WorkerId {
    WorkerId::new(text).unwrap()
}

/// Options whose pauses are short, with all files in this folder.
pub(crate) fn options(folder: &Path) -> Options {
    Options {
        backoff: Backoff {
            first: Duration::from_millis(1),
            max: Duration::from_millis(5),
            settled: LONG,
            failures: 5,
        },
        ..Options::new(folder.join("logs"), folder.join("workers"))
    }
}

pub(crate) fn shell(name: &str, script: &str) -> Spec {
    Spec {
        id: id(name),
        label: format!("label of {name}"),
        program: "/bin/sh".into(),
        args: vec!["-c".into(), script.into()],
        env: Vec::new(),
        start_number: None,
        announce: None,
        memory_max_bytes: None,
    }
}

pub(crate) async fn next(events: &mut Receiver<Event>) -> EventKind {
    tokio::time::timeout(LONG, events.recv())
        .await
        .expect("an event comes")
        .unwrap()
        .kind
}

/// Waits until this holds.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    tokio::time::timeout(LONG, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await
    .unwrap_or_else(|_| panic!("waited in vain until {what}"));
}

/// Waits until the process has written this line.
pub(crate) async fn printed(supervisor: &Supervisor, name: &str, line: &str) {
    let id = id(name);
    until("the line is printed", || {
        supervisor.log_tail(&id, 100).iter().any(|last| last == line)
    })
    .await;
}
