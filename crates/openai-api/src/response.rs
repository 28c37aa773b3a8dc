//! Answers that come as one JSON object.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::logprobs::{ChatLogprobs, CompletionLogprobs};
use crate::messages::ToolCall;

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
    /// [`Embedding`](crate::Embedding)
    #[serde(rename = "embedding")]
    Embedding,
    /// [`Model`](crate::Model)
    #[serde(rename = "model")]
    Model,
    /// [`ModelList`](crate::ModelList) and [`EmbeddingList`](crate::EmbeddingList)
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
    /// The model called tools.
    ToolCalls,
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

    /// The same with so many tokens of the prompt from a cache.
    pub fn with_cached(mut self, cached_tokens: u32) -> Self {
        self.prompt_tokens_details.cached_tokens = cached_tokens;
        self
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
    /// As many as were asked for, in order of their numbers.
    pub choices: Vec<ChatChoice>,
    /// What it took.
    pub usage: Usage,
}

impl ChatCompletion {
    /// A complete answer.
    pub fn new(id: Arc<str>, created: i64, model: Arc<str>, choices: Vec<ChatChoice>, usage: Usage) -> Self {
        Self {
            id,
            object: Object::ChatCompletion,
            created,
            model,
            choices,
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
    /// Log probabilities of the text's tokens; null unless they were asked for.
    pub logprobs: Option<ChatLogprobs>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// The stop text that ended it; left out if none did. vLLM's member: OpenAI's API does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<String>,
}

/// What the assistant says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswerMessage {
    /// Always the assistant.
    pub role: AnswerRole,
    /// The text; null if there are only tool calls.
    pub content: Option<String>,
    /// Always null.
    pub refusal: Option<String>,
    /// The tools that it calls; left out if it calls none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
}

impl AnswerMessage {
    /// A text and calls of tools. An empty text beside calls is none.
    pub fn new(text: String, tool_calls: Vec<ToolCall>) -> Self {
        Self {
            role: AnswerRole::Assistant,
            content: (tool_calls.is_empty() || !text.is_empty()).then_some(text),
            refusal: None,
            tool_calls,
        }
    }
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
    /// As many as were asked for, in order of their numbers; in a chunk one, or none if it brings the usage.
    pub choices: Vec<CompletionChoice>,
    /// What it took. In a stream: left out unless it was asked for, and then null in all chunks but the last.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "present")]
    pub usage: Option<Option<Usage>>,
}

impl Completion {
    /// A complete answer.
    pub fn new(id: Arc<str>, created: i64, model: Arc<str>, choices: Vec<CompletionChoice>, usage: Usage) -> Self {
        Self {
            id,
            object: Object::TextCompletion,
            created,
            model,
            choices,
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
    /// Log probabilities of the tokens; null unless they were asked for.
    pub logprobs: Option<CompletionLogprobs>,
    /// Why it ended; null in all chunks of this choice but the last.
    pub finish_reason: Option<FinishReason>,
    /// The stop text that ended it; left out if none did. vLLM's member: OpenAI's API does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<String>,
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
    use crate::logprobs::TokenLogprob;

    fn choice(index: u32, message: AnswerMessage, reason: FinishReason) -> ChatChoice {
        ChatChoice {
            index,
            message,
            logprobs: None,
            finish_reason: reason,
            stop_reason: None,
        }
    }

    #[test]
    fn a_chat_answer_has_openais_shape() {
        let said = AnswerMessage::new("Hi".into(), vec![]);
        let mut first = choice(0, said.clone(), FinishReason::Stop);
        let token = TokenLogprob::new(b"Hi".to_vec(), -0.5, vec![]);
        first.logprobs = Some(ChatLogprobs::new(vec![token]));
        let choices = vec![first, choice(1, said, FinishReason::Length)];
        let usage = Usage::new(5, 2).with_cached(4);
        let answer = ChatCompletion::new("chatcmpl-1".into(), 7, "m".into(), choices, usage);
        let message = json!({"role": "assistant", "content": "Hi", "refusal": null});
        let token = json!({"token": "Hi", "logprob": -0.5, "bytes": [72, 105], "top_logprobs": []});
        let expected = json!({
            "id": "chatcmpl-1", "object": "chat.completion", "created": 7, "model": "m",
            "choices": [
                {
                    "index": 0, "message": message, "logprobs": {"content": [token], "refusal": null},
                    "finish_reason": "stop",
                },
                {"index": 1, "message": message, "logprobs": null, "finish_reason": "length"},
            ],
            "usage": {
                "prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7,
                "prompt_tokens_details": {"cached_tokens": 4},
            },
        });
        assert_eq!(serde_json::to_value(&answer).unwrap(), expected);
        assert_eq!(serde_json::from_value::<ChatCompletion>(expected).unwrap(), answer);
    }

    #[test]
    fn an_answer_that_calls_tools_has_openais_shape() {
        let call = ToolCall {
            id: "call_1".to_owned(),
            name: "weather".to_owned(),
            arguments: r#"{"city": "Paris"}"#.to_owned(),
        };
        let message = AnswerMessage::new(String::new(), vec![call.clone()]);
        let answer = choice(0, message, FinishReason::ToolCalls);
        let expected = json!({
            "index": 0,
            "message": {
                "role": "assistant", "content": null, "refusal": null,
                "tool_calls": [{
                    "id": "call_1", "type": "function",
                    "function": {"name": "weather", "arguments": "{\"city\": \"Paris\"}"},
                }],
            },
            "logprobs": null,
            "finish_reason": "tool_calls",
        });
        assert_eq!(serde_json::to_value(&answer).unwrap(), expected);
        assert_eq!(serde_json::from_value::<ChatChoice>(expected).unwrap(), answer);
        let with_text = AnswerMessage::new("One moment.".into(), vec![call]);
        assert_eq!(with_text.content.as_deref(), Some("One moment."));
        assert_eq!(AnswerMessage::new(String::new(), vec![]).content.as_deref(), Some(""));
    }

    #[test]
    fn a_completion_has_openais_shape() {
        let choices = vec![CompletionChoice {
            text: " upon".into(),
            index: 0,
            logprobs: None,
            finish_reason: Some(FinishReason::Length),
            stop_reason: None,
        }];
        let answer = Completion::new("cmpl-1".into(), 7, "m".into(), choices, Usage::new(1, 16));
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
