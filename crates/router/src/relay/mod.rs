//! The answer on its way to the client.
//!
//! An answer that is no stream passes untouched ([`body`]; [`billed`]: only its usage is looked for). A stream passes in whole events ([`events`], [`pass`]), each of
//! which is read in passing ([`observe`]; [`frame`]: mostly without being parsed), so that it is known at any time what the
//! client has ([`story`]). When its worker is lost, another one is asked to go on ([`plan`], [`asked`]): one that takes up the
//! tokens, or one that knows the text only and whose events are then rewritten ([`rewrite`]). [`stream`] is the life-cycle.
//! The claim on a worker lives in the body and falls with it.

mod asked;
mod billed;
mod body;
mod events;
mod explain;
mod frame;
mod legs;
mod observe;
mod pass;
mod patience;
mod plan;
mod receipts;
mod rewrite;
mod story;
mod stream;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Response};
use openai_api::sse;

use crate::flight::Flight;
use crate::journey::{Journey, Landed, Travel};
use crate::situation::Situation;
use crate::upstream::Incoming;

pub use body::Body;

/// How a worker left an answer unfinished. For clients, too, so it names no address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Lost {
    /// The connection broke.
    Broke(String),
    /// The body ended before the stream did.
    Ended,
    /// Nothing came for so long.
    Silent(Duration),
    /// The worker says so itself, by this event.
    Failed(Bytes),
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broke(cause) => write!(f, "the connection broke: {cause}"),
            Self::Ended => f.write_str("the answer ended too early"),
            Self::Silent(limit) => write!(f, "nothing came for {:.1} s", limit.as_secs_f64()),
            Self::Failed(_) => f.write_str("it could not go on"),
        }
    }
}

/// The client's response for an answer that has begun.
pub(crate) fn response(journey: Journey, landed: Landed, flight: Flight) -> Response<Body> {
    let Landed {
        mut head,
        first,
        rest,
        ticket,
    } = landed;
    receipts::put(&mut head.headers, journey.receipt());
    let body = if journey.is_stream() && is_stream(&head) {
        head.headers.remove(header::CONTENT_LENGTH);
        Body::stream(stream::Stream::started(journey, first, rest, ticket, flight))
    } else {
        Body::plain(&journey, first, rest, Some(ticket), flight)
    };
    Response::from_parts(head, body)
}

/// The client's response for the refusal of the last worker tried.
pub(crate) fn refusal(journey: &Journey, response: Response<Incoming>, flight: Flight) -> Response<Body> {
    let (mut head, rest) = response.into_parts();
    receipts::put(&mut head.headers, journey.receipt());
    Response::from_parts(head, Body::plain(journey, None, rest, None, flight))
}

/// The client's response for a stream that has no worker yet: it is told where it stands until its answer begins. The receipt
/// is not in its headers, which go out now, but only in the chunk with the usage.
pub(crate) fn waiting(travel: Travel, situation: Arc<Situation>, flight: Flight) -> Response<Body> {
    let body = Body::stream(stream::Stream::waiting(travel, situation, flight));
    let mut response = Response::new(body);
    let headers: [(HeaderName, &'static str); 3] = [
        (header::CONTENT_TYPE, sse::CONTENT_TYPE),
        (header::CACHE_CONTROL, "no-cache"),
        // Asks reverse proxies that buffer answers not to.
        (HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    response.headers_mut().extend::<HeaderMap>(
        headers
            .into_iter()
            .map(|(name, value)| (name, HeaderValue::from_static(value)))
            .collect(),
    );
    response
}

/// Whether an answer is a stream whose events can be read.
fn is_stream(head: &http::response::Parts) -> bool {
    let is_events = head
        .headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|mime| mime.as_bytes().starts_with(sse::CONTENT_TYPE.as_bytes()));
    head.status == http::StatusCode::OK && is_events && !head.headers.contains_key(header::CONTENT_ENCODING)
}
