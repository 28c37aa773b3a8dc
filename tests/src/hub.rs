//! A model hub in the test's process: one file, as Hugging Face's protocol serves it, as slowly as a scenario wants.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Method, Response, StatusCode, header};
use futures_util::stream;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

/// Bytes that are sent at a time.
const PIECE: usize = 64 * 1024;
/// What the hub calls the file's revision.
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Serves a file under every path; ends when dropped.
#[derive(Debug)]
pub struct Hub {
    address: SocketAddr,
    shared: Arc<Shared>,
    server: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    content: Bytes,
    sha256: String,
    /// Pieces that may still be sent.
    allowance: Semaphore,
    sent_bytes: AtomicU64,
}

impl Hub {
    /// A hub that says that its file has this checksum, and sends so many bytes of it and no more until it is told.
    pub async fn start(content: Vec<u8>, sha256: &str, allowed_bytes: usize) -> Self {
        let shared = Arc::new(Shared {
            content: content.into(),
            sha256: sha256.to_owned(),
            allowance: Semaphore::new(allowed_bytes / PIECE),
            sent_bytes: AtomicU64::new(0),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let router = Router::new().fallback(serve).with_state(Arc::clone(&shared));
        let server = tokio::spawn(async move { axum::serve(listener, router).await.expect("serving") });
        Self {
            address,
            shared,
            server,
        }
    }

    /// Where it is: the value of `HF_ENDPOINT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Bytes of the file that have been sent, again and again counted again.
    pub fn sent_bytes(&self) -> u64 {
        self.shared.sent_bytes.load(Ordering::Relaxed)
    }

    /// Whether all that may be sent has been sent.
    pub fn has_stalled(&self) -> bool {
        self.shared.allowance.available_permits() == 0
    }

    /// Sends everything from now on.
    pub fn open(&self) {
        self.shared.allowance.close();
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(State(shared): State<Arc<Shared>>, method: Method, headers: HeaderMap) -> Response<Body> {
    let size = shared.content.len();
    let range = headers
        .get(header::RANGE)
        .and_then(|range| parse(range.to_str().ok()?, size));
    let (first, last) = range.unwrap_or((0, size - 1));
    let mut answer = Response::builder()
        .header("x-repo-commit", COMMIT)
        .header("x-linked-size", size)
        .header("x-linked-etag", format!("\"{}\"", shared.sha256))
        .header(header::ETAG, format!("\"{}\"", shared.sha256))
        .header(header::ACCEPT_RANGES, "bytes")
        .header(header::CONTENT_LENGTH, last + 1 - first);
    if range.is_some() {
        answer = answer
            .status(StatusCode::PARTIAL_CONTENT)
            .header(header::CONTENT_RANGE, format!("bytes {first}-{last}/{size}"));
    }
    let body = match method {
        Method::HEAD => Body::empty(),
        _ => Body::from_stream(stream::unfold((first, shared), move |(at, shared)| async move {
            if at > last {
                return None;
            }
            // Closed means that there is no limit any more.
            if let Ok(permit) = shared.allowance.acquire().await {
                permit.forget();
            }
            let end = (at + PIECE).min(last + 1);
            let piece = shared.content.slice(at..end);
            shared.sent_bytes.fetch_add(piece.len() as u64, Ordering::Relaxed);
            Some((Ok::<_, std::convert::Infallible>(piece), (end, shared)))
        })),
    };
    answer.body(body).expect("a valid answer")
}

/// `bytes=FIRST-[LAST]` of a file of this size.
fn parse(range: &str, size: usize) -> Option<(usize, usize)> {
    let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    let last = last.parse().unwrap_or(size - 1).min(size - 1);
    Some((first.parse().ok()?, last))
}
