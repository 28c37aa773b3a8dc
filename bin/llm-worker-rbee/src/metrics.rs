//! What `GET /metrics` shows.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use axum::http::HeaderMap;
use axum::response::Response;
use batch_engine::{Counters, EngineHandle};
use daemon::ApiError;
use daemon::metrics::{Exposition, show};
use openai_api::Usage;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::account::Account;
use crate::activity::Activity;
use crate::state::Memory;

/// Limits of the histograms' buckets in seconds.
const FIRST_TOKEN_BUCKETS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
const INTER_TOKEN_BUCKETS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0];

/// The worker's metrics. Clones share them.
#[derive(Clone)]
pub(crate) struct Metrics {
    registry: Arc<Registry>,
    exposition: Arc<Exposition>,
    requests: Family<RequestLabels, Counter>,
    first_token_seconds: Histogram,
    inter_token_seconds: Histogram,
    engine: Arc<OnceLock<Watched>>,
    activity: Activity,
}

/// An engine, and what had been done and taken when it became ready.
struct Watched {
    engine: EngineHandle,
    warm_up: Counters,
    memory: Memory,
}

/// Which endpoint a request came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Endpoint {
    ChatCompletions,
    Completions,
    Embeddings,
    CountTokens,
    Infer,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Outcome {
    /// With a complete answer.
    Finished,
    /// The client left before the answer was complete.
    Cancelled,
    /// Not begun: not valid, no room, not ready, draining.
    Refused,
    /// Broken off by a fault of ours.
    Failed,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    endpoint: Endpoint,
    outcome: Outcome,
}

impl EncodeLabelValue for Endpoint {
    fn encode(&self, encoder: &mut prometheus_client::encoding::LabelValueEncoder<'_>) -> fmt::Result {
        let word = match self {
            Self::ChatCompletions => "chat_completions",
            Self::Completions => "completions",
            Self::Embeddings => "embeddings",
            Self::CountTokens => "count_tokens",
            Self::Infer => "infer",
        };
        EncodeLabelValue::encode(&word, encoder)
    }
}

impl EncodeLabelValue for Outcome {
    fn encode(&self, encoder: &mut prometheus_client::encoding::LabelValueEncoder<'_>) -> fmt::Result {
        let word = match self {
            Self::Finished => "finished",
            Self::Cancelled => "cancelled",
            Self::Refused => "refused",
            Self::Failed => "failed",
        };
        EncodeLabelValue::encode(&word, encoder)
    }
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let requests = Family::<RequestLabels, Counter>::default();
        let first_token_seconds = Histogram::new(FIRST_TOKEN_BUCKETS);
        let inter_token_seconds = Histogram::new(INTER_TOKEN_BUCKETS);
        let engine = Arc::new(OnceLock::new());
        let mut registry = Registry::with_prefix("rbee_worker");
        registry.register(
            "requests",
            "Requests by endpoint and by how they ended",
            requests.clone(),
        );
        registry.register_with_unit(
            "time_to_first_token",
            "Time from the request to the first token of its answer",
            Unit::Seconds,
            first_token_seconds.clone(),
        );
        registry.register_with_unit(
            "inter_token_latency",
            "Time from one token of an answer to its next",
            Unit::Seconds,
            inter_token_seconds.clone(),
        );
        registry.register_collector(Box::new(EngineCollector(Arc::clone(&engine))));
        Self {
            registry: Arc::new(registry),
            exposition: Arc::new(Exposition::start()),
            requests,
            first_token_seconds,
            inter_token_seconds,
            engine,
            activity: Activity::new(Instant::now()),
        }
    }

    /// Shows this engine's figures from now on; what it did so far, to warm up, is left out.
    pub(crate) fn watch_engine(&self, engine: EngineHandle, memory: Memory) {
        let warm_up = engine.counters();
        // There is one engine in a worker's life.
        let _ = self.engine.set(Watched {
            engine,
            warm_up,
            memory,
        });
    }

    /// Counts a request that has just come.
    pub(crate) fn begin(&self, endpoint: Endpoint, account: Arc<Account>) -> Ticket {
        self.activity.begin();
        Ticket {
            metrics: self.clone(),
            endpoint,
            outcome: Outcome::Refused,
            since: Instant::now(),
            account,
        }
    }

    /// Whether requests are being answered.
    pub(crate) fn activity(&self) -> &Activity {
        &self.activity
    }

    /// The answer to `GET /metrics`.
    pub(crate) fn answer(&self, headers: &HeaderMap) -> Result<Response, ApiError> {
        self.exposition.answer(headers, &self.registry)
    }
}

/// Follows one request; counts it when dropped.
pub(crate) struct Ticket {
    metrics: Metrics,
    endpoint: Endpoint,
    outcome: Outcome,
    since: Instant,
    account: Arc<Account>,
}

impl Ticket {
    /// The engine has taken it: if it is dropped now, its client left.
    pub(crate) fn begun(&mut self) {
        self.outcome = Outcome::Cancelled;
    }

    /// Times the tokens of one answer; the request's first token is the first of its first answer.
    pub(crate) fn pulse(&self, is_first_answer: bool) -> Pulse {
        Pulse {
            metrics: self.metrics.clone(),
            begun: is_first_answer.then(|| (self.since, Arc::clone(&self.account))),
            latest: None,
        }
    }

