//! Tools and the choice among them.

use serde_json::{Value, json};

use super::{accepted, invalid, missing, refusal, unknown, unsupported, with, wrong_type};
use crate::{MAX_TOOLS, MAX_TOOLS_BYTES, Tool, ToolChoice};

fn function(name: &str) -> Value {
    json!({"type": "function", "function": {"name": name}})
}

/// A chat with the tools `a` and `b`.
fn choosing(choice: Value) -> Value {
    let mut body = with("tools", json!([function("a"), function("b")]));
    body["tool_choice"] = choice;
    body
}

#[test]
fn all_of_a_tool_is_read() {
    let schema = json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]});
    let tools = json!([
        {"type": "function", "function": {
            "name": "get-weather_2", "description": "The weather.", "parameters": schema, "strict": true,
        }},
        {"type": "function", "function": {"name": "now", "description": null, "parameters": null, "strict": null}},
    ]);
    let expected = [
        Tool {
            name: "get-weather_2".to_owned(),
            description: Some("The weather.".to_owned()),
            parameters: Some(schema),
            strict: true,
        },
        Tool {
            name: "now".to_owned(),
            description: None,
            parameters: None,
            strict: false,
        },
    ];
    assert_eq!(accepted(&with("tools", tools)).tools, expected);
}

#[test]
fn a_tool_is_serialized_as_templates_take_it() {
    let schema = r#"{"type":"object","properties":{"zebra":{"type":"string"},"ant":{"type":"string"}}}"#;
    let parameters: Value = serde_json::from_str(schema).unwrap();
    let tool = json!({"type": "function", "function": {"name": "f", "description": "d", "parameters": parameters, "strict": true}});
    let request = accepted(&with("tools", json!([tool, function("g")])));
    let written: Vec<String> = request
        .tools
        .iter()
        .map(|tool| serde_json::to_string(tool).unwrap())
        .collect();
    assert_eq!(
        written,
        [
            format!(r#"{{"type":"function","function":{{"name":"f","description":"d","parameters":{schema}}}}}"#),
            r#"{"type":"function","function":{"name":"g","parameters":{"type":"object","properties":{},"additionalProperties":false}}}"#.to_owned(),
        ],
        "properties keep their order"
    );
}

#[test]
fn what_is_no_tool_is_refused_by_path() {
    for (tool, expected) in [
        (json!("f"), wrong_type("tools[1]")),
        (json!({"function": {"name": "f"}}), missing("tools[1].type")),
        (
            json!({"type": "custom", "custom": {"name": "f"}}),
            unsupported("tools[1].type"),
        ),
        (json!({"type": "function"}), missing("tools[1].function")),
        (
            json!({"type": "function", "function": {}}),
            missing("tools[1].function.name"),
        ),
        (
            json!({"type": "function", "function": {"name": 1}}),
            wrong_type("tools[1].function.name"),
        ),
        (
            json!({"type": "function", "function": {"name": "f", "code": 1}}),
            unknown("tools[1].function.code"),
        ),
        (
            json!({"type": "function", "function": {"name": "f"}, "id": 1}),
            unknown("tools[1].id"),
        ),
        (
            json!({"type": "function", "function": {"name": "f", "strict": 1}}),
            wrong_type("tools[1].function.strict"),
        ),
        (
            json!({"type": "function", "function": {"name": "f", "parameters": []}}),
            wrong_type("tools[1].function.parameters"),
        ),
        (
            json!({"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}),
            invalid("tools[1].function.parameters.type"),
        ),
        (function("a"), invalid("tools[1].function.name")),
    ] {
        assert_eq!(refusal(&with("tools", json!([function("a"), tool]))), expected);
    }
}

#[test]
fn a_name_has_up_to_64_plain_characters() {
    for name in ["f", "get_weather-2", &"x".repeat(64)] {
        accepted(&with("tools", json!([function(name)])));
    }
    for name in ["", "get weather", "a.b", "é", &"x".repeat(65)] {
        assert_eq!(
            refusal(&with("tools", json!([function(name)]))),
            invalid("tools[0].function.name")
        );
    }
}

#[test]
fn the_number_and_the_size_of_tools_are_bounded() {
    let tools = |count: usize| -> Value { (0..count).map(|index| function(&format!("f{index}"))).collect() };
    assert_eq!(accepted(&with("tools", tools(MAX_TOOLS))).tools.len(), MAX_TOOLS);
    assert_eq!(refusal(&with("tools", tools(MAX_TOOLS + 1))), invalid("tools"));
    let described =
        |bytes: usize| json!([{"type": "function", "function": {"name": "f", "description": "x".repeat(bytes)}}]);
    accepted(&with("tools", described(MAX_TOOLS_BYTES - 1)));
    assert_eq!(refusal(&with("tools", described(MAX_TOOLS_BYTES))), invalid("tools"));
    let schema = json!({"enum": ["x".repeat(MAX_TOOLS_BYTES)]});
    let large = json!([{"type": "function", "function": {"name": "f", "parameters": schema}}]);
    assert_eq!(refusal(&with("tools", large)), invalid("tools"));
}

#[test]
fn the_model_chooses_unless_the_request_does() {
    assert_eq!(accepted(&choosing(Value::Null)).tool_choice, ToolChoice::Auto);
    for (choice, expected) in [
        (json!("none"), ToolChoice::None),
        (json!("auto"), ToolChoice::Auto),
        (json!("required"), ToolChoice::Required),
        (function("b"), ToolChoice::Named("b".to_owned())),
    ] {
        assert_eq!(accepted(&choosing(choice)).tool_choice, expected);
    }
}

#[test]
fn a_choice_that_cannot_be_made_is_refused() {
    for (choice, expected) in [
        (json!("any"), invalid("tool_choice")),
        (json!(1), wrong_type("tool_choice")),
        (function("c"), invalid("tool_choice.function.name")),
        (json!({"type": "function"}), missing("tool_choice.function")),
        (
            json!({"type": "function", "name": "a"}),
            missing("tool_choice.function"),
        ),
        (
            json!({"type": "allowed_tools", "allowed_tools": {}}),
            unsupported("tool_choice.type"),
        ),
    ] {
        assert_eq!(refusal(&choosing(choice)), expected);
    }
    assert_eq!(refusal(&with("tool_choice", json!("required"))), invalid("tool_choice"));
    assert_eq!(
        refusal(&with("tool_choice", function("a"))),
        invalid("tool_choice.function.name")
    );
}

#[test]
fn calls_side_by_side_may_be_forbidden() {
    assert!(accepted(&choosing(json!("auto"))).parallel_tool_calls);
    let mut body = choosing(json!("auto"));
    body["parallel_tool_calls"] = json!(false);
    assert!(!accepted(&body).parallel_tool_calls);
}
