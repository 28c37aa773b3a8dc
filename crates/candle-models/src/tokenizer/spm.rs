//! SentencePiece's greedy merging as GGUF files of type `llama` use it: neighbours whose union is a token are joined,
//! the union with the best score first, until no two neighbours can be; what is no token then is spelled in bytes.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use candle_core::quantized::gguf_file::Value;

use super::TokenizerError;
use super::vocabulary::{Kind, Vocabulary, byte_of};
use crate::gguf::{Gguf, count};

/// Stands for a space in spellings.
pub(super) const SPACE: &str = "\u{2581}";

pub(super) struct Spm {
    ids: HashMap<Box<str>, u32>,
    scores: Vec<f32>,
    /// The token of each byte.
    bytes: Vec<Option<u32>>,
    unknown: Option<u32>,
    space_prefix: bool,
}

/// A piece of the text and its neighbours; merged pieces are left behind empty.
struct Piece {
    start: usize,
    end: usize,
    before: Option<usize>,
    after: Option<usize>,
}

/// Two neighbours whose union is a token.
struct Union {
    score: f32,
    left: usize,
    right: usize,
    /// Bytes of the union when it was found: it is stale if its pieces have changed since.
    len: usize,
}

impl Spm {
    pub(super) fn from_gguf(gguf: &Gguf, vocabulary: &Vocabulary) -> Result<Self, TokenizerError> {
        let scores = gguf
            .array("tokenizer.ggml.scores")
            .ok_or(TokenizerError::Missing("tokenizer.ggml.scores"))?;
        let score = |value: &Value| {
            value
                .to_f32()
                .map_err(|_| TokenizerError::Missing("tokenizer.ggml.scores"))
        };
        let scores = scores.iter().map(score).collect::<Result<Vec<_>, _>>()?;
        let unknown = gguf.value("tokenizer.ggml.unknown_token_id").and_then(count);
        let unknown = unknown.filter(|&id| id < vocabulary.len()).map(|id| id as u32);
        let space_prefix = gguf.flag("tokenizer.ggml.add_space_prefix").unwrap_or(true);
        Self::new(vocabulary, scores, unknown, space_prefix)
    }

    fn new(
        vocabulary: &Vocabulary,
        scores: Vec<f32>,
        unknown: Option<u32>,
        space_prefix: bool,
    ) -> Result<Self, TokenizerError> {
        if scores.len() != vocabulary.len() {
            let (tokens, scores) = (vocabulary.len(), scores.len());
            return Err(TokenizerError::Damaged(format!("{tokens} tokens with {scores} scores")));
        }
        let mut bytes = vec![None; 256];
        for id in vocabulary.of_kinds(&[Kind::Byte]) {
            if let Some(byte) = byte_of(vocabulary.spelling(id)) {
                bytes[usize::from(byte)] = Some(id);
            }
        }
        let ids = vocabulary
            .ids()
            .map(|id| (vocabulary.spelling(id).into(), id))
            .collect();
        Ok(Self {
            ids,
            scores,
            bytes,
            unknown,
            space_prefix,
        })
    }

    /// `first`: the text begins a prompt or follows a special token, where a space may be wanted before it.
    pub(super) fn encode(&self, text: &str, first: bool, tokens: &mut Vec<u32>) {
        let prefix = if first && self.space_prefix { " " } else { "" };
        let text = format!("{prefix}{text}").replace(' ', SPACE);
        let pieces = self.merge(&text);
        let mut next = (!pieces.is_empty()).then_some(0);
        while let Some(index) = next {
            let piece = &pieces[index];
            let spelling = &text[piece.start..piece.end];
            match self.ids.get(spelling) {
                Some(&id) => tokens.push(id),
                None => tokens.extend(
                    spelling
                        .bytes()
                        .filter_map(|byte| self.bytes[usize::from(byte)].or(self.unknown)),
                ),
            }
            next = piece.after;
        }
    }

    /// Single characters, joined as far as unions go.
    fn merge(&self, text: &str) -> Vec<Piece> {
        let starts: Vec<usize> = text.char_indices().map(|(start, _)| start).collect();
        let last = starts.len().saturating_sub(1);
        let mut pieces: Vec<Piece> = starts
            .iter()
            .enumerate()
            .map(|(index, &start)| Piece {
                start,
                end: starts.get(index + 1).copied().unwrap_or(text.len()),
                before: index.checked_sub(1),
                after: (index < last).then_some(index + 1),
            })
            .collect();
        let mut queue: BinaryHeap<Union> = (1..pieces.len())
            .filter_map(|right| self.union(text, &pieces, right - 1, right))
            .collect();
        while let Some(Union { left, right, len, .. }) = queue.pop() {
            // Stale: a piece has been taken into another one, or has grown.
            let lens = [left, right].map(|index| pieces[index].end - pieces[index].start);
            if lens.contains(&0) || lens[0] + lens[1] != len {
                continue;
            }
            let after = pieces[right].after;
            pieces[left].end = pieces[right].end;
            pieces[left].after = after;
            pieces[right].start = pieces[right].end;
            if let Some(after) = after {
                pieces[after].before = Some(left);
                queue.extend(self.union(text, &pieces, left, after));
            }
            if let Some(before) = pieces[left].before {
                queue.extend(self.union(text, &pieces, before, left));
            }
        }
        pieces
    }

