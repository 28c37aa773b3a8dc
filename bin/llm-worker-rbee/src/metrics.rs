//! What `GET /metrics` shows, in Prometheus' text format.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use batch_engine::EngineHandle;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// Limits of the histogram's buckets in seconds.
const FIRST_TOKEN_BUCKETS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// The worker's metrics. Clones share them.
#[derive(Clone)]
pub(crate) struct Metrics {
    registry: Arc<Registry>,
    requests: Family<RequestLabels, Counter>,
    first_token_seconds: Histogram,
    engine: Arc<OnceLock<EngineHandle>>,
}

/// Which endpoint a request came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Endpoint {
    ChatCompletions,
    Completions,
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
        let engine = Arc::new(OnceLock::new());
        let mut registry = Registry::with_prefix("rbee_worker");
        registry.register(
            "requests",
            "Requests by endpoint and by how they ended",
            requests.clone(),
        );
        registry.register_with_unit(
            "first_token",
            "Time from the request to the first token of its answer",
            Unit::Seconds,
            first_token_seconds.clone(),
        );
        registry.register_collector(Box::new(EngineCollector(Arc::clone(&engine))));
        Self {
            registry: Arc::new(registry),
            requests,
            first_token_seconds,
            engine,
        }
    }

    /// Shows this engine's figures from now on.
    pub(crate) fn watch_engine(&self, engine: EngineHandle) {
        // There is one engine in a worker's life.
        let _ = self.engine.set(engine);
    }

    /// Counts a request that has just come.
    pub(crate) fn begin(&self, endpoint: Endpoint) -> Ticket {
        Ticket {
            metrics: self.clone(),
            endpoint,
            outcome: Outcome::Refused,
            since: Instant::now(),
            has_token: false,
        }
    }

    /// The text that Prometheus reads.
    pub(crate) fn render(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// Follows one request; counts it when dropped.
pub(crate) struct Ticket {
    metrics: Metrics,
    endpoint: Endpoint,
    outcome: Outcome,
    since: Instant,
    has_token: bool,
}

impl Ticket {
    /// The engine has taken it: if it is dropped now, its client left.
    pub(crate) fn begun(&mut self) {
        self.outcome = Outcome::Cancelled;
    }

    /// A token was generated.
    pub(crate) fn token(&mut self) {
        if !self.has_token {
            self.has_token = true;
            self.metrics
                .first_token_seconds
                .observe(self.since.elapsed().as_secs_f64());
        }
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
    }
}

/// Reads the engine's own figures at each scrape.
struct EngineCollector(Arc<OnceLock<EngineHandle>>);

impl fmt::Debug for EngineCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EngineCollector")
    }
}

impl Collector for EngineCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(engine) = self.0.get() else { return Ok(()) };
        let (load, counters) = (engine.load(), engine.counters());
        let mut show = |name: &str, help: &str, metric: &dyn EncodeMetric| {
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
        };
        for (name, help, value) in [
            ("running", "Sequences being computed", load.running),
            ("waiting", "Requests that wait for a slot", load.waiting),
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
                "kv_total_tokens",
                "Tokens that the KV cache can hold",
                load.kv_total_tokens,
            ),
        ] {
            show(name, help, &ConstGauge::new(value as u64))?;
        }
        show(
            "tokens_per_second",
            "Tokens decoded per second, recently",
            &ConstGauge::new(load.tokens_per_second),
        )?;
        for (name, help, value) in [
            ("prefill_tokens", "Prompt tokens computed", counters.prefill_tokens),
            ("decode_tokens", "Tokens generated", counters.decode_tokens),
            ("steps", "Forward passes of the model", counters.steps),
        ] {
            show(name, help, &ConstCounter::new(value))?;
        }
        show(
            "step_seconds",
            "Time spent in forward passes",
            &ConstCounter::new(counters.step_time.as_secs_f64()),
        )
    }
}
