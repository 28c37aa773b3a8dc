//! Servers on loopback that misbehave on demand, and what all tests need.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use reqwest::Url;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use crate::{ModelRef, ModelStore, Peer, Progress, Retry, StoreError, StoreOptions, StoredModel, file};

pub(super) use super::wheel::Wheel;

/// What the server does to one transfer of a file, once.
#[derive(Debug, Clone)]
pub(super) enum Fault {
    /// Nothing: for the transfers before the one that is meant.
    None,
    /// Sends so many bytes, then breaks the connection.
    Cut(usize),
    /// Sends so many bytes, then nothing.
    Hang(usize),
    /// Answers with this status.
    Status(u16),
    /// Sends the whole although a range was asked for.
    IgnoreRange,
    /// Sends the range although `If-Range` does not match.
    IgnoreIfRange,
    /// Sends the range, and all that follows it.
    Longer,
    /// Does not say how much it sends.
    NoLength,
    /// Sends this in place of the file.
    Other(Vec<u8>),
}

/// A request as the server saw it.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) range: Option<String>,
    pub(super) authorization: Option<String>,
}

/// What lies under one path.
#[derive(Clone)]
enum Page {
    File {
        content: Bytes,
        etag: Option<String>,
    },
    Html(String),
    /// Answer of a hub: headers of the linked file, and where it is.
    Linked {
        headers: HeaderMap,
        location: String,
    },
    Status(u16),
}

#[derive(Default)]
struct Site {
    pages: Vec<(String, Page)>,
    faults: VecDeque<Fault>,
    /// Whether all transfers ignore ranges.
    ignores_ranges: bool,
    /// Whether files are given and not described.
    refuses_head: bool,
    seen: Vec<Seen>,
}

/// A server on its own port; the port makes it an origin of its own.
#[derive(Clone)]
pub(super) struct Server {
    pub(super) url: String,
    site: Arc<Mutex<Site>>,
}

