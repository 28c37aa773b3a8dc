//! Reads server-sent events out of a body, within a limit.
//!
//! Only their data: what a hive's streams have besides is in the data, too. Lines end with LF or CR LF.

use bytes::{Buf, Bytes};

/// Longest line, and longest data of one event.
pub(crate) const MAX_EVENT_BYTES: usize = 1 << 20;

/// The event is longer than anything that a hive tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooLong;

/// The part of a stream that is no complete event yet.
#[derive(Debug, Default)]
pub(crate) struct EventReader {
    chunk: Bytes,
    line: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
}

impl EventReader {
    /// Takes the next bytes, once [`next`](Self::next) has nothing left of those before.
    pub(crate) fn feed(&mut self, chunk: Bytes) {
        debug_assert!(self.chunk.is_empty(), "fed before it was hungry");
        self.chunk = chunk;
    }

    /// The data of the next event; `None` if it needs more bytes.
    pub(crate) fn next(&mut self) -> Result<Option<Vec<u8>>, TooLong> {
        while let Some(end) = self.chunk.iter().position(|byte| *byte == b'\n') {
            let rest = self.chunk.split_to(end);
            self.chunk.advance(1);
            let mut line = self.take_line(&rest)?;
            if line.last() == Some(&b'\r') {
                line.pop();
            }
            if !line.is_empty() {
                self.take_field(&line)?;
            } else if std::mem::take(&mut self.has_data) {
                return Ok(Some(std::mem::take(&mut self.data)));
            }
        }
        let rest = std::mem::take(&mut self.chunk);
        self.line = self.take_line(&rest)?;
        Ok(None)
    }

    /// What came of the line so far, and this.
    fn take_line(&mut self, rest: &[u8]) -> Result<Vec<u8>, TooLong> {
        let mut line = std::mem::take(&mut self.line);
        if line.len() + rest.len() > MAX_EVENT_BYTES {
            return Err(TooLong);
        }
        line.extend_from_slice(rest);
        Ok(line)
    }

    fn take_field(&mut self, line: &[u8]) -> Result<(), TooLong> {
        // Without a colon the whole line is the name; one that begins with a colon is a comment.
        let (name, value) = match line.iter().position(|byte| *byte == b':') {
            Some(colon) => (&line[..colon], &line[colon + 1..]),
            None => (line, &[][..]),
        };
        if name != b"data" {
            return Ok(());
        }
        let value = value.strip_prefix(b" ").unwrap_or(value);
        if self.data.len() + value.len() + 1 > MAX_EVENT_BYTES {
            return Err(TooLong);
        }
        if std::mem::replace(&mut self.has_data, true) {
            self.data.push(b'\n');
        }
        self.data.extend_from_slice(value);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The events of a stream that comes in chunks of `size`.
    fn read(text: &str, size: usize) -> Result<Vec<String>, TooLong> {
        let mut reader = EventReader::default();
        let mut events = Vec::new();
        for chunk in text.as_bytes().chunks(size) {
            reader.feed(Bytes::copy_from_slice(chunk));
            while let Some(data) = reader.next()? {
                events.push(String::from_utf8(data).unwrap());
            }
        }
        Ok(events)
    }

    #[test]
    fn an_event_is_read_however_it_is_cut() {
        let text = ": hello\n\nevent: x\nid: 1\ndata: {\"a\": 1}\n\ndata:two\r\ndata: lines\r\n\r\nother: y\n\ndata\n\ndata: cut";
        for size in 1..=text.len() {
            assert_eq!(
                read(text, size).unwrap(),
                ["{\"a\": 1}", "two\nlines", ""],
                "chunks of {size}"
            );
        }
    }

    #[test]
    fn an_event_without_an_end_is_given_up() {
        let line = "x".repeat(MAX_EVENT_BYTES + 1);
        assert_eq!(read(&line, 4_096), Err(TooLong));
        let lines = format!("data: {}\n", "x".repeat(1_000)).repeat(MAX_EVENT_BYTES / 1_000 + 1);
        assert_eq!(read(&lines, 4_096), Err(TooLong));
        let fits = format!("data:{}\n\n", "x".repeat(MAX_EVENT_BYTES - 5));
        assert_eq!(read(&fits, 4_096).unwrap().len(), 1);
    }
}
