//! Chats over HTTP, the same for every server.

use std::time::{Duration, Instant};

use candle_models::{DeviceSpec, LoadOptions, Tokenizer, load};
use eventsource_stream::Eventsource;
use futures_util::future::try_join_all;
use futures_util::{Stream, StreamExt};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::server::Server;
use crate::table::median;
use crate::{Args, Result};

/// Tokens of a prompt, template included.
const PROMPT: usize = 256;
/// Tokens of an answer.
const ANSWER: u32 = 128;
/// Tokens of answers that only keep the server busy.
const LONG_ANSWER: u32 = 600;
/// Requests behind one figure of a time to the first token.
const REQUESTS: u64 = 9;

const WORDS: [&str; 32] = [
    "river", "stone", "garden", "window", "paper", "winter", "music", "bread", "silver", "forest", "letter", "morning",
    "harbor", "candle", "engine", "mirror", "summer", "bridge", "planet", "doctor", "market", "thunder", "village",
    "teacher", "orange", "shadow", "island", "copper", "meadow", "signal", "basket", "corner",
];

/// Makes prompts of the wanted length, each other than all before it.
pub(crate) struct Prompts {
    tokenizer: Tokenizer,
    template: candle_models::ChatTemplate,
    end_tokens: Vec<u32>,
    client: reqwest::Client,
}

impl Prompts {
    /// `None` for a model that cannot chat.
    pub(crate) fn new(args: &Args) -> Result<Option<Self>> {
        let options = LoadOptions {
            kv_tokens: Some(1_024),
            ..LoadOptions::new(DeviceSpec::Cpu)
        };
        let loaded = load(&args.model, &options, &mut |_| {}).map_err(|error| format!("load the model: {error}"))?;
        let client = rbee_tests::http::client();
        let end_tokens = loaded.tokenizer.end_tokens().to_vec();
        Ok(loaded.chat_template.map(|template| Self {
            tokenizer: loaded.tokenizer,
            template,
            end_tokens,
            client,
        }))
    }

    /// Words that make a prompt of [`PROMPT`] tokens.
    fn text(&self, seed: u64) -> Result<String> {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut text = format!("Tell a story with these words, number {seed}:");
        loop {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let longer = format!("{text} {}", WORDS[(state >> 59) as usize]);
            let messages = [json!({"role": "user", "content": longer})];
            let rendered = self
                .template
                .render(&messages, None, true)
                .map_err(|error| format!("render a prompt: {error}"))?;
            let tokens = self
                .tokenizer
                .encode_chat(&rendered)
                .map_err(|error| format!("tokenize a prompt: {error}"))?;
            if tokens.len() > PROMPT {
                return Ok(text);
            }
            text = longer;
        }
    }

    fn body(&self, server: &Server, text: &str, max_tokens: u32) -> Value {
        let mut body = json!({
            "model": server.model, "messages": [{"role": "user", "content": text}], "max_tokens": max_tokens,
            "temperature": 0, "stream": true, "stream_options": {"include_usage": true},
        });
        if let Some(fields) = server.whole_length.as_object().filter(|fields| !fields.is_empty()) {
            for (name, value) in fields {
                body[name] = value.clone();
            }
        } else {
            let never: serde_json::Map<String, Value> = self
                .end_tokens
                .iter()
                .map(|token| (token.to_string(), json!(-100)))
                .collect();
            body["logit_bias"] = Value::Object(never);
        }
        body
    }

    /// Tokens per second of so many chats at a time, from the first request to the last token.
    pub(crate) async fn total_pace(&self, server: &Server, streams: u64, run: u64) -> Result<f64> {
        let texts: Result<Vec<String>> = (0..streams)
            .map(|index| self.text(1_000 * (run + 1) + 100 * streams + index))
            .collect();
        let texts = texts?;
        let begin = Instant::now();
        let chats = texts.iter().map(|text| async {
            let body = self.body(server, text, ANSWER);
            let mut chunks = Box::pin(self.open(server, &body).await?);
            let mut tokens = 0;
            while let Some(chunk) = chunks.next().await {
                tokens = chunk?["usage"]["completion_tokens"].as_u64().unwrap_or(tokens);
            }
            Ok::<u64, String>(tokens)
        });
        let tokens: u64 = try_join_all(chats).await?.into_iter().sum();
        let expected = streams * u64::from(ANSWER);
        if tokens != expected {
            return Err(format!(
                "compare the chats: {} generated {tokens} tokens instead of {expected}",
                server.name
            ));
        }
        Ok(tokens as f64 / begin.elapsed().as_secs_f64())
    }

