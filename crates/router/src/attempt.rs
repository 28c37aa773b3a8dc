//! One attempt at one worker, up to the first bytes of its answer.

use std::fmt;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use heartbeat_registry::Address;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body::Body as _;
use http_body_util::BodyExt;
use openai_api::sse;
use tokio::time::{Instant, timeout_at};
use tracing::Span;

use crate::endpoint::Endpoint;
use crate::upstream::{Call, Incoming, Upstream, root_cause};

/// How long a worker may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// For the first byte, or the next sign of life before it.
    pub(crate) silence: Duration,
    /// For the first byte, whatever signs of life there are.
    pub(crate) in_all: Duration,
    /// Between two pieces of an answer that is no stream.
    pub(crate) stall: Duration,
}

/// An answer that is no stream is held back until it is complete, so that another worker can give it where one breaks off in
/// the middle; but not if it is longer than this.
const MAX_HELD: usize = 1 << 20;

/// An answer that has begun.
pub(crate) struct Answer {
    pub(crate) head: http::response::Parts,
    /// The first bytes of the body, if it has any.
    pub(crate) first: Option<Bytes>,
    pub(crate) rest: Incoming,
}

/// Why an attempt failed before the first byte. The text is for clients, too, so it names no address.
#[derive(Debug)]
pub(crate) enum Failure {
    /// No connection.
    Unreachable(String),
    /// The connection ended before the first byte.
    Broke(String),
    /// No first byte within this time.
    Silent(Duration),
    /// The worker has no room, or not yet.
    Busy(Box<Response<Incoming>>),
    /// The worker answered that it failed, or that it does not serve this: then another process has its port.
    Failed(Box<Response<Incoming>>),
    /// The worker does not accept the queen's token.
    Unauthorized,
}

impl Failure {
    /// Whether it speaks against the worker's being alive.
    pub(crate) fn is_fast_evidence(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Broke(_) | Self::Silent(_))
    }

    /// Whether it speaks against the worker's answering the next request. What a client's own mistake can bring about does
    /// not, nor that a worker has no room.
    pub(crate) fn is_evidence(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Broke(_) | Self::Silent(_) | Self::Unauthorized => true,
            Self::Failed(response) => response.status().is_server_error(),
            Self::Busy(_) => false,
        }
    }

    /// All words of [`reason`](Self::reason).
    pub(crate) const REASONS: [&'static str; 6] = [
        "unreachable",
        "connection_broke",
        "no_first_byte",
        "busy",
        "failed",
        "unauthorized",
    ];

    /// Its word in the metrics.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "unreachable",
            Self::Broke(_) => "connection_broke",
            Self::Silent(_) => "no_first_byte",
            Self::Busy(_) => "busy",
            Self::Failed(_) => "failed",
            Self::Unauthorized => "unauthorized",
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(cause) => write!(f, "cannot be reached: {cause}"),
            Self::Broke(cause) => write!(f, "the connection broke: {cause}"),
            Self::Silent(limit) => write!(f, "no first byte within {:.1} s", limit.as_secs_f64()),
            Self::Busy(response) | Self::Failed(response) => write!(f, "it answered {}", response.status()),
            Self::Unauthorized => f.write_str("it does not accept the queen's token; start both with the same --token"),
        }
    }
}

/// Sends the call to one worker and awaits the first bytes of the answer; of one that is no stream all of it, up to
/// [`MAX_HELD`]. The answer takes `span` along, which ends with it.
pub(crate) async fn attempt(
    upstream: &Upstream,
    call: &Call,
    address: &Address,
    limits: Limits,
    span: &Span,
) -> Result<Answer, Failure> {
    let began = Instant::now();
    let silent = |_| Failure::Silent(began.elapsed());
    let mut deadline = began + limits.silence;
    let response = timeout_at(deadline, upstream.send(call, address, span))
        .await
        .map_err(silent)??;
    span.record("http.response.status_code", i64::from(response.status().as_u16()));
    let (head, mut rest) = judge(response)?.into_parts();
    rest.follow(span.clone());
    let is_stream = is_stream(&head);
    loop {
        let Some(frame) = timeout_at(deadline, rest.frame()).await.map_err(silent)? else {
            return Ok(Answer {
                head,
                first: None,
                rest,
            });
        };
        let frame = frame.map_err(|error| Failure::Broke(root_cause(&error)))?;
        let Ok(data) = frame.into_data() else { continue };
        if is_stream && is_sign_of_life(&data) {
            deadline = (Instant::now() + limits.silence).min(began + limits.in_all);
        } else if !data.is_empty() {
            let first = match call.is_stream() {
                true => data,
                false => held(data, &mut rest, limits.stall, began + limits.in_all).await?,
            };
            return Ok(Answer {
                head,
                first: Some(first),
                rest,
            });
        }
    }
}

