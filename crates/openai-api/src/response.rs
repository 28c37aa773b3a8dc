//! Answers that come as one JSON object.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The `object` of every answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Object {
    /// [`ChatCompletion`]
    #[serde(rename = "chat.completion")]
    ChatCompletion,
    /// [`ChatCompletionChunk`](crate::ChatCompletionChunk)
    #[serde(rename = "chat.completion.chunk")]
    ChatCompletionChunk,
    /// [`Completion`]
    #[serde(rename = "text_completion")]
    TextCompletion,
    /// [`Model`](crate::Model)
    #[serde(rename = "model")]
    Model,
    /// [`ModelList`](crate::ModelList)
    #[serde(rename = "list")]
    List,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model ended it, or a stop text was reached.
    Stop,
    /// The token limit or the end of the context was reached.
    Length,
}

/// Tokens of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the prompt, template included.
    pub prompt_tokens: u32,
    /// Tokens generated.
    pub completion_tokens: u32,
    /// Both together.
    pub total_tokens: u32,
    /// What is special about the prompt's tokens.
    #[serde(default)]
    pub prompt_tokens_details: PromptTokensDetails,
}

/// Part of [`Usage`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PromptTokensDetails {
    /// Tokens of the prompt that were found in a cache and not computed again.
    #[serde(default)]
    pub cached_tokens: u32,
}

impl Usage {
    /// Usage with nothing from a cache.
    pub fn new(prompt_tokens: u32, completion_tokens: u32) -> Self {
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens.saturating_add(completion_tokens),
            prompt_tokens_details: PromptTokensDetails::default(),
        }
    }
}

/// Answer to `POST /v1/chat/completions`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChatCompletion {
    /// Names the answer.
    pub id: Arc<str>,
    /// Always `chat.completion`.
    pub object: Object,
    /// When it was made, in seconds since the epoch.
    pub created: i64,
    /// The model that made it.
    pub model: Arc<str>,
    /// Exactly one.
    pub choices: Vec<ChatChoice>,
    /// What it took.
    pub usage: Usage,
}

impl ChatCompletion {
    /// A complete answer of the assistant.
    pub fn new(id: Arc<str>, created: i64, model: Arc<str>, text: String, reason: FinishReason, usage: Usage) -> Self {
        let message = AnswerMessage {
            role: AnswerRole::Assistant,
            content: Some(text),
            refusal: None,
        };
        let choice = ChatChoice {
            index: 0,
            message,
            logprobs: None,
            finish_reason: reason,
        };
        Self {
            id,
            object: Object::ChatCompletion,
            created,
            model,
            choices: vec![choice],
            usage,
        }
    }
}

/// An answer among those that were asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChatChoice {
    /// Its number.
    pub index: u32,
    /// The answer.
    pub message: AnswerMessage,
    /// Always null: not supported yet.
    pub logprobs: Option<Value>,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

/// What the assistant says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswerMessage {
    /// Always the assistant.
    pub role: AnswerRole,
    /// The text.
    pub content: Option<String>,
    /// Always null.
    pub refusal: Option<String>,
}

/// Who answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AnswerRole {
    /// The model.
    Assistant,
}

/// Answer to `POST /v1/completions`, and each chunk of its stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Completion {
    /// Names the answer; the same in all chunks.
    pub id: Arc<str>,
    /// Always `text_completion`.
    pub object: Object,
    /// When it was made, in seconds since the epoch; the same in all chunks.
    pub created: i64,
    /// The model that made it.
    pub model: Arc<str>,
    /// Exactly one; none in a chunk that brings the usage.
    pub choices: Vec<CompletionChoice>,
    /// What it took. In a stream: left out unless it was asked for, and then null in all chunks but the last.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "present")]
    pub usage: Option<Option<Usage>>,
}

impl Completion {
    /// A complete answer.
    pub fn new(id: Arc<str>, created: i64, model: Arc<str>, text: String, reason: FinishReason, usage: Usage) -> Self {
        Self {
            id,
            object: Object::TextCompletion,
            created,
            model,
            choices: vec![CompletionChoice::new(text, Some(reason))],
            usage: Some(Some(usage)),
        }
    }
}

/// An answer among those that were asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CompletionChoice {
    /// The text; in a chunk, what is new of it.
    pub text: String,
    /// Its number.
    pub index: u32,
    /// Always null: not supported yet.
    pub logprobs: Option<Value>,
    /// Why it ended; null in all chunks but the last that has a choice.
    pub finish_reason: Option<FinishReason>,
}

impl CompletionChoice {
    pub(crate) fn new(text: String, finish_reason: Option<FinishReason>) -> Self {
        Self {
            text,
            index: 0,
            logprobs: None,
            finish_reason,
        }
    }
}

/// A field that is absent (`None`), null (`Some(None)`) or there.
pub(crate) mod present {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<T: Serialize, S: Serializer>(
        value: &Option<Option<T>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        value.as_ref().and_then(Option::as_ref).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Option<T>>, D::Error> {
        Option::deserialize(deserializer).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_chat_answer_has_openais_shape() {
        let usage = Usage::new(5, 2);
        let answer = ChatCompletion::new(
            "chatcmpl-1".into(),
            7,
            "m".into(),
            "Hi".into(),
            FinishReason::Stop,
            usage,
        );
        let expected = json!({
            "id": "chatcmpl-1", "object": "chat.completion", "created": 7, "model": "m",
            "choices": [{
                "index": 0,
                "message": {"role": "assistant", "content": "Hi", "refusal": null},
                "logprobs": null,
                "finish_reason": "stop",
            }],
            "usage": {
                "prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7,
                "prompt_tokens_details": {"cached_tokens": 0},
            },
        });
        assert_eq!(serde_json::to_value(&answer).unwrap(), expected);
        assert_eq!(serde_json::from_value::<ChatCompletion>(expected).unwrap(), answer);
    }

    #[test]
    fn a_completion_has_openais_shape() {
        let usage = Usage::new(1, 16);
        let answer = Completion::new(
            "cmpl-1".into(),
            7,
            "m".into(),
            " upon".into(),
            FinishReason::Length,
            usage,
        );
        let expected = json!({
            "id": "cmpl-1", "object": "text_completion", "created": 7, "model": "m",
            "choices": [{"text": " upon", "index": 0, "logprobs": null, "finish_reason": "length"}],
            "usage": {
                "prompt_tokens": 1, "completion_tokens": 16, "total_tokens": 17,
                "prompt_tokens_details": {"cached_tokens": 0},
            },
        });
        assert_eq!(serde_json::to_value(&answer).unwrap(), expected);
        assert_eq!(serde_json::from_value::<Completion>(expected).unwrap(), answer);
    }
}
