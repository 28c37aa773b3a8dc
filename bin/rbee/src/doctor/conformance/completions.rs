//! Texts that are continued, without a chat.

use serde_json::{Value, json};

use super::subject::Subject;
use super::wire::{Stream, field, saw, tokens};
use super::{Check, Verdict, Wrong, check, ensure, shown};

const PATH: &str = "/v1/completions";
const PROMPT: &str = "Once upon a time";

pub(super) const CHECKS: &[Check] = &[
    check!("at most 16 tokens by default", default_limit),
    check!("echo repeats the prompt", echo),
    check!("a list of prompts", prompts),
    check!("a prompt of tokens", token_prompt),
    check!("logprobs as numbers", logprobs),
    check!("a stream of text_completion", stream),
];

async fn complete(subject: &Subject, fields: Value) -> Result<Value, Wrong> {
    let mut body = json!({"prompt": PROMPT, "temperature": 0});
    if let (Some(body), Value::Object(fields)) = (body.as_object_mut(), fields) {
        body.extend(fields);
    }
    subject.post(PATH, body).await?.offered()
}

fn text(answer: &Value, index: usize) -> Result<&str, Wrong> {
    let text = &answer["choices"][index]["text"];
    text.as_str()
        .ok_or_else(|| Wrong::Fail(format!("choices[{index}].text is {}", shown(text))))
}

async fn default_limit(subject: &Subject) -> Verdict {
    let answer = complete(subject, json!({})).await?;
    field(&answer, "object", "text_completion")?;
    text(&answer, 0)?;
    let count = tokens(&answer, "completion_tokens")?;
    let reason = &answer["choices"][0]["finish_reason"];
    ensure(
        count <= 16 && (reason == "stop" || (reason == "length" && count == 16)),
        || format!("{count} tokens, finish_reason {}", shown(reason)),
    )?;
    saw(format!("{count} tokens"))
}

async fn echo(subject: &Subject) -> Verdict {
    let answer = complete(subject, json!({"echo": true, "max_tokens": 2})).await?;
    let text = text(&answer, 0)?;
    ensure(text.starts_with(PROMPT) && text.len() > PROMPT.len(), || {
        format!("the text is {}", shown(&text.into()))
    })?;
    saw("prompt and answer")
}

async fn prompts(subject: &Subject) -> Verdict {
    let answer = complete(subject, json!({"prompt": [PROMPT, "The sea is"], "max_tokens": 2})).await?;
    let choices = answer["choices"].as_array().into_iter().flatten();
    let indexes: Vec<_> = choices.map(|choice| choice["index"].as_u64()).collect();
    ensure(indexes == [Some(0), Some(1)], || {
        format!("2 prompts gave choices {indexes:?}")
    })?;
    saw("a choice for each")
}

async fn token_prompt(subject: &Subject) -> Verdict {
    let answer = complete(subject, json!({"prompt": [400, 401, 402], "max_tokens": 1})).await?;
    let count = tokens(&answer, "prompt_tokens")?;
    ensure(count == 3, || format!("3 tokens were counted as {count}"))?;
    saw("3 tokens")
}

async fn logprobs(subject: &Subject) -> Verdict {
    let answer = complete(subject, json!({"logprobs": 2, "max_tokens": 2})).await?;
    let logprobs = &answer["choices"][0]["logprobs"];
    let count = tokens(&answer, "completion_tokens")? as usize;
    for list in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        let found = logprobs[list].as_array().map(Vec::len);
        ensure(found == Some(count), || {
            format!("logprobs.{list} is {}", shown(&logprobs[list]))
        })?;
    }
    saw("tokens, token_logprobs, top_logprobs, text_offset")
}

async fn stream(subject: &Subject) -> Verdict {
    let fields = json!({"prompt": PROMPT, "temperature": 0, "max_tokens": 4, "stream": true});
    let reply = subject.post(PATH, fields).await?;
    if reply.status != 200 {
        reply.offered()?;
    }
    let stream = Stream::of(reply)?;
    if let Some(odd) = stream.framing {
        return Err(Wrong::Fail(odd));
    }
    let is_object = stream.chunks.iter().all(|chunk| chunk["object"] == "text_completion");
    ensure(is_object && !stream.chunks.is_empty(), || {
        "not all chunks have the object text_completion".to_owned()
    })?;
    ensure(stream.dones == 1 && stream.ends_with_done, || {
        "no [DONE] at the end".to_owned()
    })?;
    ensure(!stream.text(0).is_empty() && stream.finishes(0).len() == 1, || {
        "no text, or not one finish_reason".to_owned()
    })?;
    saw(format!("{} events", stream.chunks.len()))
}
