//! Pretended workers: bare sockets that answer at once, in a process of their own. One process can be a thousand of them,
//! each on a port of its own.

use std::cell::Cell;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, sleep_until};
use worker_contract::{TOKENS_COMMENT, TOKENS_HEADER};

use crate::beats;
use crate::wire::{Connection, Head, find};
use crate::{MODEL, Result};

/// What the workers of one process are like.
#[derive(Debug, Clone, Args)]
pub(crate) struct Backends {
    /// How many
    #[arg(long, default_value_t = 1)]
    pub(crate) count: u16,
    /// Number of the first: part of its name
    #[arg(long, default_value_t = 0)]
    pub(crate) first: u16,
    /// Port of the first and only one; 0 takes a free one
    #[arg(long, default_value_t = 0)]
    pub(crate) port: u16,
    /// Queens that they beat to, as HOST:PORT
    #[arg(long)]
    pub(crate) queen: Vec<SocketAddr>,
    /// Requests that each takes at once, as its heartbeat says
    #[arg(long, default_value_t = 4_096)]
    pub(crate) slots: u32,
    /// Milliseconds before each answer
    #[arg(long, default_value_t = 0)]
    pub(crate) delay_ms: u64,
    /// Answer no POST after so many
    #[arg(long)]
    pub(crate) hang_after: Option<u64>,
}

impl Default for Backends {
    fn default() -> Self {
        Self {
            count: 1,
            first: 0,
            port: 0,
            queen: Vec::new(),
            slots: 4_096,
            delay_ms: 0,
            hang_after: None,
        }
    }
}

/// One of them.
struct Worker {
    /// The answer to a request that wants no stream.
    plain: Vec<u8>,
    delay: Duration,
    hang_after: Option<u64>,
    answers: Cell<u64>,
}

/// The name of a pretended worker.
pub(crate) fn name(number: u16) -> String {
    format!("figures-{number:04}")
}

impl Worker {
    fn new(number: u16, options: &Backends) -> Self {
        let name = name(number);
        let body = format!(
            "{{\"id\":\"chatcmpl-0123456789abcdef\",\"object\":\"chat.completion\",\"created\":1770000000,\
             \"model\":\"{MODEL}\",\"choices\":[{{\"index\":0,\"message\":{{\"role\":\"assistant\",\"content\":\
             \"{name} says: a short answer, as they often are, of a handful of words.\"}},\"logprobs\":null,\
             \"finish_reason\":\"stop\"}}],\"usage\":{{\"prompt_tokens\":31,\"completion_tokens\":16,\
             \"total_tokens\":47}},\"system_fingerprint\":\"figures\"}}"
        );
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        Self {
            plain: [head, body].concat().into_bytes(),
            delay: Duration::from_millis(options.delay_ms),
            hang_after: options.hang_after,
            answers: Cell::new(0),
        }
    }

    async fn answer(&self, connection: &mut Connection, request: &Request) -> io::Result<()> {
        if request.is_look {
            return connection.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        }
        let answers = self.answers.replace(self.answers.get() + 1);
        if self.hang_after.is_some_and(|most| answers >= most) {
            return std::future::pending().await;
        }
        if request.is_bad {
            return connection.send(BAD_REQUEST).await;
        }
        if !self.delay.is_zero() {
            sleep(self.delay).await;
        }
        match &request.stream {
            Some(stream) => stream.send(connection).await,
            None => connection.send(&self.plain).await,
        }
    }
}

