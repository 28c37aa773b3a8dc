//! The way of a request through the queen: it finds a worker for it, waiting if that helps, and relays the answer.
//!
//! Owns: the line of each model, which worker is claimed for a request, what is known of each worker by how it answered
//! (its health, the prompts in its cache), the connections to the workers, attempts before the first byte, and the answer
//! on its way to the client, also when one worker has to finish what another one began.
//! Must not know: HTTP frameworks, hives, where a model could be placed or how it is started (it asks its [`Supply`]),
//! how a worker's heartbeats come in (it reads their registry).

mod account;
mod affinity;
mod attempt;
mod endpoint;
mod flight;
mod health;
mod journey;
mod line;
mod lines;
mod metrics;
mod probe;
mod receipt;
mod refusal;
mod relay;
mod situation;
mod supply;
mod terms;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod traffic;
mod tried;
mod upstream;
mod worker;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use heartbeat_registry::Registry;
use http::{HeaderMap, HeaderValue, Response};
use shared_contract::{ModelId, WorkerId};
use tracing::Span;
use worker_contract::WorkerHeartbeat;

use crate::attempt::Limits;
use crate::flight::Flight;
use crate::journey::Journey;
use crate::lines::Lines;
use crate::metrics::{Metrics, UNKNOWN_MODEL};
use crate::refusal::Refused;
use crate::traffic::Load;
use crate::upstream::Upstream;

pub use crate::account::{Account, Failure, Figures};
pub use crate::endpoint::Endpoint;
pub use crate::line::{Hold, Line};
pub use crate::refusal::Refusal;
pub use crate::relay::Body;
pub use crate::supply::{Demand, Prospect, Supply};
pub use crate::traffic::{BUCKET_S, ModelTraffic, Percentiles, Point, TrafficView};
pub use crate::worker::candidate;

/// Workers that are tried for one answer.
pub(crate) const MAX_ATTEMPTS: usize = 3;
/// For so long a stream can still be refused with an honest status; after that it is answered with 200 and what is to be said
/// of its waiting.
const STATUS_WINDOW: Duration = Duration::from_secs(1);

/// Settings of a router.
#[derive(Debug, Clone)]
pub struct RouterOptions {
    /// What workers are shown in place of the client's key.
    pub authorization: Option<HeaderValue>,
    /// The `traceparent` by which a worker's spans become children of a span; without it, workers get the client's.
    pub traceparent: Option<fn(&Span) -> Option<HeaderValue>>,
    /// Most requests that wait for one model; 0: none does.
    pub queue_max: usize,
    /// Longest wait of a request for a worker that is busy.
    pub queue_timeout: Duration,
    /// Longest wait of a request for a worker that is being started.
    pub load_timeout: Duration,
    /// Limit for the first byte of a stream.
    pub first_byte_timeout: Duration,
    /// Limit for the first byte of an answer that is no stream: it comes when the answer is complete.
    pub answer_timeout: Duration,
    /// An answer that has begun and is silent for so long has been lost.
    pub stall_timeout: Duration,
}

impl Default for RouterOptions {
    fn default() -> Self {
        Self {
            authorization: None,
            traceparent: None,
            queue_max: 256,
            queue_timeout: Duration::from_secs(30),
            load_timeout: Duration::from_secs(600),
            first_byte_timeout: Duration::from_secs(60),
            answer_timeout: Duration::from_secs(600),
            stall_timeout: Duration::from_secs(30),
        }
    }
}

/// The router. Clones are cheap and are the same router.
#[derive(Clone)]
pub struct Router {
    shared: Arc<Shared>,
}

/// What all requests share.
pub(crate) struct Shared {
    pub(crate) lines: Lines,
    pub(crate) upstream: Arc<Upstream>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) supply: Arc<dyn Supply>,
    pub(crate) workers: Arc<Registry<WorkerHeartbeat>>,
    pub(crate) options: RouterOptions,
}

impl Shared {
    /// How long a worker may take for its first byte.
    pub(crate) fn limits(&self, is_stream: bool) -> Limits {
        let RouterOptions {
            first_byte_timeout,
            answer_timeout,
            stall_timeout,
            ..
        } = self.options;
        Limits {
            silence: if is_stream { first_byte_timeout } else { answer_timeout },
            in_all: answer_timeout.max(first_byte_timeout),
            stall: stall_timeout,
        }
    }
}

impl Router {
    /// Over the workers of this registry; `metrics` gets the router's own.
    pub fn new(
        options: RouterOptions,
        workers: Arc<Registry<WorkerHeartbeat>>,
        supply: Arc<dyn Supply>,
        metrics: &mut prometheus_client::registry::Registry,
    ) -> Self {
        let metrics = Arc::new(Metrics::new(metrics));
        let upstream = Arc::new(Upstream::new(&options));
        Self {
            shared: Arc::new(Shared {
                lines: Lines::new(
                    options.queue_max,
                    Arc::clone(&workers),
                    Arc::clone(&metrics),
                    Arc::clone(&upstream),
                ),
                upstream,
                metrics,
                supply,
                workers,
                options,
            }),
        }
    }

