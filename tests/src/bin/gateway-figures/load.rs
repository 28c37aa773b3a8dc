//! The load: clients on kept connections, as many as wanted at once or so many a second, plain or streamed.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout};

use crate::backend::now_ns;
use crate::wire::{Connection, EventLines, Framing, Line, find};
use crate::{MODEL, Result};

/// Longest wait for an answer, unless said otherwise.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a request asks for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Ask {
    /// A whole answer of a few hundred bytes.
    Plain,
    /// So many events, with this pause between two.
    Stream { chunks: u32, gap: Duration },
    /// An error that is the client's own.
    Bad,
}

/// Requests to one address.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    pub(crate) address: SocketAddr,
    request: Arc<[u8]>,
    /// How long a request may take before it counts as an error.
    pub(crate) patience: Duration,
    /// Time between the starts of the first requests of all clients together.
    spread: Duration,
}

/// What became of requests.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Time to the end of each answer.
    pub(crate) took: Vec<Duration>,
    /// Time to the first event of each stream.
    pub(crate) first_token: Vec<Duration>,
    /// Time that each event took from its backend to here.
    pub(crate) delays: Vec<Duration>,
    /// Answers by the worker that they name.
    pub(crate) workers: BTreeMap<String, u64>,
    /// Requests without a whole answer with status 200.
    pub(crate) errors: u64,
    /// What the first of them came to.
    pub(crate) first_error: Option<String>,
    /// How long all of it took.
    pub(crate) elapsed: Duration,
}

