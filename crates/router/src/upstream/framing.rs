//! Where an answer's head and body end (RFC 9112, sections 6 and 7).

use bytes::{Buf, Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode, Version, response};

use super::remove_hop_by_hop;

/// Longest head, and longest sum of a chunked body's trailers.
const MAX_HEAD: usize = 64 << 10;
/// Most headers.
const MAX_HEADERS: usize = 100;
/// Longest line that tells a chunk's length.
const MAX_CHUNK_LINE: usize = 4 << 10;

/// What came is not HTTP/1.1 as it should be; the text says what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the answer is not valid HTTP/1.1: {0}")]
pub(super) struct Malformed(&'static str);

/// The head of an answer.
#[derive(Debug)]
pub(super) struct Head {
    /// Without headers that are the connection's.
    pub(super) parts: response::Parts,
    pub(super) framing: Framing,
    /// Whether the connection can be used again after the body.
    pub(super) stays_open: bool,
}

/// How the rest of a body is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// So many bytes are left.
    Length(u64),
    /// In chunks; this comes next.
    Chunked(Chunk),
    /// The end of the connection is its end.
    UntilClose,
}

/// What comes next of a chunked body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Chunk {
    /// The line that tells a chunk's length.
    Size,
    /// So many bytes of data.
    Data(u64),
    /// The line break after the data.
    DataEnd,
    /// Trailers, of which so many bytes have come.
    Trailers(usize),
    /// Nothing.
    End,
}

/// The next of a body.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Some of its bytes.
    Data(Bytes),
    /// It depends on what has not come yet.
    More,
    /// It is over.
    End,
}

impl Head {
    /// Takes the next head off the buffer, interim answers skipped; `None` until it is whole.
    pub(super) fn take(buffer: &mut BytesMut) -> Result<Option<Self>, Malformed> {
        loop {
            let Some(end) = memchr::memmem::find(buffer, b"\r\n\r\n") else {
                return match buffer.len() {
                    ..MAX_HEAD => Ok(None),
                    _ => Err(Malformed("its head is too long")),
                };
            };
            let head = Self::parse(&buffer.split_to(end + 4).freeze())?;
            match head.parts.status {
                StatusCode::SWITCHING_PROTOCOLS => return Err(Malformed("it changes the protocol")),
                status if status.is_informational() => {}
                _ => return Ok(Some(head)),
            }
        }
    }

    fn parse(bytes: &Bytes) -> Result<Self, Malformed> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut parsed = httparse::Response::new(&mut headers);
        match parsed.parse(bytes) {
            Ok(httparse::Status::Complete(_)) => {}
            Ok(httparse::Status::Partial) => return Err(Malformed("its head ends too early")),
            Err(_) => return Err(Malformed("its head cannot be read")),
        }
        let (mut parts, ()) = Response::new(()).into_parts();
        let status = parsed.code.and_then(|code| StatusCode::from_u16(code).ok());
        parts.status = status.ok_or(Malformed("its status is no number from 100 to 999"))?;
        if parsed.version == Some(0) {
            parts.version = Version::HTTP_10;
        }
        parts.headers.reserve(parsed.headers.len());
        for header in parsed.headers.iter() {
            // Values stay where they are: they share the head's bytes.
            let name = HeaderName::from_bytes(header.name.as_bytes());
            let value = HeaderValue::from_maybe_shared(bytes.slice_ref(header.value));
            match (name, value) {
                (Ok(name), Ok(value)) => drop(parts.headers.append(name, value)),
                _ => return Err(Malformed("one of its headers cannot be read")),
            }
        }
        let framing = Framing::of(parts.status, &parts.headers)?;
        let closes = parts.version == Version::HTTP_10 || says(&parts.headers, &header::CONNECTION, "close");
        remove_hop_by_hop(&mut parts.headers);
        if !matches!(framing, Framing::Length(_)) {
            // It did not count here, so it must not count for whoever gets this head next.
            parts.headers.remove(header::CONTENT_LENGTH);
        }
        // It speaks of its own connection only; what the client gets is of the version that it asked with.
        parts.version = Version::HTTP_11;
        Ok(Self {
            parts,
            framing,
            stays_open: !closes && framing != Framing::UntilClose,
        })
    }
}

/// Whether one of the words of a header is this one.
fn says(headers: &HeaderMap, name: &HeaderName, word: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    let mut words = values.flat_map(|value| value.split(','));
    words.any(|said| said.trim().eq_ignore_ascii_case(word))
}

