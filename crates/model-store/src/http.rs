//! The HTTP client: which redirects are followed, who sees the token, what is worth another try.

use std::sync::OnceLock;
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER};
use reqwest::{Client, Method, Response, StatusCode, Url, redirect};
use tokio_util::sync::CancellationToken;

use crate::StoreError;
use crate::error::chain;

/// Hops after which a chain of redirects is taken for a loop.
const MAX_REDIRECTS: usize = 10;
/// Limit for one connection attempt, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest pause between two tries, whatever the server asks for.
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// How a failed transfer is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// Tries without progress before the pull fails; at least 1.
    pub attempts: u32,
    /// Pause after the first failure; it doubles with each further one.
    pub first_pause: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: 5,
            first_pause: Duration::from_millis(500),
        }
    }
}

/// A token that only one origin (scheme, host and port) gets to see.
#[derive(Clone)]
pub(crate) struct Bearer {
    pub(crate) header: HeaderValue,
    pub(crate) home: Url,
}

impl Bearer {
    /// `None` for a token with characters that no header has.
    pub(crate) fn new(token: &str, home: &Url) -> Option<Self> {
        let mut header = HeaderValue::from_str(&format!("Bearer {token}")).ok()?;
        header.set_sensitive(true);
        let home = home.clone();
        Some(Self { header, home })
    }
}

/// A request that failed.
pub(crate) enum Failure {
    /// The same request may succeed later.
    Transient {
        error: StoreError,
        retry_after: Option<Duration>,
    },
    /// It will not.
    Final(StoreError),
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Final(error)
    }
}

/// One request.
pub(crate) struct Request<'a> {
    pub(crate) method: Method,
    pub(crate) url: &'a Url,
    pub(crate) headers: HeaderMap,
    pub(crate) bearer: Option<&'a Bearer>,
    /// Whether a redirect to another origin is followed or given back as the answer.
    pub(crate) leave_origin: bool,
}

/// The client of one store. It is made when the first request needs it, because loading the CA certificates takes time.
pub(crate) struct Http {
    client: OnceLock<Client>,
    read_timeout: Duration,
}

impl Http {
    /// `read_timeout`: longest silence of a server, both before its answer and within it.
    pub(crate) fn new(read_timeout: Duration) -> Self {
        Self {
            client: OnceLock::new(),
            read_timeout,
        }
    }

    pub(crate) fn read_timeout(&self) -> Duration {
        self.read_timeout
    }

    fn client(&self) -> Result<Client, StoreError> {
        if let Some(client) = self.client.get() {
            return Ok(client.clone());
        }
        // An error says that the process has a provider already, which serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .user_agent(concat!("rbee/", env!("CARGO_PKG_VERSION")))
            .redirect(redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .build()
            .map_err(|error| StoreError::Tls { why: chain(&error) })?;
        Ok(self.client.get_or_init(|| client).clone())
    }

    /// Sends and follows redirects; the answer's status is 2xx, 416, or a redirect that was not to be followed.
    pub(crate) async fn send(&self, request: &Request<'_>) -> Result<Response, Failure> {
        let client = self.client()?;
        let mut url = request.url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let mut builder = client
                .request(request.method.clone(), url.clone())
                .headers(request.headers.clone());
            if let Some(bearer) = request.bearer
                && bearer.home.origin() == url.origin()
            {
                builder = builder.header(AUTHORIZATION, bearer.header.clone());
            }
            let response = match tokio::time::timeout(self.read_timeout, builder.send()).await {
                Ok(Ok(response)) => response,
                Ok(Err(error)) => return Err(broken_off(request.url, &error)),
                Err(_) => return Err(transient(self.silent(request.url))),
            };
            if !response.status().is_redirection() {
                return accept(request.url, response);
            }
            let next = redirect_target(&url, response.headers(), request.url)?;
            if next.origin() != url.origin() && !request.leave_origin {
                return Ok(response);
            }
            url = next;
        }
        Err(broken(request.url, format!("it redirects more than {MAX_REDIRECTS} times")).into())
    }

    /// Sends, and reads an answer of at most `limit_bytes`.
    pub(crate) async fn receive(&self, request: &Request<'_>, limit_bytes: u64) -> Result<Vec<u8>, Failure> {
        let mut response = self.send(request).await?;
        let mut body = Vec::new();
        loop {
            match tokio::time::timeout(self.read_timeout, response.chunk()).await {
                Ok(Ok(Some(bytes))) => body.extend_from_slice(&bytes),
                Ok(Ok(None)) => return Ok(body),
                Ok(Err(error)) => return Err(broken_off(request.url, &error)),
                Err(_) => return Err(transient(self.silent(request.url))),
            }
            if body.len() as u64 > limit_bytes {
                return Err(Failure::Final(StoreError::TooLarge {
                    what: printable(request.url),
                    limit_bytes,
                }));
            }
        }
    }

    /// The error for a server that keeps still for too long.
    pub(crate) fn silent(&self, url: &Url) -> StoreError {
        broken(
            url,
            format!("the server was silent for {} s", self.read_timeout.as_secs_f32()),
        )
    }
}

fn redirect_target(from: &Url, headers: &HeaderMap, asked: &Url) -> Result<Url, StoreError> {
    let location = headers.get(LOCATION).and_then(|value| value.to_str().ok());
    let next = location.and_then(|location| from.join(location).ok());
    match next {
        Some(next) if from.scheme() == "https" && next.scheme() != "https" => Err(broken(
            asked,
            "it redirects from https to an unprotected address".to_owned(),
        )),
        Some(next) if matches!(next.scheme(), "http" | "https") => Ok(next),
        _ => Err(broken(asked, "it redirects to nowhere".to_owned())),
    }
}

