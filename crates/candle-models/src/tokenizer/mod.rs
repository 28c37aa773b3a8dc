//! Text to tokens and back, from a model's own vocabulary: a GGUF file's or a `tokenizer.json`.

use std::sync::Arc;

use model_format::{FileFormat, ModelFile};

mod bpe;
mod decoder;
mod huggingface;
mod merge;
mod special;
mod spm;
mod vocabulary;
mod words;

pub use decoder::TextDecoder;

use bpe::Bpe;
use huggingface::HuggingFace;
use special::{Fragment, SpecialTokens};
use spm::Spm;
use vocabulary::{Alphabet, Kind, Vocabulary};

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
    /// Put before every prompt.
    prefix: Vec<u32>,
    /// Put behind every prompt.
    suffix: Vec<u32>,
    bos: Option<u32>,
    eos: Option<u32>,
    end_tokens: Vec<u32>,
}

enum Algorithm {
    Bpe(SpecialTokens, Box<Bpe>),
    Spm(SpecialTokens, Box<Spm>),
    HuggingFace(Box<HuggingFace>),
}

impl Tokenizer {
    pub(crate) fn from_file(file: &ModelFile) -> Result<Self, TokenizerError> {
        let inner = match file.format() {
            FileFormat::Gguf => Self::from_gguf(file),
            FileFormat::Safetensors => Self::from_huggingface(file),
        };
        Ok(Self {
            inner: Arc::new(inner?),
        })
    }

    fn from_gguf(file: &ModelFile) -> Result<Inner, TokenizerError> {
        let model = file
            .string("tokenizer.ggml.model")
            .ok_or(TokenizerError::Missing("tokenizer.ggml.model"))?;
        let alphabet = match model {
            "gpt2" => Alphabet::Bytes,
            "llama" => Alphabet::Spaces,
            other => {
                return Err(TokenizerError::Unsupported(format!(
                    "tokenizers of type {other:?} are not supported; gpt2 and llama are"
                )));
            }
        };
        let vocabulary = Vocabulary::from_gguf(file, alphabet)?;
        let special = SpecialTokens::new(&vocabulary)?;
        let (algorithm, prefix_by_default) = match alphabet {
            Alphabet::Bytes => {
                let bpe = Bpe::from_gguf(file, &vocabulary)?;
                let prefix = bpe.prefix_by_default();
                (Algorithm::Bpe(special, Box::new(bpe)), prefix)
            }
            Alphabet::Spaces => (
                Algorithm::Spm(special, Box::new(Spm::from_gguf(file, &vocabulary)?)),
                true,
            ),
        };
        let id = |key: &str| token_id(file, &format!("tokenizer.ggml.{key}_token_id"), &vocabulary);
        let flag = |key: &str, default| file.flag(&format!("tokenizer.ggml.{key}")).unwrap_or(default);
        let (bos, eos) = (id("bos"), id("eos"));
        let one_if = |wanted: bool, token: Option<u32>| token.filter(|_| wanted).into_iter().collect();
        Ok(Inner {
            prefix: one_if(flag("add_bos_token", prefix_by_default), bos),
            suffix: one_if(flag("add_eos_token", false), eos),
            end_tokens: end_tokens(&vocabulary, ["eos", "eot", "eom"].into_iter().filter_map(id)),
            algorithm,
            vocabulary,
            bos,
            eos,
        })
    }

