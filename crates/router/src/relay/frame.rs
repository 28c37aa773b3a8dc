//! What all chunks of a stream have in common around their text, so that only the first of them has to be parsed.

use memchr::memchr;

use super::observe::Chunk;

/// How often a stream may change what stands around its text; after that each of its chunks is parsed.
const MAX_CHANGES: u8 = 4;

/// The JSON before and behind the text of a chunk that brings nothing but text.
#[derive(Debug, Default)]
pub(super) struct Frame {
    before: Vec<u8>,
    behind: Vec<u8>,
    changes: u8,
}

impl Frame {
    /// The text of a chunk, as it is escaped, if all around it is as it was before. Nothing is allocated.
    pub(super) fn text<'a>(&self, data: &'a [u8]) -> Option<&'a str> {
        if self.before.is_empty() {
            return None;
        }
        let text = data.strip_prefix(&*self.before)?.strip_suffix(&*self.behind)?;
        // A quote may end it, and a backslash at its end may take the meaning of the quote behind it.
        if memchr(b'"', text).is_some() || text.ends_with(b"\\") {
            return None;
        }
        std::str::from_utf8(text).ok()
    }

    /// Remembers what stands around the text of a chunk that was parsed.
    pub(super) fn learn(&mut self, data: &[u8], chunk: &Chunk<'_>) {
        let Some(text) = chunk.mere_text().filter(|_| self.changes < MAX_CHANGES) else {
            return;
        };
        // The text is a part of the data.
        let start = text.as_ptr().addr() - data.as_ptr().addr();
        let (before, behind) = (&data[..start], &data[start + text.len()..]);
        if before != self.before || behind != self.behind {
            self.changes += 1;
            (self.before, self.behind) = (before.to_vec(), behind.to_vec());
        }
    }
}

#[cfg(test)]
mod tests {
    use openai_api::{ChatChunks, CompletionChunks, FinishReason, sse};
    use proptest::prelude::*;
    use serde::Serialize;

    use super::*;

    fn data(chunk: &impl Serialize) -> Vec<u8> {
        let event = sse::event(chunk);
        event[b"data: ".len()..event.len() - 2].to_vec()
    }

    fn learned(data: &[u8]) -> Frame {
        let mut frame = Frame::default();
        frame.learn(data, &Chunk::read(data).unwrap());
        frame
    }

    #[test]
    fn chunks_that_say_more_than_text_are_parsed() {
        let chunks = ChatChunks::new("c".into(), 7, "m".into(), true);
        let frame = learned(&data(&chunks.text(0, "a".into(), None)));
        assert_eq!(frame.text(&data(&chunks.text(0, "b".into(), None))), Some("b"));
        for other in [
            chunks.start(0),
            chunks.text(1, "b".into(), None),
            chunks.finish(0, FinishReason::Stop),
            ChatChunks::new("d".into(), 7, "m".into(), true).text(0, "b".into(), None),
        ] {
            assert_eq!(frame.text(&data(&other)), None);
        }
        assert_eq!(learned(&data(&chunks.finish(0, FinishReason::Stop))).text(b""), None);
        assert_eq!(learned(&data(&chunks.start(0))).text(&data(&chunks.start(0))), None);
    }

    #[test]
    fn a_stream_that_always_changes_is_learned_no_more() {
        let mut frame = Frame::default();
        let chunk =
            |number: i64| data(&CompletionChunks::new("c".into(), number, "m".into(), false).text(0, "a".into(), None));
        for number in 0..10 {
            let data = chunk(number);
            frame.learn(&data, &Chunk::read(&data).unwrap());
        }
        assert_eq!(frame.text(&chunk(3)), Some("a"));
        assert_eq!(frame.text(&chunk(9)), None);
    }

    proptest! {
        #[test]
        fn a_text_is_the_same_with_and_without_parsing(first in ".{1,4}", text in "([a-z€\"\\\\\n]){0,6}") {
            let chunks = ChatChunks::new("c".into(), 7, "m".into(), false);
            let frame = learned(&data(&chunks.text(0, first, None)));
            let data = data(&chunks.text(0, text, None));
            let parsed = Chunk::read(&data).unwrap();
            let parsed = parsed.choices.first.as_ref().unwrap().text().unwrap();
            if let Some(known) = frame.text(&data) {
                prop_assert_eq!(known, parsed);
            } else {
                prop_assert!(parsed.contains('\\'));
            }
        }
    }
}
