//! Requests to servers on bare sockets.

use std::net::{IpAddr, Ipv4Addr};

use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

async fn listen() -> (TcpListener, Address) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let address = Address::resolve(None, IpAddr::V4(Ipv4Addr::LOCALHOST), port).unwrap();
    (listener, address)
}

fn upstream() -> (Upstream, Call) {
    let options = RouterOptions {
        authorization: Some(HeaderValue::from_static("Bearer fleet")),
        ..RouterOptions::default()
    };
    let upstream = Upstream::new(&options);
    let call = upstream.call(
        Endpoint::Completions,
        &HeaderMap::new(),
        Bytes::from_static(b"{}"),
        false,
    );
    (upstream, call)
}

/// Reads a request up to the end of its body `{}`.
async fn read_request(stream: &mut TcpStream) -> String {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n{}") {
        assert_ne!(stream.read_buf(&mut request).await.unwrap(), 0, "the client has gone");
    }
    String::from_utf8(request).unwrap()
}

async fn body_of(response: Response<Incoming>) -> Result<Bytes, String> {
    let collected = response.into_body().collect().await;
    collected.map(|body| body.to_bytes()).map_err(|error| error.to_string())
}

async fn ask(upstream: &Upstream, call: &Call, address: &Address) -> Bytes {
    let response = upstream.send(call, address, &Span::none()).await.unwrap();
    body_of(response).await.unwrap()
}

#[tokio::test]
async fn a_worker_gets_the_span_that_asks_it_and_without_traces_the_clients() {
    let mut headers = HeaderMap::new();
    headers.insert("traceparent", HeaderValue::from_static("clients"));
    headers.insert("tracestate", HeaderValue::from_static("vendor=1"));
    for (traceparent, expected) in [
        (None, "traceparent: clients\r\ntracestate: vendor=1\r\n\r\n{}"),
        (
            Some((|_| Some(HeaderValue::from_static("queens"))) as fn(&Span) -> Option<HeaderValue>),
            "tracestate: vendor=1\r\ntraceparent: queens\r\n\r\n{}",
        ),
    ] {
        let (listener, address) = listen().await;
        let upstream = Upstream::new(&RouterOptions {
            traceparent,
            ..RouterOptions::default()
        });
        let call = upstream.call(Endpoint::Completions, &headers, Bytes::from_static(b"{}"), false);
        let answer = tokio::spawn(async move { ask(&upstream, &call, &address).await });
        let (mut stream, _) = listener.accept().await.unwrap();
        let request = read_request(&mut stream).await;
        assert!(request.ends_with(expected), "{request}");
        stream.write_all(ANSWER).await.unwrap();
        answer.await.unwrap();
    }
}

#[tokio::test]
async fn a_worker_gets_the_fleets_token_and_nothing_of_the_clients_connection() {
    let (listener, address) = listen().await;
    let (upstream, _) = upstream();
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("authorization", "Bearer client"),
        ("host", "queen"),
        ("connection", "keep-alive, x-own"),
        ("x-own", "1"),
        ("transfer-encoding", "chunked"),
        ("expect", "100-continue"),
        ("x-mine", "2"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    let call = upstream.call(Endpoint::Completions, &headers, Bytes::from_static(b"{}"), false);
    let answer = tokio::spawn(async move { ask(&upstream, &call, &address).await });
    let (mut stream, _) = listener.accept().await.unwrap();
    let authority = listener.local_addr().unwrap();
    let expected = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: {authority}\r\ncontent-length: 2\r\nx-mine: 2\r\n\
         authorization: Bearer fleet\r\n\r\n{{}}"
    );
    assert_eq!(read_request(&mut stream).await, expected);
    stream.write_all(ANSWER).await.unwrap();
    assert_eq!(answer.await.unwrap(), "ok");
}

#[tokio::test]
async fn a_connection_serves_one_request_after_the_other() {
    let (listener, address) = listen().await;
    let (upstream, call) = upstream();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        for answer in [
            ANSWER,
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            ANSWER,
        ] {
            read_request(&mut stream).await;
            stream.write_all(answer).await.unwrap();
        }
    });
    for _ in 0..3 {
        assert_eq!(ask(&upstream, &call, &address).await, "ok");
    }
    server.await.unwrap();
}

