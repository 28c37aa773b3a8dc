//! Headers between a client that speaks a dialect and the chat.

use http::header::{ACCEPT_ENCODING, CONTENT_LENGTH};
use http::{HeaderMap, HeaderName, HeaderValue};

/// Header of an answer that names the parameters without effect.
const IGNORED: HeaderName = HeaderName::from_static("x-rbee-ignored-parameters");
/// Header of a request that has parameters without effect refused.
const STRICT: HeaderName = HeaderName::from_static("x-rbee-strict");
/// Anthropic's header for a key.
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
/// Anthropic's header that asks for features of the future; none are here.
const BETA: HeaderName = HeaderName::from_static("anthropic-beta");

/// The headers that go with the chat, whether the client wants to be told of what has no effect, and which headers have none.
pub(super) fn of_chat(client: &HeaderMap) -> (HeaderMap, bool, Vec<String>) {
    let mut headers = client.clone();
    // The body is another one, the answer has to be readable here, and the key is for the queen alone.
    for name in [CONTENT_LENGTH, ACCEPT_ENCODING, API_KEY] {
        headers.remove(name);
    }
    let is_strict = headers.remove(STRICT).is_some_and(|value| value == "true");
    let beta = headers.remove(BETA).map(|_| BETA.to_string());
    (headers, is_strict, beta.into_iter().collect())
}

/// Names what has no effect in the answer's headers, behind what the worker named itself.
pub(super) fn name_ignored(answer: &mut HeaderMap, ignored: &[String]) {
    if !ignored.is_empty()
        && let Ok(value) = HeaderValue::try_from(ignored.join(", "))
    {
        answer.append(IGNORED, value);
    }
}
