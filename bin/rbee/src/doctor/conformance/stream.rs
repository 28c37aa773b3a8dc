//! Answers that come in parts.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::chat::stop_at;
use super::subject::{LONG, Subject};
use super::wire::{Stream, content, saw};
use super::{Check, Verdict, Wrong, check, ensure, shown};

pub(super) const CHECKS: &[Check] = &[
    check!("text/event-stream", content_type),
    check!("one data line an event", framing),
    check!("the role first, and once", role),
    check!("same id, created and model", same),
    check!("finish_reason once, at the end", finish),
    check!("usage where it is asked for", usage),
    check!("no usage where it is not", no_usage),
    check!("[DONE] once, at the end", done),
    check!("same text as without a stream", text),
    check!("a stop string does not leak", stop),
    check!("n answers in one stream", several),
    check!("UTF-8 stays whole", whole),
];

async fn content_type(subject: &Subject) -> Verdict {
    let found = subject.stream().await?.reply.header("content-type");
    ensure(found.starts_with("text/event-stream"), || {
        format!("content-type is `{found}`")
    })?;
    saw(found)
}

async fn framing(subject: &Subject) -> Verdict {
    let stream = subject.stream().await?;
    match &stream.framing {
        Some(odd) => Err(Wrong::Fail(odd.clone())),
        None => saw(format!("{} events", stream.chunks.len())),
    }
}

async fn role(subject: &Subject) -> Verdict {
    let stream = subject.stream().await?;
    let roles: Vec<_> = stream.choices(0).map(|choice| &choice["delta"]["role"]).collect();
    let first = roles.first().is_some_and(|role| **role == "assistant");
    let again = roles.iter().skip(1).filter(|role| !role.is_null()).count();
    ensure(first, || "the first delta has no role `assistant`".to_owned())?;
    ensure(again == 0, || format!("the role is repeated {again} times"))?;
    saw("assistant")
}

async fn same(subject: &Subject) -> Verdict {
    let stream = subject.stream().await?;
    for name in ["id", "created", "model", "object"] {
        let values: HashSet<String> = stream.chunks.iter().map(|chunk| chunk[name].to_string()).collect();
        let is_there = stream.chunks.iter().all(|chunk| !chunk[name].is_null());
        ensure(values.len() == 1 && is_there, || {
            format!("{} values of {name}", values.len())
        })?;
    }
    let object = &stream.chunks[0]["object"];
    ensure(object == "chat.completion.chunk", || {
        format!("object is {}", shown(object))
    })?;
    saw("in all chunks")
}

/// Checks the end of one choice; returns its reason.
fn ended(stream: &Stream, index: u64) -> Result<String, Wrong> {
    let finishes = stream.finishes(index);
    let [reason] = finishes.as_slice() else {
        return Err(Wrong::Fail(format!(
            "choice {index} has the finish reasons {finishes:?}"
        )));
    };
    let last = stream.choices(index).last();
    let delta = last.map_or(&Value::Null, |choice| &choice["delta"]);
    let is_last = last.is_some_and(|choice| choice["finish_reason"].is_string());
    ensure(is_last, || format!("choice {index} goes on after its finish_reason"))?;
    let is_empty = delta["content"].as_str().unwrap_or("").is_empty() && delta["tool_calls"].is_null();
    ensure(is_empty, || {
        format!("the delta beside finish_reason is {}", shown(delta))
    })?;
    Ok((*reason).to_owned())
}

async fn finish(subject: &Subject) -> Verdict {
    let reason = ended(subject.stream().await?, 0)?;
    saw(reason)
}

async fn usage(subject: &Subject) -> Verdict {
    let stream = subject.stream().await?;
    let with: Vec<&Value> = stream
        .chunks
        .iter()
        .filter(|chunk| chunk["usage"].is_object())
        .collect();
    let last = stream.chunks.last();
    let [chunk] = with.as_slice() else {
        return Err(Wrong::Fail(format!("{} chunks have a usage", with.len())));
    };
    ensure(chunk["choices"] == json!([]) && last == Some(*chunk), || {
        "the usage is not in a last chunk of its own with `choices: []`".to_owned()
    })?;
    let greedy = subject.greedy().await?;
    let (one, other) = (
        &chunk["usage"]["completion_tokens"],
        &greedy["usage"]["completion_tokens"],
    );
    ensure(one == other, || {
        format!("{} tokens, and {} without a stream", shown(one), shown(other))
    })?;
    saw("in a last chunk of its own")
}

async fn no_usage(subject: &Subject) -> Verdict {
    let stream = subject.chat_stream(json!({})).await?;
    let with = stream.chunks.iter().filter(|chunk| chunk["usage"].is_object()).count();
    ensure(with == 0, || format!("{with} chunks have a usage"))?;
    ensure(!stream.chunks.is_empty(), || "no chunk came".to_owned())?;
    saw("none")
}

async fn done(subject: &Subject) -> Verdict {
    let stream = subject.stream().await?;
    ensure(stream.dones == 1 && stream.ends_with_done, || {
        let place = if stream.ends_with_done { "" } else { ", none at the end" };
        format!("{} times{place}", stream.dones)
    })?;
    saw("yes")
}

async fn text(subject: &Subject) -> Verdict {
    let whole = content(subject.greedy().await?)?;
    let parts = subject.stream().await?.text(0);
    ensure(parts == whole, || {
        format!("{}, not {}", shown(&parts.into()), shown(&whole.into()))
    })?;
    saw(format!("{} characters", whole.chars().count()))
}

async fn stop(subject: &Subject) -> Verdict {
    let (word, before) = stop_at(subject).await?;
    let stream = subject.chat_stream(json!({"max_tokens": LONG, "stop": word})).await?;
    let text = stream.text(0);
    ensure(text == before, || {
        format!("the text is {}, not {}", shown(&text.into()), shown(&before.into()))
    })?;
    let reason = ended(&stream, 0)?;
    ensure(reason == "stop", || format!("finish_reason is {reason}"))?;
    saw("held back")
}

async fn several(subject: &Subject) -> Verdict {
    let stream = subject
        .chat_stream(json!({"n": 2, "temperature": 1, "seed": 1}))
        .await?;
    for index in [0, 1] {
        ended(&stream, index)?;
    }
    saw("2 choices, each with its end")
}

/// A schema that allows one text only makes any model say characters of several bytes.
async fn whole(subject: &Subject) -> Verdict {
    const TEXT: &str = "Grüße, 蜜蜂 🐝";
    let schema = json!({
        "type": "object", "properties": {"text": {"const": TEXT}}, "required": ["text"], "additionalProperties": false,
    });
    let format = json!({"type": "json_schema", "json_schema": {"name": "greeting", "strict": true, "schema": schema}});
    let fields = json!({"stream": true, "response_format": format, "max_tokens": 80});
    let reply = subject.chat(fields).await?;
    if reply.status != 200 {
        reply.offered()?;
    }
    let text = Stream::of(reply)?.text(0);
    ensure(!text.contains('\u{fffd}'), || {
        "a character was cut into two events".to_owned()
    })?;
    ensure(text.contains(TEXT), || format!("the text is {}", shown(&text.into())))?;
    saw(TEXT)
}
