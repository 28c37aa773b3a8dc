//! What happens to a request's bytes, and to a request whose worker fails.

use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use queen_rbee::Config;
use queen_rbee::fleet::Liveness;
use serde_json::{Value, json};

use crate::support::{Queen, Reader, Worker, chat, chat_stream, plain, with, within};

async fn queen_and_worker() -> (Queen, Worker) {
    let queen = Queen::start(Config::default()).await;
    let worker = Worker::start().await;
    queen.worker_beat(&worker.beat("w")).await;
    (queen, worker)
}

#[tokio::test]
async fn body_status_and_headers_pass_unchanged_and_what_belongs_to_a_connection_does_not() {
    let (queen, mut worker) = queen_and_worker().await;
    let body = "{ \"model\" : \"m\",\n \"x\": \"\\u00e9 é\" }";
    let request = queen
        .http
        .post(format!("{}/v1/completions", queen.url))
        .header("content-type", "application/json")
        .header("authorization", "Bearer the-clients-key")
        .header("x-request-id", "given-by-the-client")
        .header("connection", "x-of-this-connection")
        .header("x-of-this-connection", "1")
        .header("x-of-the-message", "2")
        .body(body);
    let asked = tokio::spawn(request.send());

    let reached = worker.next().await;
    assert_eq!(
        (reached.head.method.as_str(), reached.head.uri.path()),
        ("POST", "/v1/completions")
    );
    assert_eq!(reached.body, body);
    let header = |name: &str| reached.head.headers.get(name).map(|value| value.to_str().unwrap());
    assert_eq!(header("host"), Some(worker.address.to_string().as_str()));
    assert_eq!(header("content-length"), Some(body.len().to_string().as_str()));
    assert_eq!(header("x-request-id"), Some("given-by-the-client"));
    assert_eq!(header("x-of-the-message"), Some("2"));
    assert_eq!(header("authorization"), None);
    assert_eq!(header("x-of-this-connection"), None);
    reached.answer(
        Response::builder()
            .status(418)
            .header("content-type", "text/odd")
            .header("x-from-the-worker", "3")
            .header("keep-alive", "timeout=1")
            .body(Body::from("\u{1}not JSON"))
            .unwrap(),
    );

    let response = within("an answer", asked).await.unwrap().unwrap();
    assert_eq!(response.status(), 418);
    let header = |name: &str| response.headers().get(name).map(|value| value.to_str().unwrap());
    assert_eq!(header("content-type"), Some("text/odd"));
    assert_eq!(header("content-length"), Some("9"));
    assert_eq!(header("x-from-the-worker"), Some("3"));
    assert_eq!(header("keep-alive"), None);
    assert_eq!(header("x-rbee-worker"), Some("w"));
    assert_eq!(header("x-rbee-attempts"), Some("1"));
    assert_eq!(header("x-request-id"), Some("given-by-the-client"));
    assert_eq!(response.text().await.unwrap(), "\u{1}not JSON");
}

#[tokio::test]
async fn each_endpoint_of_a_model_is_relayed_to_the_same_one_of_its_worker() {
    let (queen, mut worker) = queen_and_worker().await;
    for path in ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"] {
        let asked = tokio::spawn(queen.post(path, &json!({"model": "m", "input": [[1, 2], [3]]})).send());
        let reached = worker.next().await;
        assert_eq!(reached.head.uri.path(), path);
        reached.answer(plain(200, "{}"));
        assert_eq!(within("an answer", asked).await.unwrap().unwrap().status(), 200);
    }
}

#[tokio::test]
async fn a_stream_is_relayed_event_by_event_as_it_is_written() {
    let (queen, mut worker) = queen_and_worker().await;
    let asked = queen.ask(&chat_stream());
    let events = worker.next().await.stream();
    events.write("data: 1\n\n").await;
    let mut reader = Reader::new(within("an answer", asked).await.unwrap());
    assert_eq!(reader.next().await.unwrap(), "data: 1\n\n");
    // The next one is not written before the last one has arrived.
    events.write("data: 2\n\ndata: ").await;
    // Half an event could not be taken back, were another worker to finish the stream.
    assert_eq!(reader.next().await.unwrap(), "data: 2\n\n");
    events.write("[DONE]\n\n").await;
    assert_eq!(reader.next().await.unwrap(), "data: [DONE]\n\n");
    drop(events);
    assert_eq!(reader.next().await, None);
}

