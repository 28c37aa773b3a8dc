//! Answers that come in chunks.
//!
//! [`ChatChunks`] and [`CompletionChunks`] make the chunks of one answer, all with the same id, time and model. Their order
//! for each choice: `start` (chat only: the role), then `text` and (chat only) tool calls any number of times, `finish`. The
//! chunks of several choices may come mixed. Behind the last of them: `usage` if it was asked for, and
//! [`sse::DONE`](crate::sse::DONE).

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::logprobs::{ChatLogprobs, CompletionLogprobs};
use crate::response::{AnswerRole, Completion, CompletionChoice, FinishReason, Object, Usage, present};
use crate::tools::ToolKind;

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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChatChoiceDelta {
    /// Number of the answer among those that were asked for.
    pub index: u32,
    /// What is new.
    pub delta: Delta,
    /// Log probabilities of the tokens that are new; left out unless they were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<ChatLogprobs>,
    /// Why it ended; null in all chunks of this choice but the last.
    pub finish_reason: Option<FinishReason>,
    /// The stop text that ended it; left out if none did. vLLM's member: OpenAI's API does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<String>,
}

/// What is new of a message.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Delta {
    /// Who speaks: in the first chunk of a choice only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<AnswerRole>,
    /// Whole characters to append.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// Calls of tools that are new, or grow.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCallDelta>,
}

/// What is new of a tool call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCallDelta {
    /// Number of the call in the message.
    pub index: u32,
    /// Names the call: in its first chunk only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Of its first chunk only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub r#type: Option<ToolKind>,
    /// What is new of the function.
    pub function: FunctionDelta,
}

impl ToolCallDelta {
    /// The first of a call: `index` numbers the message's calls from 0; the arguments may have begun.
    pub fn first(index: u32, id: String, name: String, arguments: String) -> Self {
        let name = Some(name);
        Self {
            index,
            id: Some(id),
            r#type: Some(ToolKind::Function),
            function: FunctionDelta { name, arguments },
        }
    }

    /// More of the arguments of a call that has begun.
    pub fn more(index: u32, arguments: String) -> Self {
        let name = None;
        Self {
            index,
            id: None,
            r#type: None,
            function: FunctionDelta { name, arguments },
        }
    }
}

