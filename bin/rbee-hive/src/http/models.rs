//! Model files for other hives.

use std::path::Path as FilePath;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use daemon::{ApiError, Json, Query};
use hive_contract::ModelDetail;
use http_body_util::{BodyExt, StreamBody};
use model_store::{Hold, StoredFile};
use serde::Deserialize;
use shared_contract::ErrorKind;
use tokio::sync::{OwnedSemaphorePermit, TryAcquireError, mpsc};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tower_http::services::ServeFile;

use super::Shared;
use crate::operations::{models, store_error};

/// Answers with model files that are sent at once. Each copy takes a few, and all share the disk and the network with
/// the workers.
pub(crate) const SENDING_LIMIT: usize = 8;
/// When to come back while there are too many.
const RETRY_S: u32 = 5;
/// How long a reader may take nothing of what is sent, before its place is another's.
const STALL: Duration = Duration::from_secs(60);
/// Bytes that are read at once.
const CHUNK_BYTES: usize = 1024 * 1024;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DetailQuery {
    /// Where it came from; needed where several models have the id.
    reference: Option<String>,
}

/// One model with its files.
pub(super) async fn detail(
    State(app): Shared,
    Path(id): Path<String>,
    Query(query): Query<DetailQuery>,
) -> Result<Json<ModelDetail>, ApiError> {
    let stored = models::stored(&app.core, &id, query.reference.as_deref()).await?;
    let detail = models::detail(&app.core, &stored).await;
    detail.map(Json).map_err(|error| store_error(&error))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileQuery {
    reference: Option<String>,
    /// As `detail` names it; left out where the model has one.
    name: Option<String>,
}

/// What is held while a file is sent: one of the places for that, and the model, so that nobody removes it.
struct Held {
    _place: OwnedSemaphorePermit,
    _model: Hold,
}

/// One file of a model, or a range of it.
pub(super) async fn file(
    State(app): Shared,
    Path(id): Path<String>,
    Query(query): Query<FileQuery>,
    request: Request,
) -> Result<Response, ApiError> {
    let place = Arc::clone(&app.sending)
        .try_acquire_owned()
        .map_err(|error| match error {
            TryAcquireError::NoPermits => {
                let message = format!("this hive sends {SENDING_LIMIT} model files already, which is the limit");
                ApiError::new(ErrorKind::NoCapacity, message).retry_after(RETRY_S)
            }
            TryAcquireError::Closed => ApiError::internal(error),
        })?;
    let in_store = |error| store_error(&error);
    let stored = models::stored(&app.core, &id, query.reference.as_deref()).await?;
    let model = app.core.store.hold(&stored.reference).await.map_err(in_store)?;
    // Looked at once more: until it was held, it could have been removed.
    let stored = models::stored(&app.core, &id, query.reference.as_deref()).await?;
    let files = app.core.store.files(&stored).await.map_err(in_store)?;
    let file = choose(files, query.name.as_deref())?;
    let held = Held {
        _place: place,
        _model: model,
    };
    send(&file, request, held).await
}

fn choose(files: Vec<StoredFile>, name: Option<&str>) -> Result<StoredFile, ApiError> {
    let there = files
        .iter()
        .map(|file| file.name.clone())
        .collect::<Vec<_>>()
        .join(", ");
    let mut matching = files
        .into_iter()
        .filter(|file| name.is_none_or(|name| file.name == name));
    match (matching.next(), matching.next(), name) {
        (Some(file), None, _) => Ok(file),
        (_, _, Some(name)) => {
            let message = format!("the model has no file `{name}`; it has {there}");
            Err(ApiError::new(ErrorKind::NotFound, message).with_param("name"))
        }
        _ => Err(ApiError::invalid(
            "name",
            format!("the model has several files, name one: {there}"),
        )),
    }
}

async fn send(file: &StoredFile, mut request: Request, held: Held) -> Result<Response, ApiError> {
    let tag = HeaderValue::try_from(format!("\"{}\"", file.sha256)).map_err(ApiError::internal)?;
    let headers = request.headers_mut();
    // A range of another file than the one that is here would be of no use: the whole is sent.
    if headers.get(header::IF_RANGE).is_some_and(|wanted| *wanted != tag) {
        headers.remove(header::RANGE);
    }
    let mut service = ServeFile::new(FilePath::new(&file.path)).with_buf_chunk_size(CHUNK_BYTES);
    let response = service.try_call(request).await.map_err(ApiError::internal)?;
    let (mut parts, body) = response.into_parts();
    parts.headers.insert(header::ETAG, tag);
    parts.headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    Ok(Response::from_parts(parts, keeping(Body::new(body), held)))
}

/// The same body, which keeps something until it is sent, or until its reader has taken nothing for [`STALL`].
fn keeping(mut body: Body, held: impl Send + 'static) -> Body {
    let (pass_on, frames) = mpsc::channel(1);
    tokio::spawn(async move {
        let _held = held;
        while let Some(frame) = body.frame().await {
            // The reader is gone, or stands still. Then the body ends here, before the length that was promised, which
            // closes the connection.
            if !matches!(timeout(STALL, pass_on.send(frame)).await, Ok(Ok(()))) {
                return;
            }
        }
    });
    Body::new(StreamBody::new(ReceiverStream::new(frames)))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use axum::body::Bytes;
    use futures_util::stream;

    use super::*;

    fn three_frames() -> Body {
        let frames = ["a", "b", "c"].map(|frame| Ok::<_, Infallible>(Bytes::from(frame)));
        Body::from_stream(stream::iter(frames))
    }

    fn held() -> (Arc<()>, std::sync::Weak<()>) {
        let held = Arc::new(());
        let watched = Arc::downgrade(&held);
        (held, watched)
    }

    #[tokio::test]
    async fn what_is_held_is_given_back_when_the_body_is_sent() {
        let (held, watched) = held();
        let body = keeping(three_frames(), held);
        assert!(watched.upgrade().is_some());
        assert_eq!(body.collect().await.unwrap().to_bytes(), "abc");
        assert!(watched.upgrade().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_stands_still_holds_nothing_for_ever() {
        let (held, watched) = held();
        let mut body = keeping(three_frames(), held);
        body.frame().await.unwrap().unwrap();
        tokio::time::sleep(STALL / 2).await;
        assert!(watched.upgrade().is_some());
        tokio::time::sleep(STALL).await;
        assert!(watched.upgrade().is_none());
    }
}
