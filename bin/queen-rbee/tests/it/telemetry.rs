//! What the queen hears from her hives beside their heartbeats. A hive here is a server whose every stream the test holds.

use queen_rbee::Config;
use queen_rbee::fleet::{HiveView, Liveness, WorkerList};
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::stream::Events;
use crate::support::{BodyWriter, Queen, Worker, closed_port, hive_beat, plain, with, within, worker_beat};

const SUBSCRIPTIONS: &str = "rbee_telemetry_subscriptions";

fn beat(hive: &str, server: &Worker, incarnation: u64) -> Value {
    let beat = with(hive_beat(hive), "/hive/port", server.address.port());
    with(with(beat, "/hive/incarnation", incarnation), "/seq", 1)
}

fn process(worker: &str) -> Value {
    json!({"pid": 42, "group": "llm-worker", "instance": "9301", "cpu_pct": 12.5, "rss_mb": 300, "io_r_mb_s": 0.0,
           "io_w_mb_s": 0.0, "uptime_s": 7, "model": "m", "state": "running", "worker_id": worker, "device": "cuda:0",
           "vram_mb": 4_000, "total_vram_mb": 24_000})
}

/// One event as a hive writes it.
fn event(hive: &str, workers: &[&str]) -> String {
    let workers: Vec<Value> = workers.iter().map(|worker| process(worker)).collect();
    let event = json!({"hive_id": hive, "timestamp": "2025-10-30T15:13:00Z", "workers": workers,
                       "monitor": {"cpu_usage_percent": 3.5, "ram_used_mb": 1, "ram_total_mb": 2, "uptime_s": 3, "devices": []}});
    format!("data: {event}\n\n")
}

/// The stream that the queen asks for next.
async fn stream(server: &mut Worker) -> BodyWriter {
    let asked = server.next().await;
    assert_eq!(asked.head.uri, "/v1/heartbeats/stream");
    asked.stream()
}

async fn hive(queen: &Queen, wanted: impl Fn(&HiveView) -> bool) -> HiveView {
    within("the hive as wanted", async {
        loop {
            if let Some(hive) = queen.fleet().await.hives.into_iter().find(&wanted) {
                return hive;
            }
            tokio::task::yield_now().await;
        }
    })
    .await
}

async fn workers(queen: &Queen, query: &str) -> WorkerList {
    let response = queen.get(&format!("/v1/workers{query}")).send().await.unwrap();
    assert_eq!(response.status(), 200);
    response.json().await.unwrap()
}

/// Ends when the queen has taken an event with these processes.
async fn told(queen: &Queen, processes: &[&str]) -> WorkerList {
    within("the telemetry", async {
        loop {
            let list = workers(queen, "").await;
            let seen = list.workers.iter().filter(|worker| worker.process.is_some());
            if seen
                .map(|worker| worker.worker_id.as_str())
                .eq(processes.iter().copied())
            {
                return list;
            }
            tokio::task::yield_now().await;
        }
    })
    .await
}

#[tokio::test]
async fn a_hive_is_asked_for_its_telemetry_once_and_with_the_fleets_token() {
    let token = "a-long-secret";
    let queen = Queen::start(Config::default()).await;
    let guarded = Queen::start(Config {
        token: Some(token.parse().unwrap()),
        ..Config::default()
    })
    .await;
    let mut server = Worker::start().await;
    queen.hive_beat(&beat("h", &server, 0)).await;
    let asked = server.next().await;
    assert!(!asked.head.headers.contains_key("authorization"));
    drop(asked);

    let mut server = Worker::start().await;
    let post = guarded
        .post("/v1/hive-heartbeat", &beat("h", &server, 0))
        .bearer_auth(token);
    assert_eq!(post.send().await.unwrap().status(), StatusCode::OK);
    let asked = server.next().await;
    assert_eq!(asked.head.headers["authorization"], format!("Bearer {token}"));
}

#[tokio::test]
async fn telemetry_is_told_on_the_stream_and_joined_with_the_worker_that_beats() {
    let queen = Queen::start(Config::default()).await;
    let mut server = Worker::start().await;
    let mut events = Events::of(&queen).await;
    queen.hive_beat(&beat("h", &server, 0)).await;
    let beating = with(worker_beat("w", 0), "/worker/status", "starting");
    queen.worker_beat(&with(beating, "/worker/hive_id", "h")).await;
    let stream = stream(&mut server).await;
    stream.write(&event("h", &["new", "w"])).await;

    let list = told(&queen, &["new", "w"]).await;
    let [new, joined] = &list.workers[..] else {
        panic!("{list:?}")
    };
    assert!(new.worker.is_none());
    assert_eq!(new.hive_id.as_ref().unwrap().as_str(), "h");
    assert_eq!((new.vram_free_mb, new.idle), (Some(20_000), false));
    assert_eq!(joined.worker.as_ref().unwrap().process, joined.process);
    let shown = queen.worker("w").await.unwrap();
    assert_eq!(shown.process, joined.process);
    assert_eq!(shown.process.unwrap().instance, "9301");

    let telemetry = within("telemetry on the stream", async {
        loop {
            let event = events.next().await.unwrap();
            if event.event == "telemetry" {
                return serde_json::from_str::<Value>(&event.data).unwrap();
            }
        }
    })
    .await;
    assert_eq!(telemetry["hive_id"], "h");
    assert_eq!(telemetry["workers"][1]["worker_id"], "w");
}

