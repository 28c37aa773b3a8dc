//! A worker in this process whose model speaks a script, byte by byte.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use batch_engine::{Model, ModelError, SequenceId, StepInput};
use clap::Parser;
use daemon::Shutdown;
use openai_api::Message;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::language::{Decoder, EncodeError, Language};
use crate::model::Loaded;
use crate::{Args, RunError};

/// Token that ends an answer; the tokens before it are bytes.
const END: u32 = 256;
/// Token that opens a text.
const OPENING: u32 = 257;
const VOCABULARY: usize = 258;

/// Longest wait of a test for something that should happen soon.
pub(super) const SOON: Duration = Duration::from_secs(20);

/// What the model says, whatever it is asked.
#[derive(Clone)]
pub(super) struct Script {
    pub(super) says: &'static str,
    /// Begins again at the end.
    pub(super) repeats: bool,
    /// Breaks after so many tokens of an answer.
    pub(super) breaks_after: Option<usize>,
    pub(super) context_length: usize,
    pub(super) can_chat: bool,
    /// The model computes while it is open.
    pub(super) gate: Gate,
}

impl Script {
    pub(super) fn new(says: &'static str) -> Self {
        Self {
            says,
            repeats: false,
            breaks_after: None,
            context_length: 1_000,
            can_chat: true,
            gate: Gate::default(),
        }
    }

    /// Says it for ever.
    pub(super) fn endless(says: &'static str) -> Self {
        Self {
            repeats: true,
            context_length: 1 << 40,
            ..Self::new(says)
        }
    }

    pub(super) fn loaded(self) -> Loaded {
        let can_chat = self.can_chat;
        Loaded {
            model: Box::new(Scripted {
                script: self,
                opened: 0,
                said: HashMap::new(),
            }),
            language: Arc::new(Bytes { can_chat }),
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

struct Scripted {
    script: Script,
    opened: u64,
    said: HashMap<SequenceId, usize>,
}

impl Scripted {
    fn token(&self, index: usize) -> u32 {
        let bytes = self.script.says.as_bytes();
        match bytes.get(if self.script.repeats {
            index % bytes.len()
        } else {
            index
        }) {
            Some(&byte) => byte.into(),
            None => END,
        }
    }
}

impl Model for Scripted {
    fn vocab_size(&self) -> usize {
        VOCABULARY
    }

    fn context_length(&self) -> usize {
        self.script.context_length
    }

    fn kv_capacity(&self) -> usize {
        self.script.context_length.saturating_mul(8)
    }

    fn is_end(&self, token: u32) -> bool {
        token == END
    }

    fn open(&mut self, _max_tokens: usize) -> Result<SequenceId, ModelError> {
        self.opened += 1;
        let id = SequenceId(self.opened);
        self.said.insert(id, 0);
        Ok(id)
    }

    fn close(&mut self, sequence: SequenceId) {
        self.said.remove(&sequence);
    }

    fn step(&mut self, inputs: &[StepInput<'_>], logits: &mut Vec<f32>) -> Result<(), ModelError> {
        self.script.gate.pass();
        logits.clear();
        for input in inputs.iter().filter(|input| input.wants_logits) {
            let said = self.said[&input.sequence];
            if self.script.breaks_after.is_some_and(|limit| said >= limit) {
                return Err(ModelError("the script says so".to_owned()));
            }
            self.said.insert(input.sequence, said + 1);
            let start = logits.len();
            logits.resize(start + VOCABULARY, 0.0);
            // Far enough above the others to be certain at every temperature.
            logits[start + self.token(said) as usize] = 1_000.0;
        }
        Ok(())
    }
}

/// A token is a byte.
struct Bytes {
    can_chat: bool,
}

impl Language for Bytes {
    fn has_chat_template(&self) -> bool {
        self.can_chat
    }

    fn fewest_tokens(&self, bytes: usize) -> usize {
        bytes
    }

    fn encode_text(&self, text: &str) -> Result<Vec<u32>, EncodeError> {
        Ok([OPENING].into_iter().chain(text.bytes().map(u32::from)).collect())
    }

    fn encode_chat(&self, messages: &[Message]) -> Result<Vec<u32>, EncodeError> {
        if !self.can_chat {
            return Err(EncodeError::NoChatTemplate);
        }
        if messages.iter().any(|message| message.content == "forbidden") {
            return Err(EncodeError::Refused("it is forbidden".to_owned()));
        }
        let rendered: String = messages
            .iter()
            .map(|message| format!("{:?}: {}\n", message.role, message.content))
            .collect();
        Ok(rendered.bytes().map(u32::from).collect())
    }

    fn decoder(&self) -> Box<dyn Decoder> {
        Box::new(ByteDecoder(Vec::new()))
    }
}

struct ByteDecoder(Vec<u8>);

impl Decoder for ByteDecoder {
    fn push(&mut self, token: u32) -> Option<String> {
        self.0.push(u8::try_from(token).unwrap());
        let text = std::str::from_utf8(&self.0).ok()?.to_owned();
        self.0.clear();
        Some(text)
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
