//! A model's vocabulary and the grammars that are compiled for it.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use batch_engine::Constraint;
use llguidance::ParserFactory;
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};

use crate::error::GrammarError;
use crate::free_text::FreeText;
use crate::matcher::Matcher;
use crate::schema;
use crate::tool_grammar::ToolGrammar;
use crate::tools::{ToolFormat, ToolSpec};

/// Kinds of tokens that a JSON string mostly takes as a whole, so that they are not tried one by one. Each costs copies of
/// parts of the vocabulary: these two are 30 MB for 260,000 tokens and make masks inside of strings 20 times faster.
const SLICES: [&str; 2] = [r#"[^"\\\x00-\x1F\x7F]{1,10}"#, r#"[^"\\\x00-\x1F\x7F]+"#];

/// One token of the vocabulary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenText {
    /// What the token adds to the text: any bytes, not always whole characters. Of a special token its spelling. Empty
    /// for a token that is never generated.
    pub bytes: Vec<u8>,
    /// Whether the token steers the model (ends a turn, begins a call) rather than being text. Grammars use it only
    /// where they mean it. A token that merely stands for a long text (GGUF's user-defined ones) is not special.
    pub is_special: bool,
}

/// What an answer is to follow.
#[derive(Debug, Clone, PartialEq)]
pub enum Grammar {
    /// A JSON object of any content.
    JsonObject,
    /// A JSON value that this JSON schema accepts (draft 2020-12 unless `$schema` says otherwise). Nothing is fetched:
    /// `$ref` reaches only into the schema itself. Of dates only the form is kept: any year may have a 29 February.
    JsonSchema(serde_json::Value),
    /// Calls of tools. Without `required` and `named`, any text may come first, or alone; the answer ends with its last
    /// call. (That no tool is to be called needs no grammar: do not tell the model of tools.)
    Tools {
        /// The tools that may be called, at least one.
        tools: Vec<ToolSpec>,
        /// How the model spells a call.
        format: ToolFormat,
        /// The answer is a call from its first token.
        required: bool,
        /// The answer is a call of this tool, from its first token.
        named: Option<String>,
        /// There may be several calls.
        parallel: bool,
    },
}

/// The vocabulary of a model, for which grammars are compiled. Cheap to clone, and to create: the vocabulary is asked
/// for and built with the first constraint.
#[derive(Clone)]
pub struct Grammars {
    shared: Arc<Shared>,
}

struct Shared {
    end_tokens: Vec<u32>,
    vocabulary: Mutex<Vocabulary>,
}

/// Changes once, at the first use.
enum Vocabulary {
    Unread(Box<dyn FnOnce() -> Vec<TokenText> + Send>),
    Built(Arc<ParserFactory>),
    Unusable(String),
}

impl Grammars {
    /// Grammars over the tokens that `vocabulary` gives, in the order of their ids; `end_tokens` end an answer.
    pub fn new(vocabulary: impl FnOnce() -> Vec<TokenText> + Send + 'static, end_tokens: Vec<u32>) -> Self {
        Self {
            shared: Arc::new(Shared {
                end_tokens,
                vocabulary: Mutex::new(Vocabulary::Unread(Box::new(vocabulary))),
            }),
        }
    }

    /// A constraint that holds one answer to `grammar`, from its first token on.
    ///
    /// The first call builds the vocabulary (0.1 s and 15 MB for 50,000 tokens, 1 s and 70 MB for 260,000), and others
    /// wait for it. Each call compiles its grammar: milliseconds, up to a second for huge schemas. So call it where
    /// blocking is allowed.
    ///
    /// # Errors
    /// The grammar asks for something that cannot be kept, or the vocabulary has no token that ends an answer.
    pub fn constraint(&self, grammar: &Grammar) -> Result<Box<dyn Constraint>, GrammarError> {
        let compiler = Compiler(self.shared.factory()?);
        match grammar {
            Grammar::JsonObject => Ok(Box::new(compiler.schema(&schema::any_object())?)),
            Grammar::JsonSchema(schema) => Ok(Box::new(compiler.schema(schema)?)),
            Grammar::Tools {
                tools,
                format,
                required,
                named,
                parallel,
            } => {
                let calls = ToolGrammar::new(tools, *format, named.as_deref(), *parallel, &compiler)?;
                if *required || named.is_some() {
                    Ok(Box::new(calls.matcher))
                } else {
                    Ok(Box::new(FreeText::new(calls, compiler.trie())))
                }
            }
        }
    }
}