/// Part of [`ToolCallDelta`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionDelta {
    /// The function's name: in its first chunk only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Whole characters to append to the arguments.
    pub arguments: String,
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

    /// The first chunk of a choice: the role, and an empty text.
    pub fn start(&self, index: u32) -> ChatCompletionChunk {
        let delta = Delta {
            role: Some(AnswerRole::Assistant),
            content: Some(String::new()),
            tool_calls: Vec::new(),
        };
        self.choice(index, delta, None, None)
    }

    /// More text of a choice, and the tokens that it came of if their log probabilities were asked for. The text is empty if
    /// these tokens gave none yet.
    pub fn text(&self, index: u32, text: String, logprobs: Option<ChatLogprobs>) -> ChatCompletionChunk {
        let delta = Delta {
            content: Some(text),
            ..Delta::default()
        };
        self.choice(index, delta, logprobs, None)
    }

    /// More of a choice's calls of tools, and of its text, if there is some.
    pub fn calls(
        &self,
        index: u32,
        calls: Vec<ToolCallDelta>,
        text: Option<String>,
        logprobs: Option<ChatLogprobs>,
    ) -> ChatCompletionChunk {
        let delta = Delta {
            role: None,
            content: text,
            tool_calls: calls,
        };
        self.choice(index, delta, logprobs, None)
    }

    /// The last chunk of a choice: nothing new, and why it ended.
    pub fn finish(&self, index: u32, reason: FinishReason) -> ChatCompletionChunk {
        self.choice(index, Delta::default(), None, Some(reason))
    }

    /// The same, with the stop text that ended the choice, if one did.
    pub fn finish_at(&self, index: u32, reason: FinishReason, stop: Option<String>) -> ChatCompletionChunk {
        let mut chunk = self.finish(index, reason);
        if let [choice] = chunk.choices.as_mut_slice() {
            choice.stop_reason = stop;
        }
        chunk
    }

    /// The chunk with the usage, if it was asked for.
    pub fn usage(&self, usage: Usage) -> Option<ChatCompletionChunk> {
        self.head
            .include_usage
            .then(|| self.chunk(Vec::new(), Some(Some(usage))))
    }

    fn choice(
        &self,
        index: u32,
        delta: Delta,
        logprobs: Option<ChatLogprobs>,
        finish_reason: Option<FinishReason>,
    ) -> ChatCompletionChunk {
        let choice = ChatChoiceDelta {
            index,
            delta,
            logprobs,
            finish_reason,
            stop_reason: None,
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

    /// More text of a choice, and the tokens that it came of if their log probabilities were asked for. The text is empty if
    /// these tokens gave none yet.
    pub fn text(&self, index: u32, text: String, logprobs: Option<CompletionLogprobs>) -> Completion {
        self.choice(index, text, logprobs, None)
    }

    /// The last chunk of a choice: nothing new, and why it ended.
    pub fn finish(&self, index: u32, reason: FinishReason) -> Completion {
        self.choice(index, String::new(), None, Some(reason))
    }

    /// The same, with the stop text that ended the choice, if one did.
    pub fn finish_at(&self, index: u32, reason: FinishReason, stop: Option<String>) -> Completion {
        let mut chunk = self.finish(index, reason);
        if let [choice] = chunk.choices.as_mut_slice() {
            choice.stop_reason = stop;
        }
        chunk
    }

    /// The chunk with the usage, if it was asked for.
    pub fn usage(&self, usage: Usage) -> Option<Completion> {
        self.head
            .include_usage
            .then(|| self.chunk(Vec::new(), Some(Some(usage))))
    }

    fn choice(
        &self,
        index: u32,
        text: String,
        logprobs: Option<CompletionLogprobs>,
        finish_reason: Option<FinishReason>,
    ) -> Completion {
        let choice = CompletionChoice {
            text,
            index,
            logprobs,
            finish_reason,
            stop_reason: None,
        };
        self.chunk(vec![choice], self.head.no_usage())
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
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::logprobs::TokenLogprob;

    fn chunks(include_usage: bool) -> ChatChunks {
        ChatChunks::new("chatcmpl-1".into(), 7, "m".into(), include_usage)
    }

    #[test]
    fn each_choice_begins_with_the_role_and_ends_with_the_reason() {
        let chunks = chunks(false);
        let made = [
            chunks.start(0),
            chunks.start(1),
            chunks.text(1, "Hi".into(), None),
            chunks.finish(1, FinishReason::Length),
            chunks.text(0, "Ho".into(), None),
            chunks.finish_at(0, FinishReason::Stop, Some("!".into())),
        ];
        let deltas = [
            json!({"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": null}),
            json!({"index": 1, "delta": {"role": "assistant", "content": ""}, "finish_reason": null}),
            json!({"index": 1, "delta": {"content": "Hi"}, "finish_reason": null}),
            json!({"index": 1, "delta": {}, "finish_reason": "length"}),
            json!({"index": 0, "delta": {"content": "Ho"}, "finish_reason": null}),
            json!({"index": 0, "delta": {}, "finish_reason": "stop", "stop_reason": "!"}),
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
    fn a_tool_call_is_named_once_and_its_arguments_come_in_pieces() {
        let chunks = chunks(false);
        let made = [
            chunks.calls(
                0,
                vec![ToolCallDelta::first(1, "call_2".into(), "weather".into(), "{".into())],
                Some("Wait.".into()),
                None,
            ),
            chunks.calls(0, vec![ToolCallDelta::more(1, "\"city\":".into())], None, None),
            chunks.finish(0, FinishReason::ToolCalls),
        ];
        let choices = [
            json!({"index": 0, "finish_reason": null, "delta": {"content": "Wait.", "tool_calls": [
                {"index": 1, "id": "call_2", "type": "function", "function": {"name": "weather", "arguments": "{"}},
            ]}}),
            json!({"index": 0, "finish_reason": null, "delta": {"tool_calls": [
                {"index": 1, "function": {"arguments": "\"city\":"}},
            ]}}),
            json!({"index": 0, "finish_reason": "tool_calls", "delta": {}}),
        ];
        for (chunk, choice) in made.iter().zip(choices) {
            let written = serde_json::to_value(chunk).unwrap();
            assert_eq!(written["choices"], json!([choice]));
            assert_eq!(&serde_json::from_value::<ChatCompletionChunk>(written).unwrap(), chunk);
        }
    }

    #[test]
    fn log_probabilities_come_with_the_text_of_their_tokens() {
        let token = TokenLogprob::new(b"Hi".to_vec(), -0.5, vec![]);
        let chunk = chunks(false).text(0, "Hi".into(), Some(ChatLogprobs::new(vec![token])));
        let written = serde_json::to_value(&chunk).unwrap();
        let expected = json!({
            "content": [{"token": "Hi", "logprob": -0.5, "bytes": [72, 105], "top_logprobs": []}], "refusal": null,
        });
        assert_eq!(written["choices"][0]["logprobs"], expected);
        assert_eq!(serde_json::from_value::<ChatCompletionChunk>(written).unwrap(), chunk);
    }

    #[test]
    fn usage_that_was_asked_for_is_null_until_its_own_chunk_without_choices() {
        let chunks = chunks(true);
        let text = serde_json::to_value(chunks.text(0, "Hi".into(), None)).unwrap();
        assert!(text.as_object().unwrap().contains_key("usage") && text["usage"].is_null());
        assert_eq!(
            serde_json::from_value::<ChatCompletionChunk>(text).unwrap().usage,
            Some(None)
        );
        let usage = serde_json::to_value(chunks.usage(Usage::new(3, 4).with_cached(2))).unwrap();
        assert_eq!(usage["choices"], json!([]));
        let expected = json!({
            "prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7, "prompt_tokens_details": {"cached_tokens": 2},
        });
        assert_eq!(usage["usage"], expected);
    }

    #[test]
    fn chunks_of_a_completion_carry_text() {
        let chunks = CompletionChunks::new("cmpl-1".into(), 7, "m".into(), true);
        let text = serde_json::to_value(chunks.text(2, " upon".into(), None)).unwrap();
        let expected = json!({
            "id": "cmpl-1", "object": "text_completion", "created": 7, "model": "m", "usage": null,
            "choices": [{"text": " upon", "index": 2, "logprobs": null, "finish_reason": null}],
        });
        assert_eq!(text, expected);
        let last = chunks.finish(2, FinishReason::Stop);
        assert_eq!(
            (last.choices[0].text.as_str(), last.choices[0].finish_reason),
            ("", Some(FinishReason::Stop))
        );
        assert_eq!(chunks.usage(Usage::new(3, 4)).unwrap().choices, []);
    }

    #[test]
    fn log_probabilities_of_a_completion_come_with_its_text() {
        let chunks = CompletionChunks::new("cmpl-1".into(), 7, "m".into(), false);
        let mut logprobs = CompletionLogprobs::default();
        logprobs.push(4, b" upon", Some(-0.5), [(" upon", -0.5)]);
        let chunk = chunks.text(0, " upon".into(), Some(logprobs));
        let written = serde_json::to_value(&chunk).unwrap();
        let expected = json!({
            "tokens": [" upon"], "token_logprobs": [-0.5], "top_logprobs": [{" upon": -0.5}], "text_offset": [4],
        });
        assert_eq!(written["choices"][0]["logprobs"], expected);
        assert_eq!(serde_json::from_value::<Completion>(written).unwrap(), chunk);
    }

    /// Adds a chunk to a message as OpenAI's clients do: texts are joined, other values must not come twice.
    fn join(whole: &mut Value, delta: &Value) {
        match (whole, delta) {
            (Value::Object(whole), Value::Object(delta)) => {
                for (name, value) in delta {
                    if name != "index" && whole.contains_key(name) {
                        join(&mut whole[name], value);
                    } else {
                        whole.insert(name.clone(), value.clone());
                    }
                }
            }
            (Value::Array(whole), Value::Array(delta)) => {
                for item in delta {
                    match whole.iter_mut().find(|there| there["index"] == item["index"]) {
                        Some(there) => join(there, item),
                        None => whole.push(item.clone()),
                    }
                }
            }
            (Value::String(whole), Value::String(delta)) => whole.push_str(delta),
            (whole, delta) => panic!("{delta} cannot be added to {whole}"),
        }
    }

    proptest! {
        #[test]
        fn a_client_that_joins_the_chunks_has_the_whole_message(
            texts in prop::collection::vec(any::<String>(), 0..4),
            calls in prop::collection::vec(("[a-z]{1,8}", prop::collection::vec(any::<String>(), 0..4)), 0..4),
        ) {
            let chunks = chunks(false);
            let mut made = vec![chunks.start(0)];
            made.extend(texts.iter().map(|text| chunks.text(0, text.clone(), None)));
            for (call, (name, pieces)) in (0..).zip(&calls) {
                let first = ToolCallDelta::first(call, format!("call_{call}"), name.clone(), String::new());
                made.push(chunks.calls(0, vec![first], None, None));
                let more = pieces.iter().map(|piece| ToolCallDelta::more(call, piece.clone()));
                made.extend(more.map(|delta| chunks.calls(0, vec![delta], None, None)));
            }
            made.push(chunks.finish(0, FinishReason::Stop));
            let mut message = json!({});
            for chunk in &made {
                join(&mut message, &serde_json::to_value(chunk).unwrap()["choices"][0]["delta"]);
            }
            let mut expected = json!({"role": "assistant", "content": texts.concat()});
            if !calls.is_empty() {
                let calls = (0..).zip(&calls).map(|(call, (name, pieces))| json!({
                    "index": call, "id": format!("call_{call}"), "type": "function",
                    "function": {"name": name, "arguments": pieces.concat()},
                }));
                expected["tool_calls"] = calls.collect();
            }
            prop_assert_eq!(message, expected);
        }
    }
}
