//! The tokens of a model: how they are spelled, of what kind they are, and which bytes they stand for.
//!
//! A vocabulary has hundreds of thousands of tokens, so all spellings lie in one string, and all bytes in one more.

use hashbrown::{DefaultHashBuilder, HashTable};
use std::hash::BuildHasher;

use super::TokenizerError;
use model_format::ModelFile;

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

impl Kind {
    pub(super) const ALL: [Self; 6] = [
        Self::Normal,
        Self::Unknown,
        Self::Control,
        Self::UserDefined,
        Self::Unused,
        Self::Byte,
    ];
}

/// How the spellings of normal tokens stand for text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Alphabet {
    /// GPT-2's 256 visible characters, one for each byte.
    Bytes,
    /// Plain text with a [`SPACE`] for each space.
    Spaces,
}

/// Stands for a space in spellings.
pub(super) const SPACE: char = '\u{2581}';

pub(super) struct Vocabulary {
    kinds: Vec<Kind>,
    spellings: String,
    /// Where each token's spelling ends.
    spelling_ends: Vec<u32>,
    bytes: Vec<u8>,
    /// Where each token's bytes end.
    byte_ends: Vec<u32>,
}

impl Vocabulary {
    pub(super) fn from_gguf(file: &ModelFile, alphabet: Alphabet) -> Result<Self, TokenizerError> {
        let spellings = file
            .strings("tokenizer.ggml.tokens")
            .ok_or(TokenizerError::Missing("tokenizer.ggml.tokens"))?;
        let kinds = match file.integers("tokenizer.ggml.token_type") {
            Some(kinds) => kinds.into_iter().map(kind).collect(),
            None => vec![Kind::Normal; spellings.len()],
        };
        Self::new(&spellings, kinds, alphabet)
    }

    pub(super) fn new(spellings: &[&str], kinds: Vec<Kind>, alphabet: Alphabet) -> Result<Self, TokenizerError> {
        if spellings.is_empty() || kinds.len() != spellings.len() || u32::try_from(spellings.len()).is_err() {
            let (tokens, kinds) = (spellings.len(), kinds.len());
            return Err(TokenizerError::Damaged(format!("{tokens} tokens with {kinds} types")));
        }
        // Bytes are never more than what they are spelled with.
        let total = spellings.iter().map(|spelling| spelling.len()).sum();
        if u32::try_from(total).is_err() {
            return Err(TokenizerError::Damaged("its tokens are impossibly long".to_owned()));
        }
        let mut vocabulary = Self {
            kinds,
            spellings: String::with_capacity(total),
            spelling_ends: Vec::with_capacity(spellings.len()),
            bytes: Vec::with_capacity(total),
            byte_ends: Vec::with_capacity(spellings.len()),
        };
        let alphabet = Decoder::new(alphabet);
        for (index, spelling) in spellings.iter().enumerate() {
            vocabulary.spellings.push_str(spelling);
            vocabulary.spelling_ends.push(vocabulary.spellings.len() as u32);
            let bytes = &mut vocabulary.bytes;
            match vocabulary.kinds[index] {
                Kind::Control | Kind::Unknown | Kind::Unused => {}
                Kind::UserDefined => bytes.extend_from_slice(spelling.as_bytes()),
                Kind::Byte => bytes.extend(byte_of(spelling)),
                Kind::Normal => alphabet.decode(spelling, bytes),
            }
            vocabulary.byte_ends.push(vocabulary.bytes.len() as u32);
        }
        vocabulary.bytes.shrink_to_fit();
        Ok(vocabulary)
    }

    pub(super) fn len(&self) -> usize {
        self.kinds.len()
    }

    /// Of a token that there is.
    pub(super) fn spelling(&self, token: u32) -> &str {
        &self.spellings[span(&self.spelling_ends, token)]
    }

    /// Of a token that there is.
    pub(super) fn kind(&self, token: u32) -> Kind {
        self.kinds[token as usize]
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = u32> + use<> {
        0..self.kinds.len() as u32
    }

    pub(super) fn of_kinds<'a>(&'a self, kinds: &'a [Kind]) -> impl Iterator<Item = u32> + 'a {
        self.ids().filter(|&id| kinds.contains(&self.kind(id)))
    }

    /// Empty for tokens that are not text, and for unknown ids.
    pub(super) fn bytes(&self, token: u32) -> &[u8] {
        if (token as usize) < self.byte_ends.len() {
            &self.bytes[span(&self.byte_ends, token)]
        } else {
            &[]
        }
    }
}

fn span(ends: &[u32], token: u32) -> std::ops::Range<usize> {
    let start = token.checked_sub(1).map_or(0, |before| ends[before as usize]);
    start as usize..ends[token as usize] as usize
}

/// Finds tokens by their spelling. It holds ids only; the spellings stay in the vocabulary.
pub(super) struct Spellings {
    ids: HashTable<u32>,
    hasher: DefaultHashBuilder,
}

impl Spellings {
    /// Of the tokens of these kinds; of several that are spelled alike, the last one counts.
    pub(super) fn new(vocabulary: &Vocabulary, kinds: &[Kind]) -> Self {
        let hasher = DefaultHashBuilder::default();
        let mut ids = HashTable::with_capacity(vocabulary.len());
        let hash = |spelling: &str| hasher.hash_one(spelling);
        for id in vocabulary.of_kinds(kinds) {
            let spelling = vocabulary.spelling(id);
            ids.entry(
                hash(spelling),
                |&other| vocabulary.spelling(other) == spelling,
                |&other| hash(vocabulary.spelling(other)),
            )
            .insert(id);
        }
        Self { ids, hasher }
    }

