//! The queen's picture of the fleet, and who gets a request.

use chrono::{TimeDelta, Utc};
use rbee_tests::fake::FakeWorker;
use rbee_tests::{Cluster, eventually, http, models};
use serde_json::json;

#[tokio::test]
async fn a_worker_that_stops_beating_is_not_chosen_after_its_ttl() {
    let cluster = Cluster::with([
        "--heartbeat-interval-ms",
        "200",
        "--heartbeat-ttl-ms",
        "500",
        "--queue-timeout-ms",
        "200",
    ])
    .await;
    let worker = FakeWorker::start("w", "m").await;
    // So short a time to live may be over before the request comes.
    let is_chosen_when_it_beats = async || {
        eventually("a worker that has just beaten is chosen", async || {
            worker.beat_to(&cluster.url()).await;
            (cluster.chat("m", "hello").await.status == 200).then_some(())
        })
        .await;
    };
    is_chosen_when_it_beats().await;

    cluster
        .until("the silent worker is lost", |fleet| {
            (serde_json::to_value(fleet.workers.first()?.liveness).unwrap() == "lost").then_some(())
        })
        .await;
    let answer = cluster.chat("m", "hello").await;
    assert_ne!(answer.status, 200, "a lost worker was chosen: {answer:?}");
    is_chosen_when_it_beats().await;
}

#[tokio::test]
async fn a_worker_whose_clock_is_an_hour_off_is_online() {
    // Each beats once.
    let cluster = Cluster::with(["--heartbeat-ttl-ms", "120000"]).await;
    for (name, hours) in [("ahead", 1), ("behind", -1)] {
        let worker = FakeWorker::start(name, name).await;
        let beat = worker.beat(Utc::now() + TimeDelta::hours(hours));
        assert_eq!(
            http::post(format!("{}/v1/worker-heartbeat", cluster.url()), &beat)
                .await
                .status,
            200
        );
        assert_eq!(cluster.chat(name, "hello").await.text(), name);
        let fleet = cluster.fleet().await;
        let view = fleet.workers.iter().find(|w| w.id.as_str() == name).unwrap();
        assert!(view.ready, "{view:?}");
        assert!((view.clock_skew_ms - hours * 3_600_000).abs() < 60_000, "{view:?}");
    }
}

#[tokio::test]
async fn the_acknowledgement_tells_the_pace_and_who_answered() {
    let cluster = Cluster::with(["--heartbeat-interval-ms", "1234", "--heartbeat-ttl-ms", "5678"]).await;
    let ack = FakeWorker::start("w", "m").await.beat_to(&cluster.url()).await;
    assert_eq!(ack.status, 200);
    assert_eq!(ack.body["status"], "ok");
    assert_eq!(ack.body["interval_ms"], 1234);
    assert_eq!(ack.body["ttl_ms"], 5678);
    assert_eq!(ack.body["want_full"], false);
    assert!(ack.body["queen_id"].is_string());
}

#[tokio::test]
async fn a_worker_that_says_goodbye_is_gone_at_once() {
    let cluster = Cluster::start().await;
    let worker = FakeWorker::start("w", "m").await;
    worker.beat_to(&cluster.url()).await;
    let mut beat = worker.beat(Utc::now());
    beat["worker"]["status"] = json!("stopped");
    http::post(format!("{}/v1/worker-heartbeat", cluster.url()), &beat).await;
    assert!(cluster.fleet().await.workers.is_empty());
    assert_eq!(cluster.chat("m", "hello").await.code(), "model_not_found");
}

#[tokio::test]
async fn a_refused_connection_is_tried_elsewhere_and_the_client_sees_only_the_answer() {
    // Each beats once.
    let cluster = Cluster::with(["--heartbeat-ttl-ms", "120000"]).await;
    let (dead, alive) = (
        FakeWorker::start("dead", "m").await,
        FakeWorker::start("alive", "m").await,
    );
    dead.beat_to(&cluster.url()).await;
    alive.beat_to(&cluster.url()).await;
    drop(dead);
    for _ in 0..8 {
        assert_eq!(cluster.chat("m", "hello").await.text(), "alive");
    }
}

/// Takes more than five seconds: a real model is loaded.
#[tokio::test]
async fn the_queen_restarts_and_the_fleet_is_whole_again_without_a_worker_restarting() {
    let mut cluster = Cluster::start().await;
    let hive = cluster.hive().await;
    let spawned = cluster
        .job(&hive, &json!({"operation": "worker_spawn", "model": models::SMOLLM2}))
        .await;
    assert_eq!(spawned["state"], "succeeded", "{spawned:#}");
    cluster.until_ready(models::SMOLLM2, 1).await;
    let before = cluster
        .until("the hive has beaten, too", |fleet| {
            (!fleet.hives.is_empty()).then(|| fleet.clone())
        })
        .await;

    cluster.queen.kill().await;
    cluster.restart_queen().await;
    cluster.until_ready(models::SMOLLM2, 1).await;
    let after = cluster
        .until("the hive is back with its capabilities", |fleet| {
            fleet.hives.first()?.capabilities.is_some().then(|| fleet.clone())
        })
        .await;
    assert_ne!(after.queen.id, before.queen.id);
    assert_eq!(after.hives[0].id, before.hives[0].id);
    assert_eq!(after.workers[0].id, before.workers[0].id);
    assert_eq!(after.workers[0].pid, before.workers[0].pid);
    assert_eq!(after.workers[0].incarnation, before.workers[0].incarnation);
    assert_eq!(cluster.chat(models::SMOLLM2, "Hello").await.status, 200);
}

/// Takes more than five seconds: two real models are loaded.
#[tokio::test]
async fn two_workers_of_two_models_each_get_only_their_own_requests() {
    let cluster = Cluster::start().await;
    let smollm2 = cluster.worker(models::SMOLLM2).await;
    let gemma3 = cluster.worker(models::GEMMA3).await;
    cluster.until_ready(models::SMOLLM2, 1).await;
    cluster.until_ready(models::GEMMA3, 1).await;

    for model in [models::SMOLLM2, models::GEMMA3, models::SMOLLM2, models::GEMMA3] {
        let body = json!({"model": model, "prompt": "The capital of France is", "max_tokens": 4, "temperature": 0});
        let answer = http::post(cluster.completions_url(), &body).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.body["model"], model);
    }
    for worker in [&smollm2, &gemma3] {
        let served = http::metric(&worker.url(), "rbee_worker_requests_total").await;
        assert_eq!(served, 2.0);
    }
}

#[tokio::test]
async fn the_stream_tells_each_beat_and_the_queens_own() {
    use eventsource_stream::Eventsource;
    use futures_util::StreamExt;

    let cluster = Cluster::start().await;
    let url = format!("{}/v1/heartbeats/stream", cluster.url());
    let mut events = http::client()
        .get(url)
        .send()
        .await
        .unwrap()
        .bytes_stream()
        .eventsource();
    let worker = FakeWorker::start("w", "m").await;
    // The stream may begin a moment after its headers, so the beat is repeated until it is told.
    eventually("the beat is told", async || {
        worker.beat_to(&cluster.url()).await;
        let event = events.next().await?.unwrap();
        (event.event == "worker" && event.data.contains("\"w\"")).then_some(())
    })
    .await;
    eventually("the queen's own beat is told", async || {
        let event = events.next().await?.unwrap();
        (event.event == "queen").then_some(())
    })
    .await;
}
