//! Bodies of requests, and what to look for in answers.

use serde_json::{Value, json};

pub(super) const CHAT: &str = "/v1/chat/completions";
pub(super) const COMPLETIONS: &str = "/v1/completions";
pub(super) const EMBEDDINGS: &str = "/v1/embeddings";
pub(super) const INFER: &str = "/v1/infer";

/// A chat with these fields more.
pub(super) fn chat(more: Value) -> Value {
    merged(
        json!({"model": "org/tiny", "messages": [{"role": "user", "content": "Hi"}]}),
        more,
    )
}

/// A completion with these fields more, or others.
pub(super) fn completion(more: Value) -> Value {
    merged(json!({"model": "org/tiny", "prompt": "Once"}), more)
}

fn merged(mut body: Value, more: Value) -> Value {
    let Value::Object(more) = more else { panic!("an object") };
    body.as_object_mut().unwrap().extend(more);
    body
}

/// The chunks of a stream; the last event must be the `[DONE]` behind them.
pub(super) fn chunks(events: &[String]) -> Vec<Value> {
    let (done, events) = events.split_last().unwrap();
    assert_eq!(done, "[DONE]");
    parsed(events)
}

/// Events that are all JSON.
pub(super) fn parsed(events: &[String]) -> Vec<Value> {
    events
        .iter()
        .map(|event| serde_json::from_str(event).unwrap())
        .collect()
}

/// All that one choice's chunks have at this place, in order.
pub(super) fn of_choice<'a>(chunks: &'a [Value], index: u32, pointer: &str) -> Vec<&'a Value> {
    let choices = chunks.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap());
    choices
        .filter(|choice| choice["index"] == index)
        .filter_map(|choice| choice.pointer(pointer))
        .filter(|value| !value.is_null())
        .collect()
}

/// The strings that one choice's chunks have at this place, put together.
pub(super) fn text_of(chunks: &[Value], index: u32, pointer: &str) -> String {
    let texts = of_choice(chunks, index, pointer);
    texts.into_iter().map(|text| text.as_str().unwrap()).collect()
}