/// The duration that this share of all does not exceed; zero if there is none.
pub(crate) fn quantile(durations: &mut [Duration], share: f64) -> Duration {
    durations.sort_unstable();
    let rank = (durations.len() as f64 * share).ceil() as usize;
    durations.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

impl Load {
    pub(crate) fn new(address: SocketAddr, ask: Ask) -> Self {
        let (more, gap) = match ask {
            Ask::Plain => (String::new(), Duration::ZERO),
            Ask::Stream { chunks, gap } => (
                format!(
                    ",\"stream\":true,\"metadata\":{{\"chunks\":\"{chunks}\",\"gap_us\":\"{}\"}}",
                    gap.as_micros()
                ),
                gap,
            ),
            Ask::Bad => (",\"metadata\":{\"bad\":\"yes\"}".to_owned(), Duration::ZERO),
        };
        let body = format!(
            "{{\"model\":\"{MODEL}\",\"messages\":[{{\"role\":\"system\",\"content\":\"You are a helpful assistant \
             that answers in few words.\"}},{{\"role\":\"user\",\"content\":\"What is the capital of the country whose \
             flag is a red disc on a white ground, and how many people live there?\"}}],\"max_tokens\":64,\
             \"temperature\":0.7{more}}}"
        );
        let request = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: {address}\r\naccept: application/json\r\n\
             content-type: application/json\r\nuser-agent: gateway-figures\r\nauthorization: Bearer sk-none-needed\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        Self {
            address,
            request: request.into_bytes().into(),
            patience: PATIENCE,
            spread: gap,
        }
    }

    /// So many clients, each of which asks again as soon as it has its answer, for so long.
    pub(crate) async fn clients(&self, count: usize, time: Duration) -> Tally {
        let start = Instant::now();
        let mut tasks = JoinSet::new();
        for number in 0..count {
            let load = self.clone();
            // Streams that began together would send all their events together.
            let begin = start + self.spread.mul_f64(number as f64 / count as f64);
            tasks.spawn(async move {
                sleep_until(begin.into()).await;
                let (mut tally, mut connection) = (Tally::default(), None);
                while start.elapsed() < time {
                    connection = load.ask(connection, &mut tally).await;
                }
                tally
            });
        }
        gather(tasks, start).await
    }

    /// So many requests a second, whatever becomes of them, for so long.
    pub(crate) async fn rate(&self, per_second: u32, time: Duration) -> Tally {
        let start = Instant::now();
        let idle: Arc<Mutex<Vec<Connection>>> = Arc::default();
        let mut tasks = JoinSet::new();
        let mut due = start;
        while due < start + time {
            sleep_until(due.into()).await;
            due += Duration::from_secs(1) / per_second;
            let (load, idle) = (self.clone(), Arc::clone(&idle));
            tasks.spawn(async move {
                let pooled = || idle.lock().unwrap_or_else(PoisonError::into_inner);
                let connection = pooled().pop();
                let mut tally = Tally::default();
                let connection = load.ask(connection, &mut tally).await;
                pooled().extend(connection);
                tally
            });
        }
        gather(tasks, start).await
    }

    /// So many streams, each read up to its first event and held open from then on.
    pub(crate) async fn hold(&self, count: usize) -> Result<Vec<Connection>> {
        let mut tasks = JoinSet::new();
        for _ in 0..count {
            let load = self.clone();
            tasks.spawn(async move {
                let mut connection = Connection::open(load.address).await?;
                connection.send(&load.request).await?;
                while find(connection.bytes(), b"data: ").is_none() {
                    if !connection.more().await? {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Ok(connection)
            });
        }
        let held: io::Result<Vec<_>> = tasks.join_all().await.into_iter().collect();
        held.map_err(|error| format!("hold {count} streams: {error}"))
    }

    /// One request; yields the connection if it can be used again.
    async fn ask(&self, connection: Option<Connection>, tally: &mut Tally) -> Option<Connection> {
        let result = match timeout(self.patience, self.exchange(connection, tally)).await {
            Ok(result) => result,
            Err(_) => Err(io::Error::other(format!("no answer within {:?}", self.patience))),
        };
        match result {
            Ok(connection) => Some(connection),
            Err(error) => {
                tally.errors += 1;
                tally.first_error.get_or_insert_with(|| error.to_string());
                None
            }
        }
    }

    async fn exchange(&self, connection: Option<Connection>, tally: &mut Tally) -> io::Result<Connection> {
        let mut connection = match connection {
            Some(connection) => connection,
            None => Connection::open(self.address).await?,
        };
        let cut = || io::Error::from(io::ErrorKind::UnexpectedEof);
        let start = Instant::now();
        connection.send(&self.request).await?;
        let head = connection.head().await?.ok_or_else(cut)?;
        if head.framing == Framing::Chunked {
            tally.count_worker(&connection.bytes()[..head.len]);
            connection.used(head.len);
            read_events(&mut connection, start, tally).await?;
        } else {
            let (_, bytes) = connection.message().await?.ok_or_else(cut)?;
            if head.status != 200 {
                let text = String::from_utf8_lossy(&bytes[head.len..]);
                return Err(io::Error::other(format!("status {}: {text}", head.status)));
            }
            tally.count_worker(bytes);
            let length = bytes.len();
            connection.used(length);
        }
        tally.took.push(start.elapsed());
        Ok(connection)
    }
}

/// Reads a stream to its end.
async fn read_events(connection: &mut Connection, start: Instant, tally: &mut Tally) -> io::Result<()> {
    let (mut lines, mut is_done, mut is_first) = (EventLines::default(), false, true);
    loop {
        let mut seen = 0;
        while let Some((line, length)) = lines.next(&connection.bytes()[seen..]) {
            seen += length;
            match line {
                Line::Data(b"[DONE]") => is_done = true,
                Line::Data(data) => {
                    if std::mem::take(&mut is_first) {
                        tally.first_token.push(start.elapsed());
                    }
                    tally.delays.extend(delay(data));
                }
                Line::Other => {}
                Line::End => {
                    connection.used(seen);
                    return if is_done {
                        Ok(())
                    } else {
                        Err(io::Error::other("a stream ended without [DONE]"))
                    };
                }
            }
        }
        connection.used(seen);
        if !connection.more().await? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// How long ago its backend sent an event: the time stands at its end.
fn delay(event: &[u8]) -> Option<Duration> {
    let tail = &event[event.len().saturating_sub(40)..];
    let colon = tail.iter().rposition(|byte| *byte == b':')?;
    let digits = tail[colon + 1..].strip_suffix(b"}")?;
    let sent: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(Duration::from_nanos(now_ns().saturating_sub(sent)))
}

async fn gather(tasks: JoinSet<Tally>, start: Instant) -> Tally {
    let mut all = Tally::default();
    for tally in tasks.join_all().await {
        all.merge(tally);
    }
    all.elapsed = start.elapsed();
    all
}

impl Tally {
    /// Notes who answered: a name of the backends, in an answer or its head.
    fn count_worker(&mut self, bytes: &[u8]) {
        let name = find(bytes, b"figures-0").and_then(|from| bytes.get(from..from + "figures-0000".len()));
        let Some(name) = name.and_then(|name| std::str::from_utf8(name).ok()) else {
            return;
        };
        match self.workers.get_mut(name) {
            Some(count) => *count += 1,
            None => drop(self.workers.insert(name.to_owned(), 1)),
        }
    }

    pub(crate) fn merge(&mut self, other: Self) {
        self.took.extend(other.took);
        self.first_token.extend(other.first_token);
        self.delays.extend(other.delays);
        for (name, count) in other.workers {
            *self.workers.entry(name).or_default() += count;
        }
        self.errors += other.errors;
        self.first_error = self.first_error.take().or(other.first_error);
    }

    /// An error if any request failed: figures of a gateway that fails are not worth printing.
    pub(crate) fn check(self, name: &str) -> Result<Self> {
        match (self.errors, self.took.len()) {
            (0, 1..) => Ok(self),
            (errors, done) => Err(format!(
                "measure {name}: {errors} requests failed and {done} did not; the first: {}",
                self.first_error.as_deref().unwrap_or("nothing was sent")
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_the_smallest_value_that_covers_its_share() {
        let mut hundred: Vec<_> = (1..=100).rev().map(Duration::from_millis).collect();
        for (share, millis) in [(0.5, 50), (0.99, 99), (1.0, 100)] {
            assert_eq!(quantile(&mut hundred, share), Duration::from_millis(millis));
        }
        assert_eq!(quantile(&mut [], 0.5), Duration::ZERO);
    }

    #[test]
    fn an_events_delay_is_read_from_its_end() {
        let event = format!("{{\"id\":\"a:b\",\"sent_ns\":{}}}", now_ns() - 5_000_000_000);
        let seconds = delay(event.as_bytes()).unwrap().as_secs();
        assert!((5..60).contains(&seconds));
        assert_eq!(delay(b"{\"sent_ns\":\"?\"}"), None);
    }
}
