//! What `POST /v1/messages` asks of a chat.

use openai_api::InvalidCode::{InvalidType, InvalidValue, MissingParameter, UnknownParameter, UnsupportedParameter};
use serde_json::{Value, json};

use super::{Read, call, chat, refusal};
use crate::{Translated, messages};

fn read(body: &Value) -> Read {
    messages::translate(body.to_string().as_bytes())
}

fn accepted(body: &Value) -> Translated {
    read(body).unwrap_or_else(|error| panic!("{body}: {error}")).0
}

/// The smallest request with one more parameter.
fn with(name: &str, value: Value) -> Value {
    let mut body = json!({"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "Hi"}]});
    body[name] = value;
    body
}

fn chat_with(name: &str, value: Value) -> Value {
    chat(&accepted(&with(name, value)))
}

fn conversation(turns: Value) -> Value {
    chat_with("messages", turns)["messages"].clone()
}

fn weather() -> Value {
    json!({"name": "weather", "description": "d", "input_schema": {"type": "object"}, "cache_control": {"type": "ephemeral"}})
}

fn used(id: &str) -> Value {
    json!({"type": "tool_use", "id": id, "name": "weather", "input": {}})
}

#[test]
fn the_system_comes_first_and_the_limit_has_its_name_in_the_chat() {
    let expected = json!({"model": "m", "max_completion_tokens": 5, "messages": [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"},
    ]});
    for system in [
        json!("Be brief."),
        json!([{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]),
    ] {
        assert_eq!(chat_with("system", system), expected);
    }
}

#[test]
fn turns_of_one_side_become_one() {
    let said = conversation(json!([
        {"role": "user", "content": "a"},
        {"role": "user", "content": [{"type": "text", "text": "b"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "c", "citations": null}]},
        {"role": "user", "content": "d"},
    ]));
    let both = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
    let expected = json!([
        {"role": "user", "content": both}, {"role": "assistant", "content": "c"}, {"role": "user", "content": "d"},
    ]);
    assert_eq!(said, expected);
}

#[test]
fn uses_of_tools_are_calls_and_their_results_are_messages_of_tools() {
    let said = conversation(json!([
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "text", "text": "A moment."}, used("1"), used("2"), used("3"),
        ]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "1", "content": "sun"},
            {"type": "tool_result", "tool_use_id": "2", "content": [{"type": "text", "text": "no such city"}], "is_error": true},
            {"type": "tool_result", "tool_use_id": "3"},
            {"type": "text", "text": "Well?"},
        ]},
    ]));
    let expected = json!([
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "A moment.", "tool_calls": [call("1", "{}"), call("2", "{}"), call("3", "{}")]},
        {"role": "tool", "content": "sun", "tool_call_id": "1"},
        {"role": "tool", "content": "Error: no such city", "tool_call_id": "2"},
        {"role": "tool", "content": "", "tool_call_id": "3"},
        {"role": "user", "content": "Well?"},
    ]);
    assert_eq!(said, expected);
}

#[test]
fn a_last_turn_of_the_assistant_is_gone_on_with() {
    let begun = chat_with(
        "messages",
        json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "{"}]),
    );
    assert_eq!(
        (&begun["continue_final_message"], &begun["add_generation_prompt"]),
        (&json!(true), &json!(false))
    );
    assert_eq!(chat_with("top_k", json!(1)).get("continue_final_message"), None);
}

#[test]
fn sampling_has_its_names_in_the_chat() {
    for (name, value) in [
        ("temperature", json!(0.5)),
        ("top_p", json!(0.5)),
        ("top_k", json!(3)),
        ("seed", json!(4)),
    ] {
        assert_eq!(chat_with(name, value.clone())[name], value);
    }
    assert_eq!(
        chat_with("stop_sequences", json!(["\n", "END"]))["stop"],
        json!(["\n", "END"])
    );
    assert_eq!(chat_with("stop_sequences", json!([])).get("stop"), None);
}

#[test]
fn tools_and_their_choice_are_the_chats() {
    let choose = |choice: Value| {
        let mut body = with("tools", json!([weather()]));
        body["tool_choice"] = choice;
        chat(&accepted(&body))
    };
    let function = json!({"name": "weather", "description": "d", "parameters": {"type": "object"}});
    let auto = choose(json!({"type": "auto"}));
    assert_eq!(auto["tools"], json!([{"type": "function", "function": function}]));
    assert_eq!(
        (&auto["tool_choice"], auto.get("parallel_tool_calls")),
        (&json!("auto"), None)
    );
    let any = choose(json!({"type": "any", "disable_parallel_tool_use": true}));
    assert_eq!(
        (&any["tool_choice"], &any["parallel_tool_calls"]),
        (&json!("required"), &json!(false))
    );
    let named = json!({"type": "function", "function": {"name": "weather"}});
    assert_eq!(choose(json!({"type": "tool", "name": "weather"}))["tool_choice"], named);
    assert_eq!(choose(json!({"type": "none"}))["tool_choice"], "none");
}

#[test]
fn a_form_is_the_chats_response_format() {
    let config = json!({"format": {"type": "json_schema", "schema": {"type": "object"}}});
    let schema = json!({"name": "output", "schema": {"type": "object"}, "strict": true});
    let expected = json!({"type": "json_schema", "json_schema": schema});
    assert_eq!(chat_with("output_config", config)["response_format"], expected);
}

