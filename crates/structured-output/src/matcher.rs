//! A compiled grammar and the place in it.

use batch_engine::{Constraint, ConstraintError, TokenMask};
use llguidance::TokenParser;

/// Most characters of llguidance's words in an error: behind them come states of its parser.
const ERROR_CHARS: usize = 200;

/// Holds an answer to a grammar from here on. A clone goes its own way.
#[derive(Clone)]
pub(crate) struct Matcher(llguidance::Matcher);

impl Matcher {
    pub(crate) fn new(parser: TokenParser) -> Self {
        Self(llguidance::Matcher::new(Ok(parser)))
    }

    /// Whether the grammar goes on with `token`. Changes nothing.
    pub(crate) fn would_accept(&mut self, token: u32) -> bool {
        self.0.validate_tokens(&[token]).is_ok_and(|count| count == 1)
    }

    /// Goes on with `tokens`; after an error this matcher is of no more use.
    pub(crate) fn accept_all(&mut self, tokens: &[u32]) -> Result<(), ConstraintError> {
        self.0.consume_tokens(tokens).map_err(|error| failure(&error))
    }
}

impl Constraint for Matcher {
    fn allowed(&mut self, mask: &mut TokenMask) -> Result<(), ConstraintError> {
        let allowed = self.0.compute_mask_or_eos().map_err(|error| failure(&error))?;
        mask.copy_from(allowed.as_slice());
        Ok(())
    }

    fn accept(&mut self, token: u32) -> Result<(), ConstraintError> {
        self.accept_all(&[token])
    }
}

fn failure(error: &impl ToString) -> ConstraintError {
    ConstraintError::new(format!("the grammar cannot go on: {}", first_line(&error.to_string())))
}

/// The part of llguidance's error texts that is meant for people.
pub(crate) fn first_line(text: &str) -> String {
    text.lines()
        .next()
        .unwrap_or_default()
        .chars()
        .take(ERROR_CHARS)
        .collect()
}
