//! One run against one server: join, wait for the call-backs, beat.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::get;
use chrono::Utc;
use tokio::net::{TcpListener, UdpSocket, lookup_host};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;
use worker_contract::{Endpoint, WorkerHeartbeat, WorkerInfo, WorkerLoad, WorkerStatus};

use crate::Args;
use crate::process::Usage;
use crate::senders::{Senders, Tally};

/// Longest pause between two call-backs; then no more are expected.
const CALL_PAUSE: Duration = Duration::from_secs(2);

/// A server to beat to.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) name: &'static str,
    pub(crate) url: String,
    pub(crate) pid: Option<u32>,
    /// Whether it calls a new member back, as a queen does.
    pub(crate) calls_back: bool,
}

/// What a run found.
#[derive(Debug)]
pub(crate) struct Figures {
    name: &'static str,
    senders: u32,
    connections: u16,
    join: Tally,
    join_time: Duration,
    called_back: u32,
    call_time: Duration,
    beat: Tally,
    beat_time: Duration,
    usage: Option<Used>,
}

#[derive(Debug)]
struct Used {
    cpu: Duration,
    bytes_per_member: u64,
    rss_bytes: u64,
}

pub(crate) async fn run(args: &Args, target: &Target) -> Result<Figures, String> {
    let usage = || target.pid.map(Usage::of).transpose();
    let authority = target
        .url
        .strip_prefix("http://")
        .map(|rest| rest.trim_end_matches('/').to_owned());
    let authority = authority.ok_or_else(|| format!("use {}: it should look like http://HOST:7833", target.url))?;
    let health = Health::listen(&authority).await?;
    let before = usage()?;

    let (start, mut senders) = (Instant::now(), senders(args, &authority, health.address.port())?);
    let mut join = Tally::new();
    (senders, join) = each(senders, join, |mut group| async move {
        let tally = group.beat_each().await;
        (group, tally)
    })
    .await;
    let join_time = start.elapsed();
    if target.calls_back {
        health.settle(args.senders).await;
    }
    let call_time = start.elapsed();
    let joined = usage()?;

    let start = Instant::now();
    let deadline = start + Duration::from_secs(args.seconds.into());
    let pace = args
        .rate
        .map(|rate| Duration::from_secs_f64(f64::from(args.connections) / f64::from(rate)));
    let (_, beat) = each(senders, Tally::new(), |mut group| async move {
        let tally = group.beat_until(deadline, pace).await;
        (group, tally)
    })
    .await;
    let beat_time = start.elapsed();
    let after = usage()?;

    let usage = before.zip(joined).zip(after).map(|((before, joined), after)| Used {
        cpu: after.cpu.saturating_sub(joined.cpu),
        bytes_per_member: joined.rss_bytes.saturating_sub(before.rss_bytes) / u64::from(args.senders),
        rss_bytes: after.rss_bytes,
    });
    Ok(Figures {
        name: target.name,
        senders: args.senders,
        connections: args.connections,
        join,
        join_time,
        called_back: health.calls(),
        call_time,
        beat,
        beat_time,
        usage,
    })
}

