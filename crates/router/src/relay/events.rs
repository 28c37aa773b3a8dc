//! A stream of bytes, cut into whole server-sent events.
//!
//! Format: WHATWG HTML, "Server-sent events". Lines end with LF or CR LF; a lone CR, which nobody sends, does not end one.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use memchr::{memchr, memchr_iter, memrchr_iter};
use worker_contract::TOKENS_COMMENT;

/// Longest event. A stream with a longer one is relayed as it comes.
pub(super) const MAX_EVENT_BYTES: usize = 1 << 20;

/// Holds back the beginning of an event until its end is there.
#[derive(Debug, Default)]
pub(super) struct Splitter {
    /// Without the end of any event.
    tail: BytesMut,
}

/// The end of an event did not come within [`MAX_EVENT_BYTES`]; this is all that was held back.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooLong(pub(super) Bytes);

impl Splitter {
    /// The whole events that are there with this chunk, back to back; empty if there are none yet. Nothing is copied but
    /// events that come in several chunks.
    pub(super) fn feed(&mut self, mut chunk: Bytes) -> Result<Bytes, TooLong> {
        let whole = if self.tail.is_empty() {
            let whole = chunk.split_to(end_of_last_event(&chunk, 0));
            self.tail.extend_from_slice(&chunk);
            whole
        } else {
            let known = self.tail.len();
            self.tail.extend_from_slice(&chunk);
            let end = end_of_last_event(&self.tail, known);
            self.tail.split_to(end).freeze()
        };
        if self.tail.is_empty() {
            // Lets go of the memory: most streams never have a tail again.
            self.tail = BytesMut::new();
        }
        if self.tail.len() > MAX_EVENT_BYTES {
            let mut all = BytesMut::from(&*whole);
            all.unsplit(std::mem::take(&mut self.tail));
            return Err(TooLong(all.freeze()));
        }
        Ok(whole)
    }

    /// Forgets the beginning of an event whose end will not come.
    pub(super) fn clear(&mut self) {
        self.tail = BytesMut::new();
    }
}

/// Where the last event ends, 0 if none does; no event ends within the first `known` bytes.
fn end_of_last_event(bytes: &[u8], known: usize) -> usize {
    memrchr_iter(b'\n', &bytes[known..])
        .map(|at| known + at)
        .find(|&at| ends_empty_line(&bytes[..at]))
        .map_or(0, |at| at + 1)
}

/// Whether a line end after these bytes ends an empty line.
fn ends_empty_line(before: &[u8]) -> bool {
    matches!(before, [] | [.., b'\n'] | [b'\r'] | [.., b'\n', b'\r'])
}

/// The ranges of whole events that lie back to back, each with the empty line that ends it.
pub(super) fn each(run: &[u8]) -> impl Iterator<Item = Range<usize>> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let rest = &run[start..];
        let end = memchr_iter(b'\n', rest).find(|&at| ends_empty_line(&rest[..at]))?;
        let event = start..start + end + 1;
        start = event.end;
        Some(event)
    })
}

/// What stands in an event, as far as the relay cares.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Fields {
    /// The line that names tokens, with its end.
    pub(super) tokens: Option<Range<usize>>,
    /// What follows `data:` in its line, without surrounding spaces.
    pub(super) data: Option<Range<usize>>,
    /// It has several such lines, or data in several lines: nothing that speaks OpenAI's dialect sends it.
    pub(super) is_odd: bool,
}

/// Finds the fields of an event.
pub(super) fn fields(event: &[u8]) -> Fields {
    let mut fields = Fields::default();
    let mut start = 0;
    while let Some(length) = memchr(b'\n', &event[start..]) {
        let (line, end) = (&event[start..start + length], start + length + 1);
        if line.starts_with(b"data:") {
            fields.is_odd |= fields.data.is_some();
            fields.data = Some(trimmed(event, start + b"data:".len()..end));
        } else if line.starts_with(TOKENS_COMMENT.as_bytes()) {
            fields.is_odd |= fields.tokens.is_some();
            fields.tokens = Some(start..end);
        }
        start = end;
    }
    fields
}

fn trimmed(event: &[u8], Range { mut start, mut end }: Range<usize>) -> Range<usize> {
    while start < end && event[start].is_ascii_whitespace() {
        start += 1;
    }
    while start < end && event[end - 1].is_ascii_whitespace() {
        end -= 1;
    }
    start..end
}

/// What is relayed of a run of events: its ranges that are kept, and what is put between them. Without anything left out or
/// put in between, it is a part of the run and not a copy.
pub(super) struct Output<'a> {
    run: &'a Bytes,
    /// Kept, not copied yet.
    kept: Range<usize>,
    copied: Vec<u8>,
}

impl<'a> Output<'a> {
    pub(super) fn of(run: &'a Bytes) -> Self {
        Self {
            run,
            kept: 0..0,
            copied: Vec::new(),
        }
    }

