//! The way of ended spans to the collector: a bounded queue, batches, OTLP over HTTP with protobuf bodies.
//!
//! Requests never wait for it: what the queue has no room for is dropped and counted, and so is a batch that the collector
//! does not take.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::header::CONTENT_TYPE;
use opentelemetry::trace::TracerProvider;
use opentelemetry::{Context, KeyValue};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider, Span, SpanData, SpanProcessor};
use prost::Message;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};

/// Ended spans that wait for their batch; some 1 KB each.
const QUEUE: usize = 4_096;
/// Most spans in one request to the collector.
const MAX_BATCH: usize = 512;
/// Longest wait of an ended span for others to go with it.
const BATCH_DELAY: Duration = Duration::from_secs(1);
/// Limit for the collector to take a batch.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two lines of the log that say that the collector takes no traces.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);
/// Path of the endpoint for traces, in the specification of OTLP/HTTP.
const PATH: &str = "/v1/traces";

/// Where traces go: the base URL of a collector, or its endpoint for traces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collector(reqwest::Url);

/// A text that is no collector's URL.
#[derive(Debug, thiserror::Error)]
#[error("expected the URL of an OTLP/HTTP collector, for example http://localhost:4318")]
pub struct NoCollector;

impl FromStr for Collector {
    type Err = NoCollector;

    fn from_str(text: &str) -> Result<Self, NoCollector> {
        let mut url: reqwest::Url = text.parse().map_err(|_| NoCollector)?;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return Err(NoCollector);
        }
        if !url.path().ends_with(PATH) {
            let path = format!("{}{PATH}", url.path().trim_end_matches('/'));
            url.set_path(&path);
        }
        Ok(Self(url))
    }
}

impl fmt::Display for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Makes spans, for the layer of `tracing`.
pub(crate) struct Traces {
    pub(crate) tracer: SdkTracer,
}

/// Sends ended spans to the collector.
pub struct Export {
    collector: Collector,
    resource: ResourceAttributesWithSchema,
    queue: mpsc::Receiver<SpanData>,
    dropped: Arc<AtomicU64>,
}

/// A running [`Export`].
pub(crate) struct Running {
    finish: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<()>,
}

/// The two ends of the way to the collector. `service` is the daemon's name in traces.
pub(crate) fn start(collector: Collector, service: &str) -> (Traces, Export) {
    let (queue, ended) = mpsc::channel(QUEUE);
    let dropped = Arc::new(AtomicU64::new(0));
    // Nothing is read from the environment: what is set for other programs is not meant for this one.
    let resource = Resource::builder_empty()
        .with_service_name(service.to_owned())
        .with_attribute(KeyValue::new("service.version", crate::build::version()))
        .with_attribute(KeyValue::new("process.pid", i64::from(std::process::id())))
        .build();
    let provider = SdkTracerProvider::builder()
        .with_resource(resource.clone())
        // A client that says that its trace is not kept is believed.
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::AlwaysOn)))
        .with_span_processor(Collect {
            queue,
            dropped: Arc::clone(&dropped),
        })
        .build();
    let traces = Traces {
        tracer: provider.tracer("rbee"),
    };
    let export = Export {
        collector,
        resource: (&resource).into(),
        queue: ended,
        dropped,
    };
    (traces, export)
}

/// Takes ended spans from wherever they end.
#[derive(Debug)]
struct Collect {
    queue: mpsc::Sender<SpanData>,
    dropped: Arc<AtomicU64>,
}

impl SpanProcessor for Collect {
    fn on_start(&self, _span: &mut Span, _context: &Context) {}

    fn on_end(&self, span: SpanData) {
        if self.queue.try_send(span).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        // The daemon flushes by `Running::finish`, which can be awaited.
        Ok(())
    }

    fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
        Ok(())
    }
}

impl Running {
    /// Sends what has ended by now, within this time.
    pub(crate) async fn finish(self, limit: Duration) {
        let Self { finish, mut task } = self;
        // Its receiver lives as long as the task.
        let _ = finish.send(());
        if timeout(limit, &mut task).await.is_err() {
            task.abort();
            tracing::warn!("the last traces were not sent: the collector is too slow");
        }
    }
}

impl Export {
    /// Runs until it is finished.
    pub(crate) fn spawn(self, client: reqwest::Client) -> Running {
        let (finish, finished) = oneshot::channel();
        Running {
            finish,
            task: tokio::spawn(self.run(client, finished)),
        }
    }

