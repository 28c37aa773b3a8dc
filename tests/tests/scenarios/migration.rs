//! Workers and hosts are killed in the middle of answers, and no client notices.
//!
//! Takes more than five seconds: several real models are loaded, and answers are made twice.

use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::future::join_all;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rbee_tests::chats::{ask, streamed_text, with};
use rbee_tests::process::group_members;
use rbee_tests::{Cluster, PATIENCE, Process, Program, http, models};
use serde_json::{Value, json};
use tokio::sync::Barrier;

const QUESTIONS: [&str; 16] = [
    "Why is the sky blue?",
    "Tell me a story about a bee.",
    "What is a mountain?",
    "Write a short poem about rain.",
    "How does a bicycle work?",
    "Describe a forest in autumn.",
    "What is the capital of France?",
    "Explain what bread is made of.",
    "Who invented the telephone?",
    "List five animals.",
    "What do cats like to eat?",
    "Describe the sea at night.",
    "How do birds fly?",
    "Give me advice on sleeping well.",
    "What is a computer?",
    "Tell me about the moon. 🌕",
];

/// A greedy stream with its usage.
fn stream_of(question: &str) -> Value {
    let fields = json!({"stream": true, "max_tokens": 120, "stream_options": {"include_usage": true}});
    ask(question, &fields)
}

/// What a client has of a stream in the end.
#[derive(Debug, PartialEq)]
struct Told {
    text: String,
    finish_reason: Value,
    completion_tokens: Value,
    prompt_tokens: Value,
}

/// What these chunks tell; they must be those of one clean stream.
fn told(chunks: &[Value]) -> Told {
    for key in ["id", "created", "model"] {
        assert!(
            chunks.iter().all(|chunk| chunk[key] == chunks[0][key]),
            "{key} changes within a stream"
        );
    }
    let roles = chunks
        .iter()
        .filter(|chunk| chunk["choices"][0]["delta"].get("role").is_some());
    assert_eq!(roles.count(), 1, "the role comes once");
    let [.., last, usage] = chunks else {
        panic!("too few chunks")
    };
    Told {
        text: streamed_text(chunks, 0),
        finish_reason: last["choices"][0]["finish_reason"].clone(),
        completion_tokens: usage["usage"]["completion_tokens"].clone(),
        prompt_tokens: usage["usage"]["prompt_tokens"].clone(),
    }
}

/// Asks all questions at once, and lets `trouble` happen when each stream has told a few pieces.
async fn ask_all(cluster: &Cluster, trouble: impl Future<Output = ()>) -> Vec<Told> {
    let begun = Arc::new(Barrier::new(QUESTIONS.len() + 1));
    let streams = QUESTIONS.map(|question| {
        let (url, begun) = (cluster.chat_url(), Arc::clone(&begun));
        tokio::spawn(async move {
            let mut lines = http::post_stream(url, &stream_of(question)).await;
            let mut seen = Vec::new();
            while let Some(line) = lines.next().await {
                seen.push(line);
                if seen.len() == 5 {
                    begun.wait().await;
                }
            }
            let (done, chunks) = seen.split_last().expect("events");
            assert_eq!(done, "[DONE]", "{question}");
            let chunks: Vec<Value> = chunks
                .iter()
                .map(|chunk| serde_json::from_str(chunk).expect("JSON"))
                .collect();
            told(&chunks)
        })
    });
    // One that fails before it has told so much keeps all others waiting.
    tokio::time::timeout(PATIENCE, begun.wait())
        .await
        .expect("all streams begin");
    trouble.await;
    join_all(streams)
        .await
        .into_iter()
        .map(|told| told.expect("a clean stream"))
        .collect()
}

#[tokio::test]
async fn a_worker_killed_in_the_middle_of_sixteen_streams_is_not_noticed_by_any_of_them() {
    let cluster = Cluster::start().await;
    let more = ["--slots", "16"];
    let mut first = cluster.worker_with(models::SMOLLM2, &more).await;
    let _second = cluster.worker_with(models::SMOLLM2, &more).await;
    cluster.until_ready(models::SMOLLM2, 2).await;

    let undisturbed = ask_all(&cluster, async {}).await;
    let disturbed = ask_all(&cluster, first.kill()).await;
    assert_eq!(disturbed, undisturbed);
    assert!(http::metric(&cluster.url(), "rbee_migrations_total").await >= 4.0);
    assert_eq!(http::metric(&cluster.url(), "rbee_broken_answers_total").await, 0.0);
}