#[tokio::test]
async fn workers_are_found_by_what_they_do_serve_and_have_room_for() {
    let queen = Queen::start(Config::default()).await;
    let mut server = Worker::start().await;
    queen.hive_beat(&beat("h", &server, 0)).await;
    let free = Worker::start().await;
    queen.worker_beat(&free.beat("free")).await;
    queen
        .worker_beat(&with(free.beat("busy"), "/load", json!({"running": 1})))
        .await;
    let other = with(free.beat("other"), "/worker/model_id", "org/other");
    queen.worker_beat(&other).await;
    let stream = stream(&mut server).await;
    stream.write(&event("h", &["new"])).await;
    told(&queen, &["new"]).await;

    let cases = [
        ("", "busy free new other"),
        ("?idle=true", "free other"),
        ("?idle=false", "busy new"),
        ("?model=m", "busy free new"),
        ("?model=org/other", "other"),
        ("?vram_mb=20000", "new"),
        ("?vram_mb=20001", ""),
        ("?model=m&idle=true", "free"),
        ("?model=m&vram_mb=1&idle=false", "new"),
        ("?idle=true&vram_mb=1", ""),
    ];
    for (query, expected) in cases {
        let list = workers(&queen, query).await.workers;
        let ids: Vec<&str> = list.iter().map(|worker| worker.worker_id.as_str()).collect();
        assert_eq!(ids.join(" "), expected, "{query}");
    }
}

#[tokio::test]
async fn there_is_one_stream_for_a_hive_over_beats_breaks_moves_and_restarts() {
    let queen = Queen::start(Config::default()).await;
    let (mut here, mut there) = (Worker::start().await, Worker::start().await);
    queen.hive_beat(&beat("h", &here, 1)).await;
    let first = stream(&mut here).await;
    first.write(&event("h", &["one"])).await;
    told(&queen, &["one"]).await;
    for seq in 2..9 {
        queen.hive_beat(&with(beat("h", &here, 1), "/seq", seq)).await;
    }
    queen.metric_is(SUBSCRIPTIONS, 1.0).await;

    // A break: the hive is suspect until the next stream tells something.
    first.cut().await;
    let suspect = hive(&queen, |hive| hive.liveness == Liveness::Suspect).await;
    assert!(suspect.reason.unwrap().contains("telemetry was cut off"));
    let second = stream(&mut here).await;
    second.write(&event("h", &["two"])).await;
    told(&queen, &["two"]).await;
    hive(&queen, |hive| hive.liveness == Liveness::Online).await;

    // A move.
    queen.hive_beat(&with(beat("h", &there, 1), "/seq", 9)).await;
    let third = stream(&mut there).await;
    second.closed().await;

    // A restart at the same address.
    queen.hive_beat(&beat("h", &there, 2)).await;
    let fourth = stream(&mut there).await;
    third.closed().await;
    fourth.write(&event("h", &["four"])).await;
    told(&queen, &["four"]).await;
    queen.metric_is(SUBSCRIPTIONS, 1.0).await;

    // A goodbye, and a return.
    let stopped = with(beat("h", &there, 2), "/hive/operational_status", "stopped");
    queen.hive_beat(&with(stopped, "/seq", 2)).await;
    fourth.closed().await;
    queen.metric_is(SUBSCRIPTIONS, 0.0).await;
    assert!(workers(&queen, "").await.workers.is_empty());
    queen.hive_beat(&beat("h", &there, 3)).await;
    let fifth = stream(&mut there).await;
    fifth.write(&event("h", &["five"])).await;
    told(&queen, &["five"]).await;
    queen.metric_is(SUBSCRIPTIONS, 1.0).await;
    assert!(!here.has_next() && !there.has_next(), "a stream beside the one");
}

#[tokio::test]
async fn each_hive_has_its_own_stream_and_the_queens_end_closes_them() {
    let queen = Queen::start(Config::default()).await;
    let (mut a, mut b) = (Worker::start().await, Worker::start().await);
    queen.hive_beat(&beat("a", &a, 0)).await;
    queen.hive_beat(&beat("b", &b, 0)).await;
    let streams = [stream(&mut a).await, stream(&mut b).await];
    queen.metric_is(SUBSCRIPTIONS, 2.0).await;
    queen.shutdown.request();
    within("the queen's end", queen.task).await.unwrap();
    for stream in streams {
        stream.closed().await;
    }
}

#[tokio::test]
async fn a_refused_connection_speaks_against_a_hive_at_once() {
    let queen = Queen::start(Config::default()).await;
    let port = closed_port().await;
    queen.hive_beat(&with(hive_beat("h"), "/hive/port", port)).await;
    let hive = hive(&queen, |hive| hive.liveness != Liveness::Online).await;
    assert!(!hive.ready);
    assert!(hive.reason.unwrap().contains("refused"));
    assert_eq!(queen.metric(SUBSCRIPTIONS).await, 0.0);
}

#[tokio::test]
async fn a_hive_that_answers_no_to_the_queen_is_alive_and_is_asked_again() {
    let queen = Queen::start(Config::default()).await;
    let mut server = Worker::start().await;
    queen.hive_beat(&beat("h", &server, 0)).await;
    server.next().await.answer(plain(401, "{}"));
    // By the time of the second question the first answer was judged.
    let second = server.next().await;
    assert_eq!(queen.fleet().await.hives[0].liveness, Liveness::Online);
    drop(second);
}

#[tokio::test]
async fn what_another_hive_tells_at_the_address_is_not_believed() {
    let queen = Queen::start(Config::default()).await;
    let mut server = Worker::start().await;
    queen.hive_beat(&beat("h", &server, 0)).await;
    let stream = stream(&mut server).await;
    stream.write(&event("other", &["w"])).await;
    let hive = hive(&queen, |hive| hive.liveness == Liveness::Suspect).await;
    assert!(hive.reason.unwrap().contains("another hive, other,"));
    assert!(workers(&queen, "").await.workers.is_empty());
    stream.closed().await;
}
