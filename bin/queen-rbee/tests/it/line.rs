//! Waiting for a worker.

use std::time::Duration;

use queen_rbee::Config;
use serde_json::{Value, json};

use crate::support::{Queen, Worker, chat, hive_beat, plain, with, within};

const WAITING: &str = "rbee_queue_depth{model=\"m\"}";

async fn queen_and_worker(config: Config) -> (Queen, Worker) {
    let queen = Queen::start(config).await;
    let worker = Worker::start().await;
    queen.worker_beat(&worker.beat("w")).await;
    (queen, worker)
}

#[tokio::test]
async fn requests_wait_for_the_one_slot_and_are_served_in_their_order() {
    let (queen, mut worker) = queen_and_worker(Config::default()).await;
    let mut asked = Vec::new();
    for number in 0..4 {
        asked.push(queen.ask(&with(chat(), "/number", number)));
        if number == 0 {
            queen.metric_is("rbee_requests_in_flight", 1.0).await;
        } else {
            queen.metric_is(WAITING, f64::from(number)).await;
        }
    }
    for (number, asked) in asked.into_iter().enumerate() {
        let reached = worker.next().await;
        assert!(!worker.has_next(), "one slot, one request");
        let body: Value = serde_json::from_slice(&reached.body).unwrap();
        assert_eq!(body["number"], number);
        reached.answer(plain(200, "{}"));
        let response = within("an answer", asked).await.unwrap();
        assert_eq!(
            (response.status().as_u16(), &response.headers()["x-rbee-attempts"]),
            (200, &"1".parse().unwrap())
        );
        response.bytes().await.unwrap();
    }
}

