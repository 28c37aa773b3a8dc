//! A served router, as its clients see it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::routing::{get, post};
use daemon::serve::serve;
use daemon::{ServeOptions, Shutdown};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

struct Server {
    url: String,
    shutdown: Shutdown,
    task: JoinHandle<()>,
}

async fn start(router: Router, options: ServeOptions) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let shutdown = Shutdown::new();
    let stop = shutdown.clone();
    let task = tokio::spawn(async move { serve(listener, router, &stop, options).await });
    Server { url, shutdown, task }
}

async fn error_of(response: reqwest::Response) -> (u16, Value) {
    assert!(response.headers().contains_key("x-request-id"));
    let status = response.status().as_u16();
    let body: Value = response.json().await.unwrap();
    for key in ["message", "type", "param", "code"] {
        assert!(body["error"].get(key).is_some(), "{key} is missing in {body}");
    }
    (status, body["error"].clone())
}

#[tokio::test]
async fn what_does_not_exist_and_what_panics_get_the_one_error_body() {
    async fn panics() {
        panic!("on purpose");
    }
    let server = start(Router::new().route("/panic", get(panics)), ServeOptions::default()).await;
    let client = daemon::client::new().unwrap();
    let (status, error) = error_of(client.get(format!("{}/nothing", server.url)).send().await.unwrap()).await;
    assert_eq!((status, error["code"].as_str()), (404, Some("not_found")));
    let (status, error) = error_of(client.post(format!("{}/panic", server.url)).send().await.unwrap()).await;
    assert_eq!((status, error["code"].as_str()), (405, Some("method_not_allowed")));
    let (status, error) = error_of(client.get(format!("{}/panic", server.url)).send().await.unwrap()).await;
    assert_eq!((status, error["code"].as_str()), (500, Some("internal_error")));
    assert!(
        !error["message"].as_str().unwrap().contains("on purpose"),
        "the inside stays inside"
    );
}

#[tokio::test]
async fn a_request_id_of_the_client_is_kept() {
    let server = start(Router::new().route("/", get(async || "")), ServeOptions::default()).await;
    let client = daemon::client::new().unwrap();
    let response = client
        .get(&server.url)
        .header("x-request-id", "mine")
        .send()
        .await
        .unwrap();
    assert_eq!(response.headers()["x-request-id"], "mine");
}

#[tokio::test]
async fn the_client_goes_where_it_is_told_to_go_by_its_caller_and_not_by_an_answer() {
    let is_asked = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&is_asked);
    let elsewhere = get(async move || asked.store(true, Ordering::SeqCst));
    let elsewhere = start(Router::new().route("/", elsewhere), ServeOptions::default()).await;
    let location = format!("{}/", elsewhere.url);
    let moved = get(async move || (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, location)]));
    let server = start(Router::new().route("/", moved), ServeOptions::default()).await;
    let request = daemon::client::new().unwrap().get(&server.url).bearer_auth("a-secret");
    assert_eq!(request.send().await.unwrap().status(), 307);
    assert!(!is_asked.load(Ordering::SeqCst));
}

#[tokio::test]
async fn a_running_request_ends_before_the_server_does() {
    let (started, has_started) = oneshot::channel();
    let (finish, finished) = oneshot::channel::<()>();
    let once = std::sync::Mutex::new(Some((started, finished)));
    let handler = async move || {
        let (started, finished) = once.lock().unwrap().take().unwrap();
        started.send(()).unwrap();
        finished.await.unwrap();
        "whole"
    };
    let handler = Arc::new(handler);
    let route = get(move || async move { handler().await });
    let server = start(Router::new().route("/", route), ServeOptions::default()).await;
    let url = server.url.clone();
    let request = tokio::spawn(async move { reqwest_get(&url).await });
    has_started.await.unwrap();
    server.shutdown.request();
    tokio::task::yield_now().await;
    finish.send(()).unwrap();
    assert_eq!(request.await.unwrap(), "whole");
    server.task.await.unwrap();
}

async fn reqwest_get(url: &str) -> String {
    daemon::client::new()
        .unwrap()
        .get(url)
        .send()
        .await
        .unwrap()
        .text()
        .await
        .unwrap()
}

#[tokio::test]
async fn a_request_that_outlasts_the_grace_is_cut() {
    let options = ServeOptions {
        grace: Duration::from_millis(10),
        ..ServeOptions::default()
    };
    let (started, mut has_started) = tokio::sync::mpsc::channel::<()>(1);
    let route = get(move || async move {
        started.send(()).await.unwrap();
        std::future::pending::<()>().await;
    });
    let server = start(Router::new().route("/", route), options).await;
    let request = tokio::spawn(daemon::client::new().unwrap().get(&server.url).send());
    has_started.recv().await.unwrap();
    server.shutdown.request();
    server.task.await.unwrap();
    assert!(request.await.unwrap().is_err());
}

#[tokio::test]
async fn a_header_that_does_not_come_closes_the_connection() {
    let options = ServeOptions {
        header_timeout: Duration::from_millis(20),
        ..ServeOptions::default()
    };
    let server = start(Router::new().route("/", post(async || "")), options).await;
    let mut stream = TcpStream::connect(server.url.trim_start_matches("http://"))
        .await
        .unwrap();
    stream.write_all(b"POST / HTTP/1.1\r\nhost: x\r\nx-slow").await.unwrap();
    let mut rest = Vec::new();
    // Ends only because the server closes; a test that hangs here has failed.
    stream.read_to_end(&mut rest).await.unwrap();
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_for_one_to_end() {
    let options = ServeOptions {
        max_connections: 1,
        ..ServeOptions::default()
    };
    let server = start(Router::new().route("/", get(async || "served")), options).await;
    let first = TcpStream::connect(server.url.trim_start_matches("http://"))
        .await
        .unwrap();
    let url = server.url.clone();
    let second = tokio::spawn(async move { reqwest_get(&url).await });
    drop(first);
    assert_eq!(second.await.unwrap(), "served");
}
