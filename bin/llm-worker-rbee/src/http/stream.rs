//! Answers as server-sent events.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use daemon::ApiError;
use futures_util::stream::{self, StreamExt};
use openai_api::{Usage, sse};
use shared_contract::{ErrorBody, ErrorObject};
use worker_contract::TOKENS_COMMENT;

use super::reader::Attended;
use crate::answers::{Answers, Step};
use crate::generation::End;
use crate::parts::Part;

/// A comment is sent after this long without an event, also before the first one.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// A client that takes nothing for this long, while there is something to take, is taken for gone.
const READER_PATIENCE: Duration = Duration::from_secs(60);

/// How one endpoint frames its answers.
pub(super) trait Frames: Send + 'static {
    /// What precedes the first piece.
    fn start(&self) -> Bytes;

    /// More of one answer.
    fn part(&mut self, choice: u32, part: Part) -> Bytes;

    /// One answer is complete.
    fn finish(&mut self, choice: u32, end: End) -> Bytes;

    /// All that follows the last answer.
    fn end(&self, usage: Usage) -> Bytes;

    /// The answers broke off; nothing follows.
    fn error(&self, error: ErrorObject) -> Bytes {
        sse::event(&ErrorBody { error })
    }
}

/// Answers with a stream, once there is something to stream: until then a fault has a status of its own, and a gateway
/// may go elsewhere. If that takes long, a comment comes first. Dropping the response cancels the answers.
pub(super) async fn response(mut answers: Answers, frames: impl Frames) -> Result<Response, ApiError> {
    let first = match tokio::time::timeout(KEEP_ALIVE, answers.next()).await {
        Ok(Some(Step::Failed(reason))) => return Err(ApiError::internal(reason)),
        Ok(None) => return Err(ApiError::internal("the answers have no end")),
        Ok(Some(first)) => Some(first),
        Err(_) => None,
    };
    let streaming = Streaming {
        answers,
        frames,
        upcoming: match first {
            Some(first) => Upcoming::First(first),
            None => Upcoming::Comment,
        },
    };
    let frames = stream::unfold(streaming, next).boxed();
    let body = Body::from_stream(Attended::new(frames, READER_PATIENCE));
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(sse::CONTENT_TYPE)),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        // Asks reverse proxies that buffer answers not to.
        (
            header::HeaderName::from_static("x-accel-buffering"),
            HeaderValue::from_static("no"),
        ),
    ];
    Ok((headers, body).into_response())
}

/// A stream on its way.
struct Streaming<F> {
    answers: Answers,
    frames: F,
    upcoming: Upcoming,
}

/// What a stream sends next.
enum Upcoming {
    /// Its start, and this step.
    First(Step),
    /// A comment, since the first step takes long.
    Comment,
    /// Its start, and the step that is waited for.
    Start,
    /// The step that is waited for.
    Step,
    /// Nothing: the last frame is out.
    Nothing,
}

async fn next<F: Frames>(mut streaming: Streaming<F>) -> Option<(Bytes, Streaming<F>)> {
    let (is_start, step) = match std::mem::replace(&mut streaming.upcoming, Upcoming::Step) {
        Upcoming::Nothing => return None,
        Upcoming::Comment => {
            streaming.upcoming = Upcoming::Start;
            return Some((sse::KEEP_ALIVE, streaming));
        }
        Upcoming::First(step) => (true, step),
        waiting @ (Upcoming::Start | Upcoming::Step) => {
            match tokio::time::timeout(KEEP_ALIVE, streaming.answers.next()).await {
                Err(_) => {
                    streaming.upcoming = waiting;
                    return Some((sse::KEEP_ALIVE, streaming));
                }
                Ok(step) => (matches!(waiting, Upcoming::Start), step?),
            }
        }
    };
    let mut frame = streaming.frame(step);
    if is_start {
        frame = [streaming.frames.start(), frame].concat().into();
    }
    Some((frame, streaming))
}

impl<F: Frames> Streaming<F> {
    fn frame(&mut self, step: Step) -> Bytes {
        match step {
            Step::Part { choice, mut part } => {
                let taken = std::mem::take(&mut part.taken);
                named(&taken, self.frames.part(choice, part))
            }
            Step::Finished { choice, mut end } => {
                let taken = std::mem::take(&mut end.taken);
                named(&taken, self.frames.finish(choice, end))
            }
            Step::Done(usage) => {
                self.upcoming = Upcoming::Nothing;
                self.frames.end(usage)
            }
            Step::Failed(reason) => {
                self.upcoming = Upcoming::Nothing;
                self.frames.error(ApiError::internal(reason).object())
            }
        }
    }
}

/// The frame with a line before it that names these tokens, if there are any; see [`worker_contract::Resume`].
fn named(tokens: &[u32], frame: Bytes) -> Bytes {
    if tokens.is_empty() {
        return frame;
    }
    let mut line = String::with_capacity(TOKENS_COMMENT.len() + 8 * tokens.len() + frame.len());
    line.push_str(TOKENS_COMMENT.trim_end());
    for token in tokens {
        line.push(' ');
        line.push_str(&token.to_string());
    }
    line.push('\n');
    let mut bytes = line.into_bytes();
    bytes.extend_from_slice(&frame);
    bytes.into()
}
