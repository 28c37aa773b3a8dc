//! Requests that have no worker yet.

use super::*;

const SHORT: Duration = Duration::from_millis(50);

fn model() -> ModelId {
    ModelId::new("m").unwrap()
}

/// A heartbeat of a worker whose slots are all taken by others.
fn busy(worker: &Worker) -> WorkerHeartbeat {
    let mut beat = worker.beat();
    beat.load.running = beat.worker.slots;
    beat
}

#[tokio::test]
async fn a_model_that_nobody_serves_is_waited_for_as_long_as_a_worker_is_coming() {
    let options = RouterOptions {
        queue_timeout: SHORT,
        ..RouterOptions::default()
    };
    let house = House::new(options, &[]);
    house.expect(loading(None));
    let mut asking = Box::pin(house.ask());
    // Longer than it would wait for one that is busy.
    assert!(tokio::time::timeout(4 * SHORT, &mut asking).await.is_err());
    let first = Demand {
        waiting: 1,
        longest_wait: Duration::ZERO,
    };
    assert_eq!(house.shelf.demands.lock().unwrap()[0].waiting, first.waiting);
    let worker = Worker::start("w", Behaviour::Answers).await;
    house.beat(worker.beat());
    assert_eq!(asking.await.unwrap().worker, "w");
}

#[tokio::test]
async fn where_nothing_is_coming_the_reason_is_told_at_once() {
    let house = House::new(RouterOptions::default(), &[]);
    house.expect(nothing_comes("it needs 9 GB, and gpu-box has 8"));
    let refusal = house.ask().await.unwrap_err();
    assert_eq!(refusal.kind, ErrorKind::NoCapacity);
    assert!(
        refusal.message.contains("it needs 9 GB, and gpu-box has 8"),
        "{refusal}"
    );
    assert_eq!(house.shelf.demands.lock().unwrap().len(), 1, "it was asked for first");
}

#[tokio::test(start_paused = true)]
async fn a_load_that_fails_ends_the_wait_with_its_reason() {
    let house = House::new(RouterOptions::default(), &[]);
    house.expect(loading(None));
    let mut asking = Box::pin(house.ask());
    assert!(tokio::time::timeout(SHORT, &mut asking).await.is_err());
    house.expect(nothing_comes("the file is damaged"));
    let refusal = asking.await.unwrap_err();
    assert!(refusal.message.contains("the file is damaged"), "{refusal}");
}

#[tokio::test(start_paused = true)]
async fn the_wait_for_a_load_has_an_end_too_and_says_when_it_will_be_there() {
    let house = House::new(RouterOptions::default(), &[]);
    house.expect(loading(Some(Duration::from_secs(41))));
    let began = tokio::time::Instant::now();
    let refusal = house.ask().await.unwrap_err();
    assert_eq!(began.elapsed().as_secs(), 600);
    assert_eq!(
        (refusal.kind, refusal.retry_after_s),
        (ErrorKind::ModelLoading, Some(41))
    );
    assert!(refusal.message.contains("download 50 %"), "{refusal}");
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_longer_for_a_busy_worker_than_the_queue_allows() {
    let worker = Worker::start("w", Behaviour::Answers).await;
    let house = House::new(RouterOptions::default(), &[]);
    house.beat(busy(&worker));
    let began = tokio::time::Instant::now();
    let refusal = house.ask().await.unwrap_err();
    assert_eq!(began.elapsed().as_secs(), 30);
    assert_eq!(refusal.kind, ErrorKind::NoCapacity);
    assert!(refusal.message.contains("within 30.0 s: all are busy"), "{refusal}");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_a_stream_is_refused_with_a_status_however_long_it_waited() {
    let worker = Worker::start("w", Behaviour::Answers).await;
    let house = House::new(RouterOptions::default(), &[]);
    house.beat(busy(&worker));
    let body = r#"{"model": "m", "input": "x", "stream": true}"#;
    let answer = house
        .router
        .answer(Endpoint::Embeddings, HeaderMap::new(), body.into(), Arc::default());
    assert_eq!(answer.await.unwrap_err().kind, ErrorKind::NoCapacity);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_waited_in_vain_has_begun_and_is_accounted_for_as_what_it_is() {
    let worker = Worker::start("w", Behaviour::Answers).await;
    let house = House::new(RouterOptions::default(), &[]);
    house.beat(busy(&worker));
    let account = Arc::<Account>::default();
    let (body, asking) = (r#"{"model": "m", "stream": true}"#, Arc::clone(&account));
    let answer = house
        .router
        .answer(Endpoint::ChatCompletions, HeaderMap::new(), body.into(), asking);
    let answer = answer.await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK, "that it waits was said before");
    let text = answer.into_body().collect().await.unwrap().to_bytes();
    assert!(std::str::from_utf8(&text).unwrap().contains("no_capacity"), "{text:?}");
    let told = account.read(|figures| (figures.failure, figures.error_code.clone(), figures.is_complete));
    assert_eq!(told, (Some(Failure::Refused), Some("no_capacity".to_owned()), true));
    let counted = |status| house.router.shared.metrics.requests("m", status).get();
    assert_eq!((counted(503), counted(200)), (1, 0));
}

#[tokio::test]
async fn a_full_line_refuses_and_says_when_to_come_back() {
    let worker = Worker::start("w", Behaviour::Answers).await;
    let options = RouterOptions {
        queue_max: 2,
        ..RouterOptions::default()
    };
    let house = House::new(options, &[&worker]);
    for _ in 0..3 {
        house.ask().await.unwrap();
    }
    house.beat(busy(&worker));
    let mut waiting = [Box::pin(house.ask()), Box::pin(house.ask())];
    for asking in &mut waiting {
        assert!(futures_util::poll!(asking).is_pending());
    }
    assert_eq!(house.router.waiting(&model()), 2);
    let refusal = house.ask().await.unwrap_err();
    assert_eq!(refusal.kind, ErrorKind::RateLimited);
    // The requests so far took no time: the least that can be said. Where nothing was learned, more is.
    assert_eq!(refusal.retry_after_s, Some(1));
}

#[tokio::test]
async fn without_a_line_a_busy_fleet_refuses_at_once() {
    let worker = Worker::start("w", Behaviour::Answers).await;
    let options = RouterOptions {
        queue_max: 0,
        ..RouterOptions::default()
    };
    let house = House::new(options, &[&worker]);
    assert_eq!(house.ask().await.unwrap().status, StatusCode::OK);
    house.beat(busy(&worker));
    let refusal = house.ask().await.unwrap_err();
    assert_eq!(refusal.kind, ErrorKind::NoCapacity);
    assert!(refusal.retry_after_s.is_some());
}

#[tokio::test]
async fn a_stream_that_waits_is_told_its_place_and_then_gets_its_answer() {
    let worker = Worker::start("w", Behaviour::Comments(0, Duration::ZERO)).await;
    let house = House::new(RouterOptions::default(), &[]);
    house.beat(busy(&worker));
    let stream = json!({"model": "m", "stream": true});
    let asking = house.ask_for(&stream, &[]);
    let free = async {
        // Beyond the time in which it could still be refused with a status.
        tokio::time::sleep(crate::STATUS_WINDOW + SHORT).await;
        house.beat(worker.beat());
    };
    let (answered, ()) = tokio::join!(asking, free);
    let text = answered.unwrap().text;
    assert!(text.starts_with(": waiting, place 1 of 1\n"), "{text}");
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
}
