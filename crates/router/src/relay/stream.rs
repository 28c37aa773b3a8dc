//! The life-cycle of a relayed stream: [`State`].

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::Body as _;
use shared_contract::ErrorKind;
use tokio::time::Instant;

use super::Lost;
use super::explain::{self, Explanation};
use super::legs::{Answer, Claim, Legs, NoAnswer, Travel};
use super::pass::{Failed, Pass};
use super::patience::Patience;
use super::plan::{Plan, Way, plan};
use super::story::Obstacle;
use crate::flight::Flight;
use crate::upstream::root_cause;

/// Between two comments for a client that waits.
const COMMENT_EVERY: Duration = Duration::from_secs(2);
/// After `[DONE]` a worker has nothing more to say but the end of its body, which frees the connection for others.
const END_TIMEOUT: Duration = Duration::from_secs(1);
/// Workers in a row that may leave an answer without bringing anything new: it may be the request that kills them.
const MAX_FRUITLESS: u32 = 2;
/// Workers that may go on with one answer, whatever they brought.
const MAX_MIGRATIONS: u32 = 8;

/// A stream of events on its way to its client.
pub(super) struct Stream<L: Legs> {
    state: State<L>,
    pass: Pass,
    patience: Patience,
    /// The client's own request, for the time when its worker is lost.
    body: Bytes,
    /// Workers in a row that brought nothing new.
    fruitless: u32,
    /// Gone at the end of the answer.
    flight: Option<Flight>,
}

/// Where a stream stands: `Waiting -> Streaming -> Waiting -> ... -> Over`, where `Waiting` may also lead to `Over` by way of
/// `Explaining`.
enum State<L: Legs> {
    /// A worker is being found. Comments tell how that goes.
    Waiting {
        travel: Travel<L>,
        situation: L::Situation,
        next_comment: Instant,
        /// How the worker is asked to go on; `None`: it is the first.
        way: Option<Way>,
        /// What became of the worker before it.
        lost: Option<Lost>,
    },
    /// A worker's events are passed on.
    Streaming {
        legs: L,
        first: Option<Bytes>,
        rest: L::Rest,
        claim: L::Claim,
    },
    /// A worker's refusal is read, to be passed on as an event.
    Explaining {
        explanation: Explanation,
        rest: L::Rest,
        _claim: Option<L::Claim>,
        limit: Duration,
    },
    /// The client has it all.
    Over,
}

impl<L: Legs> Stream<L> {
    /// A stream that has begun.
    pub(super) fn started(legs: L, first: Option<Bytes>, rest: L::Rest, claim: L::Claim, flight: Flight) -> Self {
        Self {
            body: legs.body().clone(),
            pass: Pass::default(),
            patience: Patience::default(),
            fruitless: 0,
            flight: Some(flight),
            state: State::Streaming {
                legs,
                first,
                rest,
                claim,
            },
        }
    }

    /// A stream that has no worker yet.
    pub(super) fn waiting(travel: Travel<L>, situation: L::Situation, flight: Flight) -> Self {
        Self {
            body: Bytes::new(),
            pass: Pass::default(),
            patience: Patience::default(),
            fruitless: 0,
            flight: Some(flight),
            state: State::Waiting {
                travel,
                situation,
                next_comment: Instant::now(),
                way: None,
                lost: None,
            },
        }
    }

