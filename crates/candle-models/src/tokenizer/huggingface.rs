//! A `tokenizer.json`, as Hugging Face's tokenizers write it, with a model of type BPE: byte-level ones, and those that
//! fall back to bytes.

use std::panic::{AssertUnwindSafe, catch_unwind};

use serde_json::Value;
use tokenizers::models::bpe::BPE;
use tokenizers::{
    AddedVocabulary, DecoderWrapper, Encoding, Model, ModelWrapper, OffsetType, PostProcessor, PreTokenizer, Token,
};

use super::TokenizerError;
use super::vocabulary::{Alphabet, Kind, SPACE, Vocabulary, byte_of};

/// Far beyond any vocabulary: an id above is damage, and would ask for an absurd amount of memory.
const MAX_TOKENS: usize = 1 << 22;

pub(super) struct HuggingFace {
    tokenizer: tokenizers::Tokenizer,
    /// The added tokens where control tokens are text like any other.
    text_only: AddedVocabulary,
}

/// How the file's decoder makes text of tokens.
struct Spelling {
    alphabet: Alphabet,
    byte_fallback: bool,
}

impl HuggingFace {
    pub(super) fn from_json(json: &str) -> Result<(Self, Vocabulary), TokenizerError> {
        let tokenizer: tokenizers::Tokenizer = guarded(|| json.parse())?.map_err(damaged)?;
        let ModelWrapper::BPE(bpe) = tokenizer.get_model() else {
            let name = match tokenizer.get_model() {
                ModelWrapper::WordPiece(_) => "WordPiece",
                ModelWrapper::WordLevel(_) => "WordLevel",
                _ => "Unigram",
            };
            return Err(TokenizerError::Unsupported(format!(
                "tokenizers of type {name} are not supported; BPE is"
            )));
        };
        if bpe.dropout.is_some_and(|share| share > 0.0) {
            return Err(TokenizerError::Unsupported(
                "tokenizers that drop merges by chance are not supported".to_owned(),
            ));
        }
        let spelling = Spelling::of(tokenizer.get_decoder())?;
        let vocabulary = vocabulary(bpe, tokenizer.get_added_vocabulary(), &spelling)?;
        let mut text_only = tokenizer.get_added_vocabulary().clone();
        text_only.set_encode_special_tokens(true);
        Ok((Self { tokenizer, text_only }, vocabulary))
    }

    /// The token of this spelling.
    pub(super) fn token(&self, spelling: &str) -> Option<u32> {
        self.tokenizer.token_to_id(spelling)
    }

    /// What the file wants before and behind every prompt.
    pub(super) fn around(&self) -> Result<(Vec<u32>, Vec<u32>), TokenizerError> {
        let Some(processor) = self.tokenizer.get_post_processor() else {
            return Ok((Vec::new(), Vec::new()));
        };
        // An id that no file has stands for the prompt.
        let prompt = Encoding::from_tokens(vec![Token::new(u32::MAX, String::new(), (0, 0))], 0);
        let whole = guarded(|| processor.process(prompt, None, true))?.map_err(damaged)?;
        let mut parts = whole.get_ids().split(|&id| id == u32::MAX);
        match (parts.next(), parts.next(), parts.next()) {
            (Some(prefix), Some(suffix), None) => Ok((prefix.to_vec(), suffix.to_vec())),
            _ => Err(TokenizerError::Unsupported(
                "a post-processor that does not keep the prompt in one piece is not supported".to_owned(),
            )),
        }
    }

    pub(super) fn encode(&self, text: &str, parse_special: bool, tokens: &mut Vec<u32>) -> Result<(), TokenizerError> {
        let encoding = guarded(|| self.encoding(text, parse_special))?;
        let encoding = encoding.map_err(|error| TokenizerError::Text(error.to_string()))?;
        tokens.extend_from_slice(encoding.get_ids());
        Ok(())
    }

    fn encoding(&self, text: &str, parse_special: bool) -> tokenizers::Result<Encoding> {
        let tokenizer = &self.tokenizer;
        let added = if parse_special {
            tokenizer.get_added_vocabulary()
        } else {
            &self.text_only
        };
        let mut words = added.extract_and_normalize(tokenizer.get_normalizer(), text);
        if let Some(cutter) = tokenizer.get_pre_tokenizer() {
            cutter.pre_tokenize(&mut words)?;
        }
        words.tokenize(|word| tokenizer.get_model().tokenize(word.get()))?;
        words.into_encoding(None, 0, OffsetType::None)
    }
}

/// The library promises no errors for files that make no sense, so its panics count as such.
fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, TokenizerError> {
    // Nothing that is shared is left half-changed: the library's caches only ever gain whole entries.
    catch_unwind(AssertUnwindSafe(work))
        .map_err(|_| TokenizerError::Damaged("the tokenizers library gave up on tokenizer.json".to_owned()))
}

fn damaged(error: impl std::fmt::Display) -> TokenizerError {
    TokenizerError::Damaged(format!("tokenizer.json: {error}"))
}

