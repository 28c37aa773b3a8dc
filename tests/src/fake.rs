//! A worker without a model: an HTTP server in the test's process, and heartbeats made by hand.
//!
//! For scenarios about the queen, where a model would only cost time. What a worker itself does is tested on real ones.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use axum::routing::post;
use axum::{Json, Router};
use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::http::{self, Answer};

/// Answers each chat with its own name.
#[derive(Debug)]
pub struct FakeWorker {
    name: String,
    model: String,
    address: SocketAddr,
    server: JoinHandle<()>,
    beats: Option<JoinHandle<()>>,
}

impl FakeWorker {
    /// Listens on a port that the system picks; says nothing to any queen yet.
    pub async fn start(name: &str, model: &str) -> Self {
        Self::start_at(IpAddr::V4(Ipv4Addr::LOCALHOST), name, model).await
    }

    /// The same at another address, for example a host's on which this runs.
    pub async fn start_at(address: IpAddr, name: &str, model: &str) -> Self {
        let listener = TcpListener::bind((address, 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let says = name.to_owned();
        let answer = async move |Json(body): Json<Value>| {
            Json(json!({
                "id": "chatcmpl-fake", "object": "chat.completion", "created": 0, "model": body["model"],
                "choices": [{"index": 0, "message": {"role": "assistant", "content": says}, "finish_reason": "stop"}],
            }))
        };
        let router = Router::new().route("/v1/chat/completions", post(answer));
        let server = tokio::spawn(async move { axum::serve(listener, router).await.expect("serving") });
        Self {
            name: name.to_owned(),
            model: model.to_owned(),
            address,
            server,
            beats: None,
        }
    }

    /// Its heartbeat at this time of its own clock.
    pub fn beat(&self, timestamp: DateTime<Utc>) -> Value {
        json!({
            "worker": {
                "id": self.name, "model_id": self.model, "device": "cpu", "port": self.address.port(),
                "status": "ready", "implementation": "fake", "version": "0",
            },
            "timestamp": timestamp,
        })
    }

    /// Beats from now on, at this pace, whatever comes of it.
    pub fn beat_on(&mut self, queen_url: &str, pause: Duration) {
        let (template, url) = (self.beat(Utc::now()), format!("{queen_url}/v1/worker-heartbeat"));
        let client = http::client();
        self.beats = Some(tokio::spawn(async move {
            loop {
                let mut beat = template.clone();
                beat["timestamp"] = json!(Utc::now());
                // A queen that cannot be reached is what a scenario may be about.
                let _ = client.post(&url).json(&beat).timeout(pause).send().await;
                tokio::time::sleep(pause).await;
            }
        }));
    }

    /// Beats once.
    pub async fn beat_to(&self, queen_url: &str) -> Answer {
        http::post(format!("{queen_url}/v1/worker-heartbeat"), &self.beat(Utc::now())).await
    }
}

impl Drop for FakeWorker {
    fn drop(&mut self) {
        self.server.abort();
        if let Some(beats) = &self.beats {
            beats.abort();
        }
    }
}
