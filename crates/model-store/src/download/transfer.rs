//! Requests and their answers: rounds in which a file, or what is missing of it, comes over one or several connections.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use reqwest::header::{
    ACCEPT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, HeaderName, HeaderValue, IF_RANGE, RANGE,
};
use reqwest::{Method, Response, StatusCode, Url};
use tokio_util::sync::CancellationToken;

use super::partial::{Partial, Piece};
use super::{Downloader, Order};
use crate::StoreError;
use crate::context::Context;
use crate::file::STEP_BYTES;
use crate::http::{self, Failure, Request};
use crate::progress::Tracker;

/// How a file is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// In ranges, over several connections.
    Ranges,
    /// All that is missing, over one connection: for small files, and for servers that do not give ranges.
    Rest,
    /// Always from the start: for servers that cannot continue.
    Whole,
}

impl Mode {
    /// The next mode for a server that does not give the ranges asked for.
    pub(super) fn simpler(self) -> Self {
        match self {
            Self::Ranges => Self::Rest,
            Self::Rest | Self::Whole => Self::Whole,
        }
    }
}

/// Why a round ended without the whole.
pub(super) enum Ended {
    Failed(Failure),
    /// The server sends the whole where a range was asked for, or nothing proves that its ranges belong together.
    NoRanges,
    /// It is not the file that was begun.
    Changed(&'static str),
}

impl From<StoreError> for Ended {
    fn from(error: StoreError) -> Self {
        Self::Failed(error.into())
    }
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// One download at work.
pub(super) struct Transfer<'a> {
    downloader: &'a Downloader,
    order: &'a Order<'a>,
    context: &'a Context,
    tracker: Mutex<&'a mut Tracker>,
    partial: Arc<Partial>,
    /// Where the last redirect led: asked at once as long as that answers.
    direct: Mutex<Option<Url>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<'a> Transfer<'a> {
    pub(super) fn new(
        downloader: &'a Downloader,
        order: &'a Order<'a>,
        context: &'a Context,
        tracker: &'a mut Tracker,
        partial: Arc<Partial>,
    ) -> Self {
        Self {
            downloader,
            order,
            context,
            tracker: Mutex::new(tracker),
            partial,
            direct: Mutex::default(),
        }
    }

    /// Reports how far it is.
    pub(super) fn tell(&self) {
        let (done, total) = (self.partial.done(), self.partial.total());
        lock(&self.tracker).set(self.order.index, done, total);
    }

    /// Throws everything away; the next round asks for the whole.
    pub(super) async fn restart(&self) -> Result<(), StoreError> {
        let (partial, source) = (Arc::clone(&self.partial), self.order.source.clone());
        self.context.blocking(move |_| partial.restart(&source)).await
    }

    /// Keeps of what is there only what a round of this mode can continue.
    pub(super) async fn prepare(&self, mode: Mode) -> Result<(), StoreError> {
        let has_begun = self.partial.done() > 0;
        if has_begun && (mode == Mode::Whole || !self.partial.is_provable()) {
            self.restart().await?;
        } else if mode == Mode::Rest {
            self.partial.keep_front();
        }
        self.allocate().await
    }

    async fn allocate(&self) -> Result<(), StoreError> {
        let partial = Arc::clone(&self.partial);
        self.context.blocking(move |_| partial.allocate()).await
    }

    /// Fetches what is missing, while the checksum follows. Nothing of it is still at work when this returns.
    pub(super) async fn round(&self, mode: Mode) -> Result<(), Ended> {
        let stop = self.context.cancel.child_token();
        let fetch = async {
            let fetched = self.fetch(mode, &stop).await;
            stop.cancel();
            fetched
        };
        let follow = async {
            let followed = self.partial.follow(&stop, self.context).await;
            stop.cancel();
            followed
        };
        let (fetched, followed) = tokio::join!(fetch, follow);
        followed?;
        fetched
    }

    async fn fetch(&self, mode: Mode, stop: &CancellationToken) -> Result<(), Ended> {
        let (mut connections, most) = match mode {
            Mode::Ranges => (self.downloader.parallel.get(), Some(self.downloader.ranges.bytes)),
            Mode::Rest | Mode::Whole => (1, None),
        };
        let mut running = FuturesUnordered::new();
        let mut ended = Ok(());
        loop {
            while !stop.is_cancelled()
                && running.len() < connections
                && let Some(piece) = self.partial.claim(most)
            {
                running.push(self.piece(mode, piece, stop));
            }
            match running.next().await {
                None if self.context.cancel.is_cancelled() => return Err(StoreError::Cancelled.into()),
                None => return ended,
                Some(Ok(())) => connections = most.map_or(1, |_| self.downloader.parallel.get().min(connections + 1)),
                Some(Err(_)) if ended.is_err() => {}
                // The server has enough of us, or one connection broke: the others go on, and take this range, too.
                Some(Err(Ended::Failed(Failure::Transient { error, .. }))) if !running.is_empty() => {
                    connections = running.len();
                    tracing::debug!(%error, connections, "a range failed, going on over fewer connections");
                }
                Some(Err(why)) => {
                    ended = Err(why);
                    stop.cancel();
                }
            }
        }
    }

    async fn piece(&self, mode: Mode, piece: Piece, stop: &CancellationToken) -> Result<(), Ended> {
        let result = match self.ask(piece, stop).await {
            Ok(response) => self.answer(mode, piece, response, stop).await,
            Err(failure) => Err(failure.into()),
        };
        self.partial.release(piece);
        result
    }

    async fn ask(&self, piece: Piece, stop: &CancellationToken) -> Result<Response, Failure> {
        let source = self.order.source;
        let direct = lock(&self.direct).clone();
        let request = Request {
            method: Method::GET,
            url: direct.as_ref().unwrap_or(&source.url),
            headers: range_headers(piece, self.partial.condition()),
            bearer: source.bearer.as_ref(),
            leave_origin: true,
        };
        let response = tokio::select! {
            () = stop.cancelled() => return Err(StoreError::Cancelled.into()),
            response = self.downloader.http.send(&request) => response,
        };
        match response {
            Ok(response) => {
                if response.url() != &source.url {
                    *lock(&self.direct) = Some(response.url().clone());
                }
                Ok(response)
            }
            Err(failure) if direct.is_none() => Err(failure),
            Err(failure) => {
                // Such addresses are good for a while only; the source knows the present one.
                *lock(&self.direct) = None;
                Err(match failure {
                    Failure::Final(error) => http::transient(error),
                    transient @ Failure::Transient { .. } => transient,
                })
            }
        }
    }

    async fn answer(
        &self,
        mode: Mode,
        piece: Piece,
        response: Response,
        stop: &CancellationToken,
    ) -> Result<(), Ended> {
        let headers = response.headers();
        let is_range = piece.start > 0 || piece.end.is_some();
        let total = match response.status() {
            StatusCode::PARTIAL_CONTENT => match content_range(headers) {
                Some((start, total)) if start == piece.start => total,
                _ => return Err(Ended::Changed("the server sent another range than the one asked for")),
            },
            StatusCode::RANGE_NOT_SATISFIABLE => {
                if piece.end.is_none() && piece.start > 0 && unsatisfied_total(headers) == Some(piece.start) {
                    self.partial.end_at(piece.start);
                    return Ok(());
                }
                return Err(Ended::Changed("the server refused to continue"));
            }
            _ => number(headers, &CONTENT_LENGTH),
        };
        self.check_size(total)?;
        if !self.partial.is_same(total, text(headers, &ETAG)) {
            return Err(Ended::Changed("the file changed on the server"));
        }
        let is_whole = response.status() != StatusCode::PARTIAL_CONTENT;
        if is_whole && is_range || mode == Mode::Ranges && !self.partial.is_provable() {
            return Err(Ended::NoRanges);
        }
        if let (None, Some(room), Some(total)) = (self.order.source.size, self.order.room, self.partial.total()) {
            let room = room.clone();
            self.context.blocking(move |_| room.make(total)).await?;
        }
        self.allocate().await?;
        self.body(piece, response, stop).await
    }

    fn check_size(&self, total: Option<u64>) -> Result<(), StoreError> {
        let source = self.order.source;
        if let (Some(expected), Some(found)) = (source.size, total)
            && expected != found
        {
            return Err(StoreError::WrongSize {
                what: source.what.clone(),
                expected,
                found,
            });
        }
        if total.or(source.size).unwrap_or(0) > self.downloader.max_bytes {
            return Err(self.too_large(self.downloader.max_bytes));
        }
        Ok(())
    }

    async fn body(&self, piece: Piece, mut response: Response, stop: &CancellationToken) -> Result<(), Ended> {
        let (url, http) = (&self.order.source.url, &self.downloader.http);
        let total = self.partial.total();
        let limit = piece.end.or(total).unwrap_or(self.downloader.max_bytes);
        let mut at = piece.start;
        let mut buffer = Vec::with_capacity(STEP_BYTES);
        let end = loop {
            let chunk = tokio::select! {
                () = stop.cancelled() => break Err(StoreError::Cancelled.into()),
                chunk = tokio::time::timeout(http.read_timeout(), response.chunk()) => chunk,
            };
            match chunk {
                Ok(Ok(Some(bytes))) => {
                    let room = (limit - at).saturating_sub(buffer.len() as u64);
                    if bytes.len() as u64 > room {
                        // More than the range that was asked for is no range; more than the whole is another file.
                        return Err(match piece.end {
                            Some(_) => Ended::NoRanges,
                            None => self.too_large(limit).into(),
                        });
                    }
                    buffer.extend_from_slice(&bytes);
                }
                Ok(Ok(None)) => break Ok(()),
                Ok(Err(error)) => break Err(http::broken_off(url, &error)),
                Err(_) => break Err(http::transient(http.silent(url))),
            }
            if buffer.len() >= STEP_BYTES {
                (at, buffer) = self.write(at, buffer).await?;
            }
        };
        // What arrived before a failure or a cancellation is kept, too.
        (at, _) = self.write(at, buffer).await?;
        end?;
        match piece.end.or(total) {
            None => self.partial.end_at(at),
            Some(end) if at == end => {}
            Some(_) => return Err(http::transient(http::broken(url, "the server ended too early".to_owned())).into()),
        }
        Ok(())
    }

    /// Writes, and gives the place behind it and the buffer, emptied.
    async fn write(&self, at: u64, mut bytes: Vec<u8>) -> Result<(u64, Vec<u8>), StoreError> {
        let (partial, end) = (Arc::clone(&self.partial), at + bytes.len() as u64);
        let write = move |_: &Context| {
            partial.write(at, &bytes)?;
            bytes.clear();
            Ok(bytes)
        };
        let emptied = self.context.blocking(write).await?;
        self.tell();
        Ok((end, emptied))
    }

    fn too_large(&self, limit_bytes: u64) -> StoreError {
        StoreError::TooLarge {
            what: self.order.source.what.clone(),
            limit_bytes,
        }
    }
}

fn range_headers(piece: Piece, condition: Option<String>) -> HeaderMap {
    let mut headers = HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static("identity"))]);
    let range = match piece {
        Piece { start: 0, end: None } => return headers,
        Piece { start, end: None } => format!("bytes={start}-"),
        Piece { start, end: Some(end) } => format!("bytes={start}-{}", end - 1),
    };
    headers.insert(RANGE, HeaderValue::try_from(range).expect("digits are a valid header"));
    if let Some(etag) = condition.and_then(|etag| HeaderValue::try_from(etag).ok()) {
        headers.insert(IF_RANGE, etag);
    }
    headers
}

/// Start of the range in a 206 answer, and the size of the whole where the server says it.
fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let range = text(headers, &CONTENT_RANGE)?;
    let (span, total) = range.strip_prefix("bytes ")?.split_once('/')?;
    let start = span.split_once('-')?.0.parse().ok()?;
    Some((start, total.parse().ok()))
}

/// The size that a 416 answer gives: `bytes */SIZE`.
fn unsatisfied_total(headers: &HeaderMap) -> Option<u64> {
    text(headers, &CONTENT_RANGE)?.strip_prefix("bytes */")?.parse().ok()
}

fn text(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

fn number(headers: &HeaderMap, name: &HeaderName) -> Option<u64> {
    text(headers, name)?.trim().parse().ok()
}
