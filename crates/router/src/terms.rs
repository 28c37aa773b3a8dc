//! Which workers a request may go to.

use std::sync::Arc;

use heartbeat_registry::Report;
use http::{HeaderMap, HeaderName, HeaderValue};
use shared_contract::ErrorKind;
use worker_contract::{Feature, WorkerHeartbeat};

use crate::refusal::Refusal;
use crate::tried::Tried;
use crate::worker::Worker;

/// Which workers a request may go to: all of its model, but for what its client and its past say.
#[derive(Default, Clone)]
pub(crate) struct Terms {
    pub(crate) tried: Tried,
    pins: Option<Arc<Pins>>,
    /// What the worker must be able to do.
    needs: Option<Feature>,
    /// What the revision must be, if the worker tells one.
    revision: Option<Arc<str>>,
}

/// Whom the client named.
#[derive(Debug, PartialEq, Eq)]
struct Pins {
    worker: Option<HeaderValue>,
    hive: Option<HeaderValue>,
    revision: Option<HeaderValue>,
}

/// Header that names the worker to go to.
const PIN_WORKER: HeaderName = HeaderName::from_static("x-rbee-worker");
/// Header that names the hive whose workers to go to.
const PIN_HIVE: HeaderName = HeaderName::from_static("x-rbee-hive");
/// Header that names the model's revision.
const PIN_REVISION: HeaderName = HeaderName::from_static("x-rbee-revision");

impl Terms {
    /// Takes the pins out of a client's headers.
    pub(crate) fn take(headers: &mut HeaderMap, needs: Option<Feature>) -> Self {
        let pins = Pins {
            worker: headers.remove(PIN_WORKER),
            hive: headers.remove(PIN_HIVE),
            revision: headers.remove(PIN_REVISION),
        };
        Self {
            pins: (!pins.is_empty()).then(|| Arc::new(pins)),
            needs,
            ..Self::default()
        }
    }

    /// From now on only workers with this feature and, where both are known, of this revision.
    pub(crate) fn narrow(&mut self, revision: Option<String>, needs: Option<Feature>) {
        self.needs = needs;
        self.revision = revision.map(Arc::from);
    }

    /// Whether the request may go to this worker at all.
    pub(crate) fn fits(&self, report: &Report<WorkerHeartbeat>) -> bool {
        if self.fits_anybody() {
            return true;
        }
        let worker = &report.item.worker;
        let revision = worker.model_revision.as_deref();
        let has_revision = match (&self.revision, revision) {
            (Some(wanted), Some(revision)) => **wanted == *revision,
            _ => true,
        };
        has_revision
            && self.needs.is_none_or(|feature| worker.features.contains(&feature))
            && self.pins.as_ref().is_none_or(|pins| pins.fit(report))
    }

    /// Whether this worker was tried and should not be asked again.
    pub(crate) fn excludes(&self, worker: &Worker, report: &Report<WorkerHeartbeat>) -> bool {
        self.tried.excludes(worker, report)
    }

    /// Whether it may go to any worker of its model now: nobody behind it could take one that it cannot.
    pub(crate) fn takes_anybody(&self) -> bool {
        self.fits_anybody() && self.tried.is_empty()
    }

    /// Whether any worker of its model is one that it may go to.
    pub(crate) fn fits_anybody(&self) -> bool {
        self.pins.is_none() && self.needs.is_none() && self.revision.is_none()
    }

    /// Whether the client named whom it may go to.
    pub(crate) fn is_pinned(&self) -> bool {
        self.pins.is_some()
    }

    /// The answer when no worker of the model fits; `None` where any would.
    pub(crate) fn refuse(&self, model: &str) -> Option<Refusal> {
        if let Some(pins) = &self.pins {
            let (header, value) = pins.first()?;
            let message = format!(
                "no worker of model `{model}` fits the header {header}: {}; leave it out to be served by any",
                String::from_utf8_lossy(value.as_bytes())
            );
            return Some(Refusal::new(ErrorKind::NoCapacity, message).with_param(header.as_str()));
        }
        let needs = self.needs?;
        let what = match needs {
            Feature::CountTokens => "count tokens",
            Feature::Resume | Feature::ContinueFinalMessage | Feature::Unknown => "finish what another one began",
        };
        Some(Refusal::new(
            ErrorKind::NoCapacity,
            format!("no worker of model `{model}` can {what}"),
        ))
    }
}

impl Pins {
    fn is_empty(&self) -> bool {
        self.worker.is_none() && self.hive.is_none() && self.revision.is_none()
    }

    fn fit(&self, report: &Report<WorkerHeartbeat>) -> bool {
        let worker = &report.item.worker;
        let is = |pin: &Option<HeaderValue>, name: Option<&str>| match (pin, name) {
            (None, _) => true,
            (Some(pin), Some(name)) => pin.as_bytes() == name.as_bytes(),
            (Some(_), None) => false,
        };
        is(&self.worker, Some(worker.id.as_str()))
            && is(&self.hive, worker.hive_id.as_ref().map(|hive| hive.as_str()))
            && is(&self.revision, worker.model_revision.as_deref())
    }

    fn first(&self) -> Option<(HeaderName, &HeaderValue)> {
        let worker = self.worker.as_ref().map(|pin| (PIN_WORKER, pin));
        let hive = || self.hive.as_ref().map(|pin| (PIN_HIVE, pin));
        let revision = || self.revision.as_ref().map(|pin| (PIN_REVISION, pin));
        worker.or_else(hive).or_else(revision)
    }
}