impl Spelling {
    /// Reads the steps of a decoder. Steps that work on the beginning of a whole text are left out: what is decoded here
    /// follows a prompt.
    fn of(decoder: Option<&DecoderWrapper>) -> Result<Self, TokenizerError> {
        let decoder = serde_json::to_value(decoder).map_err(damaged)?;
        let steps = match decoder.get("decoders") {
            Some(Value::Array(steps)) => steps.clone(),
            _ => vec![decoder],
        };
        let (mut alphabet, mut byte_fallback) = (None, false);
        for step in &steps {
            match step["type"].as_str().unwrap_or("none") {
                "ByteLevel" => alphabet = Some(Alphabet::Bytes),
                "Metaspace" if is_space(&step["replacement"]) => alphabet = Some(Alphabet::Spaces),
                "Replace" if is_space(&step["pattern"]["String"]) && step["content"] == " " => {
                    alphabet = Some(Alphabet::Spaces);
                }
                "ByteFallback" => byte_fallback = true,
                "Fuse" | "Strip" => {}
                other => {
                    return Err(TokenizerError::Unsupported(format!(
                        "decoders of type {other} are not supported in this form; ByteLevel, Metaspace, Replace of \
                         {SPACE}, ByteFallback, Fuse and Strip are"
                    )));
                }
            }
        }
        let alphabet = alphabet.ok_or_else(|| {
            TokenizerError::Unsupported(
                "a decoder that does not say how spaces are spelled is not supported".to_owned(),
            )
        })?;
        Ok(Self {
            alphabet,
            byte_fallback,
        })
    }
}

fn is_space(value: &Value) -> bool {
    value.as_str().is_some_and(|text| text.chars().eq([SPACE]))
}

