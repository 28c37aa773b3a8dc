//! The gateway: takes a request for a model, finds it a worker, and relays the answer.
//!
//! A request goes through: line of its model ([`line`]) -> one worker, claimed -> [`upstream`] -> the client. A worker that
//! fails before the first byte is followed by the next one, at most [`MAX_ATTEMPTS`] in all; the client does not notice.

mod line;
mod lines;
mod relay;
mod tried;
mod upstream;

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use daemon::ApiError;
use http::HeaderMap;
use hyper::body::Incoming;
use scheduler::Refusal;
use shared_contract::{ErrorKind, ModelId};

use crate::config::Config;
use crate::metrics::{Metrics, UNKNOWN_MODEL};
use crate::registry::{HiveRegistry, WorkerRegistry};

pub(crate) use line::Line;
use line::{Entry, Ticket};
use lines::Lines;
use relay::Flight;
use tried::Tried;
use upstream::{Answer, Call, Failure, Upstream};

pub(crate) use upstream::{Endpoint, root_cause};

/// Workers that are tried for one request.
pub(crate) const MAX_ATTEMPTS: usize = 3;
/// What a client is asked to wait when the line is full or nobody became free in time.
const RETRY_BUSY_S: u32 = 2;
/// What a client is asked to wait when the model is being loaded or its workers are gone.
const RETRY_LOADING_S: u32 = 5;

/// The gateway. All methods take `&self`.
pub(crate) struct Gateway {
    lines: Lines,
    upstream: Upstream,
    metrics: Arc<Metrics>,
    queue_timeout: Duration,
}

/// A request on its way: what it asks for and what has become of it so far.
struct Trip {
    call: Call,
    line: Arc<Line>,
    arrived: Instant,
    /// Its place among the requests for this model, once it has one.
    place: Option<u64>,
    /// How long it may still wait.
    patience: Duration,
    tried: Tried,
    attempts: u32,
    /// Why the newest attempt failed.
    failure: Option<Failure>,
}

