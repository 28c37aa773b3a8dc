//! What a whole answer says it took, found without parsing it.

use memchr::memmem;

/// The name of the member, quotes included: within a text of the answer its last quote would be escaped.
const NAME: &[u8] = b"\"completion_tokens\"";

/// The tokens of an answer by its usage, of which this is the body, or its beginning; `None` where it tells none.
pub(super) fn completion_tokens(body: &[u8]) -> Option<u32> {
    // The usage mostly stands at the end.
    let at = memmem::rfind(body, NAME)?;
    let value = body[at + NAME.len()..].trim_ascii_start().strip_prefix(b":")?;
    let value = value.trim_ascii_start();
    let digits = value.iter().take_while(|byte| byte.is_ascii_digit()).count();
    std::str::from_utf8(&value[..digits]).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_usage_is_found_wherever_it_stands() {
        let usage = json!({"prompt_tokens": 7, "completion_tokens": 12, "completion_tokens_details": {"x": 3}});
        for body in [
            json!({"id": "a", "choices": [], "usage": usage}).to_string(),
            json!({"usage": usage, "choices": [{"message": {"content": "hi"}}]}).to_string(),
            serde_json::to_string_pretty(&json!({"usage": usage})).unwrap(),
        ] {
            assert_eq!(completion_tokens(body.as_bytes()), Some(12), "{body}");
        }
    }

    #[test]
    fn what_the_answer_says_of_itself_is_not_believed() {
        let body = json!({"choices": [{"message": {"content": "\"completion_tokens\": 99"}}]}).to_string();
        assert_eq!(completion_tokens(body.as_bytes()), None);
        for odd in [
            "",
            "{\"completion_tokens\": null}",
            "{\"completion_tokens\"",
            "{\"completion_tokens\": 99999999999}",
        ] {
            assert_eq!(completion_tokens(odd.as_bytes()), None, "{odd}");
        }
    }
}
