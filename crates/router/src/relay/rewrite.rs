//! The events of a worker that began an answer anew, or went on with its text, made those of the answer that the client has.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::story::{Head, Story};

/// Shortest text that is taken for a repetition if the new worker begins with it: a shorter one may well follow itself.
const MIN_REPEATED_BYTES: usize = 24;

/// Rewrites the chunks of one worker.
#[derive(Debug)]
pub(super) struct Rewriter {
    head: Head,
    /// Tokens of the answer that it does not know of: it took them for a part of the prompt.
    spent: u32,
    seam: Option<Seam>,
}

/// The place where the new text meets the old one.
#[derive(Debug)]
struct Seam {
    /// The old text. A worker that was asked to go on with it may repeat it.
    old: Arc<str>,
    /// Where the white space at its end begins, which the worker was not told of and may therefore repeat.
    told: usize,
    /// New text that may prove to be a repetition.
    held: String,
}

impl Rewriter {
    /// For a worker that makes the whole answer, of which the client has nothing but the head.
    pub(super) fn repeat(story: &Story) -> Self {
        Self {
            head: story.head().clone(),
            spent: 0,
            seam: None,
        }
    }

    /// For a worker that was told the text of the answer so far.
    pub(super) fn continuation(story: &Story) -> Self {
        let seam = story.text().map(|old| Seam {
            told: old.trim_end().len(),
            old: old.into(),
            held: String::new(),
        });
        Self {
            head: story.head().clone(),
            spent: story.spent(),
            seam,
        }
    }

    /// The data of an event as the client is to have it; `None` if there is nothing new in it. What is no chunk stays as it
    /// is.
    pub(super) fn rewrite(&mut self, data: &[u8]) -> Option<Vec<u8>> {
        let Ok(Value::Object(mut chunk)) = serde_json::from_slice(data) else {
            return Some(data.to_vec());
        };
        let names = [
            ("id", &self.head.id),
            ("created", &self.head.created),
            ("model", &self.head.model),
        ];
        for (name, told) in names {
            if let Some(value) = told.as_ref().and_then(|raw| serde_json::from_str(raw.get()).ok()) {
                chunk.insert(name.to_owned(), value);
            }
        }
        let mut has_news = self.correct_usage(&mut chunk);
        if let Some(choices) = chunk.get_mut("choices").and_then(Value::as_array_mut) {
            for choice in choices.iter_mut().filter_map(Value::as_object_mut) {
                has_news |= self.rewrite_choice(choice);
            }
        }
        has_news.then(|| Value::Object(chunk).to_string().into_bytes())
    }

    /// New text that was held back to the end of the stream; `None` if there is none.
    pub(super) fn rest(&mut self) -> Option<String> {
        let seam = self.seam.take()?;
        let new = seam.new_text();
        (!new.is_empty()).then(|| new.to_owned())
    }

    /// Whether the choice says anything.
    fn rewrite_choice(&mut self, choice: &mut Map<String, Value>) -> bool {
        let ends = choice.get("finish_reason").is_some_and(|reason| !reason.is_null());
        let (text, others) = match choice.get_mut("delta").and_then(Value::as_object_mut) {
            Some(delta) => {
                delta.remove("role");
                let others = delta.iter().any(|(name, value)| name != "content" && !is_empty(value));
                (delta.get_mut("content"), others)
            }
            None => (choice.get_mut("text"), false),
        };
        let mut new = match text {
            Some(Value::String(text)) => {
                *text = self.join(std::mem::take(text));
                !text.is_empty()
            }
            Some(_) | None => false,
        };
        if (ends || others)
            && let Some(held) = self.rest()
        {
            append(choice, &held);
            new = true;
        }
        new || others || ends
    }

    /// What of a new piece of text is to be passed on.
    fn join(&mut self, piece: String) -> String {
        let Some(mut seam) = self.seam.take() else { return piece };
        seam.held.push_str(&piece);
        match seam.resolve() {
            Some(new) => new.to_owned(),
            None => {
                self.seam = Some(seam);
                String::new()
            }
        }
    }

