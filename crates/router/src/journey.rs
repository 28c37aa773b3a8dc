//! One request on its way to a worker's answer.

mod refusals;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use scheduler::Refusal as Obstacle;
use shared_contract::{ErrorKind, ModelId};
use tokio::time::Instant;
use tracing::field::Empty;
use tracing::{Instrument, Span};
use worker_contract::{Feature, TOKENS_HEADER};

use crate::account::Account;
use crate::attempt::{self, Failure};
use crate::endpoint::Endpoint;
use crate::health::Kind;
use crate::line::{Entry, Line, Request, Ticket, Waiting};
use crate::metrics::ModelMetrics;
use crate::receipt::Receipt;
use crate::refusal::{Refusal, Refused};
use crate::situation::Situation;
use crate::supply::{Demand, Prospect};
use crate::terms::Terms;
use crate::upstream::{Call, Incoming};
use crate::worker::Worker;
use crate::{MAX_ATTEMPTS, RouterOptions, Shared};
use refusals::invalid;

/// Header with the milliseconds within which the client wants to have the whole answer.
const DEADLINE: HeaderName = HeaderName::from_static("x-request-timeout-ms");
/// Header in which some clients show the key that others send as `authorization`.
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
/// Header with the id of the request.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Asks for the tokens of each event, by which another worker could go on.
const TOKENS: HeaderValue = HeaderValue::from_static("1");
/// How long a stream that has begun waits for a worker of a model that has none, and for which none is coming.
const RECOVERY: Duration = Duration::from_secs(10);
/// Between two looks of a waiting request at what it may hope for.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// One request: what it asks for and what has become of it so far.
pub(crate) struct Journey {
    shared: Arc<Shared>,
    call: Call,
    line: Arc<Line>,
    arrived: Instant,
    /// Its place among the requests for this model, once it has one.
    place: Option<u64>,
    /// How long it has waited for a worker that was busy, and for one that was being started.
    waited: Waited,
    /// When the client wants to have it all.
    deadline: Option<Instant>,
    request: Request,
    /// Whom the newest answer is of, and the number of its newest heartbeat when it was asked.
    answered_by: Option<(Worker, u64)>,
    /// Why the newest attempt failed.
    failure: Option<Failure>,
    situation: Arc<Situation>,
    receipt: Receipt,
    /// Gets a copy of the receipt.
    account: Arc<Account>,
    /// It has been answered once, and goes on with the stream of another worker.
    has_landed: bool,
}

#[derive(Default)]
struct Waited {
    busy: Duration,
    loading: Duration,
}

/// A worker's answer that has begun.
pub(crate) struct Landed {
    pub(crate) head: http::response::Parts,
    /// The first bytes of the body, if it has any.
    pub(crate) first: Option<Bytes>,
    pub(crate) rest: Incoming,
    /// The claim on the worker.
    pub(crate) ticket: Ticket,
}

/// The HTTP status that a request is answered with.
pub(crate) fn status(result: &Result<Landed, Refused>) -> u16 {
    match result {
        Ok(landed) => landed.head.status.as_u16(),
        Err(refused) => refused.status(),
    }
}

/// A journey under way; see [`Journey::travel`].
pub(crate) type Travel = Pin<Box<dyn Future<Output = (Journey, Result<Landed, Refused>)> + Send>>;

