//! The server under examination: how it is asked, and the answers that several checks share.

use std::cell::RefCell;
use std::time::Duration;

use anyhow::{Context, bail};
use daemon::Secret;
use reqwest::{Method, Response};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use super::wire::{Reply, Stream};
use super::{MAX_REQUESTS, Wrong};
use crate::api::root_cause;
use crate::cli::BaseUrl;

/// Limit of one request: a model may have to be loaded for it.
const TIMEOUT: Duration = Duration::from_secs(300);
/// A question whose answers are long and differ.
pub(super) const QUESTION: &str = "Write a story about a llama and a bee.";
/// Tokens of the answers that are compared.
pub(super) const LONG: u32 = 24;

type Shared<T> = OnceCell<Result<T, Wrong>>;

/// The server.
pub(super) struct Subject {
    http: reqwest::Client,
    base: String,
    key: Option<Secret>,
    model: String,
    /// Between two looks at what the server still does.
    pub(super) pause: Duration,
    /// Answer to the list of models.
    pub(super) list: Reply,
    /// Every reply, for what they have in common.
    seen: RefCell<Vec<Reply>>,
    sent: RefCell<usize>,
    greedy: Shared<Value>,
    stream: Shared<Stream>,
    embedding: Shared<Value>,
    tool_call: Shared<Value>,
}

impl Subject {
    /// Asks for the list of models and settles on one of them.
    pub(super) async fn meet(
        http: reqwest::Client,
        base: &BaseUrl,
        key: Option<Secret>,
        model: Option<&str>,
    ) -> anyhow::Result<Self> {
        let mut subject = Self {
            http,
            base: base.to_string(),
            key,
            model: String::new(),
            pause: super::manners::PAUSE,
            list: Reply {
                asked: String::new(),
                status: 0,
                headers: Default::default(),
                body: Vec::new(),
            },
            seen: RefCell::default(),
            sent: RefCell::default(),
            greedy: OnceCell::new(),
            stream: OnceCell::new(),
            embedding: OnceCell::new(),
            tool_call: OnceCell::new(),
        };
        let list = subject.request(Method::GET, "/v1/models").send().await;
        let list = list.map_err(|error| anyhow::anyhow!(root_cause(&error)));
        let list = list.with_context(|| format!("nothing answers at {base}; check the address"))?;
        *subject.sent.borrow_mut() += 1;
        subject.list = subject
            .read("GET /v1/models".to_owned(), list)
            .await
            .map_err(|error| anyhow::anyhow!(root_cause(&error)))?;
        if subject.list.status == 401 {
            bail!("{base} wants a key, or another one: pass it with --api-key");
        }
        let first = || {
            let list: Value = serde_json::from_slice(&subject.list.body).ok()?;
            Some(list["data"][0]["id"].as_str()?.to_owned())
        };
        subject.model = match model {
            Some(model) => model.to_owned(),
            None => first().with_context(|| format!("{base} lists no model: name one with --model"))?,
        };
        Ok(subject)
    }

    /// The model that is asked.
    pub(super) fn model(&self) -> &str {
        &self.model
    }

    /// Requests so far.
    pub(super) fn requests(&self) -> usize {
        *self.sent.borrow()
    }

    /// Whether a key is sent.
    pub(super) fn has_key(&self) -> bool {
        self.key.is_some()
    }

    /// Every reply so far.
    pub(super) fn replies(&self) -> Vec<Reply> {
        self.seen.borrow().clone()
    }

    /// A `GET`.
    pub(super) async fn get(&self, path: &str) -> Result<Reply, Wrong> {
        self.exchange(Method::GET, path, self.request(Method::GET, path)).await
    }

    /// A `GET` with another key than the right one.
    pub(super) async fn get_as(&self, path: &str, key: Option<&str>) -> Result<Reply, Wrong> {
        let request = self.http.get(format!("{}{path}", self.base));
        let request = match key {
            Some(key) => request.bearer_auth(key),
            None => request,
        };
        self.exchange(Method::GET, path, request).await
    }

    /// A `POST` of bytes that claim to be JSON.
    pub(super) async fn post_text(&self, path: &str, body: &'static str) -> Result<Reply, Wrong> {
        let request = self
            .request(Method::POST, path)
            .header("content-type", "application/json");
        self.exchange(Method::POST, path, request.body(body)).await
    }

