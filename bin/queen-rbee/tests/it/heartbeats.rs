//! What the queen takes for a heartbeat, and what she makes of it.

use std::time::Duration;

use queen_rbee::Config;
use queen_rbee::fleet::{LeaveReason, Liveness};
use serde_json::{Value, json};

use crate::support::{Queen, Worker, chat, hive_beat, plain, with, within, worker_beat};

#[tokio::test]
async fn an_accepted_heartbeat_is_acknowledged_with_the_pace_to_keep() {
    let config = Config {
        heartbeat_interval: Duration::from_millis(700),
        heartbeat_ttl: Duration::from_secs(7),
        ..Config::default()
    };
    let queen = Queen::start(config).await;
    let ack = queen.worker_beat(&worker_beat("w", 9301)).await;
    assert_eq!(
        (&ack["status"], &ack["interval_ms"], &ack["ttl_ms"]),
        (&json!("ok"), &json!(700), &json!(7_000))
    );
    assert_eq!(ack["queen_id"], queen.fleet().await.queen.id.as_str());
    assert_eq!(ack["want_full"], false);
}

#[tokio::test]
async fn what_is_malformed_is_refused_with_the_path_of_the_field() {
    let queen = Queen::start(Config::default()).await;
    let worker = || worker_beat("w", 9301);
    let hive = || hive_beat("h");
    let without = |mut beat: Value, path: &str| {
        let (parent, key) = path.rsplit_once('/').unwrap();
        beat.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(key);
        beat
    };
    let cases = [
        ("worker", without(worker(), "/worker"), "worker"),
        ("worker", without(worker(), "/worker/model_id"), "worker.model_id"),
        ("worker", without(worker(), "/timestamp"), "timestamp"),
        ("worker", with(worker(), "/timestamp", "noon"), "timestamp"),
        ("worker", with(worker(), "/worker/port", 70_000), "worker.port"),
        ("worker", with(worker(), "/worker/port", 0), "worker.port"),
        ("worker", with(worker(), "/worker/slots", 0), "worker.slots"),
        ("worker", with(worker(), "/worker/id", "two words"), "worker.id"),
        ("worker", with(worker(), "/worker/status", "sleepy"), "worker.status"),
        ("worker", with(worker(), "/worker/host", "evil/path"), "worker.host"),
        (
            "worker",
            with(worker(), "/load", json!({"running": -1})),
            "load.running",
        ),
        (
            "worker",
            with(worker(), "/load", json!({"tokens_per_second": -1.0})),
            "load.tokens_per_second",
        ),
        (
            "worker",
            with(worker(), "/worker/status_detail", json!({"progress": 1e300})),
            "worker.status_detail.progress",
        ),
        ("hive", without(hive(), "/hive/version"), "hive.version"),
        ("hive", with(hive(), "/hive/hostname", "a b"), "hive.hostname"),
        ("hive", with(hive(), "/hive/port", 0), "hive.port"),
        (
            "hive",
            with(hive(), "/hive/health_status", "fine"),
            "hive.health_status",
        ),
        (
            "hive",
            with(hive(), "/monitor", json!({"cpu_usage_percent": 1e300})),
            "monitor.cpu_usage_percent",
        ),
        (
            "hive",
            with(
                hive(),
                "/monitor",
                json!({"devices": [{"id": "cuda:0", "power_watts": "many"}]}),
            ),
            "monitor.devices[0].power_watts",
        ),
    ];
    let count = cases.len();
    for (kind, beat, param) in cases {
        let response = queen
            .post(&format!("/v1/{kind}-heartbeat"), &beat)
            .send()
            .await
            .unwrap();
        assert_eq!(response.status(), 400, "{beat}");
        let error: Value = response.json().await.unwrap();
        assert_eq!(error["error"]["param"], param, "{error}");
        assert_eq!(error["error"]["type"], "invalid_request_error");
    }
    let fleet = queen.fleet().await;
    assert!(
        fleet.workers.is_empty() && fleet.hives.is_empty(),
        "nothing of it was recorded"
    );
    let refused = queen
        .metric("rbee_heartbeats_total{kind=\"worker\",outcome=\"refused\"}")
        .await
        + queen
            .metric("rbee_heartbeats_total{kind=\"hive\",outcome=\"refused\"}")
            .await;
    assert_eq!(refused, count as f64);
}