    /// Counts what an earlier worker generated as generated, not as prompt. Whether there is a usage.
    fn correct_usage(&self, chunk: &mut Map<String, Value>) -> bool {
        let Some(usage) = chunk.get_mut("usage").and_then(Value::as_object_mut) else {
            return false;
        };
        let count = |usage: &Map<String, Value>, name: &str| usage.get(name).and_then(Value::as_u64);
        if let Some(prompt) = count(usage, "prompt_tokens") {
            usage.insert(
                "prompt_tokens".to_owned(),
                json!(prompt.saturating_sub(self.spent.into())),
            );
        }
        if let Some(completion) = count(usage, "completion_tokens") {
            usage.insert(
                "completion_tokens".to_owned(),
                json!(completion + u64::from(self.spent)),
            );
        }
        if let (Some(prompt), Some(completion)) = (count(usage, "prompt_tokens"), count(usage, "completion_tokens")) {
            usage.insert("total_tokens".to_owned(), json!(prompt + completion));
        }
        // One that comes along with each piece of text is no news by itself.
        chunk.get("choices").and_then(Value::as_array).is_none_or(Vec::is_empty)
    }
}

impl Seam {
    /// Whether the old text is long enough to be known again.
    fn may_repeat(&self) -> bool {
        self.told >= MIN_REPEATED_BYTES
    }

    /// What of the held text is new; `None` as long as more text could change that.
    fn resolve(&self) -> Option<&str> {
        let may_become = |whole: &str| self.held.len() < whole.len() && whole.starts_with(&self.held);
        let is_open = may_become(&self.old[self.told..]) || self.may_repeat() && may_become(&self.old);
        (!self.held.is_empty() && !is_open).then(|| self.new_text())
    }

    /// What of the held text is new if there is no more of it: not the old text, nor the white space at the end of that.
    fn new_text(&self) -> &str {
        let (told, white) = self.old.split_at(self.told);
        let repeated = self.held.strip_prefix(told).filter(|_| self.may_repeat());
        without_common_start(repeated.unwrap_or(&self.held), white)
    }
}

/// The text without what it begins with in common with another one.
fn without_common_start<'a>(text: &'a str, other: &str) -> &'a str {
    let common = text.chars().zip(other.chars()).take_while(|(a, b)| a == b);
    &text[common.map(|(letter, _)| letter.len_utf8()).sum()..]
}