#[tokio::test]
async fn a_host_that_vanishes_with_all_its_workers_is_not_noticed_by_any_stream() {
    let cluster = Cluster::start().await;
    let mut hives = Vec::new();
    for (id, workers) in [("doomed", 2), ("other", 1)] {
        let args = ["--port", "0", "--hive-id", id, "--queen-url", &cluster.url()];
        let hive = Process::daemon(Program::Hive, args).await;
        for _ in 0..workers {
            let spawn = json!({"operation": "worker_spawn", "model": models::SMOLLM2, "slots": 16});
            let spawned = cluster.job(&hive, &spawn).await;
            assert_eq!(spawned["state"], "succeeded", "{spawned:#}");
        }
        hives.push(hive);
    }
    cluster.until_ready(models::SMOLLM2, 3).await;

    let undisturbed = ask_all(&cluster, async {}).await;
    let doomed = hives[0].pid();
    let disturbed = ask_all(&cluster, async {
        for pid in group_members(doomed) {
            // It may have ended by itself meanwhile.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    })
    .await;
    assert_eq!(disturbed, undisturbed);
    assert!(http::metric(&cluster.url(), "rbee_migrations_total").await >= 4.0);
}

/// One stream; when it has told `pieces`, the worker that writes it is killed. The workers, and its events, with `[DONE]` if
/// it came.
async fn killed_after(body: &Value, pieces: usize) -> (Cluster, Vec<Process>, Vec<String>) {
    let cluster = Cluster::start().await;
    let mut workers = Vec::new();
    for id in ["one", "two"] {
        workers.push((id, cluster.worker_with(models::SMOLLM2, &["--worker-id", id]).await));
    }
    cluster.until_ready(models::SMOLLM2, 2).await;
    let mut lines = http::post_stream(cluster.chat_url(), body).await;
    let mut seen = Vec::new();
    while let Some(line) = lines.next().await {
        seen.push(line);
        if seen.len() == pieces {
            // Nobody writes on while it is found out who writes.
            workers.iter().for_each(|(_, worker)| worker.signal(Signal::SIGSTOP));
            // The headers do not always name it: an answer that is slow to begin has them before it has a worker.
            let fleet = cluster.fleet().await;
            let writer = fleet.workers.iter().find(|worker| worker.leases > 0).expect("a writer");
            for (id, worker) in &mut workers {
                if *id == writer.id.as_str() {
                    worker.kill().await;
                } else {
                    worker.signal(Signal::SIGCONT);
                }
            }
        }
    }
    let left = workers.into_iter().map(|(_, worker)| worker).collect();
    (cluster, left, seen)
}

#[tokio::test]
async fn a_sampled_answer_with_a_seed_and_penalties_goes_on_as_it_would_have() {
    let fields = json!({
        "stream": true, "temperature": 0.9, "seed": 11, "max_tokens": 240, "frequency_penalty": 0.6,
        "stream_options": {"include_usage": true},
    });
    let body = ask("Tell me a story about a bee.", &fields);
    let (cluster, _workers, lines) = killed_after(&body, 20).await;
    let chunks: Vec<Value> = lines[..lines.len() - 1]
        .iter()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let again = http::chunks(cluster.chat_url(), &body).await;
    assert_eq!(told(&chunks), told(&again));
    let receipt = &chunks.last().unwrap()["rbee"];
    assert_eq!(receipt["migrations"], 1, "{receipt}");
}

#[tokio::test]
async fn an_answer_in_json_goes_on_in_its_form() {
    let schema = json!({
        "type": "object", "additionalProperties": false, "required": ["names"],
        "properties": {"names": {"type": "array", "minItems": 30, "maxItems": 30, "items": {"type": "string", "maxLength": 20}}},
    });
    let format = json!({"type": "json_schema", "json_schema": {"name": "names", "strict": true, "schema": schema}});
    let body = ask(
        "Name thirty cities.",
        &json!({"stream": true, "max_tokens": 800, "response_format": format,
        "stream_options": {"include_usage": true}}),
    );
    let (cluster, _workers, lines) = killed_after(&body, 10).await;
    let chunks: Vec<Value> = lines[..lines.len() - 1]
        .iter()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let told_then = told(&chunks);
    let names: Value = serde_json::from_str(&told_then.text).expect("JSON");
    assert_eq!(names["names"].as_array().map(Vec::len), Some(30));
    assert_eq!(told_then, told(&http::chunks(cluster.chat_url(), &body).await));
}

/// What the calls of tools in these chunks say: name and arguments of each.
fn calls(chunks: &[Value]) -> Vec<(String, String)> {
    let mut calls: Vec<(String, String)> = Vec::new();
    let deltas = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["delta"]["tool_calls"].as_array());
    for delta in deltas.flatten() {
        let index = usize::try_from(delta["index"].as_u64().expect("an index")).unwrap();
        if index == calls.len() {
            assert!(delta["id"].is_string(), "{delta}");
            calls.push((
                delta["function"]["name"].as_str().expect("a name").to_owned(),
                String::new(),
            ));
        } else {
            assert!(delta.get("id").is_none(), "the id comes once: {delta}");
        }
        calls[index]
            .1
            .push_str(delta["function"]["arguments"].as_str().unwrap_or_default());
    }
    calls
}

#[tokio::test]
async fn a_call_of_a_tool_goes_on_where_it_was() {
    let tool = json!({"type": "function", "function": {"name": "look_up", "strict": true, "parameters": {
        "type": "object", "required": ["words"], "additionalProperties": false,
        "properties": {"words": {"type": "array", "minItems": 30, "maxItems": 30, "items": {"type": "string", "maxLength": 12}}},
    }}});
    let fields = json!({"stream": true, "max_tokens": 600, "tools": [tool], "tool_choice": "required",
        "stream_options": {"include_usage": true}});
    let body = ask("Tell me a story about a bee.", &fields);
    let (cluster, _workers, lines) = killed_after(&body, 8).await;
    let chunks: Vec<Value> = lines[..lines.len() - 1]
        .iter()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let again = http::chunks(cluster.chat_url(), &body).await;
    assert_eq!(calls(&chunks), calls(&again));
    assert_eq!(told(&chunks), told(&again));
    assert_eq!(chunks.last().unwrap()["rbee"]["migrations"], 1);
}

#[tokio::test]
async fn what_cannot_be_taken_up_ends_with_an_error_that_says_why() {
    for (fields, why) in [
        (json!({"logprobs": true}), "log probabilities"),
        (json!({"n": 2}), "several answers"),
    ] {
        let body = with(
            ask("Tell me a story about a bee.", &fields),
            &json!({"stream": true, "max_tokens": 400}),
        );
        let (_cluster, _workers, lines) = killed_after(&body, 8).await;
        let last: Value = serde_json::from_str(lines.last().unwrap()).expect("an error, and no [DONE]");
        let message = last["error"]["message"].as_str().unwrap_or_else(|| panic!("{last}"));
        assert!(message.contains(why), "{message}");
    }
}

/// The streams of a completion have other chunks than those of a chat.
#[tokio::test]
async fn a_text_completion_goes_on_as_a_chat_does() {
    // Its worker is silent while another one loads the model.
    let settings = [
        "--heartbeat-interval-ms",
        "1000",
        "--heartbeat-ttl-ms",
        "120000",
        "--stall-timeout-ms",
        "600000",
    ];
    let cluster = Cluster::with(settings).await;
    let mut doomed = cluster.worker_with(models::GEMMA3, &["--worker-id", "a"]).await;
    cluster.until_ready(models::GEMMA3, 1).await;
    let body = json!({"model": models::GEMMA3, "prompt": "Once upon a time", "max_tokens": 120, "temperature": 0});
    let undisturbed = http::post(cluster.completions_url(), &body).await.text().to_owned();
    let body = with(body, &json!({"stream": true}));
    let mut lines = http::post_stream(cluster.completions_url(), &body).await;
    let mut text = String::new();
    let mut pieces = 0;
    let mut other = None;
    while let Some(line) = lines.next().await {
        if line == "[DONE]" {
            assert_eq!(text, undisturbed);
            assert_eq!(http::metric(&cluster.url(), "rbee_migrations_total").await, 1.0);
            return;
        }
        let chunk: Value = serde_json::from_str(&line).unwrap();
        text.push_str(
            chunk["choices"][0]["text"]
                .as_str()
                .unwrap_or_else(|| panic!("{chunk}")),
        );
        pieces += 1;
        if pieces == 4 {
            // Whoever takes it up need not have been there when it began; and by then it must not have ended.
            doomed.signal(Signal::SIGSTOP);
            other = Some(cluster.worker_with(models::GEMMA3, &["--worker-id", "b"]).await);
            cluster
                .until("the other worker is there", |fleet| {
                    fleet
                        .workers
                        .iter()
                        .any(|worker| worker.id.as_str() == "b" && worker.ready)
                        .then_some(())
                })
                .await;
            doomed.kill().await;
        }
    }
    panic!("the stream ended without [DONE]; {other:?}");
}
