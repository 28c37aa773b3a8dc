//! Tokens to text as they come, cut between characters only.

use super::Tokenizer;

/// Collects one stream's bytes and hands out whole characters.
#[derive(Debug, Clone)]
pub struct TextDecoder {
    tokenizer: Tokenizer,
    /// The beginning of a character, at most three bytes.
    pending: Vec<u8>,
}

impl TextDecoder {
    pub(super) fn new(tokenizer: Tokenizer) -> Self {
        Self {
            tokenizer,
            pending: Vec::new(),
        }
    }

    /// The text that this token completes; `None` where it completes no character or is no text.
    pub fn push(&mut self, token: u32) -> Option<String> {
        self.pending.extend_from_slice(self.tokenizer.token_bytes(token));
        let text = take_characters(&mut self.pending);
        (!text.is_empty()).then_some(text)
    }

    /// What is left at the end of the stream: a character that was never completed, as U+FFFD.
    pub fn finish(&mut self) -> Option<String> {
        let rest = std::mem::take(&mut self.pending);
        (!rest.is_empty()).then(|| String::from_utf8_lossy(&rest).into_owned())
    }
}

/// Takes all whole characters off the front; bytes that can begin no character become U+FFFD.
fn take_characters(bytes: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut taken = 0;
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        taken += chunk.valid().len();
        let cut_short = taken + chunk.invalid().len() == bytes.len()
            && str::from_utf8(chunk.invalid()).is_err_and(|error| error.error_len().is_none());
        if !chunk.invalid().is_empty() && !cut_short {
            text.push(char::REPLACEMENT_CHARACTER);
            taken += chunk.invalid().len();
        }
    }
    bytes.drain(..taken);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(pieces: &[&[u8]]) -> (Vec<String>, Vec<u8>) {
        let mut pending = Vec::new();
        let texts = pieces
            .iter()
            .map(|piece| {
                pending.extend_from_slice(piece);
                take_characters(&mut pending)
            })
            .collect();
        (texts, pending)
    }

    #[test]
    fn a_character_is_handed_out_when_its_last_byte_has_come() {
        let (texts, rest) = feed(&[b"a\xF0\x9F", b"\x98", b"\x80b"]);
        assert_eq!(texts, ["a", "", "\u{1F600}b"]);
        assert!(rest.is_empty());
    }

    #[test]
    fn bytes_that_begin_no_character_do_not_hold_up_the_stream() {
        let (texts, rest) = feed(&[b"\xFFa", b"\xC3", b"b\xC3"]);
        assert_eq!(texts, ["\u{FFFD}a", "", "\u{FFFD}b"]);
        assert_eq!(rest, b"\xC3");
    }
}
