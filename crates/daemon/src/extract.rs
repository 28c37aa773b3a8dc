//! Extractors whose rejections are the house's errors and name the field that is wrong.

use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use http::request::Parts;
use http::{HeaderMap, StatusCode, header};
use serde::Serialize;
use serde::de::DeserializeOwned;
use shared_contract::ErrorKind;

use crate::ApiError;

/// Limit for a body to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// A JSON body; as an answer, plain JSON.
#[derive(Debug, Clone)]
pub struct Json<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let bytes = json_body(request, state).await?;
        from_slice(&bytes).map(Json)
    }
}

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}

/// Reads a body that says it is JSON, within the router's `DefaultBodyLimit`.
pub async fn json_body<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, ApiError> {
    check_json(request.headers())?;
    let body = in_time(Bytes::from_request(request, state)).await?;
    body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => too_large(),
        _ => broken_off(),
    })
}

/// The same within this limit, with the request's headers: for routes on which a layer for the limit would be felt.
pub async fn json_request(request: Request, limit: usize) -> Result<(HeaderMap, Bytes), ApiError> {
    let (head, body) = request.into_parts();
    check_json(&head.headers)?;
    let body = in_time(read(body, limit)).await??;
    Ok((head.headers, body))
}

/// Reads a body; one that comes in a single piece is not copied.
async fn read(mut body: Body, limit: usize) -> Result<Bytes, ApiError> {
    let mut first = Bytes::new();
    let mut whole = BytesMut::new();
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        // Trailers say nothing to anybody here.
        let Ok(data) = frame.map_err(|_| broken_off())?.into_data() else {
            continue;
        };
        if first.len() + whole.len() + data.len() > limit {
            return Err(too_large());
        }
        if first.is_empty() && whole.is_empty() {
            first = data;
        } else {
            whole.extend_from_slice(&std::mem::take(&mut first));
            whole.extend_from_slice(&data);
        }
        if body.is_end_stream() {
            break;
        }
    }
    Ok(if whole.is_empty() { first } else { whole.freeze() })
}

fn check_json(headers: &HeaderMap) -> Result<(), ApiError> {
    // A browser page of another origin cannot send this type without asking first.
    let is_json = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .is_some_and(|mime| mime.trim().eq_ignore_ascii_case("application/json"));
    if is_json {
        return Ok(());
    }
    let message = "the body must be JSON, with the header `content-type: application/json`";
    Err(ApiError::new(ErrorKind::InvalidRequest, message))
}

async fn in_time<T>(reading: impl Future<Output = T>) -> Result<T, ApiError> {
    let read = tokio::time::timeout(BODY_TIMEOUT, reading).await;
    read.map_err(|_| ApiError::new(ErrorKind::InvalidRequest, "the body took too long to arrive"))
}

fn too_large() -> ApiError {
    ApiError::new(ErrorKind::TooLarge, "the body is larger than this endpoint takes")
}

fn broken_off() -> ApiError {
    ApiError::new(ErrorKind::InvalidRequest, "the body broke off before its end")
}

/// Parses JSON; an error names the path of the offending field.
pub fn from_slice<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let message = error.inner().to_string();
        match field_path(&error.path().to_string(), &message) {
            None => ApiError::new(ErrorKind::InvalidRequest, format!("the body is not valid: {message}")),
            Some(path) => ApiError::invalid(path.clone(), format!("{path}: {message}")),
        }
    })?;
    deserializer
        .end()
        .map_err(|error| ApiError::new(ErrorKind::InvalidRequest, format!("the body is not valid: {error}")))?;
    Ok(value)
}

/// The path of the offending field. A missing or unknown field is named by the message only, so it is added.
fn field_path(path: &str, message: &str) -> Option<String> {
    let parent = Some(path).filter(|path| *path != ".");
    let field = ["missing field `", "unknown field `"]
        .into_iter()
        .find_map(|start| message.strip_prefix(start))
        .and_then(|rest| rest.split_once('`'))
        .map(|(field, _)| field);
    match (parent, field) {
        (Some(parent), Some(field)) if !parent.ends_with(field) => Some(format!("{parent}.{field}")),
        (Some(parent), _) => Some(parent.to_owned()),
        (None, field) => field.map(str::to_owned),
    }
}

/// A query string.
#[derive(Debug, Clone)]
pub struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        axum::extract::Query::<T>::from_request_parts(parts, state)
            .await
            .map(|query| Self(query.0))
            .map_err(|rejection| {
                ApiError::new(
                    ErrorKind::InvalidRequest,
                    format!("query string: {}", rejection.body_text()),
                )
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize, Debug)]
    struct Outer {
        #[expect(dead_code, reason = "only its parsing matters")]
        inner: Inner,
    }

    #[derive(serde::Deserialize, Debug)]
    struct Inner {
        #[expect(dead_code, reason = "only its parsing matters")]
        port: u16,
    }

    #[test]
    fn an_error_names_the_path_of_the_field() {
        let error = from_slice::<Outer>(br#"{"inner": {"port": "x"}}"#).unwrap_err();
        assert_eq!(error.object().param.as_deref(), Some("inner.port"));
        let error = from_slice::<Outer>(br#"{"inner": {}}"#).unwrap_err();
        assert!(error.to_string().contains("missing field `port`"), "{error}");
        assert_eq!(error.object().param.as_deref(), Some("inner.port"));
        let error = from_slice::<Outer>(b"{}").unwrap_err();
        assert_eq!(error.object().param.as_deref(), Some("inner"));
    }

    #[tokio::test]
    async fn a_body_is_read_whole_however_it_comes_and_not_beyond_its_limit() {
        let body = |pieces: &[&'static str]| {
            let pieces: Vec<_> = pieces.iter().map(|piece| Ok::<_, std::io::Error>(*piece)).collect();
            Body::from_stream(futures_util::stream::iter(pieces))
        };
        for pieces in [&["abcd"][..], &["ab", "cd"], &["a", "", "b", "cd"]] {
            assert_eq!(read(body(pieces), 4).await.unwrap(), "abcd");
            assert_eq!(read(body(pieces), 3).await.unwrap_err().kind(), ErrorKind::TooLarge);
        }
        assert_eq!(read(body(&[]), 4).await.unwrap(), "");
        let cut = vec![Ok("ab"), Err(std::io::Error::other("cut"))];
        let cut = read(Body::from_stream(futures_util::stream::iter(cut)), 4).await;
        assert_eq!(cut.unwrap_err().kind(), ErrorKind::InvalidRequest);
    }

    #[test]
    fn what_is_no_json_or_has_a_tail_is_refused() {
        assert!(from_slice::<Outer>(b"{").is_err());
        assert!(from_slice::<Outer>(br#"{"inner": {"port": 1}} x"#).is_err());
    }
}