impl Gateway {
    pub(crate) fn new(
        config: &Config,
        workers: Arc<WorkerRegistry>,
        hives: Arc<HiveRegistry>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, http::header::InvalidHeaderValue> {
        Ok(Self {
            lines: Lines::new(config.queue_max, workers, hives, Arc::clone(&metrics)),
            upstream: Upstream::new(config)?,
            metrics,
            queue_timeout: config.queue_timeout,
        })
    }

    /// Answers a request to one of the OpenAI endpoints. Dropping the future, or the answer's body, ends the request at the
    /// worker.
    pub(crate) async fn answer(
        &self,
        endpoint: Endpoint,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Response, ApiError> {
        let flight = Flight::start(&self.metrics);
        let (call, line) = match self.prepare(endpoint, headers, body) {
            Ok(prepared) => prepared,
            Err(error) => {
                flight.landed();
                self.metrics.requests(UNKNOWN_MODEL, error.kind().status()).inc();
                return Err(error);
            }
        };
        let mut trip = Trip {
            call,
            line,
            arrived: Instant::now(),
            place: None,
            patience: self.queue_timeout,
            tried: Tried::default(),
            attempts: 0,
            failure: None,
        };
        let result = self.travel(&mut trip).await;
        let line = &trip.line;
        match result {
            Ok((answer, ticket)) => {
                self.metrics.first_byte(trip.arrived.elapsed());
                line.counters.count(answer.head.status.as_u16());
                Ok(relay::response(answer, ticket, trip.attempts, flight))
            }
            Err(refusal) => {
                flight.landed();
                let response = refusal.into_response();
                line.counters.count(response.status().as_u16());
                Ok(response)
            }
        }
    }

    /// The line of a model, if it was ever asked for: to be offered what has become free.
    pub(crate) fn line(&self, model: &ModelId) -> Option<Arc<Line>> {
        self.lines.find(model.as_str())
    }

    /// Offers what has become free to all requests that wait.
    pub(crate) fn offer_all(&self) {
        for line in self.lines.all() {
            line.offer();
        }
    }

    /// Forgets the lines of models that there are no longer.
    pub(crate) fn prune(&self) {
        self.lines.prune();
    }

    fn prepare(&self, endpoint: Endpoint, headers: HeaderMap, body: Bytes) -> Result<(Call, Arc<Line>), ApiError> {
        let routing = openai_api::routing(&body).map_err(|error| {
            let refusal = ApiError::new(ErrorKind::InvalidRequest, error.message).with_code(error.code.as_str());
            match error.param {
                Some(param) => refusal.with_param(param),
                None => refusal,
            }
        })?;
        let line = self.lines.of_known_model(&routing.model)?;
        Ok((self.upstream.call(endpoint, headers, body, routing.stream), line))
    }

    /// Tries workers until one answers.
    async fn travel(&self, trip: &mut Trip) -> Result<(Answer, Ticket), Refused> {
        loop {
            let ticket = self.next_worker(trip).await?;
            trip.attempts += 1;
            let attempt = self.upstream.attempt(&trip.call, ticket.address()).await;
            let failure = match attempt {
                Ok(answer) => {
                    ticket.confirm();
                    return Ok((answer, ticket));
                }
                Err(failure) => failure,
            };
            tracing::info!(
                worker = %ticket.worker().id(),
                model = %trip.line.model,
                attempt = trip.attempts,
                failure = %failure,
                "a worker could not answer"
            );
            self.metrics.retry(failure.reason());
            ticket.blame(&failure);
            trip.tried.note(&ticket, &failure);
            trip.failure = Some(failure);
            if trip.attempts as usize == MAX_ATTEMPTS {
                return Err(trip.give_up());
            }
        }
    }

    /// A worker for the next attempt, waiting for one if that may help.
    async fn next_worker(&self, trip: &mut Trip) -> Result<Ticket, Refused> {
        let (line, tried) = (&trip.line, &trip.tried);
        let entry = line.enter(&mut trip.place, tried, |refusal| match refusal {
            Refusal::Unknown => self.lines.is_expected(&line.model),
            refusal => tried.may_wait(refusal),
        });
        let waiting = match entry {
            Entry::Claimed(ticket) => return Ok(ticket),
            Entry::Waiting(waiting) => waiting,
            Entry::Full => return Err(trip.line_full().into()),
            Entry::Refused(_) if trip.failure.is_some() => return Err(trip.give_up()),
            Entry::Refused(refusal) => return Err(self.lines.refuse(&trip.line, refusal).into()),
        };
        let since = Instant::now();
        let granted = tokio::time::timeout(trip.patience, waiting.granted()).await;
        trip.patience = trip.patience.saturating_sub(since.elapsed());
        granted.map_err(|_| trip.waited_too_long(self.queue_timeout).into())
    }
}

/// What a request that no worker answered is told.
enum Refused {
    /// By the queen.
    Error(ApiError),
    /// By the last worker that was tried.
    Relayed(Box<http::Response<Incoming>>, u32),
}

impl From<ApiError> for Refused {
    fn from(error: ApiError) -> Self {
        Self::Error(error)
    }
}

impl Refused {
    fn into_response(self) -> Response {
        match self {
            Self::Error(error) => error.into_response(),
            Self::Relayed(response, attempts) => relay::refusal(*response, attempts),
        }
    }
}

impl Trip {
    fn line_full(&self) -> ApiError {
        let message = format!(
            "{} requests wait for model `{}` already; try again in a moment",
            self.line.max_waiting, self.line.model
        );
        ApiError::new(ErrorKind::RateLimited, message).retry_after(RETRY_BUSY_S)
    }

    fn waited_too_long(&self, limit: Duration) -> ApiError {
        let (refusal, reason) = self.line.why_not();
        let seconds = limit.as_secs_f64();
        let (kind, retry) = match refusal {
            Some(Refusal::NoneReady | Refusal::Unknown) => (ErrorKind::ModelLoading, RETRY_LOADING_S),
            Some(Refusal::AllSuspect | Refusal::AllLost) => (ErrorKind::NoCapacity, RETRY_LOADING_S),
            Some(Refusal::AllBusy | Refusal::AllTried) | None => (ErrorKind::NoCapacity, RETRY_BUSY_S),
        };
        let model = &self.line.model;
        let mut message = format!("no worker for model `{model}` became free within {seconds:.1} s: {reason}");
        if let Some(failure) = &self.failure {
            message.push_str(&format!("; the last one tried: {failure}"));
        }
        ApiError::new(kind, message).retry_after(retry)
    }

    /// The answer when nobody is left to try.
    fn give_up(&mut self) -> Refused {
        let model = &self.line.model;
        let attempts = self.attempts;
        let (kind, message) = match self.failure.take() {
            Some(Failure::Busy(response) | Failure::Failed(response)) => return Refused::Relayed(response, attempts),
            Some(failure @ Failure::Silent(_)) => (
                ErrorKind::UpstreamTimeout,
                format!("no worker for model `{model}` answered in time; the last of {attempts} tried: {failure}"),
            ),
            Some(failure) => (
                ErrorKind::UpstreamFailed,
                format!("no worker for model `{model}` could answer; the last of {attempts} tried: {failure}"),
            ),
            None => (
                ErrorKind::NoCapacity,
                format!("no worker for model `{model}` is left to try"),
            ),
        };
        ApiError::new(kind, message).retry_after(RETRY_LOADING_S).into()
    }
}