    pub(super) fn get(&self, vocabulary: &Vocabulary, spelling: &str) -> Option<u32> {
        let same = |&id: &u32| vocabulary.spelling(id) == spelling;
        self.ids.find(self.hasher.hash_one(spelling), same).copied()
    }
}

/// The value of a byte token, spelled `<0xAB>`.
pub(super) fn byte_of(spelling: &str) -> Option<u8> {
    let hex = spelling.strip_prefix("<0x")?.strip_suffix('>')?;
    u8::from_str_radix(hex, 16).ok().filter(|_| hex.len() == 2)
}

fn kind(number: i64) -> Kind {
    match number {
        2 => Kind::Unknown,
        3 => Kind::Control,
        4 => Kind::UserDefined,
        5 => Kind::Unused,
        6 => Kind::Byte,
        _ => Kind::Normal,
    }
}

/// GPT-2's character for each byte: visible Latin-1 stands for itself, the other 68 bytes for U+0100 and on.
pub(super) fn byte_alphabet() -> [char; 256] {
    let visible = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut hidden = '\u{100}'..;
    std::array::from_fn(|byte| {
        let byte = byte as u8;
        let stand_in = if visible(byte) { None } else { hidden.next() };
        stand_in.unwrap_or(char::from(byte))
    })
}

/// From spellings to bytes.
enum Decoder {
    /// The byte of each character of the alphabet, by the character's number; all of them are below 512.
    Bytes(Box<[Option<u8>; 512]>),
    Spaces,
}

impl Decoder {
    fn new(alphabet: Alphabet) -> Self {
        match alphabet {
            Alphabet::Spaces => Self::Spaces,
            Alphabet::Bytes => {
                let mut table = Box::new([None; 512]);
                for (byte, character) in byte_alphabet().into_iter().enumerate() {
                    table[character as usize] = Some(byte as u8);
                }
                Self::Bytes(table)
            }
        }
    }

    fn decode(&self, spelling: &str, bytes: &mut Vec<u8>) {
        match self {
            Self::Bytes(table) => {
                let start = bytes.len();
                for character in spelling.chars() {
                    let Some(byte) = table.get(character as usize).copied().flatten() else {
                        // Not of the alphabet, so it is plain text.
                        bytes.truncate(start);
                        bytes.extend_from_slice(spelling.as_bytes());
                        return;
                    };
                    bytes.push(byte);
                }
            }
            Self::Spaces => {
                for (index, piece) in spelling.split(SPACE).enumerate() {
                    if index > 0 {
                        bytes.push(b' ');
                    }
                    bytes.extend_from_slice(piece.as_bytes());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(spelling: &str, alphabet: Alphabet) -> Vec<u8> {
        let vocabulary = Vocabulary::new(&[spelling], vec![Kind::Normal], alphabet).expect("one token");
        vocabulary.bytes(0).to_vec()
    }

    #[test]
    fn each_kind_of_token_stands_for_its_bytes() {
        let tokens = [
            ("\u{2581}a\u{2581}", Kind::Normal),
            ("<0xFe>", Kind::Byte),
            ("<end>", Kind::Control),
            ("<b>", Kind::UserDefined),
            ("?", Kind::Unknown),
        ];
        let (spellings, kinds): (Vec<_>, Vec<_>) = tokens.into_iter().unzip();
        let vocabulary = Vocabulary::new(&spellings, kinds, Alphabet::Spaces).expect("consistent");
        let bytes: Vec<_> = (0..6).map(|id| vocabulary.bytes(id)).collect();
        assert_eq!(bytes, [b" a ".as_slice(), &[0xFE], b"", b"<b>", b"", b""]);
        assert_eq!((0..5).map(|id| vocabulary.spelling(id)).collect::<Vec<_>>(), spellings);
    }

    #[test]
    fn the_byte_alphabet_covers_every_byte_once() {
        let spelled: String = byte_alphabet().into_iter().collect();
        assert_eq!(decoded(&spelled, Alphabet::Bytes), (0..=255).collect::<Vec<u8>>());
        assert_eq!(decoded("\u{120}t\u{10A}", Alphabet::Bytes), b" t\n");
    }

    #[test]
    fn a_spelling_that_is_not_of_the_byte_alphabet_is_plain_text() {
        assert_eq!(decoded("a\u{2581} b", Alphabet::Bytes), "a\u{2581} b".as_bytes());
    }

    #[test]
    fn tokens_are_found_by_their_spelling_the_last_of_several_and_only_those_of_the_kinds_asked_for() {
        let kinds = vec![Kind::Normal, Kind::Control, Kind::Normal, Kind::Normal];
        let vocabulary = Vocabulary::new(&["a", "<s>", "b", "a"], kinds, Alphabet::Spaces).expect("consistent");
        let spellings = Spellings::new(&vocabulary, &[Kind::Normal]);
        let found = ["a", "b", "<s>", "c"].map(|spelling| spellings.get(&vocabulary, spelling));
        assert_eq!(found, [Some(3), Some(2), None, None]);
    }

    #[test]
    fn a_vocabulary_whose_parts_do_not_match_is_refused() {
        assert!(Vocabulary::new(&["a"], vec![], Alphabet::Spaces).is_err());
        assert!(Vocabulary::new(&[], vec![], Alphabet::Bytes).is_err());
    }
}
