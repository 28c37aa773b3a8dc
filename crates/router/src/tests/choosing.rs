//! Which worker it is.

use worker_contract::Feature;

use super::*;

async fn two() -> (Worker, Worker) {
    tokio::join!(
        Worker::start("a", Behaviour::Answers),
        Worker::start("b", Behaviour::Answers)
    )
}

#[tokio::test]
async fn an_alias_is_replaced_by_the_models_own_name_and_nothing_else_is_touched() {
    let worker = Worker::start("w", Behaviour::Answers).await;
    let house = House::new(RouterOptions::default(), &[&worker]);
    house
        .ask_for(&json!({"x": 1.0, "model": "alias", "y": [2]}), &[])
        .await
        .unwrap();
    assert_eq!(worker.newest().to_string(), r#"{"x":1.0,"model":"m","y":[2]}"#);
    let refusal = house.ask_for(&json!({"model": "unheard-of"}), &[]).await.unwrap_err();
    assert_eq!(
        (refusal.kind, refusal.param.as_deref()),
        (ErrorKind::ModelNotFound, Some("model"))
    );
}

#[tokio::test]
async fn a_client_can_name_worker_hive_or_revision() {
    let (a, b) = two().await;
    let house = House::new(RouterOptions::default(), &[&a]);
    let mut beat = b.beat();
    beat.worker.hive_id = Some("box".parse().unwrap());
    beat.worker.model_revision = Some("r2".to_owned());
    house.beat(beat);
    for pin in [
        ("x-rbee-worker", "b"),
        ("x-rbee-hive", "box"),
        ("x-rbee-revision", "r2"),
    ] {
        for _ in 0..8 {
            assert_eq!(
                house.ask_for(&json!({"model": "m"}), &[pin]).await.unwrap().worker,
                "b",
                "{pin:?}"
            );
        }
    }
    assert_eq!(a.asked(), 0);
    let other = [("x-rbee-hive", "box"), ("x-rbee-worker", "a")];
    let refusal = house.ask_for(&json!({"model": "m"}), &other).await.unwrap_err();
    assert_eq!(refusal.kind, ErrorKind::NoCapacity);
    assert!(refusal.message.contains("x-rbee-worker: a"), "{refusal}");
}

#[tokio::test]
async fn who_waits_for_one_worker_holds_up_nobody_who_takes_another() {
    let (a, b) = two().await;
    let house = House::new(RouterOptions::default(), &[&b]);
    let mut busy = a.beat();
    busy.load.running = busy.worker.slots;
    house.beat(busy);
    let request = json!({"model": "m"});
    let mut pinned = Box::pin(house.ask_for(&request, &[("x-rbee-worker", "a")]));
    while house.router.waiting(&ModelId::new("m").unwrap()) == 0 {
        assert!(futures_util::poll!(&mut pinned).is_pending());
    }
    assert_eq!(house.ask().await.unwrap().worker, "b");
    house.beat(a.beat());
    assert_eq!(pinned.await.unwrap().worker, "a");
}

#[tokio::test]
async fn prompts_that_begin_alike_go_to_one_worker_and_short_ones_to_both() {
    let (a, b) = two().await;
    let house = House::new(RouterOptions::default(), &[&a, &b]);
    let chat = |text: String| json!({"model": "m", "messages": [{"role": "user", "content": text}]});
    let system = "You are a bee. ".repeat(100);
    for turn in 0..20 {
        house
            .ask_for(&chat(format!("{system} Turn {turn}.")), &[])
            .await
            .unwrap();
    }
    assert_eq!(a.asked().min(b.asked()), 0, "{} and {}", a.asked(), b.asked());
    for turn in 0..40 {
        house.ask_for(&chat(format!("Turn {turn}")), &[]).await.unwrap();
    }
    assert!(a.asked().min(b.asked()) > 0);
}

#[tokio::test]
async fn a_worker_that_is_held_gets_nothing_until_it_is_let_go() {
    let worker = Worker::start("w", Behaviour::Answers).await;
    let house = House::new(RouterOptions::default(), &[&worker]);
    let id = worker.beat().worker.id;
    assert!(house.router.idle_since(&id).is_some());
    let hold = house.router.hold(&id).expect("it has no request");
    assert!(house.router.hold(&id).is_none(), "one is enough");
    let mut asking = Box::pin(house.ask());
    while house.router.waiting(&ModelId::new("m").unwrap()) == 0 {
        assert!(futures_util::poll!(&mut asking).is_pending());
    }
    assert_eq!(worker.asked(), 0);
    drop(hold);
    assert_eq!(asking.await.unwrap().worker, "w");
    // One that has a request cannot be held.
    worker.behave(Behaviour::Hangs);
    let mut asking = Box::pin(house.ask());
    while house.router.idle_since(&id).is_some() {
        assert!(futures_util::poll!(&mut asking).is_pending());
    }
    assert!(house.router.hold(&id).is_none());
}

#[tokio::test]
async fn tokens_are_counted_by_a_worker_that_can_however_busy_it_is() {
    let (a, b) = two().await;
    let house = House::new(RouterOptions::default(), &[&a]);
    let count = || {
        let body = Bytes::from_static(br#"{"model": "m", "messages": []}"#);
        house
            .router
            .answer(Endpoint::CountTokens, HeaderMap::new(), body, Arc::default())
    };
    let refusal = count().await.map(drop).unwrap_err();
    assert!(refusal.message.contains("count tokens"), "{refusal}");
    let mut beat = b.beat();
    beat.worker.features = vec![Feature::CountTokens];
    beat.load.running = beat.worker.slots;
    house.beat(beat);
    assert_eq!(count().await.unwrap().status(), StatusCode::OK);
    assert_eq!((a.asked(), b.asked()), (0, 1));
}

#[tokio::test]
async fn what_queens_ask_of_workers_no_client_may_ask_for() {
    let worker = Worker::start("w", Behaviour::Answers).await;
    let house = House::new(RouterOptions::default(), &[&worker]);
    let resume = json!({"model": "m", "resume": {"id": "x", "created": 1, "tokens": [1]}});
    let refusal = house.ask_for(&resume, &[]).await.unwrap_err();
    assert_eq!(
        (refusal.kind, refusal.param.as_deref()),
        (ErrorKind::InvalidRequest, Some("resume"))
    );
    assert_eq!(worker.asked(), 0);
}
