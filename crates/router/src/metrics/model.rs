//! What is counted of the requests for one model.

use std::sync::Arc;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;

use super::Metrics;
use super::latency::Latency;

/// The handles of one model's metrics, found once: a request costs no look-up.
#[derive(Debug)]
pub(crate) struct ModelMetrics {
    label: Arc<str>,
    metrics: Arc<Metrics>,
    /// Nearly all answers are.
    ok: Counter,
    /// Requests that wait for a worker of it.
    pub(super) queue_depth: Gauge,
    /// From a request's arrival to the first token of its stream.
    pub(crate) first_token: Latency,
    /// Between two tokens of a stream, as they are relayed.
    pub(crate) inter_token: Latency,
    /// From a request's arrival to the end of its answer.
    pub(crate) duration: Latency,
    /// Tokens that were relayed.
    pub(crate) output_tokens: Counter,
}

impl ModelMetrics {
    /// Of the model with this label, as [`Metrics::model_label`] gives it.
    pub(crate) fn new(label: String, metrics: &Arc<Metrics>) -> Self {
        let labels = super::ModelLabels { model: label };
        let families = &metrics.models;
        Self {
            ok: metrics.requests(&labels.model, 200),
            queue_depth: families.queue_depth.get_or_create_owned(&labels),
            first_token: families.first_token.get_or_create_owned(&labels),
            inter_token: families.inter_token.get_or_create_owned(&labels),
            duration: families.duration.get_or_create_owned(&labels),
            output_tokens: families.output_tokens.get_or_create_owned(&labels),
            label: labels.model.into(),
            metrics: Arc::clone(metrics),
        }
    }

    /// What stands for the model.
    pub(crate) fn label(&self) -> &str {
        &self.label
    }

    /// Counts an answer.
    pub(crate) fn count(&self, status: u16) {
        match status {
            200 => self.ok.inc(),
            _ => self.metrics.requests(&self.label, status).inc(),
        };
    }

    /// One more waits.
    pub(crate) fn joins_queue(&self) {
        self.queue_depth.inc();
        self.metrics.waiting.inc();
    }

    /// One less waits.
    pub(crate) fn leaves_queue(&self) {
        self.queue_depth.dec();
        self.metrics.waiting.dec();
    }
}
