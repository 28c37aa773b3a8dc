//! Bad input of every kind gets its error, and nothing breaks.

use std::time::Duration;

use rbee_tests::fake::FakeWorker;
use rbee_tests::http::{self, Answer};
use rbee_tests::{Cluster, wire};
use serde_json::{Value, json};

fn assert_error(answer: &Answer, status: u16, what: &str) {
    assert_eq!(answer.status, status, "{what}: {answer:?}");
    let error = answer.body["error"]
        .as_object()
        .unwrap_or_else(|| panic!("{what}: {answer:?}"));
    for key in ["message", "type", "param", "code"] {
        assert!(error.contains_key(key), "{what}: `{key}` is missing in {answer:?}");
    }
    assert!(answer.headers.contains_key("x-request-id"), "{what}: {answer:?}");
}

#[tokio::test]
async fn a_malformed_heartbeat_gets_400_with_the_path_of_the_field() {
    let cluster = Cluster::start().await;
    for case in wire::malformed() {
        let answer = http::post(format!("{}{}", cluster.url(), case.endpoint), &case.body).await;
        assert_error(&answer, 400, &case.name);
        assert_eq!(
            answer.body["error"]["param"].as_str(),
            case.param.as_deref(),
            "{}: {answer:?}",
            case.name
        );
        assert!(answer.message().contains(&case.says), "{}: {answer:?}", case.name);
    }
    assert!(cluster.fleet().await.workers.is_empty());
    for name in ["worker_minimal", "worker_full", "worker_unknown_fields"] {
        let answer = http::post(format!("{}/v1/worker-heartbeat", cluster.url()), &wire::payload(name)).await;
        assert_eq!(answer.status, 200, "{name}: {answer:?}");
    }
    for name in ["hive_minimal", "hive_full", "hive_unknown_fields"] {
        let answer = http::post(format!("{}/v1/hive-heartbeat", cluster.url()), &wire::payload(name)).await;
        assert_eq!(answer.status, 200, "{name}: {answer:?}");
    }
    let fleet = cluster.fleet().await;
    assert_eq!((fleet.workers.len(), fleet.hives.len()), (3, 3));
}

#[tokio::test]
async fn whatever_is_posted_to_the_queen_gets_an_error_that_says_what_is_wrong() {
    let cluster = Cluster::start().await;
    let mut worker = FakeWorker::start("w", "m").await;
    worker.beat_on(&cluster.url(), Duration::from_millis(500));
    cluster.until_ready("m", 1).await;
    let chat = cluster.chat_url();

    for (body, what) in [
        ("", "an empty body"),
        ("{", "half a body"),
        ("[]", "a list"),
        ("null", "null"),
        (r#"{"messages": []}"#, "no model"),
        (r#"{"model": 7, "messages": []}"#, "a number for a model"),
        ("\u{0}\u{1}", "control characters"),
    ] {
        assert_error(&http::post_text(&chat, body).await, 400, what);
    }
    let request = http::client()
        .post(&chat)
        .header("content-type", "application/json")
        .body(b"\xff\xfe\xfd".as_slice());
    assert_error(&http::send(request).await, 400, "bytes that are no UTF-8");
    let request = http::client()
        .post(&chat)
        .header("content-type", "text/plain")
        .body("{}");
    assert_error(&http::send(request).await, 400, "another content type");

    let unknown = cluster.chat("no-such-model", "hello").await;
    assert_error(&unknown, 404, "an unknown model");
    assert_eq!(unknown.code(), "model_not_found");
    assert!(unknown.message().contains("no-such-model"), "{unknown:?}");
    assert!(unknown.message().contains("m"), "it lists what there is: {unknown:?}");

    assert_error(
        &http::get(format!("{}/v1/models/no/such/model", cluster.url())).await,
        404,
        "an unknown model's page",
    );
    assert_error(
        &http::get(format!("{}/v1/nothing", cluster.url())).await,
        404,
        "an unknown path",
    );
    assert_error(&http::get(&chat).await, 405, "a wrong method");

    let huge = json!({"model": "m", "messages": [{"role": "user", "content": "x".repeat(17 << 20)}]});
    // A server that refuses while the body is still coming may also close: both are a refusal.
    if let Ok(answer) = http::try_send(http::client().post(&chat).json(&huge)).await {
        assert_error(&answer, 413, "a body beyond the limit");
    }
    assert_eq!(cluster.chat("m", "hello").await.text(), "w");
}

#[tokio::test]
async fn a_hive_names_what_is_wrong_with_a_job() {
    let cluster = Cluster::start().await;
    let hive = cluster.hive().await;
    let jobs = format!("{}/v1/jobs", hive.url());
    let refused: [(Value, &str); 5] = [
        (json!({}), "operation"),
        (json!({"operation": "worker_dance"}), "worker_dance"),
        (json!({"operation": "worker_spawn"}), "model"),
        (
            json!({"operation": "worker_spawn", "model": "smollm2-135m-instruct", "device": "cuda:9"}),
            "cuda:9",
        ),
        (json!({"operation": "model_pull", "model": "pip:no version"}), "pip:"),
    ];
    for (body, names) in refused {
        let answer = http::post(&jobs, &body).await;
        assert_error(&answer, 400, &body.to_string());
        assert!(answer.message().contains(names), "{body}: {answer:?}");
    }
    let answer = http::post(&jobs, &json!({"operation": "model_pull", "model": "no-such-model"})).await;
    assert_error(&answer, 404, "a model that the catalogue does not have");
    assert_eq!(answer.code(), "model_not_found");
    assert!(
        answer.message().contains("smollm2-135m-instruct"),
        "it lists the catalogue: {answer:?}"
    );
    assert_error(&http::get(format!("{jobs}/no-such-job")).await, 404, "an unknown job");
    assert_eq!(http::get(format!("{}/health", hive.url())).await.status, 200);
}