/// The whole of a body that begins with these bytes, or as much as may be held back, or has come by then.
async fn held(first: Bytes, rest: &mut Incoming, stall: Duration, by: Instant) -> Result<Bytes, Failure> {
    // Most are short, and there at once; what is too long by what it says itself need not be copied first.
    if rest.is_end_stream() || rest.size_hint().lower() > MAX_HELD as u64 {
        return Ok(first);
    }
    let mut whole = BytesMut::from(first);
    while whole.len() < MAX_HELD {
        let limit = (Instant::now() + stall).min(by);
        let frame = match timeout_at(limit, rest.frame()).await {
            Ok(Some(frame)) => frame.map_err(|error| Failure::Broke(root_cause(&error)))?,
            Ok(None) => break,
            Err(_) if limit == by => break,
            Err(_) => {
                let stall = stall.as_secs_f64();
                return Err(Failure::Broke(format!(
                    "it stopped in the middle of the answer for {stall:.1} s"
                )));
            }
        };
        if let Ok(data) = frame.into_data() {
            whole.extend_from_slice(&data);
        }
    }
    Ok(whole.freeze())
}

/// Asks a worker for as little as possible. `Ok` if it answers, whatever: also that it is busy, or that it does not like the
/// request.
pub(crate) async fn probe(
    upstream: &Upstream,
    (endpoint, body): (Endpoint, Bytes),
    address: &Address,
    limit: Duration,
) -> Result<(), Failure> {
    let mut headers = HeaderMap::with_capacity(3);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let call = upstream.call(endpoint, &headers, body, false);
    let limits = Limits {
        silence: limit,
        in_all: limit,
        stall: limit,
    };
    match attempt(upstream, &call, address, limits, &Span::none()).await {
        Ok(_) | Err(Failure::Busy(_)) => Ok(()),
        Err(failure) => Err(failure),
    }
}

/// Sorts the answers that another worker might not give from those that are for the client.
fn judge(response: Response<Incoming>) -> Result<Response<Incoming>, Failure> {
    match response.status() {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(Failure::Unauthorized),
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => Err(Failure::Busy(Box::new(response))),
        // Another worker of the same model would say the same.
        StatusCode::NOT_IMPLEMENTED => Ok(response),
        status if status.is_server_error() || status == StatusCode::NOT_FOUND => {
            Err(Failure::Failed(Box::new(response)))
        }
        _ => Ok(response),
    }
}

fn is_stream(head: &http::response::Parts) -> bool {
    let mime = head.headers.get(header::CONTENT_TYPE);
    mime.is_some_and(|mime| mime.as_bytes().starts_with(sse::CONTENT_TYPE.as_bytes()))
}

/// Whether these are only comments of a stream of events: they tell that the worker is at it, and nothing to the client.
fn is_sign_of_life(data: &[u8]) -> bool {
    let Some(lines) = data.strip_suffix(b"\n") else {
        return false;
    };
    lines
        .split(|byte| *byte == b'\n')
        .all(|line| matches!(line, [] | [b'\r'] | [b':', ..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_comments_are_signs_of_life_and_all_else_is_the_answer() {
        for comments in [": keep-alive\n\n", ":\n", ": a\n: b\n\n", "\r\n", ": a\r\n\r\n"] {
            assert!(is_sign_of_life(comments.as_bytes()), "{comments:?}");
        }
        for answer in [
            "",
            "data: 1\n\n",
            ": tokens 1\ndata: 1\n\n",
            ": cut off",
            ": a\n\nda",
            "event: x\n",
        ] {
            assert!(!is_sign_of_life(answer.as_bytes()), "{answer:?}");
        }
    }
}