    /// Whether the client has it all.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.state, State::Over)
    }

    /// The next bytes for the client.
    pub(super) fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            let data = match &mut self.state {
                State::Waiting { .. } => ready!(self.poll_waiting(cx)),
                State::Streaming { .. } => ready!(self.poll_streaming(cx)),
                State::Explaining { .. } => ready!(self.poll_explaining(cx)),
                State::Over => return Poll::Ready(None),
            };
            if !data.is_empty() {
                return Poll::Ready(Some(data));
            }
        }
    }

    fn poll_waiting(&mut self, cx: &mut Context<'_>) -> Poll<Bytes> {
        let State::Waiting {
            travel,
            situation,
            next_comment,
            ..
        } = &mut self.state
        else {
            return Poll::Ready(Bytes::new());
        };
        if let Poll::Ready((legs, result)) = travel.as_mut().poll(cx) {
            return Poll::Ready(match result {
                Ok(landed) => self.landed(legs, landed.into()),
                Err(refused) => self.not_answered(legs, refused.into()),
            });
        }
        ready!(self.patience.poll_until(cx, *next_comment));
        *next_comment = Instant::now() + COMMENT_EVERY;
        Poll::Ready(format!(": {}\n\n", L::words(situation)).into())
    }

    fn poll_streaming(&mut self, cx: &mut Context<'_>) -> Poll<Bytes> {
        let State::Streaming { legs, first, rest, .. } = &mut self.state else {
            return Poll::Ready(Bytes::new());
        };
        let polled = match first.take() {
            Some(first) => Poll::Ready(Some(Ok(first))),
            None => Pin::new(rest).poll_frame(cx).map(|frame| {
                // Trailers belong to the worker's connection.
                frame.map(|frame| frame.map(|frame| frame.into_data().unwrap_or_default()))
            }),
        };
        Poll::Ready(match polled {
            Poll::Ready(Some(Ok(chunk))) => {
                self.patience.restart();
                let receipt = legs.receipt();
                let (data, failed) = self.pass.chunk(chunk, receipt);
                self.note_progress();
                if let Some(Failed { event, is_final }) = failed {
                    return Poll::Ready(self.failed(data, event, is_final));
                }
                if self.pass.story().is_done() {
                    // A client may leave now; only the end of the worker's body is awaited.
                    self.flight_landed();
                }
                data
            }
            Poll::Ready(Some(Err(error))) => self.lost(Lost::Broke(root_cause(&error))),
            Poll::Ready(None) => self.lost(Lost::Ended),
            Poll::Pending => {
                let is_done = self.pass.story().is_done();
                let limit = if is_done { END_TIMEOUT } else { legs.stall_timeout() };
                let deadline = legs.deadline();
                ready!(self.patience.poll_idle(cx, limit, deadline));
                match deadline {
                    Some(deadline) if !is_done && Instant::now() >= deadline => self.out_of_time(),
                    _ => self.lost(Lost::Silent(limit)),
                }
            }
        })
    }

    fn poll_explaining(&mut self, cx: &mut Context<'_>) -> Poll<Bytes> {
        let State::Explaining {
            explanation,
            rest,
            limit,
            ..
        } = &mut self.state
        else {
            return Poll::Ready(Bytes::new());
        };
        loop {
            match Pin::new(&mut *rest).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    self.patience.restart();
                    let is_enough = frame.into_data().is_ok_and(|data| explanation.add(&data));
                    if is_enough {
                        break;
                    }
                }
                Poll::Ready(_) => break,
                Poll::Pending => {
                    ready!(self.patience.poll_idle(cx, *limit, None));
                    break;
                }
            }
        }
        let event = explanation.event();
        Poll::Ready(self.end_with(event))
    }

    /// A worker answers.
    fn landed(&mut self, legs: L, answer: Answer<L>) -> Bytes {
        let State::Waiting { way, lost, .. } = std::mem::replace(&mut self.state, State::Over) else {
            return Bytes::new();
        };
        let Answer {
            head,
            first,
            rest,
            claim,
        } = answer;
        self.patience.restart();
        if !super::is_stream(&head) {
            let lost = match (way, lost) {
                (Some(way @ (Way::Resume | Way::Continue)), Some(lost)) => {
                    drop((rest, claim));
                    let why = format!("the worker that was asked to answered {}", head.status);
                    return self.go_on(legs, lost, Some((way, why)));
                }
                (_, lost) => lost,
            };
            self.refused(head.status.as_u16(), lost.is_some());
            self.state = State::Explaining {
                explanation: Explanation::of(head.status, first.as_ref()),
                rest,
                _claim: Some(claim),
                limit: legs.stall_timeout(),
            };
            return Bytes::new();
        }
        match way {
            None => {
                self.body = legs.body().clone();
                if let Some(flight) = &mut self.flight {
                    flight.answered(head.status.as_u16());
                }
            }
            Some(way) => {
                self.pass.next_leg(way);
                self.count(way.outcome());
            }
        }
        self.state = State::Streaming {
            legs,
            first,
            rest,
            claim,
        };
        Bytes::new()
    }

    /// No worker answers.
    fn not_answered(&mut self, legs: L, why: NoAnswer<L>) -> Bytes {
        let State::Waiting { way, lost, .. } = std::mem::replace(&mut self.state, State::Over) else {
            return Bytes::new();
        };
        match (why, way, lost) {
            (NoAnswer::Error(_, error), Some(way), Some(lost)) => self.go_on(legs, lost, Some((way, error.message))),
            (NoAnswer::Relayed(status, _), Some(way @ (Way::Resume | Way::Continue)), Some(lost)) => {
                let why = format!("the last worker that was asked to answered {status}");
                self.go_on(legs, lost, Some((way, why)))
            }
            (NoAnswer::Error(status, error), _, lost) => {
                self.refused(status, lost.is_some());
                self.end_with(explain::error(error))
            }
            (NoAnswer::Relayed(status, rest), _, lost) => {
                self.refused(status.as_u16(), lost.is_some());
                self.state = State::Explaining {
                    explanation: Explanation::of(status, None),
                    rest,
                    _claim: None,
                    limit: legs.stall_timeout(),
                };
                Bytes::new()
            }
        }
    }

    /// The worker says that it cannot go on, behind the data that is still to be passed on.
    fn failed(&mut self, data: Bytes, event: Bytes, is_final: bool) -> Bytes {
        let last = if is_final {
            let (status, has_text) = (ErrorKind::InvalidRequest.status(), self.pass.story().spent() > 0);
            match &mut self.flight {
                Some(flight) if has_text => flight.cut_short(status),
                _ => self.refused(status, false),
            }
            self.end_with(event)
        } else {
            self.lost(Lost::Failed(event))
        };
        match (data.is_empty(), last.is_empty()) {
            (_, true) => data,
            (true, _) => last,
            (false, false) => [data, last].concat().into(),
        }
    }

    /// The worker is lost. What is left to say, if nobody is asked to go on.
    fn lost(&mut self, lost: Lost) -> Bytes {
        let State::Streaming { legs, rest, claim, .. } = std::mem::replace(&mut self.state, State::Over) else {
            return Bytes::new();
        };
        // Only of a stream that is understood can it be told that more should have come.
        let is_understood = !self.pass.is_blind() && self.pass.story().obstacle() != Some(Obstacle::Unreadable);
        let may_be_done = !is_understood && lost == Lost::Ended;
        if self.pass.story().is_done() || may_be_done {
            self.land();
            return Bytes::new();
        }
        // Not all workers write `[DONE]`.
        if !(lost == Lost::Ended && self.pass.story().finished() > 0) {
            claim.blame(&lost);
        }
        drop((rest, claim));
        self.patience.restart();
        self.fruitless = if self.pass.story().has_moved() {
            0
        } else {
            self.fruitless + 1
        };
        self.pass.cut();
        self.go_on(legs, lost, None)
    }

    /// Asks another worker to go on, or ends the stream. `tried`: the way that led nowhere, and why.
    fn go_on(&mut self, mut legs: L, lost: Lost, tried: Option<(Way, String)>) -> Bytes {
        let (tried, why) = match tried {
            Some((way, why)) => (Some(way), Some(why)),
            None => (None, None),
        };
        match plan(legs.endpoint(), &self.body, self.pass.story(), tried) {
            Plan::Close(bytes) => {
                self.count("finished");
                self.land();
                bytes
            }
            Plan::Ask { way, body, needs } if self.may_ask(&legs) => {
                let revision = match way {
                    Way::Resume => legs.receipt().revision().map(str::to_owned),
                    Way::Repeat | Way::Continue => None,
                };
                legs.resume(body, revision, needs);
                self.state = State::Waiting {
                    situation: legs.situation(),
                    travel: legs.travel(),
                    next_comment: Instant::now() + COMMENT_EVERY,
                    way: Some(way),
                    lost: Some(lost),
                };
                Bytes::new()
            }
            Plan::Ask { .. } => {
                self.count("failed");
                self.give_up(lost, "too many have left it already")
            }
            Plan::Stuck(None) => {
                self.count("failed");
                self.give_up(lost, why.as_deref().unwrap_or("nobody is left to ask"))
            }
            Plan::Stuck(Some(obstacle)) => {
                self.count("refused");
                let why = why.map(|why| format!("{why}, and ")).unwrap_or_default();
                self.give_up(lost, &format!("{why}{obstacle}"))
            }
        }
    }

    /// Ends an answer that is not finished.
    fn give_up(&mut self, lost: Lost, why: &str) -> Bytes {
        self.broke();
        let event = match lost {
            Lost::Failed(event) => event,
            lost => {
                let message = format!(
                    "a worker broke off in the middle of the answer ({lost}), and another one cannot go on with it: {why}; \
                     send the request again"
                );
                explain::error(ErrorKind::UpstreamFailed.object(message, None))
            }
        };
        self.last(event)
    }

    /// Whether another worker may be asked, after all that left this answer.
    fn may_ask(&self, legs: &L) -> bool {
        self.fruitless <= MAX_FRUITLESS && legs.receipt().migrations < MAX_MIGRATIONS
    }

    /// The client wanted it all by now.
    fn out_of_time(&mut self) -> Bytes {
        let message = "the answer was not complete within the time that `X-Request-Timeout-Ms` allows; allow more, or ask \
                       for fewer tokens";
        let kind = ErrorKind::UpstreamTimeout;
        if let Some(flight) = &mut self.flight {
            flight.cut_short(kind.status());
        }
        let event = explain::error(kind.object(message, None));
        self.last(event)
    }

    /// Ends the stream with this event.
    fn last(&mut self, event: Bytes) -> Bytes {
        let event = self.end_with(event);
        if self.pass.is_blind() {
            // Who knows in the middle of what.
            return [b"\n\n", &*event].concat().into();
        }
        event
    }

    fn count(&self, outcome: &'static str) {
        if let Some(flight) = &self.flight {
            flight.metrics().migration(outcome);
        }
    }

    /// Counts what has come by now.
    fn note_progress(&mut self) {
        if let Some(flight) = &mut self.flight {
            let story = self.pass.story();
            flight.streamed(story.spent());
            if let Some(tokens) = story.billed() {
                flight.was_billed(tokens);
            }
        }
    }

    /// This is what the client would have been answered, had its stream not begun; `had_begun`: by a worker, too.
    fn refused(&mut self, status: u16, had_begun: bool) {
        if had_begun {
            self.broke();
        } else if let Some(flight) = &mut self.flight {
            flight.refused(status);
        }
    }

    /// Counts a stream that had begun and is not finished.
    fn broke(&mut self) {
        if let Some(flight) = &mut self.flight {
            flight.broke();
        }
    }

    /// It is over, with this event, which tells an error.
    fn end_with(&mut self, event: Bytes) -> Bytes {
        if let Some(flight) = &self.flight {
            flight.told(explain::code(&event));
        }
        self.land();
        event
    }

    /// It is over; the claim falls.
    fn land(&mut self) {
        self.state = State::Over;
        self.flight_landed();
    }

    fn flight_landed(&mut self) {
        if let Some(flight) = self.flight.take() {
            flight.landed();
        }
    }
}
