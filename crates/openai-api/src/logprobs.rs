//! Log probabilities in answers: in one shape for chats, in an older one for completions.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::{Deserialize, Serialize};

/// Stands for a probability of zero, whose logarithm JSON cannot write.
const NEVER: f32 = -9999.0;

/// Log probabilities of an answer's tokens, or of those that a chunk brings.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ChatLogprobs {
    /// The tokens of the text, in order.
    pub content: Vec<TokenLogprob>,
    /// Always null.
    pub refusal: Option<Vec<TokenLogprob>>,
}

/// A token of a chat answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprob {
    /// Its text; `bytes:\xe2\x82` if it is no whole text.
    pub token: String,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// Its bytes: a character may take several tokens.
    pub bytes: Option<Vec<u8>>,
    /// The most probable tokens in this place, most probable first.
    pub top_logprobs: Vec<TopLogprob>,
}

/// A token that might have been.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TopLogprob {
    /// As in [`TokenLogprob`].
    pub token: String,
    /// As in [`TokenLogprob`].
    pub logprob: f32,
    /// As in [`TokenLogprob`].
    pub bytes: Option<Vec<u8>>,
}

impl ChatLogprobs {
    /// Those of a text's tokens, in order.
    pub fn new(content: Vec<TokenLogprob>) -> Self {
        Self { content, refusal: None }
    }
}

impl TokenLogprob {
    /// A token of these bytes.
    pub fn new(bytes: Vec<u8>, logprob: f32, top_logprobs: Vec<TopLogprob>) -> Self {
        Self {
            token: token_text(&bytes),
            logprob: writable(logprob),
            bytes: Some(bytes),
            top_logprobs,
        }
    }
}

impl TopLogprob {
    /// A token of these bytes.
    pub fn new(bytes: Vec<u8>, logprob: f32) -> Self {
        Self {
            token: token_text(&bytes),
            logprob: writable(logprob),
            bytes: Some(bytes),
        }
    }
}

/// Log probabilities of a completion's tokens, or of those that a chunk brings. All lists have an item for each token.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct CompletionLogprobs {
    /// Its text; `bytes:\xe2\x82` if it is no whole text.
    pub tokens: Vec<String>,
    /// Natural logarithm of its probability; null for the first token of an echoed prompt, which nothing precedes.
    pub token_logprobs: Vec<Option<f32>>,
    /// The most probable tokens in its place and the token itself; null like its own.
    pub top_logprobs: Vec<Option<BTreeMap<String, f32>>>,
    /// Where it begins in the choice's whole text, in characters.
    pub text_offset: Vec<u32>,
}

impl CompletionLogprobs {
    /// Adds a token of these bytes that begins at `offset`, its log probability, and the most probable tokens in its place.
    /// `logprob: None` if nothing precedes it.
    pub fn push<T: AsRef<[u8]>>(
        &mut self,
        offset: u32,
        bytes: &[u8],
        logprob: Option<f32>,
        top: impl IntoIterator<Item = (T, f32)>,
    ) {
        let token = token_text(bytes);
        let logprob = logprob.map(writable);
        self.top_logprobs.push(logprob.map(|logprob| {
            let mut by_text = BTreeMap::from([(token.clone(), logprob)]);
            for (bytes, logprob) in top {
                let logprob = writable(logprob);
                // Several tokens may have the same text.
                let best = by_text.entry(token_text(bytes.as_ref())).or_insert(logprob);
                *best = best.max(logprob);
            }
            by_text
        }));
        self.tokens.push(token);
        self.token_logprobs.push(logprob);
        self.text_offset.push(offset);
    }

    /// Whether there are no tokens.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }
}

/// How far a text has come, to tell where its tokens begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TextOffset {
    /// Characters that have begun.
    characters: u32,
}

