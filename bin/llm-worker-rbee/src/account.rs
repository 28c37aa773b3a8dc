//! What is told of a request to the model when its answer has ended: in its line of the access log and in its span.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::Extensions;
use daemon::access::{self, Line, Slot, millis};
use daemon::access_line;
use openai_api::Usage;
use tracing::Span;

use crate::state::State;

/// Kept of one request from its arrival on.
pub(crate) struct Account {
    state: Arc<State>,
    figures: Mutex<Figures>,
}

#[derive(Default)]
struct Figures {
    time_to_first_token: Option<Duration>,
    usage: Option<Usage>,
}

impl Account {
    /// Of the request with these extensions.
    pub(crate) fn of(state: &Arc<State>, extensions: &Extensions) -> Arc<Self> {
        let account = Arc::new(Self {
            state: Arc::clone(state),
            figures: Mutex::default(),
        });
        if let Some(slot) = extensions.get::<Slot>() {
            slot.put(Arc::clone(&account) as Arc<dyn access::Account>);
        }
        account
    }

    /// The first token is there, so long after the request came.
    pub(crate) fn first_token(&self, after: Duration) {
        self.lock().time_to_first_token = Some(after);
    }

    /// The answer is complete. Called in the request's span.
    pub(crate) fn used(&self, usage: &Usage) {
        let span = Span::current();
        span.record("gen_ai.usage.input_tokens", i64::from(usage.prompt_tokens));
        span.record("gen_ai.usage.output_tokens", i64::from(usage.completion_tokens));
        self.lock().usage = Some(*usage);
    }

    fn lock(&self) -> MutexGuard<'_, Figures> {
        self.figures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl access::Account for Account {
    fn write(&self, line: &Line<'_>) {
        let identity = &self.state.identity;
        let figures = self.lock();
        access_line!(
            INFO,
            line,
            model = identity.model_id.as_str(),
            worker = identity.worker_id.as_str(),
            hive = identity.hive_id.as_ref().map(|hive| hive.as_str()),
            ttft_ms = figures.time_to_first_token.map(millis),
            prompt_tokens = figures.usage.map(|usage| usage.prompt_tokens),
            tokens = figures.usage.map(|usage| usage.completion_tokens),
        );
    }
}
