//! `rbee doctor --api`: whether a server does what OpenAI's clients expect, whoever made it.
//!
//! Owns: the checks, each with a name, and the requests that they need. Checks share answers where they can, and all of
//! them together send fewer than [`MAX_REQUESTS`] requests, one after another.
//! Must not know: rbee. Nothing but the API's own words is asked for, except where a server tells how many requests it
//! works on, which is looked for under the names that several servers have for it.

mod chat;
mod completions;
mod embeddings;
mod errors;
mod manners;
mod models;
mod sampling;
mod stream;
mod structured;
mod subject;
#[cfg(test)]
mod tests;
mod wire;

use anyhow::Context;
use daemon::Secret;
use futures_util::future::LocalBoxFuture;
use serde_json::Value;

use self::subject::Subject;
use super::{Finding, Report, Status};
use crate::cli::BaseUrl;
use crate::render;

/// Most requests of a whole run.
const MAX_REQUESTS: usize = 80;

/// What a check found: what was seen, or what is wrong with it.
type Verdict = Result<String, Wrong>;

/// Why a check has not passed.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Wrong {
    /// The server does something else.
    Fail(String),
    /// It could not be looked at, or the server says that it does not offer it.
    Skip(String),
}

/// A check that fails unless the condition holds.
fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), Wrong> {
    match holds {
        true => Ok(()),
        false => Err(Wrong::Fail(otherwise())),
    }
}

/// One line of the checklist.
struct Check {
    name: &'static str,
    run: for<'a> fn(&'a Subject) -> LocalBoxFuture<'a, Verdict>,
}

/// A check of this name, done by this async function.
macro_rules! check {
    ($name:literal, $run:path) => {
        $crate::doctor::conformance::Check {
            name: $name,
            run: |subject| Box::pin($run(subject)),
        }
    };
}
use check;

/// The checklist. What all replies have in common comes last, when there are many.
const GROUPS: [(&str, &[Check]); 9] = [
    ("models", models::CHECKS),
    ("errors", errors::CHECKS),
    ("chat", chat::CHECKS),
    ("sampling", sampling::CHECKS),
    ("streams", stream::CHECKS),
    ("tools and schemas", structured::CHECKS),
    ("completions", completions::CHECKS),
    ("embeddings", embeddings::CHECKS),
    ("manners", manners::CHECKS),
];

/// Runs the checklist.
pub(super) async fn examine(base: &BaseUrl, key: Option<Secret>, model: Option<&str>) -> anyhow::Result<Report> {
    let http = daemon::client::new().context("make an HTTP client")?;
    let subject = Subject::meet(http, base, key, model).await?;
    let mut findings = Vec::new();
    for (group, checks) in GROUPS {
        for check in checks {
            let (status, text) = match (check.run)(&subject).await {
                Ok(text) => (Status::Ok, text),
                Err(Wrong::Fail(text)) => (Status::Fail, text),
                Err(Wrong::Skip(text)) => (Status::Skipped, text),
            };
            findings.push(Finding::new(group, check.name, status, text));
        }
    }
    let about = format!("{base}, model {}; {} requests", subject.model(), subject.requests());
    Ok(Report { about, findings })
}

/// A JSON value in a sentence: short, on one line.
fn shown(value: &Value) -> String {
    const MOST: usize = 80;
    let text = render::clean(&value.to_string());
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("`{}...`", &text[..end]),
        None => format!("`{text}`"),
    }
}