    /// Milliseconds to the first token of a prompt while others decode; the median of several.
    pub(crate) async fn ttft_beside_others(&self, server: &Server, others: u64, run: u64) -> Result<f64> {
        let seed = 500_000 + 10_000 * run;
        let texts: Result<Vec<String>> = (0..others).map(|index| self.text(seed + index)).collect();
        let opened = texts?.into_iter().map(|text| async move {
            let mut chunks = Box::pin(self.open(server, &self.body(server, &text, LONG_ANSWER)).await?);
            first_text(&mut chunks).await?;
            Ok::<_, String>(chunks)
        });
        let running = try_join_all(opened).await?;
        let mut readers = JoinSet::new();
        for mut chunks in running {
            readers.spawn(async move { while chunks.next().await.is_some() {} });
        }
        let mut times = Vec::new();
        for request in 0..REQUESTS {
            let body = self.body(server, &self.text(seed + 100 + request)?, 1);
            times.push(self.ttft(server, &body).await?);
        }
        // Dropping the readers ends the others.
        if readers.try_join_next().is_some() {
            return Err(format!("keep {others} chats busy: {} ended one too early", server.name));
        }
        Ok(median(&times))
    }

    /// Milliseconds to the first token of a prompt whose beginning was seen before; the median of several.
    pub(crate) async fn ttft_of_seen_prefix(&self, server: &Server, run: u64) -> Result<f64> {
        let mut times = Vec::new();
        for request in 0..REQUESTS {
            let text = self.text(900_000 + 10_000 * run + request)?;
            self.ttft(server, &self.body(server, &text, 1)).await?;
            let longer = format!("{text} {} {} {}", WORDS[request as usize], WORDS[5], WORDS[9]);
            times.push(self.ttft(server, &self.body(server, &longer, 1)).await?);
        }
        Ok(median(&times))
    }

    async fn ttft(&self, server: &Server, body: &Value) -> Result<f64> {
        let begin = Instant::now();
        let mut chunks = Box::pin(self.open(server, body).await?);
        first_text(&mut chunks).await?;
        let time = begin.elapsed();
        while chunks.next().await.is_some() {}
        Ok(time.as_secs_f64() * 1e3)
    }

    /// The chunks of an answer.
    async fn open(&self, server: &Server, body: &Value) -> Result<impl Stream<Item = Result<Value>> + Send + use<>> {
        let request = self
            .client
            .post(format!("{}/v1/chat/completions", server.url))
            .json(body)
            // A server may close an idle connection just as it is used again.
            .header("connection", "close");
        let failed = |error: reqwest::Error| format!("ask {}: {error}", server.name);
        let response = request.timeout(Duration::from_secs(600)).send().await.map_err(failed)?;
        let status = response.status();
        if !status.is_success() {
            let text = response.text().await.unwrap_or_default();
            return Err(format!("ask {}: {status} {text}", server.name));
        }
        let events = response.bytes_stream().eventsource();
        Ok(events.filter_map(|event| async {
            match event {
                Ok(event) if event.data == "[DONE]" => None,
                Ok(event) => Some(serde_json::from_str(&event.data).map_err(|error| format!("read a chunk: {error}"))),
                Err(error) => Some(Err(format!("read a stream: {error}"))),
            }
        }))
    }
}

/// Reads up to the first text.
async fn first_text(chunks: &mut (impl Stream<Item = Result<Value>> + Unpin)) -> Result<()> {
    while let Some(chunk) = chunks.next().await {
        let text = &chunk?["choices"][0]["delta"]["content"];
        if text.as_str().is_some_and(|text| !text.is_empty()) {
            return Ok(());
        }
    }
    Err("find a text in an answer".to_owned())
}

/// Measures each server in turn, several times; one list of figures for each.
pub(crate) async fn in_turn<'a, F, R>(servers: &[&'a Server], runs: u32, measure: F) -> Result<Vec<Vec<f64>>>
where
    F: Fn(&'a Server, u64) -> R,
    R: Future<Output = Result<f64>>,
{
    let mut figures = vec![Vec::new(); servers.len()];
    for run in 0..u64::from(runs) {
        for (server, figures) in servers.iter().zip(&mut figures) {
            figures.push(measure(server, run).await?);
        }
    }
    Ok(figures)
}
