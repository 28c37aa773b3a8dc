//! What the client has of an answer: all that is needed to have another worker go on with it.

use std::fmt;

use serde::Serialize;
use serde_json::value::RawValue;
use worker_contract::TOKENS_COMMENT;

use super::observe::{Choice, Chunk, NoText};

/// Longest answer, in tokens, that is taken up by another worker: more than any model of today writes at once.
pub(super) const MAX_TOKENS: usize = 1 << 18;
/// Longest answer, in bytes of its text, that is taken up by another worker.
pub(super) const MAX_TEXT_BYTES: usize = 1 << 20;

/// What was relayed of a stream.
#[derive(Debug)]
pub(super) struct Story {
    head: Head,
    /// All tokens of the answer; `None` if they are not all known.
    tokens: Option<Vec<u32>>,
    /// The text, as it is escaped in JSON.
    text: String,
    /// Tokens that workers before the present one took, as well as it is known.
    spent_before: u32,
    leg: Leg,
    /// Something besides roles was relayed.
    has_begun: bool,
    /// Answers that have their end.
    finished: u32,
    has_usage: bool,
    /// Tokens of the answer, by its usage.
    billed: Option<u32>,
    is_done: bool,
    /// Nobody can go on with it.
    obstacle: Option<Obstacle>,
    /// Nobody can go on with it who knows its text only.
    text_obstacle: Option<Obstacle>,
}

/// What the present worker brought.
#[derive(Debug, Default)]
struct Leg {
    /// It names its tokens.
    names_tokens: bool,
    tokens: u32,
    /// Chunks with something new in them: of a worker that does not name its tokens, about as many as those.
    pieces: u32,
}

/// What all chunks of an answer have in common, as JSON.
#[derive(Debug, Clone, Default)]
pub(super) struct Head {
    pub(super) id: Option<Box<RawValue>>,
    pub(super) object: Option<Box<RawValue>>,
    pub(super) created: Option<Box<RawValue>>,
    pub(super) model: Option<Box<RawValue>>,
}

/// Why nobody can go on with an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Obstacle {
    SeveralAnswers,
    Logprobs,
    Echo,
    ToolCall,
    Aside,
    Form,
    TokenPrompt,
    Unreadable,
    TooLong,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SeveralAnswers => "several answers were asked for at once",
            Self::Logprobs => "log probabilities were asked for",
            Self::Echo => "an echo of the prompt was asked for",
            Self::ToolCall => "it had begun to call a tool",
            Self::Aside => "a part of it is not plain text",
            Self::Form => "it has to follow a form",
            Self::TokenPrompt => "its prompt is not a text",
            Self::Unreadable => "a part of it could not be read",
            Self::TooLong => "it had become too long",
        })
    }
}

impl Default for Story {
    fn default() -> Self {
        Self {
            head: Head::default(),
            tokens: Some(Vec::new()),
            text: String::new(),
            spent_before: 0,
            leg: Leg::default(),
            has_begun: false,
            finished: 0,
            has_usage: false,
            billed: None,
            is_done: false,
            obstacle: None,
            text_obstacle: None,
        }
    }
}

impl Story {
    /// Notes the line of an event that names tokens: `: tokens 12 345`.
    pub(super) fn note_tokens(&mut self, line: &[u8]) {
        self.leg.names_tokens = true;
        let ids = &line[TOKENS_COMMENT.len()..];
        for id in ids.split(u8::is_ascii_whitespace).filter(|id| !id.is_empty()) {
            self.leg.tokens = self.leg.tokens.saturating_add(1);
            let Some(tokens) = &mut self.tokens else { continue };
            match std::str::from_utf8(id).ok().and_then(|id| id.parse().ok()) {
                Some(id) if tokens.len() < MAX_TOKENS => tokens.push(id),
                _ => self.tokens = None,
            }
        }
    }

