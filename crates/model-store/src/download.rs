//! The downloader: one URL to one file, through interruptions.
//!
//! `TARGET.part` grows; `TARGET.mark` says what it is a part of; `TARGET` appears by a rename once size and checksum are
//! right. What an earlier pull left is continued only where a checksum will prove the whole; within one pull an ETag is
//! enough.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use reqwest::header::{
    ACCEPT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, HeaderName, HeaderValue, IF_RANGE, RANGE,
};
use reqwest::{Method, Response, StatusCode, Url};
use serde::{Deserialize, Serialize};

use crate::StoreError;
use crate::context::Context;
use crate::file::{self, HashingFile, STEP_BYTES};
use crate::http::{self, Backoff, Bearer, Failure, Http, Request, Retry};
use crate::progress::Tracker;

/// What is downloaded.
#[derive(Clone)]
pub(crate) struct Source {
    /// For error messages.
    pub(crate) what: String,
    pub(crate) url: Url,
    pub(crate) bearer: Option<Bearer>,
    /// Size and checksum, where the source announced them.
    pub(crate) size: Option<u64>,
    pub(crate) sha256: Option<String>,
}

/// What came.
pub(crate) struct Fetched {
    pub(crate) size: u64,
    pub(crate) sha256: String,
}

/// Limits and client of a store's downloads.
pub(crate) struct Downloader {
    pub(crate) http: Http,
    pub(crate) retry: Retry,
    pub(crate) max_bytes: u64,
}

/// What a partial file is a part of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    sha256: Option<String>,
    etag: Option<String>,
    total: Option<u64>,
}

/// A file on its way. The mutex only lends it to the blocking pool: nobody ever waits for it.
struct Partial {
    file: Arc<Mutex<HashingFile>>,
    len: u64,
    mark: Mark,
    mark_path: PathBuf,
}

fn with_ending(target: &Path, ending: &str) -> PathBuf {
    let mut name = target.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

fn lend(file: &Mutex<HashingFile>) -> MutexGuard<'_, HashingFile> {
    file.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes everything that a download to this target left.
pub(crate) fn discard(target: &Path) -> Result<(), StoreError> {
    file::remove_file(target)?;
    file::remove_file(&with_ending(target, ".part"))?;
    file::remove_file(&with_ending(target, ".mark"))
}

impl Partial {
    /// Opens what there is, or begins. Reads the kept bytes, so that the checksum covers them.
    fn open(target: &Path, sha256: Option<&String>, context: &Context) -> Result<Self, StoreError> {
        let (part, mark_path) = (with_ending(target, ".part"), with_ending(target, ".mark"));
        if target.exists() {
            // An earlier pull got as far as the rename; this one proves its checksum again.
            file::rename(target, &part)?;
        }
        let mark = file::read_json::<Mark>(&mark_path)?.filter(|m| m.sha256.is_some() && m.sha256.as_ref() == sha256);
        let keep = if mark.is_some() { u64::MAX } else { 0 };
        let file = HashingFile::open(&part, keep, |_| context.check())?;
        let (len, file) = (file.len(), Arc::new(Mutex::new(file)));
        Ok(Self {
            file,
            len,
            mark: mark.unwrap_or_default(),
            mark_path,
        })
    }

    async fn restart(&mut self, context: &Context) -> Result<(), StoreError> {
        let file = Arc::clone(&self.file);
        self.len = 0;
        self.mark = Mark::default();
        context.blocking(move |_| lend(&file).clear()).await
    }

    /// Keeps on disk what the bytes that follow are a part of, before they come.
    async fn set_mark(&mut self, mark: Mark, context: &Context) -> Result<(), StoreError> {
        if self.mark != mark {
            self.mark = mark.clone();
            let path = self.mark_path.clone();
            context.blocking(move |_| file::write_json(&path, &mark)).await?;
        }
        Ok(())
    }

    async fn append(&mut self, bytes: Vec<u8>, context: &Context) -> Result<(), StoreError> {
        let file = Arc::clone(&self.file);
        let write = move |_: &Context| {
            let mut file = lend(&file);
            file.append(&bytes)?;
            Ok(file.len())
        };
        self.len = context.blocking(write).await?;
        Ok(())
    }

    fn is_complete(&self) -> bool {
        self.mark.total == Some(self.len)
    }

    /// Compares with what was announced and gives the file its name.
    fn finish(&self, target: &Path, source: &Source) -> Result<Fetched, StoreError> {
        let file = lend(&self.file);
        let (size, found) = (file.len(), file.sha256());
        check(&source.what, (source.size, source.sha256.as_ref()), (size, &found)).or_else(|error| {
            discard(target)?;
            Err(error)
        })?;
        file.sync()?;
        file::rename(file.path(), target)?;
        Ok(Fetched { size, sha256: found })
    }
}

/// Compares size and checksum with those that are known beforehand.
pub(crate) fn check(
    what: &str,
    (expected_size, expected_sha256): (Option<u64>, Option<&String>),
    (size, sha256): (u64, &str),
) -> Result<(), StoreError> {
    if let Some(expected) = expected_size.filter(|expected| *expected != size) {
        return Err(StoreError::WrongSize {
            what: what.to_owned(),
            expected,
            found: size,
        });
    }
    if let Some(expected) = expected_sha256.filter(|expected| *expected != sha256) {
        let (what, expected, found) = (what.to_owned(), expected.clone(), sha256.to_owned());
        return Err(StoreError::WrongChecksum { what, expected, found });
    }
    Ok(())
}

impl Downloader {
    /// Fetches `source` to `target` and reports as part `index` of the tracker.
    pub(crate) async fn fetch(
        &self,
        source: &Source,
        target: &Path,
        context: &Context,
        tracker: &mut Tracker,
        index: usize,
    ) -> Result<Fetched, StoreError> {
        let (path, sha256) = (target.to_path_buf(), source.sha256.clone());
        let mut partial = context
            .blocking(move |context| Partial::open(&path, sha256.as_ref(), context))
            .await?;
        let mut backoff = Backoff::new(self.retry);
        let mut transfer = Transfer {
            downloader: self,
            source,
            context,
            tracker,
            index,
        };
        while !partial.is_complete() {
            let before = partial.len;
            match transfer.attempt(&mut partial).await {
                Ok(()) => break,
                Err(failure) => {
                    if partial.len >= before + STEP_BYTES as u64 {
                        backoff.reset();
                    }
                    backoff.pause(failure, &context.cancel).await?;
                }
            }
        }
        tracker.set(index, partial.len, Some(partial.len));
        let (target, source) = (target.to_path_buf(), source.clone());
        context.blocking(move |_| partial.finish(&target, &source)).await
    }
}

/// One download at work.
struct Transfer<'a> {
    downloader: &'a Downloader,
    source: &'a Source,
    context: &'a Context,
    tracker: &'a mut Tracker,
    index: usize,
}

