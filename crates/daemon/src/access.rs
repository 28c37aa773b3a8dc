//! The access log: one line for each request, when its answer has ended: its last byte was handed over, or its client left.
//!
//! Lines have the target `access`, so that `--log info,access=off` is without them. They hold no bodies, no headers but the
//! request's id, and no query strings.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::{HeaderValue, Method, Response, StatusCode, Uri};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tracing::{Level, Span};

/// Paths where others ask all the time, unless a daemon says otherwise: their lines are at the level debug.
pub const QUIET: &[&str] = &["/health", "/ready", "/metrics"];

/// What a daemon adds to the lines of some of its requests.
pub trait Account: Send + Sync {
    /// Writes the line, by [`access_line!`](crate::access_line).
    fn write(&self, line: &Line<'_>);

    /// Whether the client has all that it asked for, although it did not wait for the end of the body.
    fn is_complete(&self) -> bool {
        false
    }

    /// What became of an answer whose status and whose end do not show it, because an event of its body says so.
    fn failure(&self) -> Option<Failure> {
        None
    }
}

/// How an answer failed that had begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// There was never an answer: it was refused after its head had been sent.
    Refused,
    /// The answer could not be finished.
    Broken,
}

/// The word of a line for how an answer ended.
pub fn outcome(is_complete: bool, failure: Option<Failure>) -> &'static str {
    match failure {
        Some(Failure::Refused) => "refused",
        Some(Failure::Broken) => "broken",
        None if is_complete => "complete",
        None => "aborted",
    }
}

/// A request's place for its [`Account`]; an extension of each request that gets a line.
#[derive(Clone, Default)]
pub struct Slot(Arc<OnceLock<Arc<dyn Account>>>);

impl Slot {
    /// Has the request's line written by this account. The first one stays.
    pub fn put(&self, account: Arc<dyn Account>) {
        let _ = self.0.set(account);
    }
}

/// What every line tells.
#[derive(Debug)]
pub struct Line<'a> {
    /// The method.
    pub method: &'a Method,
    /// The path, without the query.
    pub path: &'a str,
    /// The answer's status; none if the client left before there was one.
    pub status: Option<u16>,
    /// From the head of the request to the end of the answer.
    pub duration_ms: f64,
    /// Bytes of the answer's body.
    pub bytes: u64,
    /// `complete`; `aborted`: the client left before; `refused`: the head was sent, and then an error in place of an answer;
    /// `broken`: the answer could not be finished.
    pub outcome: &'static str,
    /// The request's id.
    pub request_id: &'a str,
    /// Who asked.
    pub peer: SocketAddr,
}

/// Writes a [`Line`] with further fields, whose values are those of `tracing`: `access_line!(INFO, line, attempts = 1)`. A `None`
/// leaves its field out.
#[macro_export]
macro_rules! access_line {
    ($level:ident, $line:expr $(, $name:ident = $value:expr)* $(,)?) => {{
        let line: &$crate::access::Line<'_> = $line;
        tracing::event!(
            target: "access",
            parent: None,
            tracing::Level::$level,
            method = %line.method,
            path = line.path,
            status = line.status,
            duration_ms = line.duration_ms,
            bytes = line.bytes,
            outcome = line.outcome,
            request_id = line.request_id,
            peer = %line.peer,
            $($name = $value,)*
            "request ended"
        );
    }};
}

