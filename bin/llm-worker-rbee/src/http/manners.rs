//! What a request's headers ask of its answer, and what the answer's headers say of the request.

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::Response;
use daemon::ApiError;
use openai_api::{IGNORED_HEADER, STRICT_HEADER, refuse_ignored};
use worker_contract::TOKENS_HEADER;

use super::refused;

/// What a request's headers ask for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Manners {
    /// Nothing may be ignored.
    is_strict: bool,
    /// A stream names the tokens of its events, so that another worker can take it up.
    pub(super) names_tokens: bool,
}

impl Manners {
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, ApiError> {
        Ok(Self {
            is_strict: flag(headers, STRICT_HEADER)?,
            names_tokens: flag(headers, TOKENS_HEADER)?,
        })
    }

    /// Refuses a request that asks for this in vain, if it wants to be refused.
    pub(super) fn check(self, ignored: &[&'static str]) -> Result<(), ApiError> {
        if self.is_strict {
            refuse_ignored(ignored).map_err(refused)?;
        }
        Ok(())
    }
}

/// Says which of the request's parameters have had no effect.
pub(super) fn tell_ignored(mut response: Response, ignored: &[&'static str]) -> Response {
    if let Ok(names) = HeaderValue::from_str(&ignored.join(", "))
        && !names.is_empty()
    {
        response
            .headers_mut()
            .insert(HeaderName::from_static(IGNORED_HEADER), names);
    }
    response
}

fn flag(headers: &HeaderMap, name: &str) -> Result<bool, ApiError> {
    match headers.get(name).map(HeaderValue::as_bytes) {
        None | Some(b"false" | b"0") => Ok(false),
        Some(b"true" | b"1") => Ok(true),
        Some(_) => Err(ApiError::invalid(
            name,
            format!("{name}: the header is `true` or `false`"),
        )),
    }
}