    /// Notes a chunk. Its tokens were noted before.
    pub(super) fn note(&mut self, chunk: &Chunk<'_>) {
        if self.head.id.is_none() {
            self.head = Head {
                id: chunk.id.map(ToOwned::to_owned),
                object: chunk.object.map(ToOwned::to_owned),
                created: chunk.created.map(ToOwned::to_owned),
                model: chunk.model.map(ToOwned::to_owned),
            };
        }
        if chunk.is_usage() {
            self.has_usage = true;
            self.billed = chunk.completion_tokens();
        }
        let Some(choice) = &chunk.choices.first else { return };
        if choice.index > 0 || chunk.choices.has_more {
            self.obstacle = Some(Obstacle::SeveralAnswers);
        } else if choice.has_logprobs() {
            self.obstacle = Some(Obstacle::Logprobs);
            self.has_begun = true;
        }
        if choice.is_finish() {
            self.finished += 1;
            self.has_begun = true;
        }
        self.note_content(choice);
    }

    fn note_content(&mut self, choice: &Choice<'_>) {
        let text = choice.text();
        let aside = if choice.calls() {
            Some(Obstacle::ToolCall)
        } else if choice.speaks_aside() {
            Some(Obstacle::Aside)
        } else {
            text.err().map(|NoText| Obstacle::Aside)
        };
        self.text_obstacle = self.text_obstacle.or(aside);
        match aside {
            Some(_) => self.note_piece(),
            None => self.note_text(text.unwrap_or_default()),
        }
    }

    /// Notes a chunk that brings text, as it is escaped, and nothing else. Its tokens were noted before.
    pub(super) fn note_text(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        self.note_piece();
        if self.text_obstacle.is_some() {
            return;
        }
        if self.text.len() + text.len() > MAX_TEXT_BYTES {
            self.text_obstacle = Some(Obstacle::TooLong);
            self.text = String::new();
        } else {
            self.text.push_str(text);
        }
    }

    fn note_piece(&mut self) {
        self.has_begun = true;
        self.leg.pieces = self.leg.pieces.saturating_add(1);
        if !self.leg.names_tokens {
            // What a worker writes comes of tokens: this one does not name them.
            self.tokens = None;
        }
    }

    /// Notes an event that says something, only not what.
    pub(super) fn note_unreadable(&mut self) {
        self.has_begun = true;
        self.obstacle = Some(Obstacle::Unreadable);
    }

    /// The stream is relayed as it comes from now on.
    pub(super) fn note_too_long(&mut self) {
        self.has_begun = true;
        self.obstacle = Some(Obstacle::TooLong);
        (self.tokens, self.text) = (None, String::new());
    }

    /// Notes `[DONE]`.
    pub(super) fn note_done(&mut self) {
        self.is_done = true;
    }

    /// Another worker makes the answer, of which nothing but roles was relayed.
    pub(super) fn begin_again(&mut self) {
        self.tokens = Some(Vec::new());
        self.spent_before = 0;
        self.leg = Leg::default();
    }

    /// Another worker goes on, knowing the tokens.
    pub(super) fn next_leg(&mut self) {
        self.spent_before = self.spent();
        self.leg = Leg::default();
    }

    /// Another worker goes on, knowing the text only: its tokens are not those of the whole answer.
    pub(super) fn next_leg_by_text(&mut self) {
        self.next_leg();
        self.tokens = None;
    }

    /// Whether the present worker brought anything new.
    pub(super) fn has_moved(&self) -> bool {
        self.leg.tokens > 0 || self.leg.pieces > 0
    }

    /// Tokens of the answer so far, as well as it is known.
    pub(super) fn spent(&self) -> u32 {
        let leg = if self.leg.names_tokens {
            self.leg.tokens
        } else {
            self.leg.pieces
        };
        self.spent_before.saturating_add(leg)
    }

    /// What all chunks have in common, as far as any was relayed.
    pub(super) fn head(&self) -> &Head {
        &self.head
    }

    /// All tokens, if they are known and there are any.
    pub(super) fn tokens(&self) -> Option<&[u32]> {
        self.tokens.as_deref().filter(|tokens| !tokens.is_empty())
    }

    /// The text. `None` if it cannot be read.
    pub(super) fn text(&self) -> Option<String> {
        serde_json::from_str(&format!("\"{}\"", self.text)).ok()
    }

    /// Whether something besides roles was relayed.
    pub(super) fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// How many answers have their end.
    pub(super) fn finished(&self) -> u32 {
        self.finished
    }

    /// Whether the usage was relayed.
    pub(super) fn has_usage(&self) -> bool {
        self.has_usage
    }

    /// Tokens of the answer by its usage, where that was relayed.
    pub(super) fn billed(&self) -> Option<u32> {
        self.billed
    }