impl Transfer<'_> {
    /// One request and its body: `Ok` once the server has sent all it has.
    async fn attempt(&mut self, partial: &mut Partial) -> Result<(), Failure> {
        // Without a checksum, only an ETag tells whether the rest belongs to the beginning.
        let provable = self.source.sha256.is_some() || strong(partial.mark.etag.as_ref()).is_some();
        if partial.len > 0 && !provable {
            partial.restart(self.context).await?;
        }
        let request = Request {
            method: Method::GET,
            url: &self.source.url,
            headers: range_headers(partial),
            bearer: self.source.bearer.as_ref(),
            leave_origin: true,
        };
        let response = tokio::select! {
            () = self.context.cancel.cancelled() => return Err(StoreError::Cancelled.into()),
            response = self.downloader.http.send(&request) => response?,
        };
        let total = match response.status() {
            StatusCode::PARTIAL_CONTENT => match continued(partial, response.headers()) {
                Some(total) => total,
                None => return Err(self.start_over(partial, "the file changed on the server").await),
            },
            StatusCode::RANGE_NOT_SATISFIABLE => {
                if partial.len > 0 && unsatisfied_total(response.headers()) == Some(partial.len) {
                    return Ok(());
                }
                return Err(self.start_over(partial, "the server refused to continue").await);
            }
            _ => {
                if partial.len > 0 {
                    partial.restart(self.context).await?;
                }
                number(response.headers(), &CONTENT_LENGTH)
            }
        };
        let announced = total.or(self.source.size).unwrap_or(0);
        if let (Some(expected), Some(found)) = (self.source.size, total)
            && expected != found
        {
            return Err(StoreError::WrongSize {
                what: self.source.what.clone(),
                expected,
                found,
            }
            .into());
        }
        if announced > self.downloader.max_bytes {
            return Err(self.too_large(self.downloader.max_bytes).into());
        }
        let mark = Mark {
            sha256: self.source.sha256.clone(),
            etag: text(response.headers(), &ETAG),
            total,
        };
        partial.set_mark(mark, self.context).await?;
        self.body(response, partial).await
    }

    async fn body(&mut self, mut response: Response, partial: &mut Partial) -> Result<(), Failure> {
        let total = partial.mark.total.or(self.source.size);
        let limit = total.unwrap_or(self.downloader.max_bytes);
        let mut buffer = Vec::with_capacity(STEP_BYTES);
        self.tracker.set(self.index, partial.len, total);
        let end = loop {
            let chunk = tokio::select! {
                () = self.context.cancel.cancelled() => break Err(StoreError::Cancelled.into()),
                chunk = tokio::time::timeout(self.downloader.http.read_timeout(), response.chunk()) => chunk,
            };
            match chunk {
                Ok(Ok(Some(bytes))) => {
                    if partial.len + (buffer.len() + bytes.len()) as u64 > limit {
                        partial.restart(self.context).await?;
                        return Err(self.too_large(limit).into());
                    }
                    buffer.extend_from_slice(&bytes);
                }
                Ok(Ok(None)) => break Ok(()),
                Ok(Err(error)) => break Err(http::broken_off(&self.source.url, &error)),
                Err(_) => break Err(http::transient(self.downloader.http.silent(&self.source.url))),
            }
            if buffer.len() >= STEP_BYTES {
                let full = std::mem::replace(&mut buffer, Vec::with_capacity(STEP_BYTES));
                partial.append(full, self.context).await?;
                self.tracker.set(self.index, partial.len, total);
            }
        };
        // What arrived before a failure or a cancellation is kept, too.
        partial.append(buffer, self.context).await?;
        self.tracker.set(self.index, partial.len, total);
        if end.is_ok() && total.is_some_and(|total| partial.len < total) {
            return Err(http::transient(http::broken(
                &self.source.url,
                "the server ended too early".to_owned(),
            )));
        }
        end
    }

    /// Throws the beginning away; the next attempt asks for the whole.
    async fn start_over(&self, partial: &mut Partial, why: &str) -> Failure {
        match partial.restart(self.context).await {
            Ok(()) => http::transient(http::broken(&self.source.url, why.to_owned())),
            Err(error) => error.into(),
        }
    }

    fn too_large(&self, limit_bytes: u64) -> StoreError {
        StoreError::TooLarge {
            what: self.source.what.clone(),
            limit_bytes,
        }
    }
}

