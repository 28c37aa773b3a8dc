//! The answer on its way to the client: the worker's bytes, untouched, and the claim on the worker for as long as they come.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use openai_api::sse;
use shared_contract::{ErrorBody, ErrorKind};

use super::line::Ticket;
use super::upstream::{Answer, Failure, remove_hop_by_hop, root_cause};
use crate::metrics::Metrics;

/// Who answered.
const WORKER: HeaderName = HeaderName::from_static("x-rbee-worker");
/// How many workers were tried.
const ATTEMPTS: HeaderName = HeaderName::from_static("x-rbee-attempts");

/// A request in flight: counted from its arrival to its last byte.
pub(super) struct Flight {
    metrics: Arc<Metrics>,
    has_landed: bool,
}

impl Flight {
    pub(super) fn start(metrics: &Arc<Metrics>) -> Self {
        metrics.inflight.inc();
        Self {
            metrics: Arc::clone(metrics),
            has_landed: false,
        }
    }

    /// It came to its end. Dropped without that, its client left.
    pub(super) fn landed(mut self) {
        self.has_landed = true;
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

/// The client's response for an answer that has begun.
pub(super) fn response(answer: Answer, ticket: Ticket, attempts: u32, flight: Flight) -> Response {
    let Answer { mut head, first, rest } = answer;
    if let Ok(worker) = HeaderValue::from_bytes(ticket.worker().id().as_str().as_bytes()) {
        head.headers.insert(WORKER, worker);
    }
    head.headers.insert(ATTEMPTS, HeaderValue::from(attempts));
    let mut relay = Relay {
        takes_events: takes_events(&head),
        first,
        rest,
        newlines: 2,
        hold: Some((ticket, flight)),
    };
    if relay.is_end_stream() {
        // Nobody asks for the rest of a body that is empty.
        relay.land();
    }
    Response::from_parts(head, Body::new(relay))
}

/// The client's response for the refusal of the last worker tried.
pub(super) fn refusal(response: Response<Incoming>, attempts: u32) -> Response {
    let (mut head, body) = response.into_parts();
    remove_hop_by_hop(&mut head.headers);
    head.headers.insert(ATTEMPTS, HeaderValue::from(attempts));
    Response::from_parts(head, Body::new(body))
}

/// Whether an event can be added to the body.
fn takes_events(head: &http::response::Parts) -> bool {
    let is_sse = head
        .headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|mime| mime.as_bytes().starts_with(sse::CONTENT_TYPE.as_bytes()));
    is_sse && !head.headers.contains_key(header::CONTENT_LENGTH) && !head.headers.contains_key(header::CONTENT_ENCODING)
}

struct Relay {
    first: Option<Bytes>,
    rest: Incoming,
    takes_events: bool,
    /// Line breaks at the end of what was relayed, 2 at most: between two events there are 2.
    newlines: u8,
    /// Gone at the end of the answer.
    hold: Option<(Ticket, Flight)>,
}

impl Relay {
    fn pass(&mut self, data: Bytes) -> Bytes {
        if self.takes_events {
            self.newlines = match &*data {
                [.., b'\n', b'\n'] => 2,
                [b'\n'] => (self.newlines + 1).min(2),
                [.., b'\n'] => 1,
                [] => self.newlines,
                _ => 0,
            };
        }
        if self.rest.is_end_stream() {
            // With a known length nobody asks for what comes after the last byte.
            self.land();
        }
        data
    }

    fn land(&mut self) {
        if let Some((ticket, flight)) = self.hold.take() {
            flight.landed();
            drop(ticket);
        }
    }

    /// The worker broke off. A stream of events gets one that says so, and ends without `[DONE]`.
    fn broke(&mut self, error: hyper::Error) -> Option<Result<Bytes, hyper::Error>> {
        let (ticket, flight) = self.hold.take()?;
        let failure = Failure::Broke(root_cause(&error));
        tracing::warn!(worker = %ticket.worker().id(), %failure, "a worker broke off in the middle of an answer");
        flight.metrics.broken.inc();
        ticket.blame(&failure);
        flight.landed();
        if !self.takes_events {
            return Some(Err(error));
        }
        let message = "the worker broke off in the middle of the answer; send the request again";
        let body = ErrorBody {
            error: ErrorKind::UpstreamFailed.object(message, None),
        };
        let mut event = vec![b'\n'; usize::from(2 - self.newlines)];
        event.extend_from_slice(&sse::event(&body));
        Some(Ok(event.into()))
    }
}

impl http_body::Body for Relay {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        if let Some(first) = this.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(this.pass(first)))));
        }
        while this.hold.is_some() {
            match ready!(Pin::new(&mut this.rest).poll_frame(cx)) {
                // Trailers belong to the worker's connection.
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Poll::Ready(Some(Ok(Frame::data(this.pass(data)))));
                    }
                }
                Some(Err(error)) => return Poll::Ready(this.broke(error).map(|last| last.map(Frame::data))),
                None => this.land(),
            }
        }
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && (self.hold.is_none() || self.rest.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        if self.takes_events {
            return SizeHint::default();
        }
        let first = self.first.as_ref().map_or(0, Bytes::len) as u64;
        let rest = self.rest.size_hint();
        let mut hint = SizeHint::new();
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + first);
        }
        hint.set_lower(rest.lower() + first);
        hint
    }
}
