//! A chat's stream on its way to a client that speaks a dialect.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use api_dialects::Translate;
use bytes::Bytes;
use http_body::{Body, Frame};

/// The body of an answer: what a chat's stream says, told event by event. Polls the chat's stream only when polled itself, so
/// the client's pace is the worker's; dropped, it drops the chat's stream with it.
pub(super) struct Told {
    chat: router::Body,
    translate: Box<dyn Translate>,
    is_over: bool,
}

impl Told {
    pub(super) fn new(chat: router::Body, translate: Box<dyn Translate>) -> Self {
        Self {
            chat,
            translate,
            is_over: false,
        }
    }
}

impl Body for Told {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let told = self.get_mut();
        let mut out = Vec::new();
        while !told.is_over && out.is_empty() {
            // Read to its end also when all is told, so that it counts as relayed and its connection is used again.
            match std::task::ready!(Pin::new(&mut told.chat).poll_frame(cx)) {
                Some(Ok(frame)) => {
                    if let Some(bytes) = frame.data_ref() {
                        told.translate.push(bytes, &mut out);
                        // Whatever else the worker would say, nobody is told.
                        told.is_over = told.translate.has_failed();
                    }
                }
                Some(Err(error)) => {
                    tracing::info!(%error, "a worker's stream broke off");
                    told.is_over = true;
                }
                None => told.is_over = true,
            }
            if told.is_over {
                told.translate.end(&mut out);
            }
        }
        Poll::Ready((!out.is_empty()).then(|| Ok(Frame::data(out.into()))))
    }
}
