//! As much of HTTP/1.1 as the pretended workers, the bare relay and the load need: a head, a length, and what follows.
//!
//! Plain sockets, so that the gateway is measured and not a library beside it.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, ToSocketAddrs};

/// Longest message that is read whole.
const MAX_MESSAGE: usize = 1 << 20;

/// How a message's end is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// After so many bytes of body.
    Length(usize),
    /// After a chunk of length 0.
    Chunked,
}

/// The head of a message: of a request or of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    /// Bytes up to its body.
    pub(crate) len: usize,
    /// Of an answer; 0 of a request.
    pub(crate) status: u16,
    /// How long its body is.
    pub(crate) framing: Framing,
}

impl Head {
    /// Reads a head; `None` until it is whole.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let len = find(bytes, b"\r\n\r\n")? + 4;
        let mut lines = bytes[..len].split(|byte| *byte == b'\n');
        let first = lines.next().unwrap_or_default();
        let status = first.strip_prefix(b"HTTP/1.1 ").and_then(|rest| number(rest.get(..3)?));
        let mut framing = Framing::Length(0);
        for line in lines {
            let Some(colon) = line.iter().position(|byte| *byte == b':') else {
                continue;
            };
            let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
            if name.eq_ignore_ascii_case(b"content-length") {
                framing = Framing::Length(number(value)?);
            } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
                framing = Framing::Chunked;
            }
        }
        Some(Self {
            len,
            status: status.unwrap_or(0) as u16,
            framing,
        })
    }
}

fn number(digits: &[u8]) -> Option<usize> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Where a word begins.
pub(crate) fn find(text: &[u8], word: &[u8]) -> Option<usize> {
    text.windows(word.len()).position(|window| window == word)
}

/// A connection with the bytes that have come and were not used yet.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    pub(crate) fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            buffer: Vec::with_capacity(8 << 10),
        })
    }

    pub(crate) async fn open(address: impl ToSocketAddrs) -> io::Result<Self> {
        Self::new(TcpStream::connect(address).await?)
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await
    }

    /// The head of the next message; `None` if the other side has closed instead.
    pub(crate) async fn head(&mut self) -> io::Result<Option<Head>> {
        loop {
            if let Some(head) = Head::parse(&self.buffer) {
                return Ok(Some(head));
            }
            if !self.more().await? {
                return Ok(None);
            }
        }
    }

    /// The next message with a known length, whole; `None` if the other side has closed instead.
    pub(crate) async fn message(&mut self) -> io::Result<Option<(Head, &[u8])>> {
        let Some(head) = self.head().await? else {
            return Ok(None);
        };
        let Framing::Length(length) = head.framing else {
            return Err(io::Error::other("a message of unknown length"));
        };
        while self.buffer.len() < head.len + length {
            if !self.more().await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(Some((head, &self.buffer[..head.len + length])))
    }

    /// What has come and was not used.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.buffer
    }

    /// Some bytes were used.
    pub(crate) fn used(&mut self, count: usize) {
        self.buffer.drain(..count);
    }

    /// Reads on; `false` if the other side has closed.
    pub(crate) async fn more(&mut self) -> io::Result<bool> {
        if self.buffer.len() > MAX_MESSAGE {
            return Err(io::Error::other("the message is too long"));
        }
        Ok(self.stream.read_buf(&mut self.buffer).await? > 0)
    }
}

/// Finds the end of a chunked body of events in its lines: the events themselves are lines without a bare `0`.
#[derive(Debug, Default)]
pub(crate) struct EventLines {
    is_last_chunk: bool,
}

/// What a line of a chunked stream of events is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line<'a> {
    /// The data of an event.
    Data(&'a [u8]),
    /// A chunk's length, a comment, a blank line.
    Other,
    /// Nothing comes after it.
    End,
}

impl EventLines {
    /// Reads the first whole line; `None` until there is one. The second value is its length.
    pub(crate) fn next<'a>(&mut self, bytes: &'a [u8]) -> Option<(Line<'a>, usize)> {
        let end = bytes.iter().position(|byte| *byte == b'\n')?;
        let line = bytes[..end].trim_ascii_end();
        let line = match line.strip_prefix(b"data: ") {
            Some(data) => Line::Data(data),
            None if self.is_last_chunk && line.is_empty() => Line::End,
            None => {
                self.is_last_chunk = line == b"0";
                Line::Other
            }
        };
        Some((line, end + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_tells_its_status_and_how_its_body_ends() {
        let head = |text: &str| Head::parse(text.as_bytes()).map(|head| (head.len, head.status, head.framing));
        assert_eq!(head("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n"), None);
        let text = "HTTP/1.1 429 Too Many\r\nContent-Length: 3\r\n\r\nabc";
        assert_eq!(head(text), Some((text.len() - 3, 429, Framing::Length(3))));
        let text = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
        assert_eq!(head(text), Some((text.len(), 0, Framing::Length(0))));
        let text = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        assert_eq!(head(text), Some((text.len(), 200, Framing::Chunked)));
    }

    #[test]
    fn a_stream_ends_with_its_last_chunk_wherever_events_were_cut() {
        let mut body: &[u8] = b"8\r\ndata: a\n\r\n1\r\n\n\r\n9\r\ndata: b\n\n\r\n0\r\n\r\nrest";
        let (mut lines, mut seen) = (EventLines::default(), Vec::new());
        while let Some((line, length)) = lines.next(body) {
            body = &body[length..];
            match line {
                Line::Data(data) => seen.push(data),
                Line::Other => {}
                Line::End => break,
            }
        }
        assert_eq!((seen, body), (vec![&b"a"[..], b"b"], &b"rest"[..]));
    }
}
