//! What is counted of streams.

use prometheus_client::encoding::text::encode;

use super::*;
use crate::account::Failure;
use crate::traffic::{Load, Point, TrafficView};

fn view(metrics: &Metrics) -> TrafficView {
    let load = Load {
        inflight: 0,
        waiting: 0,
    };
    metrics.traffic.view(1_763_800_000, None, load)
}

/// What a script brought about, read to its end.
fn point(script: Script) -> Point {
    let (mut stream, _, metrics) = script.stream();
    while now(&mut stream).is_some() {}
    drop(stream);
    view(&metrics).points[0].clone()
}

fn streams(model: &Model, events: impl Fn(&Model) -> Vec<Bytes>) -> Script {
    Script::of(&model.request(), [Worker::streams(events(model), Then::Ends)])
}

#[tokio::test(start_paused = true)]
async fn a_stream_tells_when_its_tokens_came() {
    let model = Model::new(&["a", "b", "c", "d", "e", "f"]);
    let mut registry = prometheus_client::registry::Registry::default();
    let script = streams(&model, |model| model.by_tokens(&json!({})));
    let (mut stream, _, metrics) = script.stream_counted_in(&mut registry);
    // The role is no token.
    assert!(now(&mut stream).is_some());
    let mut pause = Duration::from_millis(300);
    // Six pieces and the end, which is a token, too.
    for _ in 0..7 {
        tokio::time::advance(pause).await;
        assert!(now(&mut stream).is_some());
        pause = Duration::from_millis(100);
    }
    while now(&mut stream).is_some() {}

    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    for line in [
        "time_to_first_token_seconds_sum{model=\"m\"} 0.3",
        "time_to_first_token_seconds_count{model=\"m\"} 1",
        "inter_token_latency_seconds_sum{model=\"m\"} 0.6",
        "inter_token_latency_seconds_count{model=\"m\"} 6",
        "request_duration_seconds_sum{model=\"m\"} 0.9",
        "output_tokens_total{model=\"m\"} 7",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
    }
    let view = view(&metrics);
    let point = &view.points[0];
    assert_eq!((point.requests, point.output_tokens), (1, 7));
    assert!((270.0..330.0).contains(&point.ttft_ms.unwrap().p50), "{point:?}");
    assert!((9.0..11.0).contains(&point.tokens_per_s.unwrap().p50), "{point:?}");
    let of_model = &view.models[0];
    assert_eq!((&*of_model.model, of_model.output_tokens), ("m", 7));
}

#[test]
fn tokens_that_a_worker_does_not_name_are_counted_by_its_usage_or_by_its_events() {
    let mut model = Model::new(&["a", "b", "c"]);
    assert_eq!(
        point(streams(&model, |model| model.by_text(&model.request()))).output_tokens,
        3
    );
    model.include_usage = true;
    assert_eq!(
        point(streams(&model, |model| model.by_text(&model.request()))).output_tokens,
        4
    );
}

#[test]
fn tokens_of_an_answer_that_two_workers_made_are_counted_once() {
    let model = Model::new(&["a", "b", "c"]);
    let begun = model.by_tokens(&json!({})).into_iter().take(3);
    let rest = model.by_tokens(&json!({"resume": {"id": "c-1", "tokens": [0, 1]}}));
    let script = Script::of(
        &model.request(),
        [Worker::streams(begun, Then::Breaks), Worker::streams(rest, Then::Ends)],
    );
    let point = point(script);
    assert_eq!((point.output_tokens, point.migrations, point.failed), (4, 1, 0));
}

#[test]
fn how_requests_ended_is_told_apart() {
    let model = Model::new(&["a"]);
    let ends = |script: Script| {
        let account = Arc::clone(&script.account);
        let point = point(script);
        assert_eq!(point.requests, 1);
        let told = account.read(|figures| (figures.failure, figures.error_code.clone()));
        ([point.failed, point.refused, point.wrong, point.clients_gone], told)
    };
    let request = model.request();
    let answers = |status, then| Script::of(&request, [Worker::Answers(status, vec!["{}".into()], then)]);
    assert_eq!(
        ends(streams(&model, |model| model.by_tokens(&json!({})))),
        ([0, 0, 0, 0], (None, None))
    );
    let refused = |code: &str| (Some(Failure::Refused), Some(code.to_owned()));
    let is_too_long = r#"{"error": {"message": "too long", "code": "context_length_exceeded"}}"#;
    assert_eq!(
        ends(Script::of(
            &request,
            [Worker::Answers(
                StatusCode::BAD_REQUEST,
                vec![is_too_long.into()],
                Then::Ends
            )]
        )),
        ([0, 0, 1, 0], refused("context_length_exceeded"))
    );
    assert_eq!(
        ends(answers(StatusCode::BAD_GATEWAY, Then::Ends)),
        ([1, 0, 0, 0], refused("upstream_failed"))
    );
    assert_eq!(
        ends(Script::of(&request, [Worker::IsMissing("no room")])),
        ([0, 1, 0, 0], refused("no_capacity"))
    );
    let begun = model.by_tokens(&json!({})).into_iter().take(2);
    let broken = Script::of(&request, [Worker::streams(begun, Then::Breaks)]);
    let told = (Some(Failure::Broken), Some("upstream_failed".to_owned()));
    assert_eq!(ends(broken), ([1, 0, 0, 0], told));

    let (mut stream, _, metrics) = streams(&model, |model| model.by_tokens(&json!({}))).stream();
    assert!(now(&mut stream).is_some());
    drop(stream);
    let point = &view(&metrics).points[0];
    assert_eq!((point.requests, point.failed, point.clients_gone), (1, 0, 1));
}