impl fmt::Debug for Grammars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammars")
            .field("end_tokens", &self.shared.end_tokens)
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn factory(&self) -> Result<Arc<ParserFactory>, GrammarError> {
        // A panic in the caller's closure leaves `Unusable` behind, which is true.
        let mut vocabulary = self.vocabulary.lock().unwrap_or_else(PoisonError::into_inner);
        if let Vocabulary::Unread(_) = *vocabulary {
            let unusable = Vocabulary::Unusable("it could not be read".to_owned());
            if let Vocabulary::Unread(read) = std::mem::replace(&mut *vocabulary, unusable) {
                *vocabulary = match factory(read(), &self.end_tokens) {
                    Ok(factory) => Vocabulary::Built(Arc::new(factory)),
                    Err(why) => Vocabulary::Unusable(why),
                };
            }
        }
        match &*vocabulary {
            Vocabulary::Built(factory) => Ok(Arc::clone(factory)),
            Vocabulary::Unusable(why) => Err(GrammarError::Vocabulary(why.clone())),
            Vocabulary::Unread(_) => unreachable!("it was just read"),
        }
    }
}

fn factory(tokens: Vec<TokenText>, end_tokens: &[u32]) -> Result<ParserFactory, String> {
    let Some(&end_token) = end_tokens.first() else {
        return Err("no token ends an answer".to_owned());
    };
    if let Some(unknown) = end_tokens.iter().find(|&&token| token as usize >= tokens.len()) {
        return Err(format!(
            "the end token {unknown} is not one of its {} tokens",
            tokens.len()
        ));
    }
    let vocab_size = u32::try_from(tokens.len()).map_err(|_| "it is too large".to_owned())?;
    let words: Vec<Vec<u8>> = tokens.into_iter().map(trie_word).collect();
    let trie = TokTrie::from(&TokRxInfo::new(vocab_size, end_token), &words).with_eos_tokens(end_tokens);
    // Not canonical: a mask never forces one spelling of a text, the model chooses among all.
    let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
    let slices = SLICES.map(str::to_owned);
    let mut factory = ParserFactory::new(&environment, InferenceCapabilities::default(), &slices)
        .map_err(|error| error.to_string())?;
    factory.quiet();
    factory.limits_mut().verbose_errors = false;
    Ok(factory)
}

/// How the trie wants a token: special ones are marked by a byte that no text has.
fn trie_word(token: TokenText) -> Vec<u8> {
    let mut word = token.bytes;
    if token.is_special && !word.is_empty() {
        word.insert(0, TokTrie::SPECIAL_TOKEN_MARKER);
    }
    word
}

/// Compiles grammars over a built vocabulary.
pub(crate) struct Compiler(Arc<ParserFactory>);

impl Compiler {
    /// A matcher for a JSON value.
    pub(crate) fn schema(&self, schema: &serde_json::Value) -> Result<Matcher, GrammarError> {
        let grammar = TopLevelGrammar::from_json_schema(schema::prepared(schema));
        self.grammar(grammar).map_err(|error| schema::explain(schema, &error))
    }

    /// A matcher for any grammar; the error is llguidance's text.
    pub(crate) fn grammar(&self, grammar: TopLevelGrammar) -> Result<Matcher, String> {
        let parser = self.0.create_parser(grammar).map_err(|error| error.to_string())?;
        Ok(Matcher::new(parser))
    }

    /// The tokens by their bytes.
    pub(crate) fn trie(&self) -> TokEnv {
        self.0.tok_env().clone()
    }

    /// The special token with this spelling.
    pub(crate) fn special_token(&self, spelling: &str) -> Option<u32> {
        self.0.tok_env().tok_trie().get_special_token(spelling)
    }
}
