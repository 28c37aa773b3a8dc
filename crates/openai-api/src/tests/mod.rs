//! The rules of requests.

mod chat;
mod generation;
mod hostile;
mod messages;
mod response_format;
mod tools;

use serde_json::{Value, json};

use crate::{ChatRequest, InvalidCode, InvalidRequest};

fn parse(body: &Value) -> Result<ChatRequest, InvalidRequest> {
    ChatRequest::parse(body.to_string().as_bytes())
}

/// The smallest chat with one more parameter.
fn with(name: &str, value: Value) -> Value {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "Hi"}]});
    body[name] = value;
    body
}

fn accepted(body: &Value) -> ChatRequest {
    parse(body).unwrap_or_else(|error| panic!("{body}: {error}"))
}

fn refusal(body: &Value) -> (String, InvalidCode) {
    let error = parse(body).expect_err(&body.to_string());
    let path = error.param.clone().expect("names the parameter");
    assert!(error.message.starts_with(&path), "{error}");
    (path, error.code)
}

fn invalid(path: &str) -> (String, InvalidCode) {
    (path.to_owned(), InvalidCode::InvalidValue)
}

fn wrong_type(path: &str) -> (String, InvalidCode) {
    (path.to_owned(), InvalidCode::InvalidType)
}

fn missing(path: &str) -> (String, InvalidCode) {
    (path.to_owned(), InvalidCode::MissingParameter)
}

fn unsupported(path: &str) -> (String, InvalidCode) {
    (path.to_owned(), InvalidCode::UnsupportedParameter)
}

fn unknown(path: &str) -> (String, InvalidCode) {
    (path.to_owned(), InvalidCode::UnknownParameter)
}