impl TextOffset {
    /// Where the token of these bytes begins, in characters; the next one begins behind it. A token that begins within a
    /// character has that character's place.
    pub fn advance(&mut self, bytes: &[u8]) -> u32 {
        let is_continuation = |byte: &u8| byte & 0xC0 == 0x80;
        let begins_within = bytes.first().is_some_and(is_continuation);
        let offset = self.characters.saturating_sub(begins_within.into());
        let begun = bytes.iter().filter(|byte| !is_continuation(byte)).count();
        self.characters = self.characters.saturating_add(u32::try_from(begun).unwrap_or(u32::MAX));
        offset
    }
}

/// A token as a text of its own, in a way that tells apart all tokens: cut characters as OpenAI writes them.
fn token_text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold("bytes:".to_owned(), |mut text, byte| {
            write!(text, "\\x{byte:02x}").expect("writing to a string does not fail");
            text
        }),
    }
}

fn writable(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { NEVER }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn those_of_a_chat_have_openais_shape() {
        let top = vec![
            TopLogprob::new(b"Hi".to_vec(), -0.5),
            TopLogprob::new(vec![0xE2, 0x82], f32::NEG_INFINITY),
        ];
        let logprobs = ChatLogprobs::new(vec![TokenLogprob::new(b"Hi".to_vec(), -0.5, top)]);
        let expected = json!({
            "content": [{
                "token": "Hi", "logprob": -0.5, "bytes": [72, 105],
                "top_logprobs": [
                    {"token": "Hi", "logprob": -0.5, "bytes": [72, 105]},
                    {"token": "bytes:\\xe2\\x82", "logprob": -9999.0, "bytes": [226, 130]},
                ],
            }],
            "refusal": null,
        });
        assert_eq!(serde_json::to_value(&logprobs).unwrap(), expected);
        assert_eq!(serde_json::from_value::<ChatLogprobs>(expected).unwrap(), logprobs);
    }

    #[test]
    fn those_of_a_completion_have_openais_shape() {
        let mut logprobs = CompletionLogprobs::default();
        assert!(logprobs.is_empty());
        logprobs.push(0, b"Once", None, [(b"Once", -1.0)]);
        logprobs.push(4, b" upon", Some(-0.25), [(" upon", -0.25), (" more", -2.0)]);
        logprobs.push(9, b" x", Some(-8.0), [(" a", -0.5), (" a", -0.75)]);
        logprobs.push(11, b"!", Some(-1.5), Vec::<(Vec<u8>, f32)>::new());
        assert!(!logprobs.is_empty());
        let expected = json!({
            "tokens": ["Once", " upon", " x", "!"],
            "token_logprobs": [null, -0.25, -8.0, -1.5],
            "top_logprobs": [null, {" upon": -0.25, " more": -2.0}, {" a": -0.5, " x": -8.0}, {"!": -1.5}],
            "text_offset": [0, 4, 9, 11],
        });
        assert_eq!(serde_json::to_value(&logprobs).unwrap(), expected);
        assert_eq!(
            serde_json::from_value::<CompletionLogprobs>(expected).unwrap(),
            logprobs
        );
    }

    proptest! {
        #[test]
        fn a_token_begins_where_the_characters_before_it_end(
            text in "[a-zé€😀 ]{0,20}",
            cuts in prop::collection::vec(1_usize..6, 1..40),
        ) {
            let mut offset = TextOffset::default();
            let mut rest = text.as_bytes();
            for length in cuts.into_iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (token, behind) = rest.split_at(length.min(rest.len()));
                let begins_at = text.len() - rest.len();
                let before = text.char_indices().filter(|(at, character)| at + character.len_utf8() <= begins_at).count();
                prop_assert_eq!(offset.advance(token) as usize, before);
                rest = behind;
            }
        }

        #[test]
        fn tokens_that_differ_are_told_apart_by_their_text(
            one in prop::collection::vec(any::<u8>(), 0..4),
            other in prop::collection::vec(any::<u8>(), 0..4),
        ) {
            prop_assert_eq!(token_text(&one) == token_text(&other), one == other);
        }
    }
}
