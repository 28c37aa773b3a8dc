//! `GET /` and `GET /dashboard/{path}`: the dashboard, embedded in the program.
//!
//! Its files hold no data, so that nobody needs a token to read them; what they show, they ask the guarded endpoints for.
//! A browser keeps them and asks each time whether they changed: a queen of another version never meets old files.

use std::sync::Arc;

use axum::Router;
use axum::extract::Path;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use daemon::ApiError;
use http::{HeaderMap, HeaderName, StatusCode, header};
use rust_embed::{Embed, EmbeddedFile};
use shared_contract::ErrorKind;

use crate::State;

/// Only what this queen serves runs in the page and is asked by it; nothing embeds it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// Bytes of a checksum that are enough to tell two versions of a file apart.
const TAG_BYTES: usize = 12;

#[derive(Embed)]
#[folder = "dashboard/"]
struct Files;

/// The page and its files.
pub(super) fn routes() -> Router<Arc<State>> {
    Router::new()
        .route("/", get(page))
        .route("/dashboard/{*path}", get(file))
}

async fn page(headers: HeaderMap) -> Result<Response, ApiError> {
    answer("index.html", &headers)
}

async fn file(Path(path): Path<String>, headers: HeaderMap) -> Result<Response, ApiError> {
    answer(&path, &headers)
}

fn answer(path: &str, request: &HeaderMap) -> Result<Response, ApiError> {
    let file = Files::get(path)
        .ok_or_else(|| ApiError::new(ErrorKind::NotFound, format!("the dashboard has no file {path}")))?;
    let tag = entity_tag(&file);
    let headers: [(HeaderName, &str); 6] = [
        (header::ETAG, &tag),
        (header::CACHE_CONTROL, "no-cache"),
        (header::CONTENT_TYPE, content_type(path)),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    if knows(request, &tag) {
        return Ok((StatusCode::NOT_MODIFIED, headers).into_response());
    }
    Ok((headers, file.data).into_response())
}

/// Names the file's content.
fn entity_tag(file: &EmbeddedFile) -> String {
    let checksum = file.metadata.sha256_hash();
    let digits: String = checksum[..TAG_BYTES].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("\"{digits}\"")
}

/// Whether the asker has this content already. A proxy that compresses may have made the tag a weak one.
fn knows(request: &HeaderMap, tag: &str) -> bool {
    let lists = request.get_all(header::IF_NONE_MATCH);
    let mut tags = lists
        .iter()
        .filter_map(|list| list.to_str().ok())
        .flat_map(|list| list.split(','))
        .map(str::trim);
    tags.any(|known| known == "*" || known.strip_prefix("W/").unwrap_or(known) == tag)
}

fn content_type(path: &str) -> &'static str {
    match path.rsplit('.').next() {
        Some("html") => "text/html; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("svg") => "image/svg+xml",
        _ => "text/plain; charset=utf-8",
    }
}