impl Server {
    pub(super) async fn start() -> Self {
        let site = Arc::new(Mutex::new(Site::default()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(answer).with_state(Arc::clone(&site));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, site }
    }

    fn put(&self, path: &str, page: Page) {
        let mut site = self.site.lock().unwrap();
        site.pages.retain(|(known, _)| known != path);
        site.pages.push((path.to_owned(), page));
    }

    pub(super) fn file(&self, path: &str, content: &[u8], etag: Option<&str>) {
        let etag = etag.map(|etag| format!("\"{etag}\""));
        self.put(
            path,
            Page::File {
                content: Bytes::copy_from_slice(content),
                etag,
            },
        );
    }

    /// What the hub answers when it is asked for the files of `org/repo`.
    pub(super) fn listing(&self, json: &str) {
        self.put("/api/models/org/repo/revision/main", Page::Html(json.to_owned()));
    }

    pub(super) fn status(&self, path: &str, status: u16) {
        self.put(path, Page::Status(status));
    }

    /// A file of a hub: described at every revision path given, kept at `location`.
    pub(super) fn linked(&self, paths: &[&str], sha256: Option<&str>, size: usize, location: &str) {
        let mut headers = HeaderMap::new();
        headers.insert("x-repo-commit", COMMIT.parse().unwrap());
        headers.insert("x-linked-size", size.to_string().parse().unwrap());
        if let Some(sha256) = sha256 {
            headers.insert("x-linked-etag", format!("\"{sha256}\"").parse().unwrap());
        }
        for path in paths {
            self.put(
                path,
                Page::Linked {
                    headers: headers.clone(),
                    location: location.to_owned(),
                },
            );
        }
    }

    /// A page of a package index with one wheel, and the wheel.
    pub(super) fn wheel(&self, package: &str, wheel: &Wheel) {
        let path = format!("/files/{}", wheel.file_name);
        let link = format!(
            "<a href=\"{path}#sha256={}\">{}</a>",
            sha256(&wheel.content),
            wheel.file_name
        );
        self.put(
            &format!("/simple/{package}/"),
            Page::Html(format!("<!DOCTYPE html><html><body>{link}</body></html>")),
        );
        self.file(&path, &wheel.content, Some("wheel"));
    }

    /// What a hive serves that has this model, made of these files.
    pub(super) fn hive_model(&self, reference: &ModelRef, files: &[(&str, &[u8])], revision: Option<&str>) {
        let path = format!("/v1/models/{}", reference.model_id().as_str().replace('/', "%2F"));
        let base = Url::parse(&format!("{}{path}", self.url)).unwrap();
        let asked = |path: &str, names: &[(&str, &str)]| {
            let mut url = base.join(path).unwrap();
            url.query_pairs_mut()
                .append_pair("reference", &reference.to_string())
                .extend_pairs(names);
            format!("{}?{}", url.path(), url.query().unwrap())
        };
        let entries = files.iter().map(|(name, content)| {
            self.file(&asked(&format!("{path}/file"), &[("name", name)]), content, None);
            serde_json::json!({"name": name, "size_bytes": content.len(), "sha256": sha256(content)})
        });
        let detail = serde_json::json!({
            "id": reference.model_id(),
            "reference": reference,
            "size_bytes": files.iter().map(|(_, content)| content.len()).sum::<usize>(),
            "revision": revision,
            "files": entries.collect::<Vec<_>>(),
        });
        self.put(&asked(&path, &[]), Page::Html(detail.to_string()));
    }

    /// The hive as it is told to a pull.
    pub(super) fn peer(&self, name: &str) -> Peer {
        Peer {
            name: name.to_owned(),
            base_url: self.url.clone(),
            token: None,
        }
    }

    pub(super) fn fault(&self, fault: Fault) {
        self.site.lock().unwrap().faults.push_back(fault);
    }

    /// From now on, every transfer sends the whole.
    pub(super) fn without_ranges(&self) {
        self.site.lock().unwrap().ignores_ranges = true;
    }

    pub(super) fn refuse_head(&self) {
        self.site.lock().unwrap().refuses_head = true;
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.site.lock().unwrap().seen.clone()
    }

    /// Transfers of files: where each began.
    pub(super) fn transfers(&self) -> Vec<u64> {
        let mut seen = self.seen();
        let is_file = |path: &str| path.starts_with("/files/") || path == "/blob";
        seen.retain(|seen| seen.method == Method::GET && is_file(&seen.path));
        seen.into_iter()
            .map(|seen| seen.range.map_or(0, |range| span(&range).0))
            .collect()
    }
}

/// Start and, where it says one, the end behind the last byte of `bytes=START-LAST`.
pub(super) fn span(range: &str) -> (u64, Option<u64>) {
    let (start, last) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
    let end = Some(last).filter(|last| !last.is_empty());
    (start.parse().unwrap(), end.map(|last| last.parse::<u64>().unwrap() + 1))
}

async fn answer(State(site): State<Arc<Mutex<Site>>>, request: Request) -> Response {
    let text = |name: header::HeaderName| request.headers().get(name).map(|v| v.to_str().unwrap().to_owned());
    let (range, if_range) = (text(header::RANGE), text(header::IF_RANGE));
    let path = request.uri().path().to_owned();
    let mut site = site.lock().unwrap();
    site.seen.push(Seen {
        method: request.method().clone(),
        path: path.clone(),
        range: range.clone(),
        authorization: text(header::AUTHORIZATION),
    });
    let whole = request.uri().to_string();
    let is_meant = |known: &String| *known == path || *known == whole;
    let Some((_, page)) = site.pages.iter().find(|(known, _)| is_meant(known)).cloned() else {
        return StatusCode::NOT_FOUND.into_response();
    };
    match page {
        Page::Html(html) => ([(header::CONTENT_TYPE, "text/html")], html).into_response(),
        Page::Status(status) => StatusCode::from_u16(status).unwrap().into_response(),
        Page::Linked { headers, location } => {
            (StatusCode::FOUND, headers, [(header::LOCATION, location)]).into_response()
        }
        Page::File { .. } if site.refuses_head && request.method() == Method::HEAD => {
            StatusCode::METHOD_NOT_ALLOWED.into_response()
        }
        Page::File { content, etag } => {
            let fault = if request.method() == Method::GET {
                site.faults.pop_front()
            } else {
                None
            };
            let fault = fault.or(site.ignores_ranges.then_some(Fault::IgnoreRange));
            let content = if let Some(Fault::Other(other)) = &fault {
                Bytes::copy_from_slice(other)
            } else {
                content
            };
            transfer(&content, etag, range, if_range.as_ref(), fault.as_ref())
        }
    }
}

fn transfer(
    content: &Bytes,
    etag: Option<String>,
    range: Option<String>,
    if_range: Option<&String>,
    fault: Option<&Fault>,
) -> Response {
    if let Some(Fault::Status(status)) = fault {
        return StatusCode::from_u16(*status).unwrap().into_response();
    }
    let matches = if_range.is_none() || if_range == etag.as_ref() || matches!(fault, Some(Fault::IgnoreIfRange));
    let range = range.filter(|_| matches && !matches!(fault, Some(Fault::IgnoreRange)));
    let range = range.map(|range| span(&range));
    let start = range.map(|(start, _)| start as usize);
    let total = content.len();
    let mut response = Response::builder();
    if let Some(etag) = etag {
        response = response.header(header::ETAG, etag);
    }
    if start.is_some_and(|start| start >= total) {
        let response = response.status(StatusCode::RANGE_NOT_SATISFIABLE);
        return response
            .header(header::CONTENT_RANGE, format!("bytes */{total}"))
            .body(Body::empty())
            .unwrap();
    }
    let end = range
        .and_then(|(_, end)| end)
        .filter(|_| !matches!(fault, Some(Fault::Longer)))
        .map_or(total, |end| total.min(end as usize));
    if let Some(start) = start {
        response = response.status(StatusCode::PARTIAL_CONTENT);
        response = response.header(header::CONTENT_RANGE, format!("bytes {start}-{}/{total}", end - 1));
    }
    let body = content.slice(start.unwrap_or(0)..end);
    if !matches!(fault, Some(Fault::NoLength)) {
        response = response.header(header::CONTENT_LENGTH, body.len());
    }
    let pieces = |bytes: Bytes| {
        let pieces: Vec<_> = bytes
            .chunks(64 << 10)
            .map(|piece| Ok(Bytes::copy_from_slice(piece)))
            .collect();
        stream::iter(pieces)
    };
    let body = match fault {
        Some(Fault::Cut(after)) => {
            // A body that has nothing to give for once makes the server send what it holds back.
            let pause = stream::once(tokio::task::yield_now()).filter_map(async |()| None);
            let broken = stream::once(async { Err(std::io::Error::other("cut by the test")) });
            Body::from_stream(pieces(body.slice(..body.len().min(*after))).chain(pause).chain(broken))
        }
        Some(Fault::Hang(after)) => {
            Body::from_stream(pieces(body.slice(..body.len().min(*after))).chain(stream::pending()))
        }
        _ => {
            Body::from_stream(pieces(body).map(|piece: Result<_, std::io::Error>| Ok::<_, Infallible>(piece.unwrap())))
        }
    };
    response.body(body).unwrap()
}

/// Commit of every repository of the test hub.
pub(super) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A hub whose files lie on another origin, as the public one's do.
pub(super) struct TestHub {
    pub(super) hub: Server,
    pub(super) cdn: Server,
}

impl TestHub {
    /// The only file: `hf:org/repo/m.gguf`.
    pub(super) async fn with(content: &[u8], etag: Option<&str>, sha256: Option<&str>) -> Self {
        let (hub, cdn) = (Server::start().await, Server::start().await);
        let pinned = format!("/org/repo/resolve/{COMMIT}/m.gguf");
        let location = format!("{}/blob?signature=secret", cdn.url);
        hub.linked(
            &["/org/repo/resolve/main/m.gguf", &pinned],
            sha256,
            content.len(),
            &location,
        );
        cdn.file("/blob", content, etag);
        Self { hub, cdn }
    }