#[tokio::test]
async fn a_worker_that_refuses_the_connection_is_passed_over_and_suspect_from_then_on() {
    let queen = Queen::start(Config::default()).await;
    let dead = Worker::start().await;
    queen.worker_beat(&dead.beat("dead")).await;
    queen.workers_reached(1).await;
    dead.stop().await;
    let mut worker = Worker::start().await;
    // Far from full, so that the dead one, which has nothing to do, is chosen first.
    let busier = with(
        with(worker.beat("alive"), "/worker/slots", 8),
        "/load",
        json!({"running": 1}),
    );
    queen.worker_beat(&busier).await;

    let asked = queen.ask(&chat());
    worker.next().await.answer(plain(200, "{}"));
    let response = within("an answer", asked).await.unwrap();
    assert_eq!(response.headers()["x-rbee-worker"], "alive");
    assert_eq!(response.headers()["x-rbee-attempts"], "2");
    let dead = queen.worker("dead").await.unwrap();
    assert_eq!((dead.liveness, dead.ready, dead.leases), (Liveness::Suspect, false, 0));
    assert!(dead.reason.unwrap().contains("cannot be reached"));

    let asked = queen.ask(&chat());
    worker.next().await.answer(plain(200, "{}"));
    let response = within("an answer", asked).await.unwrap();
    assert_eq!(
        response.headers()["x-rbee-attempts"],
        "1",
        "the suspect is not asked while another lives"
    );
    assert_eq!(queen.metric("rbee_retries_total{reason=\"unreachable\"}").await, 1.0);
}

#[tokio::test]
async fn a_lone_suspect_is_asked_and_its_answer_refutes_the_suspicion() {
    let (queen, mut worker) = queen_and_worker().await;
    let asked = queen.ask(&chat_stream());
    worker.next().await.stream().cut().await;
    // The first attempt broke before its first byte, and made it suspect. Nobody else is there.
    worker.next().await.answer(plain(200, "{}"));
    let response = within("an answer", asked).await.unwrap();
    assert_eq!(
        (response.status().as_u16(), &response.headers()["x-rbee-attempts"]),
        (200, &"2".parse().unwrap())
    );
    assert_eq!(queen.worker("w").await.unwrap().liveness, Liveness::Online);
}

