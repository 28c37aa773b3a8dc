//! Answers that are made as jobs, while nobody needs to listen.

use axum::body::Body;
use axum::response::Response;
use daemon::Secret;
use hive_contract::{JobAccepted, JobEvent, JobState};
use queen_rbee::Config;
use serde_json::{Value, json};

use crate::jobs::{followed, started};
use crate::support::{Queen, Worker, plain, with, within};

fn infer() -> Value {
    json!({"operation": "infer", "model": "m", "prompt": "Once", "seed": 7})
}

fn text(text: &str) -> String {
    format!(
        "data: {}\n\n",
        json!({"id": "c", "created": 1, "choices": [{"index": 0, "text": text, "finish_reason": null}], "usage": null})
    )
}

fn end() -> String {
    let finish = json!({"id": "c", "created": 1, "choices": [{"index": 0, "text": "", "finish_reason": "stop"}]});
    let usage = json!({"prompt_tokens": 4, "completion_tokens": 2, "total_tokens": 6, "prompt_tokens_details": {"cached_tokens": 3}});
    let usage = json!({"id": "c", "created": 1, "choices": [], "usage": usage});
    format!("data: {finish}\n\ndata: {usage}\n\ndata: [DONE]\n\n")
}

fn pieces(events: &[JobEvent]) -> String {
    events.iter().filter_map(|event| event.message.as_deref()).collect()
}

async fn queen_and_worker() -> (Queen, Worker) {
    let queen = Queen::start(Config::default()).await;
    let worker = Worker::start().await;
    queen.worker_beat(&with(worker.beat("w"), "/worker/hive_id", "h")).await;
    (queen, worker)
}

async fn cancel(queen: &Queen, job: &JobAccepted) {
    let request = queen.http.delete(format!("{}/v1/jobs/{}", queen.url, job.job_id));
    assert!(request.send().await.unwrap().status().is_success());
}

#[tokio::test]
async fn an_answer_is_made_without_a_listener_and_read_whole_afterwards() {
    let (queen, mut worker) = queen_and_worker().await;
    let job = started(&queen, infer()).await;
    let reached = worker.next().await;
    assert_eq!(reached.head.uri.path(), "/v1/completions");
    assert_eq!(reached.head.headers["x-request-id"], job.job_id.as_str());
    let body: Value = serde_json::from_slice(&reached.body).unwrap();
    assert_eq!(
        body,
        json!({"model": "m", "prompt": "Once", "max_tokens": 1024, "temperature": 0.0, "top_p": 1.0, "seed": 7, "stop": [],
               "stream": true, "stream_options": {"include_usage": true}})
    );
    let stream = reached.stream();
    stream.write(&text(" upon")).await;
    stream.write(&text(" a time")).await;
    stream.write(&end()).await;
    drop(stream);

    let events = followed(&queen, &job).await;
    assert_eq!(pieces(&events), " upon a time");
    let last = events.last().unwrap();
    assert_eq!(
        last.result,
        Some(json!({
            "text": " upon a time", "finish_reason": "stop", "model": "m", "worker_id": "w", "hive_id": "h",
            "request_id": job.job_id, "usage": {"prompt_tokens": 4, "completion_tokens": 2, "cached_tokens": 3},
        }))
    );
    assert_eq!(
        events,
        followed(&queen, &job).await,
        "whoever comes later reads the same"
    );
    assert_eq!(
        queen.metric("rbee_requests_total{model=\"m\",status=\"200\"}").await,
        1.0
    );
    assert_eq!(queen.metric("rbee_clients_gone_total").await, 0.0);

    let list: Value = queen.get("/v1/jobs").send().await.unwrap().json().await.unwrap();
    let shown = &list["jobs"][0];
    assert_eq!(
        (&shown["state"], &shown["operation"]["prompt"]),
        (&json!("succeeded"), &json!("Once"))
    );
    assert_eq!(shown["last_event"].get("result"), None, "a list has no long texts");
    let shown = queen.get(&format!("/v1/jobs/{}", job.job_id)).send().await.unwrap();
    let shown: Value = shown.json().await.unwrap();
    assert_eq!(shown["last_event"]["result"]["text"], " upon a time");
}

#[tokio::test]
async fn a_cancelled_answer_is_given_up_at_its_worker_whether_it_waits_or_has_begun() {
    let (queen, mut worker) = queen_and_worker().await;
    let begun = started(&queen, infer()).await;
    let stream = worker.next().await.stream();
    stream.write(&text(" upon")).await;
    // There is one slot.
    let waiting = started(&queen, infer()).await;
    queen.metric_is("rbee_queue_depth{model=\"m\"}", 1.0).await;
    cancel(&queen, &waiting).await;
    queen.metric_is("rbee_queue_depth{model=\"m\"}", 0.0).await;
    cancel(&queen, &begun).await;
    stream.closed().await;
    for job in [begun, waiting] {
        let last = followed(&queen, &job).await.pop().unwrap();
        assert_eq!(last.state, JobState::Cancelled);
    }
    queen.metric_is("rbee_requests_in_flight", 0.0).await;
    assert_eq!(queen.worker("w").await.unwrap().leases, 0);
}

