//! Whatever is sent, a request is understood or refused with a reason.

use openai_api::{InvalidCode, InvalidRequest};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use crate::{messages, responses};

/// Words that requests are made of, so that what is made by chance comes far.
const WORDS: [&str; 30] = [
    "type",
    "text",
    "input_text",
    "output_text",
    "message",
    "role",
    "user",
    "assistant",
    "system",
    "content",
    "name",
    "function",
    "function_call",
    "function_call_output",
    "call_id",
    "arguments",
    "output",
    "parameters",
    "tool_use",
    "tool_result",
    "tool_use_id",
    "id",
    "input",
    "input_schema",
    "object",
    "format",
    "json_schema",
    "schema",
    "auto",
    "tool",
];
const PARAMETERS: [&str; 18] = [
    "input",
    "messages",
    "system",
    "instructions",
    "tools",
    "tool_choice",
    "text",
    "reasoning",
    "include",
    "metadata",
    "thinking",
    "output_config",
    "stop_sequences",
    "stream_options",
    "max_tokens",
    "max_output_tokens",
    "truncation",
    "speed",
];

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-2_i64..20).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        prop::sample::select(&WORDS).prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 40, 5, |inner| {
        let key = prop::sample::select(&WORDS).prop_map(str::to_owned);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec((key, inner), 0..5)
                .prop_map(|fields| fields.into_iter().collect::<Map<_, _>>().into()),
        ]
    })
}

/// A refusal of a JSON object says where the mistake is.
fn check<T>(result: Result<T, InvalidRequest>) -> Result<(), TestCaseError> {
    if let Err(error) = result {
        let path = error.param.clone().unwrap_or_default();
        prop_assert!(!path.is_empty() && error.message.starts_with(&path), "{error:?}");
    }
    Ok(())
}

proptest! {
    #[test]
    fn no_value_of_a_parameter_breaks_the_reading(
        parameters in prop::collection::vec((prop::sample::select(&PARAMETERS), any_value()), 0..4),
    ) {
        for own in ["input", "messages"] {
            let mut body = json!({"model": "m"});
            for (name, value) in [("input", json!("x")), ("messages", json!([{"role": "user", "content": "x"}]))] {
                if name == own {
                    body[name] = value;
                }
            }
            for (name, value) in &parameters {
                body[*name] = value.clone();
            }
            let bytes = body.to_string();
            check(responses::translate(bytes.as_bytes()))?;
            check(messages::translate(bytes.as_bytes()))?;
            check(messages::translate_count(bytes.as_bytes()))?;
        }
    }

    #[test]
    fn no_bytes_break_the_reading(body in prop::collection::vec(any::<u8>(), 0..64)) {
        let refusals = [
            responses::translate(&body).err(), messages::translate(&body).err(), messages::translate_count(&body).err(),
        ];
        for refusal in refusals {
            prop_assert_eq!(refusal.map(|error| error.code), Some(InvalidCode::InvalidJson));
        }
    }
}