impl Framing {
    /// Of the answer to a `POST`.
    fn of(status: StatusCode, headers: &HeaderMap) -> Result<Self, Malformed> {
        if matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
            return Ok(Self::Length(0));
        }
        let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter().peekable();
        if codings.peek().is_some() {
            // It counts, not the length: whoever sends both is read as every other recipient has to read it.
            let last = codings.last().and_then(|value| value.to_str().ok()?.rsplit(',').next());
            return Ok(match last {
                Some(coding) if coding.trim().eq_ignore_ascii_case("chunked") => Self::Chunked(Chunk::Size),
                _ => Self::UntilClose,
            });
        }
        let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
        let Some(length) = lengths.next() else {
            return Ok(Self::UntilClose);
        };
        if lengths.any(|other| other != length) {
            return Err(Malformed("it has two lengths"));
        }
        let digits = length
            .to_str()
            .ok()
            .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
        let length = digits.and_then(|digits| digits.parse().ok());
        length.map(Self::Length).ok_or(Malformed("its length is no number"))
    }

    /// Whether nothing comes any more.
    pub(super) fn is_over(self) -> bool {
        matches!(self, Self::Length(0) | Self::Chunked(Chunk::End))
    }

    /// Takes the next of the body off the buffer.
    pub(super) fn next(&mut self, buffer: &mut BytesMut) -> Result<Step, Malformed> {
        self.skip(buffer)?;
        let left = match self {
            _ if self.is_over() => return Ok(Step::End),
            _ if buffer.is_empty() => return Ok(Step::More),
            Self::UntilClose => return Ok(Step::Data(buffer.split().freeze())),
            Self::Length(left) | Self::Chunked(Chunk::Data(left)) => left,
            Self::Chunked(_) => return Ok(Step::More),
        };
        let count = usize::try_from(*left).map_or(buffer.len(), |left| left.min(buffer.len()));
        *left -= count as u64;
        let data = buffer.split_to(count).freeze();
        // So that whoever gets the last of the data knows that it is the last.
        self.skip(buffer)?;
        Ok(Step::Data(data))
    }

    /// Skips what is no data.
    fn skip(&mut self, buffer: &mut BytesMut) -> Result<(), Malformed> {
        while let Self::Chunked(chunk) = self {
            match chunk.skip(buffer)? {
                Some(next) => *chunk = next,
                None => break,
            }
        }
        Ok(())
    }
}

impl Chunk {
    /// What comes after the next part that is no data; `None` if there is none, or not all of it.
    fn skip(self, buffer: &mut BytesMut) -> Result<Option<Self>, Malformed> {
        match self {
            Self::Data(0) => Ok(Some(Self::DataEnd)),
            Self::Data(_) | Self::End => Ok(None),
            Self::DataEnd if buffer.len() < 2 => Ok(None),
            Self::DataEnd => {
                if !buffer.starts_with(b"\r\n") {
                    return Err(Malformed("a chunk is longer than it says"));
                }
                buffer.advance(2);
                Ok(Some(Self::Size))
            }
            Self::Size => Ok(match line(buffer, MAX_CHUNK_LINE)? {
                None => None,
                Some(line) => match chunk_length(&line)? {
                    0 => Some(Self::Trailers(0)),
                    length => Some(Self::Data(length)),
                },
            }),
            Self::Trailers(seen) => Ok(match line(buffer, MAX_HEAD - seen)? {
                None => None,
                Some(line) if line.is_empty() => Some(Self::End),
                Some(line) => Some(Self::Trailers(seen + line.len())),
            }),
        }
    }
}

/// Takes a line off the buffer, without its end; `None` until it is whole.
fn line(buffer: &mut BytesMut, limit: usize) -> Result<Option<BytesMut>, Malformed> {
    match memchr::memchr(b'\n', buffer) {
        Some(end) if end <= limit => {
            let mut line = buffer.split_to(end + 1);
            let text = line.strip_suffix(b"\r\n").unwrap_or(&line[..end]).len();
            line.truncate(text);
            Ok(Some(line))
        }
        None if buffer.len() <= limit => Ok(None),
        _ => Err(Malformed("a line of a chunked body is too long")),
    }
}