fn vocabulary(bpe: &BPE, added: &AddedVocabulary, spelling: &Spelling) -> Result<Vocabulary, TokenizerError> {
    let model = bpe.get_vocab();
    let added = added.get_added_tokens_decoder();
    let greatest = model.values().chain(added.keys()).max().copied().unwrap_or(0) as usize;
    if greatest >= MAX_TOKENS {
        return Err(TokenizerError::Damaged(format!(
            "a token has the id {greatest}, which no vocabulary reaches"
        )));
    }
    let mut spellings = vec![""; greatest + 1];
    // Ids that nobody has are never text.
    let mut kinds = vec![Kind::Unused; greatest + 1];
    for (token, &id) in &model {
        let is_byte = spelling.byte_fallback && byte_of(token).is_some();
        spellings[id as usize] = token;
        kinds[id as usize] = match () {
            () if is_byte => Kind::Byte,
            () if bpe.unk_token.as_ref() == Some(token) => Kind::Unknown,
            () => Kind::Normal,
        };
    }
    // As GGUF files have them: added text is spelled plainly.
    let plain: Vec<(u32, String, bool)> = added
        .iter()
        .map(|(&id, token)| match spelling.alphabet {
            Alphabet::Spaces if !token.special => (id, token.content.replace(SPACE, " "), token.special),
            _ => (id, token.content.clone(), token.special),
        })
        .collect();
    for (id, content, special) in &plain {
        spellings[*id as usize] = content;
        kinds[*id as usize] = if *special { Kind::Control } else { Kind::UserDefined };
    }
    Vocabulary::new(&spellings, kinds, spelling.alphabet)
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, json};

    use super::super::vocabulary::byte_alphabet;
    use super::*;

    fn added(id: u32, content: &str, special: bool) -> Value {
        json!({
            "id": id, "content": content, "special": special, "normalized": false,
            "single_word": false, "lstrip": false, "rstrip": false,
        })
    }

    /// GPT-2's kind: each byte, two merges, three added tokens, and `<s>` before every prompt.
    fn byte_level() -> Value {
        let bytes = byte_alphabet().map(|character| character.to_string());
        let tokens = bytes.into_iter().chain(["he", "\u{120}he"].map(str::to_owned));
        let vocab: Map<_, _> = tokens.zip((0..).map(Value::from)).collect();
        json!({
            "added_tokens": [added(258, "<s>", true), added(259, "<end>", true), added(260, "<call me>", false)],
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [258], "tokens": ["<s>"]}},
            },
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "vocab": vocab, "merges": [["h", "e"], ["\u{120}", "he"]]},
        })
    }

    /// Llama 2's and Gemma's kind: a block for each space, bytes for what no token covers.
    fn byte_fallback() -> Value {
        let bytes = (0..256).map(|byte| format!("<0x{byte:02X}>"));
        let tokens = ["<unk>", "\u{2581}", "a", "\u{2581}a"].map(str::to_owned);
        let vocab: Map<_, _> = bytes.chain(tokens).zip((0..).map(Value::from)).collect();
        json!({
            "added_tokens": [added(256, "<unk>", true), added(260, "\u{2581}\u{2581}", false)],
            "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"},
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ]},
            "model": {
                "type": "BPE", "vocab": vocab, "merges": ["\u{2581} a"], "unk_token": "<unk>", "byte_fallback": true,
            },
        })
    }

    fn load(json: &Value) -> (HuggingFace, Vocabulary) {
        HuggingFace::from_json(&json.to_string()).unwrap_or_else(|error| panic!("{error}"))
    }

    fn encode(json: &Value, text: &str, parse_special: bool) -> Vec<u32> {
        let mut tokens = Vec::new();
        let encoded = load(json).0.encode(text, parse_special, &mut tokens);
        encoded.expect("plain text");
        tokens
    }

    #[track_caller]
    fn refusal(json: &Value) -> String {
        match HuggingFace::from_json(&json.to_string()) {
            Ok(_) => panic!("it should be refused"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn words_are_merged_and_added_tokens_found_where_they_are_asked_for() {
        let json = byte_level();
        assert_eq!(encode(&json, "he he", true), [256, 257]);
        assert_eq!(encode(&json, "he<end>he<call me>", true), [256, 259, 256, 260]);
        let end = b"<end>".map(u32::from);
        assert_eq!(
            encode(&json, "<end><call me>", false),
            [end.as_slice(), &[260]].concat()
        );
        assert!(encode(&json, "", true).is_empty());
    }

    #[test]
    fn every_token_of_a_byte_level_vocabulary_has_its_bytes() {
        let (_, vocabulary) = load(&byte_level());
        assert!((0..=255).all(|byte: u8| vocabulary.bytes(byte.into()) == [byte]));
        assert_eq!([256, 257].map(|id| vocabulary.bytes(id)), [b"he".as_slice(), b" he"]);
        assert_eq!([258, 259].map(|id| vocabulary.kind(id)), [Kind::Control; 2]);
        assert_eq!(
            [259, 260].map(|id| vocabulary.bytes(id)),
            [b"".as_slice(), b"<call me>"]
        );
    }

    #[test]
    fn a_vocabulary_that_falls_back_to_bytes_has_spaces_for_blocks() {
        let json = byte_fallback();
        assert_eq!(encode(&json, "a a\u{E9}", true), [258, 259, 0xC3, 0xA9]);
        let (_, vocabulary) = load(&json);
        assert_eq!([0xC3, 0xA9].map(|id| vocabulary.bytes(id)), [[0xC3], [0xA9]]);
        assert_eq!(
            [257, 259, 260].map(|id| vocabulary.bytes(id)),
            [b" ".as_slice(), b" a", b"  "]
        );
        assert!(vocabulary.bytes(256).is_empty());
    }

    #[test]
    fn what_belongs_around_a_prompt_is_what_the_post_processor_puts_there() {
        let mut json = byte_level();
        assert_eq!(load(&json).0.around(), Ok((vec![258], vec![])));
        let single = json["post_processor"]["single"].as_array_mut().expect("a list");
        single.push(json!({"SpecialToken": {"id": "<s>", "type_id": 0}}));
        assert_eq!(load(&json).0.around(), Ok((vec![258], vec![258])));
        json["post_processor"] = Value::Null;
        assert_eq!(load(&json).0.around(), Ok((vec![], vec![])));
    }

    #[test]
    fn ids_that_nobody_has_are_no_text_and_impossible_ones_are_refused() {
        let mut json = byte_fallback();
        json["model"]["vocab"]["b"] = json!(300);
        let (_, vocabulary) = load(&json);
        assert_eq!((vocabulary.len(), vocabulary.bytes(300)), (301, b"b".as_slice()));
        assert_eq!(vocabulary.kind(299), Kind::Unused);
        json["model"]["vocab"]["b"] = json!(4_000_000_000u32);
        assert!(refusal(&json).contains("4000000000"));
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        let with = |pointer: &str, value: Value| {
            let mut json = byte_fallback();
            *json.pointer_mut(pointer).expect("a field") = value;
            refusal(&json)
        };
        let words = json!({"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"});
        assert!(with("/model", words).contains("tokenizers of type WordLevel are not supported"));
        assert!(with("/decoder", Value::Null).contains("decoders of type none"));
        assert!(
            with(
                "/decoder",
                json!({"type": "WordPiece", "prefix": "##", "cleanup": true})
            )
            .contains("WordPiece")
        );
        assert!(with("/decoder/decoders/0/content", json!("_")).contains("decoders of type Replace"));
        assert!(with("/decoder/decoders", json!([{"type": "Fuse"}])).contains("how spaces are spelled"));
        let mut dropping = byte_fallback();
        dropping["model"]["dropout"] = json!(0.1);
        assert!(refusal(&dropping).contains("by chance"));
    }

    #[test]
    fn a_file_that_makes_no_sense_is_an_error() {
        for text in ["", "{}", "[1]", "{\"model\": 7}"] {
            assert!(
                matches!(HuggingFace::from_json(text), Err(TokenizerError::Damaged(_))),
                "{text}"
            );
        }
        let mut json = byte_fallback();
        json["model"]["merges"] = json!(["a z"]);
        assert!(refusal(&json).contains("tokenizer.json"));
    }
}