#[test]
fn what_has_no_effect_is_named_once_and_what_asks_for_nothing_is_not() {
    let thought = json!([
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "x", "signature": "s"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "y", "signature": "s"}]},
        {"role": "user", "content": "c"},
    ]);
    let cached = json!([{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]);
    for (name, value, ignored) in [
        (
            "thinking",
            json!({"type": "enabled", "budget_tokens": 1024}),
            "thinking",
        ),
        ("metadata", json!({"user_id": "u"}), "metadata.user_id"),
        ("cache_control", json!({"type": "ephemeral"}), "cache_control"),
        ("system", cached, "cache_control"),
        ("output_config", json!({"effort": "low"}), "output_config.effort"),
        ("speed", json!("fast"), "speed"),
        ("context_management", json!({"edits": [{}]}), "context_management"),
        ("messages", thought, "messages.content.thinking"),
        ("tools", json!([weather()]), "tools.cache_control"),
    ] {
        assert_eq!(accepted(&with(name, value)).ignored, [ignored]);
    }
    for (name, value) in [
        ("thinking", json!({"type": "disabled"})),
        ("metadata", json!({"user_id": null})),
        ("service_tier", json!("standard_only")),
        ("speed", json!("standard")),
    ] {
        assert_eq!(accepted(&with(name, value)).ignored, [""; 0]);
    }
}

#[test]
fn what_is_not_here_is_refused_by_name() {
    let image = json!({"type": "image", "source": {"type": "url", "url": "u"}});
    let document = json!({"type": "tool_result", "tool_use_id": "1", "content": [{"type": "document", "source": {}}]});
    let turn =
        |block: Value| json!([{"role": "assistant", "content": [used("1")]}, {"role": "user", "content": [block]}]);
    for (name, value, path) in [
        ("messages", turn(image), "messages[1].content[0].type"),
        ("messages", turn(document), "messages[1].content[0].content[0].type"),
        (
            "tools",
            json!([{"type": "web_search_20250305", "name": "web_search"}]),
            "tools[0].type",
        ),
        ("container", json!("c"), "container"),
        ("mcp_servers", json!([{}]), "mcp_servers"),
        ("inference_geo", json!("eu"), "inference_geo"),
    ] {
        assert_eq!(
            refusal(read(&with(name, value))),
            (path.to_owned(), UnsupportedParameter)
        );
    }
}

#[test]
fn a_mistake_is_named_as_the_client_wrote_it_also_where_the_chat_finds_it() {
    let stray = json!([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "tool_result", "tool_use_id": "9"}]}]);
    let bad_tool = json!([weather(), {"name": "no spaces", "input_schema": {}}]);
    for (name, value, path, code) in [
        ("max_tokens", Value::Null, "max_tokens", MissingParameter),
        ("max_tokens", json!(0), "max_tokens", InvalidValue),
        ("messages", json!([]), "messages", InvalidValue),
        ("messages", json!("Hi"), "messages", InvalidType),
        (
            "messages",
            json!([{"role": "tool", "content": "a"}]),
            "messages[0].role",
            InvalidValue,
        ),
        (
            "messages",
            json!([{"role": "user"}]),
            "messages[0].content",
            MissingParameter,
        ),
        (
            "messages",
            json!([{"role": "user", "content": [{"type": "text"}]}]),
            "messages[0].content[0].text",
            MissingParameter,
        ),
        (
            "messages",
            json!([{"role": "user", "content": [{"type": "dance"}]}]),
            "messages[0].content[0].type",
            InvalidValue,
        ),
        ("messages", stray, "messages[0].content[1].tool_use_id", InvalidValue),
        ("temperature", json!(1.5), "temperature", InvalidValue),
        ("stop_sequences", json!(["a", ""]), "stop_sequences[1]", InvalidValue),
        ("tools", bad_tool, "tools[1].name", InvalidValue),
        (
            "tools",
            json!([{"name": "f", "input_schema": {"type": "array"}}]),
            "tools[0].input_schema.type",
            InvalidValue,
        ),
        (
            "tool_choice",
            json!({"type": "tool", "name": "f"}),
            "tool_choice.name",
            InvalidValue,
        ),
        ("tool_choice", json!({}), "tool_choice.type", MissingParameter),
        ("thinking", json!({"type": "wild"}), "thinking.type", InvalidValue),
        ("input", json!("Hi"), "input", UnknownParameter),
    ] {
        assert_eq!(refusal(read(&with(name, value))), (path.to_owned(), code), "{name}");
    }
}

#[test]
fn counting_needs_the_prompt_only() {
    let mut body = with("system", json!("Be brief."));
    let whole = refusal(messages::translate_count(body.to_string().as_bytes()));
    assert_eq!(whole, ("max_tokens".to_owned(), UnknownParameter));
    body.as_object_mut().unwrap().remove("max_tokens");
    let translated = messages::translate_count(body.to_string().as_bytes()).unwrap();
    assert_eq!(chat(&translated)["messages"][0]["content"], "Be brief.");
    assert_eq!(
        messages::count(br#"{"prompt_tokens": 12}"#).unwrap(),
        r#"{"input_tokens":12}"#
    );
}
