//! Whole answers of a chat.

use serde_json::{Value, json};

use super::subject::{LONG, QUESTION, Subject};
use super::wire::{content, field, saw, tokens};
use super::{Check, Verdict, Wrong, check, ensure, shown};

pub(super) const CHECKS: &[Check] = &[
    check!("an answer has all its fields", fields),
    check!("usage adds up", usage),
    check!("finish_reason length", length),
    check!("max_completion_tokens wins", newer_limit),
    check!("finish_reason stop at a string", stop),
    check!("a list of stop strings", stops),
    check!("n answers", several),
    check!("content in parts", parts),
    check!("system and developer", roles),
    check!("results of tools in messages", tool_results),
    check!("harmless extras are taken", extras),
];

async fn fields(subject: &Subject) -> Verdict {
    let answer = subject.greedy().await?;
    field(answer, "object", "chat.completion")?;
    field(answer, "model", subject.model())?;
    ensure(answer["id"].as_str().is_some_and(|id| !id.is_empty()), || {
        format!("id is {}", shown(&answer["id"]))
    })?;
    ensure(answer["created"].is_u64(), || {
        format!("created is {}", shown(&answer["created"]))
    })?;
    let choice = &answer["choices"][0];
    ensure(choice["index"] == 0, || {
        format!("choices[0].index is {}", shown(&choice["index"]))
    })?;
    field(&choice["message"], "role", "assistant")?;
    ensure(choice["finish_reason"].is_string(), || {
        format!("finish_reason is {}", shown(&choice["finish_reason"]))
    })?;
    content(answer)?;
    saw("id, object, created, model, choices, usage")
}

async fn usage(subject: &Subject) -> Verdict {
    let answer = subject.greedy().await?;
    let [prompt, completion, total] = ["prompt_tokens", "completion_tokens", "total_tokens"];
    let (prompt, completion, total) = (
        tokens(answer, prompt)?,
        tokens(answer, completion)?,
        tokens(answer, total)?,
    );
    ensure(prompt > 0 && completion > 0 && prompt + completion == total, || {
        format!("{prompt} + {completion} = {total}")
    })?;
    saw(format!("{prompt} + {completion} = {total}"))
}

/// Checks that the answer was cut off after so many tokens.
fn cut_off(answer: &Value, limit: u64) -> Verdict {
    let reason = &answer["choices"][0]["finish_reason"];
    let count = tokens(answer, "completion_tokens")?;
    ensure(reason == "length" && count == limit, || {
        format!(
            "finish_reason {} after {count} tokens, the limit was {limit}",
            shown(reason)
        )
    })?;
    saw(format!("length after {count} tokens"))
}

async fn length(subject: &Subject) -> Verdict {
    cut_off(&subject.chat(json!({"max_tokens": 3})).await?.success()?, 3)
}

async fn newer_limit(subject: &Subject) -> Verdict {
    let fields = json!({"max_completion_tokens": 2, "max_tokens": 5});
    cut_off(&subject.chat(fields).await?.success()?, 2)
}

/// A part of the greedy answer at which to stop, and what must come before it.
pub(super) async fn stop_at(subject: &Subject) -> Result<(String, String), Wrong> {
    let text = content(subject.greedy().await?)?;
    let words: Vec<&str> = text.split_whitespace().collect();
    // A word from the middle on that is long enough not to stand in another one before it.
    let later = words.iter().skip(words.len() / 2);
    let word = later
        .filter(|word| word.len() > 2)
        .find(|word| text.find(**word).is_some_and(|at| at > 0));
    let Some((at, word)) = word.and_then(|word| Some((text.find(*word)?, *word))) else {
        return Err(Wrong::Skip(format!(
            "the answer is too short to stop in: {}",
            shown(&text.into())
        )));
    };
    Ok((word.to_owned(), text[..at].to_owned()))
}

async fn stopped(subject: &Subject, stop: Value, before: &str) -> Verdict {
    let answer = subject
        .chat(json!({"max_tokens": LONG, "stop": stop}))
        .await?
        .success()?;
    let reason = &answer["choices"][0]["finish_reason"];
    let text = content(&answer)?;
    ensure(reason == "stop", || format!("finish_reason is {}", shown(reason)))?;
    ensure(text == before, || {
        format!("the text is {}, not {}", shown(&text.into()), shown(&before.into()))
    })?;
    saw(format!("stopped before {}", shown(&stop)))
}

async fn stop(subject: &Subject) -> Verdict {
    let (word, before) = stop_at(subject).await?;
    stopped(subject, word.into(), &before).await
}

async fn stops(subject: &Subject) -> Verdict {
    let (word, before) = stop_at(subject).await?;
    stopped(subject, json!(["@never@", word]), &before).await
}

async fn several(subject: &Subject) -> Verdict {
    let answer = subject
        .chat(json!({"n": 2, "temperature": 1, "seed": 1}))
        .await?
        .success()?;
    let choices = answer["choices"].as_array().into_iter().flatten();
    let indexes: Vec<_> = choices.map(|choice| choice["index"].as_u64()).collect();
    ensure(indexes == [Some(0), Some(1)], || {
        format!("n 2 gave choices {indexes:?}")
    })?;
    saw("2 choices")
}

async fn parts(subject: &Subject) -> Verdict {
    let parts = json!([{"type": "text", "text": QUESTION}]);
    let messages = json!([{"role": "user", "content": parts}]);
    let answer = subject
        .chat(json!({"messages": messages, "max_tokens": LONG}))
        .await?
        .success()?;
    let (one, other) = (content(&answer)?, content(subject.greedy().await?)?);
    ensure(one == other, || {
        format!("another answer than to a string: {}", shown(&one.into()))
    })?;
    saw("same answer as to a string")
}

async fn roles(subject: &Subject) -> Verdict {
    let count = async |role: &str| {
        let messages = json!([{"role": role, "content": "Be brief."}, {"role": "user", "content": QUESTION}]);
        let answer = subject.chat(json!({"messages": messages})).await?.success()?;
        tokens(&answer, "prompt_tokens")
    };
    let plain = tokens(subject.greedy().await?, "prompt_tokens")?;
    let (system, developer) = (count("system").await?, count("developer").await?);
    ensure(system != plain && developer != plain, || {
        format!("prompts of {system} and {developer} tokens, as long as without them: they are dropped")
    })?;
    saw("both reach the model")
}

async fn tool_results(subject: &Subject) -> Verdict {
    let call = json!({"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}});
    let messages = json!([
        {"role": "user", "content": "How is the weather?"},
        {"role": "assistant", "content": null, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "Sunny."},
    ]);
    let answer = subject.chat(json!({"messages": messages})).await?.offered()?;
    content(&answer)?;
    saw("taken, with null content beside the call")
}

async fn extras(subject: &Subject) -> Verdict {
    let fields = json!({"user": "u", "metadata": {"a": "b"}, "store": false, "service_tier": "auto"});
    content(&subject.chat(fields).await?.success()?)?;
    saw("user, metadata, store, service_tier")
}
