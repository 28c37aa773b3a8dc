//! The first request of an engine, made before there is anybody to wait for it: its memory, its caches and its threads are
//! warm when the first client comes.

use batch_engine::{EngineHandle, Event, Request};

use crate::state::Step;

/// The step of the start.
pub(crate) const STEP: Step = Step {
    name: "warm_up",
    progress: None,
};

/// As many as a model computes together, and few enough to take no time.
const PROMPT_TOKENS: usize = 64;

/// The first comes of the prompt's step, the others of steps of their own.
const ANSWER_TOKENS: usize = 4;

/// A token that every model has.
const TOKEN: u32 = 0;

/// Runs a small prompt and a few tokens of an answer. The error says why the model cannot.
pub(crate) async fn run(engine: &EngineHandle) -> Result<(), String> {
    let room = engine.context_length().saturating_sub(1);
    let request = Request {
        prompt: vec![TOKEN; PROMPT_TOKENS.min(room)],
        max_tokens: ANSWER_TOKENS,
        ..Request::default()
    };
    let mut answer = engine.submit(request).map_err(|error| error.to_string())?;
    while let Some(event) = answer.next().await {
        if let Event::Failed(why) = event {
            return Err(why);
        }
    }
    Ok(())
}