const BAD_REQUEST: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: 95\r\n\r\n\
{\"error\":{\"message\":\"temperature\",\"type\":\"invalid_request_error\",\"param\":\"temperature\",\"code\":null}}";

/// What a request wants.
struct Request {
    /// `GET`: a look at its health.
    is_look: bool,
    /// It asks to be refused.
    is_bad: bool,
    stream: Option<Stream>,
}

/// An answer in chunks.
struct Stream {
    chunks: u32,
    gap: Duration,
    /// Whether each event is preceded by the tokens that it is of, as a gateway can ask.
    with_tokens: bool,
}

impl Request {
    fn parse(bytes: &[u8], head: &Head) -> Self {
        let (head, body) = bytes.split_at(head.len);
        let number = |key: &[u8]| {
            let from = find(body, key)? + key.len();
            let digits = body[from..].iter().take_while(|byte| byte.is_ascii_digit()).count();
            std::str::from_utf8(&body[from..from + digits])
                .ok()?
                .parse::<u32>()
                .ok()
        };
        let stream = find(body, b"\"stream\":true").map(|_| Stream {
            chunks: number(b"\"chunks\":\"").unwrap_or(1),
            gap: Duration::from_micros(number(b"\"gap_us\":\"").unwrap_or(0).into()),
            with_tokens: find(&head.to_ascii_lowercase(), TOKENS_HEADER.as_bytes()).is_some(),
        });
        Self {
            is_look: head.starts_with(b"GET "),
            is_bad: find(body, b"\"bad\":\"yes\"").is_some(),
            stream,
        }
    }
}

impl Stream {
    async fn send(&self, connection: &mut Connection) -> io::Result<()> {
        let mut out = Vec::with_capacity(1 << 10);
        out.extend_from_slice(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n\
              transfer-encoding: chunked\r\n\r\n",
        );
        let mut due = Instant::now();
        for number in 0..self.chunks {
            if number > 0 && !self.gap.is_zero() {
                due += self.gap;
                sleep_until(due).await;
            }
            let tokens = match self.with_tokens {
                true => format!("{TOKENS_COMMENT}{}\n", 1_000 + number),
                false => String::new(),
            };
            // The time of its sending is what a delay is reckoned from.
            let event = format!(
                "{tokens}data: {{\"id\":\"chatcmpl-0123456789abcdef\",\"object\":\"chat.completion.chunk\",\
                 \"created\":1770000000,\"model\":\"{MODEL}\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\
                 \" word\"}},\"logprobs\":null,\"finish_reason\":null}}],\"sent_ns\":{}}}\n\n",
                now_ns()
            );
            chunk(&mut out, &event);
            connection.send(&out).await?;
            out.clear();
        }
        chunk(&mut out, "data: [DONE]\n\n");
        out.extend_from_slice(b"0\r\n\r\n");
        connection.send(&out).await
    }
}

fn chunk(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes());
}

/// Nanoseconds since the epoch: a clock that the processes of one machine share.
pub(crate) fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_nanos() as u64
}

/// Listens, prints the ports on one line, beats and answers until it is killed.
pub(crate) async fn serve(options: Backends) -> Result<()> {
    let mut ports = Vec::new();
    let workers = tokio::task::LocalSet::new();
    for number in options.first..options.first + options.count {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, options.port)).await;
        let listener = listener.map_err(|error| format!("listen on port {}: {error}", options.port))?;
        ports.push(
            listener
                .local_addr()
                .map_err(|error| format!("listen: {error}"))?
                .port(),
        );
        let worker = Rc::new(Worker::new(number, &options));
        workers.spawn_local(accept(listener, worker));
    }
    let line: Vec<_> = ports.iter().map(u16::to_string).collect();
    println!("{}", line.join(" "));
    for queen in &options.queen {
        workers.spawn_local(beats::keep(*queen, options.clone(), ports.clone()));
    }
    workers.await;
    Ok(())
}

async fn accept(listener: TcpListener, worker: Rc<Worker>) {
    loop {
        // Out of descriptors, most likely: the gateway sees it as a worker that cannot be reached.
        if let Ok((stream, _)) = listener.accept().await {
            let worker = Rc::clone(&worker);
            tokio::task::spawn_local(async move {
                // A connection ends when the other side closes it; how does not matter.
                let _ = converse(stream, &worker).await;
            });
        }
    }
}

async fn converse(stream: TcpStream, worker: &Worker) -> io::Result<()> {
    let mut connection = Connection::new(stream)?;
    while let Some((head, bytes)) = connection.message().await? {
        let (request, length) = (Request::parse(bytes, &head), bytes.len());
        connection.used(length);
        worker.answer(&mut connection, &request).await?;
    }
    Ok(())
}
