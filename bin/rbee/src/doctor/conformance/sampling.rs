//! What decides the next token.

use serde_json::{Value, json};

use super::subject::{LONG, Subject};
use super::wire::{content, saw, tokens};
use super::{Check, Verdict, Wrong, check, ensure, shown};

/// So many seeds that all give the same text would be no chance.
const OTHER_SEEDS: [u32; 3] = [8, 9, 10];

pub(super) const CHECKS: &[Check] = &[
    check!("temperature 0 repeats itself", greedy),
    check!("a seed repeats itself", seed),
    check!("another seed, another answer", other_seed),
    check!("top_p 0 is taken", top_p),
    check!("logit_bias is obeyed", bias),
    check!("logprobs of each token", logprobs),
];

async fn sampled(subject: &Subject, seed: u32) -> Result<String, Wrong> {
    let fields = json!({"max_tokens": LONG, "temperature": 1, "seed": seed});
    let answer = subject.chat(fields).await?.success()?;
    content(&answer).map(str::to_owned)
}

async fn greedy(subject: &Subject) -> Verdict {
    let again = subject.chat(json!({"max_tokens": LONG})).await?.success()?;
    let (one, other) = (content(subject.greedy().await?)?, content(&again)?);
    ensure(one == other, || {
        format!("{} and {}", shown(&one.into()), shown(&other.into()))
    })?;
    saw("same text twice")
}

async fn seed(subject: &Subject) -> Verdict {
    let (one, other) = (sampled(subject, 7).await?, sampled(subject, 7).await?);
    ensure(one == other, || {
        format!("{} and {}", shown(&one.into()), shown(&other.into()))
    })?;
    saw("same text twice at temperature 1")
}

async fn other_seed(subject: &Subject) -> Verdict {
    let first = sampled(subject, OTHER_SEEDS[0]).await?;
    for seed in &OTHER_SEEDS[1..] {
        if sampled(subject, *seed).await? != first {
            return saw("different texts at temperature 1");
        }
    }
    Err(Wrong::Fail(format!(
        "{} seeds gave the same text at temperature 1: sampling is ignored",
        OTHER_SEEDS.len()
    )))
}

async fn top_p(subject: &Subject) -> Verdict {
    let answer = subject
        .chat(json!({"max_tokens": LONG, "temperature": 1, "top_p": 0}))
        .await?
        .success()?;
    let (one, other) = (content(&answer)?, content(subject.greedy().await?)?);
    ensure(one == other, || {
        format!("not the likeliest text: {}", shown(&one.into()))
    })?;
    saw("the likeliest text, as with temperature 0")
}

/// Forbids the first token of the answer, whose id is not known: all small ids but that of the end are as good.
async fn bias(subject: &Subject) -> Verdict {
    let favoured = json!({"500": 100});
    let answer = subject
        .chat(json!({"logit_bias": favoured, "max_tokens": LONG}))
        .await?
        .success()?;
    let (one, other) = (content(&answer)?, content(subject.greedy().await?)?);
    ensure(one != other, || "a token with a bias of 100 changed nothing".to_owned())?;
    saw("a favoured token changes the text")
}

async fn logprobs(subject: &Subject) -> Verdict {
    let fields = json!({"max_tokens": 3, "logprobs": true, "top_logprobs": 2});
    let answer = subject.chat(fields).await?.success()?;
    let list = &answer["choices"][0]["logprobs"]["content"];
    let list = list
        .as_array()
        .ok_or_else(|| Wrong::Fail(format!("logprobs.content is {}", shown(list))))?;
    let count = tokens(&answer, "completion_tokens")?;
    ensure(list.len() as u64 == count, || {
        format!("{} entries for {count} tokens", list.len())
    })?;
    for entry in list {
        has_fields(entry)?;
        let top = entry["top_logprobs"].as_array();
        let top = top.filter(|top| top.len() == 2);
        let top = top.ok_or_else(|| Wrong::Fail(format!("top_logprobs is {}", shown(&entry["top_logprobs"]))))?;
        top.iter().try_for_each(has_fields)?;
    }
    saw(format!("{count} tokens, 2 alternatives each"))
}

fn has_fields(entry: &Value) -> Result<(), Wrong> {
    let is_probability = entry["logprob"].as_f64().is_some_and(|logprob| logprob <= 0.0);
    ensure(
        entry["token"].is_string() && is_probability && entry["bytes"].is_array(),
        || format!("an entry lacks token, logprob (at most 0) or bytes: {}", shown(entry)),
    )
}
