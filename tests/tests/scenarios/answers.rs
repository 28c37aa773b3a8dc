//! Answers of real models through queen and worker, as a client sees them.
//!
//! Takes more than five seconds: real models are loaded.

use futures_util::StreamExt;
use rbee_tests::chats::{ask, streamed_text, with};
use rbee_tests::{Cluster, Process, http, models};
use serde_json::{Value, json};

async fn smollm2() -> (Cluster, Process) {
    Cluster::serving(models::SMOLLM2).await
}

fn story() -> Value {
    ask("Why is the sky blue?", &json!({}))
}

/// Counts of tokens; what was cached differs from one time to the next.
fn counted(usage: &Value) -> [&Value; 3] {
    ["prompt_tokens", "completion_tokens", "total_tokens"].map(|key| &usage[key])
}

#[tokio::test]
async fn a_stream_says_what_the_whole_answer_says_in_the_order_that_clients_expect() {
    let (cluster, _worker) = smollm2().await;
    let whole = http::post(cluster.chat_url(), &story()).await;
    assert_eq!(whole.status, 200, "{whole:?}");
    assert_eq!(whole.body["object"], "chat.completion");
    assert_eq!(whole.body["choices"][0]["finish_reason"], "length");
    assert_eq!(whole.body["choices"][0]["message"]["role"], "assistant");
    assert_eq!(whole.body["usage"]["completion_tokens"], 24);
    let usage = &whole.body["usage"];
    let sum = usage["prompt_tokens"].as_u64().unwrap() + usage["completion_tokens"].as_u64().unwrap();
    assert_eq!(usage["total_tokens"].as_u64().unwrap(), sum);

    let body = with(
        story(),
        &json!({"stream": true, "stream_options": {"include_usage": true}}),
    );
    let chunks = http::chunks(cluster.chat_url(), &body).await;
    assert_eq!(streamed_text(&chunks, 0), whole.text());
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    assert!(
        chunks[1..]
            .iter()
            .all(|chunk| chunk["choices"][0]["delta"].get("role").is_none()),
        "the role comes once"
    );
    for key in ["id", "created", "model"] {
        assert!(
            chunks.iter().all(|chunk| chunk[key] == chunks[0][key]),
            "{key} differs between chunks"
        );
    }
    let [.., last, usage] = chunks.as_slice() else {
        panic!("too few chunks")
    };
    assert_eq!(last["choices"][0]["delta"], json!({}));
    assert_eq!(last["choices"][0]["finish_reason"], "length");
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(counted(&usage["usage"]), counted(&whole.body["usage"]));

    let chunks = http::chunks(cluster.chat_url(), &with(story(), &json!({"stream": true}))).await;
    assert!(
        chunks.iter().all(|chunk| chunk["choices"] != json!([])),
        "no usage chunk unless asked for"
    );
}

#[tokio::test]
async fn a_stop_text_ends_the_answer_and_is_never_part_of_it() {
    let (cluster, _worker) = smollm2().await;
    let text = http::post(cluster.chat_url(), &story()).await.text().to_owned();
    // From the middle of one word to the middle of another, so that it crosses borders of tokens.
    let middle = text.char_indices().nth(text.chars().count() / 2).unwrap().0;
    let stop: String = text[middle..].chars().take(7).collect();
    let expected = &text[..text.find(&stop).unwrap()];
    for stop in [json!(stop), json!(["never said", stop])] {
        let body = with(story(), &json!({"stop": stop}));
        let answer = http::post(cluster.chat_url(), &body).await;
        assert_eq!(answer.text(), expected);
        assert_eq!(answer.body["choices"][0]["finish_reason"], "stop");
        let chunks = http::chunks(cluster.chat_url(), &with(body, &json!({"stream": true}))).await;
        assert_eq!(streamed_text(&chunks, 0), expected);
        assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "stop");
    }
}

#[tokio::test]
async fn a_seed_repeats_an_answer_and_another_seed_gives_another() {
    let (cluster, _worker) = smollm2().await;
    let ask = async |seed: u64| {
        let body = with(story(), &json!({"temperature": 1.2, "seed": seed}));
        http::post(cluster.chat_url(), &body).await.text().to_owned()
    };
    // Two at once, so that a seed is seen to hold in company.
    let (first, other) = futures_util::future::join(ask(7), ask(8)).await;
    assert_eq!(first, ask(7).await);
    assert_ne!(first, other);
}

#[tokio::test]
async fn several_streams_run_together_and_each_is_what_it_is_alone() {
    let (cluster, _worker) = smollm2().await;
    let questions = [
        "Why is the sky blue?",
        "Write a haiku about bees.",
        "What is two plus two?",
        "Name a colour.",
    ];
    let answer = async |question: &str| {
        http::post(cluster.chat_url(), &ask(question, &json!({})))
            .await
            .text()
            .to_owned()
    };
    let mut alone = Vec::new();
    for question in questions {
        alone.push(answer(question).await);
    }
    let together = futures_util::future::join_all(questions.map(answer)).await;
    assert_eq!(together, alone);
}