    /// A repository `hf:org/repo` of these files. Weights lie on the other origin, all else on the hub itself.
    pub(super) async fn repository(files: &[(&str, &[u8])]) -> Self {
        let test = Self {
            hub: Server::start().await,
            cdn: Server::start().await,
        };
        let names = files.iter().map(|(name, _)| serde_json::json!({"rfilename": name}));
        let listing = serde_json::json!({"id": "org/repo", "sha": COMMIT, "siblings": names.collect::<Vec<_>>()});
        test.hub.listing(&listing.to_string());
        for (name, content) in files {
            let path = format!("/org/repo/resolve/{COMMIT}/{name}");
            if name.ends_with(".safetensors") {
                let location = format!("{}/files/{name}?signature=secret", test.cdn.url);
                test.hub
                    .linked(&[&path], Some(&sha256(content)), content.len(), &location);
                test.cdn.file(&format!("/files/{name}"), content, Some(name));
            } else {
                // What the hub gives as the ETag of a small file is a git hash.
                test.hub
                    .file(&path, content, Some("4f2e9bd1c7f1b2c34a5f66a3e5d2c1b0a9f8e7d6"));
            }
        }
        test
    }

    pub(super) fn options(&self) -> StoreOptions {
        StoreOptions {
            hub_endpoint: self.hub.url.clone(),
            ..options()
        }
    }
}

pub(super) fn reference() -> ModelRef {
    "hf:org/repo/m.gguf".parse().unwrap()
}

/// Options that neither wait long nor see anything of this machine's pip configuration.
pub(super) fn options() -> StoreOptions {
    let set = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    StoreOptions {
        retry: Retry {
            attempts: 3,
            first_pause: Duration::from_millis(1),
        },
        pip_env: vec![
            set("PIP_CONFIG_FILE", "/dev/null"),
            set("PIP_FIND_LINKS", ""),
            set("PIP_RETRIES", "0"),
            set("PIP_RESUME_RETRIES", "0"),
        ],
        ..StoreOptions::default()
    }
}

pub(super) fn with_find_links(folder: &Path) -> StoreOptions {
    let mut options = options();
    options.pip_env.push(("PIP_NO_INDEX".to_owned(), "1".to_owned()));
    options
        .pip_env
        .push(("PIP_FIND_LINKS".to_owned(), folder.display().to_string()));
    options
}

pub(super) fn with_index(server: &Server) -> StoreOptions {
    let mut options = options();
    options
        .pip_env
        .push(("PIP_INDEX_URL".to_owned(), format!("{}/simple/", server.url)));
    options
}

/// A Python that finds this script when it looks for pip.
pub(super) fn with_pip(script: &str, folder: &Path) -> StoreOptions {
    let mut options = options();
    std::fs::create_dir(folder.join("pip")).unwrap();
    std::fs::write(folder.join("pip/__init__.py"), "").unwrap();
    std::fs::write(folder.join("pip/__main__.py"), script).unwrap();
    options
        .pip_env
        .push(("PYTHONPATH".to_owned(), folder.display().to_string()));
    options
}

/// Bytes that do not repeat and hardly compress.
pub(super) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut next = move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..len).map(|_| next()).collect()
}

pub(super) fn sha256(content: &[u8]) -> String {
    file::hex(&Sha256::digest(content))
}

/// A progress callback that keeps what it hears.
pub(super) fn listen() -> (Arc<Mutex<Vec<Progress>>>, impl Fn(Progress) + Send + Sync + 'static) {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let keep = Arc::clone(&heard);
    (heard, move |progress| keep.lock().unwrap().push(progress))
}

pub(super) async fn pull(store: &ModelStore, reference: &ModelRef) -> Result<StoredModel, StoreError> {
    store.pull(reference, |_| (), &CancellationToken::new()).await
}

/// Pulls and cancels once `when` says so of the progress.
pub(super) async fn pull_until(
    store: &ModelStore,
    reference: &ModelRef,
    when: impl Fn(&Progress) -> bool + Send + Sync + 'static,
) -> Result<StoredModel, StoreError> {
    let cancel = CancellationToken::new();
    let trigger = cancel.clone();
    let watch = move |progress: Progress| {
        if when(&progress) {
            trigger.cancel();
        }
    };
    store.pull(reference, watch, &cancel).await
}

/// All files under a folder, without lock files.
pub(super) fn files_under(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != ".locks") {
                found.extend(files_under(&path));
            }
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}
