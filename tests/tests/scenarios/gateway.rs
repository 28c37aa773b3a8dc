//! The gateway among workers that behave badly, and what it tells of itself.
//!
//! The workers are fake where no real one would misbehave on demand; queen, requests and connections are real.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::future::join_all;
use rbee_tests::chats::{Endless, ask, with};
use rbee_tests::cluster::chat_body;
use rbee_tests::fake::{FakeWorker, Manner};
use rbee_tests::http::{self, Answer};
use rbee_tests::{Cluster, Process, eventually, models};
use serde_json::{Value, json};

const MODEL: &str = "fake-model";

/// A queen with these settings beside those of a quick cluster.
async fn queen(more: &[&str]) -> Cluster {
    let pace = ["--heartbeat-interval-ms", "500", "--heartbeat-ttl-ms", "10000"];
    Cluster::with(pace.iter().chain(more)).await
}

/// Workers of one model that beat all the time, one for each name.
async fn workers<const N: usize>(cluster: &Cluster, names: [&str; N], slots: u32) -> [FakeWorker; N] {
    let mut workers = Vec::new();
    for name in names {
        let mut worker = FakeWorker::start(name, MODEL).await.with_slots(slots);
        worker.beat_on(&cluster.url(), Duration::from_millis(200));
        workers.push(worker);
    }
    cluster.until_ready(MODEL, N).await;
    workers.try_into().expect("as many as names")
}

fn streamed() -> Value {
    with(chat_body(MODEL, "hello"), &json!({"stream": true}))
}

fn header<'a>(answer: &'a Answer, name: &str) -> &'a str {
    let value = answer
        .headers
        .get(name)
        .unwrap_or_else(|| panic!("no {name} in {answer:?}"));
    value.to_str().expect("a text")
}

fn retry_after(answer: &Answer) -> u64 {
    header(answer, "retry-after").parse().expect("seconds")
}

/// One streamed request after the other; how often they had to be tried again, all together.
async fn retries(cluster: &Cluster, requests: usize) -> f64 {
    let so_far = async || http::metric(&cluster.url(), "rbee_retries_total").await;
    let before = so_far().await;
    for _ in 0..requests {
        let lines: Vec<String> = http::post_stream(cluster.chat_url(), &streamed()).await.collect().await;
        assert_eq!(lines.last().map(String::as_str), Some("[DONE]"), "{lines:?}");
    }
    so_far().await - before
}

/// Takes more than five seconds: a request to a worker that hangs waits for the limit of the first byte, and so does a probe.
#[tokio::test]
async fn a_worker_that_hangs_with_a_fine_health_costs_two_requests_at_most_and_serves_again_once_it_answers() {
    let cluster = queen(&["--first-byte-timeout-ms", "6000"]).await;
    let [bad, good] = workers(&cluster, ["bad", "good"], 4).await;
    retries(&cluster, 10).await;
    bad.behave(Manner::Hangs);
    let lost = retries(&cluster, 60).await;
    assert!((1.0..=2.0).contains(&lost), "{lost} attempts of 60 requests failed");
    // Its heartbeats go on all the while, and clear nothing.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(retries(&cluster, 20).await, 0.0);

    bad.behave(Manner::Answers);
    let before = good.asked();
    // Little by little: now and then a request is a chance for it, whatever it did before.
    eventually("it has its share again", async || {
        let asked = bad.asked();
        retries(&cluster, 40).await;
        (bad.asked() > asked + 10).then_some(())
    })
    .await;
    assert!(good.asked() > before);
}

#[tokio::test]
async fn a_worker_that_fails_at_once_gets_less_traffic_and_no_request_notices() {
    for manner in [Manner::Fails, Manner::Closes] {
        let cluster = queen(&[]).await;
        let [bad, good] = workers(&cluster, ["bad", "good"], 4).await;
        bad.behave(manner);
        let before = good.asked();
        let lost = retries(&cluster, 50).await;
        assert!(lost <= 4.0, "{manner:?}: {lost} attempts of 50 requests failed");
        assert_eq!(good.asked() - before, 50);
    }
}

#[tokio::test]
async fn a_worker_ten_times_slower_takes_no_more_than_its_share() {
    let cluster = queen(&[]).await;
    let [slow, fast] = workers(&cluster, ["slow", "fast"], 64).await;
    // Long beside what a busy machine adds to both.
    slow.behave(Manner::Takes(1_500));
    fast.behave(Manner::Takes(150));
    let clients = (0..8).map(|_| retries(&cluster, 15));
    join_all(clients).await;
    let (slow, fast) = (slow.asked(), fast.asked());
    assert_eq!(slow + fast, 120);
    assert!(slow * 2 < fast, "the slow one got {slow}, the fast one {fast}");
}