#[tokio::test]
async fn a_worker_that_fails_is_followed_by_others_and_the_last_failure_is_told() {
    let queen = Queen::start(Config::default()).await;
    let mut workers = [Worker::start().await, Worker::start().await];
    for (worker, id) in workers.iter().zip(["a", "b"]) {
        queen.worker_beat(&worker.beat(id)).await;
    }
    let asked = queen.ask(&chat());
    let [a, b] = &mut workers;
    for _ in 0..2 {
        let reached = tokio::select! { reached = a.next() => reached, reached = b.next() => reached };
        reached.answer(plain(500, r#"{"error": "no luck"}"#));
    }
    let response = within("an answer", asked).await.unwrap();
    assert_eq!(response.status(), 500);
    assert_eq!(response.headers()["x-rbee-attempts"], "2");
    assert_eq!(response.text().await.unwrap(), r#"{"error": "no luck"}"#);
    assert_eq!(
        queen.worker("a").await.unwrap().liveness,
        Liveness::Online,
        "it answers, so it lives"
    );
}

#[tokio::test]
async fn what_the_worker_refuses_is_the_clients_matter() {
    let (queen, mut worker) = queen_and_worker().await;
    for status in [400, 413, 422, 501] {
        let asked = queen.ask(&chat());
        worker.next().await.answer(plain(status, "{}"));
        let response = within("an answer", asked).await.unwrap();
        assert_eq!(response.status(), status);
        assert_eq!(response.headers()["x-rbee-attempts"], "1");
    }
    assert_eq!(queen.worker("w").await.unwrap().liveness, Liveness::Online);
}

#[tokio::test]
async fn a_worker_that_does_not_know_the_queens_token_is_the_operators_matter() {
    let (queen, mut worker) = queen_and_worker().await;
    let asked = queen.ask(&chat());
    worker.next().await.answer(plain(401, "{}"));
    let response = within("an answer", asked).await.unwrap();
    assert_eq!(response.status(), 502, "to the client, 401 would mean its own key");
    assert!(response.text().await.unwrap().contains("--token"));
}

#[tokio::test]
async fn a_worker_without_a_first_byte_in_time_is_given_up() {
    let config = Config {
        first_byte_timeout: Duration::from_millis(100),
        ..Config::default()
    };
    let queen = Queen::start(config).await;
    let mut worker = Worker::start().await;
    queen.worker_beat(&worker.beat("w")).await;
    let asked = queen.ask(&chat_stream());
    worker.next().await.given_up().await;
    let response = within("an answer", asked).await.unwrap();
    assert_eq!(response.status(), 504);
    assert!(response.headers().contains_key("retry-after"));
    let error: Value = response.json().await.unwrap();
    assert_eq!(error["error"]["code"], "upstream_timeout");
    assert_eq!(queen.worker("w").await.unwrap().liveness, Liveness::Suspect);

    queen.worker_beat(&worker.beat("w")).await;
    let asked = queen.ask(&chat_stream());
    let events = worker.next().await.stream();
    // Headers alone are no first byte.
    events.closed().await;
    assert_eq!(within("an answer", asked).await.unwrap().status(), 504);
}

#[tokio::test]
async fn a_stream_that_breaks_ends_with_one_error_event_and_without_done() {
    let (queen, mut worker) = queen_and_worker().await;
    let asked = queen.ask(&chat_stream());
    let events = worker.next().await.stream();
    events.write("data: 1\n\ndata: hal").await;
    let mut reader = Reader::new(within("an answer", asked).await.unwrap());
    assert_eq!(reader.next().await.unwrap(), "data: 1\n\n");
    events.cut().await;
    let last = reader.next().await.unwrap();
    let event = last
        .strip_prefix("data: ")
        .expect("an event of its own")
        .strip_suffix("\n\n")
        .unwrap();
    let error: Value = serde_json::from_str(event).unwrap();
    assert_eq!(error["error"]["code"], "upstream_failed");
    assert_eq!(reader.next().await, None);
    let worker = queen.worker("w").await.unwrap();
    assert_eq!((worker.liveness, worker.leases), (Liveness::Suspect, 0));
    assert_eq!(queen.metric("rbee_broken_answers_total").await, 1.0);
}

#[tokio::test]
async fn a_plain_answer_that_breaks_is_asked_for_again_and_the_client_sees_nothing_of_it() {
    let (queen, mut worker) = queen_and_worker().await;
    let asked = queen.ask(&chat());
    let answer = worker.next().await.write_as("application/json");
    answer.write("{\"half\": ").await;
    answer.cut().await;
    worker.next().await.answer(plain(200, "{}"));
    let response = within("an answer", asked).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.text().await.unwrap(), "{}");
}

#[tokio::test]
async fn a_plain_answer_that_breaks_when_it_was_too_long_to_be_held_back_does_not_look_complete() {
    let (queen, mut worker) = queen_and_worker().await;
    let asked = queen.ask(&chat());
    let answer = worker.next().await.write_as("application/json");
    answer.write(&" ".repeat(2 << 20)).await;
    let response = within("an answer", asked).await.unwrap();
    answer.cut().await;
    Reader::new(response).error().await;
}

#[tokio::test]
async fn when_the_client_leaves_the_worker_is_told_at_once_and_its_slot_is_free() {
    let (queen, mut worker) = queen_and_worker().await;
    // While it streams.
    let asked = queen.ask(&chat_stream());
    let events = worker.next().await.stream();
    events.write("data: 1\n\n").await;
    let response = within("an answer", asked).await.unwrap();
    assert_eq!(queen.worker("w").await.unwrap().leases, 1);
    drop(response);
    events.closed().await;
    queen.metric_is("rbee_clients_gone_total", 1.0).await;
    assert_eq!(queen.worker("w").await.unwrap().leases, 0);
    // Before the first byte.
    let asked = queen.ask(&chat());
    let reached = worker.next().await;
    drop(asked);
    reached.given_up().await;
    queen.metric_is("rbee_clients_gone_total", 2.0).await;
    assert_eq!(queen.worker("w").await.unwrap().leases, 0);
    assert_eq!(queen.metric("rbee_requests_in_flight").await, 0.0);
}

#[tokio::test]
async fn a_lease_lasts_as_long_as_the_answer() {
    let (queen, mut worker) = queen_and_worker().await;
    let asked = queen.ask(&chat_stream());
    let events = worker.next().await.stream();
    events.write("data: 1\n\n").await;
    let mut reader = Reader::new(within("an answer", asked).await.unwrap());
    reader.next().await.unwrap();
    let view = queen.worker("w").await.unwrap();
    assert_eq!(
        (view.leases, view.ready, view.reason.as_deref()),
        (1, false, Some("its one slot is taken"))
    );
    drop(events);
    assert_eq!(reader.next().await, None);
    let view = queen.worker("w").await.unwrap();
    assert_eq!((view.leases, view.ready), (0, true));
    assert_eq!(
        queen.metric("rbee_requests_total{model=\"m\",status=\"200\"}").await,
        1.0
    );
    assert_eq!(queen.metric("rbee_clients_gone_total").await, 0.0);
}

#[tokio::test]
async fn each_model_gets_only_its_own_requests() {
    let queen = Queen::start(Config::default()).await;
    let mut workers = [Worker::start().await, Worker::start().await];
    for (worker, model) in workers.iter().zip(["one", "org/two"]) {
        queen
            .worker_beat(&with(worker.beat(&format!("w-{model}")), "/worker/model_id", model))
            .await;
    }
    for (worker, model) in workers.iter_mut().zip(["one", "org/two"]) {
        for _ in 0..3 {
            let asked = queen.ask(&with(chat(), "/model", model));
            worker.next().await.answer(plain(200, "{}"));
            let response = within("an answer", asked).await.unwrap();
            assert_eq!(response.headers()["x-rbee-worker"], format!("w-{model}").as_str());
        }
    }
}
