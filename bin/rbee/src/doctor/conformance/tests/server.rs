//! A server that does all that the checklist asks, unless it is told to do one thing wrong.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Method, Response, Uri};
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};

use crate::cli::BaseUrl;

/// The key that it wants.
pub(super) const KEY: &str = "correct-horse";
/// The model that it serves; a second one has a slash in its id.
pub(super) const MODEL: &str = "stub";
const OTHER: &str = "org/other";
/// What it says: one word a token.
const SPEECH: &str = "Once there lived a patient llama who carried honey over seven mountains while every \
                      curious bee followed her singing loudly about clover";

/// A request, as a fault may look at it.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) body: Value,
}

impl Asked {
    /// Whether it is a chat of which nothing is wrong.
    pub(super) fn is_chat(&self) -> bool {
        self.path == "/v1/chat/completions" && self.body["messages"].is_array()
    }
}

/// An answer, which a fault may change.
#[derive(Debug, Clone)]
pub(super) struct Said {
    pub(super) status: u16,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Content,
}

/// Its body.
#[derive(Debug, Clone)]
pub(super) enum Content {
    Json(Value),
    Text(String),
    /// A stream's chunks, and what comes behind them.
    Chunks(Vec<Value>, String),
    /// A stream without an end; whether it runs on when its client leaves.
    Endless(bool),
}

impl Said {
    fn json(status: u16, body: Value) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: Content::Json(body),
        }
    }

    fn error(status: u16, param: Option<&str>, code: Option<&str>) -> Self {
        let error = json!({"message": "wrong", "type": "invalid_request_error", "param": param, "code": code});
        Self::json(status, json!({"error": error}))
    }

    /// The JSON body, where it has one.
    pub(super) fn value(&mut self) -> Option<&mut Value> {
        match &mut self.body {
            Content::Json(body) => Some(body),
            _ => None,
        }
    }

    /// The chunks of a stream.
    pub(super) fn chunks(&mut self) -> Option<&mut Vec<Value>> {
        match &mut self.body {
            Content::Chunks(chunks, _) => Some(chunks),
            _ => None,
        }
    }
}

/// What one server does wrong.
pub(super) type Fault = fn(&Asked, &mut Said);

struct Stub {
    fault: Fault,
    running: AtomicUsize,
    replies: AtomicUsize,
}

/// A request that is under way until it is dropped.
struct Running(Arc<Stub>);

impl Running {
    fn new(stub: &Arc<Stub>) -> Self {
        stub.running.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(stub))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Starts one.
pub(super) async fn start(fault: Fault) -> BaseUrl {
    let stub = Arc::new(Stub {
        fault,
        running: AtomicUsize::new(0),
        replies: AtomicUsize::new(0),
    });
    crate::api::tests::serve(Router::new().fallback(handle).with_state(stub)).await
}

async fn handle(
    State(stub): State<Arc<Stub>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    bytes: Bytes,
) -> Response<Body> {
    let asked = Asked {
        method: method.to_string(),
        path: uri.path().to_owned(),
        body: serde_json::from_slice(&bytes).unwrap_or_default(),
    };
    let key = headers.get("authorization").and_then(|value| value.to_str().ok());
    let mut said = match asked.path.as_str() {
        "/metrics" => Said {
            status: 200,
            headers: Vec::new(),
            body: Content::Text(format!(
                "rbee_requests_in_flight {}\n",
                stub.running.load(Ordering::SeqCst)
            )),
        },
        _ if key != Some(&format!("Bearer {KEY}")) => Said::error(401, None, Some("invalid_api_key")),
        _ => answer(&asked),
    };
    let id = stub.replies.fetch_add(1, Ordering::SeqCst);
    said.headers.push(("x-request-id", format!("req-{id}")));
    (stub.fault)(&asked, &mut said);
    reply(&stub, said)
}

fn reply(stub: &Arc<Stub>, said: Said) -> Response<Body> {
    let mut response = Response::builder().status(said.status);
    let has_type = said.headers.iter().any(|(name, _)| *name == "content-type");
    for (name, value) in said.headers {
        response = response.header(name, value);
    }
    let (kind, body) = match said.body {
        Content::Json(body) => ("application/json", Body::from(body.to_string())),
        Content::Text(text) => ("text/plain", Body::from(text)),
        Content::Chunks(chunks, tail) => {
            let events: String = chunks.iter().map(|chunk| format!("data: {chunk}\n\n")).collect();
            ("text/event-stream", Body::from(format!(": hello\n\n{events}{tail}")))
        }
        Content::Endless(runs_on) => ("text/event-stream", endless(stub, runs_on)),
    };
    if !has_type {
        response = response.header("content-type", kind);
    }
    response.body(body).unwrap()
}

fn endless(stub: &Arc<Stub>, runs_on: bool) -> Body {
    let running = Running::new(stub);
    if runs_on {
        std::mem::forget(Running::new(stub));
    }
    let first = stream::iter([Ok::<_, Infallible>("data: {}\n\n")]);
    Body::from_stream(first.chain(stream::pending().map(move |item| {
        let _under_way = &running;
        item
    })))
}

fn answer(asked: &Asked) -> Said {
    let models = ["stub", OTHER].map(|id| json!({"id": id, "object": "model", "created": 1, "owned_by": "rbee"}));
    let body = &asked.body;
    match (asked.method.as_str(), asked.path.as_str()) {
        ("GET", "/v1/models") => Said::json(200, json!({"object": "list", "data": models})),
        ("GET", "/v1/models/stub") => Said::json(200, models[0].clone()),
        ("GET", "/v1/models/org/other" | "/v1/models/org%2Fother") => Said::json(200, models[1].clone()),
        ("POST", "/v1/chat/completions" | "/v1/completions" | "/v1/embeddings") if !body.is_object() => {
            Said::error(400, None, None)
        }
        ("POST", "/v1/chat/completions") => chat(body),
        ("POST", "/v1/completions") => completion(body),
        ("POST", "/v1/embeddings") => embeddings(body),
        (_, "/v1/chat/completions") => {
            let mut said = Said::error(405, None, None);
            said.headers.push(("allow", "POST".to_owned()));
            said
        }
        _ => Said::error(404, None, None),
    }
}

/// The field that is wrong.
fn mistake(body: &Value) -> Option<&'static str> {
    let number = |name: &str| body[name].as_f64();
    let too_many = body["stop"].as_array().is_some_and(|list| list.len() > 4);
    let is_wrong = [
        ("messages", !body["messages"].is_array()),
        ("max_tokens", body["max_tokens"].is_string()),
        ("temperature", number("temperature") > Some(2.0)),
        ("n", number("n") == Some(0.0)),
        ("top_logprobs", number("top_logprobs") > Some(20.0)),
        ("stop", too_many),
        (
            "response_format",
            body["response_format"]["json_schema"]["schema"]["type"] == "no-such-type",
        ),
    ];
    is_wrong.iter().find(|(_, is_wrong)| *is_wrong).map(|(name, _)| *name)
}

