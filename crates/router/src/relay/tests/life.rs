//! Waiting, silence, and clients that leave.

use super::*;
use crate::account::Failure;

fn hello() -> Model {
    Model::new(&["Hel", "lo"])
}

#[tokio::test(start_paused = true)]
async fn while_no_worker_is_there_comments_tell_how_that_goes_every_two_seconds() {
    let (mut stream, ..) = Script::of(&hello().request(), [Worker::IsAwaited]).stream();
    let start = Instant::now();
    for count in 0..3 {
        assert_eq!(next(&mut stream).await.as_deref(), Some(": waiting, place 1 of 1\n\n"));
        assert_eq!(start.elapsed().as_secs(), count * 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_worker_is_lost_after_the_limit_and_another_one_goes_on() {
    let model = hello();
    let begun = model.by_tokens(&json!({})).into_iter().take(2);
    let rest = model.by_tokens(&json!({"resume": {"id": "c-1", "tokens": [0]}}));
    let workers = [Worker::streams(begun, Then::Hangs), Worker::streams(rest, Then::Ends)];
    let (mut stream, seen, _) = Script::of(&model.request(), workers).stream();
    let start = Instant::now();
    let mut output = String::new();
    while let Some(data) = next(&mut stream).await {
        output.push_str(&data);
    }
    assert_eq!(output, model.undisturbed());
    assert_eq!(start.elapsed(), Duration::from_secs(30));
    assert_eq!(seen.lock().unwrap().blamed, [Lost::Silent(Duration::from_secs(30))]);
}

#[tokio::test(start_paused = true)]
async fn the_time_that_a_client_does_not_read_is_not_the_workers_silence() {
    let model = hello();
    let (mut stream, seen, _) = Script::of(
        &model.request(),
        [Worker::streams(model.by_tokens(&json!({})), Then::Hangs)],
    )
    .stream();
    while let Some(data) = next(&mut stream).await {
        tokio::time::advance(Duration::from_secs(100)).await;
        assert!(!data.contains("error"));
    }
    assert_eq!(seen.lock().unwrap().blamed, []);
}

#[tokio::test(start_paused = true)]
async fn a_stream_beyond_its_deadline_ends_with_an_error_and_nobody_is_blamed() {
    let model = hello();
    let begun = model.by_tokens(&json!({})).into_iter().take(2);
    let mut script = Script::of(&model.request(), [Worker::streams(begun, Then::Hangs)]);
    script.deadline = Some(Instant::now() + Duration::from_secs(3));
    let account = Arc::clone(&script.account);
    let (mut stream, seen, metrics) = script.stream();
    let start = Instant::now();
    let mut last = String::new();
    while let Some(data) = next(&mut stream).await {
        last = data;
    }
    assert_eq!(start.elapsed(), Duration::from_secs(3));
    assert_eq!(data(&last)[0]["error"]["code"], "upstream_timeout");
    let seen = seen.lock().unwrap();
    assert_eq!((seen.blamed.len(), seen.dropped), (0, 2));
    let failure = account.read(|figures| figures.failure);
    assert_eq!((failure, metrics.broken.get()), (Some(Failure::Broken), 0));
}

#[test]
fn a_client_that_leaves_drops_the_connection_and_the_claim_at_once_and_is_counted() {
    let model = hello();
    let (mut stream, seen, metrics) = Script::of(
        &model.request(),
        [Worker::streams(model.by_tokens(&json!({})), Then::Ends)],
    )
    .stream();
    assert!(now(&mut stream).is_some());
    assert_eq!((seen.lock().unwrap().dropped, metrics.inflight.get()), (0, 1));
    drop(stream);
    assert_eq!(seen.lock().unwrap().dropped, 2);
    assert_eq!((metrics.inflight.get(), metrics.clients_gone.get()), (0, 1));
}

#[test]
fn a_client_that_leaves_after_done_has_not_left_early() {
    let model = hello();
    let (mut stream, _, metrics) = Script::of(
        &model.request(),
        [Worker::streams(model.by_tokens(&json!({})), Then::Hangs)],
    )
    .stream();
    while now(&mut stream).is_some_and(|data| data != sse::DONE) {}
    drop(stream);
    assert_eq!((metrics.inflight.get(), metrics.clients_gone.get()), (0, 0));
}

#[test]
fn a_stream_that_is_complete_lets_go_of_its_worker_before_the_client_lets_go_of_it() {
    let model = hello();
    let (mut stream, seen, metrics) = Script::of(
        &model.request(),
        [Worker::streams(model.by_tokens(&json!({})), Then::Ends)],
    )
    .stream();
    while now(&mut stream).is_some() {}
    assert_eq!((seen.lock().unwrap().dropped, metrics.inflight.get()), (2, 0));
    drop(stream);
    assert_eq!(metrics.clients_gone.get(), 0);
}

#[test]
fn a_worker_is_not_read_further_than_its_client_reads() {
    let model = hello();
    let events = model.by_tokens(&json!({}));
    let count = events.len();
    let (mut stream, ..) = Script::of(&model.request(), [Worker::streams(events, Then::Ends)]).stream();
    let mut reads = 0;
    while let Some(data) = now(&mut stream) {
        assert_eq!(
            data.windows(2).filter(|end| end == b"\n\n").count(),
            1,
            "one chunk at a time"
        );
        reads += 1;
    }
    assert_eq!(reads, count);
}

#[test]
fn the_usage_comes_with_the_receipt() {
    let model = Model {
        include_usage: true,
        ..hello()
    };
    let mut script = Script::of(
        &model.request(),
        [Worker::streams(model.by_tokens(&json!({})), Then::Ends)],
    );
    script.receipt = Receipt {
        request_id: Some("r-1".parse().unwrap()),
        queue: Duration::from_millis(12),
        attempts: 2,
        report: Some(report()),
        ..Receipt::default()
    };
    let data = data(&script.output());
    let usage = data.iter().find(|data| data["usage"].is_object()).unwrap();
    assert_eq!(usage["usage"]["total_tokens"], 8);
    let expected = json!({"request_id": "r-1", "hive": "h-1", "worker": "w-1", "model_revision": "r7", "queue_ms": 12,
        "attempts": 2, "migrations": 0});
    assert_eq!(usage["rbee"], expected);
}

#[test]
fn the_receipt_stands_in_the_headers_but_for_what_is_not_known() {
    let mut headers = http::HeaderMap::new();
    let receipt = Receipt {
        attempts: 1,
        report: Some(report()),
        ..Receipt::default()
    };
    super::super::receipts::put(&mut headers, &receipt);
    let written: Vec<_> = headers
        .iter()
        .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
        .collect();
    let expected = [
        "x-rbee-hive: h-1",
        "x-rbee-worker: w-1",
        "x-rbee-model-revision: r7",
        "x-rbee-queue-ms: 0",
        "x-rbee-attempts: 1",
        "x-rbee-migrations: 0",
    ];
    assert_eq!(written, expected);
    let mut headers = http::HeaderMap::new();
    super::super::receipts::put(&mut headers, &Receipt::default());
    assert_eq!(headers.len(), 3);
}

#[test]
fn a_refusal_of_the_queen_or_of_a_worker_becomes_an_event_for_a_client_that_waits_already() {
    let request = hello().request();
    let output = Script::of(&request, [Worker::IsMissing("no room")]).output();
    assert_eq!(data(&output)[0]["error"]["code"], "no_capacity");
    let refusal = |text: &'static str| Worker::Answers(StatusCode::BAD_REQUEST, vec![text.into()], Then::Ends);
    let output = Script::of(&request, [refusal("{\"error\":\n {\"message\": \"no\"}}")]).output();
    assert_eq!(output, "data: {\"error\":{\"message\":\"no\"}}\n\n");
    let output = Script::of(&request, [refusal("no")]).output();
    assert!(error(&output).contains("400"));
}

#[test]
fn a_stream_that_is_given_up_is_counted_once() {
    let model = hello();
    let begun = model.by_tokens(&json!({})).into_iter().take(2);
    let (mut stream, seen, metrics) = Script::of(&model.request(), [Worker::streams(begun, Then::Breaks)]).stream();
    while now(&mut stream).is_some() {}
    assert_eq!((metrics.broken.get(), metrics.clients_gone.get()), (1, 0));
    assert_eq!(seen.lock().unwrap().blamed, [Lost::Broke("on purpose".to_owned())]);
}
