//! Who counts as a member, who no longer does, and when the queen doubts what she sees.

use std::time::Duration;

use queen_rbee::Config;
use queen_rbee::fleet::{GoneView, LeaveReason, Liveness};
use serde_json::{Value, json};

use crate::support::{Queen, Worker, hive_beat, with, within};

/// Beats fast, so that a test need not wait long for a silence to count.
fn quick() -> Config {
    Config {
        heartbeat_interval: Duration::from_millis(50),
        heartbeat_ttl: Duration::from_millis(400),
        retention: Duration::from_millis(100),
        max_beats_per_s: 1_000,
        ..Config::default()
    }
}

fn stamped(beat: Value, incarnation: u64, seq: u64) -> Value {
    with(with(beat, "/worker/incarnation", incarnation), "/seq", seq)
}

/// Who has left, by id, with the reason.
async fn gone(queen: &Queen) -> Vec<(String, LeaveReason)> {
    let gone = queen.fleet().await.gone;
    gone.into_iter()
        .map(|GoneView { id, reason, .. }| (id, reason))
        .collect()
}

#[tokio::test]
async fn a_dropped_heartbeat_is_acknowledged_with_the_reason() {
    let queen = Queen::start(Config::default()).await;
    let worker = Worker::start().await;
    let send = async |incarnation, seq| queen.worker_beat(&stamped(worker.beat("w"), incarnation, seq)).await;
    assert_eq!(send(5, 3).await.get("dropped"), None);
    assert_eq!(send(5, 3).await["dropped"], "duplicate");
    assert_eq!(send(5, 2).await["dropped"], "reordered");
    let ack = send(4, 9).await;
    assert_eq!(ack["dropped"], "older_incarnation");
    assert_eq!(
        ack["message"],
        "dropped: a newer process with the same id has been heard of"
    );
    let goodbye = stamped(with(worker.beat("w"), "/worker/status", "stopped"), 5, 4);
    assert_eq!(queen.worker_beat(&goodbye).await.get("dropped"), None);
    assert_eq!(send(5, 4).await["dropped"], "departed");
    assert_eq!(queen.worker("w").await, None);
    for reason in ["duplicate", "reordered", "older_incarnation", "departed"] {
        let line = format!("rbee_heartbeats_dropped_total{{kind=\"worker\",reason=\"{reason}\"}}");
        assert_eq!(queen.metric(&line).await, 1.0, "{reason}");
    }
    assert_eq!(
        queen
            .metric("rbee_heartbeats_total{kind=\"worker\",outcome=\"dropped\"}")
            .await,
        4.0
    );
    assert_eq!(send(6, 1).await.get("dropped"), None, "its next start");
    assert!(queen.worker("w").await.is_some());
}

#[tokio::test]
async fn two_live_processes_with_one_id_are_shown_with_both_addresses_and_not_in_turns() {
    let config = Config {
        heartbeat_ttl: Duration::from_secs(2),
        ..quick()
    };
    let queen = Queen::start(config).await;
    let (holder, other) = (Worker::start().await, Worker::start().await);
    let address = |worker: &Worker| format!("http://{}", worker.address);
    let mut seq = 0;
    let mut both_beat = async || {
        seq += 1;
        queen.worker_beat(&stamped(holder.beat("w"), 5, seq)).await;
        let ack = queen.worker_beat(&stamped(other.beat("w"), 4, seq)).await;
        let view = queen.worker("w").await.unwrap();
        assert_eq!(view.base_url, address(&holder), "who came first keeps the name");
        assert_eq!(ack["dropped"], "older_incarnation");
        view
    };
    let view = within("the conflict", async {
        loop {
            let view = both_beat().await;
            if view.conflict.is_some() {
                return view;
            }
        }
    })
    .await;
    let reason = view.reason.unwrap();
    assert!(
        reason.contains(&address(&holder)) && reason.contains(&address(&other)),
        "{reason}"
    );
    assert!(view.ready, "the one that has the name serves");
    let conflict = view.conflict.unwrap();
    assert_eq!((conflict.base_url, conflict.incarnation), (address(&other), 4));
    let later = both_beat().await.conflict.unwrap();
    assert!(later.beats > conflict.beats);
    assert_eq!(queen.metric("rbee_conflicts{kind=\"worker\"}").await, 1.0);

    // The other one ends: after a TTL nothing is left of it.
    within("the end of the conflict", async {
        for seq in 1_000_000.. {
            queen.worker_beat(&stamped(holder.beat("w"), 5, seq)).await;
            let view = queen.worker("w").await.unwrap();
            if view.conflict.is_none() {
                assert_eq!(view.reason, None);
                return;
            }
        }
    })
    .await;
    assert_eq!(queen.metric("rbee_conflicts{kind=\"worker\"}").await, 0.0);
}

#[tokio::test]
async fn the_more_senders_there_are_the_slower_each_is_asked_to_beat() {
    let config = Config {
        heartbeat_interval: Duration::from_secs(1),
        heartbeat_ttl: Duration::from_secs(3),
        max_beats_per_s: 1,
        ..Config::default()
    };
    let queen = Queen::start(config).await;
    let worker = Worker::start().await;
    queen.hive_beat(&hive_beat("h")).await;
    for number in 0..3 {
        queen.worker_beat(&worker.beat(&format!("w-{number}"))).await;
    }
    let ack = queen.worker_beat(&worker.beat("w-0")).await;
    assert_eq!((&ack["interval_ms"], &ack["ttl_ms"]), (&json!(4_000), &json!(12_000)));
    let view = queen.fleet().await.queen;
    assert_eq!((view.interval_ms, view.ttl_ms), (4_000, 12_000));
    assert_eq!(queen.metric("rbee_heartbeat_interval_seconds").await, 4.0);
}