impl Journey {
    /// Reads what routing needs of a request.
    pub(crate) fn begin(
        shared: &Arc<Shared>,
        endpoint: Endpoint,
        mut headers: HeaderMap,
        body: &Bytes,
        account: Arc<Account>,
    ) -> Result<Self, Refusal> {
        let arrived = Instant::now();
        let deadline = deadline(&mut headers, arrived)?;
        let routing = openai_api::routing(body).map_err(invalid)?;
        let line = match shared.lines.find(&routing.model) {
            Some(line) => line,
            None => shared.lines.of(&shared.supply.resolve(&routing.model)?),
        };
        account.is_for(line.model());
        let (stream, name) = (routing.stream && endpoint.can_stream(), line.model().as_str());
        let prefix = routing.prompt_at.map(|at| line.prefix(&body[at]));
        // An alias: workers know only the model's own name.
        let named = (routing.model != name).then(|| openai_api::with_model(body, routing.model_at, name));
        let body = named.map_or_else(|| body.clone(), Bytes::from);
        strip(&mut headers, stream);
        let is_light = endpoint == Endpoint::CountTokens;
        let request = Request {
            terms: Terms::take(&mut headers, is_light.then_some(Feature::CountTokens)),
            kind: match endpoint {
                Endpoint::Embeddings | Endpoint::CountTokens => Kind::Quick,
                _ if stream => Kind::Stream,
                _ => Kind::Plain,
            },
            is_light,
            is_under_way: false,
            prefix: prefix.flatten(),
        };
        let receipt = Receipt {
            request_id: headers.get(REQUEST_ID).cloned(),
            ..Receipt::default()
        };
        Ok(Self {
            situation: Arc::new(Situation::new(Arc::clone(&line), Arc::clone(&shared.supply))),
            call: shared.upstream.call(endpoint, &headers, body, stream),
            shared: Arc::clone(shared),
            line,
            arrived,
            place: None,
            waited: Waited::default(),
            deadline,
            request,
            answered_by: None,
            failure: None,
            receipt,
            account,
            has_landed: false,
        })
    }

    /// Waits for a worker, claims it and sends it the request; after a failure the next one, at most [`MAX_ATTEMPTS`] in all.
    /// Ends with the first bytes of an answer.
    pub(crate) async fn next_answer(&mut self) -> Result<Landed, Refused> {
        let result = match self.deadline {
            None => self.try_workers().await,
            Some(deadline) => match tokio::time::timeout_at(deadline, self.try_workers()).await {
                Ok(result) => result,
                Err(_) => Err(self.out_of_time().into()),
            },
        };
        self.situation.waits_no_longer();
        if !self.has_landed {
            self.line.figures().count(status(&result));
        }
        if let Ok(landed) = &result {
            self.note_landing(&landed.ticket);
        }
        self.account.note(&self.receipt);
        result
    }

    fn note_landing(&mut self, ticket: &Ticket) {
        if self.has_landed {
            self.receipt.migrations += 1;
        } else {
            self.has_landed = true;
        }
        self.receipt.report = Some(Arc::clone(ticket.report()));
        self.answered_by = Some((Arc::clone(ticket.worker()), ticket.beats()));
    }

    /// The same as a future that owns the journey.
    pub(crate) fn travel(mut self) -> Travel {
        Box::pin(async move {
            let result = self.next_answer().await;
            (self, result)
        })
    }

    /// The worker of the newest answer was lost: the next attempts send this body, only to workers with this feature and, if
    /// both are known, of this revision. The lost one is asked again only once it has beaten again.
    pub(crate) fn resume(&mut self, body: Bytes, revision: Option<String>, needs: Option<Feature>) {
        self.call.replace_body(body);
        self.request.terms.narrow(revision, needs);
        if let Some((worker, beats)) = &self.answered_by {
            self.request.terms.tried.restart_without(worker, *beats);
        }
        self.request.is_under_way = true;
        self.waited = Waited::default();
        self.failure = None;
    }

    /// Tries workers until one answers.
    async fn try_workers(&mut self) -> Result<Landed, Refused> {
        for number in 1..=MAX_ATTEMPTS {
            let ticket = self.next_worker().await?;
            if let Some(failure) = &self.failure {
                self.shared.metrics.retry(failure.reason());
            }
            self.receipt.attempts += 1;
            self.account.note(&self.receipt);
            let limits = self.shared.limits(self.call.is_stream());
            let span = self.attempt_span(&ticket, number);
            let attempt = attempt::attempt(&self.shared.upstream, &self.call, ticket.address(), limits, &span);
            let failure = match attempt.instrument(span.clone()).await {
                Ok(answer) => {
                    ticket.confirm();
                    return Ok(Landed {
                        head: answer.head,
                        first: answer.first,
                        rest: answer.rest,
                        ticket,
                    });
                }
                Err(failure) => failure,
            };
            span.record("rbee.outcome", failure.reason());
            span.record("otel.status_code", "ERROR");
            drop(span);
            tracing::info!(
                worker = %ticket.worker().id(),
                model = %self.line.model(),
                attempt = number,
                failure = %failure,
                "a worker could not answer"
            );
            ticket.blame(&failure);
            self.request.terms.tried.note(&ticket, &failure);
            self.failure = Some(failure);
        }
        Err(self.give_up())
    }

