//! Tools, and answers of a shape that the client states.

use serde_json::{Value, json};

use super::subject::Subject;
use super::wire::{Stream, content, saw};
use super::{Check, Verdict, Wrong, check, ensure, shown};

pub(super) const CHECKS: &[Check] = &[
    check!("tool_choice calls the tool", forced),
    check!("tool_choice required calls one", required),
    check!("tool_choice none calls none", none),
    check!("a tool call in a stream", streamed),
    check!("json_schema is obeyed", schema),
    check!("json_object is JSON", object),
    check!("a schema that is none is 400", bad_schema),
];

const CITIES: [&str; 2] = ["Oslo", "Rome"];

fn tools() -> Value {
    let parameters = json!({
        "type": "object", "properties": {"city": {"type": "string", "enum": CITIES}}, "required": ["city"],
        "additionalProperties": false,
    });
    json!([{"type": "function", "function": {
        "name": "weather", "description": "The weather of a city.", "parameters": parameters, "strict": true,
    }}])
}

/// A chat whose answer must call the one tool.
pub(super) fn forced_call() -> Value {
    json!({
        "tools": tools(), "tool_choice": {"type": "function", "function": {"name": "weather"}}, "max_tokens": 80,
    })
}

/// Checks the name and arguments of a call.
fn is_right(call: &Value) -> Verdict {
    let function = &call["function"];
    ensure(function["name"] == "weather", || {
        format!("the name is {}", shown(&function["name"]))
    })?;
    let arguments = function["arguments"].as_str();
    let arguments = arguments.ok_or_else(|| Wrong::Fail("the arguments are no string".to_owned()))?;
    let parsed: Value = serde_json::from_str(arguments)
        .map_err(|_| Wrong::Fail(format!("the arguments are no JSON: {}", shown(&arguments.into()))))?;
    let city = &parsed["city"];
    ensure(CITIES.iter().any(|known| city == known), || {
        format!("the arguments are not as the schema wants: {}", shown(&parsed))
    })?;
    saw(format!("weather({arguments})"))
}

fn called(answer: &Value) -> Verdict {
    let choice = &answer["choices"][0];
    let calls = &choice["message"]["tool_calls"];
    let [call] = calls.as_array().map(Vec::as_slice).unwrap_or_default() else {
        return Err(Wrong::Fail(format!("tool_calls is {}", shown(calls))));
    };
    let is_whole = call["type"] == "function" && call["id"].as_str().is_some_and(|id| !id.is_empty());
    ensure(is_whole, || format!("a call lacks id or type: {}", shown(call)))?;
    is_right(call)
}

async fn forced(subject: &Subject) -> Verdict {
    called(subject.tool_call().await?)
}

async fn required(subject: &Subject) -> Verdict {
    let mut fields = forced_call();
    fields["tool_choice"] = "required".into();
    // Else a model may go on with further calls until it is cut off.
    fields["parallel_tool_calls"] = false.into();
    let answer = subject.chat(fields).await?.offered()?;
    let reason = &answer["choices"][0]["finish_reason"];
    ensure(reason == "tool_calls", || format!("finish_reason is {}", shown(reason)))?;
    called(&answer)
}

async fn none(subject: &Subject) -> Verdict {
    let fields = json!({"tools": tools(), "tool_choice": "none"});
    let answer = subject.chat(fields).await?.offered()?;
    let calls = &answer["choices"][0]["message"]["tool_calls"];
    let is_empty = calls.is_null() || *calls == json!([]);
    ensure(is_empty, || format!("tool_calls is {}", shown(calls)))?;
    content(&answer)?;
    saw("text instead")
}

async fn streamed(subject: &Subject) -> Verdict {
    let mut fields = forced_call();
    fields["stream"] = true.into();
    let reply = subject.chat(fields).await?;
    if reply.status != 200 {
        reply.offered()?;
    }
    let stream = Stream::of(reply)?;
    let parts: Vec<&Value> = stream
        .choices(0)
        .filter_map(|choice| choice["delta"]["tool_calls"].as_array())
        .flatten()
        .collect();
    ensure(parts.iter().all(|part| part["index"] == 0), || {
        "a part has no index 0".to_owned()
    })?;
    let ids = parts.iter().filter(|part| part["id"].is_string()).count();
    let names: Vec<&str> = parts
        .iter()
        .filter_map(|part| part["function"]["name"].as_str())
        .collect();
    ensure(ids == 1 && names.len() == 1, || {
        format!("the id came {ids} times, the name {} times", names.len())
    })?;
    let arguments = parts.iter().filter_map(|part| part["function"]["arguments"].as_str());
    let call = json!({"function": {"name": names[0], "arguments": arguments.collect::<String>()}});
    is_right(&call)
}

fn format_of(schema: &Value) -> Value {
    let format = json!({"name": "city", "strict": true, "schema": schema});
    json!({"response_format": {"type": "json_schema", "json_schema": format}, "max_tokens": 80})
}

async fn schema(subject: &Subject) -> Verdict {
    let schema = json!({
        "type": "object", "properties": {"city": {"type": "string", "enum": CITIES}, "sunny": {"type": "boolean"}},
        "required": ["city", "sunny"], "additionalProperties": false,
    });
    let answer = subject.chat(format_of(&schema)).await?.offered()?;
    let text = content(&answer)?;
    let parsed: Value = serde_json::from_str(text)
        .map_err(|_| Wrong::Fail(format!("the content is no JSON: {}", shown(&text.into()))))?;
    let is_obeyed = CITIES.iter().any(|city| parsed["city"] == *city)
        && parsed["sunny"].is_boolean()
        && parsed.as_object().is_some_and(|object| object.len() == 2);
    ensure(is_obeyed, || format!("not as the schema wants: {}", shown(&parsed)))?;
    saw(text)
}

async fn object(subject: &Subject) -> Verdict {
    let messages = json!([{"role": "user", "content": "Name a city as a small JSON object."}]);
    let fields = json!({"messages": messages, "response_format": {"type": "json_object"}, "max_tokens": 120});
    let answer = subject.chat(fields).await?.offered()?;
    let text = content(&answer)?;
    match serde_json::from_str::<Value>(text) {
        Ok(Value::Object(_)) => saw("an object"),
        _ if answer["choices"][0]["finish_reason"] == "length" && text.trim_start().starts_with('{') => Err(
            Wrong::Skip("an object that was not finished within 120 tokens".to_owned()),
        ),
        _ => Err(Wrong::Fail(format!("the content is {}", shown(&text.into())))),
    }
}

async fn bad_schema(subject: &Subject) -> Verdict {
    subject.tool_call().await?;
    subject
        .chat(format_of(&json!({"type": "no-such-type"})))
        .await?
        .refused(400)?;
    saw("400")
}
