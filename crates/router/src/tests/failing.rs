//! Workers that do not answer, and those that answer again.

use super::*;

/// Longer than an answer takes, however slow the machine is, as it decides what becomes of the others.
const IMPATIENT: Duration = Duration::from_secs(1);
/// Long enough for a probe and its answer, however slow the machine is.
const A_WHILE: Duration = Duration::from_secs(60);

fn impatient() -> RouterOptions {
    RouterOptions {
        first_byte_timeout: IMPATIENT,
        answer_timeout: IMPATIENT,
        ..RouterOptions::default()
    }
}

#[tokio::test]
async fn a_hung_worker_costs_time_to_one_request_and_none_fails() {
    let (hung, well) = tokio::join!(
        Worker::start("hung", Behaviour::Hangs),
        Worker::start("well", Behaviour::Answers)
    );
    let house = House::new(impatient(), &[&hung, &well]);
    for _ in 0..40 {
        let answered = house.ask().await.unwrap();
        assert_eq!((answered.status, &*answered.worker), (StatusCode::OK, "well"));
        // Its heartbeats are fine.
        house.beat(hung.beat());
    }
    assert_eq!(hung.asked(), 1);
}

#[tokio::test]
async fn a_worker_that_answers_again_is_found_out_without_a_clients_request() {
    let (hung, well) = tokio::join!(
        Worker::start("hung", Behaviour::Hangs),
        Worker::start("well", Behaviour::Answers)
    );
    let house = House::new(impatient(), &[&hung, &well]);
    while hung.asked() == 0 {
        house.ask().await.unwrap();
    }
    hung.behave(Behaviour::Answers);
    let is_back = async {
        while house.ask().await.unwrap().worker != "hung" {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(A_WHILE, is_back).await.expect("it answers again");
    assert_eq!(hung.asked(), 2, "the one that hung, and the one that was answered");
}

#[tokio::test]
async fn a_worker_that_fails_fast_gets_no_traffic_by_that() {
    let (broken, well) = tokio::join!(
        Worker::start("broken", Behaviour::Refuses(StatusCode::INTERNAL_SERVER_ERROR)),
        Worker::start("well", Behaviour::Answers)
    );
    let house = House::new(RouterOptions::default(), &[&broken, &well]);
    for _ in 0..40 {
        assert_eq!(house.ask().await.unwrap().status, StatusCode::OK);
    }
    assert_eq!(broken.asked(), 1);
}

#[tokio::test]
async fn what_a_client_does_wrong_is_not_laid_to_the_worker() {
    for status in [400, 404, 422, 429, 503] {
        let status = StatusCode::from_u16(status).unwrap();
        let worker = Worker::start("w", Behaviour::Refuses(status)).await;
        let house = House::new(
            RouterOptions {
                queue_timeout: IMPATIENT,
                ..impatient()
            },
            &[&worker],
        );
        let _ = house.ask().await;
        assert_eq!(worker.asked(), 1, "{status}");
        let line = house.router.line(&ModelId::new("m").unwrap()).unwrap();
        let report = house.workers.get(&worker.beat().worker.id).unwrap().report();
        assert!(!line.is_broken(&report.item.worker.id), "{status}");
        assert!(report.suspicion.is_none(), "{status}");
    }
}

#[tokio::test]
async fn the_refusal_of_the_last_worker_is_passed_on_as_it_is() {
    let teapot = StatusCode::IM_A_TEAPOT;
    let worker = Worker::start("w", Behaviour::Refuses(teapot)).await;
    let house = House::new(RouterOptions::default(), &[&worker]);
    let answered = house.ask().await.unwrap();
    assert_eq!((answered.status, answered.attempts), (teapot, 1));
    assert_eq!(answered.text, r#"{"error": {"message": "on purpose"}}"#);
}

#[tokio::test]
async fn an_attempt_counts_as_retried_only_if_another_one_followed_it() {
    let broken = Behaviour::Refuses(StatusCode::INTERNAL_SERVER_ERROR);
    let (first, second) = tokio::join!(Worker::start("a", broken), Worker::start("b", broken));
    let retries = |house: &House| {
        let points = house.router.traffic(1_763_800_000, None).points;
        points.iter().map(|point| point.retries).sum::<u64>()
    };
    let lone = House::new(RouterOptions::default(), &[&first]);
    assert_eq!(lone.ask().await.unwrap().status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(retries(&lone), 0);
    let pair = House::new(RouterOptions::default(), &[&first, &second]);
    assert_eq!(pair.ask().await.unwrap().attempts, 2);
    assert_eq!(retries(&pair), 1);
}

#[tokio::test]
async fn a_lone_worker_that_failed_is_asked_as_there_is_nobody_else() {
    let worker = Worker::start("w", Behaviour::Hangs).await;
    let house = House::new(impatient(), &[&worker]);
    let refusal = house.ask().await.unwrap_err();
    assert_eq!(refusal.kind, ErrorKind::UpstreamTimeout, "{refusal}");
    worker.behave(Behaviour::Answers);
    assert_eq!(house.ask().await.unwrap().status, StatusCode::OK);
}

#[tokio::test]
async fn an_answer_that_breaks_off_in_the_middle_is_given_by_another_worker() {
    let (broken, well) = tokio::join!(
        Worker::start("broken", Behaviour::BreaksOff(10)),
        Worker::start("well", Behaviour::Answers)
    );
    let house = House::new(RouterOptions::default(), &[&broken, &well]);
    for _ in 0..20 {
        let answered = house.ask().await.unwrap();
        assert_eq!((&*answered.worker, &*answered.text), ("well", r#"{"answer": 1}"#));
    }
    assert!(broken.asked() > 0);
}

#[tokio::test]
async fn an_answer_that_nobody_can_complete_is_an_error() {
    let worker = Worker::start("w", Behaviour::BreaksOff(10)).await;
    let options = RouterOptions {
        queue_timeout: IMPATIENT,
        ..RouterOptions::default()
    };
    let house = House::new(options, &[&worker]);
    let refusal = house.ask().await.unwrap_err();
    assert!(refusal.message.contains("the connection broke"), "{refusal}");
}

#[tokio::test]
async fn an_answer_too_long_to_be_held_back_that_breaks_off_is_cut_and_does_not_look_whole() {
    let worker = Worker::start("w", Behaviour::BreaksOff(2 << 20)).await;
    let house = House::new(RouterOptions::default(), &[&worker]);
    let asking = house.router.answer(
        Endpoint::ChatCompletions,
        HeaderMap::new(),
        r#"{"model": "m"}"#.into(),
        Arc::default(),
    );
    let response = asking.await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert!(response.into_body().collect().await.is_err());
}

#[tokio::test]
async fn at_most_three_workers_are_tried() {
    let hung = Behaviour::Hangs;
    let (a, b) = tokio::join!(Worker::start("a", hung), Worker::start("b", hung));
    let (c, d) = tokio::join!(Worker::start("c", hung), Worker::start("d", hung));
    let house = House::new(impatient(), &[&a, &b, &c, &d]);
    let refusal = house.ask().await.unwrap_err();
    assert_eq!(refusal.kind, ErrorKind::UpstreamTimeout);
    assert_eq!(a.asked() + b.asked() + c.asked() + d.asked(), 3);
}

#[tokio::test]
async fn comment_lines_are_signs_of_life_and_a_pause_without_them_is_not() {
    let worker = Worker::start("w", Behaviour::Comments(6, IMPATIENT / 4)).await;
    let options = RouterOptions {
        answer_timeout: A_WHILE,
        ..impatient()
    };
    let house = House::new(options, &[&worker]);
    let stream = json!({"model": "m", "stream": true});
    let answered = house.ask_for(&stream, &[]).await.unwrap();
    assert_eq!(answered.status, StatusCode::OK);
    assert!(answered.text.ends_with("data: [DONE]\n\n"), "{answered:?}");
    assert_eq!(worker.asked(), 1);
    worker.behave(Behaviour::Comments(1, A_WHILE));
    let refusal = house.ask_for(&stream, &[]).await.unwrap_err();
    assert_eq!(refusal.kind, ErrorKind::UpstreamTimeout);
}

#[tokio::test]
async fn the_clients_deadline_ends_the_wait_for_an_answer() {
    let worker = Worker::start("w", Behaviour::Hangs).await;
    let house = House::new(RouterOptions::default(), &[&worker]);
    let request = json!({"model": "m"});
    let refusal = house
        .ask_for(&request, &[("x-request-timeout-ms", "50")])
        .await
        .unwrap_err();
    assert_eq!(refusal.kind, ErrorKind::UpstreamTimeout);
    assert!(refusal.message.contains("x-request-timeout-ms"), "{refusal}");
    for wrong in ["0", "-1", "soon", ""] {
        let refusal = house
            .ask_for(&request, &[("x-request-timeout-ms", wrong)])
            .await
            .unwrap_err();
        assert_eq!(refusal.kind, ErrorKind::InvalidRequest);
        assert_eq!(refusal.param.as_deref(), Some("x-request-timeout-ms"));
    }
    assert_eq!(worker.asked(), 1);
}

#[tokio::test]
async fn a_worker_that_hangs_under_load_keeps_what_it_has_and_draws_no_more() {
    const CLIENTS: usize = 16;
    let (hung, well) = tokio::join!(
        Worker::start("hung", Behaviour::Answers),
        Worker::start("well", Behaviour::Answers)
    );
    let house = Arc::new(House::new(RouterOptions::default(), &[]));
    for worker in [&hung, &well] {
        let mut beat = worker.beat();
        beat.worker.slots = 4 * CLIENTS as u32;
        house.beat(beat);
    }
    let (told, mut answered) = tokio::sync::mpsc::channel(1);
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..CLIENTS {
        let (house, told) = (Arc::clone(&house), told.clone());
        clients.spawn(async move { while house.ask().await.is_ok() && told.send(()).await.is_ok() {} });
    }
    let mut answers = async |count| {
        for _ in 0..count {
            let answer = tokio::time::timeout(A_WHILE, answered.recv()).await;
            answer.expect("some clients have the other worker");
        }
    };
    answers(200).await;
    hung.behave(Behaviour::Hangs);
    let before = hung.asked();
    answers(1_000).await;
    let lost = hung.asked() - before;
    assert!(lost < CLIENTS * 3 / 4, "{lost} of {CLIENTS}");
}
