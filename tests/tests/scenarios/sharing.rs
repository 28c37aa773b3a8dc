//! What requests to one model share, the cores and the KV cache, and that none of them notices.
//!
//! Takes more than five seconds: a real model runs, with many requests at a time.

use futures_util::future::join_all;
use rbee_tests::chats::{Endless, ask, with};
use rbee_tests::http::{self, Answer};
use rbee_tests::{Cluster, Process, eventually, models};
use serde_json::{Value, json};

/// Prompt tokens of an answer's request: all, and those that were cached.
fn prompt_tokens(answer: &Answer) -> (u64, u64) {
    let usage = &answer.body["usage"];
    let count = |value: &Value| value.as_u64().unwrap_or_else(|| panic!("no count: {answer:?}"));
    (
        count(&usage["prompt_tokens"]),
        count(&usage["prompt_tokens_details"]["cached_tokens"]),
    )
}

/// Some 13 tokens a sentence.
fn long_text(sentences: usize) -> String {
    let sentence = |n| format!("Bee number {n} flies to flower number {}. ", n * 7 % 101);
    (0..sentences).map(sentence).collect()
}

async fn metric(worker: &Process, name: &str) -> f64 {
    http::metric(&worker.url(), &format!("rbee_worker_{name}")).await
}

#[tokio::test]
async fn a_seed_gives_the_same_answers_alone_and_while_seven_other_chats_run() {
    let (cluster, worker) = Cluster::serving_with(models::SMOLLM2, &["--slots", "16"]).await;
    let schema = json!({
        "type": "object", "properties": {"name": {"type": "string", "maxLength": 30}}, "required": ["name"],
        "additionalProperties": false,
    });
    let questions = [
        json!({"seed": 7, "n": 3, "temperature": 1.2, "top_k": 40, "min_p": 0.02}),
        json!({"seed": 8, "temperature": 1, "presence_penalty": 1, "frequency_penalty": 0.5, "repetition_penalty": 1.1}),
        json!({"seed": 9, "temperature": 1.5, "top_p": 0.9, "typical_p": 0.9, "logprobs": true, "top_logprobs": 3}),
        json!({"seed": 10, "temperature": 1, "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}}),
        json!({"messages": [{"role": "user", "content": long_text(40)}]}),
    ];
    let answer = async |fields: &Value| {
        let answer = http::post(cluster.chat_url(), &ask("Tell me about bees.", fields)).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.body["choices"].clone()
    };
    let mut alone = Vec::new();
    for fields in &questions {
        alone.push(answer(fields).await);
    }
    assert_ne!(alone[0][0], alone[0][1], "choices differ");

    let chat_url = cluster.chat_url();
    let stories = (0..7).map(async |n| Endless::begin(&chat_url, &format!("Tell me story number {n}.")).await);
    let company = join_all(stories).await;
    assert_eq!(metric(&worker, "sequences_running").await, 7.0);
    let together = join_all(questions.iter().map(answer)).await;
    assert!(company.iter().all(Endless::goes_on), "the company has left");
    assert_eq!(together, alone);
}

#[tokio::test]
async fn a_system_message_that_chats_share_is_computed_once() {
    let (cluster, worker) = Cluster::serving(models::SMOLLM2).await;
    let about = |topic: &str, question: &str| {
        let system = format!("You know all about {topic}. {}", long_text(30));
        let messages = json!([{"role": "system", "content": system}, {"role": "user", "content": question}]);
        ask("", &json!({"messages": messages}))
    };
    let computed = async || metric(&worker, "prefill_tokens_total").await;
    let found = async || metric(&worker, "prefix_hit_tokens_total").await;

    let first = http::post(cluster.chat_url(), &about("bees", "Who flies?")).await;
    let (prompt, cached) = prompt_tokens(&first);
    assert!(prompt > 300 && cached == 0, "{first:?}");

    let (computed_before, found_before) = (computed().await, found().await);
    let second = http::post(cluster.chat_url(), &about("bees", "How many are there?")).await;
    let (prompt, cached) = prompt_tokens(&second);
    assert!(
        cached > prompt - 80,
        "only {cached} of {prompt} tokens were in the cache"
    );
    assert_eq!(found().await - found_before, cached as f64);
    assert_eq!(computed().await - computed_before, (prompt - cached) as f64);

    let again = http::post(cluster.chat_url(), &about("bees", "Who flies?")).await;
    assert!(prompt_tokens(&again).1 > 0, "{again:?}");
    assert_eq!(again.text(), first.text(), "with the cache and without");

    // Nobody has asked about this before, and nobody waits for another's answer.
    let before = computed().await;
    let questions = ["Who?", "Where?", "When?", "Why?"].map(|question| about("flowers", question));
    let answers = join_all(questions.iter().map(|body| http::post(cluster.chat_url(), body))).await;
    let prompts: u64 = answers.iter().map(|answer| prompt_tokens(answer).0).sum();
    let together = computed().await - before;
    assert!(
        together < prompts as f64 / 2.0,
        "{together} of {prompts} prompt tokens were computed"
    );
}

#[tokio::test]
async fn a_long_prompt_does_not_stall_an_answer_that_runs() {
    let (cluster, worker) = Cluster::serving(models::SMOLLM2).await;
    let story = Endless::begin(&cluster.chat_url(), "Tell me a long story.").await;
    let told = async || {
        (
            metric(&worker, "steps_total").await,
            metric(&worker, "decode_tokens_total").await,
        )
    };
    let before = told().await;
    let body = ask(&long_text(220), &json!({"max_tokens": 1}));
    let answer = http::post(cluster.chat_url(), &body).await;
    let after = told().await;
    let (prompt, cached) = prompt_tokens(&answer);
    assert!(prompt > 2_500 && cached < 64, "{answer:?}");
    let (steps, meanwhile) = (after.0 - before.0, after.1 - before.1);
    assert!(steps >= 10.0, "the prompt was computed in {steps} steps");
    assert!(
        meanwhile >= 8.0,
        "{meanwhile} tokens were decoded while a prompt of {prompt} tokens was computed"
    );
    assert!(story.goes_on());
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_slot_and_its_memory_wherever_its_answer_stands() {
    let (cluster, worker) = Cluster::serving(models::SMOLLM2).await;
    let all_is_free = async || {
        for name in [
            "sequences_running",
            "requests_waiting",
            "kv_used_tokens",
            "kv_reserved_tokens",
        ] {
            eventually(&format!("{name} is 0"), async || {
                (metric(&worker, name).await == 0.0).then_some(())
            })
            .await;
        }
    };
    let until = async |name: &str, value: f64| {
        eventually(&format!("{name} is {value}"), async || {
            (metric(&worker, name).await == value).then_some(())
        })
        .await;
    };

    let story = Endless::begin(&cluster.chat_url(), "Tell me a long story.").await;
    assert_eq!(metric(&worker, "sequences_running").await, 1.0);
    assert!(metric(&worker, "kv_used_tokens").await > 0.0);
    drop(story);
    all_is_free().await;

    // Before there is anything to read: several answers to a prompt that takes long.
    let body = ask(
        &long_text(450),
        &json!({"n": 4, "max_tokens": 500, "seed": 1, "temperature": 1}),
    );
    let reader = tokio::spawn({
        let chat_url = cluster.chat_url();
        async move { http::post(chat_url, &body).await }
    });
    until("sequences_running", 4.0).await;
    reader.abort();
    all_is_free().await;

    // While it waits for a slot.
    let chat_url = cluster.chat_url();
    let stories = (0..4).map(async |n| Endless::begin(&chat_url, &format!("Tell me story number {n}.")).await);
    let stories = join_all(stories).await;
    let reader = tokio::spawn({
        let (chat_url, body) = (
            worker_chat_url(&worker),
            with(ask("Hello", &json!({})), &json!({"max_tokens": 4})),
        );
        async move { http::post(chat_url, &body).await }
    });
    until("requests_waiting", 1.0).await;
    reader.abort();
    until("requests_waiting", 0.0).await;
    assert_eq!(metric(&worker, "sequences_running").await, 4.0);
    assert!(stories.iter().all(Endless::goes_on));
    drop(stories);
    all_is_free().await;
}

/// The queen lets requests wait where they are; the worker's own queue is for who asks it directly.
fn worker_chat_url(worker: &Process) -> String {
    format!("{}/v1/chat/completions", worker.url())
}

#[tokio::test]
async fn a_worker_that_would_need_more_memory_than_there_is_says_so_and_which_setting_to_lower() {
    let cluster = Cluster::start().await;
    let mut command = rbee_tests::Program::Worker.command();
    command
        .args(rbee_tests::cluster::worker_args(models::SMOLLM2, &cluster.url()))
        .args(["--kv-tokens", "4000000000"]);
    let mut worker = Process::spawn(command);
    let status = worker.ended().await;
    assert_eq!(status.code(), Some(1), "{}", worker.log());
    let log = worker.log();
    let error = log.lines().last().expect("an error");
    for part in ["load the model", "MiB", "lower --kv-tokens to "] {
        assert!(error.contains(part), "`{part}` is missing in: {error}");
    }
}
