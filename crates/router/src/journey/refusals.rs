//! What a request is told that gets no answer.

use std::time::Duration;

use openai_api::InvalidRequest;
use scheduler::Refusal as Obstacle;
use shared_contract::ErrorKind;

use super::{DEADLINE, Journey};
use crate::attempt::Failure;
use crate::refusal::{Refusal, Refused};
use crate::supply::Prospect;

/// What a client is asked to wait where nothing better is known, and others wait.
const RETRY_BUSY: Duration = Duration::from_secs(2);
/// What a client is asked to wait where nothing better is known, and there are no workers.
const RETRY_LOADING: Duration = Duration::from_secs(5);
/// The most that a client is asked to wait: estimates beyond are worth little.
const RETRY_MOST: Duration = Duration::from_secs(300);

/// The answer to a body that cannot be read.
pub(super) fn invalid(error: InvalidRequest) -> Refusal {
    let refusal = Refusal::new(ErrorKind::InvalidRequest, error.message).with_code(error.code.as_str());
    match error.param {
        Some(param) => refusal.with_param(param),
        None => refusal,
    }
}

impl Journey {
    pub(super) fn line_full(&self) -> Refusal {
        let (model, prospect) = (self.model(), self.shared.supply.prospect(self.model()));
        let (kind, message) = match self.line.max_waiting() {
            0 => (
                ErrorKind::NoCapacity,
                format!(
                    "no worker for model `{model}` is free, and no request waits for one here: {}",
                    why(&prospect)
                ),
            ),
            count => (
                ErrorKind::RateLimited,
                format!(
                    "{count} requests wait for model `{model}` already ({}); try again later",
                    why(&prospect)
                ),
            ),
        };
        Refusal::new(kind, message).retry_after(self.retry_after_s(&prospect, RETRY_BUSY))
    }

    /// The answer to a request that nobody can take, and that does not wait.
    pub(super) fn refuse(&self, obstacle: Obstacle) -> Refusal {
        let model = self.model();
        if let Some(refusal) = self.no_fit() {
            return refusal;
        }
        if obstacle == Obstacle::Unknown
            && let Err(unknown) = self.shared.supply.resolve(model.as_str())
        {
            return unknown;
        }
        let prospect = self.shared.supply.prospect(model);
        let message = match obstacle {
            Obstacle::Unknown => format!("no worker serves model `{model}`: {}", why(&prospect)),
            _ => format!("no worker for model `{model}` can be reached: {}", why(&prospect)),
        };
        Refusal::new(ErrorKind::NoCapacity, message).retry_after(self.retry_after_s(&prospect, RETRY_LOADING))
    }

    fn no_fit(&self) -> Option<Refusal> {
        let terms = &self.request.terms;
        if self.line.may_fit(terms) {
            return None;
        }
        terms.refuse(self.model().as_str())
    }

    /// `was_coming`: it waited for a worker that is being started, not for one to become free.
    pub(super) fn waited_too_long(&self, was_coming: bool) -> Refusal {
        let model = self.model();
        let prospect = self.shared.supply.prospect(model);
        let obstacle = self.line.obstacle(&self.request);
        let (kind, usual) = match obstacle {
            Some(Obstacle::NoneReady | Obstacle::Unknown) => (ErrorKind::ModelLoading, RETRY_LOADING),
            Some(Obstacle::AllSuspect | Obstacle::AllLost) => (ErrorKind::NoCapacity, RETRY_LOADING),
            Some(Obstacle::AllBusy | Obstacle::AllTried) | None => (ErrorKind::NoCapacity, RETRY_BUSY),
        };
        let (waited, what) = if was_coming {
            (self.waited.loading, "was ready")
        } else {
            (self.waited.busy, "became free")
        };
        let seconds = waited.as_secs_f64();
        let reason = match obstacle {
            Some(_) => why(&prospect),
            None => "others were first".to_owned(),
        };
        let mut message = format!("no worker for model `{model}` {what} within {seconds:.1} s: {reason}");
        if let Some(failure) = &self.failure {
            message.push_str(&format!("; the last one tried: {failure}"));
        }
        Refusal::new(kind, message).retry_after(self.retry_after_s(&prospect, usual))
    }

    /// The answer when the client's deadline has come first.
    pub(super) fn out_of_time(&self) -> Refusal {
        let seconds = self.arrived.elapsed().as_secs_f64();
        let waits = match self.line.rank(self.place.unwrap_or_default()) {
            Some((place, count)) => format!("it still waited for a worker, at place {place} of {count}"),
            None => "its worker had not answered yet".to_owned(),
        };
        let model = self.model();
        let message = format!("model `{model}` gave no answer within the {seconds:.1} s of {DEADLINE}: {waits}");
        let prospect = self.shared.supply.prospect(model);
        Refusal::new(ErrorKind::UpstreamTimeout, message).retry_after(self.retry_after_s(&prospect, RETRY_BUSY))
    }

    /// The answer when nobody is left to try.
    pub(super) fn give_up(&mut self) -> Refused {
        let model = self.line.model();
        let attempts = self.receipt.attempts;
        let (kind, message) = match self.failure.take() {
            Some(Failure::Busy(response) | Failure::Failed(response)) => return Refused::Relayed(response),
            Some(failure @ Failure::Silent(_)) => (
                ErrorKind::UpstreamTimeout,
                format!("no worker for model `{model}` answered in time; the last of {attempts} tried: {failure}"),
            ),
            Some(failure) => (
                ErrorKind::UpstreamFailed,
                format!("no worker for model `{model}` could answer; the last of {attempts} tried: {failure}"),
            ),
            None => (
                ErrorKind::NoCapacity,
                format!("no worker for model `{model}` is left to try"),
            ),
        };
        let prospect = self.shared.supply.prospect(model);
        let retry_s = self.retry_after_s(&prospect, RETRY_LOADING);
        Refusal::new(kind, message).retry_after(retry_s).into()
    }

    /// When to come back: when the worker that is being started will be ready, or when those that wait will have had their
    /// turn, by how fast requests ended lately.
    fn retry_after_s(&self, prospect: &Prospect, usual: Duration) -> u32 {
        let known = match prospect {
            Prospect::Coming { eta, .. } => *eta,
            Prospect::None { retry, .. } => *retry,
        };
        let learned = || self.line.expected_wait();
        let wait = known
            .or_else(learned)
            .unwrap_or(usual)
            .clamp(Duration::ZERO, RETRY_MOST);
        (wait.as_secs_f64().ceil() as u32).max(1)
    }
}

fn why(prospect: &Prospect) -> String {
    match prospect {
        Prospect::Coming { words, progress, .. } => match progress {
            Some(progress) => format!("one is being started, {words} {:.0} %", progress * 100.0),
            None => format!("one is being started, {words}"),
        },
        Prospect::None { why, .. } => why.clone(),
    }
}
