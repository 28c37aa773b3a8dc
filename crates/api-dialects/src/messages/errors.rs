//! Errors in Anthropic's shape.

use bytes::Bytes;
use serde_json::json;
use shared_contract::{ErrorKind, ErrorObject};

/// Anthropic's word for the kind of an error.
pub fn error_type(error: &ErrorObject) -> &'static str {
    const BUSY: [ErrorKind; 3] = [ErrorKind::ModelLoading, ErrorKind::NoCapacity, ErrorKind::Draining];
    let is = |kind: ErrorKind| error.code.is_some() && error.code.as_deref() == kind.code();
    if is(ErrorKind::Unauthorized) {
        "authentication_error"
    } else if is(ErrorKind::Forbidden) {
        "permission_error"
    } else if is(ErrorKind::ModelNotFound) || is(ErrorKind::NotFound) {
        "not_found_error"
    } else if is(ErrorKind::TooLarge) {
        "request_too_large"
    } else if is(ErrorKind::RateLimited) || error.kind == ErrorKind::RateLimited.type_name() {
        "rate_limit_error"
    } else if is(ErrorKind::UpstreamTimeout) {
        "timeout_error"
    } else if BUSY.into_iter().any(is) {
        "overloaded_error"
    } else if error.kind == ErrorKind::Internal.type_name() {
        "api_error"
    } else {
        "invalid_request_error"
    }
}

/// The body of an error; `request_id` is what the answer's headers name the request.
pub fn error_body(error: &ErrorObject, request_id: Option<&str>) -> Bytes {
    let body = json!({
        "type": "error",
        "error": {"type": error_type(error), "message": error.message},
        "request_id": request_id,
    });
    body.to_string().into()
}
