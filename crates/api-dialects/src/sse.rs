//! The lines of a stream of server-sent events (WHATWG HTML, section 9.2.6), read from bytes that are cut anywhere.

/// Largest event that is put together, in bytes: a stream whose lines never end must not take all memory.
pub(crate) const MAX_EVENT_BYTES: usize = 4 << 20;

/// Puts events together. Lines may end in LF, CR or both.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    /// The unfinished line.
    line: Vec<u8>,
    /// The data of the unfinished event, each line of it followed by a line break.
    data: Vec<u8>,
    /// Whether the last byte was a CR, so that an LF now belongs to it.
    after_cr: bool,
}

/// What a stream consists of.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Item<'a> {
    /// Data of a whole event.
    Data(&'a [u8]),
    /// A comment line without its colon and the space that may follow it.
    Comment(&'a [u8]),
}

/// An event is larger than [`MAX_EVENT_BYTES`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooLarge;

impl Decoder {
    /// Takes bytes, and calls `each` for what is whole, in order. What `data:` lines do not say (names of events, retry
    /// times) is passed over.
    pub(crate) fn push(&mut self, mut bytes: &[u8], mut each: impl FnMut(Item<'_>)) -> Result<(), TooLarge> {
        if self.after_cr
            && let Some(rest) = bytes.strip_prefix(b"\n")
        {
            bytes = rest;
            self.after_cr = false;
        }
        while let Some(at) = bytes.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
            let (begin, rest) = bytes.split_at(at);
            if self.line.is_empty() {
                self.end_line(begin, &mut each)?;
            } else {
                self.line.extend_from_slice(begin);
                let line = std::mem::take(&mut self.line);
                self.end_line(&line, &mut each)?;
                self.line = line;
                self.line.clear();
            }
            (bytes, self.after_cr) = match rest {
                [b'\r', b'\n', rest @ ..] => (rest, false),
                [b'\r'] => (b"".as_slice(), true),
                [_, rest @ ..] => (rest, false),
                [] => (rest, false),
            };
        }
        if !bytes.is_empty() {
            self.after_cr = false;
            self.check(self.line.len() + bytes.len())?;
            self.line.extend_from_slice(bytes);
        }
        Ok(())
    }

    fn end_line(&mut self, line: &[u8], each: &mut impl FnMut(Item<'_>)) -> Result<(), TooLarge> {
        if line.is_empty() {
            if let Some(data) = self.data.strip_suffix(b"\n") {
                each(Item::Data(data));
            }
            self.data.clear();
        } else if let Some(comment) = line.strip_prefix(b":") {
            each(Item::Comment(comment.strip_prefix(b" ").unwrap_or(comment)));
        } else if let Some(data) = line.strip_prefix(b"data:") {
            self.check(self.data.len() + data.len())?;
            self.data.extend_from_slice(data.strip_prefix(b" ").unwrap_or(data));
            self.data.push(b'\n');
        }
        Ok(())
    }

    fn check(&self, bytes: usize) -> Result<(), TooLarge> {
        if bytes > MAX_EVENT_BYTES { Err(TooLarge) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> Vec<String> {
        let mut decoder = Decoder::default();
        let mut items = Vec::new();
        for chunk in chunks {
            let pushed = decoder.push(chunk, |item| {
                items.push(match item {
                    Item::Data(data) => format!("data {}", String::from_utf8_lossy(data)),
                    Item::Comment(text) => format!("comment {}", String::from_utf8_lossy(text)),
                });
            });
            pushed.unwrap();
        }
        items
    }

    #[test]
    fn events_and_comments_come_in_order() {
        let stream: &[u8] =
            b": hello\n\nevent: x\ndata: {\"a\":1}\n\n:\n\ndata:two\ndata: lines\n\nid: 1\n\ndata: cut off\n";
        let expected = ["comment hello", "data {\"a\":1}", "comment ", "data two\nlines"];
        assert_eq!(read([stream]), expected);
    }

    #[test]
    fn an_event_without_an_end_is_given_up() {
        let mut decoder = Decoder::default();
        let piece = vec![b'x'; MAX_EVENT_BYTES / 2 + 1];
        assert_eq!(decoder.push(&piece, |_| ()), Ok(()));
        assert_eq!(decoder.push(&piece, |_| ()), Err(TooLarge));
        let mut decoder = Decoder::default();
        let mut line = [b"data:".as_slice(), &piece].concat();
        line.push(b'\n');
        assert_eq!(decoder.push(&line, |_| ()), Ok(()));
        assert_eq!(decoder.push(&line, |_| ()), Err(TooLarge));
    }

    proptest! {
        #[test]
        fn neither_cuts_nor_the_kind_of_line_ends_change_what_is_read(
            lines in prop::collection::vec(prop::sample::select(vec!["data: a", "data: bé", ": c", "", "", "event: d"]), 0..12),
            ends in prop::sample::select(vec!["\n", "\r\n", "\r"]),
            cuts in prop::collection::vec(1_usize..4, 0..40),
        ) {
            let plain: String = lines.iter().flat_map(|line| [line, "\n"]).collect();
            let other: String = lines.iter().flat_map(|line| [line, ends]).collect();
            let mut rest = other.as_bytes();
            let mut chunks = Vec::new();
            for cut in cuts {
                let (chunk, after) = rest.split_at(cut.min(rest.len()));
                chunks.push(chunk);
                rest = after;
            }
            chunks.push(rest);
            prop_assert_eq!(read(chunks), read([plain.as_bytes()]));
        }
    }
}