#[tokio::test]
async fn what_is_no_json_or_too_large_is_refused() {
    let queen = Queen::start(Config::default()).await;
    let send = |body: String| {
        let request = queen.http.post(format!("{}/v1/worker-heartbeat", queen.url));
        request.header("content-type", "application/json").body(body).send()
    };
    assert_eq!(send("{".to_owned()).await.unwrap().status(), 400);
    assert_eq!(send("[]".to_owned()).await.unwrap().status(), 400);
    let padded = worker_beat("w", 9301).to_string() + &" ".repeat(2 << 20);
    assert_eq!(send(padded).await.unwrap().status(), 413);
    let request = queen.http.post(format!("{}/v1/worker-heartbeat", queen.url));
    assert_eq!(
        request.body("{}").send().await.unwrap().status(),
        400,
        "no content type"
    );
}

#[tokio::test]
async fn the_address_is_the_named_host_or_else_where_the_heartbeat_came_from() {
    let queen = Queen::start(Config::default()).await;
    queen.worker_beat(&worker_beat("a", 9301)).await;
    queen
        .worker_beat(&with(worker_beat("b", 9302), "/worker/host", "gpu-box.lan"))
        .await;
    queen
        .worker_beat(&with(worker_beat("c", 9303), "/worker/host", "::1"))
        .await;
    queen.hive_beat(&hive_beat("h")).await;
    let fleet = queen.fleet().await;
    let urls: Vec<_> = fleet.workers.iter().map(|worker| worker.base_url.as_str()).collect();
    assert_eq!(
        urls,
        ["http://127.0.0.1:9301", "http://gpu-box.lan:9302", "http://[::1]:9303"]
    );
    assert_eq!(fleet.hives[0].base_url, "http://127.0.0.1:7835");
}

#[tokio::test]
async fn a_hive_is_asked_for_its_capabilities_until_it_has_told_them() {
    let queen = Queen::start(Config::default()).await;
    assert_eq!(queen.hive_beat(&hive_beat("h")).await["want_full"], true);
    let device = json!({"id": "cpu", "kind": "cpu", "name": "CPU", "memory_total_mb": 1});
    let full = with(hive_beat("h"), "/capabilities", json!({"devices": [device]}));
    assert_eq!(queen.hive_beat(&full).await["want_full"], false);
    assert_eq!(queen.hive_beat(&hive_beat("h")).await["want_full"], false);
    let hive = queen.fleet().await.hives.remove(0);
    assert_eq!(
        hive.capabilities.unwrap().devices[0].id,
        "cpu",
        "a brief heartbeat takes nothing away"
    );
}

#[tokio::test]
async fn an_old_heartbeat_changes_nothing_and_a_goodbye_ends_the_membership() {
    let queen = Queen::start(Config::default()).await;
    let worker = Worker::start().await;
    let stamped = |status: &str, seq: u64| {
        let beat = with(worker.beat("w"), "/worker/incarnation", 5);
        with(with(beat, "/worker/status", status), "/seq", seq)
    };
    queen.worker_beat(&stamped("ready", 2)).await;
    queen.worker_beat(&stamped("starting", 1)).await;
    assert!(queen.worker("w").await.unwrap().ready);
    queen.worker_beat(&stamped("stopped", 3)).await;
    assert_eq!(queen.worker("w").await, None);
    assert_eq!(
        queen
            .metric("rbee_heartbeats_total{kind=\"worker\",outcome=\"dropped\"}")
            .await,
        1.0
    );
    assert_eq!(
        queen
            .metric("rbee_heartbeats_total{kind=\"worker\",outcome=\"goodbye\"}")
            .await,
        1.0
    );
}

#[tokio::test]
async fn a_worker_whose_clock_is_an_hour_off_is_online() {
    let queen = Queen::start(Config::default()).await;
    let worker = Worker::start().await;
    let ahead = chrono::Utc::now() + chrono::TimeDelta::hours(1);
    queen
        .worker_beat(&with(worker.beat("w"), "/timestamp", ahead.to_rfc3339()))
        .await;
    let worker = queen.worker("w").await.unwrap();
    assert_eq!((worker.liveness, worker.ready), (Liveness::Online, true));
    assert!(
        (3_590_000..3_610_000).contains(&worker.clock_skew_ms),
        "{}",
        worker.clock_skew_ms
    );
}

/// A hive's heartbeat that tells of an exit; and of a process of this state, if there is one.
fn exit_report(state: Option<&str>, pid: u32) -> Value {
    let processes: Vec<Value> = state
        .map(|state| {
            json!({"pid": pid, "group": "llm-worker", "instance": "", "cpu_pct": 0.0, "rss_mb": 0, "io_r_mb_s": 0.0,
                   "io_w_mb_s": 0.0, "uptime_s": 0, "model": "m", "state": state, "worker_id": "w"})
        })
        .into_iter()
        .collect();
    let exits = json!({"workers_removed": [{"worker_id": "w", "reason": "killed by signal 9"}]});
    with(with(hive_beat("h"), "/changes", exits), "/workers", processes)
}

