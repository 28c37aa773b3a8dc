//! Headers between a client that speaks a dialect and the chat.

use daemon::ApiError;
use http::header::{ACCEPT_ENCODING, CONTENT_LENGTH};
use http::{HeaderMap, HeaderName, HeaderValue};
use openai_api::{IGNORED_HEADER, STRICT_HEADER};

/// Anthropic's header for a key.
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
/// Anthropic's header that asks for features of the future; none are here.
const BETA: HeaderName = HeaderName::from_static("anthropic-beta");

/// The headers that go with the chat, whether the client wants to be told of what has no effect, and which headers have none.
pub(super) fn of_chat(client: &HeaderMap) -> Result<(HeaderMap, bool, Vec<String>), ApiError> {
    let mut headers = client.clone();
    // The body is another one, the answer has to be readable here, and the key is for the queen alone.
    for name in [CONTENT_LENGTH, ACCEPT_ENCODING, API_KEY] {
        headers.remove(name);
    }
    // As the worker reads it.
    let is_strict = match headers.remove(STRICT_HEADER).as_ref().map(HeaderValue::as_bytes) {
        None | Some(b"false" | b"0") => false,
        Some(b"true" | b"1") => true,
        Some(_) => {
            let message = format!("{STRICT_HEADER}: the header is `true` or `false`");
            return Err(ApiError::invalid(STRICT_HEADER, message));
        }
    };
    let beta = headers.remove(BETA).map(|_| BETA.to_string());
    Ok((headers, is_strict, beta.into_iter().collect()))
}

/// Names what has no effect in the answer's headers, behind what the worker named itself.
pub(super) fn name_ignored(answer: &mut HeaderMap, ignored: &[String]) {
    if !ignored.is_empty()
        && let Ok(value) = HeaderValue::try_from(ignored.join(", "))
    {
        answer.append(IGNORED_HEADER, value);
    }
}