#[tokio::test]
async fn an_answer_is_finished_by_another_worker_where_its_own_is_lost() {
    let (queen, mut first) = queen_and_worker().await;
    let job = started(&queen, infer()).await;
    let stream = first.next().await.stream();
    stream.write(&format!(": tokens 5\n{}", text(" upon"))).await;
    let mut second = Worker::start().await;
    let able = with(second.beat("v"), "/worker/features", json!(["resume"]));
    queen.worker_beat(&able).await;
    stream.cut().await;
    let reached = second.next().await;
    let body: Value = serde_json::from_slice(&reached.body).unwrap();
    assert_eq!(body["resume"]["tokens"], json!([5]));
    let stream = reached.stream();
    stream.write(&text(" a time")).await;
    stream.write(&end()).await;
    drop(stream);
    let events = followed(&queen, &job).await;
    assert_eq!(pieces(&events), " upon a time");
    let result = events.last().unwrap().result.as_ref().unwrap();
    assert_eq!(
        (&result["text"], &result["worker_id"]),
        (&json!(" upon a time"), &json!("v"))
    );
}

#[tokio::test]
async fn a_failure_is_told_as_a_request_would_be_told_it() {
    let (queen, mut worker) = queen_and_worker().await;
    let error = json!({"message": "the prompt has 9 tokens, and there is room for 8", "type": "invalid_request_error",
                       "param": "prompt", "code": "context_length_exceeded"});
    let job = started(&queen, infer()).await;
    worker
        .next()
        .await
        .answer(plain(400, &json!({ "error": error }).to_string()));
    let last = followed(&queen, &job).await.pop().unwrap();
    assert_eq!(
        (last.state, serde_json::to_value(last.error).unwrap()),
        (JobState::Failed, error)
    );

    let job = started(&queen, infer()).await;
    let odd = Response::builder().status(418).body(Body::from("tea")).unwrap();
    worker.next().await.answer(odd);
    let error = followed(&queen, &job).await.pop().unwrap().error.unwrap();
    assert_eq!(error.code.as_deref(), Some("upstream_failed"));
    assert!(error.message.contains("418"), "{error:?}");

    let elsewhere = started(&queen, with(infer(), "/hive_id", "h2")).await;
    let error = followed(&queen, &elsewhere).await.pop().unwrap().error.unwrap();
    assert_eq!(error.code.as_deref(), Some("no_capacity"));
    assert!(error.message.contains("h2"), "{error:?}");
    started(&queen, with(infer(), "/hive_id", "h")).await;
    worker.next().await.answer(plain(400, "{}"));
}

#[tokio::test]
async fn what_cannot_be_answered_is_refused_before_there_is_a_job() {
    let (queen, _worker) = queen_and_worker().await;
    for (order, status, param) in [
        (with(infer(), "/model", "unknown"), 404, "model"),
        (with(infer(), "/temperature", 3.0), 400, "temperature"),
        (with(infer(), "/stop", json!(["a", ""])), 400, "stop[1]"),
        (with(infer(), "/max_tokens", 0), 400, "max_tokens"),
    ] {
        let response = queen.post("/v1/jobs", &order).send().await.unwrap();
        assert_eq!(response.status(), status, "{order}");
        let body: Value = response.json().await.unwrap();
        assert_eq!(body["error"]["param"], param, "{body}");
    }
    let list: Value = queen.get("/v1/jobs").send().await.unwrap().json().await.unwrap();
    assert_eq!(list["jobs"], json!([]));
}

#[tokio::test]
async fn keys_for_the_models_are_asked_for_here_too() {
    const KEY: &str = "a-clients-key";
    const TOKEN: &str = "the-fleets-token";
    let secret = |text: &str| text.parse::<Secret>().unwrap();
    for (token, statuses) in [(None, [401, 404, 401]), (Some(secret(TOKEN)), [401, 401, 404])] {
        let queen = Queen::start(Config {
            token,
            api_keys: vec![secret(KEY)],
            ..Config::default()
        })
        .await;
        // A model that there is not: 404 is the answer to those that may ask.
        for (credential, status) in ["", KEY, TOKEN].into_iter().zip(statuses) {
            let request = queen.post("/v1/jobs", &infer()).bearer_auth(credential);
            let response = within("an answer", request.send()).await.unwrap();
            assert_eq!(response.status(), status, "{credential}");
        }
    }
}
