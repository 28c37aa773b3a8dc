//! One attempt at one worker, up to the first byte of its answer.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use heartbeat_registry::Address;
use http::header::{self, HeaderMap, HeaderName, HeaderValue, InvalidHeaderValue};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};

use crate::config::Config;

/// Limit for setting up a connection; also a first-byte limit for a host that drops packets.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Shorter than a server keeps an idle connection, so that none is used just as it closes.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(15);
/// A worker's host that vanishes without a word is noticed after this long without traffic, and a few probes.
const KEEPALIVE: Duration = Duration::from_secs(15);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_PROBES: u32 = 3;
/// Idle connections kept for each worker.
const POOL_MAX_IDLE: usize = 128;

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

/// The endpoints that are relayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Endpoint {
    ChatCompletions,
    Completions,
    Embeddings,
}

impl Endpoint {
    fn path(self) -> &'static str {
        match self {
            Self::ChatCompletions => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
            Self::Embeddings => "/v1/embeddings",
        }
    }
}

/// The connections to the workers.
pub(super) struct Upstream {
    client: Client<HttpConnector, Full<Bytes>>,
    authorization: Option<HeaderValue>,
    first_byte_timeout: Duration,
    answer_timeout: Duration,
}

/// A request as workers get it.
pub(super) struct Call {
    endpoint: Endpoint,
    headers: HeaderMap,
    body: Bytes,
    /// How long its first byte may take.
    limit: Duration,
}

/// An answer that has begun.
pub(super) struct Answer {
    pub(super) head: http::response::Parts,
    /// The first bytes of the body, if it has any.
    pub(super) first: Option<Bytes>,
    pub(super) rest: Incoming,
}

/// Why an attempt failed before the first byte. The text is for clients, too, so it names no address.
#[derive(Debug)]
pub(super) enum Failure {
    /// No connection.
    Unreachable(String),
    /// The connection ended before the first byte.
    Broke(String),
    /// No first byte within this time.
    Silent(Duration),
    /// The worker has no room, or not yet.
    Busy(Box<Response<Incoming>>),
    /// The worker answered that it failed, or that it does not serve this: then another process has its port.
    Failed(Box<Response<Incoming>>),
    /// The worker does not accept the queen's token.
    Unauthorized,
}

impl Failure {
    /// Whether it speaks against the worker's being alive.
    pub(super) fn is_evidence(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Broke(_) | Self::Silent(_))
    }

    /// Its word in the metrics.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "unreachable",
            Self::Broke(_) => "connection_broke",
            Self::Silent(_) => "no_first_byte",
            Self::Busy(_) => "busy",
            Self::Failed(_) => "failed",
            Self::Unauthorized => "unauthorized",
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(cause) => write!(f, "cannot be reached: {cause}"),
            Self::Broke(cause) => write!(f, "the connection broke: {cause}"),
            Self::Silent(limit) => write!(f, "no first byte within {:.1} s", limit.as_secs_f64()),
            Self::Busy(response) | Self::Failed(response) => write!(f, "it answered {}", response.status()),
            Self::Unauthorized => f.write_str("it does not accept the queen's token; start both with the same --token"),
        }
    }
}

impl Upstream {
    pub(super) fn new(config: &Config) -> Result<Self, InvalidHeaderValue> {
        let authorization = match &config.token {
            None => None,
            Some(token) => {
                let mut value = HeaderValue::try_from(format!("Bearer {}", token.expose()))?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        connector.set_keepalive(Some(KEEPALIVE));
        connector.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
        connector.set_keepalive_retries(Some(KEEPALIVE_PROBES));
        let client = Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(POOL_IDLE_TIMEOUT)
            .pool_max_idle_per_host(POOL_MAX_IDLE)
            .build(connector);
        Ok(Self {
            client,
            authorization,
            first_byte_timeout: config.first_byte_timeout,
            answer_timeout: config.answer_timeout,
        })
    }

    /// Makes a client's request the one that workers get: the queen's token in place of the client's key, and nothing that
    /// belongs to the client's connection.
    pub(super) fn call(&self, endpoint: Endpoint, mut headers: HeaderMap, body: Bytes, stream: bool) -> Call {
        remove_hop_by_hop(&mut headers);
        headers.remove(header::HOST);
        headers.remove(header::EXPECT);
        match &self.authorization {
            Some(value) => drop(headers.insert(header::AUTHORIZATION, value.clone())),
            None => drop(headers.remove(header::AUTHORIZATION)),
        }
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
        let limit = if stream {
            self.first_byte_timeout
        } else {
            self.answer_timeout
        };
        Call {
            endpoint,
            headers,
            body,
            limit,
        }
    }

    /// Sends the call to one worker and awaits the first byte of the answer.
    pub(super) async fn attempt(&self, call: &Call, address: &Address) -> Result<Answer, Failure> {
        match tokio::time::timeout(call.limit, self.exchange(call, address)).await {
            Ok(result) => result,
            Err(_) => Err(Failure::Silent(call.limit)),
        }
    }

    async fn exchange(&self, call: &Call, address: &Address) -> Result<Answer, Failure> {
        let uri = Uri::try_from(format!("{}{}", address.base_url(), call.endpoint.path()))
            .map_err(|error| Failure::Unreachable(error.to_string()))?;
        let mut request = Request::new(Full::new(call.body.clone()));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = uri;
        request.headers_mut().clone_from(&call.headers);
        let response = self.client.request(request).await.map_err(|error| {
            if error.is_connect() {
                Failure::Unreachable(root_cause(&error))
            } else {
                Failure::Broke(root_cause(&error))
            }
        })?;
        match response.status() {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(Failure::Unauthorized),
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                return Err(Failure::Busy(Box::new(response)));
            }
            // Another worker of the same model would say the same.
            StatusCode::NOT_IMPLEMENTED => {}
            status if status.is_server_error() || status == StatusCode::NOT_FOUND => {
                return Err(Failure::Failed(Box::new(response)));
            }
            _ => {}
        }
        let (mut head, mut rest) = response.into_parts();
        remove_hop_by_hop(&mut head.headers);
        let first = first_bytes(&mut rest).await?;
        Ok(Answer { head, first, rest })
    }
}

async fn first_bytes(body: &mut Incoming) -> Result<Option<Bytes>, Failure> {
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Failure::Broke(root_cause(&error)))?;
        if let Ok(data) = frame.into_data()
            && !data.is_empty()
        {
            return Ok(Some(data));
        }
    }
    Ok(None)
}

/// Removes what belongs to the connection that a message came over.
pub(super) fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// The innermost cause: it says what happened, the outer ones only during what.
pub(crate) fn root_cause(error: &(dyn Error + 'static)) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
