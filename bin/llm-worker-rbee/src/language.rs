//! Text to tokens and back, as the worker needs it of a model.

use candle_models::{ChatTemplate, TemplateError, TextDecoder, Tokenizer};
use openai_api::{Message, Role};

/// The language side of a model: its tokenizer and its chat template. Calls may compute for long: not for async code.
pub(crate) trait Language: Send + Sync + 'static {
    /// Whether the model can chat.
    fn has_chat_template(&self) -> bool;

    /// The fewest tokens that a text of so many bytes can have: tells what cannot fit without computing for long.
    fn fewest_tokens(&self, bytes: usize) -> usize;

    /// A text to be continued as it stands: control tokens spelled in it stay text, the model's opening token is added.
    fn encode_text(&self, text: &str) -> Result<Vec<u32>, EncodeError>;

    /// A conversation, laid out by the chat template, up to where the assistant's answer begins.
    fn encode_chat(&self, messages: &[Message]) -> Result<Vec<u32>, EncodeError>;

    /// Puts the tokens of one answer together to text.
    fn decoder(&self) -> Box<dyn Decoder>;
}

/// Tokens in, whole characters out.
pub(crate) trait Decoder: Send {
    /// Takes the next token; `None` if no further character is complete.
    fn push(&mut self, token: u32) -> Option<String>;

    /// The answer is over: what is left, a cut character as U+FFFD.
    fn finish(&mut self) -> Option<String>;
}

/// Why there are no tokens.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EncodeError {
    /// The model has no chat template.
    #[error("this model has no chat template: use /v1/completions, or start the worker with --chat-template FILE")]
    NoChatTemplate,
    /// The template refuses the conversation.
    #[error("the model's chat template refuses this conversation: {0}")]
    Refused(String),
    /// The tokenizer or the template broke.
    #[error("{0}")]
    Broken(String),
}

/// The language side of a GGUF file.
pub(crate) struct GgufLanguage {
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    longest_token_bytes: usize,
}

/// Longest spelling of a control token in a chat template.
const CONTROL_TOKEN_BYTES: usize = 64;

impl GgufLanguage {
    pub(crate) fn new(tokenizer: Tokenizer, template: Option<ChatTemplate>) -> Self {
        let tokens = 0..u32::try_from(tokenizer.vocab_size()).unwrap_or(u32::MAX);
        let longest = tokens
            .map(|token| tokenizer.token_bytes(token).len())
            .max()
            .unwrap_or_default();
        Self {
            tokenizer,
            template,
            longest_token_bytes: longest.max(CONTROL_TOKEN_BYTES),
        }
    }
}

impl Language for GgufLanguage {
    fn has_chat_template(&self) -> bool {
        self.template.is_some()
    }

    fn fewest_tokens(&self, bytes: usize) -> usize {
        bytes.div_ceil(self.longest_token_bytes)
    }

    fn encode_text(&self, text: &str) -> Result<Vec<u32>, EncodeError> {
        self.tokenizer
            .encode(text, false, true)
            .map_err(|error| EncodeError::Broken(error.to_string()))
    }

    fn encode_chat(&self, messages: &[Message]) -> Result<Vec<u32>, EncodeError> {
        let template = self.template.as_ref().ok_or(EncodeError::NoChatTemplate)?;
        let messages = messages.iter().map(for_template);
        let messages: Result<Vec<_>, _> = messages.map(|message| serde_json::to_value(&message)).collect();
        let messages = messages.map_err(|error| EncodeError::Broken(error.to_string()))?;
        let rendered = template.render(&messages, true).map_err(|error| match error {
            // What a template does not cope with is the conversation: it has served others.
            TemplateError::Refused(reason) | TemplateError::Failed(reason) => EncodeError::Refused(reason),
            TemplateError::Syntax(reason) => EncodeError::Broken(reason),
        })?;
        self.tokenizer
            .encode_chat(&rendered)
            .map_err(|error| EncodeError::Broken(error.to_string()))
    }

    fn decoder(&self) -> Box<dyn Decoder> {
        Box::new(self.tokenizer.decoder())
    }
}

/// Templates of open models know the older name of the role only.
fn for_template(message: &Message) -> Message {
    let role = match message.role {
        Role::Developer => Role::System,
        role => role,
    };
    Message {
        role,
        ..message.clone()
    }
}

impl Decoder for TextDecoder {
    fn push(&mut self, token: u32) -> Option<String> {
        self.push(token)
    }

    fn finish(&mut self) -> Option<String> {
        self.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_developer_speaks_as_the_system_and_the_others_as_themselves() {
        let said = |role| {
            let message = Message {
                role,
                content: "x".to_owned(),
                name: None,
            };
            for_template(&message).role
        };
        assert_eq!(said(Role::Developer), Role::System);
        for role in [Role::System, Role::User, Role::Assistant] {
            assert_eq!(said(role), role);
        }
    }
}