    /// What it took.
    pub(crate) fn used(&self, usage: &Usage) {
        self.account.used(usage);
    }

    /// How it ended.
    pub(crate) fn end(&mut self, outcome: Outcome) {
        self.outcome = outcome;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let labels = RequestLabels {
            endpoint: self.endpoint,
            outcome: self.outcome,
        };
        self.metrics.requests.get_or_create(&labels).inc();
        self.metrics.activity.end(Instant::now());
    }
}

/// Times the tokens of one answer.
pub(crate) struct Pulse {
    metrics: Metrics,
    /// When the request came, if the time to its first token is wanted.
    begun: Option<(Instant, Arc<Account>)>,
    /// When the latest token came.
    latest: Option<Instant>,
}

impl Pulse {
    /// A token was generated.
    pub(crate) fn token(&mut self) {
        let now = Instant::now();
        let passed = |since: Instant| now.duration_since(since).as_secs_f64();
        match self.latest.replace(now) {
            Some(latest) => self.metrics.inter_token_seconds.observe(passed(latest)),
            None => {
                if let Some((begun, account)) = &self.begun {
                    self.metrics.first_token_seconds.observe(passed(*begun));
                    account.first_token(now.duration_since(*begun));
                }
            }
        }
    }
}

/// Reads the engine's own figures at each scrape.
struct EngineCollector(Arc<OnceLock<Watched>>);

impl fmt::Debug for EngineCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EngineCollector")
    }
}

impl Collector for EngineCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(watched) = self.0.get() else { return Ok(()) };
        encode_load(&mut encoder, &watched.engine)?;
        encode_counters(&mut encoder, &watched.engine.counters(), &watched.warm_up)?;
        encode_memory(&mut encoder, &watched.memory)
    }
}

fn encode_load(encoder: &mut DescriptorEncoder<'_>, engine: &EngineHandle) -> fmt::Result {
    let load = engine.load();
    for (name, help, value) in [
        ("sequences_running", "Sequences being computed", load.running),
        ("requests_waiting", "Requests that wait for a slot", load.waiting),
        (
            "slots",
            "Sequences that can be computed together",
            engine.max_sequences(),
        ),
        ("kv_used_tokens", "Tokens held in the KV cache", load.kv_used_tokens),
        (
            "kv_reserved_tokens",
            "Tokens of the KV cache promised to admitted requests",
            load.kv_reserved_tokens,
        ),
        (
            "kv_cached_tokens",
            "Tokens of the KV cache kept for prompts that begin alike, until their room is needed",
            load.kv_cached_tokens,
        ),
        (
            "kv_capacity_tokens",
            "Tokens that the KV cache can hold",
            load.kv_total_tokens,
        ),
    ] {
        show(encoder, name, help, &ConstGauge::new(value as u64))?;
    }
    let rate = ConstGauge::new(load.tokens_per_second);
    show(
        encoder,
        "tokens_per_second",
        "Tokens decoded per second, recently",
        &rate,
    )
}

fn encode_counters(encoder: &mut DescriptorEncoder<'_>, now: &Counters, warm_up: &Counters) -> fmt::Result {
    let counted = |of: fn(&Counters) -> u64| of(now).saturating_sub(of(warm_up));
    for (name, help, value) in [
        (
            "prefill_tokens",
            "Prompt tokens computed",
            counted(|counters| counters.prefill_tokens),
        ),
        (
            "decode_tokens",
            "Tokens generated",
            counted(|counters| counters.decode_tokens),
        ),
        (
            "prefix_lookup_tokens",
            "Prompt tokens that were looked up in the prefix cache",
            counted(|counters| counters.prefix_lookup_tokens),
        ),
        (
            "prefix_hit_tokens",
            "Prompt tokens that were in the prefix cache and not computed again",
            counted(|counters| counters.prefix_hit_tokens),
        ),
        (
            "prefix_evicted_blocks",
            "Blocks of the prefix cache that gave way to new ones",
            counted(|counters| counters.prefix_evicted_blocks),
        ),
        (
            "steps",
            "Forward passes of the model",
            counted(|counters| counters.steps),
        ),
    ] {
        show(encoder, name, help, &ConstCounter::new(value))?;
    }
    let seconds = now.step_time.saturating_sub(warm_up.step_time).as_secs_f64();
    show(
        encoder,
        "step_seconds",
        "Time spent in forward passes",
        &ConstCounter::new(seconds),
    )
}

fn encode_memory(encoder: &mut DescriptorEncoder<'_>, memory: &Memory) -> fmt::Result {
    let help = "Memory of the model: its weights, the whole KV cache, and the room that computing needs";
    let mut metric = encoder.encode_descriptor("memory", help, Some(&Unit::Bytes), MetricType::Gauge)?;
    for (kind, bytes) in [
        ("weights", memory.weight_bytes),
        ("kv_cache", memory.kv_cache_bytes),
        ("scratch", memory.scratch_bytes),
    ] {
        let labels = [("kind", kind)];
        ConstGauge::new(bytes).encode(metric.encode_family(&labels)?)?;
    }
    Ok(())
}