/// Tokens of one choice, and why they ended.
fn generate(body: &Value, index: u64) -> (Vec<String>, &'static str) {
    let mut words: Vec<String> = SPEECH.split_whitespace().map(|word| format!(" {word}")).collect();
    let is_sampled = body["temperature"].as_f64() > Some(0.0) && body["top_p"].as_f64() != Some(0.0);
    let turn = if is_sampled {
        body["seed"].as_u64().unwrap_or(0) + index
    } else {
        0
    };
    let turn = turn + if body["logit_bias"].is_object() { 5 } else { 0 };
    let length = words.len();
    words.rotate_left(turn as usize % length);
    let limit = body["max_completion_tokens"].as_u64().or(body["max_tokens"].as_u64());
    words.truncate(limit.unwrap_or(16) as usize);
    let stops: Vec<&str> = match &body["stop"] {
        Value::String(stop) => vec![stop],
        Value::Array(stops) => stops.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    let text = words.concat();
    match stops.iter().filter_map(|stop| text.find(stop)).min() {
        Some(end) => (vec![text[..end].to_owned()], "stop"),
        None => (words, "length"),
    }
}

/// What the one shape that is asked for makes the model say.
fn shaped(body: &Value) -> Option<String> {
    let schema = &body["response_format"]["json_schema"]["schema"]["properties"];
    match body["response_format"]["type"].as_str()? {
        "json_schema" if schema["text"].is_object() => Some(json!({"text": schema["text"]["const"]}).to_string()),
        "json_schema" => Some(json!({"city": "Oslo", "sunny": true}).to_string()),
        _ => Some(json!({"city": "Oslo"}).to_string()),
    }
}

fn logprobs(words: &[String]) -> Value {
    let one = |word: &str| json!({"token": word, "logprob": -0.5, "bytes": word.as_bytes()});
    let entries = words.iter().map(|word| {
        let mut entry = one(word);
        entry["top_logprobs"] = json!([one(word), one("x")]);
        entry
    });
    json!({"content": entries.collect::<Vec<_>>()})
}

fn usage(prompt: u64, completion: u64) -> Value {
    json!({"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion})
}

fn chat(body: &Value) -> Said {
    if let Some(param) = mistake(body) {
        return Said::error(400, Some(param), None);
    }
    if body["model"] != MODEL {
        return Said::error(404, Some("model"), Some("model_not_found"));
    }
    if body["max_tokens"].as_u64() > Some(1_000) {
        return Said {
            status: 200,
            headers: Vec::new(),
            body: Content::Endless(false),
        };
    }
    let prompt = 10 * body["messages"].as_array().map_or(0, Vec::len) as u64;
    let must_call = body["tool_choice"].is_object() || body["tool_choice"] == "required";
    let mut choices = Vec::new();
    let mut completion = 0;
    for index in 0..body["n"].as_u64().unwrap_or(1) {
        let (words, reason) = generate(body, index);
        let words = shaped(body).map_or(words, |text| vec![text]);
        completion += words.len() as u64;
        let mut choice = json!({
            "index": index, "message": {"role": "assistant", "content": words.concat()}, "finish_reason": reason,
        });
        if body["logprobs"] == true {
            choice["logprobs"] = logprobs(&words);
        }
        if must_call {
            let function = json!({"name": "weather", "arguments": "{\"city\":\"Rome\"}"});
            let call = json!({"id": "call_1", "type": "function", "function": function});
            choice["message"] = json!({"role": "assistant", "content": null, "tool_calls": [call]});
            choice["finish_reason"] = "tool_calls".into();
        }
        choices.push((choice, words));
    }
    let head = json!({"id": "chatcmpl-1", "created": 1, "model": MODEL});
    if body["stream"] == true {
        return streamed(body, &head, choices, usage(prompt, completion));
    }
    let mut answer = head;
    answer["object"] = "chat.completion".into();
    answer["choices"] = choices.into_iter().map(|(choice, _)| choice).collect();
    answer["usage"] = usage(prompt, completion);
    Said::json(200, answer)
}

fn streamed(body: &Value, head: &Value, choices: Vec<(Value, Vec<String>)>, usage: Value) -> Said {
    let mut chunks = Vec::new();
    let mut push = |choices: Value| {
        let mut chunk = head.clone();
        chunk["object"] = "chat.completion.chunk".into();
        chunk["choices"] = choices;
        chunks.push(chunk);
    };
    for (choice, words) in choices {
        let index = &choice["index"];
        let part = |delta: Value, reason: Value| json!([{"index": index, "delta": delta, "finish_reason": reason}]);
        push(part(json!({"role": "assistant", "content": ""}), Value::Null));
        match choice["message"]["tool_calls"].get(0) {
            Some(call) => {
                let mut begin = call.clone();
                begin["index"] = 0.into();
                begin["function"]["arguments"] = "".into();
                push(part(json!({"tool_calls": [begin]}), Value::Null));
                for text in ["{\"city\":", "\"Rome\"}"] {
                    let more = json!({"index": 0, "function": {"arguments": text}});
                    push(part(json!({"tool_calls": [more]}), Value::Null));
                }
            }
            None => words
                .iter()
                .for_each(|word| push(part(json!({"content": word}), Value::Null))),
        }
        push(part(json!({}), choice["finish_reason"].clone()));
    }
    if body["stream_options"]["include_usage"] == true {
        push(json!([]));
        if let Some(last) = chunks.last_mut() {
            last["usage"] = usage;
        }
    }
    Said {
        status: 200,
        headers: Vec::new(),
        body: Content::Chunks(chunks, "data: [DONE]\n\n".to_owned()),
    }
}

fn completion(body: &Value) -> Said {
    let prompts = match &body["prompt"] {
        Value::Array(list) if list.iter().all(Value::is_string) => list.clone(),
        one => vec![one.clone()],
    };
    let head = json!({"id": "cmpl-1", "object": "text_completion", "created": 1, "model": MODEL});
    let choice = |(index, prompt): (usize, &Value)| {
        let (words, reason) = generate(body, 0);
        let echo = if body["echo"] == true {
            prompt.as_str().unwrap_or("")
        } else {
            ""
        };
        let logprobs = body["logprobs"].is_number().then(|| {
            let none = vec![Value::Null; words.len()];
            json!({"tokens": words, "token_logprobs": none, "top_logprobs": none, "text_offset": none})
        });
        let text = format!("{echo}{}", words.concat());
        (
            json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}),
            words.len() as u64,
        )
    };
    let choices: Vec<(Value, u64)> = prompts.iter().enumerate().map(choice).collect();
    let completion = choices.iter().map(|(_, count)| count).sum();
    let choices: Value = choices.into_iter().map(|(choice, _)| choice).collect();
    let mut answer = head;
    answer["choices"] = choices;
    if body["stream"] == true {
        return Said {
            status: 200,
            headers: Vec::new(),
            body: Content::Chunks(vec![answer], "data: [DONE]\n\n".to_owned()),
        };
    }
    let prompt = prompts
        .iter()
        .map(|prompt| prompt.as_array().map_or(4, Vec::len) as u64)
        .sum();
    answer["usage"] = usage(prompt, completion);
    Said::json(200, answer)
}

fn embeddings(body: &Value) -> Said {
    use base64::Engine;
    let texts = body["input"].as_array().map_or(0, Vec::len);
    let data = (0..texts).map(|index| {
        let numbers = [0.25_f32 + index as f32, -1.5];
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        let vector = match body["encoding_format"].as_str() {
            Some("base64") => base64::engine::general_purpose::STANDARD.encode(bytes).into(),
            _ => json!(numbers),
        };
        json!({"object": "embedding", "index": index, "embedding": vector})
    });
    let data: Vec<Value> = data.collect();
    Said::json(
        200,
        json!({"object": "list", "data": data, "model": MODEL, "usage": usage(3, 0)}),
    )
}