    /// Whether `[DONE]` was relayed.
    pub(super) fn is_done(&self) -> bool {
        self.is_done
    }

    /// Why nobody can go on with it.
    pub(super) fn obstacle(&self) -> Option<Obstacle> {
        self.obstacle
    }

    /// Why nobody can go on with it who knows its text only.
    pub(super) fn text_obstacle(&self) -> Option<Obstacle> {
        self.obstacle.or(self.text_obstacle)
    }

    /// A chunk of the queen's own, with a text or the end of the answer.
    pub(super) fn chunk<'a>(&'a self, text: Option<&'a str>, finish_reason: Option<&'a str>) -> impl Serialize + 'a {
        let object = self.head.object.as_deref();
        let is_chat = object.is_none_or(|object| object.get() == "\"chat.completion.chunk\"");
        OwnChunk {
            id: self.head.id.as_deref(),
            object,
            created: self.head.created.as_deref(),
            model: self.head.model.as_deref(),
            choices: [OwnChoice {
                index: 0,
                delta: is_chat.then_some(OwnDelta { content: text }),
                text: (!is_chat).then_some(text.unwrap_or_default()),
                logprobs: None,
                finish_reason,
            }],
        }
    }
}

#[derive(Serialize)]
struct OwnChunk<'a> {
    id: Option<&'a RawValue>,
    object: Option<&'a RawValue>,
    created: Option<&'a RawValue>,
    model: Option<&'a RawValue>,
    choices: [OwnChoice<'a>; 1],
}

#[derive(Serialize)]
struct OwnChoice<'a> {
    index: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    delta: Option<OwnDelta<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    logprobs: Option<()>,
    finish_reason: Option<&'a str>,
}

#[derive(Serialize)]
struct OwnDelta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(story: &mut Story, choice: &str) {
        let chunk = format!("{{\"id\": \"c\", \"choices\": [{choice}]}}");
        story.note(&Chunk::read(chunk.as_bytes()).unwrap());
    }

    #[test]
    fn tokens_are_known_only_if_all_are_named() {
        let mut story = Story::default();
        story.note_tokens(b": tokens 1 22\r\n");
        note(&mut story, r#"{"text": "a"}"#);
        assert_eq!((story.tokens(), story.spent()), (Some(&[1, 22][..]), 2));
        story.next_leg();
        story.note_tokens(b": tokens 3\n");
        note(&mut story, r#"{"text": "b"}"#);
        assert_eq!((story.tokens(), story.spent()), (Some(&[1, 22, 3][..]), 3));
        story.next_leg();
        note(&mut story, r#"{"text": "c"}"#);
        assert_eq!((story.tokens(), story.spent()), (None, 4));
        assert_eq!(story.text().as_deref(), Some("abc"));
        let mut odd = Story::default();
        odd.note_tokens(b": tokens 1 x\n");
        assert_eq!(odd.tokens(), None);
    }

    #[test]
    fn an_answer_begins_with_the_first_thing_that_is_not_a_role() {
        for (choice, has_begun) in [
            (
                r#"{"delta": {"role": "assistant", "content": ""}, "finish_reason": null}"#,
                false,
            ),
            (r#"{"delta": {"content": "a"}}"#, true),
            (r#"{"delta": {"tool_calls": [{}]}}"#, true),
            (r#"{"delta": {"reasoning": "a"}}"#, true),
            (r#"{"delta": {"content": ""}, "logprobs": {}}"#, true),
            (r#"{"delta": {}, "finish_reason": "stop"}"#, true),
        ] {
            let mut story = Story::default();
            note(&mut story, choice);
            assert_eq!(story.has_begun(), has_begun, "{choice}");
        }
    }

    #[test]
    fn an_answer_that_becomes_too_long_is_forgotten() {
        let mut story = Story::default();
        let ids = " 1".repeat(MAX_TOKENS + 1);
        story.note_tokens(format!(": tokens{ids}\n").as_bytes());
        assert_eq!(story.tokens(), None);
        let piece = "x".repeat(MAX_TEXT_BYTES / 2 + 1);
        for obstacle in [None, Some(Obstacle::TooLong)] {
            note(&mut story, &format!(r#"{{"text": "{piece}"}}"#));
            assert_eq!(story.text_obstacle(), obstacle);
        }
        assert_eq!(story.text.capacity(), 0);
    }
}