fn range_headers(partial: &Partial) -> HeaderMap {
    let mut headers = HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static("identity"))]);
    if partial.len > 0 {
        let range = format!("bytes={}-", partial.len);
        headers.insert(RANGE, HeaderValue::try_from(range).expect("digits are a valid header"));
        if let Some(etag) = strong(partial.mark.etag.as_ref()).and_then(|etag| HeaderValue::from_str(etag).ok()) {
            headers.insert(IF_RANGE, etag);
        }
    }
    headers
}

/// The total of a 206 answer that continues this very file: `Some(None)` where the server does not say it.
fn continued(partial: &Partial, headers: &HeaderMap) -> Option<Option<u64>> {
    let range = text(headers, &CONTENT_RANGE)?;
    let (span, total) = range.strip_prefix("bytes ")?.split_once('/')?;
    let start: u64 = span.split_once('-')?.0.parse().ok()?;
    let total: Option<u64> = total.parse().ok();
    let etag = text(headers, &ETAG);
    let unchanged = |old: Option<&String>, new: Option<&String>| old.is_none() || new.is_none() || old == new;
    let same_size = partial.mark.total.is_none() || total.is_none() || partial.mark.total == total;
    (start == partial.len && same_size && unchanged(partial.mark.etag.as_ref(), etag.as_ref()))
        .then_some(total.or(partial.mark.total))
}

/// The size that a 416 answer gives: `bytes */SIZE`.
fn unsatisfied_total(headers: &HeaderMap) -> Option<u64> {
    text(headers, &CONTENT_RANGE)?.strip_prefix("bytes */")?.parse().ok()
}

fn strong(etag: Option<&String>) -> Option<&String> {
    etag.filter(|etag| etag.starts_with('"'))
}

fn text(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

fn number(headers: &HeaderMap, name: &HeaderName) -> Option<u64> {
    text(headers, name)?.trim().parse().ok()
}