/// Puts a text before the one of a choice.
fn append(choice: &mut Map<String, Value>, held: &str) {
    let slot = match choice.get_mut("delta").and_then(Value::as_object_mut) {
        Some(delta) => delta.entry("content"),
        None => choice.entry("text"),
    };
    let text = slot.or_insert(Value::Null);
    *text = Value::String(format!("{held}{}", text.as_str().unwrap_or_default()));
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use openai_api::{ChatChunks, FinishReason, Usage};
    use proptest::prelude::*;

    use super::*;
    use crate::relay::observe::Chunk;

    fn text(text: &str) -> Vec<u8> {
        serde_json::to_vec(&ChatChunks::new("new".into(), 9, "other".into(), false).text(0, text.into(), None)).unwrap()
    }

    /// A story of one piece of text.
    fn story(told: &str) -> Story {
        let mut story = Story::default();
        let chunk = ChatChunks::new("old".into(), 7, "m".into(), false).text(0, told.into(), None);
        story.note(&Chunk::read(&serde_json::to_vec(&chunk).unwrap()).unwrap());
        story
    }

    /// What a client gets of these pieces after the story, the end included.
    fn joined(told: &str, pieces: &[&str]) -> String {
        let mut rewriter = Rewriter::continuation(&story(told));
        let finish = ChatChunks::new("new".into(), 9, "other".into(), false).finish(0, FinishReason::Stop);
        let pieces = pieces
            .iter()
            .map(|piece| text(piece))
            .chain([serde_json::to_vec(&finish).unwrap()]);
        let contents = pieces.filter_map(|data| {
            let rewritten: Value = serde_json::from_slice(&rewriter.rewrite(&data)?).unwrap();
            rewritten["choices"][0]["delta"]["content"].as_str().map(str::to_owned)
        });
        contents.collect()
    }

    const LONG: &str = "It was the best of times, it was ";

    #[test]
    fn a_text_that_is_only_continued_passes_whole() {
        assert_eq!(joined("Hello", &[" wor", "ld"]), " world");
        assert_eq!(joined("ha", &["ha", "ha"]), "haha");
        assert_eq!(joined(LONG, &["It ", "is"]), "It is");
        assert_eq!(
            joined(LONG, &["It ", "was"]),
            "It was",
            "it ended before it was a repetition"
        );
    }

    #[test]
    fn a_long_text_that_is_repeated_is_dropped() {
        assert_eq!(
            joined(LONG, &["It was the best", " of times, it was the", " worst"]),
            "the worst"
        );
        assert_eq!(joined(LONG, &[LONG.trim_end(), " the", " worst"]), "the worst");
        assert_eq!(joined(LONG, &[LONG.trim_end()]), "");
        assert_eq!(
            joined(&format!("{LONG}  "), &[LONG]),
            "",
            "without all of its white space"
        );
    }

    #[test]
    fn white_space_that_the_worker_was_not_told_of_does_not_come_twice() {
        assert_eq!(joined("Hello ", &[" world"]), "world");
        assert_eq!(joined("Hello\n", &["\n", "\nyou"]), "\nyou");
        assert_eq!(joined("Hello\n\n", &["\n"]), "");
        assert_eq!(joined("Hello ", &["world"]), "world");
        let began_so = " so it was the best of times and ";
        assert_eq!(
            joined(began_so, &[" ", "so"]),
            "so",
            "it ended before it was a repetition"
        );
    }

    #[test]
    fn head_role_and_usage_become_those_of_the_answer_that_the_client_has() {
        let chunks = ChatChunks::new("new".into(), 9, "other".into(), true);
        let mut rewriter = Rewriter::continuation(&story("Hello"));
        assert_eq!(rewriter.rewrite(&serde_json::to_vec(&chunks.start(0)).unwrap()), None);
        let usage = serde_json::to_vec(&chunks.usage(Usage::new(11, 3).with_cached(4))).unwrap();
        let usage: Value = serde_json::from_slice(&rewriter.rewrite(&usage).unwrap()).unwrap();
        assert_eq!(
            [&usage["id"], &usage["created"], &usage["model"]],
            [&json!("old"), &json!(7), &json!("m")]
        );
        let expected = json!({"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14,
            "prompt_tokens_details": {"cached_tokens": 4}});
        assert_eq!(usage["usage"], expected);
        let both = json!({"choices": [{"index": 0, "delta": {"role": "assistant", "content": "!"}}]}).to_string();
        let both: Value = serde_json::from_slice(&rewriter.rewrite(both.as_bytes()).unwrap()).unwrap();
        assert_eq!(both["choices"][0]["delta"], json!({"content": "!"}));
    }

    #[test]
    fn what_is_no_chunk_stays_as_it_is() {
        assert_eq!(
            Rewriter::repeat(&story("a")).rewrite(b"[1, 2]"),
            Some(b"[1, 2]".to_vec())
        );
    }

    proptest! {
        #[test]
        fn any_text_that_does_not_repeat_is_whole(told in "[a-c \n]{0,40}", pieces in prop::collection::vec("[a-c \n]{1,5}", 0..8)) {
            let pieces: Vec<_> = pieces.iter().map(String::as_str).collect();
            let new = pieces.concat();
            let told_end = told.trim_end();
            prop_assume!(told_end.len() < MIN_REPEATED_BYTES || !new.starts_with(told_end));
            // But for white space that both sides of the seam have.
            prop_assert_eq!(joined(&told, &pieces), without_common_start(&new, &told[told_end.len()..]));
        }
    }
}
