//! The downloader: one URL to one file, through interruptions.
//!
//! `TARGET.part` fills; `TARGET.mark` says what it is a part of and which bytes of it are there; `TARGET` appears by a
//! rename once size and checksum are right. A large file comes in ranges over several connections; its checksum follows
//! the bytes that are there without a gap. What an earlier pull left is continued only where a checksum will prove the
//! whole; within one pull an ETag is enough.

mod partial;
mod spans;
mod transfer;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use reqwest::Url;

use crate::context::Context;
use crate::file::{self, STEP_BYTES};
use crate::http::{self, Backoff, Bearer, Http, Retry};
use crate::progress::Tracker;
use crate::room::Room;
use crate::{ModelRef, StoreError};
use partial::Partial;
use transfer::{Ended, Mode, Transfer};

/// What is downloaded.
#[derive(Clone)]
pub(crate) struct Source {
    /// For error messages.
    pub(crate) what: String,
    /// For progress: a host's name, or that of a hive.
    pub(crate) from: Arc<str>,
    pub(crate) url: Url,
    pub(crate) bearer: Option<Bearer>,
    /// Size and checksum, where the source announced them.
    pub(crate) size: Option<u64>,
    pub(crate) sha256: Option<String>,
}

/// A file whose source is known.
pub(crate) struct RemoteFile {
    /// What was asked for.
    pub(crate) reference: ModelRef,
    pub(crate) source: Source,
    /// Commit that a hub's revision stood for.
    pub(crate) commit: Option<String>,
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
    /// Connections over which one large file comes.
    pub(crate) parallel: NonZeroUsize,
    pub(crate) ranges: Ranges,
    pub(crate) max_bytes: u64,
}

/// Which files come in ranges over several connections, and in which ones.
#[derive(Clone, Copy)]
pub(crate) struct Ranges {
    /// Files larger than this.
    pub(crate) above_bytes: u64,
    /// The size of one range.
    pub(crate) bytes: u64,
}

impl Default for Ranges {
    fn default() -> Self {
        Self {
            above_bytes: 64 << 20,
            bytes: 16 << 20,
        }
    }
}

/// One file to be fetched, and where to.
pub(crate) struct Order<'a> {
    pub(crate) source: &'a Source,
    pub(crate) target: &'a Path,
    pub(crate) retry: Retry,
    /// Who is told the size where the source did not announce it: of a model that is this one file.
    pub(crate) room: Option<&'a Room>,
    /// Which part of the tracker it is.
    pub(crate) index: usize,
}

fn with_ending(target: &Path, ending: &str) -> PathBuf {
    let mut name = target.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// Removes everything that a download to this target left.
pub(crate) fn discard(target: &Path) -> Result<(), StoreError> {
    file::remove_file(target)?;
    file::remove_file(&with_ending(target, ".part"))?;
    file::remove_file(&with_ending(target, ".mark"))
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
    /// Fetches the file and reports to the tracker.
    pub(crate) async fn fetch(
        &self,
        order: &Order<'_>,
        context: &Context,
        tracker: &mut Tracker,
    ) -> Result<Fetched, StoreError> {
        let source = order.source;
        let opening = (order.target.to_path_buf(), source.clone());
        let open = move |_: &Context| Partial::open(&opening.0, &opening.1);
        let partial = context.blocking(open).await?;
        tracker.set_source(Some(Arc::clone(&source.from)));
        tracker.set(order.index, partial.done(), partial.total());
        let mut backoff = Backoff::new(order.retry);
        let transfer = Transfer::new(self, order, context, tracker, Arc::clone(&partial));
        let mut mode = self.first_mode(source);
        while !partial.is_complete() {
            let before = partial.done();
            transfer.prepare(mode).await?;
            let failure = match transfer.round(mode).await {
                Ok(()) => continue,
                Err(Ended::NoRanges) => {
                    mode = mode.simpler();
                    continue;
                }
                Err(Ended::Changed(why)) => {
                    transfer.restart().await?;
                    http::transient(http::broken(&source.url, why.to_owned()))
                }
                Err(Ended::Failed(failure)) => failure,
            };
            if partial.done() >= before + STEP_BYTES as u64 {
                backoff.reset();
            }
            let settling = Arc::clone(&partial);
            context.blocking(move |_| settling.settle()).await?;
            backoff.pause(failure, &context.cancel).await?;
        }
        transfer.tell();
        let (target, source) = (order.target.to_path_buf(), source.clone());
        context
            .blocking(move |context| partial.finish(&target, &source, context))
            .await
    }

    fn first_mode(&self, source: &Source) -> Mode {
        let is_large = source.size.is_some_and(|size| size > self.ranges.above_bytes);
        if is_large && self.parallel.get() > 1 {
            Mode::Ranges
        } else {
            Mode::Rest
        }
    }
}
