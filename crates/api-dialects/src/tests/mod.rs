//! What the dialects promise.

mod hostile;
mod messages_answers;
mod messages_requests;
mod responses_answers;
mod responses_requests;
mod streams;

use openai_api::{InvalidCode, InvalidRequest};
use serde_json::{Value, json};

use crate::{Identity, Reply, Translated};

type Read = Result<(Translated, Box<dyn Reply>), InvalidRequest>;

fn identity() -> Identity {
    Identity {
        id: "1".to_owned(),
        created: 7,
    }
}

/// The chat's body.
fn chat(translated: &Translated) -> Value {
    serde_json::from_slice(&translated.body).unwrap()
}

/// Where a refusal says that the mistake is, and of which kind it is.
fn refusal<T>(read: Result<T, InvalidRequest>) -> (String, InvalidCode) {
    let error = read.map(drop).expect_err("is refused");
    let path = error.param.clone().expect("names the parameter");
    assert!(error.message.starts_with(&path), "{error}");
    (path, error.code)
}

/// A chat completion with one choice.
fn completion(message: &Value, finish_reason: &str) -> Vec<u8> {
    let body = json!({
        "id": "chatcmpl-1", "object": "chat.completion", "created": 3, "model": "real",
        "choices": [{"index": 0, "message": message, "logprobs": null, "finish_reason": finish_reason}],
        "usage": {
            "prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14,
            "prompt_tokens_details": {"cached_tokens": 8},
        },
    });
    body.to_string().into_bytes()
}

fn call(id: &str, arguments: &str) -> Value {
    json!({"id": id, "type": "function", "function": {"name": "weather", "arguments": arguments}})
}
