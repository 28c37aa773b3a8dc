//! What `POST /v1/responses` asks of a chat.

use openai_api::InvalidCode::{InvalidType, InvalidValue, MissingParameter, UnknownParameter, UnsupportedParameter};
use serde_json::{Value, json};

use super::{Read, chat, refusal};
use crate::{Translated, responses};

fn read(body: &Value) -> Read {
    responses::translate(body.to_string().as_bytes())
}

fn accepted(body: &Value) -> Translated {
    read(body).unwrap_or_else(|error| panic!("{body}: {error}")).0
}

/// The smallest request with one more parameter.
fn with(name: &str, value: Value) -> Value {
    let mut body = json!({"model": "m", "input": "Hi"});
    body[name] = value;
    body
}

fn chat_with(name: &str, value: Value) -> Value {
    chat(&accepted(&with(name, value)))
}

fn messages(input: Value) -> Value {
    chat_with("input", input)["messages"].clone()
}

fn weather() -> Value {
    json!({"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": true, "description": "d"})
}

#[test]
fn a_text_is_what_the_user_says_and_instructions_come_first() {
    let body = json!({"model": "m", "input": "Hi", "instructions": "Be brief."});
    let expected = json!({"model": "m", "messages": [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"},
    ]});
    assert_eq!(chat(&accepted(&body)), expected);
}

#[test]
fn items_are_messages_with_or_without_a_type() {
    let said = messages(json!([
        {"role": "developer", "content": "a"},
        {"type": "message", "role": "user", "content": [
            {"type": "input_text", "text": "b"}, {"type": "input_text", "text": "c"},
        ]},
        {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "phase": null, "content": [
            {"type": "output_text", "text": "d", "annotations": [], "logprobs": []},
        ]},
    ]));
    let parts = json!([{"type": "text", "text": "b"}, {"type": "text", "text": "c"}]);
    let expected = json!([
        {"role": "developer", "content": "a"},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "d"},
    ]);
    assert_eq!(said, expected);
}

#[test]
fn calls_join_the_assistants_message_and_their_outputs_follow() {
    let called = |id: &str| json!({"type": "function_call", "id": "fc_1", "call_id": id, "name": "weather", "arguments": "{}", "status": "completed"});
    let said = messages(json!([
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "A moment."},
        called("1"),
        called("2"),
        {"type": "function_call_output", "call_id": "2", "output": "rain"},
        {"type": "function_call_output", "call_id": "1", "output": [{"type": "input_text", "text": "sun"}]},
        called("3"),
        {"type": "function_call_output", "call_id": "3", "output": ""},
    ]));
    let expected = json!([
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "A moment.", "tool_calls": [super::call("1", "{}"), super::call("2", "{}")]},
        {"role": "tool", "content": "rain", "tool_call_id": "2"},
        {"role": "tool", "content": "sun", "tool_call_id": "1"},
        {"role": "assistant", "content": null, "tool_calls": [super::call("3", "{}")]},
        {"role": "tool", "content": "", "tool_call_id": "3"},
    ]);
    assert_eq!(said, expected);
}

#[test]
fn limits_and_sampling_have_their_names_in_the_chat() {
    assert_eq!(chat_with("max_output_tokens", json!(16))["max_completion_tokens"], 16);
    for (name, value) in [
        ("temperature", json!(0.1)),
        ("top_p", json!(0.5)),
        ("top_k", json!(3)),
        ("seed", json!(4)),
    ] {
        assert_eq!(chat_with(name, value.clone())[name], value);
    }
}

#[test]
fn tools_are_flat_here() {
    let function = json!({"name": "weather", "description": "d", "parameters": {"type": "object"}, "strict": true});
    let tool = json!({"type": "function", "function": function});
    assert_eq!(chat_with("tools", json!([weather()]))["tools"], json!([tool]));
}

