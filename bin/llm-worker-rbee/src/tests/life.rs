//! A worker from its start to its end.

use axum::Router;
use axum::http::HeaderMap;
use axum::http::header::HOST;
use axum::routing::post;
use daemon::Json;
use serde_json::{Value, json};
use shared_contract::{DropReason, HeartbeatAck};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use worker_contract::{Endpoint, Feature, WorkerHeartbeat, WorkerStatus};

use super::requests::CHAT;
use super::support::{SOON, Script, TestWorker, error, events};
use crate::RunError;

fn chat(stream: bool) -> Value {
    json!({"model": "org/tiny", "messages": [{"role": "user", "content": "Hi"}], "stream": stream})
}

/// A queen that acknowledges and passes on what she hears.
pub(super) struct Queen {
    pub(super) url: String,
    /// With the host and port that each was sent to.
    beats: mpsc::Receiver<(String, WorkerHeartbeat)>,
}

impl Queen {
    pub(super) async fn start() -> Self {
        Self::who_drops(None).await
    }

    /// One that drops each beat for this reason.
    pub(super) async fn who_drops(dropped: Option<DropReason>) -> Self {
        let (sender, beats) = mpsc::channel(100);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let hear = move |headers: HeaderMap, Json(beat)| async move {
            let way = headers[HOST].to_str().unwrap().to_owned();
            sender.send((way, beat)).await.unwrap();
            Json(HeartbeatAck {
                status: "ok".into(),
                message: "welcome".into(),
                interval_ms: 60_000,
                ttl_ms: 600_000,
                want_full: false,
                queen_id: Some(format!("queen-{}", address.port()).parse().unwrap()),
                dropped,
                known_incarnation: None,
            })
        };
        let router = Router::new().route("/v1/worker-heartbeat", post(hear));
        let url = format!("http://{address}");
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, beats }
    }

    pub(super) async fn hears(&mut self, status: WorkerStatus) -> WorkerHeartbeat {
        self.hears_by(status).await.1
    }

    /// With the host and port that it was sent to.
    pub(super) async fn hears_by(&mut self, status: WorkerStatus) -> (String, WorkerHeartbeat) {
        let wait = async {
            loop {
                let heard = self.beats.recv().await.unwrap();
                if heard.1.worker.status == status {
                    return heard;
                }
            }
        };
        tokio::time::timeout(SOON, wait)
            .await
            .unwrap_or_else(|_| panic!("no beat says {status:?}"))
    }
}

#[tokio::test]
async fn while_the_model_loads_requests_are_told_to_come_back_and_health_says_why() {
    let (loaded, loading) = oneshot::channel::<()>();
    let worker = TestWorker::start_with(&[], async {
        loading.await.unwrap();
        Ok(Script::new("ready").loaded())
    })
    .await;

    let health = worker.until_health(|_| true).await;
    assert_eq!(
        (&health["status"], &health["alive"], &health["ready"]),
        (&json!("starting"), &json!(true), &json!(false))
    );
    assert!(health["reason"].as_str().unwrap().contains("loaded"));
    assert_eq!(
        (&health["phase"], &health["model_id"]),
        (&json!("resolve"), &json!("org/tiny"))
    );
    let responses = [worker.post(CHAT, &chat(true)).await, worker.get("/v1/models").await];
    for response in responses {
        assert_eq!(response.headers()["retry-after"], "2");
        let (status, error) = error(response).await;
        assert_eq!((status, &error["code"]), (503, &json!("model_loading")));
    }

    loaded.send(()).unwrap();
    let health = worker.until_health(|health| health["ready"] == true).await;
    assert_eq!((&health["status"], &health["reason"]), (&json!("ready"), &Value::Null));
    assert_eq!(
        worker.answer(CHAT, &chat(false)).await["choices"][0]["message"]["content"],
        "ready"
    );
}

#[tokio::test]
async fn heartbeats_tell_the_port_at_once_then_ready_busy_draining_and_stopped() {
    let mut queen = Queen::start().await;
    let (loaded, loading) = oneshot::channel::<()>();
    let script = Script::endless("la");
    let gate = script.gate.clone();
    let args = [
        "--queen-url",
        &queen.url,
        "--slots",
        "1",
        "--worker-id",
        "w-1",
        "--hive-id",
        "h-1",
    ];
    let worker = TestWorker::start_with(&args, async {
        loading.await.unwrap();
        Ok(script.loaded())
    })
    .await;

    let beat = queen.hears(WorkerStatus::Starting).await;
    assert_eq!(format!("http://127.0.0.1:{}", beat.worker.port), worker.base);
    assert_eq!(
        (beat.worker.id.as_str(), beat.worker.hive_id.unwrap().as_str()),
        ("w-1", "h-1")
    );
    assert_eq!(beat.worker.status_detail.unwrap().phase.as_deref(), Some("resolve"));
    assert!(beat.worker.incarnation > 0 && beat.seq > 0);

    loaded.send(()).unwrap();
    let beat = queen.hears(WorkerStatus::Ready).await;
    assert_eq!(
        (beat.worker.slots, beat.worker.model_revision.as_deref()),
        (1, Some("sha256:1"))
    );
    assert_eq!(
        beat.worker.endpoints,
        [Endpoint::ChatCompletions, Endpoint::Completions, Endpoint::Embeddings]
    );
    assert_eq!(
        beat.worker.features,
        [Feature::Resume, Feature::ContinueFinalMessage, Feature::CountTokens]
    );

    gate.close();
    let request = tokio::spawn(
        worker
            .http
            .post(format!("{}{CHAT}", worker.base))
            .json(&chat(false))
            .send(),
    );
    let beat = queen.hears(WorkerStatus::Busy).await;
    assert_eq!(beat.load.running, 1);
    request.abort();
    gate.open();
    queen.hears(WorkerStatus::Ready).await;

    worker.shutdown.request();
    queen.hears(WorkerStatus::Stopped).await;
    worker.ended().await.unwrap();
}

