//! What the relay of a stream asks of the rest of the router. [`Journey`] gives it; tests give something simpler.

use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use shared_contract::ErrorObject;
use tokio::time::Instant;
use worker_contract::Feature;

use super::Lost;
use crate::Endpoint;
use crate::attempt::Failure;
use crate::journey::{Journey, Landed};
use crate::line::Ticket;
use crate::receipt::Receipt;
use crate::refusal::Refused;
use crate::situation::Situation;
use crate::upstream::Incoming;

/// One request, answered by one worker after the other.
pub(super) trait Legs: Sized + Send + 'static {
    /// A worker's bytes.
    type Rest: http_body::Body<Data = Bytes, Error: Error + 'static> + Send + Unpin;
    /// The claim on a worker: falls when it is dropped.
    type Claim: Claim;
    /// Tells where the request stands while it waits.
    type Situation: Send;
    /// A worker's answer.
    type Landed: Into<Answer<Self>>;
    /// Why there is none.
    type Refused: Into<NoAnswer<Self>>;

    /// Goes on to the next worker's answer.
    fn travel(self) -> Travel<Self>;

    /// Has the next worker asked for this, by the rules of [`Journey::resume`].
    fn resume(&mut self, body: Bytes, revision: Option<String>, needs: Option<Feature>);

    /// Where the request goes.
    fn endpoint(&self) -> Endpoint;

    /// What the newest worker was sent.
    fn body(&self) -> &Bytes;

    /// When the client wants to have it all.
    fn deadline(&self) -> Option<Instant>;

    /// A stream that is silent for so long has been lost.
    fn stall_timeout(&self) -> Duration;

    /// What has become of the request.
    fn receipt(&self) -> &Receipt;

    /// Where it stands.
    fn situation(&self) -> Self::Situation;

    /// That in words, one line.
    fn words(situation: &Self::Situation) -> String;
}

/// Legs under way, which come back with an answer or without one.
pub(super) type Travel<L> =
    Pin<Box<dyn Future<Output = (L, Result<<L as Legs>::Landed, <L as Legs>::Refused>)> + Send>>;

/// A worker's answer that has begun.
pub(super) struct Answer<L: Legs> {
    pub(super) head: http::response::Parts,
    pub(super) first: Option<Bytes>,
    pub(super) rest: L::Rest,
    pub(super) claim: L::Claim,
}

/// Why there is no answer.
pub(super) enum NoAnswer<L: Legs> {
    /// The queen says it; with its HTTP status.
    Error(u16, ErrorObject),
    /// The last worker says it.
    Relayed(StatusCode, L::Rest),
}

/// A claim on a worker.
pub(super) trait Claim: Send {
    /// Its answer broke off.
    fn blame(&self, lost: &Lost);
}

impl Legs for Journey {
    type Rest = Incoming;
    type Claim = Ticket;
    type Situation = Arc<Situation>;
    type Landed = Landed;
    type Refused = Refused;

    fn travel(self) -> Travel<Self> {
        Journey::travel(self)
    }

    fn resume(&mut self, body: Bytes, revision: Option<String>, needs: Option<Feature>) {
        Journey::resume(self, body, revision, needs);
    }

    fn endpoint(&self) -> Endpoint {
        Journey::endpoint(self)
    }

    fn body(&self) -> &Bytes {
        Journey::body(self)
    }

    fn deadline(&self) -> Option<Instant> {
        Journey::deadline(self)
    }

    fn stall_timeout(&self) -> Duration {
        Journey::stall_timeout(self)
    }

    fn receipt(&self) -> &Receipt {
        Journey::receipt(self)
    }

    fn situation(&self) -> Arc<Situation> {
        Journey::situation(self)
    }

    fn words(situation: &Arc<Situation>) -> String {
        situation.words()
    }
}

impl From<Landed> for Answer<Journey> {
    fn from(landed: Landed) -> Self {
        let Landed {
            head,
            first,
            rest,
            ticket,
        } = landed;
        Self {
            head,
            first,
            rest,
            claim: ticket,
        }
    }
}

impl From<Refused> for NoAnswer<Journey> {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Error(refusal) => Self::Error(refusal.kind.status(), refusal.object()),
            Refused::Relayed(response) => Self::Relayed(response.status(), response.into_body()),
        }
    }
}

impl Claim for Ticket {
    fn blame(&self, lost: &Lost) {
        tracing::warn!(worker = %self.worker().id(), %lost, "a worker broke off in the middle of an answer");
        match lost {
            Lost::Broke(cause) => Ticket::blame(self, &Failure::Broke(cause.clone())),
            Lost::Ended => Ticket::blame(self, &Failure::Broke(lost.to_string())),
            Lost::Silent(limit) => Ticket::blame(self, &Failure::Silent(*limit)),
            // It lives, and says itself that it could not go on with this one.
            Lost::Failed(_) => {}
        }
    }
}
