//! Byte-level BPE, GPT-2's kind: a pattern cuts the text into words, merges build tokens inside each word.

use hashbrown::HashMap;

use super::TokenizerError;
use super::merge::{Merger, Union};
use super::vocabulary::{Kind, Spellings, Vocabulary, byte_alphabet};
use super::words::{Cutter, Words};
use model_format::ModelFile;

pub(super) struct Bpe {
    cutter: Cutter,
    /// The token of each byte.
    bytes: [Option<u32>; 256],
    /// What two neighbouring tokens become; earlier merges go first.
    merges: HashMap<(u32, u32), Union>,
    /// Where words that are tokens are taken as they are.
    whole_words: Option<WholeWords>,
}

/// Finds the words that are tokens.
struct WholeWords {
    spellings: Spellings,
    /// The character that each byte is spelled with.
    alphabet: [char; 256],
}

impl Bpe {
    pub(super) fn from_gguf(file: &ModelFile, vocabulary: &Vocabulary) -> Result<Self, TokenizerError> {
        let pre = file
            .string("tokenizer.ggml.pre")
            .ok_or(TokenizerError::Missing("tokenizer.ggml.pre"))?;
        let words = Words::of_name(pre)?;
        let merges = file
            .strings("tokenizer.ggml.merges")
            .ok_or(TokenizerError::Missing("tokenizer.ggml.merges"))?;
        Self::new(vocabulary, &merges, words)
    }

    fn new(vocabulary: &Vocabulary, merges: &[&str], words: Words) -> Result<Self, TokenizerError> {
        let all = Spellings::new(vocabulary, &Kind::ALL);
        let mut pairs = HashMap::with_capacity(merges.len());
        let mut spelled = String::new();
        for (rank, merge) in (0i64..).zip(merges) {
            // A token may begin with a space only in its byte spelling, so the first space parts the two.
            let pair = merge.split_once(' ');
            let (left, right) =
                pair.ok_or_else(|| TokenizerError::Damaged(format!("the merge {merge:?} is not a pair")))?;
            spelled.clear();
            spelled.extend([left, right]);
            let token = |spelling: &str| {
                let unknown = || TokenizerError::Damaged(format!("{spelling:?}, of the merge {merge:?}, is no token"));
                all.get(vocabulary, spelling).ok_or_else(unknown)
            };
            let union = Union {
                priority: -rank,
                token: token(&spelled)?,
            };
            pairs.insert((token(left)?, token(right)?), union);
        }
        let alphabet = byte_alphabet();
        let byte = |character: char| all.get(vocabulary, character.encode_utf8(&mut [0; 4]));
        let bytes = alphabet.map(byte);
        let whole_words = (words == Words::Llama3).then_some(WholeWords {
            spellings: all,
            alphabet,
        });
        Ok(Self {
            cutter: Cutter::new(words),
            bytes,
            merges: pairs,
            whole_words,
        })
    }

    /// Whether files of this kind want BOS when they do not say.
    pub(super) fn prefix_by_default(&self) -> bool {
        self.cutter.words() == Words::Llama3
    }

    pub(super) fn encode(&self, vocabulary: &Vocabulary, text: &str, tokens: &mut Vec<u32>) {
        let (mut merger, mut spelled) = (Merger::default(), String::new());
        self.cutter.cut(text, |word| {
            if let Some(whole) = &self.whole_words {
                spelled.clear();
                spelled.extend(word.bytes().map(|byte| whole.alphabet[usize::from(byte)]));
                // No text ever becomes a control token here, however it is spelled.
                let found = whole.spellings.get(vocabulary, &spelled);
                let is_text = |&token: &u32| matches!(vocabulary.kind(token), Kind::Normal | Kind::UserDefined);
                if let Some(token) = found.filter(is_text) {
                    tokens.push(token);
                    return;
                }
            }
            merger.clear();
            for (start, byte) in word.bytes().enumerate() {
                if let Some(token) = self.bytes[usize::from(byte)] {
                    merger.push(start, start + 1, Some(token));
                }
            }
            merger.merge(|left, right| self.merges.get(&(left.token?, right.token?)).copied());
            tokens.extend(merger.pieces().filter_map(|piece| piece.token));
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::vocabulary::Alphabet;
    use super::*;

    /// A vocabulary of all bytes, in GPT-2's alphabet, and the given longer tokens.
    fn vocabulary(merges: &[&str]) -> Vocabulary {
        let mut spellings: Vec<String> = byte_alphabet().iter().map(char::to_string).collect();
        spellings.extend(merges.iter().map(|merge| merge.replace(' ', "")));
        let spellings: Vec<&str> = spellings.iter().map(String::as_str).collect();
        let kinds = vec![Kind::Normal; spellings.len()];
        Vocabulary::new(&spellings, kinds, Alphabet::Bytes).expect("consistent")
    }

    #[track_caller]
    fn assert_pieces(words: Words, merges: &[&str], text: &str, pieces: &[&str]) {
        let vocabulary = vocabulary(merges);
        let bpe = Bpe::new(&vocabulary, merges, words).expect("merges of known tokens");
        let mut tokens = Vec::new();
        bpe.encode(&vocabulary, text, &mut tokens);
        let spelled: Vec<&str> = tokens
            .iter()
            .map(|&token| str::from_utf8(vocabulary.bytes(token)).expect("whole characters"))
            .collect();
        assert_eq!(spelled, pieces);
    }

    #[test]
    fn merges_are_applied_in_order_inside_words_only() {
        assert_pieces(
            Words::Gpt2,
            &["a b", "ab c", "c d"],
            "abcd ab",
            &["abc", "d", " ", "ab"],
        );
        assert_pieces(Words::Gpt2, &["1 2"], "12", &["12"]);
    }

    #[test]
    fn a_merge_that_was_found_before_its_pieces_grew_is_not_made() {
        assert_pieces(Words::Gpt2, &["b c", "a bc", "a b", "c d"], "abcd", &["abc", "d"]);
        assert_pieces(Words::Gpt2, &["a a"], "aaaaa", &["aa", "aa", "a"]);
    }

    #[test]
    fn single_digits_are_never_merged() {
        assert_pieces(
            Words::SingleDigits,
            &["1 2", "\u{120} 1"],
            "12 1",
            &["1", "2", " ", "1"],
        );
    }

    #[test]
    fn llama_3_takes_a_word_that_is_a_token_as_it_is_and_digits_by_three() {
        assert_pieces(Words::Llama3, &["1 2", "12 3", "4 5"], "12345", &["123", "45"]);
        // The merges lead to "a" and "bc".
        let merges = ["b c", "a b", "ab c"];
        assert_pieces(Words::Gpt2, &merges, "abc", &["a", "bc"]);
        assert_pieces(Words::Llama3, &merges, "abc abcd", &["abc", " ", "a", "bc", "d"]);
    }

    #[test]
    fn a_merge_that_is_no_pair_or_of_unknown_tokens_is_refused() {
        let vocabulary = vocabulary(&[]);
        for merge in ["ab", "a b"] {
            assert!(matches!(
                Bpe::new(&vocabulary, &[merge], Words::Gpt2),
                Err(TokenizerError::Damaged(_))
            ));
        }
    }
}