    /// Answers a request to one of the OpenAI endpoints, and keeps its account. Dropping the future, or the answer's body, ends the request at the
    /// worker.
    ///
    /// # Errors
    /// No worker answered; what a worker refused is an answer.
    pub async fn answer(
        &self,
        endpoint: Endpoint,
        headers: HeaderMap,
        body: Bytes,
        account: Arc<Account>,
    ) -> Result<Response<Body>, Refusal> {
        let mut flight = Flight::start(&self.shared.metrics, Arc::clone(&account));
        let mut journey = match Journey::begin(&self.shared, endpoint, headers, &body, account) {
            Ok(journey) => journey,
            Err(refusal) => {
                let status = refusal.kind.status();
                flight.answered(status);
                flight.told(refusal.object().code);
                flight.landed();
                self.shared.metrics.requests(UNKNOWN_MODEL, status).inc();
                return Err(refusal);
            }
        };
        flight.is_for(journey.figures());
        if !journey.is_stream() {
            let result = journey.next_answer().await;
            return finish(journey, result, flight);
        }
        let situation = journey.situation();
        let mut travel = journey.travel();
        match tokio::time::timeout(STATUS_WINDOW, &mut travel).await {
            Ok((journey, result)) => finish(journey, result, flight),
            Err(_) => Ok(relay::waiting(travel, situation, flight)),
        }
    }

    /// The line of a model, if it was ever asked for: to be offered what has become free.
    pub fn line(&self, model: &ModelId) -> Option<Arc<Line>> {
        self.shared.lines.find(model.as_str())
    }

    /// Offers what has become free to all requests that wait.
    pub fn offer_all(&self) {
        for line in self.shared.lines.all() {
            line.offer();
        }
    }

    /// Forgets the lines of models that there are no longer, and closes connections that nobody has used for long.
    pub fn prune(&self) {
        self.shared.lines.prune();
        self.shared.upstream.prune();
    }

    /// Requests that wait for a model.
    pub fn waiting(&self, model: &ModelId) -> usize {
        self.line(model).map_or(0, |line| line.waiting())
    }

    /// Requests that are being answered or wait.
    pub fn inflight(&self) -> usize {
        usize::try_from(self.shared.metrics.inflight.get()).unwrap_or_default()
    }

    /// Requests that wait for a worker, of whatever model.
    pub fn waiting_in_all(&self) -> usize {
        usize::try_from(self.shared.metrics.waiting.get()).unwrap_or_default()
    }

    /// Keeps the record of the traffic. Called at least once in [`BUCKET_S`] seconds with the seconds since the epoch, best just
    /// when a multiple of them has passed: then the points tell what was under way at their ends.
    pub fn sample_traffic(&self, now_s: i64) {
        self.shared.metrics.traffic.sample(now_s, self.load());
    }

    /// The last hour of requests up to now, in seconds since the epoch; its points only as far as they began later than `after_s`.
    ///
    /// Tokens are counted as they are relayed: by the worker's own naming of each (rbee's workers do), else one for each event
    /// with something in it, set right by the usage where the answer tells one. Only streams tell when their tokens came.
    pub fn traffic(&self, now_s: i64, after_s: Option<i64>) -> TrafficView {
        self.shared.metrics.traffic.view(now_s, after_s, self.load())
    }

    fn load(&self) -> Load {
        Load {
            inflight: self.inflight(),
            waiting: self.waiting_in_all(),
        }
    }

    /// Since when a worker has had no request of this router; `None` while it has one, and if there is no such worker.
    pub fn idle_since(&self, worker: &WorkerId) -> Option<Instant> {
        let member = self.shared.workers.get(worker)?;
        let report = member.report();
        match self.line(&report.item.worker.model_id) {
            Some(line) => line.idle_since(&member),
            None => (member.outstanding() == 0).then_some(report.first_seen),
        }
    }

    /// Keeps a worker that has no request from getting one for as long as the answer lives; `None` if it has one, and if there
    /// is no such worker.
    pub fn hold(&self, worker: &WorkerId) -> Option<Hold> {
        let member = self.shared.workers.get(worker)?;
        let report = member.report();
        self.shared.lines.of(&report.item.worker.model_id).hold(&member)
    }
}

/// The response to a request that has a worker's answer, or none.
fn finish(
    journey: Journey,
    result: Result<journey::Landed, Refused>,
    mut flight: Flight,
) -> Result<Response<Body>, Refusal> {
    flight.answered(journey::status(&result));
    match result {
        Ok(landed) => Ok(relay::response(journey, landed, flight)),
        Err(Refused::Relayed(response)) => Ok(relay::refusal(&journey, *response, flight)),
        Err(Refused::Error(refusal)) => {
            flight.told(refusal.object().code);
            flight.landed();
            Err(refusal)
        }
    }
}
