//! Text to tokens and back, from a GGUF file's own vocabulary.

use std::sync::Arc;

use crate::gguf::{Gguf, count};

mod bpe;
mod decoder;
mod special;
mod spm;
mod vocabulary;

pub use decoder::TextDecoder;

use bpe::Bpe;
use special::{Fragment, SpecialTokens};
use spm::Spm;
use vocabulary::{Kind, Vocabulary};

/// Spellings of tokens that end an answer in the models of these families, whatever the file's metadata says.
const END_SPELLINGS: [&str; 8] = [
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|end|>",
    "<end_of_turn>",
    "<EOT>",
];

/// A model's tokenizer. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

struct Inner {
    algorithm: Algorithm,
    vocabulary: Vocabulary,
    special: SpecialTokens,
    /// Put before every prompt.
    prefix: Option<u32>,
    /// Put behind every prompt.
    suffix: Option<u32>,
    bos: Option<u32>,
    eos: Option<u32>,
    end_tokens: Vec<u32>,
}

enum Algorithm {
    Bpe(Box<Bpe>),
    Spm(Spm),
}

impl Tokenizer {
    pub(crate) fn from_gguf(gguf: &Gguf) -> Result<Self, TokenizerError> {
        let model = gguf
            .string("tokenizer.ggml.model")
            .ok_or(TokenizerError::Missing("tokenizer.ggml.model"))?;
        let vocabulary = Vocabulary::from_gguf(gguf, model == "gpt2")?;
        let (algorithm, prefix_by_default) = match model {
            "gpt2" => {
                let bpe = Bpe::from_gguf(gguf, &vocabulary)?;
                let prefix = bpe.prefix_by_default();
                (Algorithm::Bpe(Box::new(bpe)), prefix)
            }
            "llama" => (Algorithm::Spm(Spm::from_gguf(gguf, &vocabulary)?), true),
            other => {
                return Err(TokenizerError::Unsupported(format!(
                    "tokenizers of type {other:?} are not supported; gpt2 and llama are"
                )));
            }
        };
        let id = |key: &str| {
            let id = gguf.value(&format!("tokenizer.ggml.{key}_token_id")).and_then(count);
            id.filter(|&id| id < vocabulary.len()).map(|id| id as u32)
        };
        let flag = |key: &str, default| gguf.flag(&format!("tokenizer.ggml.{key}")).unwrap_or(default);
        let (bos, eos) = (id("bos"), id("eos"));
        let mut end_tokens: Vec<u32> = ["eos", "eot", "eom"].into_iter().filter_map(id).collect();
        end_tokens.extend(
            vocabulary
                .of_kinds(&[Kind::Control, Kind::UserDefined])
                .filter(|&id| END_SPELLINGS.contains(&vocabulary.spelling(id))),
        );
        end_tokens.sort_unstable();
        end_tokens.dedup();
        let inner = Inner {
            special: SpecialTokens::new(&vocabulary)?,
            prefix: bos.filter(|_| flag("add_bos_token", prefix_by_default)),
            suffix: eos.filter(|_| flag("add_eos_token", false)),
            algorithm,
            vocabulary,
            bos,
            eos,
            end_tokens,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Tokens of a text. With `parse_special`, control tokens that are spelled out in it become those tokens; without,
    /// their spelling is text like any other. With `add_special`, what the file wants around every prompt (BOS, EOS)
    /// is added.
    ///
    /// # Errors
    /// The tokenizer refuses the text.
    pub fn encode(&self, text: &str, parse_special: bool, add_special: bool) -> Result<Vec<u32>, TokenizerError> {
        let inner = &*self.inner;
        let mut tokens = Vec::with_capacity(text.len() / 3 + 2);
        tokens.extend(inner.prefix.filter(|_| add_special));
        let mut after_special = true;
        for fragment in inner.special.split(text, parse_special) {
            match fragment {
                Fragment::Token(token) => tokens.push(token),
                Fragment::Text(text) => match &inner.algorithm {
                    Algorithm::Bpe(bpe) => bpe.encode(text, &mut tokens)?,
                    Algorithm::Spm(spm) => spm.encode(text, after_special, &mut tokens),
                },
            }
            after_special = matches!(fragment, Fragment::Token(_));
        }
        tokens.extend(inner.suffix.filter(|_| add_special));
        Ok(tokens)
    }

    /// Tokens of a prompt that a chat template rendered: special tokens are parsed, and BOS is put before where the
    /// file asks for it and the template has not written it.
    ///
    /// # Errors
    /// The tokenizer refuses the text.
    pub fn encode_chat(&self, rendered: &str) -> Result<Vec<u32>, TokenizerError> {
        let mut tokens = self.encode(rendered, true, false)?;
        if let Some(prefix) = self.inner.prefix.filter(|prefix| tokens.first() != Some(prefix)) {
            tokens.insert(0, prefix);
        }
        Ok(tokens)
    }

    /// A decoder for one stream of tokens.
    pub fn decoder(&self) -> TextDecoder {
        TextDecoder::new(self.clone())
    }

    /// The text of a list of tokens; control tokens are left out, bytes that are no UTF-8 become U+FFFD.
    pub fn decode(&self, tokens: &[u32]) -> String {
        let bytes: Vec<u8> = tokens
            .iter()
            .flat_map(|&token| self.token_bytes(token))
            .copied()
            .collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// What a token adds to the text: maybe a part of a character. Empty for control tokens and unknown ids.
    pub fn token_bytes(&self, token: u32) -> &[u8] {
        self.inner.vocabulary.bytes(token)
    }

    /// Number of tokens.
    pub fn vocab_size(&self) -> usize {
        self.inner.vocabulary.len()
    }

    /// Tokens that end an answer, ascending.
    pub fn end_tokens(&self) -> &[u32] {
        &self.inner.end_tokens
    }

    /// Spelling of the token that begins a text.
    pub fn bos_token(&self) -> Option<&str> {
        self.inner.bos.map(|id| self.inner.vocabulary.spelling(id))
    }

    /// Spelling of the token that ends a text.
    pub fn eos_token(&self) -> Option<&str> {
        self.inner.eos.map(|id| self.inner.vocabulary.spelling(id))
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("tokens", &self.vocab_size())
            .finish_non_exhaustive()
    }
}

/// Why a vocabulary cannot be used, or a text not be encoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenizerError {
    /// The file lacks a part of the vocabulary.
    #[error("the metadata lacks {0}, or it has another type")]
    Missing(&'static str),
    /// The vocabulary is of a kind that is not supported.
    #[error("{0}")]
    Unsupported(String),
    /// The vocabulary contradicts itself.
    #[error("the vocabulary is damaged: {0}")]
    Damaged(String),
    /// The text cannot be encoded.
    #[error("the text cannot be encoded: {0}")]
    Text(String),
}
