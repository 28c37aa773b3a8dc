//! The messages of a conversation.

use serde_json::{Value, json};

use super::{accepted, invalid, missing, parse, refusal, unknown, unsupported, wrong_type};
use crate::{InvalidCode, Message, Role, ToolCall};

fn conversation(messages: &Value) -> Value {
    json!({"model": "m", "messages": messages})
}

/// Refusal of a message that follows a first one.
fn refusal_of(message: &Value) -> (String, InvalidCode) {
    refusal(&conversation(&json!([{"role": "user", "content": "Hi"}, message])))
}

/// A call as OpenAI's clients send it back.
fn call(id: &str, arguments: &str) -> Value {
    json!({"id": id, "type": "function", "function": {"name": "weather", "arguments": arguments}})
}

#[test]
fn everybody_may_speak_in_text_and_in_parts() {
    let request = accepted(&conversation(&json!([
        {"role": "system", "content": "a"},
        {"role": "developer", "content": [{"type": "text", "text": "b"}]},
        {"role": "user", "content": [{"type": "text", "text": "c"}, {"type": "text", "text": "d"}], "name": "eve"},
        {"role": "assistant", "content": "e", "refusal": null, "tool_calls": null, "annotations": [], "audio": null, "function_call": null},
    ])));
    let eve = Message {
        name: Some("eve".to_owned()),
        ..Message::new(Role::User, "c\nd")
    };
    let expected = [
        Message::new(Role::System, "a"),
        Message::new(Role::Developer, "b"),
        eve,
        Message::new(Role::Assistant, "e"),
    ];
    assert_eq!(request.messages, expected);
}

#[test]
fn tools_are_called_and_answer() {
    let request = accepted(&conversation(&json!([
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": null, "tool_calls": [call("1", "{\"city\": \"Rome\"}"), call("2", "")]},
        {"role": "tool", "tool_call_id": "2", "content": "rain"},
        {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "sun"}]},
    ])));
    let call = |id: &str, arguments: &str| ToolCall {
        id: id.to_owned(),
        name: "weather".to_owned(),
        arguments: arguments.to_owned(),
    };
    let answer = |id: &str, text: &str| Message {
        tool_call_id: Some(id.to_owned()),
        ..Message::new(Role::Tool, text)
    };
    let calls = Message {
        role: Role::Assistant,
        content: None,
        name: None,
        tool_calls: vec![call("1", "{\"city\": \"Rome\"}"), call("2", "")],
        tool_call_id: None,
    };
    let expected = [
        Message::new(Role::User, "Weather?"),
        calls,
        answer("2", "rain"),
        answer("1", "sun"),
    ];
    assert_eq!(request.messages, expected);
}

#[test]
fn what_clients_add_to_an_answer_is_passed_over() {
    let mut call = call("1", "{\"a\": 1}");
    let plain = json!([{"role": "assistant", "content": "x", "tool_calls": [call]}]);
    call["index"] = json!(0);
    call["function"]["parsed_arguments"] = json!({"a": 1});
    let parsed = json!([{"role": "assistant", "content": "x", "tool_calls": [call], "parsed": {"b": 2}}]);
    assert_eq!(accepted(&conversation(&parsed)), accepted(&conversation(&plain)));
    let of_a_user = json!({"role": "user", "content": "x", "parsed": null});
    assert_eq!(refusal_of(&of_a_user), unknown("messages[1].parsed"));
}

#[test]
fn a_message_is_serialized_as_templates_take_it() {
    let request = accepted(&conversation(&json!([
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": null, "tool_calls": [
            call("1", "{\"z\": 1, \"a\": 2}"), call("2", " "), call("3", "{\"cut"), call("4", "[1]"),
        ]},
        {"role": "tool", "tool_call_id": "1", "content": "ok", "name": "weather"},
    ])));
    let call = |id: &str, arguments: Value| json!({"id": id, "type": "function", "function": {"name": "weather", "arguments": arguments}});
    let expected = json!([
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "", "tool_calls": [
            call("1", json!({"z": 1, "a": 2})), call("2", json!({})), call("3", json!("{\"cut")), call("4", json!("[1]")),
        ]},
        {"role": "tool", "content": "ok", "name": "weather", "tool_call_id": "1"},
    ]);
    let written = serde_json::to_string(&request.messages).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&written).unwrap(), expected);
    assert!(
        written.contains(r#"{"z":1,"a":2}"#),
        "arguments keep their order: {written}"
    );
}

