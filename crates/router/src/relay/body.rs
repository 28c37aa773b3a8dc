//! The body of a client's response.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use tokio::time::Instant;

use super::legs::Claim;
use super::patience::Patience;
use super::stream::Stream;
use super::{Lost, billed};
use crate::flight::Flight;
use crate::journey::Journey;
use crate::line::Ticket;
use crate::upstream::{Incoming, root_cause};

/// The body of an answer. It reads from the worker only what its client asks for; dropping it ends the request at the worker.
pub struct Body(Inner);

enum Inner {
    Plain(Box<Plain>),
    Stream(Box<Stream<Journey>>),
}

/// An answer that passes as it is.
struct Plain {
    first: Option<Bytes>,
    rest: Incoming,
    patience: Patience,
    stall_timeout: Duration,
    deadline: Option<Instant>,
    /// Gone at the end of the answer.
    hold: Option<(Option<Ticket>, Flight)>,
}

impl Body {
    pub(super) fn stream(stream: Stream<Journey>) -> Self {
        Self(Inner::Stream(Box::new(stream)))
    }

    pub(super) fn plain(
        journey: &Journey,
        first: Option<Bytes>,
        rest: Incoming,
        ticket: Option<Ticket>,
        mut flight: Flight,
    ) -> Self {
        if journey.endpoint().can_stream()
            && let Some(tokens) = first.as_deref().and_then(billed::completion_tokens)
        {
            flight.was_billed(tokens);
        }
        let mut plain = Plain {
            first,
            rest,
            patience: Patience::default(),
            stall_timeout: journey.stall_timeout(),
            deadline: journey.deadline(),
            hold: Some((ticket, flight)),
        };
        if plain.is_end_stream() {
            // Nobody asks for the rest of a body that is empty.
            plain.land();
        }
        Self(Inner::Plain(Box::new(plain)))
    }
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.0 {
            Inner::Plain(_) => "Body(plain)",
            Inner::Stream(_) => "Body(stream)",
        })
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match &mut self.get_mut().0 {
            Inner::Plain(plain) => plain.poll_data(cx).map(|data| data.map(|data| data.map(Frame::data))),
            Inner::Stream(stream) => stream.poll_data(cx).map(|data| data.map(|data| Ok(Frame::data(data)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Inner::Plain(plain) => plain.is_end_stream(),
            Inner::Stream(stream) => stream.is_over(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Inner::Plain(plain) => plain.size_hint(),
            Inner::Stream(_) => SizeHint::default(),
        }
    }
}

impl Plain {
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(self.pass(first))));
        }
        while self.hold.is_some() {
            match Pin::new(&mut self.rest).poll_frame(cx) {
                // Trailers belong to the worker's connection.
                Poll::Ready(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        return Poll::Ready(Some(Ok(self.pass(data))));
                    }
                }
                Poll::Ready(Some(Err(error))) => {
                    self.lost(&Lost::Broke(root_cause(&error)));
                    return Poll::Ready(Some(Err(error)));
                }
                Poll::Ready(None) => self.land(),
                Poll::Pending => {
                    ready!(self.patience.poll_idle(cx, self.stall_timeout, self.deadline));
                    let lost = Lost::Silent(self.stall_timeout);
                    match self.deadline {
                        // It was the client who had no more time.
                        Some(deadline) if Instant::now() >= deadline => self.land(),
                        _ => self.lost(&lost),
                    }
                    return Poll::Ready(Some(Err(io::Error::new(io::ErrorKind::TimedOut, lost.to_string()))));
                }
            }
        }
        Poll::Ready(None)
    }

    fn pass(&mut self, data: Bytes) -> Bytes {
        self.patience.restart();
        if self.rest.is_end_stream() {
            // With a known length nobody asks for what comes after the last byte.
            self.land();
        }
        data
    }

    fn land(&mut self) {
        if let Some((ticket, flight)) = self.hold.take() {
            flight.landed();
            drop(ticket);
        }
    }

    fn lost(&mut self, lost: &Lost) {
        if let Some((Some(ticket), flight)) = &mut self.hold {
            flight.broke();
            Claim::blame(ticket, lost);
        }
        self.land();
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && (self.hold.is_none() || self.rest.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let first = self.first.as_ref().map_or(0, Bytes::len) as u64;
        let rest = self.rest.size_hint();
        let mut hint = SizeHint::new();
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + first);
        }
        hint.set_lower(rest.lower() + first);
        hint
    }
}
