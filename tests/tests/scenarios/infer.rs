//! Answers that are made as jobs of the queen, by the real model: whoever ordered one may go away.

use futures_util::StreamExt;
use nix::sys::signal::Signal;
use rbee_tests::models::SMOLLM2;
use rbee_tests::{Cluster, Process, eventually, http};
use serde_json::{Map, Value, json};

const PROMPT: &str = "Once upon a time there was a bee";

/// Starts a job that answers; answers with its id.
async fn ordered(cluster: &Cluster, max_tokens: u32) -> String {
    let order = json!({"operation": "infer", "model": SMOLLM2, "prompt": PROMPT, "max_tokens": max_tokens});
    let answer = http::post(format!("{}/v1/jobs", cluster.url()), &order).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    answer.body["job_id"].as_str().expect("an id").to_owned()
}

/// Waits until the job is over, without listening to it; answers with its last event.
async fn over(cluster: &Cluster, job: &str) -> Value {
    let status = eventually(&format!("{job} is over"), async || {
        let status = http::get(format!("{}/v1/jobs/{job}", cluster.url())).await.body;
        (status["state"] != "running").then_some(status)
    })
    .await;
    status["last_event"].clone()
}

/// Waits until the job has told some of its answer.
async fn begun(cluster: &Cluster, job: &str) {
    let mut events = http::data_lines(stream(cluster, job).await);
    while let Some(event) = events.next().await {
        let event: Value = serde_json::from_str(&event).expect("an event");
        assert_eq!(event["state"], "running", "{event}");
        if event["message"].is_string() {
            return;
        }
    }
    panic!("{job} told nothing");
}

async fn stream(cluster: &Cluster, job: &str) -> reqwest::Response {
    let url = format!("{}/v1/jobs/{job}/stream", cluster.url());
    http::client().get(url).send().await.expect("a stream")
}

/// What the same request is answered that waits for its answer.
async fn waited_for(cluster: &Cluster, max_tokens: u32) -> Value {
    let body = json!({"model": SMOLLM2, "prompt": PROMPT, "max_tokens": max_tokens, "temperature": 0});
    http::post(cluster.completions_url(), &body).await.body
}

/// The line of the queen's access log for the request of this job.
async fn line_of(queen: &Process, job: &str) -> Map<String, Value> {
    eventually(&format!("there is a line of {job}"), async || {
        let log = queen.log();
        let mut lines = log
            .lines()
            .filter_map(|line| serde_json::from_str::<Map<_, _>>(line).ok());
        lines.find(|line| line["target"] == "access" && line["request_id"] == *job)
    })
    .await
}

#[tokio::test]
async fn an_answer_that_nobody_listened_to_is_read_whole_later_and_one_that_is_cancelled_frees_its_slot() {
    let cluster = Cluster::with(["--heartbeat-interval-ms", "1000", "--log-format", "json"]).await;
    let _worker = cluster.worker_with(SMOLLM2, &["--slots", "1"]).await;
    cluster.until_ready(SMOLLM2, 1).await;
    let job = ordered(&cluster, 40).await;
    let result = over(&cluster, &job).await["result"].clone();
    let expected = waited_for(&cluster, 40).await;
    assert_eq!(result["text"], expected["choices"][0]["text"], "{result}");
    assert_eq!(result["finish_reason"], "length");
    assert_eq!(result["usage"]["completion_tokens"], 40);
    assert_eq!(
        (&result["model"], &result["request_id"]),
        (&json!(SMOLLM2), &json!(job))
    );
    let events: Vec<String> = http::data_lines(stream(&cluster, &job).await).collect().await;
    let events: Vec<Value> = events
        .iter()
        .map(|event| serde_json::from_str(event).unwrap())
        .collect();
    let pieces: String = events.iter().filter_map(|event| event["message"].as_str()).collect();
    assert_eq!(result["text"], pieces);
    let line = line_of(&cluster.queen, &job).await;
    for (name, value) in [
        ("path", json!("/v1/completions")),
        ("status", json!(200)),
        ("outcome", json!("complete")),
        ("tokens", json!(40)),
        ("worker", result["worker_id"].clone()),
    ] {
        assert_eq!(line[name], value, "{name} in {line:?}");
    }

    let job = ordered(&cluster, 2_000).await;
    begun(&cluster, &job).await;
    let request = http::client().delete(format!("{}/v1/jobs/{job}", cluster.url()));
    assert_eq!(http::send(request).await.status, 202);
    assert_eq!(over(&cluster, &job).await["state"], "cancelled");
    // There is one slot.
    let answer = cluster.chat(SMOLLM2, "Hello").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(line_of(&cluster.queen, &job).await["outcome"], "aborted");
}

#[tokio::test]
async fn a_worker_killed_in_the_middle_of_an_answer_is_not_noticed_by_its_job() {
    let cluster = Cluster::start().await;
    let mut workers = Vec::new();
    for id in ["one", "two"] {
        workers.push((id, cluster.worker_with(SMOLLM2, &["--worker-id", id]).await));
    }
    cluster.until_ready(SMOLLM2, 2).await;
    let job = ordered(&cluster, 500).await;
    begun(&cluster, &job).await;
    // Nobody writes on while it is found out who writes.
    workers.iter().for_each(|(_, worker)| worker.signal(Signal::SIGSTOP));
    let writer = cluster
        .until("one of them writes", |fleet| {
            let writer = fleet.workers.iter().find(|worker| worker.leases > 0)?;
            Some(writer.id.to_string())
        })
        .await;
    for (id, worker) in &mut workers {
        if *id == writer {
            worker.kill().await;
        } else {
            worker.signal(Signal::SIGCONT);
        }
    }
    let last = over(&cluster, &job).await;
    let result = &last["result"];
    assert!(
        result["worker_id"].is_string() && result["worker_id"] != *writer,
        "{last}"
    );
    let expected = waited_for(&cluster, 500).await;
    assert_eq!(result["text"], expected["choices"][0]["text"]);
    assert_eq!(
        result["usage"]["completion_tokens"],
        expected["usage"]["completion_tokens"]
    );
}