    /// For traces: one worker's part of the answer, from the claim to the last byte or the failure.
    fn attempt_span(&self, ticket: &Ticket, number: usize) -> Span {
        tracing::trace_span!(
            target: "otlp",
            "attempt",
            otel.kind = "client",
            otel.status_code = Empty,
            http.request.method = "POST",
            http.response.status_code = Empty,
            url.path = self.call.endpoint().path(),
            gen_ai.request.model = self.line.model().as_str(),
            rbee.worker.id = ticket.worker().id().as_str(),
            rbee.attempt = i64::try_from(number).unwrap_or_default(),
            rbee.outcome = Empty,
        )
    }

    /// A worker for the next attempt, waiting for one if that may help.
    async fn next_worker(&mut self) -> Result<Ticket, Refused> {
        let mut place = self.place;
        let entry = self
            .line
            .enter(&mut place, &self.request, |obstacle| self.may_wait(obstacle));
        self.place = place;
        let waiting = match entry {
            Entry::Claimed(ticket) => return Ok(ticket),
            Entry::Waiting(waiting) => waiting,
            Entry::Full => return Err(self.line_full().into()),
            Entry::Refused(_) if self.failure.is_some() => return Err(self.give_up()),
            Entry::Refused(obstacle) => return Err(self.refuse(obstacle).into()),
        };
        self.situation.waits(waiting.place());
        let since = Instant::now();
        let span = tracing::trace_span!(target: "otlp", "wait", gen_ai.request.model = self.line.model().as_str());
        let result = self.wait(waiting).instrument(span).await;
        self.receipt.queue += since.elapsed();
        self.situation.waits_no_longer();
        result
    }

    /// Waits for a worker for as long as there is hope and time.
    async fn wait(&mut self, mut waiting: Waiting) -> Result<Ticket, Refused> {
        let RouterOptions {
            queue_timeout,
            load_timeout,
            ..
        } = self.shared.options;
        let (count, longest_wait) = self.line.queue();
        self.tell_demand(count, longest_wait);
        loop {
            let is_coming = self.is_coming();
            let left = if is_coming {
                load_timeout.saturating_sub(self.waited.loading)
            } else if self.has_landed {
                load_timeout.saturating_sub(self.waited.busy)
            } else {
                queue_timeout.saturating_sub(self.waited.busy)
            };
            if left.is_zero() {
                return Err(self.waited_too_long(is_coming).into());
            }
            let since = Instant::now();
            let granted = tokio::time::timeout(left.min(LOOK_AGAIN), waiting.granted()).await;
            let waited = if is_coming {
                &mut self.waited.loading
            } else {
                &mut self.waited.busy
            };
            *waited += since.elapsed();
            if let Ok(ticket) = granted {
                return Ok(ticket);
            }
            if self.line.is_first(waiting.place()) {
                // The first speaks for all.
                let (count, longest_wait) = self.line.queue();
                self.tell_demand(count, longest_wait);
            }
            if let Some(obstacle) = self.line.obstacle(&self.request)
                && !self.may_wait(obstacle)
            {
                return Err(match self.failure {
                    Some(_) => self.give_up(),
                    None => self.refuse(obstacle).into(),
                });
            }
        }
    }