fn chunk_length(line: &[u8]) -> Result<u64, Malformed> {
    // Extensions say nothing to anybody.
    let digits = line.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    let number = std::str::from_utf8(digits)
        .ok()
        .filter(|_| digits.iter().all(u8::is_ascii_hexdigit));
    number
        .and_then(|digits| u64::from_str_radix(digits, 16).ok())
        .ok_or(Malformed("the length of a chunk is no number"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn head(text: &str) -> Result<Option<Head>, Malformed> {
        Head::take(&mut BytesMut::from(text))
    }

    fn framing(headers: &str) -> Result<(Framing, bool), Malformed> {
        let head = head(&format!("HTTP/1.1 200 OK\r\n{headers}\r\n"))?.unwrap();
        Ok((head.framing, head.stays_open))
    }

    /// The body's pieces, fed to it in parts of this size.
    fn read(mut framing: Framing, wire: &[u8], part: usize) -> Result<(Vec<u8>, Vec<u8>), Malformed> {
        let (mut buffer, mut body, mut parts) = (BytesMut::new(), Vec::new(), wire.chunks(part));
        loop {
            match framing.next(&mut buffer)? {
                Step::Data(data) => body.extend_from_slice(&data),
                Step::End => break,
                Step::More => match parts.next() {
                    Some(part) => buffer.extend_from_slice(part),
                    None => break,
                },
            }
        }
        Ok((body, buffer.to_vec()))
    }

    #[test]
    fn a_head_is_taken_when_it_is_whole_and_only_that_much() {
        assert!(head("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n").unwrap().is_none());
        let mut buffer = BytesMut::from("HTTP/1.1 429 Later\r\nX-A: b\r\nContent-Length: 2\r\n\r\nok");
        let head = Head::take(&mut buffer).unwrap().unwrap();
        assert_eq!((head.parts.status.as_u16(), &buffer[..]), (429, &b"ok"[..]));
        assert_eq!(head.parts.headers["x-a"], "b");
        assert_eq!((head.framing, head.stays_open), (Framing::Length(2), true));
    }

    #[test]
    fn interim_answers_are_skipped() {
        let text =
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n";
        let head = head(text).unwrap().unwrap();
        assert_eq!((head.parts.status.as_u16(), head.framing), (204, Framing::Length(0)));
    }

    #[test]
    fn the_end_of_a_body_is_found_by_the_rules() {
        assert_eq!(
            framing("content-length: 7\r\ncontent-length: 7\r\n"),
            Ok((Framing::Length(7), true))
        );
        let chunked = Framing::Chunked(Chunk::Size);
        assert_eq!(
            framing("transfer-encoding: Chunked\r\ncontent-length: 3\r\n"),
            Ok((chunked, true))
        );
        assert_eq!(framing("transfer-encoding: gzip, chunked\r\n"), Ok((chunked, true)));
        assert_eq!(
            framing("transfer-encoding: chunked, gzip\r\n"),
            Ok((Framing::UntilClose, false))
        );
        assert_eq!(framing(""), Ok((Framing::UntilClose, false)));
        assert_eq!(
            framing("content-length: 1\r\nConnection: foo, Close\r\n"),
            Ok((Framing::Length(1), false))
        );
        for wrong in [
            "content-length: 1\r\ncontent-length: 2\r\n",
            "content-length: -1\r\n",
            "content-length: 1,1\r\n",
        ] {
            assert!(framing(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_belongs_to_the_connection_stays_there() {
        let text = "HTTP/1.1 200 OK\r\nconnection: keep-alive, x-own\r\nkeep-alive: timeout=5\r\nx-own: 1\r\nx-mine: 1\r\n\
                    transfer-encoding: chunked\r\n\r\n";
        let headers = head(text).unwrap().unwrap().parts.headers;
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-mine"]);
    }

    #[test]
    fn what_is_no_http_is_an_error() {
        for wrong in [
            "SSH-2.0-x\r\n\r\n",
            "HTTP/1.1 101 Switching Protocols\r\n\r\n",
            "HTTP/1.1 200 OK\r\na b: c\r\n\r\n",
        ] {
            assert!(head(wrong).is_err(), "{wrong}");
        }
        assert!(Head::take(&mut BytesMut::from(&vec![b'a'; MAX_HEAD][..])).is_err());
        for wrong in ["x\r\n", "\r\n", "-1\r\n", "11111111111111111\r\n", "1\r\nab\r\n"] {
            assert!(
                read(Framing::Chunked(Chunk::Size), wrong.as_bytes(), 100).is_err(),
                "{wrong}"
            );
        }
        let endless = [b'0'; MAX_CHUNK_LINE + 1];
        assert!(read(Framing::Chunked(Chunk::Size), &endless, 100).is_err());
        let trailers = ["0\r\n".to_owned(), "a: b\r\n".repeat(MAX_HEAD)].concat();
        assert!(read(Framing::Chunked(Chunk::Size), trailers.as_bytes(), 1 << 16).is_err());
    }

    #[test]
    fn the_last_data_is_known_to_be_the_last() {
        let mut buffer = BytesMut::from("3\r\nabc\r\n0\r\n\r\n");
        let mut framing = Framing::Chunked(Chunk::Size);
        assert_eq!(framing.next(&mut buffer), Ok(Step::Data(Bytes::from_static(b"abc"))));
        assert!(framing.is_over() && buffer.is_empty());
    }

    proptest! {
        #[test]
        fn however_a_body_comes_it_is_the_same(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..8),
            extension in prop::sample::select(vec!["", ";a=b", " ; x"]),
            trailers in prop::sample::select(vec!["", "a: b\r\n", "a: b\r\nc: d\r\n"]),
            part in 1..50_usize,
        ) {
            let mut wire = Vec::new();
            for chunk in &chunks {
                wire.extend_from_slice(format!("{:x}{extension}\r\n", chunk.len()).as_bytes());
                wire.extend_from_slice(chunk);
                wire.extend_from_slice(b"\r\n");
            }
            wire.extend_from_slice(format!("0\r\n{trailers}\r\n").as_bytes());
            let (body, rest) = read(Framing::Chunked(Chunk::Size), &wire, part).unwrap();
            prop_assert_eq!(&body, &chunks.concat());
            prop_assert!(rest.is_empty());
            let plain = chunks.concat();
            let (body, _) = read(Framing::Length(plain.len() as u64), &plain, part).unwrap();
            prop_assert_eq!(body, plain);
        }
    }
}
