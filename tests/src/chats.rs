//! Chats with the small chat model, for scenarios about its answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::{http, models};

/// The tokens with which SmolLM2 ends an answer.
const END_TOKENS: [&str; 2] = ["0", "2"];

/// Far more tokens than any scenario waits for, and little enough that several such answers fit the KV cache.
const ENDLESS: u32 = 3_000;

/// A greedy chat of one question, to [`models::SMOLLM2`], with these fields on top or instead.
pub fn ask(question: &str, fields: &Value) -> Value {
    let body = json!({
        "model": models::SMOLLM2,
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": 24,
    });
    with(body, fields)
}

/// A body with these fields on top or instead.
pub fn with(mut body: Value, fields: &Value) -> Value {
    for (key, value) in fields.as_object().expect("fields are an object") {
        body[key] = value.clone();
    }
    body
}

/// What a chat's chunks say together, in the choice of this number.
pub fn streamed_text(chunks: &[Value], choice: u64) -> String {
    let choices = chunks.iter().map(|chunk| &chunk["choices"][0]);
    let ours = choices.filter(|said| said["index"] == choice);
    ours.filter_map(|said| said["delta"]["content"].as_str()).collect()
}

/// A streamed chat that does not end by itself, read by a task of its own. Dropping it leaves the chat.
#[derive(Debug)]
pub struct Endless {
    pieces: Arc<AtomicUsize>,
    reader: JoinHandle<()>,
}

impl Endless {
    /// Begins one, and waits for its first piece of text.
    pub async fn begin(chat_url: &str, question: &str) -> Self {
        let never = END_TOKENS.map(|token| (token.to_owned(), json!(-100)));
        let fields = json!({"stream": true, "max_tokens": ENDLESS, "logit_bias": Value::from_iter(never)});
        let mut chunks = http::post_stream(chat_url.to_owned(), &ask(question, &fields)).await;
        let pieces = Arc::<AtomicUsize>::default();
        let reader = tokio::spawn({
            let pieces = Arc::clone(&pieces);
            async move {
                while let Some(chunk) = chunks.next().await {
                    let chunk: Value = serde_json::from_str(&chunk).expect("an endless chat has no end");
                    let text = chunk["choices"][0]["delta"]["content"].as_str().unwrap_or_default();
                    pieces.fetch_add(usize::from(!text.is_empty()), Ordering::Relaxed);
                }
            }
        });
        let endless = Self { pieces, reader };
        crate::eventually("a chat has begun", async || (endless.pieces() > 0).then_some(())).await;
        endless
    }

    /// Pieces of text read so far: about one a token.
    pub fn pieces(&self) -> usize {
        self.pieces.load(Ordering::Relaxed)
    }

    /// Whether it is still being written.
    pub fn goes_on(&self) -> bool {
        !self.reader.is_finished()
    }
}

impl Drop for Endless {
    fn drop(&mut self) {
        self.reader.abort();
    }
}
