//! The last hour of requests, as it is shown; and whom a monitoring system may ask for more.

use queen_rbee::Config;
use serde_json::{Value, json};

use crate::support::{Queen, Worker, chat, chat_stream, hive_beat, plain, with, within, worker_beat};

async fn traffic(queen: &Queen, query: &str) -> Value {
    let response = queen.get(&format!("/v1/traffic{query}")).send().await.unwrap();
    assert_eq!(response.status(), 200);
    response.json().await.unwrap()
}

/// Sum of a count over all points: a test may run across the border of two.
fn sum(traffic: &Value, count: &str) -> u64 {
    let points = traffic["points"].as_array().unwrap();
    points.iter().map(|point| point[count].as_u64().unwrap()).sum()
}

#[tokio::test]
async fn requests_of_the_last_hour_are_shown_with_their_tokens_and_their_ends() {
    let queen = Queen::start(Config::default()).await;
    let mut worker = Worker::start().await;
    queen.worker_beat(&worker.beat("w")).await;
    let asked = queen.ask(&chat());
    let answer = json!({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 12}});
    worker.next().await.answer(plain(200, &answer.to_string()));
    within("an answer", asked).await.unwrap().bytes().await.unwrap();
    let missing = queen.ask(&with(chat(), "/model", "nobody")).await.unwrap();
    assert_eq!(missing.status(), 404);

    let shown = traffic(&queen, "").await;
    assert_eq!(shown["bucket_s"], 5);
    assert_eq!((sum(&shown, "requests"), sum(&shown, "output_tokens")), (2, 12));
    let ends = ["failed", "refused", "wrong"].map(|end| sum(&shown, end));
    assert_eq!(
        ends,
        [0, 0, 1],
        "a client's own mistake is neither an answer nor the fleet's failure"
    );
    let last = shown["points"].as_array().unwrap().last().unwrap();
    assert_eq!(last["inflight"], 0);
    let at_s = last["at_s"].as_i64().unwrap();
    let now_s = shown["now_s"].as_f64().unwrap();
    assert_eq!(last["open"], true);
    assert!((0.0..6.0).contains(&(now_s - at_s as f64)), "{now_s} {at_s}");
    assert!(last["ttft_ms"].is_null(), "there was no stream");
    let models = shown["models"].as_array().unwrap();
    assert_eq!(models.len(), 1, "a model that there is not is none");
    assert_eq!((&models[0]["model"], &models[0]["requests"]), (&json!("m"), &json!(1)));

    let later = traffic(&queen, &format!("?after={}", at_s + 60)).await;
    assert_eq!(later["points"], json!([]));
    let odd = queen.get("/v1/traffic?after=soon").send().await.unwrap();
    assert_eq!(odd.status(), 400);
}

#[tokio::test]
async fn what_is_under_way_and_what_its_client_left_is_shown() {
    let queen = Queen::start(Config::default()).await;
    let mut worker = Worker::start().await;
    queen.worker_beat(&worker.beat("w")).await;
    let asked = queen.ask(&chat_stream());
    let events = worker.next().await.stream();
    events
        .write("data: {\"choices\": [{\"delta\": {\"content\": \"a\"}}]}\n\n")
        .await;
    let response = within("an answer", asked).await.unwrap();
    let last = |shown: &Value| shown["points"].as_array().unwrap().last().unwrap().clone();
    assert_eq!(last(&traffic(&queen, "").await)["inflight"], 1);
    drop(response);
    queen.metric_is("rbee_clients_gone_total", 1.0).await;
    let shown = traffic(&queen, "").await;
    assert_eq!((sum(&shown, "clients_gone"), &last(&shown)["inflight"]), (1, &json!(0)));
}

#[tokio::test]
async fn a_monitoring_system_is_told_whom_to_scrape() {
    let queen = Queen::start(Config::default()).await;
    let beat = with(worker_beat("w", 9_301), "/worker/hive_id", "h");
    queen.worker_beat(&with(beat, "/worker/host", "10.0.0.7")).await;
    queen
        .hive_beat(&with(
            with(hive_beat("h"), "/hive/hostname", "::1"),
            "/hive/port",
            7_835,
        ))
        .await;
    let listed = async |query: &str| -> Value {
        let response = queen.get(&format!("/v1/scrape-targets{query}")).send().await.unwrap();
        assert_eq!(response.status(), 200);
        response.json().await.unwrap()
    };
    let hive = json!({"targets": ["[::1]:7835"], "labels": {"hive": "h"}});
    let worker = json!({"targets": ["10.0.0.7:9301"],
        "labels": {"hive": "h", "worker": "w", "model": "m", "device": "cpu"}});
    assert_eq!(listed("").await, json!([hive, worker]));
    assert_eq!(listed("?kind=hive").await, json!([hive]));
    assert_eq!(listed("?kind=worker").await, json!([worker]));
}
