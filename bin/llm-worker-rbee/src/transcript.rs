//! Tokens of an answer as they come, put together to text that is surely part of it.

use std::collections::VecDeque;

use crate::language::Decoder;
use crate::text::StopMatcher;

/// A token as it is spelled, and how probable the model found it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Spelled {
    /// What it adds to the text: maybe a part of a character, empty for control tokens.
    pub(crate) bytes: Vec<u8>,
    /// Natural logarithm of its probability; `None` for a prompt's first token, which nothing precedes.
    pub(crate) logprob: Option<f32>,
    /// The most probable tokens at its place, the most probable first.
    pub(crate) top: Vec<(Vec<u8>, f32)>,
}

/// What is new.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Passed {
    /// Text that is surely part of the answer; may be empty.
    pub(crate) text: String,
    /// The tokens that begin in the text so far and were not handed out yet.
    pub(crate) tokens: Vec<Spelled>,
    /// The stop text that was reached: nothing may follow.
    pub(crate) stop: Option<String>,
}

/// Puts an answer together.
///
/// A token is part of the answer if its text begins before the answer's end, so the logprobs of a token come out
/// together with the first of its text, and none of those whose text a stop text cut off.
pub(crate) struct Transcript {
    decoder: Box<dyn Decoder>,
    stops: StopMatcher,
    /// Tokens whose text has not passed, each with the byte of the text where it begins.
    held: VecDeque<(usize, Spelled)>,
    /// Bytes of text decoded so far.
    decoded: usize,
    /// Bytes of text passed so far.
    passed: usize,
}

impl Transcript {
    /// An answer that ends at any of these texts.
    pub(crate) fn new(decoder: Box<dyn Decoder>, stop: Vec<String>) -> Self {
        Self {
            decoder,
            stops: StopMatcher::new(stop),
            held: VecDeque::new(),
            decoded: 0,
            passed: 0,
        }
    }

    /// Takes the next token, and how it is spelled if anybody wants to know.
    pub(crate) fn push(&mut self, token: u32, spelled: Option<Spelled>) -> Passed {
        self.held.extend(spelled.map(|spelled| (self.decoded, spelled)));
        let text = self.decoder.push(token).unwrap_or_default();
        self.pass(&text)
    }

    /// The answer is over: what was held back is part of it, unless it completes a stop text.
    pub(crate) fn finish(&mut self) -> Passed {
        let text = self.decoder.finish().unwrap_or_default();
        let mut passed = self.pass(&text);
        if passed.stop.is_none() {
            passed.text.push_str(&self.stops.finish());
            passed.tokens.extend(self.held.drain(..).map(|(_, token)| token));
        }
        passed
    }

    fn pass(&mut self, text: &str) -> Passed {
        self.decoded += text.len();
        let passed = self.stops.push(text);
        self.passed += passed.text.len();
        let clear = self.held.iter().take_while(|(start, _)| *start < self.passed);
        let tokens = self.held.drain(..clear.count()).map(|(_, token)| token).collect();
        Passed {
            text: passed.text,
            tokens,
            stop: passed.stop,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A token is one of these texts.
    struct Texts(&'static [&'static str]);

    impl Decoder for Texts {
        fn push(&mut self, token: u32) -> Option<String> {
            Some(self.0[token as usize].to_owned()).filter(|text| !text.is_empty())
        }

        fn finish(&mut self) -> Option<String> {
            None
        }
    }

    /// Text and tokens of every step.
    fn run(texts: &'static [&'static str], stop: &str) -> Vec<(String, Vec<u8>)> {
        let stops = Some(stop.to_owned()).filter(|stop| !stop.is_empty());
        let mut transcript = Transcript::new(Box::new(Texts(texts)), stops.into_iter().collect());
        let mut steps = Vec::new();
        let mut keep = |passed: Passed| {
            let tokens = passed.tokens.into_iter().flat_map(|token| token.bytes);
            steps.push((passed.text, tokens.collect()));
            passed.stop.is_some()
        };
        for token in 0..u8::try_from(texts.len()).unwrap() {
            let spelled = Spelled {
                bytes: vec![token],
                logprob: None,
                top: Vec::new(),
            };
            if keep(transcript.push(token.into(), Some(spelled))) {
                return steps;
            }
        }
        keep(transcript.finish());
        steps
    }

    fn step(text: &str, tokens: &[u8]) -> (String, Vec<u8>) {
        (text.to_owned(), tokens.to_owned())
    }

    #[test]
    fn a_token_comes_out_with_its_text() {
        assert_eq!(
            run(&["é", "bc"], ""),
            [step("é", &[0]), step("bc", &[1]), step("", &[])]
        );
    }

    #[test]
    fn tokens_of_one_character_come_out_together() {
        assert_eq!(
            run(&["a", "", "", "🐝"], ""),
            [
                step("a", &[0]),
                step("", &[]),
                step("", &[]),
                step("🐝", &[1, 2, 3]),
                step("", &[])
            ]
        );
    }

    #[test]
    fn a_token_is_held_back_with_what_may_be_a_stop_text() {
        assert_eq!(
            run(&["a", "S", "T", "b"], "STOP"),
            [
                step("a", &[0]),
                step("", &[]),
                step("", &[]),
                step("STb", &[1, 2, 3]),
                step("", &[])
            ]
        );
        assert_eq!(run(&["S"], "STOP"), [step("", &[]), step("S", &[0])]);
    }

    #[test]
    fn tokens_of_a_stop_text_never_come_out_and_one_that_begins_before_it_does() {
        assert_eq!(
            run(&["a", "bST", "OP", "c"], "STOP"),
            [step("a", &[0]), step("b", &[1]), step("", &[])]
        );
        assert_eq!(run(&["a", "STOP"], "STOP"), [step("a", &[0]), step("", &[])]);
    }

    #[test]
    fn tokens_without_text_at_the_end_are_part_of_the_answer() {
        assert_eq!(run(&["a", ""], ""), [step("a", &[0]), step("", &[]), step("", &[1])]);
    }
}