#[tokio::test]
async fn a_connection_that_closed_while_it_was_kept_is_replaced() {
    let (listener, address) = listen().await;
    let (upstream, call) = upstream();
    let server = tokio::spawn(async move {
        for _ in 0..2 {
            let (mut stream, _) = listener.accept().await.unwrap();
            read_request(&mut stream).await;
            stream.write_all(ANSWER).await.unwrap();
        }
    });
    for _ in 0..2 {
        assert_eq!(ask(&upstream, &call, &address).await, "ok");
    }
    server.await.unwrap();
}

#[tokio::test]
async fn nobody_there_and_nobody_answering_are_told_apart() {
    let (listener, address) = listen().await;
    let (upstream, call) = upstream();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        read_request(&mut stream).await;
    });
    assert!(matches!(
        upstream.send(&call, &address, &Span::none()).await,
        Err(Failure::Broke(_))
    ));
    // The listener is gone by now.
    server.await.unwrap();
    assert!(matches!(
        upstream.send(&call, &address, &Span::none()).await,
        Err(Failure::Unreachable(_))
    ));
}

#[tokio::test]
async fn a_body_that_ends_early_is_an_error_and_one_that_may_end_so_is_whole() {
    let (listener, address) = listen().await;
    let (upstream, call) = upstream();
    let server = tokio::spawn(async move {
        for answer in [
            &b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok"[..],
            b"HTTP/1.1 200 OK\r\n\r\nok",
        ] {
            let (mut stream, _) = listener.accept().await.unwrap();
            read_request(&mut stream).await;
            stream.write_all(answer).await.unwrap();
        }
    });
    let cut = upstream.send(&call, &address, &Span::none()).await.unwrap();
    assert_eq!(body_of(cut).await, Err("the worker closed the connection".to_owned()));
    assert_eq!(ask(&upstream, &call, &address).await, "ok");
    server.await.unwrap();
}

#[tokio::test]
async fn a_body_that_is_dropped_closes_its_connection() {
    let (listener, address) = listen().await;
    let (upstream, call) = upstream();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        read_request(&mut stream).await;
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok")
            .await
            .unwrap();
        stream.read(&mut [0]).await.unwrap()
    });
    let mut response = upstream.send(&call, &address, &Span::none()).await.unwrap();
    let first = response.body_mut().frame().await.unwrap().unwrap();
    assert_eq!(first.into_data().unwrap(), "ok");
    drop(response);
    assert_eq!(server.await.unwrap(), 0);
}

#[tokio::test]
async fn a_refusal_that_comes_before_the_whole_request_was_read_is_an_answer() {
    let (listener, address) = listen().await;
    let (upstream, _) = upstream();
    // More than the sockets' buffers hold.
    let body = Bytes::from(vec![b'x'; 16 << 20]);
    let call = upstream.call(Endpoint::Completions, &HeaderMap::new(), body, false);
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.read_exact(&mut [0; 100]).await.unwrap();
        stream
            .write_all(b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 0\r\n\r\n")
            .await
            .unwrap();
        stream.shutdown().await.unwrap();
        // Reads no further; stays until the client has seen the answer.
        stream
    });
    let response = upstream.send(&call, &address, &Span::none()).await;
    let _stream = server.await.unwrap();
    assert_eq!(response.unwrap().status(), 413);
}

#[tokio::test]
async fn a_length_that_does_not_count_is_not_passed_on() {
    let (listener, address) = listen().await;
    let (upstream, call) = upstream();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        read_request(&mut stream).await;
        let head = "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n";
        let answer = format!("{head}2\r\nok\r\n0\r\n\r\n");
        stream.write_all(answer.as_bytes()).await.unwrap();
    });
    let response = upstream.send(&call, &address, &Span::none()).await.unwrap();
    assert!(response.headers().is_empty());
    assert_eq!(body_of(response).await.unwrap(), "ok");
    server.await.unwrap();
}
