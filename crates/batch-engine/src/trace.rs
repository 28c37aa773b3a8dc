//! A request's spans: the one that it was submitted in, and that of the stage it is in, for traces.

use tracing::Span;
use tracing::field::Empty;

/// Where a request was submitted, and which stage it is in: `queue`, `prefill`, `decode`. A stage's span has the target `otlp`
/// and costs nothing where there is no collector of traces.
pub(crate) struct Trace {
    request: Span,
    stage: Span,
}

impl Trace {
    /// It waits for a slot.
    pub(crate) fn queued() -> Self {
        Self {
            request: Span::current(),
            stage: tracing::trace_span!(target: "otlp", "queue"),
        }
    }

    /// Its prompt is being run.
    pub(crate) fn prefill(&mut self, prompt_tokens: usize, cached_tokens: usize) {
        // One stage ends before the next one begins.
        self.stage = Span::none();
        self.stage = self.request.in_scope(|| {
            tracing::trace_span!(
                target: "otlp",
                "prefill",
                gen_ai.usage.input_tokens = whole(prompt_tokens),
                rbee.cached_tokens = whole(cached_tokens),
            )
        });
    }

    /// Its first token is there.
    pub(crate) fn decode(&mut self) {
        self.stage = Span::none();
        let span = || tracing::trace_span!(target: "otlp", "decode", gen_ai.usage.output_tokens = Empty);
        self.stage = self.request.in_scope(span);
    }

    /// It has ended, with so many tokens.
    pub(crate) fn end(&mut self, generated_tokens: usize) {
        self.stage.record("gen_ai.usage.output_tokens", whole(generated_tokens));
        self.stage = Span::none();
    }

    /// Where it was submitted.
    pub(crate) fn request(&self) -> &Span {
        &self.request
    }
}

/// A number as OpenTelemetry has them.
fn whole(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
