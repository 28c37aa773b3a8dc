//! What an event says, read without building it.
//!
//! An event is read once while it is relayed, so nothing here allocates: texts stay as they are escaped in the JSON.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// The data of the event that ends a stream.
pub(super) const DONE: &[u8] = b"[DONE]";

/// A chunk of a chat or a completion, or an error in its place.
#[derive(Debug, Deserialize)]
pub(super) struct Chunk<'a> {
    /// Names the answer; as JSON.
    #[serde(borrow, default)]
    pub(super) id: Option<&'a RawValue>,
    /// What kind of chunk it is; as JSON.
    #[serde(borrow, default)]
    pub(super) object: Option<&'a RawValue>,
    /// When the answer was begun; as JSON.
    #[serde(borrow, default)]
    pub(super) created: Option<&'a RawValue>,
    /// The model, as the worker names it; as JSON.
    #[serde(borrow, default)]
    pub(super) model: Option<&'a RawValue>,
    /// What is new.
    #[serde(borrow, default)]
    pub(super) choices: Choices<'a>,
    /// What it took, where the chunk says so.
    #[serde(borrow, default)]
    usage: Option<&'a RawValue>,
    /// The worker could not go on.
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
}

/// The choices of a chunk: there is one, or none, unless several answers were asked for.
#[derive(Debug, Default)]
pub(super) struct Choices<'a> {
    /// The first of them.
    pub(super) first: Option<Choice<'a>>,
    /// Whether there are more.
    pub(super) has_more: bool,
}

/// What is new of one answer.
#[derive(Debug, Deserialize)]
pub(super) struct Choice<'a> {
    #[serde(default)]
    pub(super) index: u32,
    #[serde(borrow, default)]
    delta: Option<Delta<'a>>,
    #[serde(borrow, default)]
    text: Option<&'a RawValue>,
    #[serde(borrow, default)]
    logprobs: Option<&'a RawValue>,
    #[serde(borrow, default)]
    finish_reason: Option<&'a RawValue>,
}

#[derive(Debug, Deserialize)]
struct Delta<'a> {
    #[serde(borrow, default)]
    content: Option<&'a RawValue>,
    #[serde(borrow, default)]
    tool_calls: Option<&'a RawValue>,
    #[serde(borrow, default)]
    function_call: Option<&'a RawValue>,
    #[serde(borrow, default)]
    reasoning_content: Option<&'a RawValue>,
    #[serde(borrow, default)]
    reasoning: Option<&'a RawValue>,
    #[serde(borrow, default)]
    refusal: Option<&'a RawValue>,
}

impl<'a> Chunk<'a> {
    /// Reads the data of an event; `None` if it is no chunk.
    pub(super) fn read(data: &'a [u8]) -> Option<Self> {
        // Checked once as a whole, not text by text.
        serde_json::from_str(std::str::from_utf8(data).ok()?).ok()
    }

    /// Whether it is an error in place of a chunk.
    pub(super) fn is_error(&self) -> bool {
        self.error.is_some()
    }

    /// Its text, if it brings text of the only answer and nothing else.
    pub(super) fn mere_text(&self) -> Option<&'a str> {
        let choice = self.choices.first.as_ref()?;
        let has_more = self.choices.has_more
            || self.is_error()
            || choice.index > 0
            || choice.calls()
            || choice.speaks_aside()
            || choice.has_logprobs()
            || choice.is_finish();
        choice.text().ok().filter(|text| !has_more && !text.is_empty())
    }

    /// The tokens of the answer in all, where its usage tells them.
    pub(super) fn completion_tokens(&self) -> Option<u32> {
        #[derive(Deserialize)]
        struct Usage {
            completion_tokens: u32,
        }
        let usage: Usage = serde_json::from_str(self.usage?.get()).ok()?;
        Some(usage.completion_tokens)
    }

    /// Whether it is the chunk that brings the usage, behind the last choice.
    pub(super) fn is_usage(&self) -> bool {
        self.usage.is_some() && self.choices.first.is_none()
    }
}

impl<'a> Choice<'a> {
    /// The text that is new, as it stands between the quotes of its JSON string; empty if there is none. `Err` if it is
    /// something else than a text.
    pub(super) fn text(&self) -> Result<&'a str, NoText> {
        let content = self.delta.as_ref().and_then(|delta| delta.content);
        let Some(raw) = content.or(self.text) else {
            return Ok("");
        };
        let inner = raw.get().strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
        inner.ok_or(NoText)
    }

    /// Whether it calls a tool.
    pub(super) fn calls(&self) -> bool {
        let calls = self.delta.as_ref().map(|delta| [delta.tool_calls, delta.function_call]);
        calls.is_some_and(|calls| calls.into_iter().any(says_something))
    }

    /// Whether it says something in another channel than the text: thoughts, or a refusal.
    pub(super) fn speaks_aside(&self) -> bool {
        let asides = self
            .delta
            .as_ref()
            .map(|delta| [delta.reasoning_content, delta.reasoning, delta.refusal]);
        asides.is_some_and(|asides| asides.into_iter().any(says_something))
    }

    /// Whether it tells how probable its tokens were.
    pub(super) fn has_logprobs(&self) -> bool {
        self.logprobs.is_some()
    }

    /// Whether the answer ends with it.
    pub(super) fn is_finish(&self) -> bool {
        self.finish_reason.is_some()
    }
}