#[tokio::test]
async fn a_worker_that_reports_all_slots_taken_is_given_nothing_until_it_reports_otherwise() {
    let queen = Queen::start(Config::default()).await;
    let mut worker = Worker::start().await;
    let busy = with(
        with(worker.beat("w"), "/worker/status", "busy"),
        "/load",
        json!({"running": 1}),
    );
    queen.worker_beat(&busy).await;
    let asked = queen.ask(&chat());
    queen.metric_is(WAITING, 1.0).await;
    assert!(!worker.has_next());
    queen.worker_beat(&worker.beat("w")).await;
    worker.next().await.answer(plain(200, "{}"));
    assert_eq!(within("an answer", asked).await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_request_waits_for_a_model_that_is_loading() {
    let queen = Queen::start(Config::default()).await;
    let mut worker = Worker::start().await;
    queen
        .worker_beat(&with(worker.beat("w"), "/worker/status", "starting"))
        .await;
    let asked = queen.ask(&chat());
    queen.metric_is(WAITING, 1.0).await;
    queen.worker_beat(&worker.beat("w")).await;
    worker.next().await.answer(plain(200, "{}"));
    assert_eq!(within("an answer", asked).await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_request_waits_for_a_worker_that_its_hive_starts_again() {
    let queen = Queen::start(Config::default()).await;
    let process = json!({"pid": 7, "group": "llm-worker", "instance": "", "cpu_pct": 0.0, "rss_mb": 0, "io_r_mb_s": 0.0,
                         "io_w_mb_s": 0.0, "uptime_s": 0, "model": "m", "state": "restarting", "worker_id": "w"});
    queen
        .hive_beat(&with(hive_beat("h"), "/workers", json!([process])))
        .await;
    let asked = queen.ask(&chat());
    queen.metric_is(WAITING, 1.0).await;
    let mut worker = Worker::start().await;
    queen.worker_beat(&worker.beat("w")).await;
    worker.next().await.answer(plain(200, "{}"));
    assert_eq!(within("an answer", asked).await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_request_that_found_its_only_worker_dead_waits_for_another() {
    let queen = Queen::start(Config::default()).await;
    let dead = Worker::start().await;
    queen.worker_beat(&dead.beat("dead")).await;
    queen.workers_reached(1).await;
    dead.stop().await;
    let asked = queen.ask(&chat());
    queen.metric_is(WAITING, 1.0).await;
    let mut worker = Worker::start().await;
    queen.worker_beat(&worker.beat("w")).await;
    worker.next().await.answer(plain(200, "{}"));
    let response = within("an answer", asked).await.unwrap();
    assert_eq!(response.headers()["x-rbee-attempts"], "2");
}

#[tokio::test]
async fn a_worker_that_says_it_is_full_is_asked_again_when_it_is_heard_of() {
    let (queen, mut worker) = queen_and_worker(Config::default()).await;
    let asked = queen.ask(&chat());
    worker.next().await.answer(plain(503, "{}"));
    queen.metric_is(WAITING, 1.0).await;
    assert!(!worker.has_next());
    queen.worker_beat(&worker.beat("w")).await;
    worker.next().await.answer(plain(200, "{}"));
    let response = within("an answer", asked).await.unwrap();
    assert_eq!(
        (response.status().as_u16(), &response.headers()["x-rbee-attempts"]),
        (200, &"2".parse().unwrap())
    );
}

#[tokio::test]
async fn a_full_line_refuses_with_429_and_a_left_place_is_free_again() {
    let config = Config {
        queue_max: 1,
        ..Config::default()
    };
    let (queen, mut worker) = queen_and_worker(config).await;
    let first = queen.ask(&chat());
    let reached = worker.next().await;
    let second = queen.ask(&chat());
    queen.metric_is(WAITING, 1.0).await;

    let refused = within("an answer", queen.ask(&chat())).await.unwrap();
    assert_eq!(refused.status(), 429);
    assert!(refused.headers().contains_key("retry-after"));
    let error: Value = refused.json().await.unwrap();
    assert_eq!(error["error"]["type"], "rate_limit_error");

    drop(second);
    queen.metric_is(WAITING, 0.0).await;
    let third = queen.ask(&chat());
    queen.metric_is(WAITING, 1.0).await;
    reached.answer(plain(200, "{}"));
    within("an answer", first).await.unwrap().bytes().await.unwrap();
    worker.next().await.answer(plain(200, "{}"));
    assert_eq!(within("an answer", third).await.unwrap().status(), 200);
}

#[tokio::test]
async fn who_waits_too_long_is_told_why() {
    let config = Config {
        queue_timeout: Duration::from_millis(50),
        load_timeout: Duration::from_millis(50),
        ..Config::default()
    };
    let (queen, mut worker) = queen_and_worker(config).await;
    let first = queen.ask(&chat());
    let reached = worker.next().await;
    let second = within("an answer", queen.ask(&chat())).await.unwrap();
    assert_eq!(second.status(), 503);
    assert!(second.headers().contains_key("retry-after"));
    let error: Value = second.json().await.unwrap();
    assert_eq!(error["error"]["code"], "no_capacity");
    assert!(
        error["error"]["message"]
            .as_str()
            .unwrap()
            .contains("w: its one slot is taken"),
        "{error}"
    );
    reached.answer(plain(200, "{}"));
    within("an answer", first).await.unwrap();

    let loading = with(worker.beat("w"), "/worker/status", "starting");
    queen
        .worker_beat(&with(
            loading,
            "/worker/status_detail",
            json!({"phase": "load", "progress": 0.5}),
        ))
        .await;
    let third = within("an answer", queen.ask(&chat())).await.unwrap();
    assert_eq!(third.status(), 503);
    let error: Value = third.json().await.unwrap();
    assert_eq!(error["error"]["code"], "model_loading");
    assert!(
        error["error"]["message"]
            .as_str()
            .unwrap()
            .contains("starting, load 50 %"),
        "{error}"
    );
}

#[tokio::test]
async fn a_free_worker_goes_to_the_next_if_the_first_in_the_line_has_left() {
    let (queen, mut worker) = queen_and_worker(Config::default()).await;
    let first = queen.ask(&chat());
    let reached = worker.next().await;
    let second = queen.ask(&chat());
    queen.metric_is(WAITING, 1.0).await;
    let third = queen.ask(&with(chat(), "/number", 3));
    queen.metric_is(WAITING, 2.0).await;
    drop(second);
    reached.answer(plain(200, "{}"));
    within("an answer", first).await.unwrap().bytes().await.unwrap();
    // The second one's leaving may still be on its way to the queen: then its request comes first and is given up.
    let mut reached = worker.next().await;
    if !reached.body.ends_with(b"\"number\":3}") {
        reached.given_up().await;
        reached = worker.next().await;
    }
    reached.answer(plain(200, "{}"));
    assert_eq!(within("an answer", third).await.unwrap().status(), 200);
}
