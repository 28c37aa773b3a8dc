//! The call-back: whether who beats can be reached.

use std::time::Duration;

use queen_rbee::Config;
use queen_rbee::fleet::Liveness;
use serde_json::{Value, json};

use crate::support::{Door, Queen, Worker, chat, closed_port, hive_beat, plain, with, within, worker_beat};

#[tokio::test]
async fn who_beats_and_does_not_answer_is_unreachable_and_not_chosen() {
    let config = Config {
        queue_timeout: Duration::from_millis(50),
        ..Config::default()
    };
    let queen = Queen::start(config).await;
    let port = closed_port().await;
    let beat = worker_beat("w", port);
    queen.worker_beat(&beat).await;
    let view = queen.worker_becomes("w", Liveness::Unreachable).await;
    let reason = view.reason.unwrap();
    let address = format!("http://127.0.0.1:{port}");
    assert!(
        reason.starts_with(&format!("cannot be reached from the queen at {address}: ")) && reason.contains("refused"),
        "{reason}"
    );
    assert!(!view.ready);
    assert!(view.last_beat_age_ms < 90_000, "it beats");

    queen.worker_beat(&beat).await;
    let view = queen.worker("w").await.unwrap();
    assert_eq!(view.liveness, Liveness::Unreachable, "a beat is no answer");

    let refused = within("an answer", queen.ask(&chat())).await.unwrap();
    assert_eq!(refused.status(), 503);
    let error: Value = refused.json().await.unwrap();
    let message = error["error"]["message"].as_str().unwrap();
    assert!(message.contains("w: cannot be reached: "), "{message}");
    assert!(
        !message.contains(&port.to_string()),
        "addresses are no client's business: {message}"
    );
    assert_eq!(
        queen.metric("rbee_retries_total{reason=\"unreachable\"}").await,
        0.0,
        "no request was tried at it"
    );
    assert!(
        queen
            .metric("rbee_callbacks_total{kind=\"worker\",result=\"unreachable\"}")
            .await
            >= 1.0
    );
    assert_eq!(
        queen
            .metric("rbee_members{kind=\"worker\",liveness=\"unreachable\"}")
            .await,
        1.0
    );
}

#[tokio::test]
async fn who_answers_at_last_is_online_whatever_the_answer_is() {
    let queen = Queen::start(Config::default()).await;
    let door = Door::shut().await;
    queen.worker_beat(&worker_beat("w", door.port)).await;
    queen.worker_becomes("w", Liveness::Unreachable).await;
    door.open();
    // The queen tries again of her own accord.
    let view = queen.worker_becomes("w", Liveness::Online).await;
    assert!(view.ready);
    assert_eq!((view.beats, view.reason), (1, None));
}

#[tokio::test]
async fn a_waiting_request_is_given_a_worker_that_has_become_reachable() {
    let queen = Queen::start(Config::default()).await;
    queen.worker_beat(&worker_beat("w", closed_port().await)).await;
    queen.worker_becomes("w", Liveness::Unreachable).await;
    let asked = queen.ask(&chat());
    queen.metric_is("rbee_queue_depth{model=\"m\"}", 1.0).await;
    let mut worker = Worker::start().await;
    // The same worker names another port: then it is called there at once.
    queen.worker_beat(&worker.beat("w")).await;
    worker.next().await.answer(plain(200, "{}"));
    let response = within("an answer", asked).await.unwrap();
    assert_eq!(response.headers()["x-rbee-attempts"], "1");
}

#[tokio::test]
async fn who_answered_once_is_not_called_again_while_nothing_speaks_against_it() {
    let queen = Queen::start(Config::default()).await;
    let (first, second) = (Worker::start().await, Worker::start().await);
    queen.worker_beat(&first.beat("a")).await;
    queen.workers_reached(1).await;
    for _ in 0..5 {
        queen.worker_beat(&first.beat("a")).await;
    }
    // Called back after all of those beats were seen.
    queen.worker_beat(&second.beat("b")).await;
    queen.workers_reached(2).await;
    assert_eq!((first.calls(), second.calls()), (1, 1));
}