/// Milliseconds with three decimals, as the lines tell them.
pub fn millis(duration: std::time::Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// Follows one request, and writes its line when dropped.
pub(crate) struct Entry {
    began: Instant,
    method: Method,
    uri: Uri,
    id: HeaderValue,
    peer: SocketAddr,
    is_quiet: bool,
    slot: Slot,
    status: Option<StatusCode>,
    bytes: u64,
    /// Length of the body, where it is known before.
    length: Option<u64>,
    end: Option<End>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Complete,
    Broken,
}

impl Entry {
    /// Follows a request, if its line is wanted.
    pub(crate) fn begin<B>(
        request: &mut http::Request<B>,
        id: &HeaderValue,
        peer: SocketAddr,
        is_quiet: bool,
    ) -> Option<Self> {
        let is_wanted = match is_quiet {
            true => tracing::enabled!(target: "access", Level::DEBUG),
            false => tracing::enabled!(target: "access", Level::INFO),
        };
        if !is_wanted {
            return None;
        }
        let slot = Slot::default();
        request.extensions_mut().insert(slot.clone());
        Some(Self {
            began: Instant::now(),
            method: request.method().clone(),
            uri: request.uri().clone(),
            id: id.clone(),
            peer,
            is_quiet,
            slot,
            status: None,
            bytes: 0,
            length: None,
            end: None,
        })
    }

    /// The answer has begun.
    fn answered<B: HttpBody>(&mut self, response: &Response<B>) {
        let length = response.headers().get(CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
        self.status = Some(response.status());
        self.length = length.or_else(|| response.body().size_hint().exact());
        // Of some answers nobody reads the body.
        let is_bare = self.method == Method::HEAD || response.status() == StatusCode::NOT_MODIFIED;
        if is_bare || response.body().is_end_stream() {
            self.end = Some(End::Complete);
        }
    }

    fn sent(&mut self, bytes: u64, is_last: bool) {
        self.bytes += bytes;
        if is_last || self.length.is_some_and(|length| self.bytes >= length) {
            self.end = Some(End::Complete);
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let account = self.slot.0.get();
        let (is_complete, failure) = match self.end {
            Some(End::Broken) => (false, Some(Failure::Broken)),
            end => (
                end.is_some() || account.is_some_and(|account| account.is_complete()),
                account.and_then(|account| account.failure()),
            ),
        };
        let line = Line {
            method: &self.method,
            path: self.uri.path(),
            status: self.status.map(|status| status.as_u16()),
            duration_ms: millis(self.began.elapsed()),
            bytes: self.bytes,
            outcome: outcome(is_complete, failure),
            request_id: self.id.to_str().unwrap_or_default(),
            peer: self.peer,
        };
        match account {
            Some(account) => account.write(&line),
            None if self.is_quiet => access_line!(DEBUG, &line),
            None => access_line!(INFO, &line),
        }
    }
}

/// The body of an answer, which takes its request's [`Entry`] and spans along.
pub(crate) struct Body {
    // Dropped in this order: what the answer itself has to tell comes before the line.
    inner: axum::body::Body,
    entry: Option<Entry>,
    span: Span,
    trace: Span,
}

impl Body {
    /// The response with its body followed.
    pub(crate) fn follow(
        response: Response<axum::body::Body>,
        mut entry: Option<Entry>,
        span: Span,
        trace: Span,
    ) -> Response<Self> {
        if let Some(entry) = &mut entry {
            entry.answered(&response);
        }
        response.map(|inner| Self {
            inner,
            entry,
            span,
            trace,
        })
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        let frame = {
            let _entered = (this.span.enter(), this.trace.enter());
            ready!(Pin::new(&mut this.inner).poll_frame(cx))
        };
        if let Some(entry) = &mut this.entry {
            match &frame {
                Some(Ok(frame)) => {
                    let bytes = frame.data_ref().map_or(0, Bytes::len) as u64;
                    entry.sent(bytes, this.inner.is_end_stream());
                }
                Some(Err(_)) => entry.end = Some(End::Broken),
                None => {
                    entry.end.get_or_insert(End::Complete);
                }
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use http_body_util::BodyExt;

    use super::*;

    /// What the last line said.
    #[derive(Default)]
    struct Said(Mutex<Option<(Option<u16>, u64, &'static str)>>, OnceLock<Failure>);

    impl Account for Said {
        fn write(&self, line: &Line<'_>) {
            *self.0.lock().unwrap() = Some((line.status, line.bytes, line.outcome));
        }

        fn failure(&self) -> Option<Failure> {
            self.1.get().copied()
        }
    }

    /// A followed request, and what its line will say. Made by hand, as whether lines are wanted is the process's affair.
    fn entry(method: Method) -> (Entry, Arc<Said>) {
        let said = Arc::new(Said::default());
        let entry = Entry {
            began: Instant::now(),
            method,
            uri: Uri::from_static("/v1/models?key=hidden"),
            id: HeaderValue::from_static("id"),
            peer: ([127, 0, 0, 1], 1).into(),
            is_quiet: false,
            slot: Slot::default(),
            status: None,
            bytes: 0,
            length: None,
            end: None,
        };
        entry.slot.put(Arc::clone(&said) as Arc<dyn Account>);
        (entry, said)
    }

    fn follow(entry: Entry, body: axum::body::Body) -> Body {
        Body::follow(Response::new(body), Some(entry), Span::none(), Span::none()).into_body()
    }

    fn stream(pieces: &[Result<&'static str, &'static str>]) -> axum::body::Body {
        let pieces: Vec<_> = pieces
            .iter()
            .map(|piece| piece.map_err(std::io::Error::other))
            .collect();
        axum::body::Body::from_stream(futures_util::stream::iter(pieces))
    }

    fn line(said: &Said) -> (Option<u16>, u64, &'static str) {
        said.0.lock().unwrap().take().expect("a line was written")
    }

    #[tokio::test]
    async fn an_answer_is_complete_when_its_last_byte_was_handed_over() {
        for body in [axum::body::Body::from("abcd"), stream(&[Ok("ab"), Ok("cd")])] {
            let (entry, said) = entry(Method::GET);
            follow(entry, body).collect().await.unwrap();
            assert_eq!(line(&said), (Some(200), 4, "complete"));
        }
        let (entry, said) = entry(Method::GET);
        drop(follow(entry, axum::body::Body::empty()));
        assert_eq!(line(&said), (Some(200), 0, "complete"));
    }

    #[tokio::test]
    async fn an_answer_whose_length_is_known_is_complete_without_a_look_at_its_end() {
        let (entry, said) = entry(Method::GET);
        let mut response = Response::new(stream(&[Ok("ab"), Ok("cd")]));
        response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(4));
        let mut body = Body::follow(response, Some(entry), Span::none(), Span::none()).into_body();
        for _ in 0..2 {
            body.frame().await.unwrap().unwrap();
        }
        drop(body);
        assert_eq!(line(&said), (Some(200), 4, "complete"));
    }

    #[tokio::test]
    async fn a_client_that_leaves_aborts_and_an_answer_that_fails_is_broken() {
        let (left, said) = entry(Method::GET);
        let mut body = follow(left, stream(&[Ok("ab"), Ok("cd")]));
        body.frame().await.unwrap().unwrap();
        drop(body);
        assert_eq!(line(&said), (Some(200), 2, "aborted"));

        let (failing, said) = entry(Method::GET);
        assert!(
            follow(failing, stream(&[Ok("ab"), Err("cut")]))
                .collect()
                .await
                .is_err()
        );
        assert_eq!(line(&said), (Some(200), 2, "broken"));

        let (early, said) = entry(Method::GET);
        drop(early);
        assert_eq!(line(&said), (None, 0, "aborted"));
    }

    #[tokio::test]
    async fn an_answer_whose_last_event_says_that_it_failed_is_not_complete() {
        for (failure, outcome) in [(Failure::Refused, "refused"), (Failure::Broken, "broken")] {
            let (failed, said) = entry(Method::POST);
            said.1.set(failure).unwrap();
            follow(failed, stream(&[Ok("ab"), Ok("an error event")]))
                .collect()
                .await
                .unwrap();
            assert_eq!(line(&said), (Some(200), 16, outcome));
        }
    }

    #[test]
    fn the_body_of_a_head_request_is_not_missed() {
        let (entry, said) = entry(Method::HEAD);
        drop(follow(entry, axum::body::Body::from("abcd")));
        assert_eq!(line(&said), (Some(200), 0, "complete"));
    }

    #[test]
    fn durations_have_three_decimals() {
        assert_eq!(millis(Duration::from_nanos(1_234_567)), 1.235);
    }
}
