//! What is told of a request when its answer has ended: for the line in the access log.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use heartbeat_registry::Report;
use shared_contract::{HiveId, ModelId, WorkerId};
use tracing::Span;
use worker_contract::WorkerHeartbeat;

use crate::receipt::Receipt;

/// Kept of one request from its arrival on. Whoever asks the router makes it, within the request's span, and reads it when the
/// answer has ended, or was dropped.
#[derive(Debug)]
pub struct Account {
    figures: Mutex<Figures>,
    span: Span,
}

/// What has become of a request.
#[derive(Debug, Default)]
pub struct Figures {
    /// The model, once it is known that there is one of this name.
    pub model: Option<ModelId>,
    /// Time spent in the line, over all attempts.
    pub queue: Duration,
    /// Workers that the request was sent to.
    pub attempts: u32,
    /// Workers that took up the stream of another one.
    pub migrations: u32,
    /// From the arrival to the first token of a stream.
    pub time_to_first_token: Option<Duration>,
    /// Tokens of the answer, where they are known.
    pub output_tokens: Option<u64>,
    /// Whether the client has all of the answer.
    pub is_complete: bool,
    /// How the answer failed after its head was sent, whose status does not show it. A stream then ends with an event that
    /// says so.
    pub failure: Option<Failure>,
    /// The `code` of the error that the queen answered with, or that such an event tells, where there is one.
    pub error_code: Option<String>,
    /// What the worker that answered said last before it was asked.
    report: Option<Arc<Report<WorkerHeartbeat>>>,
}

/// How an answer failed whose head was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// It never began: a stream that waited was refused.
    Refused,
    /// It broke off, and nobody finished it.
    Broken,
}

impl Figures {
    /// Who answered; of several, the last.
    pub fn worker(&self) -> Option<&WorkerId> {
        Some(&self.report.as_ref()?.item.worker.id)
    }

    /// Whose worker that is.
    pub fn hive(&self) -> Option<&HiveId> {
        self.report.as_ref()?.item.worker.hive_id.as_ref()
    }
}

impl Default for Account {
    fn default() -> Self {
        Self {
            figures: Mutex::default(),
            span: Span::current(),
        }
    }
}

impl Account {
    /// Looks at what is known now.
    pub fn read<T>(&self, look: impl FnOnce(&Figures) -> T) -> T {
        look(&self.lock())
    }

    pub(crate) fn is_for(&self, model: &ModelId) {
        self.span.record("gen_ai.request.model", model.as_str());
        self.lock().model = Some(model.clone());
    }

    /// Notes how far the request has got.
    pub(crate) fn note(&self, receipt: &Receipt) {
        let mut figures = self.lock();
        figures.queue = receipt.queue;
        figures.attempts = receipt.attempts;
        figures.migrations = receipt.migrations;
        figures.report.clone_from(&receipt.report);
    }

    /// Notes that its answer failed after its head was sent.
    pub(crate) fn failed(&self, failure: Failure) {
        self.lock().failure = Some(failure);
    }

    /// Notes the code of the error that its client is told.
    pub(crate) fn told(&self, code: Option<String>) {
        self.lock().error_code = code;
    }

    /// Notes the end of its answer.
    pub(crate) fn end(&self, time_to_first_token: Option<Duration>, output_tokens: Option<u64>, is_complete: bool) {
        if let Some(tokens) = output_tokens.and_then(|tokens| i64::try_from(tokens).ok()) {
            self.span.record("gen_ai.usage.output_tokens", tokens);
        }
        let mut figures = self.lock();
        figures.time_to_first_token = time_to_first_token;
        figures.output_tokens = output_tokens;
        figures.is_complete = is_complete;
    }

    fn lock(&self) -> MutexGuard<'_, Figures> {
        self.figures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
