//! What a client is told when it does not get an answer.

use serde_json::{Value, json};

use super::requests::{CHAT, COMPLETIONS, EMBEDDINGS, INFER};
use super::support::{Script, TestWorker, error};
use crate::MAX_BODY_BYTES;

fn chat(content: &str) -> Value {
    json!({"model": "org/tiny", "messages": [{"role": "user", "content": content}]})
}

#[tokio::test]
async fn another_model_is_not_found_and_the_error_names_the_one_there_is() {
    let worker = TestWorker::start(Script::new("x"), &[]).await;
    let mut body = chat("Hi");
    body["model"] = json!("org/other");
    let (status, error_object) = worker.refusal(CHAT, &body).await;
    assert_eq!(
        (status, &error_object["code"], &error_object["param"]),
        (404, &json!("model_not_found"), &json!("model"))
    );
    assert!(error_object["message"].as_str().unwrap().contains("`org/tiny`"));
    let (status, error_object) = error(worker.get("/v1/models/org/other").await).await;
    assert_eq!((status, &error_object["code"]), (404, &json!("model_not_found")));
}

#[tokio::test]
async fn what_is_not_valid_is_refused_by_name() {
    let worker = TestWorker::start(Script::new("x"), &[]).await;
    for (path, body, param) in [
        (CHAT, json!({"model": "org/tiny", "messages": []}), json!("messages")),
        (
            CHAT,
            json!({"model": "org/tiny", "messages": [{"role": "user", "content": "x"}], "n": 17}),
            json!("n"),
        ),
        (
            COMPLETIONS,
            json!({"model": "org/tiny", "prompt": ["a", "x".repeat(2_000)]}),
            json!("prompt[1]"),
        ),
        (
            COMPLETIONS,
            json!({"model": "org/tiny", "prompt": [[1, 2], [70000]]}),
            json!("prompt[1]"),
        ),
        (
            COMPLETIONS,
            json!({"model": "org/tiny", "prompt": [70000]}),
            json!("prompt"),
        ),
        (
            COMPLETIONS,
            json!({"model": "org/tiny", "prompt": "x", "top_k": -2}),
            json!("top_k"),
        ),
        (
            COMPLETIONS,
            json!({"model": "org/tiny", "prompt": "x", "logit_bias": {"70000": 1}}),
            json!("logit_bias"),
        ),
        (
            EMBEDDINGS,
            json!({"model": "org/tiny", "input": ["a", "x".repeat(2_000)]}),
            json!("input[1]"),
        ),
        (
            EMBEDDINGS,
            json!({"model": "org/tiny", "input": "x", "dimensions": 3}),
            json!("dimensions"),
        ),
        (CHAT, json!([]), Value::Null),
        (INFER, json!({"prompt": "x", "temperature": 3}), json!("temperature")),
        (INFER, json!({"prompt": "x", "top_p": 0}), json!("top_p")),
        (INFER, json!({"prompt": "x", "max_tokens": 0}), json!("max_tokens")),
        (INFER, json!({"prompt": "x", "stop": ["a", ""]}), json!("stop[1]")),
        (
            INFER,
            json!({"prompt": "x", "stop": ["a", "b", "c", "d", "e"]}),
            json!("stop"),
        ),
        (INFER, json!({"prompt": "x", "model": "m"}), json!("model")),
    ] {
        let (status, error) = worker.refusal(path, &body).await;
        assert_eq!(
            (status, &error["type"]),
            (400, &json!("invalid_request_error")),
            "{body}"
        );
        assert_eq!(error["param"], param, "{body}: {error}");
    }
    worker
        .until_metric(r#"rbee_worker_requests_total{endpoint="infer",outcome="refused"} 6"#)
        .await;
}

#[tokio::test]
async fn a_prompt_longer_than_the_context_is_refused_with_the_numbers() {
    let script = Script {
        context_length: 30,
        ..Script::new("x")
    };
    let worker = TestWorker::start(script, &[]).await;
    for (path, body, param) in [
        (CHAT, chat(&"long ".repeat(20)), "messages"),
        (
            COMPLETIONS,
            json!({"model": "org/tiny", "prompt": "x".repeat(29)}),
            "prompt",
        ),
        (INFER, json!({"prompt": "x".repeat(29)}), "prompt"),
    ] {
        let (status, error) = worker.refusal(path, &body).await;
        assert_eq!((status, &error["code"]), (400, &json!("context_length_exceeded")));
        assert_eq!(error["param"], param);
        assert!(error["message"].as_str().unwrap().contains("30"), "{error}");
    }
    let fits = json!({"model": "org/tiny", "prompt": "x".repeat(28)});
    assert_eq!(worker.answer(COMPLETIONS, &fits).await["usage"]["completion_tokens"], 1);
}

#[tokio::test]
async fn a_model_without_a_chat_template_does_completions_only() {
    let script = Script {
        can_chat: false,
        ..Script::new("x")
    };
    let worker = TestWorker::start(script, &[]).await;
    let (status, error) = worker.refusal(CHAT, &chat("Hi")).await;
    assert_eq!((status, &error["param"]), (400, &json!("model")));
    let message = error["message"].as_str().unwrap();
    assert!(
        message.contains("/v1/completions") && message.contains("--chat-template"),
        "{message}"
    );
    worker
        .answer(COMPLETIONS, &json!({"model": "org/tiny", "prompt": "x"}))
        .await;
}

#[tokio::test]
async fn what_the_chat_template_refuses_is_the_clients_mistake() {
    let worker = TestWorker::start(Script::new("x"), &[]).await;
    let (status, error) = worker.refusal(CHAT, &chat("forbidden")).await;
    assert_eq!((status, &error["param"]), (400, &json!("messages")));
    assert!(error["message"].as_str().unwrap().contains("it is forbidden"));
}

#[tokio::test]
async fn a_body_may_be_large_but_not_larger() {
    let worker = TestWorker::start(Script::new("x"), &[]).await;
    let frame = chat("").to_string().len();
    let (status, error) = worker.refusal(CHAT, &chat(&"x".repeat(MAX_BODY_BYTES - frame))).await;
    assert_eq!((status, &error["code"]), (400, &json!("context_length_exceeded")));
    let (status, error) = worker
        .refusal(CHAT, &chat(&"x".repeat(MAX_BODY_BYTES - frame + 1)))
        .await;
    assert_eq!((status, &error["code"]), (413, &json!("body_too_large")));
}

#[tokio::test]
async fn a_body_that_is_not_json_is_refused() {
    let worker = TestWorker::start(Script::new("x"), &[]).await;
    let request = worker.http.post(format!("{}{CHAT}", worker.base));
    let (status, _) = error(request.try_clone().unwrap().body("{}").send().await.unwrap()).await;
    assert_eq!(status, 400, "no content type");
    let (status, error_object) = error(
        request
            .header("content-type", "application/json")
            .body("{")
            .send()
            .await
            .unwrap(),
    )
    .await;
    assert_eq!((status, &error_object["code"]), (400, &json!("invalid_json")));
}

#[tokio::test]
async fn unknown_paths_and_methods_get_json_errors() {
    let worker = TestWorker::start(Script::new("x"), &[]).await;
    assert_eq!(error(worker.get("/v1/audio/speech").await).await.0, 404);
    assert_eq!(error(worker.get(CHAT).await).await.0, 405);
}

#[tokio::test]
async fn the_token_guards_all_but_health_and_metrics() {
    let worker = TestWorker::start(Script::new("x"), &["--token", "very-secret"]).await;
    for path in ["/v1/models", "/v1/models/org/tiny"] {
        let (status, error) = error(worker.get(path).await).await;
        assert_eq!((status, &error["code"]), (401, &json!("invalid_api_key")));
    }
    for path in [CHAT, COMPLETIONS, EMBEDDINGS, INFER, "/v1/drain"] {
        assert_eq!(worker.refusal(path, &chat("Hi")).await.0, 401, "{path}");
    }
    let request = worker
        .http
        .post(format!("{}{CHAT}", worker.base))
        .bearer_auth("very-secret");
    assert_eq!(request.json(&chat("Hi")).send().await.unwrap().status(), 200);
    assert_eq!(worker.get("/health").await.status(), 200);
    assert_eq!(worker.get("/metrics").await.status(), 200);
}

#[tokio::test]
async fn a_full_queue_is_refused_with_a_time_to_come_back() {
    let script = Script::endless("la");
    let gate = script.gate.clone();
    let worker = TestWorker::start(script, &["--slots", "1", "--queue-limit", "0"]).await;
    gate.close();
    let first = tokio::spawn(
        worker
            .http
            .post(format!("{}{CHAT}", worker.base))
            .json(&chat("Hi"))
            .send(),
    );
    worker.until_health(|health| health["status"] == "busy").await;
    let response = worker.post(CHAT, &chat("Hi")).await;
    assert_eq!(response.headers()["retry-after"], "1");
    let (status, error) = error(response).await;
    assert_eq!((status, &error["type"]), (429, &json!("rate_limit_error")));
    first.abort();
    gate.open();
}

#[tokio::test]
async fn more_answers_than_the_worker_ever_holds_are_refused_for_good() {
    let worker = TestWorker::start(Script::new("x"), &["--slots", "1", "--queue-limit", "1"]).await;
    let mut body = chat("Hi");
    body["n"] = json!(3);
    let (status, error) = worker.refusal(CHAT, &body).await;
    assert_eq!((status, &error["param"]), (400, &json!("n")));
    assert!(error["message"].as_str().unwrap().contains("at most 2"), "{error}");
    body["n"] = json!(2);
    assert_eq!(worker.answer(CHAT, &body).await["choices"].as_array().unwrap().len(), 2);

    let body = json!({"model": "org/tiny", "prompt": ["a", "b", "c"]});
    assert_eq!(worker.refusal(COMPLETIONS, &body).await.1["param"], "prompt");
    let body = json!({"model": "org/tiny", "prompt": "a", "best_of": 3});
    assert_eq!(worker.refusal(COMPLETIONS, &body).await.1["param"], "best_of");
}

#[tokio::test]
async fn a_prompt_that_cannot_fit_is_refused_before_it_is_tokenized() {
    let script = Script {
        context_length: 30,
        ..Script::new("x")
    };
    let worker = TestWorker::start(script, &[]).await;
    let (_, error) = worker.refusal(CHAT, &chat(&"x".repeat(30))).await;
    assert!(error["message"].as_str().unwrap().contains("at least 30"), "{error}");
}
