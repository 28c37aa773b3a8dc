//! Whatever is sent, a request is understood or refused with a reason.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use crate::{ChatRequest, CompletionRequest, EmbeddingRequest, InvalidCode, InvalidRequest};

/// Words that requests are made of, so that what is made by chance comes far.
const WORDS: [&str; 24] = [
    "model",
    "messages",
    "role",
    "content",
    "type",
    "text",
    "function",
    "name",
    "arguments",
    "id",
    "tools",
    "tool_calls",
    "tool_choice",
    "parameters",
    "json_schema",
    "schema",
    "object",
    "assistant",
    "tool",
    "user",
    "prompt",
    "input",
    "auto",
    "required",
];
const PARAMETERS: [&str; 16] = [
    "messages",
    "prompt",
    "input",
    "tools",
    "tool_choice",
    "response_format",
    "logit_bias",
    "logprobs",
    "top_logprobs",
    "n",
    "best_of",
    "stop",
    "stream_options",
    "top_k",
    "dimensions",
    "echo",
];

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
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
        let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "x"}], "prompt": "x", "input": "x"});
        for (name, value) in parameters {
            body[name] = value;
        }
        let only = |names: &[&str]| {
            let mut body = body.clone();
            for name in ["messages", "prompt", "input"].iter().filter(|name| !names.contains(name)) {
                body.as_object_mut().unwrap().remove(*name);
            }
            body.to_string()
        };
        check(ChatRequest::parse(only(&["messages"]).as_bytes()))?;
        check(CompletionRequest::parse(only(&["prompt"]).as_bytes()))?;
        check(EmbeddingRequest::parse(only(&["input"]).as_bytes()))?;
    }

    #[test]
    fn no_bytes_break_the_reading(body in prop::collection::vec(any::<u8>(), 0..64)) {
        let refusals = [
            ChatRequest::parse(&body).err(),
            CompletionRequest::parse(&body).err(),
            EmbeddingRequest::parse(&body).err(),
            crate::routing(&body).err(),
        ];
        for refusal in refusals {
            prop_assert_eq!(refusal.map(|error| error.code), Some(InvalidCode::InvalidJson));
        }
    }
}