    fn from_huggingface(file: &ModelFile) -> Result<Inner, TokenizerError> {
        let json = file
            .string("tokenizer.huggingface.json")
            .ok_or(TokenizerError::Missing("tokenizer.huggingface.json"))?;
        let (tokenizer, vocabulary) = HuggingFace::from_json(json)?;
        // The spelling is what people edit; the id is there even where no file spells it out.
        let id = |name: &str| {
            let spelled = file.string(&format!("tokenizer.huggingface.{name}_token"));
            spelled
                .and_then(|spelling| tokenizer.token(spelling))
                .or_else(|| token_id(file, &format!("tokenizer.huggingface.{name}_token_id"), &vocabulary))
        };
        let (bos, eos) = (id("bos"), id("eos"));
        let named = file.integers("tokenizer.huggingface.end_token_ids").unwrap_or_default();
        let named = named.into_iter().filter_map(|id| u32::try_from(id).ok());
        let named = named.filter(|&id| (id as usize) < vocabulary.len());
        let (prefix, suffix) = tokenizer.around()?;
        Ok(Inner {
            prefix,
            suffix,
            end_tokens: end_tokens(&vocabulary, named.chain(eos)),
            algorithm: Algorithm::HuggingFace(Box::new(tokenizer)),
            vocabulary,
            bos,
            eos,
        })
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
        if add_special {
            tokens.extend_from_slice(&inner.prefix);
        }
        match &inner.algorithm {
            Algorithm::HuggingFace(tokenizer) => tokenizer.encode(text, parse_special, &mut tokens)?,
            Algorithm::Bpe(special, bpe) => {
                for fragment in special.split(text, parse_special) {
                    match fragment {
                        Fragment::Token(token) => tokens.push(token),
                        Fragment::Text(text) => bpe.encode(&inner.vocabulary, text, &mut tokens),
                    }
                }
            }
            Algorithm::Spm(special, spm) => {
                let mut after_special = true;
                for fragment in special.split(text, parse_special) {
                    match fragment {
                        Fragment::Token(token) => tokens.push(token),
                        Fragment::Text(text) => spm.encode(&inner.vocabulary, text, after_special, &mut tokens),
                    }
                    after_special = matches!(fragment, Fragment::Token(_));
                }
            }
        }
        if add_special {
            tokens.extend_from_slice(&inner.suffix);
        }
        Ok(tokens)
    }

    /// Tokens of a prompt that a chat template rendered: special tokens are parsed, and BOS is put before where the
    /// file asks for it and the template has not written it.
    ///
    /// # Errors
    /// The tokenizer refuses the text.
    pub fn encode_chat(&self, rendered: &str) -> Result<Vec<u32>, TokenizerError> {
        let mut tokens = self.encode(rendered, true, false)?;
        if !tokens.starts_with(&self.inner.prefix) {
            tokens.splice(..0, self.inner.prefix.iter().copied());
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

    /// Whether a token is structure rather than text, such as the begin or the end of a turn, or is never used. `false`
    /// for unknown ids.
    pub fn is_special(&self, token: u32) -> bool {
        let vocabulary = &self.inner.vocabulary;
        let is_special = |kind| matches!(kind, Kind::Control | Kind::Unknown | Kind::Unused);
        (token as usize) < vocabulary.len() && is_special(vocabulary.kind(token))
    }

    /// How the vocabulary spells a token, control tokens included. Empty for unknown ids.
    pub fn spelling(&self, token: u32) -> &str {
        let vocabulary = &self.inner.vocabulary;
        if (token as usize) < vocabulary.len() {
            vocabulary.spelling(token)
        } else {
            ""
        }
    }

    /// Number of tokens: one more than the greatest id.
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

/// The token that the metadata names under `key`, if it is there.
fn token_id(file: &ModelFile, key: &str, vocabulary: &Vocabulary) -> Option<u32> {
    let id = file.count(key).filter(|&id| id < vocabulary.len());
    id.and_then(|id| u32::try_from(id).ok())
}

/// The tokens that a file names as ends of an answer, and those whose spelling says that they are; ascending.
fn end_tokens(vocabulary: &Vocabulary, named: impl Iterator<Item = u32>) -> Vec<u32> {
    let spelled = vocabulary
        .of_kinds(&[Kind::Control, Kind::UserDefined])
        .filter(|&id| END_SPELLINGS.contains(&vocabulary.spelling(id)));
    let mut tokens: Vec<u32> = named.chain(spelled).collect();
    tokens.sort_unstable();
    tokens.dedup();
    tokens
}

/// Why a vocabulary cannot be used, or a text not be encoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenizerError {
    /// The file lacks a part of the vocabulary.
    #[error("the metadata lacks {0}, or it is of another type")]
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
