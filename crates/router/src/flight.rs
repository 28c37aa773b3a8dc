//! A request in flight.

use std::sync::Arc;

use crate::metrics::Metrics;

/// A request in flight: counted from its arrival to its last byte.
pub(crate) struct Flight {
    metrics: Arc<Metrics>,
    has_landed: bool,
}

impl Flight {
    /// One more.
    pub(crate) fn start(metrics: &Arc<Metrics>) -> Self {
        metrics.inflight.inc();
        Self {
            metrics: Arc::clone(metrics),
            has_landed: false,
        }
    }

    /// It came to its end. Dropped without that, its client left.
    pub(crate) fn landed(mut self) {
        self.has_landed = true;
    }

    /// Where its end is counted.
    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.metrics.inflight.dec();
        if !self.has_landed {
            self.metrics.clients_gone.inc();
        }
    }
}