#[tokio::test]
async fn a_model_that_cannot_be_loaded_is_told_to_the_queen_and_ends_the_worker_with_an_error() {
    let mut queen = Queen::start().await;
    let worker = TestWorker::start_with(&["--queen-url", &queen.url], async {
        Err(RunError::Model("the file is cut".to_owned()))
    })
    .await;
    let beat = queen.hears(WorkerStatus::Failed).await;
    assert!(
        beat.worker
            .status_detail
            .unwrap()
            .reason
            .unwrap()
            .contains("the file is cut")
    );
    let error = worker.ended().await.unwrap_err();
    assert_eq!(error.to_string(), "load the model: the file is cut");
}

#[tokio::test]
async fn a_client_that_leaves_a_stream_frees_its_slot() {
    let worker = TestWorker::start(Script::endless("la"), &[]).await;
    let mut response = worker.post(CHAT, &chat(true)).await;
    response.chunk().await.unwrap().unwrap();
    worker.until_metric("rbee_worker_sequences_running 1").await;
    drop(response);
    worker.until_metric("rbee_worker_sequences_running 0").await;
    worker
        .until_metric(r#"rbee_worker_requests_total{endpoint="chat_completions",outcome="cancelled"} 1"#)
        .await;
}

#[tokio::test]
async fn a_client_that_leaves_before_its_answer_frees_its_slot() {
    let worker = TestWorker::start(Script::endless("la"), &[]).await;
    let request = tokio::spawn(
        worker
            .http
            .post(format!("{}{CHAT}", worker.base))
            .json(&chat(false))
            .send(),
    );
    worker.until_metric("rbee_worker_sequences_running 1").await;
    request.abort();
    worker.until_metric("rbee_worker_sequences_running 0").await;
    worker
        .until_metric(r#"rbee_worker_requests_total{endpoint="chat_completions",outcome="cancelled"} 1"#)
        .await;
}

#[tokio::test]
async fn a_client_that_leaves_frees_the_slots_of_all_its_answers() {
    for stream in [true, false] {
        let worker = TestWorker::start(Script::endless("la"), &[]).await;
        let mut body = chat(stream);
        body["n"] = json!(3);
        let request = tokio::spawn({
            let request = worker.http.post(format!("{}{CHAT}", worker.base)).json(&body);
            async move { request.send().await.unwrap().text().await }
        });
        worker.until_metric("rbee_worker_sequences_running 3").await;
        request.abort();
        worker.until_metric("rbee_worker_sequences_running 0").await;
        worker
            .until_metric(r#"rbee_worker_requests_total{endpoint="chat_completions",outcome="cancelled"} 1"#)
            .await;
    }
}

#[tokio::test]
async fn a_worker_is_ready_once_its_model_has_run_and_tells_of_that_step() {
    let mut queen = Queen::start().await;
    let script = Script::new("ready");
    let gate = script.gate.clone();
    gate.close();
    let worker = TestWorker::start_with(&["--queen-url", &queen.url], async { Ok(script.loaded()) }).await;
    let health = worker.until_health(|health| health["phase"] == "warm_up").await;
    assert_eq!(
        (&health["status"], &health["ready"]),
        (&json!("starting"), &json!(false))
    );
    let told = async {
        loop {
            let beat = queen.hears(WorkerStatus::Starting).await;
            if beat.worker.status_detail.unwrap().phase.as_deref() == Some("warm_up") {
                return;
            }
        }
    };
    tokio::time::timeout(SOON, told)
        .await
        .expect("a beat tells of the step");
    gate.open();
    let health = worker.until_health(|health| health["ready"] == true).await;
    let memory = json!({"weight_bytes": 3000, "kv_cache_bytes": 200, "scratch_bytes": 10});
    assert_eq!(health["memory"], memory);
    worker
        .until_metric(r#"rbee_worker_memory_bytes{kind="kv_cache"} 200"#)
        .await;
    // What was computed to warm up is nobody's.
    worker.until_metric("rbee_worker_prefill_tokens_total 0").await;
    worker.until_metric("rbee_worker_decode_tokens_total 0").await;
}

#[tokio::test]
async fn a_model_that_cannot_run_fails_at_the_start_and_not_with_the_first_client() {
    let script = Script::new("ready");
    script.fault.after(0);
    let worker = TestWorker::start_with(&[], async { Ok(script.loaded()) }).await;
    let error = worker.ended().await.unwrap_err();
    let error = error.to_string();
    assert!(
        error.starts_with("warm up: ") && error.contains("the script says so"),
        "{error}"
    );
}

#[tokio::test]
async fn a_drain_finishes_what_runs_refuses_what_is_new_and_ends() {
    let script = Script::new("the whole answer");
    let gate = script.gate.clone();
    let worker = TestWorker::start(script, &[]).await;
    gate.close();
    let running = tokio::spawn(
        worker
            .http
            .post(format!("{}{CHAT}", worker.base))
            .json(&chat(true))
            .send(),
    );
    worker.until_metric("rbee_worker_sequences_running 1").await;

    assert_eq!(worker.post("/v1/drain", &json!({})).await.status(), 202);
    let health = worker.until_health(|health| health["status"] == "draining").await;
    assert_eq!(health["ready"], false);
    let response = worker.post(CHAT, &chat(false)).await;
    assert!(response.headers().contains_key("retry-after"));
    let (status, error) = error(response).await;
    assert_eq!((status, &error["code"]), (503, &json!("draining")));

    gate.open();
    let text = running.await.unwrap().unwrap().text().await.unwrap();
    assert_eq!(events(&text).last().unwrap(), "[DONE]");
    worker.ended().await.unwrap();
}

#[tokio::test]
async fn a_drain_cuts_what_still_runs_after_the_grace_period() {
    let worker = TestWorker::start(Script::endless("la"), &["--grace-s", "0"]).await;
    let mut response = worker.post(CHAT, &chat(true)).await;
    response.chunk().await.unwrap().unwrap();
    worker.shutdown.request();
    worker.ended().await.unwrap();
    let rest = response.text().await;
    assert!(rest.is_err() || !rest.unwrap().contains("[DONE]"));
}

#[tokio::test]
async fn a_drain_may_ask_for_another_grace_period_also_while_it_is_under_way() {
    let worker = TestWorker::start(Script::endless("la"), &["--grace-s", "3600"]).await;
    let mut response = worker.post(CHAT, &chat(true)).await;
    response.chunk().await.unwrap().unwrap();
    assert_eq!(worker.post("/v1/drain", &json!({"grace_s": 600})).await.status(), 202);
    worker.until_health(|health| health["status"] == "draining").await;
    assert_eq!(worker.post("/v1/drain", &json!({"grace_s": 0})).await.status(), 202);
    worker.ended().await.unwrap();

    let worker = TestWorker::start(Script::new("Hello"), &[]).await;
    for (body, param) in [(json!({"grace_s": 604_801}), "grace_s"), (json!({"grace": 1}), "grace")] {
        let (status, error) = error(worker.post("/v1/drain", &body).await).await;
        assert_eq!(status, 400, "{error}");
        assert!(error["message"].as_str().unwrap().contains(param), "{error}");
    }
}

#[tokio::test]
async fn a_worker_tells_for_how_long_nobody_has_asked_it_anything() {
    let script = Script::new("Hello");
    let gate = script.gate.clone();
    let worker = TestWorker::start(script, &[]).await;
    worker.until_health(|health| health["idle_ms"].is_u64()).await;
    gate.close();
    let running = tokio::spawn(
        worker
            .http
            .post(format!("{}{CHAT}", worker.base))
            .json(&chat(false))
            .send(),
    );
    worker.until_health(|health| health["idle_ms"].is_null()).await;
    gate.open();
    running.await.unwrap().unwrap();
    worker.until_health(|health| health["idle_ms"].is_u64()).await;
}

#[tokio::test]
async fn a_worker_asked_to_end_while_it_loads_ends() {
    let worker = TestWorker::start_with(&[], std::future::pending()).await;
    worker.until_health(|_| true).await;
    worker.shutdown.request();
    worker.ended().await.unwrap();
}

#[tokio::test]
async fn a_model_that_breaks_in_mid_stream_ends_the_stream_with_an_error_and_the_worker_with_it() {
    let script = Script::new("Hello");
    let fault = script.fault.clone();
    let worker = TestWorker::start(script, &[]).await;
    fault.after(3);
    let events = worker.stream(CHAT, &chat(true)).await;
    let last: Value = serde_json::from_str(events.last().unwrap()).unwrap();
    assert_eq!(last["error"]["type"], "server_error");
    assert!(
        !events.last().unwrap().contains("the script says so"),
        "inner details stay in the log"
    );
    let error = worker.ended().await.unwrap_err();
    assert!(error.to_string().contains("the script says so"), "{error}");
}

#[tokio::test]
async fn a_model_that_breaks_before_the_first_token_is_a_plain_500() {
    let script = Script::new("Hello");
    let fault = script.fault.clone();
    let worker = TestWorker::start(script, &[]).await;
    fault.after(0);
    let (status, error) = worker.refusal(CHAT, &chat(true)).await;
    assert_eq!((status, &error["code"]), (500, &json!("internal_error")));
}