    /// Whether it may hope for a change, having met this obstacle.
    fn may_wait(&self, obstacle: Obstacle) -> bool {
        if !self.line.may_fit(&self.request.terms) {
            return false;
        }
        if self.request.terms.tried.may_wait(obstacle) {
            return true;
        }
        // What comes of its demand is its only hope; or, with half an answer, that the lost worker comes back.
        let (waiting, longest_wait) = self.line.queue();
        self.tell_demand(waiting.max(1), longest_wait);
        self.is_coming() || self.has_landed && self.waited.busy < RECOVERY
    }

    fn tell_demand(&self, waiting: usize, longest_wait: Duration) {
        let demand = Demand { waiting, longest_wait };
        self.shared.supply.demand(self.line.model(), demand);
    }

    fn is_coming(&self) -> bool {
        matches!(self.shared.supply.prospect(self.line.model()), Prospect::Coming { .. })
    }

    /// Where it stands.
    pub(crate) fn situation(&self) -> Arc<Situation> {
        Arc::clone(&self.situation)
    }

    /// What has become of it.
    pub(crate) fn receipt(&self) -> &Receipt {
        &self.receipt
    }

    /// Whether the answer is to be a stream.
    pub(crate) fn is_stream(&self) -> bool {
        self.call.is_stream()
    }

    /// Where it goes.
    pub(crate) fn endpoint(&self) -> Endpoint {
        self.call.endpoint()
    }

    /// What is sent to workers: at first the client's body, but for the model's name.
    pub(crate) fn body(&self) -> &Bytes {
        self.call.body()
    }

    /// The model.
    pub(crate) fn model(&self) -> &ModelId {
        self.line.model()
    }

    /// What is counted for its model.
    pub(crate) fn figures(&self) -> Arc<ModelMetrics> {
        Arc::clone(self.line.figures())
    }

    /// When the client wants to have it all.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// A stream that has begun and is silent for so long has been lost.
    pub(crate) fn stall_timeout(&self) -> Duration {
        self.shared.options.stall_timeout
    }
}

/// Makes of a client's headers those that workers may see. Only the queen asks for names of tokens, as she takes them out of
/// the stream again; and only of a stream that is not compressed can she do so, and see how far it got.
fn strip(headers: &mut HeaderMap, stream: bool) {
    // The queen's own key: workers have another one.
    headers.remove(API_KEY);
    if stream {
        headers.remove(header::ACCEPT_ENCODING);
        headers.insert(TOKENS_HEADER, TOKENS);
    } else {
        headers.remove(TOKENS_HEADER);
    }
}

/// Takes the client's deadline out of its headers.
fn deadline(headers: &mut HeaderMap, arrived: Instant) -> Result<Option<Instant>, Refusal> {
    let Some(value) = headers.remove(DEADLINE) else {
        return Ok(None);
    };
    let millis = value.to_str().ok().and_then(|text| text.trim().parse::<u32>().ok());
    match millis {
        Some(millis) if millis > 0 => Ok(Some(arrived + Duration::from_millis(millis.into()))),
        _ => Err(Refusal::new(
            ErrorKind::InvalidRequest,
            format!("{DEADLINE}: expected a whole number of milliseconds above 0"),
        )
        .with_param(DEADLINE.as_str())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stripped(stream: bool) -> Vec<(String, String)> {
        let mut headers = HeaderMap::new();
        for name in ["x-rbee-tokens", "accept-encoding", "x-api-key", "x-mine"] {
            headers.insert(name, HeaderValue::from_static("client"));
        }
        strip(&mut headers, stream);
        let text = |value: &HeaderValue| value.to_str().unwrap().to_owned();
        let mut headers: Vec<_> = headers
            .iter()
            .map(|(name, value)| (name.to_string(), text(value)))
            .collect();
        headers.sort();
        headers
    }

    #[test]
    fn workers_see_neither_a_clients_key_nor_what_only_a_queen_may_ask_for() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let mine = pair("x-mine", "client");
        assert_eq!(stripped(true), [mine.clone(), pair("x-rbee-tokens", "1")]);
        assert_eq!(stripped(false), [pair("accept-encoding", "client"), mine]);
    }
}