    fn union(&self, text: &str, pieces: &[Piece], left: usize, right: usize) -> Option<Union> {
        let union = &text[pieces[left].start..pieces[right].end];
        let id = *self.ids.get(union)?;
        Some(Union {
            score: self.scores[id as usize],
            left,
            right,
            len: union.len(),
        })
    }
}

impl Ord for Union {
    /// The best score is the greatest; among equals, the leftmost.
    fn cmp(&self, other: &Self) -> Ordering {
        self.score
            .total_cmp(&other.score)
            .then_with(|| other.left.cmp(&self.left))
    }
}

impl PartialOrd for Union {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Union {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Union {}

#[cfg(test)]
mod tests {
    use super::*;

    fn spm(tokens: &[(&str, f32)], space_prefix: bool) -> (Spm, Vocabulary) {
        let mut spellings: Vec<Box<str>> = tokens.iter().map(|&(text, _)| text.into()).collect();
        let mut kinds = vec![Kind::Normal; tokens.len()];
        let mut scores: Vec<f32> = tokens.iter().map(|&(_, score)| score).collect();
        for byte in 0..=255u8 {
            spellings.push(format!("<0x{byte:02X}>").into());
            kinds.push(Kind::Byte);
            scores.push(0.0);
        }
        let vocabulary = Vocabulary::new(spellings, kinds, false).expect("consistent");
        (
            Spm::new(&vocabulary, scores, None, space_prefix).expect("consistent"),
            vocabulary,
        )
    }

    #[track_caller]
    fn assert_spelled(tokens: &[(&str, f32)], text: &str, spelled: &[&str]) {
        let (spm, vocabulary) = spm(tokens, false);
        let mut ids = Vec::new();
        spm.encode(text, true, &mut ids);
        assert_eq!(
            ids.iter().map(|&id| vocabulary.spelling(id)).collect::<Vec<_>>(),
            spelled
        );
    }

    #[test]
    fn the_best_scored_union_goes_first() {
        let tokens = [
            ("a", 0.0),
            ("b", 0.0),
            ("c", 0.0),
            ("ab", -2.0),
            ("bc", -1.0),
            ("abc", -3.0),
        ];
        assert_spelled(&tokens, "abc", &["abc"]);
        assert_spelled(&tokens[..5], "abc", &["a", "bc"]);
    }

    #[test]
    fn among_equal_scores_the_leftmost_goes_first() {
        assert_spelled(&[("a", 0.0), ("aa", -1.0)], "aaa", &["aa", "a"]);
    }

    #[test]
    fn nothing_of_the_text_is_lost_when_a_piece_grows_to_the_length_of_an_older_union() {
        // "bc" and "cd" are found first; "cd" wins and takes c away, then "ab" grows beside a stale "bc".
        let tokens = ["a", "b", "c", "d", "e"].map(|letter| (letter, 0.0));
        let unions = [("cd", -1.0), ("de", -2.0), ("bc", -3.0), ("cde", -4.0), ("ab", -5.0)];
        let tokens: Vec<_> = tokens.into_iter().chain(unions).collect();
        for text in ["abcde", "bcde", "decdeab", "cdcdeeabcd", "edcba"] {
            let (spm, vocabulary) = spm(&tokens, false);
            let mut ids = Vec::new();
            spm.encode(text, true, &mut ids);
            assert_eq!(ids.iter().map(|&id| vocabulary.spelling(id)).collect::<String>(), text);
        }
    }

    #[test]
    fn what_no_token_covers_is_spelled_in_bytes() {
        assert_spelled(&[("a", 0.0)], "aé", &["a", "<0xC3>", "<0xA9>"]);
    }

    #[test]
    fn a_space_is_put_before_where_the_file_wants_it_and_after_special_tokens_only() {
        let (spm, vocabulary) = spm(&[("\u{2581}", 0.0), ("a", 0.0), ("\u{2581}a", -1.0)], true);
        for (first, spelled) in [(true, "\u{2581}a"), (false, "a")] {
            let mut ids = Vec::new();
            spm.encode("a", first, &mut ids);
            assert_eq!(
                ids.iter().map(|&id| vocabulary.spelling(id)).collect::<Vec<_>>(),
                [spelled]
            );
        }
    }
}
