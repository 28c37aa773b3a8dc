//! A worker in this process whose model speaks a script, byte by byte.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use batch_engine::{Constraint, KvLayout, Model, ModelError, Output, Pooling, StepInput};
use clap::Parser;
use daemon::Shutdown;
use openai_api::{Message, PromptEnd, Tool};
use serde_json::Value;
use structured_output::{Grammar, GrammarError, Grammars, TokenText, ToolFormat};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::language::{Decoder, EncodeError, Language};
use crate::model::Loaded;
use crate::{Args, Memory, RunError};

/// Token that ends an answer; the tokens before it are the bytes of prompts.
const END: u32 = 256;
/// Token that opens a text.
const OPENING: u32 = 257;
/// The first of the tokens that are the bytes of answers.
pub(super) const ANSWER: u32 = 258;
const VOCABULARY: u32 = ANSWER + 256;

/// Values of an embedding.
const HIDDEN: usize = 2;

/// Logit of what the model says: far enough above the others, which are 0, to be certain at every temperature.
const CERTAIN: f32 = 1_000.0;

/// Longest wait of a test for something that should happen soon.
pub(super) const SOON: Duration = Duration::from_secs(60);

/// What the model says, whatever it is asked.
#[derive(Clone)]
pub(super) struct Script {
    pub(super) says: &'static str,
    /// What it might say instead, each with another first byte, and how much less probable each is: the difference of
    /// the logarithms.
    pub(super) or: &'static [(&'static str, f32)],
    /// Says each letter as a small or a large one, the other one less probable by this difference of the logarithms.
    pub(super) wavers: Option<f32>,
    /// Begins again at the end.
    pub(super) repeats: bool,
    pub(super) context_length: usize,
    pub(super) block_tokens: usize,
    pub(super) can_chat: bool,
    /// The model computes while it is open.
    pub(super) gate: Gate,
    pub(super) fault: Fault,
}

impl Script {
    pub(super) fn new(says: &'static str) -> Self {
        Self {
            says,
            or: &[],
            wavers: None,
            repeats: false,
            context_length: 1_000,
            block_tokens: 8,
            can_chat: true,
            gate: Gate::default(),
            fault: Fault::default(),
        }
    }

    /// Says it for longer than any test takes.
    pub(super) fn endless(says: &'static str) -> Self {
        Self {
            repeats: true,
            context_length: 1 << 24,
            block_tokens: 1 << 20,
            ..Self::new(says)
        }
    }

    pub(super) fn loaded(self) -> Loaded {
        let can_chat = self.can_chat;
        Loaded {
            hold: None,
            model: Box::new(Scripted {
                script: self,
                places: HashMap::new(),
            }),
            language: Arc::new(Bytes::new(can_chat)),
            pooling: Pooling::Mean,
            memory: Memory {
                weight_bytes: 3_000,
                kv_cache_bytes: 200,
                scratch_bytes: 10,
            },
            revision: Some("sha256:1".to_owned()),
        }
    }
}

/// Open at first.
#[derive(Clone, Default)]
pub(super) struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    pub(super) fn close(&self) {
        *self.0.0.lock().unwrap() = true;
    }

    pub(super) fn open(&self) {
        *self.0.0.lock().unwrap() = false;
        self.0.1.notify_all();
    }

    fn pass(&self) {
        drop(self.0.1.wait_while(self.0.0.lock().unwrap(), |closed| *closed).unwrap());
    }
}

/// None at first.
#[derive(Clone)]
pub(super) struct Fault(Arc<AtomicUsize>);

impl Default for Fault {
    fn default() -> Self {
        Self(Arc::new(AtomicUsize::new(usize::MAX)))
    }
}

impl Fault {
    /// The model breaks when an answer has so many tokens.
    pub(super) fn after(&self, tokens: usize) {
        self.0.store(tokens, Ordering::Relaxed);
    }
}

/// How far an answer has come: which of the texts it is, and how many tokens were said. It is all that the model keeps of
/// a token in its KV cache.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    text: usize,
    said: usize,
}

struct Scripted {
    script: Script,
    /// By block and by the token's place in it.
    places: HashMap<(u32, usize), Place>,
}

impl Scripted {
    fn texts(&self) -> impl Iterator<Item = (&'static [u8], f32)> {
        let main = (self.script.says, 0.0);
        let texts = [main].into_iter().chain(self.script.or.iter().copied());
        texts.map(|(text, less)| (text.as_bytes(), CERTAIN - less))
    }

    /// Where an answer stands after a token.
    fn after(&self, token: u32, before: Place) -> Place {
        let Some(byte) = token.checked_sub(ANSWER) else {
            return Place::default();
        };
        let begun = || {
            self.texts()
                .position(|(text, _)| text.first().is_some_and(|&first| u32::from(first) == byte))
        };
        let text = if before.said == 0 {
            begun().unwrap_or(0)
        } else {
            before.text
        };
        Place {
            text,
            said: before.said + 1,
        }
    }

