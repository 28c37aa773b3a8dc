//! Things that there are for a while.

use prometheus_client::metrics::gauge::Gauge;

/// One more in a gauge, for as long as this lives.
#[derive(Debug)]
#[must_use = "it is counted until this is dropped"]
pub(crate) struct Counted(Gauge);

impl Counted {
    pub(crate) fn one_of(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}
