//! Responses and Messages: chats in other words.

use daemon::Secret;
use queen_rbee::Config;
use reqwest::Response;
use serde_json::{Value, json};

use crate::support::{Queen, Reader, Worker, plain, with, within};

const MESSAGES: &str = "/v1/messages";
const COUNT: &str = "/v1/messages/count_tokens";
const RESPONSES: &str = "/v1/responses";

async fn queen_and_worker() -> (Queen, Worker) {
    let queen = Queen::start(Config::default()).await;
    let worker = Worker::start().await;
    let beat = with(worker.beat("w"), "/worker/features", json!(["count_tokens"]));
    queen.worker_beat(&beat).await;
    (queen, worker)
}

fn message() -> Value {
    json!({"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]})
}

fn response() -> Value {
    json!({"model": "m", "input": "hi"})
}

fn completion() -> String {
    let message = json!({"role": "assistant", "content": "ho"});
    let choice = json!({"index": 0, "message": message, "finish_reason": "stop"});
    let usage = json!({"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4});
    json!({"id": "c", "created": 1, "model": "m", "choices": [choice], "usage": usage}).to_string()
}

fn chunk(delta: &Value) -> String {
    let choice = json!({"index": 0, "delta": delta, "finish_reason": null});
    format!(
        "data: {}\n\n",
        json!({"id": "c", "created": 1, "model": "m", "choices": [choice]})
    )
}

/// Sends a request in the background.
fn ask(queen: &Queen, path: &str, body: &Value) -> tokio::task::JoinHandle<reqwest::Result<Response>> {
    let request = queen.post(path, body).header("x-api-key", "for-the-queen-alone");
    tokio::spawn(request.send())
}

async fn answered(asked: tokio::task::JoinHandle<reqwest::Result<Response>>) -> Response {
    within("an answer", asked).await.unwrap().unwrap()
}

/// An answer's status, a header of it, and its body.
async fn parts(response: Response, header: &str) -> (u16, Option<String>, Value) {
    let header = response
        .headers()
        .get(header)
        .map(|value| value.to_str().unwrap().to_owned());
    (response.status().as_u16(), header, response.json().await.unwrap())
}

#[tokio::test]
async fn a_request_becomes_a_chat_and_its_answer_becomes_the_dialects() {
    let (queen, mut worker) = queen_and_worker().await;
    for (path, body, kind, has_request_id) in [
        (
            MESSAGES,
            with(message(), "/metadata", json!({"user_id": "u"})),
            "type",
            true,
        ),
        (RESPONSES, with(response(), "/store", true), "object", false),
    ] {
        let asked = ask(&queen, path, &body);
        let reached = worker.next().await;
        assert_eq!(reached.head.uri.path(), "/v1/chat/completions");
        assert_eq!(reached.head.headers.get("x-api-key"), None);
        let chat: Value = serde_json::from_slice(&reached.body).unwrap();
        assert_eq!(chat["messages"], json!([{"role": "user", "content": "hi"}]));
        reached.answer(plain(200, &completion()));
        let answer = answered(asked).await;
        let header = |name: &str| {
            answer
                .headers()
                .get(name)
                .map(|value| value.to_str().unwrap().to_owned())
        };
        assert_eq!(header("x-rbee-worker").as_deref(), Some("w"));
        let ignored = if path == MESSAGES { "metadata.user_id" } else { "store" };
        assert_eq!(header("x-rbee-ignored-parameters").as_deref(), Some(ignored));
        assert_eq!(header("request-id").is_some(), has_request_id);
        assert_eq!(header("request-id").or(header("x-request-id")), header("x-request-id"));
        let answer: Value = answer.json().await.unwrap();
        assert!(answer[kind] == "message" || answer[kind] == "response", "{answer}");
    }
}

#[tokio::test]
async fn tokens_are_counted_by_a_worker_that_can() {
    let (queen, mut worker) = queen_and_worker().await;
    let mut body = message();
    body.as_object_mut().unwrap().remove("max_tokens");
    let asked = ask(&queen, COUNT, &body);
    let reached = worker.next().await;
    assert_eq!(reached.head.uri.path(), "/v1/count_tokens");
    reached.answer(plain(200, r#"{"prompt_tokens": 7}"#));
    assert_eq!(answered(asked).await.text().await.unwrap(), r#"{"input_tokens":7}"#);
}

#[tokio::test]
async fn a_stream_is_told_event_by_event_as_it_is_written() {
    let (queen, mut worker) = queen_and_worker().await;
    for (path, body, first, second) in [
        (MESSAGES, message(), "event: message_start\n", "\"text_delta\""),
        (
            RESPONSES,
            response(),
            "event: response.created\n",
            "event: response.output_text.delta\n",
        ),
    ] {
        let asked = ask(&queen, path, &with(body, "/stream", true));
        let events = worker.next().await.stream();
        events.write(&chunk(&json!({"role": "assistant", "content": ""}))).await;
        let answer = answered(asked).await;
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        let mut reader = Reader::new(answer);
        let told = reader.next().await.unwrap();
        assert!(told.starts_with(first) && told.ends_with("\n\n"), "{told}");
        events.write(&chunk(&json!({"content": "ho"}))).await;
        let told = reader.next().await.unwrap();
        assert!(told.contains(second) && told.ends_with("\n\n"), "{told}");
        drop(reader);
        // The client has left.
        events.closed().await;
    }
}

#[tokio::test]
async fn a_worker_may_refuse_and_the_client_reads_its_own_words() {
    let (queen, mut worker) = queen_and_worker().await;
    let error = json!({"message": "messages: is too long", "type": "invalid_request_error", "param": "messages", "code": "context_length_exceeded"});
    let refusal = json!({"error": error}).to_string();
    let asked = ask(&queen, RESPONSES, &response());
    worker.next().await.answer(plain(400, &refusal));
    let (status, _, body) = parts(answered(asked).await, "x").await;
    let expected = json!({"message": "input: is too long", "type": "invalid_request_error", "param": "input", "code": "context_length_exceeded"});
    assert_eq!((status, &body["error"]), (400, &expected));
    let asked = ask(&queen, MESSAGES, &message());
    worker.next().await.answer(plain(400, &refusal));
    let (status, id, body) = parts(answered(asked).await, "request-id").await;
    let expected = json!({
        "type": "error", "error": {"type": "invalid_request_error", "message": "messages: is too long"}, "request_id": id,
    });
    assert_eq!((status, body), (400, expected));
}

#[tokio::test]
async fn errors_of_the_queen_have_the_dialects_shape_whoever_makes_them() {
    let config = Config {
        api_keys: vec!["a-clients-key".parse::<Secret>().unwrap()],
        queue_max: 0,
        ..Config::default()
    };
    let queen = Queen::start(config).await;
    let mut worker = Worker::start().await;
    queen.worker_beat(&worker.beat("w")).await;
    let send = |method: reqwest::Method, body: &Value, key: &str| {
        let request = queen.http.request(method, format!("{}{MESSAGES}", queen.url));
        request.json(body).header("x-api-key", key).send()
    };
    let post = reqwest::Method::POST;
    let held = tokio::spawn(send(post.clone(), &message(), "a-clients-key"));
    let reached = worker.next().await;
    for (method, body, key, status, word) in [
        (post.clone(), message(), "another-key", 401, "authentication_error"),
        (
            post.clone(),
            with(message(), "/model", "unknown"),
            "a-clients-key",
            404,
            "not_found_error",
        ),
        (
            post.clone(),
            with(message(), "/max_tokens", 0),
            "a-clients-key",
            400,
            "invalid_request_error",
        ),
        (post.clone(), message(), "a-clients-key", 503, "overloaded_error"),
        (
            reqwest::Method::GET,
            message(),
            "a-clients-key",
            405,
            "invalid_request_error",
        ),
    ] {
        let answer = send(method, &body, key).await.unwrap();
        assert_eq!(answer.headers().contains_key("retry-after"), status == 503);
        let (got, id, body) = parts(answer, "request-id").await;
        assert_eq!(
            (got, &body["type"], &body["error"]["type"]),
            (status, &json!("error"), &json!(word)),
            "{body}"
        );
        assert_eq!(body["request_id"], json!(id.unwrap()));
    }
    reached.answer(plain(200, &completion()));
    assert_eq!(within("an answer", held).await.unwrap().unwrap().status(), 200);
    // OpenAI's clients send bearer tokens.
    let refused = queen
        .post(RESPONSES, &response())
        .header("x-api-key", "a-clients-key")
        .send()
        .await
        .unwrap();
    let (status, _, body) = parts(refused, "x").await;
    assert_eq!((status, &body["error"]["code"]), (401, &json!("invalid_api_key")));
}

#[tokio::test]
async fn who_asks_to_be_strict_is_refused_what_has_no_effect() {
    let (queen, _worker) = queen_and_worker().await;
    for (strict, param) in [("true", "store"), ("1", "store"), ("yes", "x-rbee-strict")] {
        let request = queen
            .post(RESPONSES, &with(response(), "/store", true))
            .header("x-rbee-strict", strict);
        let (status, _, body) = parts(request.send().await.unwrap(), "x").await;
        assert_eq!((status, &body["error"]["param"]), (400, &json!(param)));
    }
    let request = queen
        .post(MESSAGES, &message())
        .header("x-rbee-strict", "true")
        .header("anthropic-beta", "x");
    assert_eq!(request.send().await.unwrap().status(), 400);
    let request = queen
        .post(MESSAGES, &message())
        .header("anthropic-version", "2023-01-01");
    assert_eq!(request.send().await.unwrap().status(), 400);
}
