//! Calls to queen, hive and worker, and errors that say what to do next.

use std::time::Duration;

use daemon::Secret;
use eventsource_stream::EventStreamError;
use reqwest::{Method, RequestBuilder, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;
use shared_contract::{ErrorBody, ErrorObject};

use crate::cli::BaseUrl;

/// Limit of a call whose answer is at hand.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// Most of an unexpected answer that an error shows, in bytes.
const EXCERPT: usize = 200;

/// What a daemon is to the user, and so what to do if it does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    /// The queen's own endpoints.
    Queen,
    /// The queen's OpenAI endpoints, which have their own keys.
    OpenAi,
    /// A hive.
    Hive,
    /// A worker.
    Worker,
}

impl Peer {
    fn word(self) -> &'static str {
        match self {
            Self::Queen | Self::OpenAi => "queen",
            Self::Hive => "hive",
            Self::Worker => "worker",
        }
    }
}

/// Why a call brought nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Nobody listens there, or the connection could not be made.
    #[error("{}", unreachable(*peer, url, reason))]
    Unreachable {
        /// Who was called.
        peer: Peer,
        /// Where.
        url: String,
        /// What the system said.
        reason: String,
    },
    /// The daemon answered with an error.
    #[error("{}", refused(*peer, *status, object, *retry_after_s))]
    Refused {
        /// Who answered.
        peer: Peer,
        /// HTTP status.
        status: u16,
        /// The error body.
        object: ErrorObject,
        /// When to try again.
        retry_after_s: Option<u64>,
    },
    /// The answer broke off, came too late, or is not what such a daemon says.
    #[error("the {} at {url} did not answer as expected: {reason}", peer.word())]
    Garbled {
        /// Who was called.
        peer: Peer,
        /// Where.
        url: String,
        /// What happened.
        reason: String,
    },
}

impl Error {
    /// Whether the trouble is that no queen answers.
    pub(crate) fn is_queen_missing(&self) -> bool {
        matches!(
            self,
            Self::Unreachable {
                peer: Peer::Queen | Peer::OpenAi,
                ..
            }
        )
    }
}

fn unreachable(peer: Peer, url: &str, reason: &str) -> String {
    match peer {
        Peer::Queen | Peer::OpenAi => {
            format!("no queen answers at {url} ({reason}): start one with `rbee up`, or name it with --queen-url")
        }
        Peer::Hive => format!("no hive answers at {url} ({reason}): see `rbee ps`"),
        Peer::Worker => format!("no worker answers at {url} ({reason}): see `rbee ps`"),
    }
}

fn refused(peer: Peer, status: u16, object: &ErrorObject, retry_after_s: Option<u64>) -> String {
    let code = object.code.as_deref();
    let mut text = object.message.trim_end_matches('.').to_owned();
    match (code, status, peer) {
        (_, 401, Peer::OpenAi) => text.push_str("; pass the key with --api-key or RBEE_API_KEY"),
        (_, 401, _) => text.push_str("; pass the token with --token or RBEE_TOKEN"),
        (Some("model_not_found"), _, Peer::OpenAi) => {
            text.push_str("; `rbee models` lists those that can be had");
        }
        _ => {}
    }
    if let Some(seconds) = retry_after_s {
        text.push_str(&format!("; try again in {seconds} s"));
    }
    match code {
        Some(code) => format!("{text} ({status} {code})"),
        None => format!("{text} ({status})"),
    }
}

/// One daemon, as this command calls it. Clones share the connections.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    http: reqwest::Client,
    peer: Peer,
    base: String,
    secret: Option<Secret>,
}

impl Api {
    /// A daemon at this address, which gets `secret` with each call.
    pub(crate) fn new(http: reqwest::Client, peer: Peer, base: &BaseUrl, secret: Option<Secret>) -> Self {
        Self {
            http,
            peer,
            base: base.as_str().to_owned(),
            secret,
        }
    }

    /// Where it listens.
    pub(crate) fn base(&self) -> &str {
        &self.base
    }