    /// Appends the logits of what follows.
    fn say(&self, place: Place, rows: &mut Vec<f32>) -> Result<(), ModelError> {
        if place.said >= self.script.fault.0.load(Ordering::Relaxed) {
            return Err(ModelError("the script says so".to_owned()));
        }
        let start = rows.len();
        rows.resize(start + VOCABULARY as usize, 0.0);
        for (index, (text, logit)) in self.texts().enumerate() {
            if place.said > 0 && index != place.text {
                continue;
            }
            let said = if self.script.repeats {
                place.said % text.len()
            } else {
                place.said
            };
            let Some(&byte) = text.get(said) else {
                rows[start + END as usize] = logit;
                continue;
            };
            let mut allow = |byte: u8, logit| rows[start + ANSWER as usize + usize::from(byte)] = logit;
            allow(byte, logit);
            if let Some(less) = self.script.wavers
                && byte.is_ascii_alphabetic()
            {
                allow(byte ^ b' ', logit - less);
            }
        }
        Ok(())
    }
}

impl Model for Scripted {
    fn vocab_size(&self) -> usize {
        VOCABULARY as usize
    }

    fn hidden_size(&self) -> usize {
        HIDDEN
    }

    fn context_length(&self) -> usize {
        self.script.context_length
    }

    fn is_end(&self, token: u32) -> bool {
        token == END
    }

    fn kv_layout(&self) -> KvLayout {
        KvLayout {
            block_tokens: self.script.block_tokens,
            blocks: 8 * self.script.context_length.div_ceil(self.script.block_tokens),
        }
    }

    fn step(&mut self, inputs: &[StepInput<'_>], rows: &mut Vec<f32>) -> Result<(), ModelError> {
        self.script.gate.pass();
        rows.clear();
        for input in inputs {
            let size = self.script.block_tokens;
            let key = |position: usize| (input.blocks[position / size], position % size);
            let mut place = match input.position {
                0 => Place::default(),
                position => self.places[&key(position - 1)],
            };
            for (index, &token) in input.tokens.iter().enumerate() {
                place = self.after(token, place);
                self.places.insert(key(input.position + index), place);
                match input.output {
                    Output::All => self.say(place, rows)?,
                    Output::Last if index + 1 == input.tokens.len() => self.say(place, rows)?,
                    Output::Hidden => rows.extend([(token % 256) as f32, 1.0]),
                    Output::Last | Output::Nothing => {}
                }
            }
        }
        Ok(())
    }
}

/// A token is a byte, of a prompt or of an answer.
struct Bytes {
    can_chat: bool,
    grammars: Grammars,
}

impl Bytes {
    fn new(can_chat: bool) -> Self {
        let text = |token: u32| match token.checked_sub(ANSWER) {
            Some(byte) => TokenText {
                bytes: vec![u8::try_from(byte).unwrap()],
                is_special: false,
            },
            // The bytes of prompts are no part of answers.
            None => TokenText {
                bytes: format!("<|{token}|>").into_bytes(),
                is_special: true,
            },
        };
        Self {
            can_chat,
            grammars: Grammars::new(move || (0..VOCABULARY).map(text).collect(), vec![END]),
        }
    }
}

fn byte(token: u32) -> Option<u8> {
    match token {
        0..END => u8::try_from(token).ok(),
        ANSWER.. => u8::try_from(token - ANSWER).ok(),
        _ => None,
    }
}

impl Language for Bytes {
    fn has_chat_template(&self) -> bool {
        self.can_chat
    }

    fn tool_format(&self) -> ToolFormat {
        ToolFormat::Hermes
    }

    fn fewest_tokens(&self, bytes: usize) -> usize {
        bytes
    }

    fn encode_text(&self, text: &str) -> Result<Vec<u32>, EncodeError> {
        Ok([OPENING].into_iter().chain(text.bytes().map(u32::from)).collect())
    }

    fn encode_chat(&self, messages: &[Message], tools: &[Tool], end: PromptEnd) -> Result<Vec<u32>, EncodeError> {
        if !self.can_chat {
            return Err(EncodeError::NoChatTemplate);
        }
        let mut rendered: String = tools.iter().map(|tool| format!("Tool: {}\n", tool.name)).collect();
        for message in messages {
            let content = message.content.as_deref().unwrap_or_default();
            if content == "forbidden" {
                return Err(EncodeError::Refused("it is forbidden".to_owned()));
            }
            rendered.push_str(&format!("{:?}: {content}\n", message.role));
        }
        if end == PromptEnd::FinalMessage {
            rendered.pop();
        }
        Ok(rendered.bytes().map(u32::from).collect())
    }

    fn end_tokens(&self) -> &[u32] {
        &[END]
    }

    fn constraint(&self, grammar: &Grammar) -> Result<Box<dyn Constraint>, GrammarError> {
        self.grammars.constraint(grammar)
    }

