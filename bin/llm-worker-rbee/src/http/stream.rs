//! Answers as server-sent events.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use daemon::ApiError;
use futures_util::stream;
use openai_api::{FinishReason, Usage, sse};
use shared_contract::{ErrorBody, ErrorObject};

use crate::answers::{Answers, Step};
use crate::generation::Part;

/// A comment is sent after this long without an event.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// How one endpoint frames its answers.
pub(super) trait Frames: Send + 'static {
    /// What precedes the first piece.
    fn start(&self) -> Bytes;

    /// More of one answer.
    fn part(&mut self, choice: u32, part: Part) -> Bytes;

    /// One answer is complete.
    fn finish(&mut self, choice: u32, reason: FinishReason) -> Bytes;

    /// All that follows the last answer.
    fn end(&self, usage: Usage) -> Bytes;

    /// The answers broke off; nothing follows.
    fn error(&self, error: ErrorObject) -> Bytes {
        sse::event(&ErrorBody { error })
    }
}

/// Where a stream stands.
struct Streaming<F> {
    answers: Answers,
    frames: F,
    /// The step that is there already.
    first: Option<Step>,
    is_over: bool,
}

/// Streams the answers, whose first step is there already. Dropping the response cancels them.
pub(super) fn response(answers: Answers, first: Step, frames: impl Frames) -> Response {
    let streaming = Streaming {
        answers,
        frames,
        first: Some(first),
        is_over: false,
    };
    let body = Body::from_stream(stream::unfold(streaming, next));
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(sse::CONTENT_TYPE)),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        // Asks reverse proxies that buffer answers not to.
        (
            header::HeaderName::from_static("x-accel-buffering"),
            HeaderValue::from_static("no"),
        ),
    ];
    (headers, body).into_response()
}

async fn next<F: Frames>(
    mut streaming: Streaming<F>,
) -> Option<(Result<Bytes, std::convert::Infallible>, Streaming<F>)> {
    if streaming.is_over {
        return None;
    }
    let frame = match streaming.first.take() {
        Some(first) => {
            let start = streaming.frames.start();
            let first = streaming.frame(first);
            [start, first].concat().into()
        }
        None => match tokio::time::timeout(KEEP_ALIVE, streaming.answers.next()).await {
            Err(_) => sse::KEEP_ALIVE,
            Ok(Some(step)) => streaming.frame(step),
            Ok(None) => return None,
        },
    };
    Some((Ok(frame), streaming))
}

impl<F: Frames> Streaming<F> {
    fn frame(&mut self, step: Step) -> Bytes {
        match step {
            Step::Part { choice, part } => self.frames.part(choice, part),
            Step::Finished { choice, reason, .. } => self.frames.finish(choice, reason),
            Step::Done(usage) => {
                self.is_over = true;
                self.frames.end(usage)
            }
            Step::Failed(reason) => {
                self.is_over = true;
                self.frames.error(ApiError::internal(reason).object())
            }
        }
    }
}
