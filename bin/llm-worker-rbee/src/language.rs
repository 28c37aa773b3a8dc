//! Text to tokens and back, as the worker needs it of a model.

use batch_engine::Constraint;
use candle_models::{ChatTemplate, TemplateError, TextDecoder, Tokenizer};
use openai_api::{Message, PromptEnd, Role, Tool};
use serde_json::Value;
use structured_output::{Grammar, GrammarError, Grammars, TokenText, ToolFormat, ToolSpec};

/// The language side of a model: its tokenizer, its chat template and its grammars. Calls may compute for long: not for
/// async code, but for the cheap ones that say so.
pub(crate) trait Language: Send + Sync + 'static {
    /// Whether the model can chat. Cheap.
    fn has_chat_template(&self) -> bool;

    /// How the model spells calls of tools. Cheap.
    fn tool_format(&self) -> ToolFormat;

    /// The fewest tokens that a text of so many bytes can have: tells what cannot fit without computing for long. Cheap.
    fn fewest_tokens(&self, bytes: usize) -> usize;

    /// A text to be continued as it stands: control tokens spelled in it stay text, the model's opening token is added.
    fn encode_text(&self, text: &str) -> Result<Vec<u32>, EncodeError>;

    /// A conversation, laid out by the chat template, with tools that the model may call, up to this end.
    fn encode_chat(&self, messages: &[Message], tools: &[Tool], end: PromptEnd) -> Result<Vec<u32>, EncodeError>;

    /// The tokens that end an answer. Cheap.
    fn end_tokens(&self) -> &[u32];

    /// What holds an answer to a grammar.
    fn constraint(&self, grammar: &Grammar) -> Result<Box<dyn Constraint>, GrammarError>;

    /// What a token adds to the text: maybe a part of a character, empty for control tokens and unknown ones. Cheap.
    fn token_bytes(&self, token: u32) -> Vec<u8>;

    /// Puts the tokens of one answer together to text. Control tokens are left out, but for those with these spellings.
    /// Cheap.
    fn decoder(&self, shown: &'static [&'static str]) -> Box<dyn Decoder>;
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

/// The tools as structured-output takes them.
pub(crate) fn specifications(tools: &[Tool]) -> Vec<ToolSpec> {
    let tools = tools.iter().map(|tool| ToolSpec {
        name: tool.name.clone(),
        description: tool.description.clone(),
        parameters: tool.parameters.clone(),
        strict: tool.strict,
    });
    tools.collect()
}

/// The language side of a model file.
pub(crate) struct ModelLanguage {
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    /// How the template spells calls; `None` if it knows no tools, or no spelling that is known here.
    tool_format: Option<ToolFormat>,
    grammars: Grammars,
    longest_token_bytes: usize,
}

/// Longest spelling of a control token in a chat template.
const CONTROL_TOKEN_BYTES: usize = 64;

impl ModelLanguage {
    pub(crate) fn new(tokenizer: Tokenizer, template: Option<ChatTemplate>) -> Self {
        let longest = tokens(&tokenizer).map(|token| tokenizer.token_bytes(token).len()).max();
        let grammars = Grammars::new(
            {
                let tokenizer = tokenizer.clone();
                move || tokens(&tokenizer).map(|token| token_text(&tokenizer, token)).collect()
            },
            tokenizer.end_tokens().to_vec(),
        );
        let tool_format = template
            .as_ref()
            .and_then(|template| ToolFormat::of_template(template.source()));
        Self {
            longest_token_bytes: longest.unwrap_or_default().max(CONTROL_TOKEN_BYTES),
            tokenizer,
            template,
            tool_format,
            grammars,
        }
    }

    /// The messages, and the tools if the template takes them.
    fn laid_out(&self, messages: &[Message], tools: &[Tool]) -> Result<(Vec<Value>, Option<Vec<Value>>), EncodeError> {
        let has_calls = messages
            .iter()
            .any(|message| message.role == Role::Tool || !message.tool_calls.is_empty());
        let messages: Vec<Message> = messages.iter().map(for_template).collect();
        let messages = values(&messages)?;
        if self.tool_format.is_some() {
            let tools = if tools.is_empty() { None } else { Some(values(tools)?) };
            Ok((messages, tools))
        } else if has_calls || !tools.is_empty() {
            Ok((ToolFormat::plain_messages(&specifications(tools), &messages), None))
        } else {
            Ok((messages, None))
        }
    }
}

fn tokens(tokenizer: &Tokenizer) -> impl Iterator<Item = u32> + use<> {
    0..u32::try_from(tokenizer.vocab_size()).unwrap_or(u32::MAX)
}

fn token_text(tokenizer: &Tokenizer, token: u32) -> TokenText {
    let is_special = tokenizer.is_special(token);
    let bytes = if is_special {
        tokenizer.spelling(token).as_bytes()
    } else {
        tokenizer.token_bytes(token)
    };
    TokenText {
        bytes: bytes.to_vec(),
        is_special,
    }
}

fn values<T: serde::Serialize>(items: &[T]) -> Result<Vec<Value>, EncodeError> {
    let values: Result<_, _> = items.iter().map(serde_json::to_value).collect();
    values.map_err(|error| EncodeError::Broken(error.to_string()))
}

impl Language for ModelLanguage {
    fn has_chat_template(&self) -> bool {
        self.template.is_some()
    }

