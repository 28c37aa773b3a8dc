//! The client against a real server on the loopback.

use std::sync::Arc;

use axum::{
    Json, Router,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::post,
};
use shared_contract::{ErrorBody, ErrorKind, HeartbeatPayload as _};
use tokio::{net::TcpListener, sync::mpsc};

use super::probe::{Probe, ProbeSource, ack};
use crate::{ClientState, Error, HeartbeatClient, HeartbeatHandle, Options, Sequence, Token};

fn http() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().build().unwrap()
}

/// A queen that gives each beat the same answer; returns her URL.
async fn queen(answer: impl Fn() -> Response + Clone + Send + Sync + 'static) -> String {
    let app = Router::new().route(Probe::PATH, post(move || std::future::ready(answer())));
    serve(app).await
}

async fn serve(app: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(axum::serve(listener, app).into_future());
    url
}

fn start(options: Options) -> HeartbeatHandle {
    HeartbeatClient::<Probe>::new(options, http(), ProbeSource::new())
        .unwrap()
        .start()
}

fn sequence(incarnation: u64) -> Arc<Sequence> {
    Arc::new(Sequence::new(incarnation))
}

async fn first_error(url: String) -> Arc<Error> {
    let client = start(Options::new(url, sequence(1)));
    loop {
        if let Some(error) = client.last_error() {
            return error;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_beat_carries_its_stamp_and_the_token_and_its_acknowledgement_discovers() {
    let (sender, mut beats) = mpsc::channel(10);
    let receive = move |headers: HeaderMap, Json(probe): Json<Probe>| async move {
        sender.send((headers, probe)).await.unwrap();
        Json(ack())
    };
    let url = serve(Router::new().route(Probe::PATH, post(receive))).await;
    let client = start(Options {
        token: Some(Token::new("s3cret")),
        ..Options::new(url, sequence(9))
    });
    let (headers, probe) = beats.recv().await.unwrap();
    assert_eq!(headers["authorization"], "Bearer s3cret");
    assert_eq!(headers["content-type"], "application/json");
    assert_eq!((probe.incarnation, probe.seq, probe.full), (9, 1, true));
    assert!(!probe.timestamp.is_empty());
    client
        .watch()
        .wait_for(|state| *state == ClientState::Discovered)
        .await
        .unwrap();
    client.goodbye().await;
    assert_eq!(beats.recv().await.unwrap().1.seq, 2);
}

#[tokio::test]
async fn a_refusal_is_shown_with_the_queens_own_words() {
    let unauthorized = || {
        let error = ErrorKind::Unauthorized.object("the token is not the queen's", None);
        (StatusCode::UNAUTHORIZED, Json(ErrorBody { error })).into_response()
    };
    let error = first_error(queen(unauthorized).await).await;
    assert_eq!(
        error.to_string(),
        "the queen answered 401: the token is not the queen's"
    );
}

#[tokio::test]
async fn a_server_that_is_no_queen_is_told_apart_from_one_that_is_away() {
    let error = first_error(queen(|| "hello".into_response()).await).await;
    assert!(matches!(*error, Error::BadAnswer(_)), "{error}");
    let error = first_error(serve(Router::new()).await).await;
    assert_eq!(error.to_string(), "the queen answered 404: Not Found");
}

#[tokio::test]
async fn an_endless_answer_is_cut_off() {
    let error = first_error(queen(|| "x".repeat(1 << 20).into_response()).await).await;
    assert_eq!(*error, Error::BadAnswer("it is longer than 65536 bytes".to_owned()));
}

#[tokio::test]
async fn a_refused_connection_is_named_as_such() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let error = first_error(url).await.to_string();
    assert!(
        error.contains("cannot be reached") && error.to_lowercase().contains("refused"),
        "{error}"
    );
}

#[test]
fn a_client_for_an_unusable_url_is_refused_and_debug_output_keeps_the_token() {
    let options = Options {
        token: Some(Token::new("s3cret")),
        ..Options::new("queen", sequence(1))
    };
    let shown = format!("{options:?}");
    assert!(shown.contains("[redacted]") && !shown.contains("s3cret"), "{shown}");
    let client = HeartbeatClient::<Probe>::new(options, http(), ProbeSource::new());
    assert!(matches!(client.err(), Some(Error::QueenUrl { .. })));
}