    /// `GET`, answered with JSON.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        self.call(Method::GET, path).await
    }

    /// `GET` with parameters, answered with JSON.
    pub(crate) async fn query<T: DeserializeOwned>(&self, path: &str, parameters: &impl Serialize) -> Result<T, Error> {
        let request = self.request(Method::GET, path).timeout(CALL_TIMEOUT).query(parameters);
        let response = self.send(request).await?;
        self.json(response).await
    }

    /// A request without a body, answered with JSON.
    pub(crate) async fn call<T: DeserializeOwned>(&self, method: Method, path: &str) -> Result<T, Error> {
        let response = self.send(self.request(method, path).timeout(CALL_TIMEOUT)).await?;
        self.json(response).await
    }

    /// `POST` of JSON, answered with JSON.
    pub(crate) async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, Error> {
        let request = self.request(Method::POST, path).timeout(CALL_TIMEOUT).json(body);
        let response = self.send(request).await?;
        self.json(response).await
    }

    /// A request whose answer's body does not matter.
    pub(crate) async fn tell(&self, method: Method, path: &str) -> Result<(), Error> {
        self.send(self.request(method, path).timeout(CALL_TIMEOUT))
            .await
            .map(drop)
    }

    /// `GET` of a stream, without a limit on its length.
    pub(crate) async fn open(&self, path: &str) -> Result<Response, Error> {
        self.send(self.request(Method::GET, path)).await
    }

    /// `POST` of JSON, answered with a stream without a limit on its length.
    pub(crate) async fn post_open(&self, path: &str, body: &impl Serialize) -> Result<Response, Error> {
        self.send(self.request(Method::POST, path).json(body)).await
    }

    /// An error about an answer that is not what it should be.
    pub(crate) fn garbled(&self, reason: impl Into<String>) -> Error {
        Error::Garbled {
            peer: self.peer,
            url: self.base.clone(),
            reason: reason.into(),
        }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.base));
        match &self.secret {
            Some(secret) => request.bearer_auth(secret.expose()),
            None => request,
        }
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, Error> {
        let response = request.send().await.map_err(|error| {
            let reason = root_cause(&error);
            match error.is_connect() {
                true => Error::Unreachable {
                    peer: self.peer,
                    url: self.base.clone(),
                    reason,
                },
                false => self.garbled(reason),
            }
        })?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status().as_u16();
        let retry_after_s = response
            .headers()
            .get("retry-after")
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.parse().ok());
        let body = response
            .bytes()
            .await
            .map_err(|error| self.garbled(root_cause(&error)))?;
        match serde_json::from_slice::<ErrorBody>(&body) {
            Ok(body) => Err(Error::Refused {
                peer: self.peer,
                status,
                object: body.error,
                retry_after_s,
            }),
            Err(_) => Err(self.garbled(format!("status {status}, {}; is that an rbee daemon?", excerpt(&body)))),
        }
    }

    async fn json<T: DeserializeOwned>(&self, response: Response) -> Result<T, Error> {
        let body = response
            .bytes()
            .await
            .map_err(|error| self.garbled(root_cause(&error)))?;
        serde_json::from_slice(&body)
            .map_err(|error| self.garbled(format!("{error} in {}; is that an rbee daemon?", excerpt(&body))))
    }
}

/// A text as one segment of a path.
pub(crate) fn segment(text: &str) -> String {
    let encoded = text.bytes().map(|byte| match byte {
        b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        byte if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    });
    encoded.collect()
}

