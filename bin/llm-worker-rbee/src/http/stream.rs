//! An answer as server-sent events.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use daemon::ApiError;
use futures_util::stream;
use openai_api::{FinishReason, Usage, sse};
use shared_contract::{ErrorBody, ErrorObject};

use crate::generation::{Answer, Piece};

/// A comment is sent after this long without an event.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// How one endpoint frames an answer.
pub(super) trait Frames: Send + 'static {
    /// What precedes the first piece.
    fn start(&self) -> Bytes;

    /// More text.
    fn text(&self, text: String) -> Bytes;

    /// All that follows the last text.
    fn end(&self, reason: FinishReason, usage: Usage) -> Bytes;

    /// The answer broke off; nothing follows.
    fn error(&self, error: ErrorObject) -> Bytes {
        sse::event(&ErrorBody { error })
    }
}

/// Where a stream stands.
struct Streaming<F> {
    answer: Answer,
    frames: F,
    /// The piece that is there already.
    first: Option<Piece>,
    is_over: bool,
}

/// Streams the answer, whose first piece is there already. Dropping the response cancels the answer.
pub(super) fn response(answer: Answer, first: Piece, frames: impl Frames) -> Response {
    let streaming = Streaming {
        answer,
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
        None => match tokio::time::timeout(KEEP_ALIVE, streaming.answer.next()).await {
            Err(_) => sse::KEEP_ALIVE,
            Ok(Some(piece)) => streaming.frame(piece),
            Ok(None) => return None,
        },
    };
    Some((Ok(frame), streaming))
}

impl<F: Frames> Streaming<F> {
    fn frame(&mut self, piece: Piece) -> Bytes {
        self.is_over = !matches!(piece, Piece::Text(_));
        match piece {
            Piece::Text(text) => self.frames.text(text),
            Piece::Done { reason, usage } => self.frames.end(reason, usage),
            Piece::Failed(reason) => self.frames.error(ApiError::internal(reason).object()),
        }
    }
}
