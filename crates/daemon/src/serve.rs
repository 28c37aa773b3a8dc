//! Serving a router, and draining it.

use std::convert::Infallible;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use axum::middleware::from_fn;
use axum::response::IntoResponse;
use futures_util::FutureExt;
use http::{HeaderName, HeaderValue, Request};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use shared_contract::ErrorKind;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tower::Service;
use tracing::{Instrument, Span};

use crate::access::{self, Entry};
use crate::error::{method_not_allowed, not_found};
use crate::{ApiError, Shutdown, traces};

/// Header that names a request in logs and answers; taken over from the client where it sends one.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// A client that takes nothing of its answer for so long is cut off: it would hold what the answer needs for ever, and while
/// it does not read, a server cannot see that it has gone.
#[cfg(target_os = "linux")]
const READER_TIMEOUT: Duration = Duration::from_secs(60);

/// Limits of a server.
#[derive(Debug, Clone, Copy)]
pub struct ServeOptions {
    /// Connections held at once; further ones wait in the kernel's backlog.
    pub max_connections: usize,
    /// Limit for a request's header to arrive.
    pub header_timeout: Duration,
    /// How long running requests may take once the shutdown has begun.
    pub grace: Duration,
    /// Paths where others ask all the time: their lines in the access log are at the level debug, and no trace has them.
    pub quiet: &'static [&'static str],
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            max_connections: 8_192,
            header_timeout: Duration::from_secs(30),
            grace: Duration::from_secs(30),
            quiet: access::QUIET,
        }
    }
}

/// Serves until `shutdown` asks to drain, then takes no new connections, lets running requests end within the grace
/// period, and cuts the rest.
///
/// Handlers can extract `ConnectInfo<SocketAddr>`. Each answer carries `x-request-id`; a panic is a 500, an unknown
/// path or method a JSON error.
pub async fn serve(listener: TcpListener, router: Router, shutdown: &Shutdown, options: ServeOptions) {
    let desk = Arc::new(Desk::new(router, options.quiet));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(options.header_timeout)
        // Heads and most bodies are small: copied together they are one cheaper call.
        .writev(false);
    let permits = Arc::new(Semaphore::new(options.max_connections));
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();

    loop {
        let accepted = tokio::select! {
            () = shutdown.requested() => break,
            // Ended connections are collected as they end, so that the set does not grow.
            Some(_) = connections.join_next() => continue,
            accepted = accept(&listener, &permits) => accepted,
        };
        let (stream, peer, permit) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                // Out of file descriptors, most likely: give running requests a moment to free some.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let desk = Arc::clone(&desk);
        let service = service_fn(move |request| answer(Arc::clone(&desk), peer, request));
        let connection = graceful.watch(http.serve_connection(TokioIo::new(stream), service));
        connections.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%peer, %error, "connection ended early");
            }
            drop(permit);
        });
    }
    drop(listener);
    if tokio::time::timeout(options.grace, graceful.shutdown()).await.is_err() {
        tracing::warn!(
            cut = connections.len(),
            "grace period is over, cutting the remaining requests"
        );
    }
}

/// Binds, with an error that names the address and the setting.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, String> {
    TcpListener::bind(address)
        .await
        .map_err(|error| format!("listen on {address}: {error}; choose another with --host and --port"))
}

async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> io::Result<(TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit)> {
    let permit = Arc::clone(permits).acquire_owned().await.map_err(io::Error::other)?;
    let (stream, peer) = listener.accept().await?;
    // Without it a first token can wait 40 ms for the client's delayed acknowledgement.
    stream.set_nodelay(true)?;
    // By the kernel, which knows what the client took, at no cost for each answer. Elsewhere only the system's own limits count.
    #[cfg(target_os = "linux")]
    socket2::SockRef::from(&stream).set_tcp_user_timeout(Some(READER_TIMEOUT))?;
    Ok((stream, peer, permit))
}

/// What all requests pass.
struct Desk {
    router: Router,
    quiet: &'static [&'static str],
    /// Tells the ids that this server gives from those of others.
    series: u64,
    /// Ids given so far.
    given: AtomicU64,
}

impl Desk {
    fn new(router: Router, quiet: &'static [&'static str]) -> Self {
        let router = router
            .fallback(not_found)
            .method_not_allowed_fallback(method_not_allowed);
        // A layer costs each request a box, so it is there only where it is of use.
        let router = match traces::are_on() {
            true => router.layer(from_fn(traces::name_route)),
            false => router,
        };
        Self {
            router,
            quiet,
            // The standard library's source of randomness.
            series: RandomState::new().hash_one(0),
            given: AtomicU64::new(0),
        }
    }

    /// An id that no other request has.
    fn new_id(&self) -> HeaderValue {
        let number = self.given.fetch_add(1, Ordering::Relaxed);
        let mut id = [0; 32];
        let (series, rest) = id.split_at_mut(16);
        write_hex(self.series, series);
        write_hex(number, rest);
        HeaderValue::from_bytes(&id).unwrap_or_else(|error| unreachable!("hexadecimal digits: {error}"))
    }
}

/// Writes the lowest digits of a number, as many as there is room for.
fn write_hex(mut number: u64, room: &mut [u8]) {
    for digit in room.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(number & 0xf) as usize];
        number >>= 4;
    }
}

/// Every request comes through here: one function costs less than a stack of layers, each of which boxes its future.
async fn answer(
    desk: Arc<Desk>,
    peer: SocketAddr,
    mut request: Request<Incoming>,
) -> Result<http::Response<access::Body>, Infallible> {
    let id = match request.headers().get(REQUEST_ID) {
        Some(id) => id.clone(),
        None => {
            let id = desk.new_id();
            request.headers_mut().insert(REQUEST_ID, id.clone());
            id
        }
    };
    let span = tracing::info_span!(
        "request",
        id = id.to_str().unwrap_or_default(),
        method = %request.method(),
        path = request.uri().path()
    );
    request.extensions_mut().insert(ConnectInfo(peer));
    let is_quiet = desk.quiet.contains(&request.uri().path());
    let trace = match is_quiet {
        true => Span::none(),
        false => traces::request_span(&request, &id, peer),
    };
    let entry = Entry::begin(&mut request, &id, peer, is_quiet);
    let mut router = desk.router.clone();
    let answered = AssertUnwindSafe(async move { router.call(request).await })
        .catch_unwind()
        // Innermost, so that what is current in a handler is what traces know.
        .instrument(trace.clone())
        .instrument(span.clone())
        .await;
    let mut response = answered.unwrap_or_else(|_| {
        // The panic hook has already logged where and why.
        let error = ApiError::new(ErrorKind::Internal, "internal error; the daemon's log has the details");
        Ok(error.into_response())
    })?;
    response.headers_mut().insert(REQUEST_ID, id);
    traces::answered(&trace, response.status());
    Ok(access::Body::follow(response, entry, span, trace))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_client_that_does_not_read_has_a_limit() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, ..) = accept(&listener, &Arc::new(Semaphore::new(1))).await.unwrap();
        let limit = socket2::SockRef::from(&stream).tcp_user_timeout().unwrap();
        assert_eq!(limit, Some(READER_TIMEOUT));
    }
}
