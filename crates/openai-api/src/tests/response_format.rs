//! The form that an answer is to have.

use serde_json::{Value, json};

use super::{accepted, invalid, missing, refusal, unknown, with, wrong_type};
use crate::{MAX_SCHEMA_BYTES, ResponseFormat};

fn of_schema(fields: &Value) -> Value {
    with("response_format", json!({"type": "json_schema", "json_schema": fields}))
}

#[test]
fn an_answer_may_be_any_text_any_object_or_what_a_schema_says() {
    for (format, expected) in [
        (json!({"type": "text"}), ResponseFormat::Text),
        (json!({"type": "json_object"}), ResponseFormat::JsonObject),
    ] {
        assert_eq!(accepted(&with("response_format", format)).response_format, expected);
    }
    let schema = json!({"type": "array", "items": {"type": "integer"}});
    let body = of_schema(&json!({"name": "list", "description": "Numbers.", "schema": schema, "strict": true}));
    let expected = ResponseFormat::JsonSchema {
        name: "list".to_owned(),
        description: Some("Numbers.".to_owned()),
        schema,
        strict: true,
    };
    assert_eq!(accepted(&body).response_format, expected);
    let expected = ResponseFormat::JsonSchema {
        name: "any".to_owned(),
        description: None,
        schema: json!({}),
        strict: false,
    };
    let smallest = of_schema(&json!({"name": "any", "schema": {}}));
    assert_eq!(accepted(&smallest).response_format, expected);
}

#[test]
fn a_schema_keeps_the_order_of_its_properties() {
    let schema = r#"{"type":"object","properties":{"reasoning":{"type":"string"},"answer":{"type":"string"}}}"#;
    let body = of_schema(&json!({"name": "x", "schema": serde_json::from_str::<Value>(schema).unwrap()}));
    let ResponseFormat::JsonSchema { schema: read, .. } = accepted(&body).response_format else {
        panic!("not a schema")
    };
    assert_eq!(read.to_string(), schema);
}

#[test]
fn what_is_no_format_is_refused_by_path() {
    for (format, expected) in [
        (json!({}), missing("response_format.type")),
        (json!({"type": "xml"}), invalid("response_format.type")),
        (json!({"type": "text", "schema": {}}), unknown("response_format.schema")),
        (json!({"type": "json_schema"}), missing("response_format.json_schema")),
        (
            json!({"type": "json_schema", "json_schema": "x"}),
            wrong_type("response_format.json_schema"),
        ),
    ] {
        assert_eq!(refusal(&with("response_format", format)), expected);
    }
    for (fields, expected) in [
        (json!({"schema": {}}), missing("response_format.json_schema.name")),
        (
            json!({"name": "a b", "schema": {}}),
            invalid("response_format.json_schema.name"),
        ),
        (json!({"name": "x"}), missing("response_format.json_schema.schema")),
        (
            json!({"name": "x", "schema": true}),
            wrong_type("response_format.json_schema.schema"),
        ),
        (
            json!({"name": "x", "schema": {}, "strict": "yes"}),
            wrong_type("response_format.json_schema.strict"),
        ),
        (
            json!({"name": "x", "schema": {}, "title": "y"}),
            unknown("response_format.json_schema.title"),
        ),
    ] {
        assert_eq!(refusal(&of_schema(&fields)), expected);
    }
}

#[test]
fn the_size_of_a_schema_is_bounded() {
    let around = json!({"const": ""}).to_string().len();
    let schema = |bytes: usize| json!({"name": "x", "schema": {"const": "x".repeat(bytes - around)}});
    accepted(&of_schema(&schema(MAX_SCHEMA_BYTES)));
    let large = of_schema(&schema(MAX_SCHEMA_BYTES + 1));
    assert_eq!(refusal(&large), invalid("response_format.json_schema.schema"));
}
