//! Answers that come in chunks.
//!
//! [`ChatChunks`] and [`CompletionChunks`] make the chunks of one answer, all with the same id, time and model. Their
//! order: `start` (chat only: the role), `text` any number of times, `finish`, `usage` if it was asked for. After them
//! comes [`sse::DONE`](crate::sse::DONE).

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::response::{AnswerRole, Completion, CompletionChoice, FinishReason, Object, Usage, present};

/// One `data:` line of a chat stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChatCompletionChunk {
    /// Names the answer; the same in all chunks.
    pub id: Arc<str>,
    /// Always `chat.completion.chunk`.
    pub object: Object,
    /// When the answer was begun, in seconds since the epoch; the same in all chunks.
    pub created: i64,
    /// The model that makes it.
    pub model: Arc<str>,
    /// Exactly one; none in the chunk that brings the usage.
    pub choices: Vec<ChatChoiceDelta>,
    /// Left out unless it was asked for, and then null in all chunks but the last.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "present")]
    pub usage: Option<Option<Usage>>,
}

/// What is new of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatChoiceDelta {
    /// Number of the answer among those that were asked for.
    pub index: u32,
    /// What is new.
    pub delta: Delta,
    /// Why it ended; null in all but the last chunk that has a choice.
    pub finish_reason: Option<FinishReason>,
}

/// What is new of a message.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Delta {
    /// Who speaks: in the first chunk only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<AnswerRole>,
    /// Whole characters to append.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}

/// Makes the chunks of one chat answer.
#[derive(Debug, Clone)]
pub struct ChatChunks {
    head: Head,
}

/// Makes the chunks of one completion.
#[derive(Debug, Clone)]
pub struct CompletionChunks {
    head: Head,
}

/// What all chunks of an answer have in common.
#[derive(Debug, Clone)]
struct Head {
    id: Arc<str>,
    created: i64,
    model: Arc<str>,
    include_usage: bool,
}

impl Head {
    /// The `usage` of a chunk that does not bring it.
    fn no_usage(&self) -> Option<Option<Usage>> {
        self.include_usage.then_some(None)
    }
}

impl ChatChunks {
    /// Those of the answer with this id, begun at `created` (seconds since the epoch).
    pub fn new(id: Arc<str>, created: i64, model: Arc<str>, include_usage: bool) -> Self {
        let head = Head {
            id,
            created,
            model,
            include_usage,
        };
        Self { head }
    }

    /// The first chunk: the role, and an empty text.
    pub fn start(&self) -> ChatCompletionChunk {
        let delta = Delta {
            role: Some(AnswerRole::Assistant),
            content: Some(String::new()),
        };
        self.choice(delta, None)
    }

    /// More text.
    pub fn text(&self, text: String) -> ChatCompletionChunk {
        let delta = Delta {
            role: None,
            content: Some(text),
        };
        self.choice(delta, None)
    }

    /// The last chunk that has a choice: nothing new, and why it ended.
    pub fn finish(&self, reason: FinishReason) -> ChatCompletionChunk {
        self.choice(Delta::default(), Some(reason))
    }

    /// The chunk with the usage, if it was asked for.
    pub fn usage(&self, usage: Usage) -> Option<ChatCompletionChunk> {
        self.head
            .include_usage
            .then(|| self.chunk(Vec::new(), Some(Some(usage))))
    }

    fn choice(&self, delta: Delta, finish_reason: Option<FinishReason>) -> ChatCompletionChunk {
        let choice = ChatChoiceDelta {
            index: 0,
            delta,
            finish_reason,
        };
        self.chunk(vec![choice], self.head.no_usage())
    }

    fn chunk(&self, choices: Vec<ChatChoiceDelta>, usage: Option<Option<Usage>>) -> ChatCompletionChunk {
        ChatCompletionChunk {
            id: Arc::clone(&self.head.id),
            object: Object::ChatCompletionChunk,
            created: self.head.created,
            model: Arc::clone(&self.head.model),
            choices,
            usage,
        }
    }
}

