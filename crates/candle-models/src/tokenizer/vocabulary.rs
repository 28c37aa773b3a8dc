//! The tokens of a file: how they are spelled, of what kind they are, and which bytes they stand for.

use candle_core::quantized::gguf_file::Value;

use super::TokenizerError;
use crate::gguf::{Gguf, count};

/// What a token is for, as GGUF numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Normal,
    Unknown,
    /// Structure, never text: begin and end of turns.
    Control,
    /// Text that is always this one token.
    UserDefined,
    Unused,
    /// A single byte, for what no other token covers.
    Byte,
}

pub(super) struct Vocabulary {
    spellings: Vec<Box<str>>,
    kinds: Vec<Kind>,
    /// All tokens' bytes, one after the other.
    bytes: Vec<u8>,
    /// Where each token's bytes end.
    ends: Vec<u32>,
}

impl Vocabulary {
    /// `byte_level`: normal tokens are spelled in GPT-2's alphabet of 256 visible characters, else with a low line
    /// block for a space.
    pub(super) fn from_gguf(gguf: &Gguf, byte_level: bool) -> Result<Self, TokenizerError> {
        let tokens = gguf
            .array("tokenizer.ggml.tokens")
            .ok_or(TokenizerError::Missing("tokenizer.ggml.tokens"))?;
        let spellings = strings(tokens, "tokenizer.ggml.tokens")?;
        let kinds = match gguf.array("tokenizer.ggml.token_type") {
            Some(kinds) => kinds.iter().map(kind).collect(),
            None => vec![Kind::Normal; spellings.len()],
        };
        Self::new(spellings, kinds, byte_level)
    }

    pub(super) fn new(spellings: Vec<Box<str>>, kinds: Vec<Kind>, byte_level: bool) -> Result<Self, TokenizerError> {
        if spellings.is_empty() || kinds.len() != spellings.len() || u32::try_from(spellings.len()).is_err() {
            let (tokens, kinds) = (spellings.len(), kinds.len());
            return Err(TokenizerError::Damaged(format!("{tokens} tokens with {kinds} types")));
        }
        let (mut bytes, mut ends) = (Vec::new(), Vec::with_capacity(spellings.len()));
        for (spelling, kind) in spellings.iter().zip(&kinds) {
            match kind {
                Kind::Control | Kind::Unknown | Kind::Unused => {}
                Kind::UserDefined => bytes.extend_from_slice(spelling.as_bytes()),
                Kind::Byte => bytes.extend(byte_of(spelling)),
                Kind::Normal if byte_level => match from_byte_alphabet(spelling) {
                    Some(raw) => bytes.extend(raw),
                    None => bytes.extend_from_slice(spelling.as_bytes()),
                },
                Kind::Normal => bytes.extend_from_slice(spelling.replace(super::spm::SPACE, " ").as_bytes()),
            }
            let end = u32::try_from(bytes.len());
            ends.push(end.map_err(|_| TokenizerError::Damaged("its tokens are impossibly long".to_owned()))?);
        }
        Ok(Self {
            spellings,
            kinds,
            bytes,
            ends,
        })
    }

    pub(super) fn len(&self) -> usize {
        self.spellings.len()
    }

    pub(super) fn spelling(&self, token: u32) -> &str {
        &self.spellings[token as usize]
    }

    pub(super) fn kind(&self, token: u32) -> Kind {
        self.kinds[token as usize]
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = u32> + use<> {
        0..self.spellings.len() as u32
    }

    pub(super) fn of_kinds<'a>(&'a self, kinds: &'a [Kind]) -> impl Iterator<Item = u32> + 'a {
        self.ids().filter(|&id| kinds.contains(&self.kind(id)))
    }

    /// Empty for tokens that are not text.
    pub(super) fn bytes(&self, token: u32) -> &[u8] {
        let Some(&end) = self.ends.get(token as usize) else {
            return &[];
        };
        let start = token.checked_sub(1).map_or(0, |before| self.ends[before as usize]);
        &self.bytes[start as usize..end as usize]
    }
}

/// The value of a byte token, spelled `<0xAB>`.
pub(super) fn byte_of(spelling: &str) -> Option<u8> {
    let hex = spelling.strip_prefix("<0x")?.strip_suffix('>')?;
    u8::from_str_radix(hex, 16).ok().filter(|_| hex.len() == 2)
}

pub(super) fn strings(values: &[Value], key: &'static str) -> Result<Vec<Box<str>>, TokenizerError> {
    let text = |value: &Value| match value {
        Value::String(text) => Ok(text.as_str().into()),
        _ => Err(TokenizerError::Missing(key)),
    };
    values.iter().map(text).collect()
}

fn kind(value: &Value) -> Kind {
    match count(value) {
        Some(2) => Kind::Unknown,
        Some(3) => Kind::Control,
        Some(4) => Kind::UserDefined,
        Some(5) => Kind::Unused,
        Some(6) => Kind::Byte,
        _ => Kind::Normal,
    }
}

/// Bytes of a spelling in GPT-2's alphabet: visible Latin-1 stands for itself, the other 68 bytes for U+0100 and on.
fn from_byte_alphabet(spelling: &str) -> Option<Vec<u8>> {
    let visible = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let hidden = |index: u32| (0..=255u8).filter(|&byte| !visible(byte)).nth(index as usize);
    let byte = |character: char| match u32::from(character) {
        code @ 0..=255 => u8::try_from(code).ok().filter(|&byte| visible(byte)),
        code => hidden(code - 256),
    };
    spelling.chars().map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_token_stands_for_its_bytes() {
        let tokens = [
            ("\u{2581}a", Kind::Normal),
            ("<0xFe>", Kind::Byte),
            ("<end>", Kind::Control),
            ("<b>", Kind::UserDefined),
            ("?", Kind::Unknown),
        ];
        let (spellings, kinds) = tokens.iter().map(|&(text, kind)| (Box::from(text), kind)).unzip();
        let vocabulary = Vocabulary::new(spellings, kinds, false).expect("consistent");
        let bytes: Vec<_> = (0..6).map(|id| vocabulary.bytes(id)).collect();
        assert_eq!(bytes, [b" a".as_slice(), &[0xFE], b"", b"<b>", b"", b""]);
    }

    #[test]
    fn the_byte_alphabet_covers_every_byte_once() {
        let alphabet: Vec<char> = (0..=255u8)
            .filter(|byte| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF))
            .map(char::from)
            .chain((256..256 + 68).filter_map(char::from_u32))
            .collect();
        let mut bytes: Vec<u8> = alphabet
            .iter()
            .filter_map(|c| from_byte_alphabet(&c.to_string()))
            .flatten()
            .collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        assert_eq!(from_byte_alphabet("\u{120}t\u{10A}"), Some(b" t\n".to_vec()));
        assert_eq!(from_byte_alphabet("\u{2581}"), None);
    }

    #[test]
    fn a_vocabulary_whose_parts_do_not_match_is_refused() {
        assert!(Vocabulary::new(vec!["a".into()], vec![], false).is_err());
        assert!(Vocabulary::new(vec![], vec![], true).is_err());
    }
}
