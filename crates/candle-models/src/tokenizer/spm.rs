//! SentencePiece's greedy merging as GGUF files of type `llama` use it: neighbours whose union is a token are joined,
//! the union with the best score first, until no two neighbours can be; what is no token then is spelled in bytes.

use super::TokenizerError;
use super::merge::{Merger, Union};
use super::vocabulary::{Kind, SPACE, Spellings, Vocabulary, byte_of};
use model_format::ModelFile;

pub(super) struct Spm {
    spellings: Spellings,
    scores: Vec<f32>,
    /// The token of each byte.
    bytes: [Option<u32>; 256],
    unknown: Option<u32>,
    space_prefix: bool,
}

impl Spm {
    pub(super) fn from_gguf(file: &ModelFile, vocabulary: &Vocabulary) -> Result<Self, TokenizerError> {
        let scores = file
            .floats("tokenizer.ggml.scores")
            .ok_or(TokenizerError::Missing("tokenizer.ggml.scores"))?;
        let unknown = file.count("tokenizer.ggml.unknown_token_id");
        let unknown = unknown.filter(|&id| id < vocabulary.len()).map(|id| id as u32);
        let space_prefix = file.flag("tokenizer.ggml.add_space_prefix").unwrap_or(true);
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
        let mut bytes = [None; 256];
        for id in vocabulary.of_kinds(&[Kind::Byte]) {
            if let Some(byte) = byte_of(vocabulary.spelling(id)) {
                bytes[usize::from(byte)] = Some(id);
            }
        }
        Ok(Self {
            // No text ever becomes a control token here, however it is spelled.
            spellings: Spellings::new(vocabulary, &[Kind::Normal, Kind::UserDefined, Kind::Unused]),
            scores,
            bytes,
            unknown,
            space_prefix,
        })
    }

    /// `first`: the text begins a prompt or follows a special token, where a space may be wanted before it.
    pub(super) fn encode(&self, vocabulary: &Vocabulary, text: &str, first: bool, tokens: &mut Vec<u32>) {
        let mut spelled = String::with_capacity(text.len() + text.len() / 3 + SPACE.len_utf8());
        spelled.extend((first && self.space_prefix).then_some(SPACE));
        spelled.extend(text.chars().map(|c| if c == ' ' { SPACE } else { c }));
        let mut merger = Merger::default();
        for (start, character) in spelled.char_indices() {
            let end = start + character.len_utf8();
            merger.push(start, end, self.spellings.get(vocabulary, &spelled[start..end]));
        }
        merger.merge(|left, right| {
            let token = self.spellings.get(vocabulary, &spelled[left.start..right.end])?;
            let priority = order(self.scores[token as usize]).into();
            Some(Union { priority, token })
        });
        for piece in merger.pieces() {
            match piece.token {
                Some(token) => tokens.push(token),
                None => {
                    let bytes = spelled[piece.start..piece.end].bytes();
                    tokens.extend(bytes.filter_map(|byte| self.bytes[usize::from(byte)].or(self.unknown)));
                }
            }
        }
    }
}

/// An integer that is greater the greater the score is.
fn order(score: f32) -> i32 {
    let bits = score.to_bits().cast_signed();
    // Of negative numbers, the one with the greater bits is the smaller one.
    bits ^ ((bits >> 31).cast_unsigned() >> 1).cast_signed()
}

#[cfg(test)]
mod tests {
    use super::super::vocabulary::Alphabet;
    use super::*;

    fn spm(tokens: &[(&str, f32)], space_prefix: bool) -> (Spm, Vocabulary) {
        let bytes: Vec<_> = (0..=255u8).map(|byte| format!("<0x{byte:02X}>")).collect();
        let mut spellings: Vec<&str> = tokens.iter().map(|&(text, _)| text).collect();
        let mut kinds = vec![Kind::Normal; tokens.len()];
        let mut scores: Vec<f32> = tokens.iter().map(|&(_, score)| score).collect();
        spellings.extend(bytes.iter().map(String::as_str));
        kinds.extend([Kind::Byte; 256]);
        scores.extend([0.0; 256]);
        let vocabulary = Vocabulary::new(&spellings, kinds, Alphabet::Spaces).expect("consistent");
        (
            Spm::new(&vocabulary, scores, None, space_prefix).expect("consistent"),
            vocabulary,
        )
    }

    fn spelled(tokens: &[(&str, f32)], space_prefix: bool, text: &str, first: bool) -> Vec<String> {
        let (spm, vocabulary) = spm(tokens, space_prefix);
        let mut ids = Vec::new();
        spm.encode(&vocabulary, text, first, &mut ids);
        ids.iter().map(|&id| vocabulary.spelling(id).to_owned()).collect()
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
        assert_eq!(spelled(&tokens, false, "abc", true), ["abc"]);
        assert_eq!(spelled(&tokens[..5], false, "abc", true), ["a", "bc"]);
    }

    #[test]
    fn scores_are_ordered_as_numbers_are() {
        let scores = [f32::NEG_INFINITY, -7.5, -1.0, -0.0, 0.0, 0.25, 3.0];
        assert!(scores.map(order).is_sorted());
    }

    #[test]
    fn among_equal_scores_the_leftmost_goes_first() {
        assert_eq!(spelled(&[("a", 0.0), ("aa", -1.0)], false, "aaa", true), ["aa", "a"]);
    }

    #[test]
    fn nothing_of_the_text_is_lost_when_a_piece_grows_to_the_length_of_an_older_union() {
        // "bc" and "cd" are found first; "cd" wins and takes c away, then "ab" grows beside a stale "bc".
        let tokens = ["a", "b", "c", "d", "e"].map(|letter| (letter, 0.0));
        let unions = [("cd", -1.0), ("de", -2.0), ("bc", -3.0), ("cde", -4.0), ("ab", -5.0)];
        let tokens: Vec<_> = tokens.into_iter().chain(unions).collect();
        for text in ["abcde", "bcde", "decdeab", "cdcdeeabcd", "edcba"] {
            assert_eq!(spelled(&tokens, false, text, true).concat(), text);
        }
    }

    #[test]
    fn what_no_token_covers_is_spelled_in_bytes() {
        assert_eq!(spelled(&[("a", 0.0)], false, "aé", true), ["a", "<0xC3>", "<0xA9>"]);
    }

    #[test]
    fn a_space_is_put_before_where_the_file_wants_it_and_after_special_tokens_only() {
        let tokens = [("\u{2581}", 0.0), ("a", 0.0), ("\u{2581}a", -1.0)];
        assert_eq!(spelled(&tokens, true, "a", true), ["\u{2581}a"]);
        assert_eq!(spelled(&tokens, true, "a", false), ["a"]);
    }
}
