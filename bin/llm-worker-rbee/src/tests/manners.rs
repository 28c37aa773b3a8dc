//! What a request may ask of how it is answered, and what it is told besides its answer.

use openai_api::{IGNORED_HEADER, STRICT_HEADER};
use serde_json::{Value, json};

use super::requests::{CHAT, COMPLETIONS, EMBEDDINGS, chat, chunks, completion, text_of};
use super::support::{Script, TestWorker, error, events};

const COUNT: &str = "/v1/count_tokens";

async fn ignored(worker: &TestWorker, path: &str, body: &Value) -> Option<String> {
    let response = worker.post(path, body).await;
    assert_eq!(response.status(), 200);
    let names = response.headers().get(IGNORED_HEADER);
    names.map(|names| names.to_str().unwrap().to_owned())
}

#[tokio::test]
async fn a_parameter_without_effect_is_named_beside_the_answer() {
    let worker = TestWorker::start(Script::new("Hello"), &[]).await;
    let labels = json!({"user": "u", "store": true, "metadata": {}, "service_tier": "auto"});
    let named = Some("user, store".to_owned());
    assert_eq!(ignored(&worker, CHAT, &chat(labels.clone())).await, named);
    assert_eq!(ignored(&worker, COMPLETIONS, &completion(labels)).await, named);
    let stream = chat(json!({"stream": true, "reasoning_effort": "low"}));
    assert_eq!(
        ignored(&worker, CHAT, &stream).await,
        Some("reasoning_effort".to_owned())
    );
    let embeddings = json!({"model": "org/tiny", "input": "x", "user": "u"});
    assert_eq!(ignored(&worker, EMBEDDINGS, &embeddings).await, Some("user".to_owned()));
    assert_eq!(ignored(&worker, CHAT, &chat(json!({"temperature": 0.5}))).await, None);
}

#[tokio::test]
async fn a_strict_request_is_refused_rather_than_served_without_a_parameter() {
    let worker = TestWorker::start(Script::new("Hello"), &[]).await;
    let ask = async |path: &str, strict: &str, body: Value| {
        let request = worker.http.post(format!("{}{path}", worker.base));
        request.header(STRICT_HEADER, strict).json(&body).send().await.unwrap()
    };
    let embeddings = json!({"model": "org/tiny", "input": "x", "user": "u"});
    for (path, body) in [
        (CHAT, chat(json!({"store": false, "user": "u", "verbosity": "low"}))),
        (COMPLETIONS, completion(json!({"user": "u"}))),
        (EMBEDDINGS, embeddings),
    ] {
        let (status, error) = error(ask(path, "true", body.clone()).await).await;
        assert_eq!((status, &error["param"]), (400, &json!("user")), "{error}");
        assert_eq!(error["code"], "unsupported_parameter");
        assert_eq!(ask(path, "false", body).await.status(), 200);
    }
    assert_eq!(ask(CHAT, "true", chat(json!({"store": false}))).await.status(), 200);
    let (status, error) = error(ask(CHAT, "maybe", chat(json!({}))).await).await;
    assert_eq!((status, &error["param"]), (400, &json!(STRICT_HEADER)));
}

#[tokio::test]
async fn an_assistants_message_goes_on_where_it_ends() {
    let worker = TestWorker::start(Script::new("bee."), &[]).await;
    let messages = json!([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello, "}]);
    let prompt = "User: Hi\nAssistant: Hello, ";
    for (more, prompt_tokens) in [
        (
            json!({"continue_final_message": true, "add_generation_prompt": false}),
            prompt.len(),
        ),
        (json!({"add_generation_prompt": false}), prompt.len() + 1),
    ] {
        let mut body = chat(more);
        body["messages"] = messages.clone();
        let answer = worker.answer(CHAT, &body).await;
        assert_eq!(answer["choices"][0]["message"]["content"], "bee.", "only what is new");
        assert_eq!(answer["usage"]["prompt_tokens"], prompt_tokens);
    }
    let (status, error) = worker
        .refusal(CHAT, &chat(json!({"continue_final_message": true})))
        .await;
    assert_eq!((status, &error["param"]), (400, &json!("continue_final_message")));
}

#[tokio::test]
async fn a_chat_is_counted_as_it_would_be_answered_also_if_it_is_too_long() {
    let script = Script {
        context_length: 64,
        ..Script::new("x")
    };
    let worker = TestWorker::start(script, &[]).await;
    let tool = json!({"type": "function", "function": {"name": "rain"}});
    let body = chat(json!({"tools": [tool], "stream": true}));
    let counted = worker.answer(COUNT, &body).await;
    assert_eq!(counted, json!({"prompt_tokens": "Tool: rain\nUser: Hi\n".len()}));
    let mut long = chat(json!({}));
    long["messages"][0]["content"] = json!("x".repeat(500));
    assert_eq!(
        worker.answer(COUNT, &long).await["prompt_tokens"],
        "User: \n".len() + 500
    );
    let (status, error) = worker.refusal(COUNT, &json!({"model": "org/tiny"})).await;
    assert_eq!((status, &error["param"]), (400, &json!("messages")));
    worker
        .until_metric(r#"rbee_worker_requests_total{endpoint="count_tokens",outcome="finished"} 2"#)
        .await;
    worker.until_metric("rbee_worker_prefill_tokens_total 0").await;
}

#[tokio::test]
async fn a_stream_whose_first_token_takes_long_shows_that_it_lives() {
    let script = Script::new("Hello");
    let gate = script.gate.clone();
    let worker = TestWorker::start(script, &[]).await;
    gate.close();
    let request = tokio::spawn({
        let request = worker.http.post(format!("{}{CHAT}", worker.base));
        request.json(&chat(json!({"stream": true}))).send()
    });
    worker.until_metric("rbee_worker_sequences_running 1").await;
    // Nothing else is to happen, so the clock goes on to when the stream has been silent for too long.
    tokio::time::pause();
    let mut response = request.await.unwrap().unwrap();
    let first = response.chunk().await.unwrap().unwrap();
    tokio::time::resume();
    assert_eq!(response.status(), 200);
    assert!(first.starts_with(b": keep-alive\n\n"), "{first:?}");
    gate.open();
    let chunks = chunks(&events(&response.text().await.unwrap()));
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    assert_eq!(text_of(&chunks, 0, "/delta/content"), "Hello");
}
