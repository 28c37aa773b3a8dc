//! Extractors whose rejections are the house's errors and name the field that is wrong.

use std::time::Duration;

use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::request::Parts;
use http::{StatusCode, header};
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
    // A browser page of another origin cannot send this type without asking first.
    let is_json = request
        .headers()
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .is_some_and(|mime| mime.trim().eq_ignore_ascii_case("application/json"));
    if !is_json {
        let message = "the body must be JSON, with the header `content-type: application/json`";
        return Err(ApiError::new(ErrorKind::InvalidRequest, message));
    }
    let body = tokio::time::timeout(BODY_TIMEOUT, Bytes::from_request(request, state)).await;
    let body = body.map_err(|_| ApiError::new(ErrorKind::InvalidRequest, "the body took too long to arrive"))?;
    body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            ApiError::new(ErrorKind::TooLarge, "the body is larger than this endpoint takes")
        }
        _ => ApiError::new(ErrorKind::InvalidRequest, "the body broke off before its end"),
    })
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

    #[test]
    fn what_is_no_json_or_has_a_tail_is_refused() {
        assert!(from_slice::<Outer>(b"{").is_err());
        assert!(from_slice::<Outer>(br#"{"inner": {"port": 1}} x"#).is_err());
    }
}