fn accept(url: &Url, response: Response) -> Result<Response, Failure> {
    let status = response.status();
    if status.is_success() || status == StatusCode::RANGE_NOT_SATISFIABLE {
        return Ok(response);
    }
    let error = StoreError::Refused {
        url: printable(url),
        status: status.as_u16(),
    };
    if matches!(status.as_u16(), 408 | 425 | 429 | 500 | 502 | 503 | 504) {
        let seconds = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|v| v.to_str().ok()?.trim().parse().ok());
        return Err(Failure::Transient {
            error,
            retry_after: seconds.map(Duration::from_secs),
        });
    }
    Err(Failure::Final(error))
}

/// A failure that is worth another try.
pub(crate) fn transient(error: StoreError) -> Failure {
    Failure::Transient {
        error,
        retry_after: None,
    }
}

/// Its error, whatever another try would bring.
impl From<Failure> for StoreError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Transient { error, .. } | Failure::Final(error) => error,
        }
    }
}

/// What becomes of a request or a body that broke off.
pub(crate) fn broken_off(url: &Url, error: &reqwest::Error) -> Failure {
    // reqwest repeats the address, which can carry a signature in its query.
    let causes = std::error::Error::source(error).map_or_else(|| "the request failed".to_owned(), chain);
    // rustls' own error lies behind types that are not public, hence the text.
    if causes.contains("invalid peer certificate") {
        return Failure::Final(StoreError::Certificate {
            url: printable(url),
            why: causes,
        });
    }
    let lasting = error.is_builder();
    let error = broken(url, causes);
    if lasting {
        Failure::Final(error)
    } else {
        transient(error)
    }
}

pub(crate) fn broken(url: &Url, why: String) -> StoreError {
    StoreError::Unreachable {
        url: printable(url),
        why,
    }
}

/// An address without query and credentials.
pub(crate) fn printable(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    // Fails only for addresses that cannot have credentials.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.to_string()
}

/// Counts failures in a row and pauses between them.
pub(crate) struct Backoff {
    retry: Retry,
    failures: u32,
}

impl Backoff {
    pub(crate) fn new(retry: Retry) -> Self {
        Self { retry, failures: 0 }
    }

    /// Something was achieved: failures are counted anew.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }

    /// Pauses, or gives the error back where it is final or one too many.
    pub(crate) async fn pause(&mut self, failure: Failure, cancel: &CancellationToken) -> Result<(), StoreError> {
        let (error, retry_after) = match failure {
            Failure::Final(error) => return Err(error),
            Failure::Transient { error, retry_after } => (error, retry_after),
        };
        self.failures += 1;
        if self.failures >= self.retry.attempts {
            return Err(error);
        }
        let doubled = self.retry.first_pause.saturating_mul(1 << (self.failures - 1).min(16));
        let pause = doubled.max(retry_after.unwrap_or_default()).min(MAX_PAUSE);
        tracing::debug!(%error, ?pause, "transfer failed, trying again");
        tokio::select! {
            () = cancel.cancelled() => Err(StoreError::Cancelled),
            () = tokio::time::sleep(pause) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_printed_address_has_no_credentials_and_no_signature() {
        let url = Url::parse("https://me:secret@host.example/a/b.whl?X-Signature=abc#frag").unwrap();
        assert_eq!(printable(&url), "https://host.example/a/b.whl");
    }

    #[test]
    fn a_redirect_must_not_leave_https() {
        let secure = Url::parse("https://host.example/a").unwrap();
        let to = |location: &'static str| HeaderMap::from_iter([(LOCATION, HeaderValue::from_static(location))]);
        assert!(redirect_target(&secure, &to("http://host.example/b"), &secure).is_err());
        assert!(redirect_target(&secure, &to("file:///etc/passwd"), &secure).is_err());
        assert!(redirect_target(&secure, &HeaderMap::new(), &secure).is_err());
        let next = redirect_target(&secure, &to("../b"), &secure).unwrap();
        assert_eq!(next.as_str(), "https://host.example/b");
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_double_and_a_server_may_ask_for_longer_ones() {
        let retry = Retry {
            attempts: 4,
            first_pause: Duration::from_secs(1),
        };
        let cancel = CancellationToken::new();
        let mut backoff = Backoff::new(retry);
        let failure = |retry_after| Failure::Transient {
            error: StoreError::NoRoot,
            retry_after,
        };
        let start = tokio::time::Instant::now();
        backoff.pause(failure(None), &cancel).await.unwrap();
        assert_eq!(start.elapsed().as_secs(), 1);
        backoff.pause(failure(None), &cancel).await.unwrap();
        assert_eq!(start.elapsed().as_secs(), 3);
        backoff
            .pause(failure(Some(Duration::from_secs(3600))), &cancel)
            .await
            .unwrap();
        assert_eq!(start.elapsed().as_secs(), 63);
        assert!(backoff.pause(failure(None), &cancel).await.is_err());
        backoff.reset();
        assert!(backoff.pause(failure(None), &cancel).await.is_ok());
        assert!(
            backoff
                .pause(Failure::Final(StoreError::NoRoot), &cancel)
                .await
                .is_err()
        );
    }
}
