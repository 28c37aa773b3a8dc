//! A toy vocabulary and a model that knows nothing.

use batch_engine::{Constraint, TokenMask};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use structured_output::{Grammar, Grammars, TokenText};

/// Texts that are single tokens besides the 256 bytes.
const LONG_TOKENS: [&str; 22] = [
    "{\"", "\":", "\": \"", "\", \"", "\"}", "}}", "[[", "]}", "  ", "\n\n", "\n    ", "true", "null", "abc", "é",
    "日本", "12", "0.", ">\n", "></", "_call>", "}\n</",
];
const SPECIAL_TOKENS: [&str; 4] = ["<|end|>", "<|im_end|>", "[TOOL_CALLS]", "<|user|>"];

/// Tokens after which the random model looks for an end.
const PATIENCE: usize = 400;
const MAX_TOKENS: usize = 4000;

/// All bytes, some longer texts, and special tokens, two of which end an answer.
pub(crate) struct ToyVocabulary {
    pub(crate) tokens: Vec<TokenText>,
    pub(crate) end_tokens: Vec<u32>,
}

impl ToyVocabulary {
    pub(crate) fn new() -> Self {
        let text = |bytes: &[u8], is_special| TokenText {
            bytes: bytes.to_vec(),
            is_special,
        };
        let mut tokens: Vec<TokenText> = (0..=255_u8).map(|byte| text(&[byte], false)).collect();
        tokens.extend(LONG_TOKENS.iter().map(|token| text(token.as_bytes(), false)));
        let first_special = u32::try_from(tokens.len()).expect("a small vocabulary");
        tokens.extend(SPECIAL_TOKENS.iter().map(|token| text(token.as_bytes(), true)));
        tokens.push(text(b"", false));
        Self {
            tokens,
            end_tokens: vec![first_special, first_special + 1],
        }
    }

    pub(crate) fn grammars(&self) -> Grammars {
        let tokens = self.tokens.clone();
        Grammars::new(move || tokens, self.end_tokens.clone())
    }

    /// The token with this text.
    pub(crate) fn token(&self, text: &str) -> u32 {
        let found = self.tokens.iter().position(|token| token.bytes == text.as_bytes());
        u32::try_from(found.expect("a token of the toy vocabulary")).expect("a small vocabulary")
    }

    /// What is allowed next.
    pub(crate) fn allowed(&self, constraint: &mut dyn Constraint) -> TokenMask {
        let mut mask = TokenMask::new(self.tokens.len());
        constraint.allowed(&mut mask).expect("a grammar that goes on");
        mask
    }

    /// Takes a text byte by byte, each of which must be allowed.
    pub(crate) fn take(&self, constraint: &mut dyn Constraint, text: &str) {
        for byte in text.bytes() {
            let allowed = self.allowed(constraint).is_allowed(byte.into());
            assert!(allowed, "{:?} in {text:?}", char::from(byte));
            constraint.accept(byte.into()).expect("an allowed token is accepted");
        }
    }

    /// Whether a text could follow, byte by byte.
    pub(crate) fn follows(&self, constraint: &mut dyn Constraint, text: &str) -> bool {
        text.bytes()
            .all(|byte| self.allowed(constraint).is_allowed(byte.into()) && constraint.accept(byte.into()).is_ok())
    }

    /// Whether the answer may end here.
    pub(crate) fn may_end(&self, constraint: &mut dyn Constraint) -> bool {
        let mask = self.allowed(constraint);
        self.end_tokens.iter().all(|&token| mask.is_allowed(token))
    }

    /// An answer of a model that draws evenly among the allowed tokens, until it loses patience and closes what it can.
    pub(crate) fn random_answer(&self, grammar: &Grammar, seed: u64) -> String {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut constraint = self.grammars().constraint(grammar).expect("a supported grammar");
        let mut answer = Vec::new();
        for step in 0..MAX_TOKENS {
            let mask = self.allowed(constraint.as_mut());
            let allowed: Vec<u32> = mask.iter().collect();
            let is_closer = |&token: &u32| self.end_tokens.contains(&token) || b"\"}]".map(u32::from).contains(&token);
            let closers: Vec<u32> = allowed.iter().copied().filter(is_closer).collect();
            let choice = if step > PATIENCE && !closers.is_empty() {
                closers
            } else {
                allowed
            };
            let token = choice[rng.random_range(0..choice.len())];
            if self.end_tokens.contains(&token) {
                return String::from_utf8(answer).expect("whole characters");
            }
            constraint.accept(token).expect("an allowed token is accepted");
            answer.extend_from_slice(&self.tokens[token as usize].bytes);
        }
        panic!("no end after {MAX_TOKENS} tokens");
    }
}