#[tokio::test]
async fn while_many_are_silent_at_once_the_view_is_degraded_and_nobody_is_forgotten() {
    // Far longer than it takes all of them to beat once, however slow the machine: they must be silent together.
    let config = Config {
        heartbeat_ttl: Duration::from_secs(1),
        retention: Duration::from_secs(1),
        ..quick()
    };
    let queen = Queen::start(config).await;
    let worker = Worker::start().await;
    let ids = ["a", "b", "c", "d"];
    for id in ids {
        queen.worker_beat(&worker.beat(id)).await;
    }
    let fleet = within("a silence longer than TTL and retention", async {
        loop {
            let fleet = queen.fleet().await;
            assert_eq!(fleet.workers.len(), 4, "nobody is forgotten");
            if fleet.workers.iter().all(|worker| worker.last_beat_age_ms > 2_500) {
                return fleet;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(fleet.workers.iter().all(|worker| worker.liveness == Liveness::Lost));
    assert!(fleet.queen.degraded_view);
    let reason = fleet.queen.degraded_reason.unwrap();
    assert!(reason.starts_with("4 of 4 workers fell silent together"), "{reason}");
    assert_eq!(queen.metric("rbee_degraded_view").await, 1.0);
    queen.metric_is("rbee_members_held_back{kind=\"worker\"}", 4.0).await;

    // Most return. The one that does not was lost for long enough, once it has had another TTL to return, too.
    within("the end of it", async {
        loop {
            for id in &ids[..3] {
                queen.worker_beat(&worker.beat(id)).await;
            }
            let fleet = queen.fleet().await;
            if fleet.workers.len() == 3 && !fleet.queen.degraded_view {
                return;
            }
        }
    })
    .await;
    assert_eq!(gone(&queen).await, [("d".to_owned(), LeaveReason::Lost)]);
    assert_eq!(queen.metric("rbee_degraded_view").await, 0.0);
    assert_eq!(
        queen
            .metric("rbee_members_left_total{kind=\"worker\",reason=\"lost\"}")
            .await,
        1.0
    );
}

#[tokio::test]
async fn who_has_left_is_told_newest_first_until_it_comes_back() {
    let queen = Queen::start(Config::default()).await;
    let worker = Worker::start().await;
    for (id, seq) in [("a", 1), ("b", 1)] {
        queen.worker_beat(&stamped(worker.beat(id), 5, seq)).await;
        let goodbye = with(worker.beat(id), "/worker/status", "stopped");
        queen.worker_beat(&stamped(goodbye, 5, seq + 1)).await;
    }
    let goodbye = |id: &str| (id.to_owned(), LeaveReason::Goodbye);
    assert_eq!(gone(&queen).await, [goodbye("b"), goodbye("a")]);
    assert_eq!(queen.fleet().await.gone[0].kind, "worker");
    queen.worker_beat(&stamped(worker.beat("b"), 6, 1)).await;
    assert_eq!(gone(&queen).await, [goodbye("a")]);
    queen
        .metric_is("rbee_members_left_total{kind=\"worker\",reason=\"goodbye\"}", 2.0)
        .await;
}

#[tokio::test]
async fn beats_that_were_due_and_did_not_come_are_counted() {
    let config = Config {
        heartbeat_interval: Duration::from_millis(50),
        heartbeat_ttl: Duration::from_secs(60),
        ..Config::default()
    };
    let queen = Queen::start(config).await;
    let worker = Worker::start().await;
    queen.worker_beat(&worker.beat("w")).await;
    assert_eq!(queen.worker("w").await.unwrap().beats, 1);
    within("some silence", async {
        while queen.worker("w").await.unwrap().missed_beats < 3 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    queen.worker_beat(&worker.beat("w")).await;
    let view = queen.worker("w").await.unwrap();
    assert_eq!(view.beats, 2);
    assert!(view.missed_beats >= 3);
    assert!(queen.metric("rbee_heartbeats_missed_total{kind=\"worker\"}").await >= 3.0);
    assert_eq!(
        queen.metric("rbee_heartbeat_gap_seconds_count{kind=\"worker\"}").await,
        1.0,
        "between two beats there is one gap"
    );
    assert_eq!(
        queen.metric("rbee_clock_skew_seconds_count{kind=\"worker\"}").await,
        2.0
    );
    assert_eq!(
        queen
            .metric("rbee_clock_skew_seconds_bucket{le=\"86400.0\",kind=\"worker\"}")
            .await,
        0.0,
        "the beats of the tests are years old"
    );
}

#[tokio::test]
async fn a_worker_is_shown_with_its_process_as_its_hive_sees_it() {
    let queen = Queen::start(Config::default()).await;
    let worker = Worker::start().await;
    queen.worker_beat(&with(worker.beat("w"), "/worker/hive_id", "h")).await;
    assert_eq!(queen.worker("w").await.unwrap().process, None);
    let process = json!({"pid": 7, "group": "llm-worker", "instance": "9301", "cpu_pct": 98.5, "rss_mb": 812,
                         "io_r_mb_s": 0.0, "io_w_mb_s": 0.0, "uptime_s": 5, "model": "m", "state": "running",
                         "worker_id": "w"});
    queen
        .hive_beat(&with(hive_beat("h"), "/workers", json!([process])))
        .await;
    let process = queen.worker("w").await.unwrap().process.unwrap();
    assert_eq!((process.pid, process.rss_mb), (7, 812));
}
