//! `rbee run`: a question, and its answer as it comes.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use anyhow::{Context, bail};
use daemon::Shutdown;
use eventsource_stream::Eventsource;
use futures_util::StreamExt;
use reqwest::Response;
use serde::Deserialize;
use serde_json::{Value, json};
use shared_contract::ErrorObject;

use crate::api::{self, Api, root_cause};
use crate::cli::{Global, RunArgs};
use crate::fleet::Client;
use crate::{INTERRUPTED, Usage, render};

/// Most tokens of a continuation unless told otherwise: a base model has no end of its own.
const RAW_MAX_TOKENS: u32 = 256;

/// The worker's word for a model without a chat template.
const NO_CHAT: &str = "no_chat_template";

/// `rbee run`.
pub(crate) async fn run(global: &Global, args: RunArgs, shutdown: &Shutdown) -> anyhow::Result<ExitCode> {
    let asking = async {
        let prompt = prompt(args.prompt.as_deref()).await?;
        let (path, body) = request(&args, &prompt);
        let queen = Client::new(global)?.open_ai();
        let response = queen
            .post_open(path, &body)
            .await
            .map_err(|error| explain(error, &args))?;
        anyhow::Ok((queen, response))
    };
    let (queen, response) = tokio::select! {
        asked = asking => asked?,
        () = shutdown.requested() => return Ok(ExitCode::from(INTERRUPTED)),
    };
    let mut answer = Answer::default();
    let mut screen = Screen::new(global.json);
    let reading = tokio::select! {
        result = read(&queen, response, &mut answer, &mut screen) => Some(result),
        // Leaving drops the connection, on which the worker stops within a token.
        () = shutdown.requested() => None,
    };
    screen.end()?;
    let Some(result) = reading else {
        return Ok(ExitCode::from(INTERRUPTED));
    };
    result?;
    if global.json {
        let Answer {
            model,
            text,
            finish_reason,
            usage,
        } = answer;
        render::json_line(&json!({"model": model, "text": text, "finish_reason": finish_reason, "usage": usage}))?;
    } else if answer.finish_reason.as_deref() == Some("length") && io::stderr().is_terminal() {
        render::note("(cut off: --max-tokens or the end of the model's context was reached)");
    }
    Ok(ExitCode::SUCCESS)
}

/// The prompt as given, or standard input.
async fn prompt(given: Option<&str>) -> anyhow::Result<String> {
    let text = match given {
        Some(text) if text != "-" => text.to_owned(),
        None if io::stdin().is_terminal() => {
            return Err(Usage("no prompt: write one after the model, or pipe it in".to_owned()).into());
        }
        _ => tokio::task::spawn_blocking(|| io::read_to_string(io::stdin()))
            .await?
            .context("read the prompt from standard input")?,
    };
    if text.trim().is_empty() {
        return Err(Usage("the prompt is empty".to_owned()).into());
    }
    Ok(text)
}

