//! A request in flight.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use tokio::time::Instant;

use crate::account::{Account, Failure};
use crate::metrics::{Metrics, ModelMetrics};
use crate::traffic::{Ended, Outcome};

/// Tokens behind the first of a stream that it takes to say how fast they came.
const ENOUGH_TOKENS: u32 = 4;

/// A request in flight: followed from its arrival to its last byte, and counted when that has passed.
pub(crate) struct Flight {
    metrics: Arc<Metrics>,
    /// Who asked is told at the end.
    account: Arc<Account>,
    /// Its model's, once that is known.
    model: Option<Arc<ModelMetrics>>,
    arrived: Instant,
    /// How it was answered, once it was.
    status: Option<u16>,
    has_broken: bool,
    has_landed: bool,
    /// Tokens that were relayed.
    tokens: u32,
    pulse: Option<Pulse>,
}

/// When the tokens of a stream came.
struct Pulse {
    first: Instant,
    latest: Instant,
    /// Tokens that came together with the first.
    at_first: u32,
    /// Tokens that have come by the latest.
    tokens: u32,
}

impl Flight {
    /// One more; `account` is told its end.
    pub(crate) fn start(metrics: &Arc<Metrics>, account: Arc<Account>) -> Self {
        metrics.inflight.inc();
        Self {
            account,
            metrics: Arc::clone(metrics),
            model: None,
            arrived: Instant::now(),
            status: None,
            has_broken: false,
            has_landed: false,
            tokens: 0,
            pulse: None,
        }
    }

    /// It is for this model.
    pub(crate) fn is_for(&mut self, model: Arc<ModelMetrics>) {
        self.model = Some(model);
    }

    /// It was answered with this status.
    pub(crate) fn answered(&mut self, status: u16) {
        self.status = Some(status);
    }

    /// It would have been answered with this status, had its stream not begun before.
    pub(crate) fn refused(&mut self, status: u16) {
        self.status = Some(status);
        self.account.failed(Failure::Refused);
    }

    /// Its stream ended in the middle, by its client's own limit or request and no worker's fault: with an error of this status.
    pub(crate) fn cut_short(&mut self, status: u16) {
        self.status = Some(status);
        self.account.failed(Failure::Broken);
    }

    /// Its client is told an error with this code.
    pub(crate) fn told(&self, code: Option<String>) {
        self.account.told(code);
    }

    /// Its answer broke off after the first byte, and nobody finished it.
    pub(crate) fn broke(&mut self) {
        self.has_broken = true;
        self.account.failed(Failure::Broken);
        self.metrics.broken.inc();
    }

    /// So many tokens of its stream have been relayed by now. Called for each piece of the stream: nothing here takes a lock.
    pub(crate) fn streamed(&mut self, tokens: u32) {
        let Some(new) = self.count_up_to(tokens) else { return };
        let now = Instant::now();
        let Some(pulse) = &mut self.pulse else {
            if let Some(model) = &self.model {
                model.first_token.observe(now - self.arrived);
            }
            self.pulse = Some(Pulse {
                first: now,
                latest: now,
                at_first: new,
                tokens,
            });
            return;
        };
        if let Some(model) = &self.model {
            model.inter_token.observe_each(now - pulse.latest, new);
        }
        (pulse.latest, pulse.tokens) = (now, tokens);
    }

    /// By what the worker says itself, so many tokens were relayed in all.
    pub(crate) fn was_billed(&mut self, tokens: u32) {
        self.count_up_to(tokens);
    }

    /// It came to its end. Dropped without that, its client left.
    pub(crate) fn landed(mut self) {
        self.has_landed = true;
    }

    /// Where is counted what happens to it.
    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Counts tokens up to this number in all; says how many are new, if any are.
    fn count_up_to(&mut self, tokens: u32) -> Option<u32> {
        let new = tokens.checked_sub(self.tokens).filter(|new| *new > 0)?;
        self.tokens = tokens;
        self.metrics.traffic.relayed(new);
        if let Some(model) = &self.model {
            model.output_tokens.inc_by(new.into());
        }
        Some(new)
    }

    fn outcome(&self) -> Outcome {
        const NO_ROOM: [StatusCode; 2] = [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE];
        let status = self.status.and_then(|status| StatusCode::from_u16(status).ok());
        if !self.has_landed {
            Outcome::ClientGone
        } else if self.has_broken {
            Outcome::Failed
        } else {
            match status {
                Some(status) if NO_ROOM.contains(&status) => Outcome::Refused,
                Some(status) if status.is_client_error() => Outcome::Wrong,
                Some(status) if status.is_server_error() => Outcome::Failed,
                _ => Outcome::Answered,
            }
        }
    }

    fn first_token(&self) -> Option<Duration> {
        Some(self.pulse.as_ref()?.first - self.arrived)
    }
}

impl Pulse {
    fn tokens_per_s(&self) -> Option<f64> {
        let tokens = self.tokens - self.at_first;
        let seconds = (self.latest - self.first).as_secs_f64();
        (tokens >= ENOUGH_TOKENS && seconds > 0.0).then(|| f64::from(tokens) / seconds)
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.metrics.inflight.dec();
        let outcome = self.outcome();
        match &self.model {
            _ if outcome == Outcome::ClientGone => {
                self.metrics.clients_gone.inc();
            }
            Some(model) => model.duration.observe(self.arrived.elapsed()),
            None => {}
        }
        let first_token = self.first_token();
        let tokens = (self.tokens > 0).then_some(self.tokens.into());
        self.account.end(first_token, tokens, self.has_landed);
        self.metrics.traffic.ended(&Ended {
            model: self.model.as_ref().map(|model| model.label()),
            outcome,
            output_tokens: self.tokens,
            first_token,
            tokens_per_s: self.pulse.as_ref().and_then(Pulse::tokens_per_s),
        });
    }
}