#[tokio::test]
async fn messages_take_all_roles_and_text_parts() {
    let (cluster, _worker) = smollm2().await;
    let plain = json!([
        {"role": "system", "content": "You answer in one short sentence."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "Why is the sky blue?\nAnswer for a child."},
    ]);
    let mut parts = plain.clone();
    parts[0]["role"] = json!("developer");
    parts[3]["content"] =
        json!([{"type": "text", "text": "Why is the sky blue?"}, {"type": "text", "text": "Answer for a child."}]);
    let plain = http::post(cluster.chat_url(), &with(story(), &json!({"messages": plain}))).await;
    let parts = http::post(cluster.chat_url(), &with(story(), &json!({"messages": parts}))).await;
    assert_eq!(plain.text(), parts.text());
    assert_eq!(counted(&plain.body["usage"]), counted(&parts.body["usage"]));
}

#[tokio::test]
async fn what_is_wrong_or_not_supported_is_named() {
    let (cluster, _worker) = smollm2().await;
    for (key, value, param) in [
        ("temperature", json!(3), "temperature"),
        ("top_p", json!(1.5), "top_p"),
        ("max_tokens", json!(0), "max_tokens"),
        ("max_completion_tokens", json!(-1), "max_completion_tokens"),
        ("stop", json!(["1", "2", "3", "4", "5"]), "stop"),
        ("messages", json!([]), "messages"),
        (
            "messages",
            json!([{"role": "wizard", "content": "x"}]),
            "messages[0].role",
        ),
        (
            "messages",
            json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
            "messages[0].content[0]",
        ),
        ("n", json!(17), "n"),
        ("top_logprobs", json!(3), "top_logprobs"),
        ("tools", json!([{"type": "custom"}]), "tools[0].type"),
        ("functions", json!([{"name": "f"}]), "functions"),
        ("response_format", json!({"type": "xml"}), "response_format.type"),
        (
            "response_format",
            json!({"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "abacus"}}}),
            "response_format.json_schema.schema",
        ),
        ("presence_penalty", json!(3), "presence_penalty"),
        ("logit_bias", json!({"x": 1}), "logit_bias"),
        ("logit_bias", json!({"4000000": 1}), "logit_bias"),
        ("no_such_parameter", json!(1), "no_such_parameter"),
    ] {
        let answer = http::post(cluster.chat_url(), &with(story(), &json!({key: value}))).await;
        assert_eq!(answer.status, 400, "{key} = {value}: {answer:?}");
        let named = answer.body["error"]["param"].as_str().unwrap_or_default();
        assert!(
            named.starts_with(param),
            "{key} = {value} should name {param}: {answer:?}"
        );
    }
    let long = json!([{"role": "user", "content": "word ".repeat(9_000)}]);
    let answer = http::post(cluster.chat_url(), &with(story(), &json!({"messages": long}))).await;
    assert_eq!(
        (answer.status, answer.code()),
        (400, "context_length_exceeded"),
        "{answer:?}"
    );
    assert_eq!(http::post(cluster.chat_url(), &story()).await.status, 200);
}

#[tokio::test]
async fn a_model_without_a_chat_template_completes_and_says_so_when_asked_to_chat() {
    let (cluster, _worker) = Cluster::serving(models::GEMMA3).await;
    let chat = cluster.chat(models::GEMMA3, "Hello").await;
    assert_eq!(chat.status, 400, "{chat:?}");
    assert!(chat.message().contains("chat template"), "{chat:?}");
    let body = json!({"model": models::GEMMA3, "prompt": "The capital of France is", "temperature": 0});
    let answer = http::post(cluster.completions_url(), &body).await;
    assert_eq!(answer.body["object"], "text_completion");
    assert_eq!(
        answer.body["usage"]["completion_tokens"], 16,
        "the default of max_tokens: {answer:?}"
    );
    let chunks = http::chunks(cluster.completions_url(), &with(body, &json!({"stream": true}))).await;
    let streamed: String = chunks
        .iter()
        .map(|chunk| chunk["choices"][0]["text"].as_str().unwrap_or_default())
        .collect();
    assert_eq!(streamed, answer.text());
}

#[tokio::test]
async fn a_prompt_for_programs_streams_tokens() {
    let (_cluster, worker) = smollm2().await;
    let body = json!({"prompt": "The capital of France is", "max_tokens": 3});
    let lines: Vec<String> = http::post_stream(format!("{}/v1/infer", worker.url()), &body)
        .await
        .collect()
        .await;
    let events: Vec<Value> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let text: String = events.iter().filter_map(|event| event["text"].as_str()).collect();
    assert!(text.starts_with(" Paris"), "{text}");
    let done = events.last().unwrap();
    assert_eq!(
        (&done["type"], &done["finish_reason"]),
        (&json!("done"), &json!("length"))
    );
    assert_eq!(
        done["usage"],
        json!({"prompt_tokens": 5, "completion_tokens": 3, "cached_tokens": 0})
    );
}

#[tokio::test]
async fn a_worker_that_is_asked_to_end_finishes_its_answer_first() {
    let (cluster, mut worker) = smollm2().await;
    let body = with(story(), &json!({"max_tokens": 100, "stream": true}));
    let mut stream = http::post_stream(cluster.chat_url(), &body).await;
    stream.next().await.expect("a first chunk");
    worker.signal(nix::sys::signal::Signal::SIGTERM);
    let rest: Vec<String> = stream.collect().await;
    assert_eq!(rest.last().map(String::as_str), Some("[DONE]"));
    assert!(worker.ended().await.success(), "{}", worker.log());
    cluster
        .until("the worker has said goodbye", |fleet| {
            fleet.workers.is_empty().then_some(())
        })
        .await;
}
