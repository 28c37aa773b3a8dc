//! Queens that a worker is told of while it runs.

use serde_json::{Value, json};
use shared_contract::DropReason;
use worker_contract::WorkerStatus;

use super::life::Queen;
use super::support::{Script, TestWorker, error};

const QUEENS: &str = "/v1/queens";

fn notice(url: &str) -> Value {
    json!({"queen_url": url})
}

/// Nobody listens there.
fn silent(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

#[tokio::test]
async fn a_queen_that_it_is_told_of_hears_at_once_and_to_the_end_as_those_of_the_settings_do() {
    let (mut first, mut second) = (Queen::start().await, Queen::start().await);
    let args = ["--queen-url", &first.url, "--incarnation", "7"];
    let worker = TestWorker::start(Script::new("Hi"), &args).await;
    assert_eq!(first.hears(WorkerStatus::Ready).await.worker.incarnation, 7);

    let told = worker.answer(QUEENS, &notice(&second.url)).await;
    assert_eq!(told, json!({"queens": [first.url, second.url]}));
    let beat = second.hears(WorkerStatus::Ready).await;
    assert_eq!(beat.worker.incarnation, 7);

    worker.shutdown.request();
    first.hears(WorkerStatus::Stopped).await;
    second.hears(WorkerStatus::Stopped).await;
    worker.ended().await.unwrap();
}

#[tokio::test]
async fn a_queen_that_it_knows_gets_a_beat_and_no_second_sender() {
    let mut queen = Queen::start().await;
    let worker = TestWorker::start(Script::new("Hi"), &[]).await;
    worker.answer(QUEENS, &notice(&queen.url)).await;
    let before = queen.hears(WorkerStatus::Ready).await.seq;
    let again = worker.answer(QUEENS, &notice(&format!("{}/", queen.url))).await;
    assert_eq!(again, json!({"queens": [queen.url]}));
    assert_eq!(queen.hears(WorkerStatus::Ready).await.seq, before + 1);
}

#[tokio::test]
async fn a_queen_that_it_is_told_of_by_another_address_than_that_of_the_settings_has_one_sender() {
    let mut queen = Queen::start().await;
    let named = queen.url.replace("127.0.0.1", "localhost");
    let worker = TestWorker::start(Script::new("Hi"), &["--queen-url", &named]).await;
    let (by_name, by_address) = (&named["http://".len()..], &queen.url.clone()["http://".len()..]);
    let ready = WorkerStatus::Ready;

    let mut heard = vec![queen.hears_by(ready).await];
    worker.answer(QUEENS, &notice(&queen.url)).await;
    // The other way is tried once; then the queen shall call back where the beats will come from.
    heard.extend([queen.hears_by(ready).await, queen.hears_by(ready).await]);
    let told = worker.answer(QUEENS, &notice(&queen.url)).await;
    assert_eq!(told, json!({"queens": [named]}));
    heard.push(queen.hears_by(ready).await);
    worker.shutdown.request();
    heard.push(queen.hears_by(WorkerStatus::Stopped).await);

    let ways: Vec<&str> = heard.iter().map(|(way, _)| way.as_str()).collect();
    assert_eq!(ways, [by_name, by_address, by_name, by_name, by_name]);
    // A queen drops, or takes for those of another process, only beats that are not newer than the last.
    let orders: Vec<_> = heard
        .iter()
        .map(|(_, beat)| (beat.worker.incarnation, beat.seq))
        .collect();
    assert!(orders.windows(2).all(|pair| pair[0] < pair[1]), "{orders:?}");
    worker.ended().await.unwrap();
}

#[tokio::test]
async fn what_is_no_address_of_a_queen_is_refused_by_the_name_of_the_field() {
    let worker = TestWorker::start(Script::new("Hi"), &[]).await;
    for body in [
        notice("queen"),
        notice("http://user:secret@queen"),
        json!({"queen_url": 7}),
        json!({}),
    ] {
        let (status, error) = worker.refusal(QUEENS, &body).await;
        assert_eq!((status, &error["param"]), (400, &json!("queen_url")), "{body}");
        assert!(!error["message"].as_str().unwrap().contains("secret"), "{error}");
    }
}

#[tokio::test]
async fn only_who_has_the_token_may_tell_it_of_a_queen() {
    let worker = TestWorker::start(Script::new("Hi"), &["--token", "a-long-secret"]).await;
    let url = format!("{}{QUEENS}", worker.base);
    let post = |token: Option<&str>| {
        let request = worker.http.post(&url).json(&notice(&silent(1)));
        match token {
            Some(token) => request.bearer_auth(token).send(),
            None => request.send(),
        }
    };
    assert_eq!(error(post(None).await.unwrap()).await.0, 401);
    assert_eq!(error(post(Some("another-secret")).await.unwrap()).await.0, 401);
    assert_eq!(post(Some("a-long-secret")).await.unwrap().status(), 200);
}

#[tokio::test]
async fn one_queen_too_many_replaces_a_silent_one_but_never_one_that_the_operator_named() {
    let named: Vec<_> = (1..=8).map(silent).collect();
    let args = ["--queen-url", &named.join(",")];
    let own = TestWorker::start(Script::new("Hi"), &args).await;
    let (status, error) = own.refusal(QUEENS, &notice(&silent(9))).await;
    assert_eq!((status, &error["param"]), (409, &json!("queen_url")));
    assert_eq!(
        own.answer(QUEENS, &notice(&named[7])).await["queens"],
        json!(named),
        "there is room for one that is known"
    );

    // A hive's worker has its queens from the hive, which knows better.
    let of_a_hive = TestWorker::start(Script::new("Hi"), &[&args[..], &["--hive-id", "h-1"]].concat()).await;
    let told = of_a_hive.answer(QUEENS, &notice(&silent(9))).await;
    let kept: Vec<_> = (2..=9).map(silent).collect();
    assert_eq!(told["queens"], json!(kept));
}

#[tokio::test]
async fn health_says_that_a_queen_drops_the_beats_and_what_to_do() {
    let queen = Queen::who_drops(Some(DropReason::Conflict)).await;
    let worker = TestWorker::start(Script::new("Hi"), &["--queen-url", &queen.url]).await;
    let health = worker.until_health(|health| !health["queen_problem"].is_null()).await;
    let problem = health["queen_problem"].as_str().unwrap();
    assert!(
        problem.contains("another live process has the same id") && problem.contains("its own id"),
        "{problem}"
    );
    assert_eq!(health["ready"], true, "it can serve all the same");
}