/// The innermost reason of an error, which is the one that people can act on.
pub(crate) fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    let text = cause.to_string();
    // The number behind it helps nobody: `Connection refused (os error 111)`.
    match text.find(" (os error ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

/// Why the events of a stream could not be read on.
pub(crate) fn stream_fault(error: EventStreamError<String>) -> String {
    match error {
        EventStreamError::Transport(reason) => reason,
        EventStreamError::Utf8(error) => error.to_string(),
        EventStreamError::Parser(error) => error.to_string(),
    }
}

fn excerpt(body: &[u8]) -> String {
    match body {
        [] => "an empty body".to_owned(),
        _ => format!("`{}`", String::from_utf8_lossy(&body[..body.len().min(EXCERPT)]).trim()),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use axum::Router;
    use axum::routing::get;
    use daemon::ApiError;
    use shared_contract::ErrorKind;

    use super::*;

    /// Serves a router on a free port of the loopback for as long as the test runs.
    pub(crate) async fn serve(router: Router) -> BaseUrl {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = BaseUrl::local(listener.local_addr().unwrap().port());
        tokio::spawn(async move { axum::serve(listener, router).await });
        url
    }

    pub(crate) fn api(peer: Peer, url: &BaseUrl) -> Api {
        Api::new(daemon::client::new().unwrap(), peer, url, None)
    }

    #[tokio::test]
    async fn a_missing_queen_is_told_apart_and_the_remedy_is_named() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = BaseUrl::local(listener.local_addr().unwrap().port());
        drop(listener);
        let error = api(Peer::Queen, &url)
            .get::<serde_json::Value>("/v1/fleet")
            .await
            .unwrap_err();
        assert!(error.is_queen_missing());
        let text = error.to_string();
        assert!(
            text.contains(url.as_str()) && text.contains("rbee up") && text.contains("--queen-url"),
            "{text}"
        );
        let error = api(Peer::Hive, &url)
            .get::<serde_json::Value>("/v1/jobs")
            .await
            .unwrap_err();
        assert!(!error.is_queen_missing());
    }

    #[tokio::test]
    async fn an_error_body_becomes_one_line_with_what_to_do() {
        let router = Router::new()
            .route(
                "/locked",
                get(async || ApiError::new(ErrorKind::Unauthorized, "this endpoint needs a token")),
            )
            .route(
                "/full",
                get(async || ApiError::new(ErrorKind::RateLimited, "the queue is full").retry_after(7)),
            );
        let url = serve(router).await;
        let error = api(Peer::Queen, &url)
            .get::<()>("/locked")
            .await
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "this endpoint needs a token; pass the token with --token or RBEE_TOKEN (401 invalid_api_key)"
        );
        let error = api(Peer::OpenAi, &url)
            .get::<()>("/locked")
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("--api-key"), "{error}");
        let error = api(Peer::Queen, &url).get::<()>("/full").await.unwrap_err().to_string();
        assert_eq!(error, "the queue is full; try again in 7 s (429 rate_limit_exceeded)");
    }

    #[test]
    fn a_name_is_one_segment_of_a_path_whatever_is_in_it() {
        assert_eq!(segment("gpu-box_1.lan"), "gpu-box_1.lan");
        assert_eq!(segment("a/b?c#d%é"), "a%2Fb%3Fc%23d%25%C3%A9");
    }

    #[tokio::test]
    async fn a_stranger_on_the_port_is_recognised() {
        let router = Router::new().route("/v1/fleet", get(async || "<html>hello</html>"));
        let url = serve(router).await;
        let error = api(Peer::Queen, &url)
            .get::<serde_json::Value>("/v1/fleet")
            .await
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("<html>hello</html>") && error.contains("is that an rbee daemon?"),
            "{error}"
        );
        let error = api(Peer::Queen, &url)
            .get::<serde_json::Value>("/other")
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("status 404, an empty body"), "{error}");
    }

    #[tokio::test]
    async fn the_secret_travels_as_a_bearer_token() {
        let handler =
            async |headers: axum::http::HeaderMap| axum::Json(headers["authorization"].to_str().unwrap().to_owned());
        let url = serve(Router::new().route("/", get(handler))).await;
        let secret = Some("correct-horse".parse().unwrap());
        let api = Api::new(daemon::client::new().unwrap(), Peer::Queen, &url, secret);
        assert_eq!(api.get::<String>("/").await.unwrap(), "Bearer correct-horse");
    }
}