/// Lets every group do something at once, and gathers what came of it.
async fn each<F: Future<Output = (Senders, Tally)> + Send + 'static>(
    groups: Vec<Senders>,
    mut tally: Tally,
    act: impl Fn(Senders) -> F,
) -> (Vec<Senders>, Tally) {
    let mut tasks: JoinSet<_> = groups.into_iter().map(act).collect();
    let mut groups = Vec::with_capacity(tasks.len());
    while let Some(done) = tasks.join_next().await {
        match done {
            Ok((group, more)) => {
                groups.push(group);
                tally.merge(more);
            }
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
    (groups, tally)
}

/// The senders, dealt out to the connections.
fn senders(args: &Args, authority: &str, port: u16) -> Result<Vec<Senders>, String> {
    let incarnation = Utc::now().timestamp_millis().unsigned_abs();
    let mut groups = vec![Vec::new(); usize::from(args.connections).min(args.senders as usize)];
    let count = groups.len();
    for number in 0..args.senders {
        let beat = WorkerHeartbeat {
            worker: WorkerInfo {
                id: id(format!("load-{number:06}"))?,
                model_id: id(format!("load/model-{}", number % args.models))?,
                device: "cuda:0".to_owned(),
                port,
                status: WorkerStatus::Ready,
                implementation: "heartbeat-load".to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                host: None,
                hive_id: Some(id(format!("load-hive-{}", number / 8))?),
                incarnation,
                slots: 8,
                context_length: 8_192,
                model_revision: Some("0123456789abcdef".to_owned()),
                endpoints: vec![Endpoint::ChatCompletions, Endpoint::Completions],
                features: Vec::new(),
                pid: Some(1_000 + number),
                status_detail: None,
            },
            timestamp: Utc::now(),
            seq: 0,
            load: WorkerLoad {
                running: number % 8,
                kv_used_tokens: 1_024,
                kv_total_tokens: 65_536,
                tokens_per_second: 123.4,
                ..WorkerLoad::default()
            },
        };
        groups[number as usize % count].push(beat);
    }
    let token = args.token.as_deref();
    Ok(groups
        .into_iter()
        .map(|beats| Senders::new(beats, authority, token))
        .collect())
}

fn id<T: TryFrom<String, Error: fmt::Display>>(text: String) -> Result<T, String> {
    T::try_from(text).map_err(|error| format!("name a sender: {error}"))
}

/// Answers the queen's call-backs for all senders.
#[derive(Debug)]
struct Health {
    address: SocketAddr,
    calls: Arc<AtomicU32>,
    _server: AbortOnDropHandle<()>,
}

impl Health {
    /// On the address that the way to the server leaves from: beats come from there, so that is what the queen dials.
    async fn listen(authority: &str) -> Result<Self, String> {
        let failed = |error: std::io::Error| format!("find the way to {authority}: {error}");
        let server = lookup_host(authority).await.map_err(failed)?.next();
        let server = server.ok_or_else(|| format!("find the way to {authority}: it has no address"))?;
        let any: SocketAddr = if server.is_ipv4() {
            ([0; 4], 0).into()
        } else {
            ([0_u16; 8], 0).into()
        };
        let way = UdpSocket::bind(any).await.map_err(failed)?;
        way.connect(server).await.map_err(failed)?;
        let ip = way.local_addr().map_err(failed)?.ip();
        let listener = TcpListener::bind((ip, 0)).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let calls = Arc::new(AtomicU32::new(0));
        let seen = Arc::clone(&calls);
        let answer = move || {
            seen.fetch_add(1, Ordering::Relaxed);
            async { "ok" }
        };
        let router = Router::new().route("/health", get(answer));
        let server = tokio::spawn(async move {
            // It ends with the run.
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self {
            address,
            calls,
            _server: AbortOnDropHandle::new(server),
        })
    }

    fn calls(&self) -> u32 {
        self.calls.load(Ordering::Relaxed)
    }

    /// Waits until all were called, or no more are.
    async fn settle(&self, wanted: u32) {
        let (mut seen, mut since) = (self.calls(), Instant::now());
        while seen < wanted && since.elapsed() < CALL_PAUSE {
            tokio::time::sleep(Duration::from_millis(10)).await;
            let calls = self.calls();
            if calls != seen {
                (seen, since) = (calls, Instant::now());
            }
        }
    }
}

impl Figures {
    fn beats_per_s(&self) -> f64 {
        self.beat.latency.count() as f64 / self.beat_time.as_secs_f64()
    }

    fn cpu_per_10_000(&self) -> Option<f64> {
        let beats = self.beat.latency.count().max(1) as f64;
        Some(self.usage.as_ref()?.cpu.as_secs_f64() / beats * 10_000.0)
    }

    /// How the first compares with the second.
    pub(crate) fn ratio(one: &Self, other: &Self) -> String {
        let mut text = format!(
            "{} : {}\n  beats/s              {:.2}",
            one.name,
            other.name,
            one.beats_per_s() / other.beats_per_s()
        );
        if let Some((one, other)) = one.cpu_per_10_000().zip(other.cpu_per_10_000()) {
            text.push_str(&format!("\n  CPU a beat           {:.2}", one / other));
        }
        text
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}: {} senders on {} connections",
            self.name, self.senders, self.connections
        )?;
        let joined = self.join.latency.count();
        let join_s = self.join_time.as_secs_f64();
        writeln!(
            f,
            "  joined               {joined} in {join_s:.2} s ({:.0} beats/s)",
            joined as f64 / join_s
        )?;
        if self.called_back > 0 {
            let call_s = self.call_time.as_secs_f64();
            writeln!(
                f,
                "  called back          {} within {call_s:.2} s of the start",
                self.called_back
            )?;
        }
        let latency = &self.beat.latency;
        writeln!(
            f,
            "  beats                {} in {:.2} s",
            latency.count(),
            self.beat_time.as_secs_f64()
        )?;
        writeln!(f, "  beats/s              {:.0}", self.beats_per_s())?;
        let micros = |share| latency.quantile(share).as_micros();
        writeln!(f, "  latency p50, p99     {} us, {} us", micros(0.5), micros(0.99))?;
        let errors = self.join.errors + self.beat.errors;
        write!(
            f,
            "  errors, dropped      {errors}, {}",
            self.join.dropped + self.beat.dropped
        )?;
        if let Some(error) = self.join.first_error.as_ref().or(self.beat.first_error.as_ref()) {
            write!(f, " (the first: {error})")?;
        }
        if let (Some(usage), Some(cpu)) = (&self.usage, self.cpu_per_10_000()) {
            write!(
                f,
                "\n  CPU-s a 10,000 beats {cpu:.3} ({:.0} beats/s of one core)",
                10_000.0 / cpu.max(1e-9)
            )?;
            write!(
                f,
                "\n  bytes a member       {} (growth of its memory while they joined)",
                usage.bytes_per_member
            )?;
            write!(
                f,
                "\n  memory at the end    {:.1} MiB",
                usage.rss_bytes as f64 / f64::from(1 << 20)
            )?;
        }
        Ok(())
    }
}