#[tokio::test]
async fn what_one_client_does_wrong_harms_nobody() {
    let cluster = queen(&[]).await;
    let [only] = workers(&cluster, ["only"], 4).await;
    only.behave(Manner::Refuses);
    for _ in 0..20 {
        let answer = cluster.chat(MODEL, "x").await;
        assert_eq!(
            (answer.status, header(&answer, "x-rbee-attempts")),
            (400, "1"),
            "{answer:?}"
        );
    }
    only.behave(Manner::Answers);
    assert_eq!(retries(&cluster, 5).await, 0.0);
}

#[tokio::test]
async fn a_stream_that_breaks_off_and_cannot_be_taken_up_ends_with_an_error_and_without_done() {
    let cluster = queen(&[]).await;
    let [one] = workers(&cluster, ["one"], 4).await;
    one.behave(Manner::BreaksOff(3));
    let lines: Vec<String> = http::post_stream(cluster.chat_url(), &streamed()).await.collect().await;
    let (last, pieces) = lines.split_last().expect("events");
    assert_eq!(pieces.len(), 3);
    let error: Value = serde_json::from_str(last).expect("JSON");
    assert_eq!(error["error"]["type"], "server_error", "{last}");
    assert!(
        error["error"]["message"].as_str().unwrap().contains("broke off"),
        "{last}"
    );
}

#[tokio::test]
async fn a_stream_that_comes_byte_by_byte_arrives_whole() {
    let cluster = queen(&[]).await;
    let [one] = workers(&cluster, ["one"], 4).await;
    one.behave(Manner::Dribbles);
    let chunks = http::chunks(cluster.chat_url(), &streamed()).await;
    assert_eq!(rbee_tests::chats::streamed_text(&chunks, 0), "one");
}

#[tokio::test]
async fn a_full_queue_answers_429_with_a_time_to_come_back_that_was_learned() {
    let cluster = queen(&["--queue-max", "2"]).await;
    let [one] = workers(&cluster, ["one"], 1).await;
    one.behave(Manner::Takes(400));
    let mut slowest = Duration::ZERO;
    for _ in 0..4 {
        let asked = Instant::now();
        assert_eq!(cluster.chat(MODEL, "learn").await.status, 200);
        slowest = slowest.max(asked.elapsed());
    }
    let asked = Instant::now();
    let answers = join_all((0..12).map(|_| cluster.chat(MODEL, "all at once"))).await;
    // Three requests are before one that is refused.
    let most = (slowest.max(asked.elapsed()) * 3).as_secs() + 1;
    let (served, refused): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status == 200);
    assert!(served.len() >= 3, "{answers:?}");
    assert!(!refused.is_empty());
    for answer in refused {
        assert_eq!(
            (answer.status, answer.code()),
            (429, "rate_limit_exceeded"),
            "{answer:?}"
        );
        assert!((1..=most).contains(&retry_after(answer)), "{most}: {answer:?}");
    }
}

#[tokio::test]
async fn a_deadline_of_the_client_is_kept_and_named() {
    let cluster = queen(&[]).await;
    let [one] = workers(&cluster, ["one"], 1).await;
    one.behave(Manner::Hangs);
    let request = http::client().post(cluster.chat_url()).json(&chat_body(MODEL, "x"));
    let answer = http::send(request.header("x-request-timeout-ms", "300")).await;
    assert_eq!((answer.status, answer.code()), (504, "upstream_timeout"), "{answer:?}");
    let request = http::client().post(cluster.chat_url()).json(&chat_body(MODEL, "x"));
    let answer = http::send(request.header("x-request-timeout-ms", "soon")).await;
    assert_eq!(answer.status, 400, "{answer:?}");
    assert!(
        answer.message().to_lowercase().contains("x-request-timeout-ms"),
        "{answer:?}"
    );
}

#[tokio::test]
async fn a_stream_that_waits_is_told_its_place() {
    let cluster = queen(&[]).await;
    let [one] = workers(&cluster, ["one"], 1).await;
    one.behave(Manner::Hangs);
    let first = tokio::spawn({
        let (url, body) = (cluster.chat_url(), chat_body(MODEL, "x"));
        async move { http::post(url, &body).await }
    });
    eventually("the first is being answered", async || (one.asked() == 1).then_some(())).await;
    one.behave(Manner::Answers);
    let mut response = http::client()
        .post(cluster.chat_url())
        .json(&streamed())
        .send()
        .await
        .unwrap();
    let place = response.chunk().await.unwrap().expect("a stream");
    assert!(place.starts_with(b": waiting"), "{place:?}");
    // Its client leaves, and the worker is free.
    first.abort();
    let text = response.text().await.unwrap();
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
}