    fn token_bytes(&self, token: u32) -> Vec<u8> {
        byte(token).into_iter().collect()
    }

    fn decoder(&self, _shown: &'static [&'static str]) -> Box<dyn Decoder> {
        Box::new(ByteDecoder(Vec::new()))
    }
}

struct ByteDecoder(Vec<u8>);

impl Decoder for ByteDecoder {
    fn push(&mut self, token: u32) -> Option<String> {
        self.0.extend(byte(token));
        let text = std::str::from_utf8(&self.0).ok()?.to_owned();
        self.0.clear();
        Some(text).filter(|text| !text.is_empty())
    }

    fn finish(&mut self) -> Option<String> {
        let left = std::mem::take(&mut self.0);
        (!left.is_empty()).then(|| String::from_utf8_lossy(&left).into_owned())
    }
}

/// A real worker on a port of its own, with a scripted model.
pub(super) struct TestWorker {
    pub(super) base: String,
    pub(super) http: reqwest::Client,
    pub(super) shutdown: Shutdown,
    pub(super) run: JoinHandle<Result<(), RunError>>,
}

impl TestWorker {
    /// Starts one and waits until it is ready.
    pub(super) async fn start(script: Script, args: &[&str]) -> Self {
        let worker = Self::start_with(args, async { Ok(script.loaded()) }).await;
        worker.until_health(|health| health["ready"] == true).await;
        worker
    }

    /// Starts one whose model comes from `load`, and waits for nothing.
    pub(super) async fn start_with<F>(args: &[&str], load: F) -> Self
    where
        F: Future<Output = Result<Loaded, RunError>> + Send + 'static,
    {
        let fixed = [
            "worker",
            "--model",
            "file:/tiny.gguf",
            "--model-id",
            "org/tiny",
            "--models-dir",
            "/models",
        ];
        let config = Args::try_parse_from(fixed.iter().chain(args))
            .unwrap()
            .try_into()
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let shutdown = Shutdown::new();
        let run = tokio::spawn(crate::run_with(config, listener, shutdown.clone(), |_, _| load));
        let http = daemon::client::new().unwrap();
        Self {
            base,
            http,
            shutdown,
            run,
        }
    }

    pub(super) async fn post(&self, path: &str, body: &Value) -> reqwest::Response {
        self.http
            .post(format!("{}{path}", self.base))
            .json(body)
            .send()
            .await
            .unwrap()
    }

    pub(super) async fn get(&self, path: &str) -> reqwest::Response {
        self.http.get(format!("{}{path}", self.base)).send().await.unwrap()
    }

    /// Posts and reads the JSON answer.
    pub(super) async fn answer(&self, path: &str, body: &Value) -> Value {
        let response = self.post(path, body).await;
        assert_eq!(response.status(), 200, "{}", response.text().await.unwrap());
        response.json().await.unwrap()
    }

    /// Posts and reads the `data:` lines of the stream.
    pub(super) async fn stream(&self, path: &str, body: &Value) -> Vec<String> {
        let response = self.post(path, body).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        events(&response.text().await.unwrap())
    }

    /// Posts and expects an error; returns status and the error object.
    pub(super) async fn refusal(&self, path: &str, body: &Value) -> (u16, Value) {
        error(self.post(path, body).await).await
    }

    /// Waits until `/metrics` has this line.
    pub(super) async fn until_metric(&self, line: &str) {
        let wait = async {
            while !self
                .get("/metrics")
                .await
                .text()
                .await
                .unwrap()
                .lines()
                .any(|shown| shown == line)
            {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(SOON, wait)
            .await
            .unwrap_or_else(|_| panic!("no line `{line}`"));
    }

    /// Waits until `/health` shows this.
    pub(super) async fn until_health(&self, is_so: impl Fn(&Value) -> bool) -> Value {
        let wait = async {
            loop {
                let health: Value = self.get("/health").await.json().await.unwrap();
                if is_so(&health) {
                    return health;
                }
            }
        };
        tokio::time::timeout(SOON, wait).await.expect("health comes soon")
    }

    /// How the worker ended.
    pub(super) async fn ended(self) -> Result<(), RunError> {
        tokio::time::timeout(SOON, self.run)
            .await
            .expect("it ends soon")
            .unwrap()
    }
}

/// The data of a whole stream.
pub(super) fn events(stream: &str) -> Vec<String> {
    let frames = stream.split_terminator("\n\n").filter(|frame| !frame.starts_with(':'));
    frames
        .map(|frame| frame.strip_prefix("data: ").expect("one data line a frame").to_owned())
        .collect()
}

/// Status and error object of a refusal.
pub(super) async fn error(response: reqwest::Response) -> (u16, Value) {
    let status = response.status().as_u16();
    let mut body: Value = response.json().await.unwrap();
    let error = body["error"].take();
    assert!(
        ["message", "type", "param", "code"]
            .iter()
            .all(|key| error.get(key).is_some()),
        "{error}"
    );
    (status, error)
}
