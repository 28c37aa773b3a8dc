//! What a client gets.

use serde_json::{Value, json};

use super::requests::{CHAT, COMPLETIONS, chat, completion, parsed, text_of};
use super::support::{Script, TestWorker};

fn text_of_chat(chunks: &[Value]) -> String {
    text_of(chunks, 0, "/delta/content")
}

#[tokio::test]
async fn a_chat_answer_has_the_text_the_reason_and_the_usage() {
    let worker = TestWorker::start(Script::new("Hello, bee."), &[]).await;
    let answer = worker.answer(CHAT, &chat(json!({}))).await;
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["model"], "org/tiny");
    assert_eq!(answer["choices"][0]["message"]["content"], "Hello, bee.");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    let prompt = "User: Hi\n".len();
    assert_eq!(answer["usage"]["prompt_tokens"], prompt);
    assert_eq!(answer["usage"]["completion_tokens"], 11, "the end token is not counted");
    assert_eq!(answer["usage"]["total_tokens"], prompt + 11);
}

#[tokio::test]
async fn the_token_limit_ends_an_answer_with_the_reason_length() {
    let worker = TestWorker::start(Script::new("Hello, bee."), &[]).await;
    let answer = worker
        .answer(CHAT, &chat(json!({"max_tokens": 5, "temperature": 0})))
        .await;
    assert_eq!(answer["choices"][0]["message"]["content"], "Hello");
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["usage"]["completion_tokens"], 5);
}

#[tokio::test]
async fn the_end_of_the_context_ends_an_answer_with_the_reason_length() {
    let script = Script {
        context_length: 20,
        ..Script::endless("la ")
    };
    let worker = TestWorker::start(script, &[]).await;
    let answer = worker.answer(CHAT, &chat(json!({}))).await;
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["usage"]["total_tokens"], 20);
}

#[tokio::test]
async fn a_chat_stream_is_role_text_reason_usage_and_done() {
    let worker = TestWorker::start(Script::new("Hello"), &[]).await;
    let body = chat(json!({"stream": true, "stream_options": {"include_usage": true}}));
    let mut events = worker.stream(CHAT, &body).await;
    assert_eq!(events.pop().unwrap(), "[DONE]");
    let chunks = parsed(&events);

    assert_eq!(
        chunks[0]["choices"][0]["delta"],
        json!({"role": "assistant", "content": ""})
    );
    let (usage, choices) = chunks.split_last().unwrap();
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"]["completion_tokens"], 5);
    let last = choices.last().unwrap();
    assert_eq!(
        (&last["choices"][0]["delta"], &last["choices"][0]["finish_reason"]),
        (&json!({}), &json!("stop"))
    );
    for chunk in &choices[1..choices.len() - 1] {
        assert_eq!(
            chunk["choices"][0]["delta"].as_object().unwrap().len(),
            1,
            "content only"
        );
        assert!(chunk["choices"][0]["finish_reason"].is_null() && chunk["usage"].is_null());
    }
    assert_eq!(text_of_chat(choices), "Hello");
    for key in ["id", "created", "model", "object"] {
        assert!(
            chunks.iter().all(|chunk| chunk[key] == chunks[0][key]),
            "the same {key} in all chunks"
        );
    }
}

#[tokio::test]
async fn without_being_asked_a_stream_says_nothing_of_usage() {
    let worker = TestWorker::start(Script::new("Hello"), &[]).await;
    let mut events = worker.stream(CHAT, &chat(json!({"stream": true}))).await;
    assert_eq!(events.pop().unwrap(), "[DONE]");
    assert!(parsed(&events).iter().all(|chunk| chunk.get("usage").is_none()));
}

#[tokio::test]
async fn a_stop_text_ends_the_answer_and_never_gets_out() {
    let worker = TestWorker::start(Script::new("one, two, three, four"), &[]).await;
    for stop in [
        json!(", three"),
        json!(["four", ", three"]),
        json!([", three", ", threefold"]),
    ] {
        let answer = worker.answer(CHAT, &chat(json!({"stop": stop}))).await;
        assert_eq!(answer["choices"][0]["message"]["content"], "one, two");
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
        assert_eq!(answer["choices"][0]["stop_reason"], ", three");
        assert_eq!(answer["usage"]["completion_tokens"], 15, "the stop text was generated");

        let mut events = worker.stream(CHAT, &chat(json!({"stop": stop, "stream": true}))).await;
        assert_eq!(events.pop().unwrap(), "[DONE]");
        let chunks = parsed(&events);
        assert_eq!(text_of_chat(&chunks), "one, two");
        let finish = &chunks.last().unwrap()["choices"][0];
        assert_eq!(
            (&finish["finish_reason"], &finish["stop_reason"]),
            (&json!("stop"), &json!(", three"))
        );

        let answer = worker.answer(COMPLETIONS, &completion(json!({"stop": stop}))).await;
        assert_eq!(answer["choices"][0]["stop_reason"], ", three");
    }
    let answer = worker.answer(CHAT, &chat(json!({"stop": "five"}))).await;
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert_eq!(answer["choices"][0].get("stop_reason"), None, "the model ended it");
}

