//! `POST /v1/chat/completions`: the request.

use worker_contract::Resume;

use crate::error::InvalidRequest;
use crate::fields::{Fields, Unsupported, nothing};
use crate::generation::{self, Generation};
use crate::ignored;
use crate::messages::{Message, Role, messages};
use crate::response_format::{ResponseFormat, response_format};
use crate::resume;
use crate::tools::{self, Tool, ToolChoice};

/// Most alternatives for each token that a chat may ask for.
pub const MAX_TOP_LOGPROBS: u32 = 20;

pub(crate) const UNSUPPORTED: [Unsupported; 6] = [
    Unsupported::replaced("functions", nothing::empty, "send `tools` instead"),
    Unsupported::replaced("function_call", nothing::none_or_auto, "send `tool_choice` instead"),
    Unsupported::new("modalities", nothing::text_only),
    Unsupported::new("audio", nothing::never),
    Unsupported::new("web_search_options", nothing::never),
    Unsupported::new("moderation", nothing::never),
];

/// A valid chat request.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatRequest {
    /// Which model, as the client names it.
    pub model: String,
    /// The conversation, oldest first; at least one message.
    pub messages: Vec<Message>,
    /// Most tokens to generate, at least 1; `None`: what the context still holds.
    pub max_tokens: Option<u32>,
    /// How to generate and answer.
    pub generation: Generation,
    /// Whether to tell each token's log probability, and with how many alternatives: 0 to [`MAX_TOP_LOGPROBS`].
    pub logprobs: Option<u32>,
    /// The form that a text of the answer is to have.
    pub response_format: ResponseFormat,
    /// What the model may call.
    pub tools: Vec<Tool>,
    /// Whether and what it is to call; `None` where there are no tools.
    pub tool_choice: ToolChoice,
    /// Whether it may call several tools in one answer.
    pub parallel_tool_calls: bool,
    /// Where the prompt ends.
    pub prompt_end: PromptEnd,
    /// The stream is another worker's, to be taken up where it stands.
    pub resume: Option<Resume>,
}

/// Where the prompt of a chat ends. The parameters are those of vLLM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PromptEnd {
    /// Where an answer of the assistant begins; the default.
    Answer,
    /// Behind the last message: `add_generation_prompt: false`.
    Messages,
    /// Within the last message, which is the assistant's and goes on: `continue_final_message: true` besides.
    FinalMessage,
}

impl ChatRequest {
    /// Parses and validates a body.
    pub fn parse(body: &[u8]) -> Result<Self, InvalidRequest> {
        let mut fields = Fields::of_body(body)?;
        let model = generation::model(&mut fields)?;
        let messages = messages(fields.required("messages")?)?;
        let older = fields.count("max_tokens")?;
        let newer = fields.count("max_completion_tokens")?;
        let mut generation = Generation::take(&mut fields)?;
        generation
            .ignored
            .extend(ignored::take(&mut fields, &ignored::OF_CHATS)?);
        let logprobs = logprobs(&mut fields)?;
        let response_format = response_format(&mut fields)?;
        let tools = tools::tools(&mut fields)?;
        let tool_choice = tools::choice(&mut fields, &tools)?;
        let parallel_tool_calls = fields.boolean("parallel_tool_calls")?.unwrap_or(true);
        let prompt_end = prompt_end(&mut fields, &messages)?;
        let resume = resume::resume(&mut fields, &generation, logprobs)?;
        fields.refuse(&UNSUPPORTED)?;
        fields.finish()?;
        Ok(Self {
            model,
            messages,
            max_tokens: newer.or(older),
            generation,
            logprobs,
            response_format,
            tools,
            tool_choice,
            parallel_tool_calls,
            prompt_end,
            resume,
        })
    }
}

fn prompt_end(fields: &mut Fields, messages: &[Message]) -> Result<PromptEnd, InvalidRequest> {
    const CONTINUE: &str = "continue_final_message";
    let begins_answer = fields.boolean("add_generation_prompt")?.unwrap_or(true);
    let continues = fields.boolean(CONTINUE)?.unwrap_or(false);
    let is_open = |message: &Message| message.role == Role::Assistant && message.tool_calls.is_empty();
    match (begins_answer, continues) {
        (true, false) => Ok(PromptEnd::Answer),
        (false, false) => Ok(PromptEnd::Messages),
        (true, true) => Err(InvalidRequest::value(CONTINUE, "needs `add_generation_prompt: false`")),
        (false, true) if messages.last().is_some_and(is_open) => Ok(PromptEnd::FinalMessage),
        (false, true) => {
            let reason = "the last message must be a text of the assistant, without tool calls";
            Err(InvalidRequest::value(CONTINUE, reason))
        }
    }
}

fn logprobs(fields: &mut Fields) -> Result<Option<u32>, InvalidRequest> {
    let is_wanted = fields.boolean("logprobs")?.unwrap_or(false);
    let alternatives = fields.integer_within("top_logprobs", 0, MAX_TOP_LOGPROBS)?.unwrap_or(0);
    if alternatives > 0 && !is_wanted {
        let reason = "is only allowed together with `logprobs: true`";
        return Err(InvalidRequest::value("top_logprobs", reason));
    }
    Ok(is_wanted.then_some(alternatives))
}
