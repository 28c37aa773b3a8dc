//! `rbee run`: a question, and its answer as it comes; or a chat.

use std::io::{self, IsTerminal};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use daemon::Shutdown;
use serde_json::{Value, json};

use crate::answer::{self, Answer, NO_CHAT, Screen, ask, refusal};
use crate::cli::{Global, RunArgs};
use crate::fleet::Client;
use crate::{INTERRUPTED, Usage, chat, render};

/// Most tokens of a continuation unless told otherwise: a base model has no end of its own.
pub(crate) const RAW_MAX_TOKENS: u32 = 256;

/// `rbee run`.
pub(crate) async fn run(global: &Global, args: RunArgs, shutdown: &Shutdown) -> anyhow::Result<ExitCode> {
    let Some(model) = args.model.clone() else {
        return Err(name_one(global).await.into());
    };
    let is_for_people = io::stdin().is_terminal() && io::stdout().is_terminal() && !global.json;
    if args.prompt.is_none() && args.file.is_none() && is_for_people {
        return chat::chat(global, args, model).await;
    }
    shutdown.listen(true)?;
    let mut answer = Answer::begin();
    let mut screen = Screen::new(global.json);
    let asking = async {
        let prompt = prompt(args.prompt.as_deref(), args.file.as_deref()).await?;
        let (path, body) = request(&args, &model, &prompt);
        let queen = Client::new(global)?.open_ai();
        ask(&queen, path, &body, &mut answer, |said| screen.show(said))
            .await
            .map_err(|error| explain(error, &args, &model))
    };
    let result = tokio::select! {
        result = asking => Some(result),
        // Leaving drops the connection, on which the worker stops within a token.
        () = shutdown.requested() => None,
    };
    screen.end()?;
    let Some(result) = result else {
        return Ok(ExitCode::from(INTERRUPTED));
    };
    result?;
    if global.json {
        let Answer {
            model,
            text,
            finish_reason,
            usage,
            ..
        } = answer;
        render::json_line(&json!({"model": model, "text": text, "finish_reason": finish_reason, "usage": usage}))?;
    } else if answer.finish_reason.as_deref() == Some("length") && io::stderr().is_terminal() {
        render::note("(cut off: --max-tokens or the end of the model's context was reached)");
    }
    Ok(ExitCode::SUCCESS)
}

/// What is missing, with the names that would do.
async fn name_one(global: &Global) -> Usage {
    let names = async {
        let queen = Client::new(global).ok()?.open_ai();
        chat::models(&queen).await.ok()
    };
    let names = names.await.map(|models| {
        let names: Vec<_> = models.iter().map(|model| model.id.as_str()).collect();
        names.join(", ")
    });
    Usage(match names {
        Some(names) if !names.is_empty() => format!("name a model, `rbee run MODEL [PROMPT]`, of {names}"),
        _ => "name a model, `rbee run MODEL [PROMPT]`; `rbee models` lists those there are".to_owned(),
    })
}

/// The prompt as given, or standard input; behind the file's text, where one is named.
async fn prompt(given: Option<&str>, file: Option<&Path>) -> anyhow::Result<String> {
    let stdin = Path::new("-");
    let text = match (given, file) {
        (Some("-"), Some(file)) if file == stdin => {
            return Err(Usage("standard input cannot be both the prompt and the file".to_owned()).into());
        }
        (given, Some(file)) => {
            let text = match file == stdin {
                true => standard_input().await?,
                false => tokio::fs::read_to_string(file)
                    .await
                    .with_context(|| format!("read {}", file.display()))?,
            };
            let given = match given {
                Some("-") => Some(standard_input().await?),
                given => given.map(str::to_owned),
            };
            given.map_or_else(|| text.clone(), |given| format!("{}\n\n{given}", text.trim_end()))
        }
        (Some(text), None) if text != "-" => text.to_owned(),
        (None, None) if io::stdin().is_terminal() => {
            let problem = "no prompt: write one after the model, or pipe it in; a chat needs a terminal to write to";
            return Err(Usage(problem.to_owned()).into());
        }
        _ => standard_input().await?,
    };
    if text.trim().is_empty() {
        return Err(Usage("the prompt is empty".to_owned()).into());
    }
    Ok(text)
}

