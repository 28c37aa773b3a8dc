//! Takes up a stream that another worker began.

use batch_engine::Constraint;
use daemon::ApiError;
use worker_contract::{RESUME_MEMBER, Resume};

use crate::generation::Resumed;
use crate::state::Served;

/// Where the answer stands, if this model can have come there.
pub(super) fn read(served: &Served, resume: &Resume) -> Result<Resumed, ApiError> {
    let context_length = served.engine.context_length();
    // Before they are looked at one by one.
    if resume.tokens.len() > context_length {
        return Err(unfit(
            context_length,
            format_args!("this model's context holds {context_length} tokens"),
        ));
    }
    let mut tokens = resume.tokens.clone();
    let ends = served.language.end_tokens();
    let is_ended = tokens.pop_if(|token| ends.contains(token)).is_some();
    let vocab_size = served.engine.vocab_size();
    for (index, token) in tokens.iter().enumerate() {
        if *token as usize >= vocab_size {
            return Err(unfit(
                index,
                format_args!("this model has the tokens 0 to {}", vocab_size - 1),
            ));
        }
        if ends.contains(token) {
            return Err(unfit(index, "it ends an answer, and others follow"));
        }
    }
    Ok(Resumed { tokens, is_ended })
}

/// Brings a constraint to where the answer stands. Computes for long.
pub(super) fn follow(constraint: &mut dyn Constraint, resumed: &Resumed) -> Result<(), ApiError> {
    for (index, &token) in resumed.tokens.iter().enumerate() {
        let accepted = constraint.accept(token);
        accepted.map_err(|error| unfit(index, format_args!("the form that is asked for is another: {error}")))?;
    }
    Ok(())
}

fn unfit(index: usize, reason: impl std::fmt::Display) -> ApiError {
    let path = format!("{RESUME_MEMBER}.tokens[{index}]");
    let message = format!("{path}: no answer to this request goes on so: {reason}");
    ApiError::invalid(path, message)
}