#[tokio::test]
async fn a_worker_whose_process_ended_is_not_chosen_from_that_moment() {
    let queen = Queen::start(Config::default()).await;
    let (mut dead, mut alive) = (Worker::start().await, Worker::start().await);
    let of_hive = |beat| with(with(beat, "/worker/hive_id", "h"), "/worker/pid", 7);
    // Still listening, so that it would answer if it were asked; and the less busy of the two.
    queen.worker_beat(&of_hive(dead.beat("w"))).await;
    let busier = with(
        with(alive.beat("v"), "/worker/slots", 8),
        "/load",
        json!({"running": 1}),
    );
    queen.worker_beat(&busier).await;

    queen.hive_beat(&exit_report(Some("restarting"), 7)).await;
    let view = queen.worker("w").await.unwrap();
    assert_eq!(view.liveness, Liveness::Suspect);
    assert!(view.reason.unwrap().contains("killed by signal 9"));
    let asked = queen.ask(&chat());
    alive.next().await.answer(plain(200, "{}"));
    within("an answer", asked).await.unwrap();
    assert!(!dead.has_next());

    queen.worker_beat(&of_hive(dead.beat("w"))).await;
    assert!(queen.worker("w").await.unwrap().ready, "it beats again");
    queen.hive_beat(&exit_report(None, 7)).await;
    assert_eq!(queen.worker("w").await, None, "its hive will not start it again");
}

#[tokio::test]
async fn a_late_report_of_an_exit_does_not_harm_the_process_that_came_after() {
    let queen = Queen::start(Config::default()).await;
    let worker = Worker::start().await;
    let next = with(with(worker.beat("w"), "/worker/hive_id", "h"), "/worker/pid", 8);
    queen.worker_beat(&next).await;
    queen.hive_beat(&exit_report(Some("running"), 8)).await;
    assert!(queen.worker("w").await.unwrap().ready);
    let of_process = |pid: u32| with(exit_report(None, 0), "/changes/workers_removed/0/pid", pid);
    queen.hive_beat(&of_process(7)).await;
    assert!(queen.worker("w").await.unwrap().ready, "it was another process");
    queen.hive_beat(&of_process(8)).await;
    assert_eq!(queen.worker("w").await, None);
    let late = queen.worker_beat(&next).await;
    assert_eq!(
        late.get("dropped"),
        None,
        "a sender without an incarnation cannot be held back"
    );
}

#[tokio::test]
async fn an_ended_process_is_not_brought_back_by_what_it_had_sent() {
    let queen = Queen::start(Config::default()).await;
    let worker = Worker::start().await;
    let beat = |incarnation: u64, seq: u64| {
        let beat = with(worker.beat("w"), "/worker/hive_id", "h");
        with(with(beat, "/worker/incarnation", incarnation), "/seq", seq)
    };
    queen.worker_beat(&beat(5, 1)).await;
    queen.hive_beat(&exit_report(None, 0)).await;
    assert_eq!(queen.worker_beat(&beat(5, 2)).await["dropped"], "departed");
    let gone = queen.fleet().await.gone.remove(0);
    assert_eq!((gone.id.as_str(), gone.reason), ("w", LeaveReason::Ended));
    queen.worker_beat(&beat(6, 1)).await;
    assert!(queen.worker("w").await.is_some(), "its next start");
}

#[tokio::test]
async fn a_hive_cannot_report_the_end_of_anothers_worker() {
    let queen = Queen::start(Config::default()).await;
    let worker = Worker::start().await;
    queen
        .worker_beat(&with(worker.beat("w"), "/worker/hive_id", "other"))
        .await;
    queen.hive_beat(&exit_report(None, 7)).await;
    assert!(queen.worker("w").await.unwrap().ready);
}

#[tokio::test]
async fn who_is_silent_for_the_ttl_is_lost_and_its_model_cannot_be_reached() {
    let config = Config {
        heartbeat_interval: Duration::from_millis(50),
        heartbeat_ttl: Duration::from_millis(150),
        ..Config::default()
    };
    let queen = Queen::start(config).await;
    queen.worker_beat(&worker_beat("w", 9301)).await;
    within("the loss", async {
        while queen.worker("w").await.unwrap().liveness != Liveness::Lost {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let response = within("an answer", queen.ask(&chat())).await.unwrap();
    assert_eq!(response.status(), 503);
    let error: Value = response.json().await.unwrap();
    assert!(
        error["error"]["message"]
            .as_str()
            .unwrap()
            .contains("w: no heartbeat for"),
        "{error}"
    );
}
