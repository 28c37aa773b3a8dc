//! The connections to the workers: HTTP/1.1, one request at a time on each.
//!
//! A request's own task writes to its connection and reads from it. A general client has a task for each connection and
//! passes every request, head and piece of a body through channels between the two, which wake each other: that is most of
//! what it costs, and nothing of it is needed here. What is needed is small: `POST` with a known length, answers that are
//! framed in one of three ways, and connections that are kept.

mod connection;
mod framing;
mod pool;

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use heartbeat_registry::Address;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response, Uri};
use hyper_util::client::legacy::connect::HttpConnector;
use tower::Service;
use tracing::Span;

use crate::RouterOptions;
use crate::attempt::Failure;
use crate::endpoint::Endpoint;

use connection::Connection;
pub(crate) use connection::Incoming;
use pool::Pool;

/// Limit for setting up a connection; also a first-byte limit for a host that drops packets.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A worker's host that vanishes without a word is noticed after this long without traffic, and a few probes.
const KEEPALIVE: Duration = Duration::from_secs(15);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_PROBES: u32 = 3;
/// A body up to this length is copied behind its head, so that both go in one packet or two.
const MAX_COPY: usize = 16 << 10;

/// Headers that belong to one connection (RFC 9110, section 7.6.1), not to the message.
const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];
/// Headers of a client's request that the queen writes herself, or answers herself.
const REPLACED: [HeaderName; 6] = [
    header::HOST,
    header::CONTENT_LENGTH,
    header::AUTHORIZATION,
    header::EXPECT,
    // Whether the page may ask is settled by now, and a worker would take the queen's pages for foreign ones.
    header::ORIGIN,
    HeaderName::from_static("sec-fetch-site"),
];

/// W3C Trace Context: the span that a request belongs to.
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The connections to the workers.
pub(crate) struct Upstream {
    connector: HttpConnector,
    pool: Arc<Pool>,
    authorization: Option<HeaderValue>,
    /// Where traces are on.
    traceparent: Option<fn(&Span) -> Option<HeaderValue>>,
}

/// A request as workers get it.
pub(crate) struct Call {
    endpoint: Endpoint,
    /// Its headers as they are sent, but for the host and the length.
    headers: Vec<u8>,
    body: Bytes,
    stream: bool,
}

impl Call {
    /// Sends this body in place of the one before.
    pub(crate) fn replace_body(&mut self, body: Bytes) {
        self.body = body;
    }

    /// Where it goes.
    pub(crate) fn endpoint(&self) -> Endpoint {
        self.endpoint
    }

    /// What is sent.
    pub(crate) fn body(&self) -> &Bytes {
        &self.body
    }

    /// Whether the answer is to be a stream.
    pub(crate) fn is_stream(&self) -> bool {
        self.stream
    }

    /// The message to this address: what is sent first, and the rest of it.
    fn message(&self, address: &Address, traceparent: Option<&HeaderValue>) -> (Vec<u8>, &[u8]) {
        let url = address.base_url();
        let authority = url.strip_prefix("http://").unwrap_or(url);
        let (copied, rest) = self
            .body
            .split_at(if self.body.len() > MAX_COPY { 0 } else { self.body.len() });
        let length = self.body.len().to_string();
        let (name, value, end): (&[u8], &[u8], &[u8]) = match traceparent {
            Some(value) => (b"traceparent: ", value.as_bytes(), b"\r\n"),
            None => Default::default(),
        };
        let parts: [&[u8]; 12] = [
            b"POST ",
            self.endpoint.path().as_bytes(),
            b" HTTP/1.1\r\nhost: ",
            authority.as_bytes(),
            b"\r\ncontent-length: ",
            length.as_bytes(),
            b"\r\n",
            &self.headers,
            name,
            value,
            end,
            b"\r\n",
        ];
        let mut first = Vec::with_capacity(parts.iter().map(|part| part.len()).sum::<usize>() + copied.len());
        for part in parts.into_iter().chain([copied]) {
            first.extend_from_slice(part);
        }
        (first, rest)
    }
}