async fn standard_input() -> anyhow::Result<String> {
    tokio::task::spawn_blocking(|| io::read_to_string(io::stdin()))
        .await?
        .context("read the prompt from standard input")
}

/// Path and body for the queen.
fn request(args: &RunArgs, model: &str, prompt: &str) -> (&'static str, Value) {
    let mut body = json!({"model": model, "stream": true, "stream_options": {"include_usage": true}});
    let path = if args.raw {
        body["prompt"] = prompt.into();
        "/v1/completions"
    } else {
        let system = args
            .system
            .iter()
            .map(|text| json!({"role": "system", "content": text}));
        body["messages"] = system.chain([json!({"role": "user", "content": prompt})]).collect();
        "/v1/chat/completions"
    };
    let max_tokens = args.max_tokens.or(args.raw.then_some(RAW_MAX_TOKENS));
    let options = [
        ("max_tokens", max_tokens.map(Value::from)),
        ("temperature", args.temperature.map(short_number)),
        ("top_p", args.top_p.map(short_number)),
        ("seed", args.seed.map(Value::from)),
    ];
    for (name, value) in options {
        if let Some(value) = value {
            body[name] = value;
        }
    }
    (path, body)
}

/// A number as it was written: 0.7 is not sent as 0.699999988079071.
pub(crate) fn short_number(number: f32) -> Value {
    number.to_string().parse::<f64>().map_or(Value::Null, Value::from)
}

/// Adds what to do where the queen's error leaves it open.
fn explain(error: anyhow::Error, args: &RunArgs, model: &str) -> anyhow::Error {
    match refusal(&error) {
        Some(NO_CHAT) if !args.raw => {
            let command = format!("rbee run {model} --raw PROMPT");
            error.context(format!("{model} cannot chat; continue a text with `{command}`"))
        }
        Some(answer::CONTEXT_FULL) => error.context("the prompt does not fit the model's context"),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use shared_contract::ErrorObject;

    use super::*;
    use crate::api::{self, Peer};

    fn args(raw: bool) -> RunArgs {
        RunArgs {
            model: Some("m".into()),
            prompt: None,
            file: None,
            max_tokens: None,
            temperature: None,
            top_p: None,
            seed: None,
            system: None,
            raw,
            no_history: false,
        }
    }

    #[test]
    fn a_request_has_only_what_was_given() {
        let (path, body) = request(&args(false), "m", "hi");
        assert_eq!(path, "/v1/chat/completions");
        assert_eq!(
            body,
            json!({"model": "m", "stream": true, "stream_options": {"include_usage": true},
                   "messages": [{"role": "user", "content": "hi"}]})
        );
        let given = RunArgs {
            system: Some("be brief".into()),
            temperature: Some(0.7),
            seed: Some(1),
            max_tokens: Some(5),
            ..args(false)
        };
        let (_, body) = request(&given, "m", "hi");
        assert_eq!(body["messages"][0], json!({"role": "system", "content": "be brief"}));
        assert_eq!(
            (&body["temperature"], &body["seed"], &body["max_tokens"]),
            (&json!(0.7), &json!(1), &json!(5))
        );
    }

    #[test]
    fn a_continuation_is_bounded_even_if_nobody_said_so() {
        let (path, body) = request(&args(true), "m", "once");
        assert_eq!(
            (path, &body["prompt"], &body["max_tokens"]),
            ("/v1/completions", &json!("once"), &json!(256))
        );
    }

    #[test]
    fn a_model_that_cannot_chat_is_asked_otherwise() {
        let error = api::Error::Refused {
            peer: Peer::OpenAi,
            status: 400,
            object: ErrorObject {
                message: "the model has no chat template".into(),
                kind: "invalid_request_error".into(),
                param: Some("model".into()),
                code: Some("no_chat_template".into()),
            },
            retry_after_s: None,
        };
        let text = format!("{:#}", explain(error.into(), &args(false), "m"));
        assert!(text.contains("--raw") && text.contains("no chat template"), "{text}");
    }
}