#[tokio::test]
async fn what_only_began_like_a_stop_text_is_in_the_answer() {
    let worker = TestWorker::start(Script::new("one, two"), &[]).await;
    let answer = worker.answer(CHAT, &chat(json!({"stop": "two three"}))).await;
    assert_eq!(answer["choices"][0]["message"]["content"], "one, two");
}

#[tokio::test]
async fn no_chunk_cuts_a_character() {
    let worker = TestWorker::start(Script::new("déjà 🐝"), &[]).await;
    let events = worker.stream(CHAT, &chat(json!({"stream": true}))).await;
    let chunks = parsed(&events[..events.len() - 1]);
    assert_eq!(text_of_chat(&chunks), "déjà 🐝");
    assert!(!events.concat().contains('\u{FFFD}'));
    let cut = worker.answer(CHAT, &chat(json!({"max_tokens": 8}))).await;
    assert_eq!(
        cut["choices"][0]["message"]["content"], "déjà \u{FFFD}",
        "a limit may fall into a character"
    );
}

#[tokio::test]
async fn a_completion_continues_a_text_for_sixteen_tokens() {
    let worker = TestWorker::start(Script::endless(" upon a time"), &[]).await;
    let answer = worker.answer(COMPLETIONS, &completion(json!({}))).await;
    assert!(answer["id"].as_str().unwrap().starts_with("cmpl-"));
    assert_eq!(answer["object"], "text_completion");
    assert_eq!(answer["choices"][0]["text"], " upon a time upo");
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["usage"]["prompt_tokens"], 5, "four bytes and the opening token");
}

#[tokio::test]
async fn a_prompt_of_tokens_is_taken_as_it_is() {
    let worker = TestWorker::start(Script::new("!"), &[]).await;
    for prompt in [json!([1, 2, 3]), json!([[1, 2, 3]])] {
        let answer = worker.answer(COMPLETIONS, &completion(json!({"prompt": prompt}))).await;
        assert_eq!(answer["usage"]["prompt_tokens"], 3);
    }
}

#[tokio::test]
async fn a_completion_stream_is_text_reason_usage_and_done() {
    let worker = TestWorker::start(Script::new(" upon"), &[]).await;
    let body = completion(json!({"stream": true, "stream_options": {"include_usage": true}}));
    let mut events = worker.stream(COMPLETIONS, &body).await;
    assert_eq!(events.pop().unwrap(), "[DONE]");
    let chunks = parsed(&events);
    let text: String = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["text"].as_str())
        .collect();
    assert_eq!(text, " upon");
    let [.., finish, usage] = chunks.as_slice() else {
        panic!("{chunks:?}")
    };
    assert_eq!(finish["choices"][0]["finish_reason"], "stop");
    assert_eq!(
        (&usage["choices"], &usage["usage"]["total_tokens"]),
        (&json!([]), &json!(10))
    );
}

#[tokio::test]
async fn infer_streams_tokens_and_ends_with_done() {
    let worker = TestWorker::start(Script::new("one two"), &[]).await;
    let events = worker
        .stream("/v1/infer", &json!({"prompt": "count", "stop": [" two"]}))
        .await;
    let events = parsed(&events);
    let (done, tokens) = events.split_last().unwrap();
    let text: String = tokens.iter().map(|event| event["text"].as_str().unwrap()).collect();
    assert_eq!(text, "one");
    let expected = json!({
        "type": "done", "finish_reason": "stop", "usage": {"prompt_tokens": 6, "completion_tokens": 7, "cached_tokens": 0},
    });
    assert_eq!(done, &expected);
}

#[tokio::test]
async fn the_model_is_listed_and_found_by_its_name_with_a_slash() {
    let worker = TestWorker::start(Script::new(""), &[]).await;
    let list: Value = worker.get("/v1/models").await.json().await.unwrap();
    assert_eq!(list["object"], "list");
    let model: Value = worker.get("/v1/models/org/tiny").await.json().await.unwrap();
    assert_eq!((&model["id"], &model["object"]), (&json!("org/tiny"), &json!("model")));
    assert_eq!(list["data"], json!([model]));
}

#[tokio::test]
async fn metrics_count_requests_and_tokens() {
    let worker = TestWorker::start(Script::new("12345"), &[]).await;
    worker.answer(COMPLETIONS, &completion(json!({}))).await;
    worker
        .until_metric(r#"rbee_worker_requests_total{endpoint="completions",outcome="finished"} 1"#)
        .await;
    worker.until_metric("rbee_worker_prefill_tokens_total 5").await;
    worker.until_metric("rbee_worker_decode_tokens_total 5").await;
    worker
        .until_metric("rbee_worker_time_to_first_token_seconds_count 1")
        .await;
    worker.until_metric("rbee_worker_sequences_running 0").await;
}