    fn tool_format(&self) -> ToolFormat {
        self.tool_format.unwrap_or(ToolFormat::Hermes)
    }

    fn fewest_tokens(&self, bytes: usize) -> usize {
        bytes.div_ceil(self.longest_token_bytes)
    }

    fn encode_text(&self, text: &str) -> Result<Vec<u32>, EncodeError> {
        self.tokenizer
            .encode(text, false, true)
            .map_err(|error| EncodeError::Broken(error.to_string()))
    }

    fn encode_chat(&self, messages: &[Message], tools: &[Tool], end: PromptEnd) -> Result<Vec<u32>, EncodeError> {
        let template = self.template.as_ref().ok_or(EncodeError::NoChatTemplate)?;
        let (messages, tools) = self.laid_out(messages, tools)?;
        let rendered = render(template, messages, tools.as_deref(), end)?;
        self.tokenizer
            .encode_chat(&rendered)
            .map_err(|error| EncodeError::Broken(error.to_string()))
    }

    fn end_tokens(&self) -> &[u32] {
        self.tokenizer.end_tokens()
    }

    fn constraint(&self, grammar: &Grammar) -> Result<Box<dyn Constraint>, GrammarError> {
        self.grammars.constraint(grammar)
    }

    fn token_bytes(&self, token: u32) -> Vec<u8> {
        self.tokenizer.token_bytes(token).to_vec()
    }

    fn decoder(&self, shown: &'static [&'static str]) -> Box<dyn Decoder> {
        let decoder = self.tokenizer.decoder();
        if shown.is_empty() {
            return Box::new(decoder);
        }
        Box::new(Showing {
            tokenizer: self.tokenizer.clone(),
            decoder,
            shown,
        })
    }
}

/// Stands where a message goes on while it is laid out: what templates put behind a message, and whether they trim it, is
/// theirs.
const GOES_ON: &str = "[[the message goes on here]]";

/// The prompt of a conversation up to this end.
fn render(
    template: &ChatTemplate,
    mut messages: Vec<Value>,
    tools: Option<&[Value]>,
    end: PromptEnd,
) -> Result<String, EncodeError> {
    if end == PromptEnd::FinalMessage
        && let Some(Value::String(content)) = messages.last_mut().and_then(|message| message.get_mut("content"))
    {
        content.push_str(GOES_ON);
    }
    let rendered = template.render(&messages, tools, end == PromptEnd::Answer);
    let mut rendered = rendered.map_err(|error| match error {
        // What a template does not cope with is the conversation: it has served others.
        TemplateError::Refused(reason) | TemplateError::Failed(reason) => EncodeError::Refused(reason),
        TemplateError::Syntax(reason) => EncodeError::Broken(reason),
    })?;
    if end == PromptEnd::FinalMessage {
        let reason = "it leaves out the message that is to go on";
        let place = rendered.rfind(GOES_ON);
        rendered.truncate(place.ok_or_else(|| EncodeError::Refused(reason.to_owned()))?);
    }
    Ok(rendered)
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

/// Shows some control tokens.
struct Showing {
    tokenizer: Tokenizer,
    decoder: TextDecoder,
    shown: &'static [&'static str],
}

impl Decoder for Showing {
    fn push(&mut self, token: u32) -> Option<String> {
        if !self.tokenizer.is_special(token) {
            return self.decoder.push(token);
        }
        let spelling = self.tokenizer.spelling(token);
        if !self.shown.contains(&spelling) {
            return None;
        }
        let cut = self.decoder.finish().unwrap_or_default();
        Some(cut + spelling)
    }

    fn finish(&mut self) -> Option<String> {
        self.decoder.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_developer_speaks_as_the_system_and_the_others_as_themselves() {
        let said = |role| for_template(&Message::new(role, "x")).role;
        assert_eq!(said(Role::Developer), Role::System);
        for role in [Role::System, Role::User, Role::Assistant, Role::Tool] {
            assert_eq!(said(role), role);
        }
    }

    fn laid_out(source: &str, end: PromptEnd) -> Result<String, EncodeError> {
        let template = ChatTemplate::new(source, None, None).unwrap();
        let said = |role: &str, content: &str| serde_json::json!({"role": role, "content": content});
        render(
            &template,
            vec![said("user", "Hi"), said("assistant", " So ")],
            None,
            end,
        )
    }

    #[test]
    fn a_prompt_ends_at_an_answer_behind_the_messages_or_within_the_last_one() {
        let source = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</>{% endfor %}\
                      {% if add_generation_prompt %}<assistant>{% endif %}";
        for (end, expected) in [
            (PromptEnd::Answer, "<user>Hi</><assistant>So</><assistant>"),
            (PromptEnd::Messages, "<user>Hi</><assistant>So</>"),
            (PromptEnd::FinalMessage, "<user>Hi</><assistant>So "),
        ] {
            assert_eq!(
                laid_out(source, end).unwrap(),
                expected,
                "a blank before what follows is kept"
            );
        }
    }

    #[test]
    fn a_template_that_leaves_out_the_message_that_goes_on_refuses() {
        let source = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}";
        assert_eq!(laid_out(source, PromptEnd::Messages).unwrap(), "Hi");
        assert!(matches!(
            laid_out(source, PromptEnd::FinalMessage),
            Err(EncodeError::Refused(_))
        ));
    }
}
