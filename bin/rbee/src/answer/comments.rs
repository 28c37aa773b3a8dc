//! The comment lines of a stream of server-sent events, in which the queen tells why nothing comes yet.

/// A comment that only keeps the connection open.
const KEEP_ALIVE: &str = "keep-alive";
/// Longest comment that is taken, in bytes.
const MAX_COMMENT: usize = 1_024;

/// Finds comments in a stream, however it is cut.
#[derive(Debug, Default)]
pub(super) struct Comments {
    /// Whether this line has begun.
    begun: bool,
    /// The comment so far, where this line is one.
    comment: Option<Vec<u8>>,
}

impl Comments {
    /// The comments that these bytes complete; those without a word are left out.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut found = Vec::new();
        for &byte in bytes {
            match (byte, &mut self.comment) {
                (b'\n' | b'\r', comment) => {
                    found.extend(comment.take().and_then(|comment| words(&comment)));
                    self.begun = false;
                }
                (_, Some(comment)) if comment.len() < MAX_COMMENT => comment.push(byte),
                (b':', None) if !self.begun => {
                    self.comment = Some(Vec::new());
                    self.begun = true;
                }
                _ => self.begun = true,
            }
        }
        found
    }
}

fn words(comment: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(comment).trim().to_owned();
    (!text.is_empty() && text != KEEP_ALIVE).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_is_found_however_the_stream_is_cut() {
        let text = ": waiting, place 1 of 2\n\n:\n: keep-alive\r\n\r\ndata: a: b\n\n:loading m, load 7 %\r\n\r\n: cut";
        for size in 1..=text.len() {
            let mut comments = Comments::default();
            let found: Vec<_> = text
                .as_bytes()
                .chunks(size)
                .flat_map(|chunk| comments.feed(chunk))
                .collect();
            assert_eq!(
                found,
                ["waiting, place 1 of 2", "loading m, load 7 %"],
                "chunks of {size}"
            );
        }
    }

    #[test]
    fn a_comment_without_an_end_takes_bounded_memory() {
        let mut comments = Comments::default();
        assert!(comments.feed(&[b':'; 100_000]).is_empty());
        assert_eq!(comments.feed(b"\n")[0].len(), MAX_COMMENT);
    }
}