    async fn run(mut self, client: reqwest::Client, mut finished: oneshot::Receiver<()>) {
        let mut complaints = Complaints::default();
        loop {
            let mut batch = Vec::with_capacity(MAX_BATCH);
            let goes_on = tokio::select! {
                () = gather(&mut self.queue, &mut batch) => true,
                _ = &mut finished => false,
            };
            if !goes_on {
                // What is there now is the rest.
                while let Ok(span) = self.queue.try_recv() {
                    batch.push(span);
                }
            }
            let mut rest = batch.into_iter().peekable();
            while rest.peek().is_some() {
                let batch: Vec<_> = rest.by_ref().take(MAX_BATCH).collect();
                let count = batch.len() as u64;
                let failure = self.send(&client, batch).await.err();
                if failure.is_some() {
                    self.dropped.fetch_add(count, Ordering::Relaxed);
                }
                complaints.note(&self.dropped, failure.as_deref());
            }
            if !goes_on {
                complaints.last(&self.dropped);
                return;
            }
        }
    }

    async fn send(&self, client: &reqwest::Client, batch: Vec<SpanData>) -> Result<(), String> {
        let request = ExportTraceServiceRequest {
            resource_spans: group_spans_by_resource_and_scope(batch, &self.resource),
        };
        let answer = client
            .post(self.collector.0.clone())
            .timeout(EXPORT_TIMEOUT)
            .header(CONTENT_TYPE, "application/x-protobuf")
            .body(request.encode_to_vec())
            .send()
            .await
            .map_err(|error| format!("{:#}", Chain(&error)))?;
        match answer.status() {
            status if status.is_success() => Ok(()),
            status => Err(format!("{} answered {status}", self.collector)),
        }
    }
}

/// Waits for ended spans: a full batch, or those of a second.
async fn gather(queue: &mut mpsc::Receiver<SpanData>, batch: &mut Vec<SpanData>) {
    if queue.recv_many(batch, MAX_BATCH).await == 0 {
        // No sender is left, so that nothing will come; the end is for `finished` to say.
        std::future::pending::<()>().await;
    }
    let until = Instant::now() + BATCH_DELAY;
    while batch.len() < MAX_BATCH {
        let room = MAX_BATCH - batch.len();
        if !matches!(timeout_at(until, queue.recv_many(batch, room)).await, Ok(count) if count > 0) {
            return;
        }
    }
}

/// What the log says of dropped spans: now and then, not for each.
#[derive(Default)]
struct Complaints {
    latest: Option<Instant>,
    /// Dropped spans that the log knows of.
    told: u64,
}

impl Complaints {
    fn note(&mut self, dropped: &AtomicU64, failure: Option<&str>) {
        if self.latest.is_some_and(|latest| latest.elapsed() < COMPLAIN_EVERY) {
            return;
        }
        let dropped = dropped.load(Ordering::Relaxed);
        if dropped > self.told {
            let failure = failure.unwrap_or("more ended at a time than the queue holds");
            tracing::warn!(dropped = dropped - self.told, failure, "traces are being dropped");
            (self.told, self.latest) = (dropped, Some(Instant::now()));
        }
    }

    fn last(&self, dropped: &AtomicU64) {
        let dropped = dropped.load(Ordering::Relaxed);
        if dropped > self.told {
            tracing::warn!(dropped = dropped - self.told, "traces were dropped");
        }
    }
}

/// An error with its causes, as one text.
struct Chain<'a>(&'a dyn std::error::Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self.0, f)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::{Span as _, Tracer};

    use super::*;

    fn collector(text: &str) -> Result<String, String> {
        let collector = text.parse::<Collector>().map_err(|error| error.to_string())?;
        Ok(collector.to_string())
    }

    #[test]
    fn a_collector_is_named_by_its_base_url_or_by_its_endpoint() {
        for (text, url) in [
            ("http://localhost:4318", "http://localhost:4318/v1/traces"),
            ("http://localhost:4318/", "http://localhost:4318/v1/traces"),
            ("https://host/otel", "https://host/otel/v1/traces"),
            ("http://localhost:4318/v1/traces", "http://localhost:4318/v1/traces"),
        ] {
            assert_eq!(collector(text).as_deref(), Ok(url));
        }
        for text in ["", "localhost:4318", "grpc://localhost:4317", "/v1/traces"] {
            assert!(collector(text).unwrap_err().contains("http://localhost:4318"), "{text}");
        }
    }

    #[test]
    fn a_full_queue_drops_spans_and_counts_them() {
        let (traces, export) = start("http://localhost:4318".parse().unwrap(), "test");
        for _ in 0..QUEUE + 3 {
            traces.tracer.start("span").end();
        }
        assert_eq!(export.dropped.load(Ordering::Relaxed), 3);
        assert_eq!(export.queue.len(), QUEUE);
    }

    #[tokio::test(start_paused = true)]
    async fn spans_that_end_within_a_second_go_together() {
        let (traces, mut export) = start("http://localhost:4318".parse().unwrap(), "test");
        let tracer = traces.tracer.clone();
        let late = tokio::spawn(async move {
            for wait_ms in [0, 600, 600] {
                tokio::time::sleep(Duration::from_millis(wait_ms)).await;
                tracer.start("span").end();
            }
        });
        let mut batch = Vec::new();
        gather(&mut export.queue, &mut batch).await;
        assert_eq!(batch.len(), 2);
        late.await.unwrap();
    }
}
