//! A stream that one worker began and another one finishes.
//!
//! A queen that can do this sends each streamed request with the header [`TOKENS_HEADER`]. A worker with
//! [`Feature::Resume`](crate::Feature::Resume) then writes, before the `data:` line of each event, a comment line that
//! names the tokens it took since the last event, also those whose text is held back: `: tokens 12 345 6`. The queen takes
//! these lines out; clients never see them. When the worker is lost, the same request goes to another one with the member
//! `resume` put before all others: [`Resume`]. That one brings itself to the state after these tokens, sends nothing
//! that was sent before, counts usage and `max_tokens` from the very first token, and goes on under the same id.
//!
//! Only for one answer to one prompt, without logprobs; a request for more with `resume` is refused with status 400.

use serde::{Deserialize, Serialize};

/// Asks for the lines that name tokens; the value is `1`.
pub const TOKENS_HEADER: &str = "x-rbee-tokens";

/// What such a line begins with, up to the first token's id in decimal digits; one space is between two ids.
pub const TOKENS_COMMENT: &str = ": tokens ";

/// Member of the request's body that takes up a stream; see the module.
pub const RESUME_MEMBER: &str = "resume";

/// Where a stream that is taken up stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resume {
    /// `id` of its chunks.
    pub id: String,
    /// `created` of its chunks, in seconds since the epoch.
    pub created: i64,
    /// The answer's tokens so far, in order; those of the prompt are not among them.
    pub tokens: Vec<u32>,
}

/// Answer to `POST /v1/count_tokens`, whose body is that of `POST /v1/chat/completions`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenCount {
    /// Tokens of the prompt as the model would get it.
    pub prompt_tokens: u32,
}