#[tokio::test]
async fn a_request_can_be_pinned_to_a_worker_and_its_answer_says_who_gave_it() {
    let cluster = queen(&[]).await;
    let _workers = workers(&cluster, ["one", "two"], 4).await;
    for name in ["one", "two", "one", "two"] {
        let request = http::client().post(cluster.chat_url()).json(&chat_body(MODEL, "x"));
        let answer = http::send(request.header("x-rbee-worker", name)).await;
        assert_eq!((answer.text(), header(&answer, "x-rbee-worker")), (name, name));
        assert_eq!(header(&answer, "x-rbee-migrations"), "0");
        assert!(header(&answer, "x-rbee-queue-ms").parse::<u64>().is_ok());
        assert!(!header(&answer, "x-request-id").is_empty());
    }
    for (name, value) in [
        ("x-rbee-worker", "three"),
        ("x-rbee-hive", "nowhere"),
        ("x-rbee-revision", "other"),
    ] {
        let request = http::client().post(cluster.chat_url()).json(&chat_body(MODEL, "x"));
        let answer = http::send(request.header(name, value)).await;
        assert!((400..600).contains(&answer.status), "{answer:?}");
        assert!(answer.message().contains(value), "{name}: {answer:?}");
    }
}

#[tokio::test]
async fn an_alias_is_another_name_of_a_model() {
    let cluster = queen(&["--alias", &format!("gpt-4o-mini={MODEL}")]).await;
    let _workers = workers(&cluster, ["one"], 4).await;
    let answer = cluster.chat("gpt-4o-mini", "x").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.body["model"], MODEL, "the answer tells what answered");
    let listed = http::get(format!("{}/v1/models", cluster.url())).await;
    let models = listed.body["data"].as_array().unwrap();
    let alias = models
        .iter()
        .find(|model| model["id"] == "gpt-4o-mini")
        .expect("the alias is listed");
    assert_eq!(alias["alias_of"], MODEL);
}

async fn smollm2(more: &[&str]) -> (Cluster, Process) {
    Cluster::serving_with(models::SMOLLM2, more).await
}

/// Takes more than five seconds: a real model is loaded.
#[tokio::test]
async fn a_client_that_leaves_frees_the_slot_and_is_counted() {
    let (cluster, worker) = smollm2(&["--slots", "1"]).await;
    let endless = Endless::begin(&cluster.chat_url(), "Count.").await;
    assert_eq!(http::metric(&worker.url(), "rbee_worker_sequences_running").await, 1.0);
    let gone = http::metric(&cluster.url(), "rbee_clients_gone_total").await;
    drop(endless);
    for (url, name, value) in [
        (worker.url(), "rbee_worker_sequences_running", 0.0),
        (cluster.url(), "rbee_clients_gone_total", gone + 1.0),
        (cluster.url(), "rbee_requests_in_flight", 0.0),
    ] {
        eventually(&format!("{name} is {value}"), async || {
            (http::metric(&url, name).await == value).then_some(())
        })
        .await;
    }
    assert_eq!(cluster.chat(models::SMOLLM2, "Hello").await.status, 200);
}

/// Takes more than five seconds: a real model is loaded.
#[tokio::test]
async fn what_a_request_says_in_vain_is_named_and_refused_where_that_is_asked_for() {
    let (cluster, _worker) = smollm2(&[]).await;
    let body = ask("Hello", &json!({"user": "me", "store": true, "max_tokens": 2}));
    let answer = http::post(cluster.chat_url(), &body).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let mut ignored: Vec<_> = header(&answer, "x-rbee-ignored-parameters").split(", ").collect();
    ignored.sort_unstable();
    assert_eq!(ignored, ["store", "user"]);
    let strict = http::client()
        .post(cluster.chat_url())
        .json(&body)
        .header("x-rbee-strict", "true");
    let answer = http::send(strict).await;
    assert_eq!(answer.status, 400, "{answer:?}");
    assert!(
        ["store", "user"].contains(&answer.body["error"]["param"].as_str().unwrap()),
        "{answer:?}"
    );
}
