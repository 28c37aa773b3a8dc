//! The senders of one connection, and the connection: plain HTTP/1.1 on a socket, so that the queen is measured and not her
//! client.

use std::io;
use std::time::{Duration, Instant};

use chrono::Utc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use worker_contract::WorkerHeartbeat;

use crate::histogram::Histogram;

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest answer that is read.
const MAX_ANSWER: usize = 64 << 10;

/// What became of the beats.
#[derive(Debug, Clone)]
pub(crate) struct Tally {
    /// Time to the acknowledgement, of each beat that got one.
    pub(crate) latency: Histogram,
    /// Beats that got an error or no answer.
    pub(crate) errors: u64,
    /// Beats that were acknowledged as dropped.
    pub(crate) dropped: u64,
    /// The first thing that went wrong.
    pub(crate) first_error: Option<String>,
}

impl Tally {
    pub(crate) fn new() -> Self {
        Self {
            latency: Histogram::new(),
            errors: 0,
            dropped: 0,
            first_error: None,
        }
    }

    pub(crate) fn merge(&mut self, other: Self) {
        self.latency.merge(&other.latency);
        self.errors += other.errors;
        self.dropped += other.dropped;
        self.first_error = self.first_error.take().or(other.first_error);
    }

    fn fail(&mut self, error: String) {
        self.errors += 1;
        self.first_error.get_or_insert(error);
    }
}

/// Senders that take turns on one connection.
#[derive(Debug)]
pub(crate) struct Senders {
    beats: Vec<WorkerHeartbeat>,
    turn: usize,
    /// `HOST:PORT`
    authority: String,
    /// Request line and headers, up to the length of the body.
    head: String,
    stream: Option<TcpStream>,
    request: Vec<u8>,
    answer: Vec<u8>,
}

impl Senders {
    pub(crate) fn new(beats: Vec<WorkerHeartbeat>, authority: &str, token: Option<&str>) -> Self {
        let path = "/v1/worker-heartbeat";
        let bearer = token
            .map(|token| format!("authorization: Bearer {token}\r\n"))
            .unwrap_or_default();
        Self {
            beats,
            turn: 0,
            authority: authority.to_owned(),
            head: format!(
                "POST {path} HTTP/1.1\r\nhost: {authority}\r\n{bearer}content-type: application/json\r\ncontent-length: "
            ),
            stream: None,
            request: Vec::new(),
            answer: Vec::new(),
        }
    }

    /// Each sender beats once.
    pub(crate) async fn beat_each(&mut self) -> Tally {
        let mut tally = Tally::new();
        for _ in 0..self.beats.len() {
            self.beat(&mut tally).await;
        }
        tally
    }

    /// They beat in turn until the deadline: at this pace, or each as soon as the one before has its answer.
    pub(crate) async fn beat_until(&mut self, deadline: Instant, pace: Option<Duration>) -> Tally {
        let mut tally = Tally::new();
        let mut due = Instant::now();
        while Instant::now() < deadline {
            if let Some(pace) = pace {
                tokio::time::sleep_until(due.into()).await;
                due += pace;
            }
            self.beat(&mut tally).await;
        }
        tally
    }

    async fn beat(&mut self, tally: &mut Tally) {
        let beat = &mut self.beats[self.turn];
        beat.seq += 1;
        beat.timestamp = Utc::now();
        let body = serde_json::to_vec(beat).unwrap_or_else(|error| unreachable!("a heartbeat is JSON: {error}"));
        self.turn = (self.turn + 1) % self.beats.len();
        self.request.clear();
        self.request.extend_from_slice(self.head.as_bytes());
        self.request
            .extend_from_slice(format!("{}\r\n\r\n", body.len()).as_bytes());
        self.request.extend_from_slice(&body);

        let start = Instant::now();
        let done = match timeout(PATIENCE, self.exchange()).await {
            Ok(done) => done,
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "no answer")),
        };
        match done {
            Ok((200, body)) => {
                tally.latency.add(start.elapsed());
                tally.dropped += u64::from(contains(&self.answer[body..], b"\"dropped\""));
            }
            Ok((status, _)) => tally.fail(format!("status {status}: {}", String::from_utf8_lossy(&self.answer))),
            Err(error) => {
                tally.fail(error.to_string());
                self.stream = None;
            }
        }
    }

    /// Sends the request and reads the answer; yields its status and where in the buffer its body begins.
    async fn exchange(&mut self) -> io::Result<(u16, usize)> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            place => {
                let stream = TcpStream::connect(&self.authority).await?;
                stream.set_nodelay(true)?;
                place.insert(stream)
            }
        };
        stream.write_all(&self.request).await?;
        self.answer.clear();
        loop {
            if let Some((status, body, end)) = head_of(&self.answer)?
                && self.answer.len() >= end
            {
                return Ok((status, body));
            }
            if self.answer.len() > MAX_ANSWER {
                return Err(io::Error::other("the answer is too long"));
            }
            if stream.read_buf(&mut self.answer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

/// Status of an answer, where its body begins and where it ends; `None` until its headers are whole.
fn head_of(answer: &[u8]) -> io::Result<Option<(u16, usize, usize)>> {
    let Some(blank) = answer.windows(4).position(|four| four == b"\r\n\r\n") else {
        return Ok(None);
    };
    let head = String::from_utf8_lossy(&answer[..blank]).to_ascii_lowercase();
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"))
        .and_then(|length| length.trim().parse::<usize>().ok());
    match (status, length) {
        (Some(status), Some(length)) => Ok(Some((status, blank + 4, blank + 4 + length))),
        _ => Err(io::Error::other(format!("no status or length in: {head}"))),
    }
}

fn contains(text: &[u8], word: &[u8]) -> bool {
    text.windows(word.len()).any(|window| window == word)
}
