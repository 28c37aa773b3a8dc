//! Streams of a whole router, over connections to workers on this host.

use std::collections::HashMap;

use http::HeaderMap;
use http_body_util::BodyExt;
use shared_contract::ModelId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::*;
use crate::{Demand, Prospect, Refusal, Router, RouterOptions, Supply};

/// Knows every model, and starts no worker.
struct Anything;

impl Supply for Anything {
    fn resolve(&self, name: &str) -> Result<ModelId, Refusal> {
        Ok(ModelId::new(name).unwrap())
    }

    fn demand(&self, _model: &ModelId, _demand: Demand) {}

    fn prospect(&self, _model: &ModelId) -> Prospect {
        Prospect::None {
            why: "all are busy".to_owned(),
            retry: None,
        }
    }
}

/// Workers, each of them a task that serves one connection with one request.
struct Fleet {
    workers: Arc<Registry<WorkerHeartbeat>>,
    /// Which worker has been asked what.
    asked: mpsc::Receiver<(usize, Value, TcpStream)>,
    _listening: Vec<AbortOnDropHandle<()>>,
}

impl Fleet {
    async fn start(count: usize) -> Self {
        let workers = Arc::new(Registry::new(RegistryOptions::default()));
        let (sender, asked) = mpsc::channel(16);
        let mut listening = Vec::new();
        for number in 0..count {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let mut beat = heartbeat(&format!("w-{number}"), 1);
            beat.worker.port = listener.local_addr().unwrap().port();
            beat.worker.features = vec![Feature::Resume];
            beat.worker.model_revision = Some("r7".to_owned());
            record(&workers, beat);
            let sender = sender.clone();
            let listen = async move {
                loop {
                    let (mut stream, _) = listener.accept().await.unwrap();
                    let (headers, body) = read_request(&mut stream).await;
                    // A request without it is the queen's own, which asks whether the worker is well.
                    if headers.contains_key("x-rbee-tokens") {
                        sender.send((number, body, stream)).await.unwrap();
                    }
                }
            };
            listening.push(AbortOnDropHandle::new(tokio::spawn(listen)));
        }
        Self {
            workers,
            asked,
            _listening: listening,
        }
    }

    fn router(&self) -> Router {
        let mut metrics = prometheus_client::registry::Registry::default();
        Router::new(
            RouterOptions::default(),
            Arc::clone(&self.workers),
            Arc::new(Anything),
            &mut metrics,
        )
    }
}

async fn read_request(stream: &mut TcpStream) -> (HashMap<String, String>, Value) {
    let mut read = Vec::new();
    loop {
        stream.read_buf(&mut read).await.unwrap();
        let text = String::from_utf8_lossy(&read);
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let fields = head.lines().skip(1).filter_map(|line| line.split_once(": "));
        let headers: HashMap<_, _> = fields
            .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
            .collect();
        if body.len() == headers["content-length"].parse::<usize>().unwrap() {
            return (headers, serde_json::from_str(body).unwrap());
        }
    }
}

/// Sends these events as the beginning of a stream.
async fn send(stream: &mut TcpStream, events: &[Bytes]) {
    let mut text =
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n".to_owned();
    for event in events {
        text.push_str(&format!(
            "{:x}\r\n{}\r\n",
            event.len(),
            std::str::from_utf8(event).unwrap()
        ));
    }
    stream.write_all(text.as_bytes()).await.unwrap();
}

#[tokio::test]
async fn a_stream_whose_worker_dies_is_finished_by_another_one() {
    let model = Model::new(&["Hel", "lo", " wor", "ld"]);
    let mut fleet = Fleet::start(2).await;
    let router = fleet.router();
    let request = model.request().to_string().into();
    let answer = tokio::spawn(async move {
        let response = router
            .answer(Endpoint::ChatCompletions, HeaderMap::new(), request, Arc::default())
            .await
            .unwrap();
        let first = response.headers()["x-rbee-worker"].to_str().unwrap().to_owned();
        (first, response.into_body().collect().await.unwrap().to_bytes())
    });
    let (first, asked, mut stream) = fleet.asked.recv().await.unwrap();
    send(&mut stream, &model.by_tokens(&asked)[..3]).await;
    drop(stream);
    let (second, asked, mut stream) = fleet.asked.recv().await.unwrap();
    assert_ne!(first, second);
    assert_eq!(asked["resume"]["tokens"], json!([0, 1]));
    send(&mut stream, &model.by_tokens(&asked)).await;
    stream.write_all(b"0\r\n\r\n").await.unwrap();
    let (named, output) = answer.await.unwrap();
    assert_eq!(named, format!("w-{first}"));
    assert_eq!(String::from_utf8(output.into()).unwrap(), model.undisturbed());
}

#[tokio::test]
async fn a_client_that_leaves_closes_the_connection_to_the_worker() {
    let model = Model::new(&["Hel", "lo"]);
    let mut fleet = Fleet::start(1).await;
    let router = fleet.router();
    let asking = router.clone();
    let request = model.request().to_string().into();
    let answer = tokio::spawn(async move {
        let response = asking
            .answer(Endpoint::ChatCompletions, HeaderMap::new(), request, Arc::default())
            .await
            .unwrap();
        let mut body = response.into_body();
        assert!(body.frame().await.is_some());
        body
    });
    let (_, asked, mut stream) = fleet.asked.recv().await.unwrap();
    send(&mut stream, &model.by_tokens(&asked)[..1]).await;
    let body = answer.await.unwrap();
    let worker = WorkerId::new("w-0").unwrap();
    assert!(router.idle_since(&worker).is_none());
    drop(body);
    assert!(router.idle_since(&worker).is_some());
    assert_eq!(stream.read(&mut [0]).await.unwrap_or(0), 0);
}