#[tokio::test]
async fn a_suspect_that_beats_again_is_called_back_before_it_is_believed_for_long() {
    let queen = Queen::start(Config::default()).await;
    let worker = Worker::start().await;
    let beat = worker.beat("w");
    queen.worker_beat(&beat).await;
    queen.workers_reached(1).await;
    worker.stop().await;
    let asked = queen.ask(&chat());
    queen.worker_becomes("w", Liveness::Suspect).await;
    drop(asked);
    queen.worker_beat(&beat).await;
    queen.worker_becomes("w", Liveness::Unreachable).await;
}

#[tokio::test]
async fn a_process_that_starts_is_called_once_it_listens() {
    let queen = Queen::start(Config::default()).await;
    let (starting, other) = (Worker::start().await, Worker::start().await);
    let without_port = with(starting.beat("w"), "/worker/port", 0);
    queen
        .worker_beat(&with(without_port, "/worker/status", "starting"))
        .await;
    queen.worker_beat(&other.beat("other")).await;
    queen.workers_reached(1).await;
    let view = queen.worker("w").await.unwrap();
    assert_eq!((view.liveness, starting.calls()), (Liveness::Online, 0));
    queen.worker_beat(&starting.beat("w")).await;
    queen.workers_reached(2).await;
    assert_eq!(starting.calls(), 1);
}

#[tokio::test]
async fn a_restarted_worker_is_called_back_even_at_its_old_address() {
    let queen = Queen::start(Config::default()).await;
    let worker = Worker::start().await;
    for (incarnation, seq, calls) in [(1, 1, 1), (1, 2, 1), (2, 1, 2)] {
        let beat = with(worker.beat("w"), "/worker/incarnation", incarnation);
        queen.worker_beat(&with(beat, "/seq", seq)).await;
        queen.workers_reached(calls).await;
        assert_eq!(worker.calls(), calls);
    }
}

#[tokio::test]
async fn a_hive_that_cannot_be_reached_is_shown_so_and_its_workers_are_judged_for_themselves() {
    let queen = Queen::start(Config::default()).await;
    let worker = Worker::start().await;
    queen
        .hive_beat(&with(hive_beat("h"), "/hive/port", closed_port().await))
        .await;
    queen.worker_beat(&with(worker.beat("w"), "/worker/hive_id", "h")).await;
    let hive = within("the failed call", async {
        loop {
            let hive = queen.fleet().await.hives.remove(0);
            if hive.liveness == Liveness::Unreachable {
                return hive;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(!hive.ready);
    assert!(
        hive.reason
            .unwrap()
            .contains("cannot be reached from the queen at http://127.0.0.1:")
    );
    queen.workers_reached(1).await;
    assert!(queen.worker("w").await.unwrap().ready);
}

#[tokio::test]
async fn a_hive_is_ready_if_it_would_take_an_order() {
    let queen = Queen::start(Config::default()).await;
    let host = Worker::start().await;
    let hive = with(hive_beat("h"), "/hive/port", host.address.port());
    let cases = [
        (hive.clone(), true, None),
        (
            with(hive.clone(), "/hive/operational_status", "draining"),
            false,
            Some("draining"),
        ),
        (
            with(
                with(hive, "/hive/health_status", "unhealthy"),
                "/hive/health_reason",
                "its disk is full",
            ),
            false,
            Some("unhealthy: its disk is full"),
        ),
    ];
    for (beat, ready, reason) in cases {
        queen.hive_beat(&beat).await;
        let view = queen.fleet().await.hives.remove(0);
        assert_eq!((view.ready, view.reason.as_deref()), (ready, reason));
    }
    let health: Value = queen.get("/health").send().await.unwrap().json().await.unwrap();
    assert_eq!(
        (&health["hives"]["online"], &health["hives"]["ready"]),
        (&json!(1), &json!(0))
    );
}
