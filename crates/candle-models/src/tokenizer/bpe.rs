//! Byte-level BPE, GPT-2's kind: a pattern cuts the text into words, merges build tokens inside each word.

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;

use super::TokenizerError;
use super::vocabulary::{Vocabulary, strings};
use crate::gguf::Gguf;

/// How words are cut, by the names that GGUF files use in `tokenizer.ggml.pre`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Words {
    /// GPT-2's pattern.
    Gpt2,
    /// Each digit by itself, then GPT-2's pattern.
    SingleDigits,
    /// Llama 3: digits in groups of three, line ends with what they follow; a word that is a token is not merged.
    Llama3,
    /// Qwen 2: like Llama 3 with single digits.
    Qwen2,
}

const NAMES: [(&str, Words); 15] = [
    ("gpt-2", Words::Gpt2),
    ("phi-2", Words::Gpt2),
    ("mpt", Words::Gpt2),
    ("olmo", Words::Gpt2),
    ("smollm", Words::SingleDigits),
    ("starcoder", Words::SingleDigits),
    ("refact", Words::SingleDigits),
    ("command-r", Words::SingleDigits),
    ("codeshell", Words::SingleDigits),
    ("exaone", Words::SingleDigits),
    ("llama3", Words::Llama3),
    ("llama-v3", Words::Llama3),
    ("llama-bpe", Words::Llama3),
    ("falcon3", Words::Llama3),
    ("qwen2", Words::Qwen2),
];

pub(super) struct Bpe {
    tokenizer: tokenizers::Tokenizer,
    words: Words,
}

impl Bpe {
    pub(super) fn from_gguf(gguf: &Gguf, vocabulary: &Vocabulary) -> Result<Self, TokenizerError> {
        let pre = gguf
            .string("tokenizer.ggml.pre")
            .ok_or(TokenizerError::Missing("tokenizer.ggml.pre"))?;
        let words = NAMES
            .iter()
            .find(|(name, _)| *name == pre)
            .map(|(_, words)| *words)
            .ok_or_else(|| {
                let known = NAMES.map(|(name, _)| name).join(", ");
                TokenizerError::Unsupported(format!(
                    "words cut as {pre:?} are not supported; supported are: {known}"
                ))
            })?;
        let merges = gguf
            .array("tokenizer.ggml.merges")
            .ok_or(TokenizerError::Missing("tokenizer.ggml.merges"))?;
        let merges = strings(merges, "tokenizer.ggml.merges")?;
        Self::new(vocabulary, &merges, words)
    }

    fn new(vocabulary: &Vocabulary, merges: &[Box<str>], words: Words) -> Result<Self, TokenizerError> {
        let pair = |merge: &str| {
            // A token may begin with a space only in its byte spelling, so the first space parts the two.
            let pair = merge
                .split_once(' ')
                .map(|(left, right)| (left.to_owned(), right.to_owned()));
            pair.ok_or_else(|| TokenizerError::Damaged(format!("the merge {merge:?} is not a pair")))
        };
        let merges = merges.iter().map(|merge| pair(merge)).collect::<Result<Vec<_>, _>>()?;
        let ids: Vocab = vocabulary
            .ids()
            .map(|id| (vocabulary.spelling(id).to_owned(), id))
            .collect();
        let damaged = |error: tokenizers::Error| TokenizerError::Damaged(error.to_string());
        let model = BPE::builder()
            .vocab_and_merges(ids, merges)
            .ignore_merges(words == Words::Llama3)
            .build()
            .map_err(damaged)?;
        let mut tokenizer = tokenizers::Tokenizer::new(model);
        tokenizer.with_pre_tokenizer(Some(cutter(words).map_err(damaged)?));
        Ok(Self { tokenizer, words })
    }

    /// Whether files of this kind want BOS when they do not say.
    pub(super) fn prefix_by_default(&self) -> bool {
        self.words == Words::Llama3
    }

    pub(super) fn encode(&self, text: &str, tokens: &mut Vec<u32>) -> Result<(), TokenizerError> {
        let encoding = self
            .tokenizer
            .encode_fast(text, false)
            .map_err(|error| TokenizerError::Text(error.to_string()))?;
        tokens.extend_from_slice(encoding.get_ids());
        Ok(())
    }
}

fn cutter(words: Words) -> tokenizers::Result<PreTokenizerWrapper> {
    const CONTRACTIONS: &str = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])";
    const BEFORE_DIGITS: &str = r"[^\r\n\p{L}\p{N}]?\p{L}+";
    const AFTER_DIGITS: &str = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let gpt2 = ByteLevel::new(false, false, true);
    let digits = match words {
        Words::Gpt2 => return Ok(gpt2.into()),
        Words::SingleDigits => return Ok(Sequence::new(vec![Digits::new(true).into(), gpt2.into()]).into()),
        Words::Llama3 => r"\p{N}{1,3}",
        Words::Qwen2 => r"\p{N}",
    };
    let pattern = SplitPattern::Regex([CONTRACTIONS, BEFORE_DIGITS, digits, AFTER_DIGITS].join("|"));
    let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)?;
    Ok(Sequence::new(vec![split.into(), ByteLevel::new(false, false, false).into()]).into())
}

#[cfg(test)]
mod tests {
    use super::super::vocabulary::Kind;
    use super::*;

    /// A vocabulary of all bytes, in GPT-2's alphabet, and the given longer tokens.
    fn bpe(words: Words, merges: &[&str]) -> (Bpe, Vocabulary) {
        let mut spellings: Vec<Box<str>> = ByteLevel::alphabet()
            .into_iter()
            .map(|c| c.to_string().into())
            .collect();
        spellings.extend(merges.iter().map(|merge| merge.replace(' ', "").into()));
        let kinds = vec![Kind::Normal; spellings.len()];
        let vocabulary = Vocabulary::new(spellings, kinds, true).expect("consistent");
        let merges: Vec<Box<str>> = merges.iter().map(|&merge| merge.into()).collect();
        (
            Bpe::new(&vocabulary, &merges, words).expect("merges of known tokens"),
            vocabulary,
        )
    }

    #[track_caller]
    fn assert_pieces(words: Words, merges: &[&str], text: &str, pieces: &[&str]) {
        let (bpe, vocabulary) = bpe(words, merges);
        let mut tokens = Vec::new();
        bpe.encode(text, &mut tokens).expect("plain text");
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
    }

    #[test]
    fn a_merge_that_is_no_pair_is_refused() {
        let (_, vocabulary) = bpe(Words::Gpt2, &[]);
        assert!(matches!(
            Bpe::new(&vocabulary, &["ab".into()], Words::Gpt2),
            Err(TokenizerError::Damaged(_))
        ));
    }
}
