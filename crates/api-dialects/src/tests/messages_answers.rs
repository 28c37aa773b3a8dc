//! What `POST /v1/messages` answers.

use serde_json::{Value, json};
use shared_contract::ErrorKind;

use super::{call, completion, identity};
use crate::messages;

const REQUEST: &[u8] = br#"{"model": "alias", "max_tokens": 5, "messages": [{"role": "user", "content": "Hi"}]}"#;

fn answer(chat: &[u8]) -> Value {
    let (_, reply) = messages::translate(REQUEST).unwrap();
    serde_json::from_slice(&reply.whole(chat, identity()).unwrap()).unwrap()
}

#[test]
fn a_text_is_one_block_and_cached_tokens_are_counted_apart() {
    let expected = json!({
        "id": "msg_1", "type": "message", "role": "assistant", "model": "real",
        "content": [{"type": "text", "text": "Ho", "citations": null}],
        "stop_reason": "end_turn", "stop_sequence": null,
        "usage": {
            "input_tokens": 2, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 8, "output_tokens": 4,
            "service_tier": "standard",
        },
    });
    assert_eq!(
        answer(&completion(&json!({"role": "assistant", "content": "Ho"}), "stop")),
        expected
    );
}

#[test]
fn the_reason_of_the_end_is_told() {
    let end = |reason: &str, stop_text: Value| {
        let mut chat: Value = serde_json::from_slice(&completion(&json!({"content": "Ho"}), reason)).unwrap();
        chat["choices"][0]["stop_reason"] = stop_text;
        let answer = answer(chat.to_string().as_bytes());
        (answer["stop_reason"].clone(), answer["stop_sequence"].clone())
    };
    assert_eq!(end("stop", Value::Null), (json!("end_turn"), Value::Null));
    assert_eq!(end("stop", json!("END")), (json!("stop_sequence"), json!("END")));
    assert_eq!(end("length", Value::Null), (json!("max_tokens"), Value::Null));
}

#[test]
fn a_stop_text_behind_a_call_is_not_the_reason_of_the_end() {
    let message = json!({"role": "assistant", "content": null, "tool_calls": [call("1", "{}")]});
    let mut chat: Value = serde_json::from_slice(&completion(&message, "tool_calls")).unwrap();
    chat["choices"][0]["stop_reason"] = json!("END");
    let answer = answer(chat.to_string().as_bytes());
    assert_eq!(
        (&answer["stop_reason"], &answer["stop_sequence"]),
        (&json!("tool_use"), &Value::Null)
    );
}

#[test]
fn calls_are_uses_of_tools_with_their_input_as_an_object() {
    let calls = json!([call("1", "{\"city\": \"Rome\"}"), call("2", ""), call("3", "{\"ci")]);
    let message = json!({"role": "assistant", "content": "A moment.", "tool_calls": calls});
    let used = |id: &str, input: Value| json!({"type": "tool_use", "id": id, "name": "weather", "input": input});
    let answer = answer(&completion(&message, "tool_calls"));
    let expected = json!([
        {"type": "text", "text": "A moment.", "citations": null},
        used("1", json!({"city": "Rome"})), used("2", json!({})), used("3", json!({"INVALID_JSON": "{\"ci"})),
    ]);
    assert_eq!(
        (&answer["content"], &answer["stop_reason"]),
        (&expected, &json!("tool_use"))
    );
}

#[test]
fn a_content_can_be_sent_back() {
    let message = json!({"role": "assistant", "content": "A moment.", "tool_calls": [call("1", "{}")]});
    let content = answer(&completion(&message, "tool_calls"))["content"].clone();
    let result = json!([{"type": "tool_result", "tool_use_id": "1", "content": "sun"}]);
    let body = json!({"model": "m", "max_tokens": 5, "messages": [
        {"role": "user", "content": "Weather?"}, {"role": "assistant", "content": content}, {"role": "user", "content": result},
    ]});
    let (translated, _) = messages::translate(body.to_string().as_bytes()).unwrap();
    assert!(translated.ignored.is_empty());
    assert_eq!(
        super::chat(&translated)["messages"][1]["tool_calls"],
        json!([call("1", "{}")])
    );
}

#[test]
fn every_kind_of_error_has_anthropics_word() {
    for (kind, word) in [
        (ErrorKind::InvalidRequest, "invalid_request_error"),
        (ErrorKind::ContextLengthExceeded, "invalid_request_error"),
        (ErrorKind::Unauthorized, "authentication_error"),
        (ErrorKind::Forbidden, "permission_error"),
        (ErrorKind::ModelNotFound, "not_found_error"),
        (ErrorKind::NotFound, "not_found_error"),
        (ErrorKind::MethodNotAllowed, "invalid_request_error"),
        (ErrorKind::TooLarge, "request_too_large"),
        (ErrorKind::RateLimited, "rate_limit_error"),
        (ErrorKind::Internal, "api_error"),
        (ErrorKind::UpstreamFailed, "api_error"),
        (ErrorKind::ModelLoading, "overloaded_error"),
        (ErrorKind::NoCapacity, "overloaded_error"),
        (ErrorKind::Draining, "overloaded_error"),
        (ErrorKind::UpstreamTimeout, "timeout_error"),
    ] {
        assert_eq!(messages::error_type(&kind.object("m", None)), word, "{kind:?}");
    }
    let body = messages::error_body(&ErrorKind::RateLimited.object("Later.", None), Some("r"));
    let expected =
        json!({"type": "error", "error": {"type": "rate_limit_error", "message": "Later."}, "request_id": "r"});
    assert_eq!(serde_json::from_slice::<Value>(&body).unwrap(), expected);
}