#[test]
fn a_tool_can_be_chosen_in_every_way() {
    let choose = |choice: Value| {
        let mut body = with(
            "tools",
            json!([weather(), {"type": "function", "name": "time", "parameters": null}]),
        );
        body["tool_choice"] = choice;
        body["parallel_tool_calls"] = json!(false);
        chat(&accepted(&body))
    };
    for word in ["none", "auto", "required"] {
        assert_eq!(choose(json!(word))["tool_choice"], word);
    }
    let named = json!({"type": "function", "function": {"name": "time"}});
    assert_eq!(
        choose(json!({"type": "function", "name": "time"}))["tool_choice"],
        named
    );
    let allowed =
        choose(json!({"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "time"}]}));
    assert_eq!(
        (&allowed["tool_choice"], &allowed["tools"][0]["function"]["name"]),
        (&json!("required"), &json!("time"))
    );
    assert_eq!(allowed["tools"].as_array().unwrap().len(), 1);
    assert_eq!(allowed["parallel_tool_calls"], false);
}

#[test]
fn the_form_of_the_text_is_the_chats_response_format() {
    let schema = json!({"type": "json_schema", "name": "f", "schema": {"type": "object"}, "strict": true});
    let expected =
        json!({"type": "json_schema", "json_schema": {"name": "f", "schema": {"type": "object"}, "strict": true}});
    assert_eq!(
        chat_with("text", json!({"format": schema}))["response_format"],
        expected
    );
    let object = chat_with("text", json!({"format": {"type": "json_object"}}));
    assert_eq!(object["response_format"], json!({"type": "json_object"}));
}

#[test]
fn a_stream_asks_for_the_usage_that_its_end_tells() {
    let translated = accepted(&with("stream", json!(true)));
    assert!(translated.is_stream);
    assert_eq!(chat(&translated)["stream_options"], json!({"include_usage": true}));
    assert!(!accepted(&with("stream", json!(false))).is_stream);
}

#[test]
fn logprobs_are_asked_for_in_two_ways() {
    let included = chat_with("include", json!(["message.output_text.logprobs"]));
    assert_eq!(
        (&included["logprobs"], included.get("top_logprobs")),
        (&json!(true), None)
    );
    let alternatives = chat_with("top_logprobs", json!(2));
    assert_eq!(
        (&alternatives["logprobs"], &alternatives["top_logprobs"]),
        (&json!(true), &json!(2))
    );
    assert_eq!(chat_with("top_logprobs", json!(0)).get("logprobs"), None);
}

#[test]
fn what_has_no_effect_is_named_and_what_asks_for_nothing_is_not() {
    for (name, value, ignored) in [
        ("store", json!(true), "store"),
        ("user", json!("u"), "user"),
        ("safety_identifier", json!("u"), "safety_identifier"),
        ("prompt_cache_key", json!("k"), "prompt_cache_key"),
        ("prompt_cache_retention", json!("24h"), "prompt_cache_retention"),
        ("service_tier", json!("flex"), "service_tier"),
        ("truncation", json!("auto"), "truncation"),
        ("max_tool_calls", json!(2), "max_tool_calls"),
        (
            "context_management",
            json!([{"type": "compaction"}]),
            "context_management",
        ),
        ("reasoning", json!({"effort": "low"}), "reasoning.effort"),
        ("text", json!({"verbosity": "low"}), "text.verbosity"),
        (
            "include",
            json!(["reasoning.encrypted_content"]),
            "include.reasoning.encrypted_content",
        ),
        (
            "input",
            json!([{"type": "reasoning", "id": "rs_1", "summary": []}, {"role": "user", "content": "Hi"}]),
            "input.reasoning",
        ),
        (
            "tools",
            json!([{"type": "function", "name": "f", "parameters": {}, "defer_loading": true}]),
            "tools.defer_loading",
        ),
    ] {
        assert_eq!(accepted(&with(name, value)).ignored, [ignored]);
    }
    for (name, value) in [
        ("store", json!(false)),
        ("service_tier", json!("auto")),
        ("truncation", json!("disabled")),
        ("reasoning", json!({"effort": null})),
        ("text", json!({"verbosity": "medium"})),
        ("metadata", json!({"a": "b"})),
        ("background", json!(false)),
        ("previous_response_id", Value::Null),
    ] {
        assert_eq!(accepted(&with(name, value)).ignored, [""; 0]);
    }
}

#[test]
fn what_a_stateless_server_cannot_do_is_refused_by_name() {
    for (name, value) in [
        ("previous_response_id", json!("resp_1")),
        ("conversation", json!("conv_1")),
        ("prompt", json!({"id": "p"})),
        ("background", json!(true)),
        ("moderation", json!({"model": "m"})),
    ] {
        assert_eq!(
            refusal(read(&with(name, value))),
            (name.to_owned(), UnsupportedParameter)
        );
    }
    let unsupported = |name: &str, value: Value, path: &str| {
        assert_eq!(
            refusal(read(&with(name, value))),
            (path.to_owned(), UnsupportedParameter)
        );
    };
    unsupported(
        "input",
        json!([{"type": "item_reference", "id": "msg_1"}]),
        "input[0].type",
    );
    let image = json!({"type": "input_image", "image_url": "data:"});
    unsupported(
        "input",
        json!([{"role": "user", "content": [image]}]),
        "input[0].content[0].type",
    );
    unsupported("tools", json!([{"type": "web_search"}]), "tools[0].type");
    unsupported("tool_choice", json!({"type": "web_search"}), "tool_choice.type");
}

#[test]
fn a_mistake_is_named_as_the_client_wrote_it_also_where_the_chat_finds_it() {
    let output =
        json!([{"role": "user", "content": "a"}, {"type": "function_call_output", "call_id": "9", "output": "b"}]);
    let bad_tool = json!([weather(), {"type": "function", "name": "no spaces", "parameters": {}}]);
    let bad_schema = json!([{"type": "function", "name": "f", "parameters": {"type": "array"}}]);
    for (name, value, path, code) in [
        ("model", json!(""), "model", InvalidValue),
        ("input", Value::Null, "input", MissingParameter),
        ("input", json!(1), "input", InvalidType),
        ("input", json!([]), "input", InvalidValue),
        (
            "input",
            json!([{"role": "robot", "content": "a"}]),
            "input[0].role",
            InvalidValue,
        ),
        ("input", json!([{"role": "user"}]), "input[0].content", MissingParameter),
        ("input", json!([{"type": "dance"}]), "input[0].type", InvalidValue),
        (
            "input",
            json!([{"role": "user", "content": "a", "x": 1}]),
            "input[0].x",
            UnknownParameter,
        ),
        ("input", output, "input[1].call_id", InvalidValue),
        ("max_output_tokens", json!(0), "max_output_tokens", InvalidValue),
        ("temperature", json!(3), "temperature", InvalidValue),
        ("tools", bad_tool, "tools[1].name", InvalidValue),
        ("tools", bad_schema, "tools[0].parameters.type", InvalidValue),
        (
            "tool_choice",
            json!({"type": "function", "name": "f"}),
            "tool_choice.name",
            InvalidValue,
        ),
        (
            "text",
            json!({"format": {"type": "json_schema", "name": "", "schema": {}}}),
            "text.format.name",
            InvalidValue,
        ),
        (
            "text",
            json!({"format": {"type": "xml"}}),
            "text.format.type",
            InvalidValue,
        ),
        ("include", json!(["everything"]), "include[0]", InvalidValue),
        ("metadata", json!({"a": 1}), "metadata.a", InvalidType),
        ("stream_options", json!({}), "stream_options", InvalidValue),
        ("messages", json!([]), "messages", UnknownParameter),
    ] {
        assert_eq!(refusal(read(&with(name, value))), (path.to_owned(), code), "{name}");
    }
}

#[test]
fn an_error_of_the_worker_names_the_clients_parameters() {
    let body = json!({"model": "m", "instructions": "i", "input": [{"role": "user", "content": "a"}]});
    let translated = accepted(&body);
    let error = |param: &str| {
        let message = format!("{param}: is wrong");
        let error = shared_contract::ErrorKind::InvalidRequest.object(message, Some(param));
        let error = translated.error(error);
        (error.param.unwrap(), error.message)
    };
    for (chat, own) in [
        ("messages", "input"),
        ("messages[0].content", "instructions"),
        ("messages[1].content", "input[0]"),
        ("response_format.json_schema.schema", "text.format.schema"),
        ("max_completion_tokens", "max_output_tokens"),
        ("seed", "seed"),
    ] {
        assert_eq!(error(chat), (own.to_owned(), format!("{own}: is wrong")));
    }
}
