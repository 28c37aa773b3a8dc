//! A worker without a model: a server of bare sockets in the test's process, and heartbeats made by hand.
//!
//! For scenarios about the queen, where a model would only cost time, and for workers that misbehave as no real one would on
//! demand. What a worker itself does is tested on real ones.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::http::{self, Answer};

/// How a fake worker answers what it is asked. Its `/health` is fine in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// With its own name, at once.
    Answers,
    /// With its own name, after so many milliseconds.
    Takes(u64),
    /// Never.
    Hangs,
    /// With status 500.
    Fails,
    /// With status 400, whatever the request.
    Refuses,
    /// By closing the connection.
    Closes,
    /// With so many pieces of a stream, and then by closing the connection.
    BreaksOff(usize),
    /// With a stream of its own name that comes byte by byte.
    Dribbles,
}

/// Answers chats and completions as it is told to.
#[derive(Debug)]
pub struct FakeWorker {
    name: String,
    model: String,
    address: SocketAddr,
    slots: u32,
    manner: watch::Sender<Manner>,
    asked: Arc<AtomicUsize>,
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
        let (manner, _) = watch::channel(Manner::Answers);
        let asked = Arc::<AtomicUsize>::default();
        let fake = Fake {
            name: name.to_owned(),
            manner: manner.subscribe(),
            asked: Arc::clone(&asked),
        };
        Self {
            name: name.to_owned(),
            model: model.to_owned(),
            address,
            slots: 1,
            manner,
            asked,
            server: tokio::spawn(serve(listener, fake)),
            beats: None,
        }
    }

    /// Says that it computes so many requests together.
    pub fn with_slots(mut self, slots: u32) -> Self {
        self.slots = slots;
        self
    }

    /// From the next request on it answers like this. What it owes already it goes on owing.
    pub fn behave(&self, manner: Manner) {
        self.manner.send_replace(manner);
    }

    /// Requests to generate that it got so far.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    /// Its heartbeat at this time of its own clock.
    pub fn beat(&self, timestamp: DateTime<Utc>) -> Value {
        json!({
            "worker": {
                "id": self.name, "model_id": self.model, "device": "cpu", "port": self.address.port(),
                "status": "ready", "implementation": "fake", "version": "0", "slots": self.slots,
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

/// What its connections share.
#[derive(Clone)]
struct Fake {
    name: String,
    manner: watch::Receiver<Manner>,
    asked: Arc<AtomicUsize>,
}

/// Dropping it ends all connections.
async fn serve(listener: TcpListener, fake: Fake) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.expect("a connection");
        let fake = fake.clone();
        connections.spawn(async move {
            let mut stream = BufStream::new(stream);
            // Whoever asks may leave at any time.
            while let Ok(true) = fake.exchange(&mut stream).await {}
        });
    }
}

impl Fake {
    /// One request and its answer; whether the connection stays.
    async fn exchange(&self, stream: &mut BufStream<TcpStream>) -> io::Result<bool> {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(false);
        }
        let is_question = line.starts_with("POST /v1/chat/completions") || line.starts_with("POST /v1/completions");
        let mut length = 0;
        loop {
            let mut header = String::new();
            if stream.read_line(&mut header).await? == 0 {
                return Ok(false);
            }
            match header.trim_end().to_ascii_lowercase().split_once(':') {
                Some(("content-length", value)) => length = value.trim().parse().map_err(io::Error::other)?,
                Some(_) => {}
                None => break,
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await?;
        if !is_question {
            respond(stream, 200, &json!({"status": "ok"})).await?;
            return Ok(true);
        }
        self.asked.fetch_add(1, Ordering::SeqCst);
        let body: Value = serde_json::from_slice(&body).map_err(io::Error::other)?;
        self.answer(stream, &body).await
    }

    async fn answer(&self, stream: &mut BufStream<TcpStream>, body: &Value) -> io::Result<bool> {
        let (manner, model) = (*self.manner.borrow(), &body["model"]);
        match manner {
            Manner::Hangs => std::future::pending::<()>().await,
            Manner::Closes => return Ok(false),
            Manner::Fails => respond(stream, 500, &error("server_error")).await?,
            Manner::Refuses => respond(stream, 400, &error("invalid_request_error")).await?,
            Manner::Takes(ms) => tokio::time::sleep(Duration::from_millis(ms)).await,
            Manner::Answers | Manner::BreaksOff(_) | Manner::Dribbles => {}
        }
        match manner {
            Manner::Fails | Manner::Refuses => return Ok(true),
            Manner::BreaksOff(pieces) => {
                begin_stream(stream).await?;
                for _ in 0..pieces {
                    chunk(stream, event(&self.piece(model, Some(&self.name), None)).as_bytes()).await?;
                }
                return Ok(false);
            }
            _ => {}
        }
        if body["stream"] != true {
            respond(stream, 200, &self.whole(model)).await?;
            return Ok(true);
        }
        begin_stream(stream).await?;
        let events = [
            event(&self.piece(model, Some(&self.name), None)),
            event(&self.piece(model, None, Some("stop"))),
            "data: [DONE]\n\n".to_owned(),
        ]
        .concat();
        let size = if manner == Manner::Dribbles { 1 } else { events.len() };
        for piece in events.as_bytes().chunks(size) {
            chunk(stream, piece).await?;
        }
        stream.write_all(b"0\r\n\r\n").await?;
        stream.flush().await?;
        Ok(true)
    }

    fn whole(&self, model: &Value) -> Value {
        json!({
            "id": "chatcmpl-fake", "object": "chat.completion", "created": 0, "model": model,
            "choices": [{"index": 0, "message": {"role": "assistant", "content": self.name}, "finish_reason": "stop"}],
        })
    }

    fn piece(&self, model: &Value, text: Option<&str>, finish: Option<&str>) -> Value {
        let delta = text.map_or_else(|| json!({}), |text| json!({"content": text}));
        json!({
            "id": "chatcmpl-fake", "object": "chat.completion.chunk", "created": 0, "model": model,
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
        })
    }
}

fn error(kind: &str) -> Value {
    json!({"error": {"message": "as it was told to", "type": kind, "param": null, "code": "fake"}})
}

fn event(data: &Value) -> String {
    format!("data: {data}\n\n")
}

async fn respond(stream: &mut BufStream<TcpStream>, status: u16, body: &Value) -> io::Result<()> {
    let body = body.to_string();
    let length = body.len();
    let head =
        format!("HTTP/1.1 {status} As Told\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.flush().await
}

async fn begin_stream(stream: &mut BufStream<TcpStream>) -> io::Result<()> {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await?;
    stream.flush().await
}

/// One piece of a body, which leaves at once.
async fn chunk(stream: &mut BufStream<TcpStream>, data: &[u8]) -> io::Result<()> {
    stream.write_all(format!("{:x}\r\n", data.len()).as_bytes()).await?;
    stream.write_all(data).await?;
    stream.write_all(b"\r\n").await?;
    stream.flush().await
}