/// The content is no text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NoText;

fn says_something(raw: Option<&RawValue>) -> bool {
    raw.is_some_and(|raw| !matches!(raw.get(), "\"\"" | "[]"))
}

impl<'de: 'a, 'a> Deserialize<'de> for Choices<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct First;

        impl<'de> Visitor<'de> for First {
            type Value = Choices<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of choices")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Choices<'de>, A::Error> {
                let first = list.next_element()?;
                let mut has_more = false;
                while list.next_element::<IgnoredAny>()?.is_some() {
                    has_more = true;
                }
                Ok(Choices { first, has_more })
            }
        }

        deserializer.deserialize_seq(First)
    }
}

#[cfg(test)]
mod tests {
    use openai_api::{ChatChunks, CompletionChunks, FinishReason, Usage, sse};
    use proptest::prelude::*;

    use super::*;

    fn data(event: &[u8]) -> &[u8] {
        &event[b"data: ".len()..event.len() - 2]
    }

    #[test]
    fn the_head_of_a_chunk_is_kept_as_json() {
        let event = sse::event(&ChatChunks::new("c-1".into(), 7, "m".into(), false).start(0));
        let chunk = Chunk::read(data(&event)).unwrap();
        let head = [chunk.id, chunk.created, chunk.model].map(|raw| raw.unwrap().get());
        assert_eq!(head, ["\"c-1\"", "7", "\"m\""]);
        let choice = chunk.choices.first.unwrap();
        assert_eq!((choice.index, choice.text()), (0, Ok("")));
        assert!(!choice.calls() && !choice.speaks_aside() && !choice.has_logprobs() && !choice.is_finish());
    }

    #[test]
    fn calls_thoughts_and_several_choices_are_seen() {
        let choice = |json: &'static str| Chunk::read(json.as_bytes()).unwrap().choices.first.unwrap();
        assert!(choice(r#"{"choices": [{"delta": {"tool_calls": [{"index": 0}]}}]}"#).calls());
        assert!(!choice(r#"{"choices": [{"delta": {"tool_calls": [], "function_call": null}}]}"#).calls());
        assert!(choice(r#"{"choices": [{"delta": {"reasoning_content": "hm"}}]}"#).speaks_aside());
        assert!(!choice(r#"{"choices": [{"delta": {"reasoning": "", "refusal": null}}]}"#).speaks_aside());
        assert!(choice(r#"{"choices": [{"text": "a", "logprobs": {"tokens": []}}]}"#).has_logprobs());
        assert_eq!(
            choice(r#"{"choices": [{"delta": {"content": ["a"]}}]}"#).text(),
            Err(NoText)
        );
        let two = Chunk::read(br#"{"choices": [{"text": "a"}, {"text": "b", "index": 1}]}"#).unwrap();
        assert!(two.choices.has_more);
        assert!(Chunk::read(br#"{"choices": 1}"#).is_none());
    }

    #[test]
    fn usage_counts_only_in_its_own_chunk() {
        let chunks = CompletionChunks::new("c".into(), 7, "m".into(), true);
        let usage = sse::event(&chunks.usage(Usage::new(1, 2)));
        assert!(Chunk::read(data(&usage)).unwrap().is_usage());
        let finish = sse::event(&chunks.finish(0, FinishReason::Stop));
        let finish = Chunk::read(data(&finish)).unwrap();
        assert!(!finish.is_usage() && finish.choices.first.unwrap().is_finish());
        let running = br#"{"choices": [{"text": "a"}], "usage": {"prompt_tokens": 1}}"#;
        assert!(!Chunk::read(running).unwrap().is_usage());
        assert!(Chunk::read(br#"{"error": {"message": "broken"}}"#).unwrap().is_error());
    }

    proptest! {
        #[test]
        fn any_text_is_read_as_it_is_escaped(text in any::<String>()) {
            for event in [
                sse::event(&ChatChunks::new("c".into(), 7, "m".into(), true).text(0, text.clone(), None)),
                sse::event(&CompletionChunks::new("c".into(), 7, "m".into(), true).text(0, text.clone(), None)),
            ] {
                let chunk = Chunk::read(data(&event)).unwrap();
                let escaped = format!("\"{}\"", chunk.choices.first.unwrap().text().unwrap());
                prop_assert_eq!(serde_json::from_str::<String>(&escaped).unwrap(), text.clone());
            }
        }
    }
}