/// Path and body for the queen.
fn request(args: &RunArgs, prompt: &str) -> (&'static str, Value) {
    let mut body = json!({"model": args.model, "stream": true, "stream_options": {"include_usage": true}});
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
        // Through its own text, so that 0.7 is not sent as 0.699999988079071.
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

fn short_number(number: f32) -> Value {
    number.to_string().parse::<f64>().map_or(Value::Null, Value::from)
}

/// Adds what to do where the queen's error leaves it open.
fn explain(error: api::Error, args: &RunArgs) -> anyhow::Error {
    let no_chat = matches!(&error, api::Error::Refused { object, .. } if object.code.as_deref() == Some(NO_CHAT));
    if no_chat && !args.raw {
        let command = format!("rbee run {} --raw PROMPT", args.model);
        return anyhow::Error::new(error)
            .context(format!("{} cannot chat; continue a text with `{command}`", args.model));
    }
    error.into()
}

/// What has come so far.
#[derive(Debug, Default)]
struct Answer {
    model: String,
    text: String,
    finish_reason: Option<String>,
    usage: Option<Value>,
}

/// One `data:` line of either endpoint's stream, as far as it matters here.
#[derive(Debug, Deserialize)]
struct Chunk {
    #[serde(default)]
    model: String,
    #[serde(default)]
    choices: Vec<Choice>,
    #[serde(default)]
    usage: Option<Value>,
    #[serde(default)]
    error: Option<ErrorObject>,
}

#[derive(Debug, Deserialize)]
struct Choice {
    #[serde(default)]
    delta: Option<Delta>,
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    finish_reason: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Delta {
    #[serde(default)]
    content: Option<String>,
}

/// Reads the stream to its `[DONE]`.
async fn read(queen: &Api, response: Response, answer: &mut Answer, screen: &mut Screen) -> anyhow::Result<()> {
    let bytes = response
        .bytes_stream()
        .map(|item| item.map_err(|error| root_cause(&error)));
    let mut events = std::pin::pin!(bytes.eventsource());
    while let Some(event) = events.next().await {
        let event = match event {
            Ok(event) => event,
            Err(error) => bail!("the answer broke off: {}", api::stream_fault(error)),
        };
        if event.data == "[DONE]" {
            return Ok(());
        }
        let chunk: Chunk = serde_json::from_str(&event.data)
            .map_err(|error| queen.garbled(format!("{error} in an event of the answer")))?;
        if let Some(error) = chunk.error {
            bail!("the answer broke off: {}", render::clean(&error.message));
        }
        if !chunk.model.is_empty() {
            answer.model = chunk.model;
        }
        answer.usage = chunk.usage.or(answer.usage.take());
        for choice in chunk.choices {
            let text = choice
                .delta
                .and_then(|delta| delta.content)
                .or(choice.text)
                .unwrap_or_default();
            screen.show(&text)?;
            answer.text.push_str(&text);
            answer.finish_reason = choice.finish_reason.or(answer.finish_reason.take());
        }
    }
    bail!("the answer broke off before its end")
}

/// Standard output while an answer arrives: each part is shown at once.
#[derive(Debug)]
struct Screen {
    /// Programs get one document at the end instead.
    silent: bool,
    /// A terminal obeys control characters, a file keeps them.
    terminal: bool,
    /// Whether the cursor stands behind a text without a line break.
    open_line: bool,
}

impl Screen {
    fn new(silent: bool) -> Self {
        Self {
            silent,
            terminal: io::stdout().is_terminal(),
            open_line: false,
        }
    }

    fn show(&mut self, text: &str) -> io::Result<()> {
        if self.silent || text.is_empty() {
            return Ok(());
        }
        self.open_line = !text.ends_with('\n');
        let mut out = io::stdout().lock();
        match self.terminal {
            true => out.write_all(render::clean_lines(text).as_bytes())?,
            false => out.write_all(text.as_bytes())?,
        }
        out.flush()
    }

    /// Leaves the cursor at the start of a line.
    fn end(&mut self) -> io::Result<()> {
        match self.open_line {
            true => render::print("\n"),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::routing::post;

    use super::*;
    use crate::api::Peer;
    use crate::api::tests::{api, serve};

    fn args(raw: bool) -> RunArgs {
        RunArgs {
            model: "m".into(),
            prompt: None,
            max_tokens: None,
            temperature: None,
            top_p: None,
            seed: None,
            system: None,
            raw,
        }
    }

    #[test]
    fn a_request_has_only_what_was_given() {
        let (path, body) = request(&args(false), "hi");
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
        let (_, body) = request(&given, "hi");
        assert_eq!(body["messages"][0], json!({"role": "system", "content": "be brief"}));
        assert_eq!(
            (&body["temperature"], &body["seed"], &body["max_tokens"]),
            (&json!(0.7), &json!(1), &json!(5))
        );
    }

    #[test]
    fn a_continuation_is_bounded_even_if_nobody_said_so() {
        let (path, body) = request(&args(true), "once");
        assert_eq!(
            (path, &body["prompt"], &body["max_tokens"]),
            ("/v1/completions", &json!("once"), &json!(256))
        );
    }

    async fn answered(events: &'static str) -> (anyhow::Result<()>, Answer) {
        let url = serve(Router::new().route("/", post(async move || events))).await;
        let queen = api(Peer::OpenAi, &url);
        let response = queen.post_open("/", &json!({})).await.unwrap();
        let mut answer = Answer::default();
        let mut screen = Screen {
            silent: true,
            terminal: false,
            open_line: false,
        };
        let result = read(&queen, response, &mut answer, &mut screen).await;
        (result, answer)
    }

    #[tokio::test]
    async fn the_parts_of_a_chat_make_one_answer() {
        let (result, answer) = answered(
            "data: {\"model\":\"m\",\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n\
             : keep-alive\n\n\
             data: {\"model\":\"m\",\"choices\":[{\"delta\":{\"content\":\"Hel\"}}]}\n\n\
             data: {\"model\":\"m\",\"choices\":[{\"delta\":{\"content\":\"lo\"}}]}\n\n\
             data: {\"model\":\"m\",\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n\
             data: {\"model\":\"m\",\"choices\":[],\"usage\":{\"total_tokens\":3}}\n\n\
             data: [DONE]\n\n",
        )
        .await;
        result.unwrap();
        assert_eq!((answer.model.as_str(), answer.text.as_str()), ("m", "Hello"));
        assert_eq!(answer.finish_reason.as_deref(), Some("stop"));
        assert_eq!(answer.usage.unwrap()["total_tokens"], 3);
    }

    #[tokio::test]
    async fn an_error_in_the_stream_is_an_error() {
        let (result, answer) = answered(
            "data: {\"choices\":[{\"text\":\"Hel\"}]}\n\n\
             data: {\"error\":{\"message\":\"the worker is gone\",\"type\":\"server_error\",\"param\":null,\"code\":null}}\n\n",
        )
        .await;
        assert_eq!(
            result.unwrap_err().to_string(),
            "the answer broke off: the worker is gone"
        );
        assert_eq!(answer.text, "Hel");
    }

    #[tokio::test]
    async fn a_stream_without_its_end_is_an_error() {
        let (result, _) = answered("data: {\"choices\":[{\"text\":\"Hel\"}]}\n\n").await;
        assert!(result.unwrap_err().to_string().contains("broke off before its end"));
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
        let text = format!("{:#}", explain(error, &args(false)));
        assert!(text.contains("--raw") && text.contains("no chat template"), "{text}");
    }
}