    /// A `POST` of these fields and the model's name.
    pub(super) async fn post(&self, path: &str, fields: Value) -> Result<Reply, Wrong> {
        let request = self.request(Method::POST, path).json(&self.body(fields));
        self.exchange(Method::POST, path, request).await
    }

    /// A chat: a short greedy answer to [`QUESTION`], changed by these fields.
    pub(super) async fn chat(&self, fields: Value) -> Result<Reply, Wrong> {
        self.post("/v1/chat/completions", chat_with(fields)).await
    }

    /// The same as a stream.
    pub(super) async fn chat_stream(&self, mut fields: Value) -> Result<Stream, Wrong> {
        fields["stream"] = true.into();
        Stream::of(self.chat(fields).await?)
    }

    /// A long stream whose reply is not read.
    pub(super) async fn open_stream(&self, max_tokens: u32) -> Result<Response, Wrong> {
        let path = "/v1/chat/completions";
        self.count()?;
        let fields = chat_with(json!({"stream": true, "max_tokens": max_tokens}));
        let sending = self.request(Method::POST, path).json(&self.body(fields)).send();
        sending.await.map_err(|error| failed(path, &error))
    }

    /// The greedy answer of [`LONG`] tokens at most, with which others are compared.
    pub(super) async fn greedy(&self) -> Result<&Value, Wrong> {
        shared(&self.greedy, async {
            self.chat(json!({"max_tokens": LONG})).await?.success()
        })
        .await
    }

    /// The same as a stream, with its usage.
    pub(super) async fn stream(&self) -> Result<&Stream, Wrong> {
        let fields = json!({"max_tokens": LONG, "stream_options": {"include_usage": true}});
        shared(&self.stream, self.chat_stream(fields)).await
    }

    /// Two texts as vectors of numbers.
    pub(super) async fn embedding(&self) -> Result<&Value, Wrong> {
        let fields = json!({"input": ["a llama", "a bee"], "encoding_format": "float"});
        shared(&self.embedding, async {
            self.post("/v1/embeddings", fields).await?.offered()
        })
        .await
    }

    /// An answer that must call a tool.
    pub(super) async fn tool_call(&self) -> Result<&Value, Wrong> {
        shared(&self.tool_call, async {
            self.chat(super::structured::forced_call()).await?.offered()
        })
        .await
    }

    fn body(&self, mut fields: Value) -> Value {
        if fields.get("model").is_none() {
            fields["model"] = self.model.as_str().into();
        }
        fields
    }

    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let request = self
            .http
            .request(method, format!("{}{path}", self.base))
            .timeout(TIMEOUT);
        match &self.key {
            Some(key) => request.bearer_auth(key.expose()),
            None => request,
        }
    }

    fn count(&self) -> Result<(), Wrong> {
        let mut sent = self.sent.borrow_mut();
        if *sent >= MAX_REQUESTS {
            return Err(Wrong::Skip(format!(
                "{MAX_REQUESTS} requests were sent, and no more are"
            )));
        }
        *sent += 1;
        Ok(())
    }

    async fn exchange(&self, method: Method, path: &str, request: reqwest::RequestBuilder) -> Result<Reply, Wrong> {
        self.count()?;
        let asked = format!("{method} {path}");
        let response = request
            .timeout(TIMEOUT)
            .send()
            .await
            .map_err(|error| failed(&asked, &error))?;
        self.read(asked.clone(), response)
            .await
            .map_err(|error| failed(&asked, &error))
    }

    async fn read(&self, asked: String, response: Response) -> Result<Reply, reqwest::Error> {
        let reply = Reply {
            asked,
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            body: response.bytes().await?.to_vec(),
        };
        self.seen.borrow_mut().push(reply.clone());
        Ok(reply)
    }
}

fn chat_with(fields: Value) -> Value {
    let mut body = json!({
        "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 4, "temperature": 0,
    });
    if let (Some(body), Value::Object(fields)) = (body.as_object_mut(), fields) {
        // A field that is null is left out altogether.
        for (name, value) in fields {
            match value {
                Value::Null => drop(body.remove(&name)),
                value => drop(body.insert(name, value)),
            }
        }
    }
    body
}

fn failed(asked: &str, error: &reqwest::Error) -> Wrong {
    Wrong::Fail(format!("{asked}: no whole answer: {}", root_cause(error)))
}

/// What was found once holds for all that ask.
async fn shared<T>(cell: &Shared<T>, work: impl Future<Output = Result<T, Wrong>>) -> Result<&T, Wrong> {
    cell.get_or_init(|| work).await.as_ref().map_err(Clone::clone)
}