    /// Keeps a range that lies after all that were kept before.
    pub(super) fn keep(&mut self, range: Range<usize>) {
        if range.is_empty() {
            return;
        }
        if self.kept.is_empty() {
            self.kept = range;
        } else if self.kept.end == range.start {
            self.kept.end = range.end;
        } else {
            self.copy();
            self.kept = range;
        }
    }

    /// Puts other bytes here.
    pub(super) fn put(&mut self, bytes: &[u8]) {
        self.copy();
        self.copied.extend_from_slice(bytes);
    }

    pub(super) fn finish(mut self) -> Bytes {
        if self.copied.is_empty() {
            return self.run.slice(self.kept);
        }
        self.copy();
        self.copied.into()
    }

    fn copy(&mut self) {
        self.copied.extend_from_slice(&self.run[self.kept.clone()]);
        self.kept = 0..0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn feed_all(chunks: impl IntoIterator<Item = Bytes>) -> (Vec<u8>, Splitter) {
        let mut splitter = Splitter::default();
        let mut whole = Vec::new();
        for chunk in chunks {
            let run = splitter.feed(chunk).unwrap();
            assert_eq!(each(&run).map(|event| event.len()).sum::<usize>(), run.len());
            whole.extend_from_slice(&run);
        }
        (whole, splitter)
    }

    #[test]
    fn a_chunk_of_whole_events_is_not_copied() {
        let chunk = Bytes::from_static(b"data: 1\n\ndata: 2\n\n");
        let run = Splitter::default().feed(chunk.clone()).unwrap();
        assert_eq!((run.as_ptr(), run.len()), (chunk.as_ptr(), chunk.len()));
        let mut output = Output::of(&run);
        output.keep(0..9);
        output.keep(9..18);
        assert_eq!(output.finish().as_ptr(), chunk.as_ptr());
        let mut output = Output::of(&run);
        output.keep(9..18);
        assert_eq!(output.finish().as_ptr(), chunk[9..].as_ptr());
    }

    #[test]
    fn what_is_left_out_or_put_in_leaves_the_rest_in_order() {
        let run = Bytes::from_static(b"abcdef");
        let mut output = Output::of(&run);
        output.keep(1..2);
        output.put(b"--");
        output.keep(3..4);
        output.keep(5..6);
        assert_eq!(output.finish(), "b--df");
        assert_eq!(Output::of(&run).finish(), "");
    }

    #[test]
    fn the_fields_of_an_event_are_found_in_any_order_of_lines() {
        let find = |event: &'static str| {
            let Fields { tokens, data, is_odd } = fields(event.as_bytes());
            (
                tokens.map(|range| &event[range]),
                data.map(|range| &event[range]),
                is_odd,
            )
        };
        assert_eq!(
            find(": tokens 1 2\ndata: {}\n\n"),
            (Some(": tokens 1 2\n"), Some("{}"), false)
        );
        assert_eq!(
            find("id: 7\r\ndata:[DONE]\r\n: tokens 1\r\n\r\n"),
            (Some(": tokens 1\r\n"), Some("[DONE]"), false)
        );
        assert_eq!(find(": keep-alive\n\n"), (None, None, false));
        assert_eq!(find("data: a\ndata: b\n\n"), (None, Some("b"), true));
        assert_eq!(find("data:\n\n"), (None, Some(""), false));
    }

    #[test]
    fn an_event_that_does_not_end_is_given_back_whole() {
        let mut splitter = Splitter::default();
        let head = Bytes::from_static(b"data: 1\n\ndata: ");
        assert_eq!(splitter.feed(head).unwrap(), "data: 1\n\n");
        let endless = Bytes::from(vec![b'x'; MAX_EVENT_BYTES]);
        let TooLong(all) = splitter.feed(endless).unwrap_err();
        assert_eq!(all.len(), MAX_EVENT_BYTES + b"data: ".len());
        assert!(all.starts_with(b"data: x"));
        assert_eq!(splitter.feed(Bytes::from_static(b"\n\n")).unwrap(), "\n\n");
    }

    proptest! {
        #[test]
        fn any_cuts_give_the_same_whole_events(
            lines in prop::collection::vec("(data: [a-zä]{0,9}|: [a-z]{0,3}|)(\r\n|\n)", 0..12),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let all = Bytes::from(lines.concat());
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(all.len() + 1)).collect();
            cuts.extend([0, all.len()]);
            cuts.sort_unstable();
            let (whole, splitter) = feed_all(cuts.windows(2).map(|cut| all.slice(cut[0]..cut[1])));
            let (expected, _) = feed_all([all.clone()]);
            prop_assert_eq!(&whole, &expected);
            prop_assert_eq!([&*whole, &*splitter.tail].concat(), &*all);
            prop_assert!(each(&splitter.tail).next().is_none());
        }
    }
}
