//! OpenTelemetry traces, if the operator names a collector; without one, nothing of this costs anything.
//!
//! A span for a trace is one of `tracing`'s with the target `otlp` at the level trace: no log shows it unless asked to, and
//! where there is no collector, its call site is switched off. Attributes have the names of OpenTelemetry's semantic
//! conventions; what these have no name for begins with `rbee.`. Whole numbers are recorded as `i64`, the only ones that
//! OpenTelemetry has: of others the layer makes texts.

mod export;

use axum::extract::{MatchedPath, Request};
use axum::middleware::Next;
use axum::response::Response;
use http::{HeaderMap, HeaderValue};
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::TraceContextExt;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::field::Empty;
use tracing::{Level, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

pub use export::{Collector, Export};
pub(crate) use export::{Traces, start};

/// Target of the spans that go to the collector.
pub const TARGET: &str = "otlp";

/// Whether there is anybody for whom spans are made.
pub(crate) fn are_on() -> bool {
    tracing::enabled!(target: TARGET, Level::TRACE)
}

/// The span of a request to this daemon, a child of the one that its `traceparent` names (W3C Trace Context). Handlers may
/// record the empty fields, which costs nothing where there is no collector.
pub(crate) fn request_span<B>(request: &http::Request<B>, id: &HeaderValue, peer: std::net::SocketAddr) -> Span {
    let span = tracing::trace_span!(
        target: TARGET,
        "request",
        otel.name = Empty,
        otel.kind = "server",
        otel.status_code = Empty,
        http.request.method = request.method().as_str(),
        http.route = Empty,
        http.response.status_code = Empty,
        url.path = request.uri().path(),
        url.scheme = "http",
        client.address = %peer.ip(),
        rbee.request_id = id.to_str().unwrap_or_default(),
        gen_ai.operation.name = Empty,
        gen_ai.request.model = Empty,
        gen_ai.usage.input_tokens = Empty,
        gen_ai.usage.output_tokens = Empty,
    );
    if !span.is_disabled() {
        let parent = TraceContextPropagator::new().extract(&Headers(request.headers()));
        // Refused only if the span goes to the log and not to a collector: then it has no use for a parent.
        let _ = span.set_parent(parent);
    }
    span
}

/// Notes how a request was answered.
pub(crate) fn answered(span: &Span, status: http::StatusCode) {
    span.record("http.response.status_code", i64::from(status.as_u16()));
    if status.is_server_error() {
        span.record("otel.status_code", "ERROR");
    }
}

/// Middleware that names a request's span after its route.
pub(crate) async fn name_route(route: Option<MatchedPath>, request: Request, next: Next) -> Response {
    if let Some(route) = route {
        let span = Span::current();
        span.record("http.route", route.as_str());
        span.record("otel.name", format!("{} {}", request.method(), route.as_str()));
    }
    next.run(request).await
}

/// The header by which another daemon's spans become children of this one; `None` if this span goes to no collector.
pub fn traceparent(span: &Span) -> Option<HeaderValue> {
    let context = span.context();
    let span = context.span();
    let own = span.span_context();
    if !own.is_valid() {
        return None;
    }
    let flags = own.trace_flags().to_u8();
    let text = format!("00-{}-{}-{flags:02x}", own.trace_id(), own.span_id());
    HeaderValue::from_str(&text).ok()
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}
