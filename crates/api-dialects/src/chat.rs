//! What is read of a chat's answers.

use openai_api::{FinishReason, ToolCall, Usage};
use serde::Deserialize;
use serde_json::value::RawValue;
use shared_contract::ErrorObject;

/// A whole answer.
#[derive(Debug, Deserialize)]
pub(crate) struct Completion {
    pub(crate) model: String,
    /// Exactly one: no dialect asks for several.
    choices: (Choice,),
    pub(crate) usage: Usage,
}

/// The answer itself.
#[derive(Debug, Deserialize)]
pub(crate) struct Choice {
    pub(crate) message: Message,
    logprobs: Option<Logprobs>,
    finish_reason: FinishReason,
    stop_reason: Option<String>,
}

/// What the model says.
#[derive(Debug, Deserialize)]
pub(crate) struct Message {
    content: Option<String>,
    tool_calls: Option<Vec<ToolCall>>,
}

/// One data line of a stream: a chunk, or an error.
#[derive(Debug, Deserialize)]
pub(crate) struct Event {
    #[serde(default)]
    pub(crate) model: String,
    #[serde(default)]
    pub(crate) choices: Vec<ChoiceDelta>,
    pub(crate) usage: Option<Usage>,
    pub(crate) error: Option<ErrorObject>,
}

/// What is new of an answer.
#[derive(Debug, Deserialize)]
pub(crate) struct ChoiceDelta {
    pub(crate) delta: Delta,
    logprobs: Option<Logprobs>,
    finish_reason: Option<FinishReason>,
    stop_reason: Option<String>,
}

/// What is new of a message.
#[derive(Debug, Deserialize)]
pub(crate) struct Delta {
    pub(crate) content: Option<String>,
    tool_calls: Option<Vec<CallDelta>>,
}

/// What is new of a tool call.
#[derive(Debug, Deserialize)]
pub(crate) struct CallDelta {
    pub(crate) index: u32,
    pub(crate) id: Option<String>,
    #[serde(default)]
    pub(crate) function: FunctionDelta,
}

/// Part of [`CallDelta`].
#[derive(Debug, Default, Deserialize)]
pub(crate) struct FunctionDelta {
    pub(crate) name: Option<String>,
    #[serde(default)]
    pub(crate) arguments: String,
}

/// A token's log probability as it is written: the dialects write it as the chat does.
pub(crate) type Logprob = Box<RawValue>;

#[derive(Debug, Deserialize)]
struct Logprobs {
    content: Option<Vec<Logprob>>,
}

/// Why an answer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ending {
    pub(crate) reason: FinishReason,
    /// The stop text that ended it, where one did and the worker names it.
    pub(crate) stop_text: Option<String>,
}

/// A whole answer, taken apart.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) model: String,
    /// Empty only if the model called tools or had nothing to say.
    pub(crate) text: String,
    pub(crate) logprobs: Vec<Logprob>,
    pub(crate) calls: Vec<ToolCall>,
    pub(crate) ending: Ending,
    pub(crate) usage: Usage,
}

impl Answer {
    pub(crate) fn read(body: &[u8]) -> Result<Self, serde_json::Error> {
        let completion: Completion = serde_json::from_slice(body)?;
        let (choice,) = completion.choices;
        Ok(Self {
            model: completion.model,
            text: choice.message.content.unwrap_or_default(),
            logprobs: tokens(choice.logprobs),
            calls: choice.message.tool_calls.unwrap_or_default(),
            ending: Ending {
                reason: choice.finish_reason,
                stop_text: choice.stop_reason,
            },
            usage: completion.usage,
        })
    }
}

impl ChoiceDelta {
    /// The calls that are new or grow.
    pub(crate) fn take_calls(&mut self) -> Vec<CallDelta> {
        self.delta.tool_calls.take().unwrap_or_default()
    }

    /// The log probabilities of what is new.
    pub(crate) fn take_logprobs(&mut self) -> Vec<Logprob> {
        tokens(self.logprobs.take())
    }

    /// Why the answer ended, if it did.
    pub(crate) fn take_ending(&mut self) -> Option<Ending> {
        let reason = self.finish_reason?;
        let stop_text = self.stop_reason.take();
        Some(Ending { reason, stop_text })
    }
}

fn tokens(logprobs: Option<Logprobs>) -> Vec<Logprob> {
    logprobs.and_then(|logprobs| logprobs.content).unwrap_or_default()
}