impl CompletionChunks {
    /// Those of the answer with this id, begun at `created` (seconds since the epoch).
    pub fn new(id: Arc<str>, created: i64, model: Arc<str>, include_usage: bool) -> Self {
        let head = Head {
            id,
            created,
            model,
            include_usage,
        };
        Self { head }
    }

    /// More text.
    pub fn text(&self, text: String) -> Completion {
        self.chunk(vec![CompletionChoice::new(text, None)], self.head.no_usage())
    }

    /// The last chunk that has a choice: nothing new, and why it ended.
    pub fn finish(&self, reason: FinishReason) -> Completion {
        let choice = CompletionChoice::new(String::new(), Some(reason));
        self.chunk(vec![choice], self.head.no_usage())
    }

    /// The chunk with the usage, if it was asked for.
    pub fn usage(&self, usage: Usage) -> Option<Completion> {
        self.head
            .include_usage
            .then(|| self.chunk(Vec::new(), Some(Some(usage))))
    }

    fn chunk(&self, choices: Vec<CompletionChoice>, usage: Option<Option<Usage>>) -> Completion {
        Completion {
            id: Arc::clone(&self.head.id),
            object: Object::TextCompletion,
            created: self.head.created,
            model: Arc::clone(&self.head.model),
            choices,
            usage,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn chunks(include_usage: bool) -> ChatChunks {
        ChatChunks::new("chatcmpl-1".into(), 7, "m".into(), include_usage)
    }

    #[test]
    fn the_role_comes_first_and_once_and_the_finish_reason_last() {
        let chunks = chunks(false);
        let made = [
            chunks.start(),
            chunks.text("Hi".into()),
            chunks.finish(FinishReason::Length),
        ];
        let deltas = [
            json!({"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": null}),
            json!({"index": 0, "delta": {"content": "Hi"}, "finish_reason": null}),
            json!({"index": 0, "delta": {}, "finish_reason": "length"}),
        ];
        for (chunk, delta) in made.iter().zip(deltas) {
            let expected = json!({
                "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 7, "model": "m", "choices": [delta],
            });
            assert_eq!(serde_json::to_value(chunk).unwrap(), expected);
            assert_eq!(&serde_json::from_value::<ChatCompletionChunk>(expected).unwrap(), chunk);
        }
        assert_eq!(chunks.usage(Usage::new(1, 1)), None);
    }

    #[test]
    fn usage_that_was_asked_for_is_null_until_its_own_chunk_without_choices() {
        let chunks = chunks(true);
        let text = serde_json::to_value(chunks.text("Hi".into())).unwrap();
        assert!(text.as_object().unwrap().contains_key("usage") && text["usage"].is_null());
        assert_eq!(
            serde_json::from_value::<ChatCompletionChunk>(text).unwrap().usage,
            Some(None)
        );
        let usage = serde_json::to_value(chunks.usage(Usage::new(3, 4))).unwrap();
        assert_eq!(
            (&usage["choices"], &usage["usage"]["total_tokens"]),
            (&json!([]), &json!(7))
        );
    }

    #[test]
    fn chunks_of_a_completion_carry_text() {
        let chunks = CompletionChunks::new("cmpl-1".into(), 7, "m".into(), true);
        let text = serde_json::to_value(chunks.text(" upon".into())).unwrap();
        let expected = json!({
            "id": "cmpl-1", "object": "text_completion", "created": 7, "model": "m", "usage": null,
            "choices": [{"text": " upon", "index": 0, "logprobs": null, "finish_reason": null}],
        });
        assert_eq!(text, expected);
        let last = chunks.finish(FinishReason::Stop);
        assert_eq!(
            (last.choices[0].text.as_str(), last.choices[0].finish_reason),
            ("", Some(FinishReason::Stop))
        );
        assert_eq!(chunks.usage(Usage::new(3, 4)).unwrap().choices, []);
    }
}