#[test]
fn a_tools_answer_answers_a_call_before_it() {
    let answer = json!({"role": "tool", "tool_call_id": "1", "content": "x"});
    let asking = json!({"role": "assistant", "tool_calls": [call("1", "{}")]});
    accepted(&conversation(&json!([asking, answer])));
    for messages in [
        json!([answer, asking]),
        json!([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "x"}, answer]),
    ] {
        let (path, code) = refusal(&conversation(&messages));
        assert!(
            path.ends_with(".tool_call_id") && code == InvalidCode::InvalidValue,
            "{path}"
        );
    }
}

#[test]
fn a_message_that_is_not_whole_is_refused_by_path() {
    for (message, path) in [
        (json!({"content": "x"}), "messages[1].role"),
        (json!({"role": "user"}), "messages[1].content"),
        (json!({"role": "assistant", "content": null}), "messages[1].content"),
        (
            json!({"role": "assistant", "content": null, "tool_calls": []}),
            "messages[1].content",
        ),
        (json!({"role": "tool", "content": "x"}), "messages[1].tool_call_id"),
        (
            json!({"role": "user", "content": [{"type": "text"}]}),
            "messages[1].content[0].text",
        ),
        (
            json!({"role": "user", "content": [{"text": "x"}]}),
            "messages[1].content[0].type",
        ),
    ] {
        assert_eq!(refusal_of(&message), missing(path));
    }
    for (field, path) in [
        ("id", "messages[1].tool_calls[0].id"),
        ("type", "messages[1].tool_calls[0].type"),
        ("function", "messages[1].tool_calls[0].function"),
    ] {
        let mut call = call("1", "{}");
        call[field] = Value::Null;
        assert_eq!(
            refusal_of(&json!({"role": "assistant", "tool_calls": [call]})),
            missing(path)
        );
    }
    for field in ["name", "arguments"] {
        let mut call = call("1", "{}");
        call["function"][field] = Value::Null;
        let path = format!("messages[1].tool_calls[0].function.{field}");
        assert_eq!(
            refusal_of(&json!({"role": "assistant", "tool_calls": [call]})),
            missing(&path)
        );
    }
}

#[test]
fn a_message_that_is_not_understood_is_refused_by_path() {
    let image = json!({"type": "image_url", "image_url": {"url": "data:"}});
    let custom = json!({"id": "1", "type": "custom", "custom": {"name": "f", "input": "x"}});
    for (message, expected) in [
        (json!("Hi"), wrong_type("messages[1]")),
        (json!({"role": "user", "content": 1}), wrong_type("messages[1].content")),
        (
            json!({"role": "user", "content": ["x"]}),
            wrong_type("messages[1].content[0]"),
        ),
        (json!({"role": "user", "content": []}), invalid("messages[1].content")),
        (json!({"role": "robot", "content": "x"}), invalid("messages[1].role")),
        (
            json!({"role": "function", "name": "f", "content": "x"}),
            unsupported("messages[1].role"),
        ),
        (
            json!({"role": "user", "content": [{"type": "text", "text": "x"}, image]}),
            unsupported("messages[1].content[1].type"),
        ),
        (
            json!({"role": "user", "content": [{"type": "text", "text": "x", "cache": 1}]}),
            unknown("messages[1].content[0].cache"),
        ),
        (
            json!({"role": "user", "content": "x", "tool_calls": []}),
            unknown("messages[1].tool_calls"),
        ),
        (
            json!({"role": "user", "content": "x", "tool_call_id": "1"}),
            unknown("messages[1].tool_call_id"),
        ),
        (
            json!({"role": "assistant", "refusal": "No."}),
            unsupported("messages[1].refusal"),
        ),
        (
            json!({"role": "assistant", "function_call": {"name": "f", "arguments": ""}}),
            unsupported("messages[1].function_call"),
        ),
        (
            json!({"role": "assistant", "tool_calls": [custom]}),
            unsupported("messages[1].tool_calls[0].type"),
        ),
    ] {
        assert_eq!(refusal_of(&message), expected);
    }
}

#[test]
fn a_conversation_has_a_message() {
    assert_eq!(refusal(&conversation(&json!([]))), invalid("messages"));
}

#[test]
fn what_an_answer_said_can_be_sent_back() {
    let message = crate::AnswerMessage::new(
        String::new(),
        vec![ToolCall {
            id: "1".to_owned(),
            name: "f".to_owned(),
            arguments: "{}".to_owned(),
        }],
    );
    for answer in [message, crate::AnswerMessage::new("Hi".to_owned(), vec![])] {
        let sent = serde_json::to_value(&answer).unwrap();
        let request = parse(&conversation(&json!([sent]))).unwrap();
        assert_eq!(request.messages[0].content, answer.content);
        assert_eq!(request.messages[0].tool_calls, answer.tool_calls);
    }
}