impl Upstream {
    pub(crate) fn new(options: &RouterOptions) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        connector.set_keepalive(Some(KEEPALIVE));
        connector.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
        connector.set_keepalive_retries(Some(KEEPALIVE_PROBES));
        Self {
            connector,
            pool: Arc::default(),
            authorization: options.authorization.clone(),
            traceparent: options.traceparent,
        }
    }

    /// Makes a client's request the one that workers get: the queen's token in place of the client's key, and nothing that
    /// belongs to the client's connection.
    pub(crate) fn call(&self, endpoint: Endpoint, headers: &HeaderMap, body: Bytes, stream: bool) -> Call {
        let named = named_by_connection(headers);
        let is_own = |name: &HeaderName| REPLACED.contains(name) || self.traceparent.is_some() && name == TRACEPARENT;
        let passes = |name: &HeaderName| !HOP_BY_HOP.contains(name) && !is_own(name) && !named.contains(name);
        let own = self.authorization.iter().map(|value| (&header::AUTHORIZATION, value));
        let passed = headers.iter().filter(|(name, _)| passes(name));
        let mut lines = Vec::with_capacity(512);
        for (name, value) in passed.chain(own) {
            lines.extend_from_slice(name.as_str().as_bytes());
            lines.extend_from_slice(b": ");
            lines.extend_from_slice(value.as_bytes());
            lines.extend_from_slice(b"\r\n");
        }
        Call {
            endpoint,
            headers: lines,
            body,
            stream,
        }
    }

    /// Sends the call to one worker and awaits the head of the answer, for however long. Dropped before, it ends the request.
    /// The worker's spans become children of `span`, if traces are on.
    pub(crate) async fn send(
        &self,
        call: &Call,
        address: &Address,
        span: &Span,
    ) -> Result<Response<Incoming>, Failure> {
        let traceparent = self.traceparent.and_then(|of| of(span));
        let (first, rest) = call.message(address, traceparent.as_ref());
        if let Some(mut kept) = self.pool.take(address) {
            match kept.exchange(&first, rest).await {
                Ok(head) => return Ok(self.response(kept, head)),
                // A kept connection may be closed just as it is used: only a new one tells whether its worker is there.
                Err(_) if kept.is_silent() => {}
                Err(error) => return Err(Failure::Broke(root_cause(&error))),
            }
        }
        let unreachable = |error: &(dyn Error + 'static)| Failure::Unreachable(root_cause(error));
        let mut connection = self.connect(address).await.map_err(|error| unreachable(&*error))?;
        match connection.exchange(&first, rest).await {
            Ok(head) => Ok(self.response(connection, head)),
            Err(error) => Err(Failure::Broke(root_cause(&error))),
        }
    }

    /// Closes connections that nobody has used for long.
    pub(crate) fn prune(&self) {
        self.pool.prune(Instant::now());
    }

    async fn connect(&self, address: &Address) -> Result<Connection, Box<dyn Error + Send + Sync>> {
        let uri = Uri::try_from(address.base_url())?;
        let stream = self.connector.clone().call(uri).await?;
        Ok(Connection::new(stream.into_inner(), address.clone()))
    }

    fn response(&self, connection: Connection, head: framing::Head) -> Response<Incoming> {
        let body = Incoming::new(connection, head.framing, head.stays_open, &self.pool);
        Response::from_parts(head.parts, body)
    }
}

/// Names of further headers that belong to the connection that a message came over.
fn named_by_connection(headers: &HeaderMap) -> Vec<HeaderName> {
    let values = headers.get_all(header::CONNECTION).iter();
    values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect()
}

/// Removes what belongs to the connection that a message came over.
fn remove_hop_by_hop(headers: &mut HeaderMap) {
    for name in named_by_connection(headers).iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// The innermost cause: it says what happened, the outer ones only during what.
pub(crate) fn root_cause(error: &(dyn Error + 'static)) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    match cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        // What an I/O error wraps is not its source.
        Some(inner) => inner.to_string(),
        None => cause.to_string(),
    }
}

#[cfg(test)]
mod tests;
