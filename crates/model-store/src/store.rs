//! The store itself: a folder of models and what can be asked of it.
//!
//! ```text
//! ROOT/NAME/manifest.json         a finished model; NAME follows from the reference
//! ROOT/NAME/files/FILE            one, or all of a repository
//! ROOT/.work/NAME/                downloads and parts of a pull, kept when it is interrupted
//! ROOT/.locks/NAME                held while a pull of this model is at work
//! ```

use std::env;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use shared_contract::ModelId;
use tokio_util::sync::CancellationToken;

use crate::context::{Context, blocking};
use crate::download::Downloader;
use crate::http::Http;
use crate::hub::Hub;
use crate::pip::Pip;
use crate::progress::Report;
use crate::pull::{Pull, Sources};
use crate::{
    Catalogue, CataloguePart, FileRef, ModelRef, Phase, Progress, Retry, StoreError, file, manifest, reference,
    repository,
};

/// Longest readable piece of a model folder's name, in bytes.
const MAX_READABLE_BYTES: usize = 100;

/// How a store reaches its sources.
#[derive(Clone)]
pub struct StoreOptions {
    /// The Python whose pip fetches wheels.
    pub python: String,
    /// Variables set for pip on top of this process's own, for example `PIP_INDEX_URL`.
    pub pip_env: Vec<(String, String)>,
    /// Address of the hub for `hf:` references.
    pub hub_endpoint: String,
    /// Token for it; sent to that address only.
    pub hub_token: Option<String>,
    /// How failed transfers from the hub are tried again; pip has settings of its own.
    pub retry: Retry,
    /// Longest silence of the hub.
    pub read_timeout: Duration,
    /// Largest file that is taken.
    pub max_file_bytes: u64,
}

impl Default for StoreOptions {
    /// `python3`, the public hub without a token, 5 tries, 60 s of silence, 1 TiB.
    fn default() -> Self {
        Self {
            python: "python3".to_owned(),
            pip_env: Vec::new(),
            hub_endpoint: "https://huggingface.co".to_owned(),
            hub_token: None,
            retry: Retry::default(),
            read_timeout: Duration::from_secs(60),
            max_file_bytes: 1 << 40,
        }
    }
}

impl StoreOptions {
    /// The defaults, changed by `RBEE_PYTHON`, `HF_ENDPOINT` and `HF_TOKEN`.
    pub fn from_env() -> Self {
        let defaults = Self::default();
        Self {
            python: variable("RBEE_PYTHON").unwrap_or(defaults.python),
            hub_endpoint: variable("HF_ENDPOINT").unwrap_or(defaults.hub_endpoint),
            hub_token: variable("HF_TOKEN"),
            ..defaults
        }
    }
}

impl fmt::Debug for StoreOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The token and pip's variables, which can hold passwords, stay out of logs.
        f.debug_struct("StoreOptions")
            .field("python", &self.python)
            .field("hub_endpoint", &self.hub_endpoint)
            .field("retry", &self.retry)
            .field("read_timeout", &self.read_timeout)
            .field("max_file_bytes", &self.max_file_bytes)
            .finish_non_exhaustive()
    }
}

fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.trim().is_empty())
}

/// The folder used unless another is named: `$RBEE_MODELS`, `$XDG_CACHE_HOME/rbee/models`, or `~/.cache/rbee/models`.
pub fn default_root() -> Result<PathBuf, StoreError> {
    root_from(|name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from))
}

fn root_from(variable: impl Fn(&str) -> Option<PathBuf>) -> Result<PathBuf, StoreError> {
    if let Some(root) = variable("RBEE_MODELS") {
        return Ok(root);
    }
    // A relative XDG path is to be ignored, says that standard.
    let cache = variable("XDG_CACHE_HOME").filter(|path| path.is_absolute());
    let cache = cache.or_else(|| variable("HOME").map(|home| home.join(".cache")));
    Ok(cache.ok_or(StoreError::NoRoot)?.join("rbee").join("models"))
}

/// A model that can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredModel {
    /// As clients name it.
    pub id: ModelId,
    /// As `pull` was asked for it.
    pub reference: ModelRef,
    /// The file; of a repository, the folder with its files.
    pub path: PathBuf,
    /// Its size; of a folder, that of all files that belong to the model.
    pub size_bytes: u64,
    /// Its checksum; of a repository, the one of a list of its files' checksums. `None` for a `file:` reference, which
    /// is not read.
    pub sha256: Option<String>,
}

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
    root: PathBuf,
    catalogue: Catalogue,
    sources: Sources,
}

impl fmt::Debug for ModelStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelStore")
            .field("root", &self.inner.root)
            .finish_non_exhaustive()
    }
}

impl ModelStore {
    /// Opens the folder, and makes it where there is none, with options from the environment.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, StoreError> {
        Self::open_with(root, StoreOptions::from_env())
    }

    /// Opens the folder, and makes it where there is none.
    pub fn open_with(root: impl Into<PathBuf>, options: StoreOptions) -> Result<Self, StoreError> {
        Self::with_catalogue(root, options, Catalogue::built_in())
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
                root,
                catalogue,
                sources,
            }),
        })
    }

    /// The folder, absolute.
    pub fn root(&self) -> &Path {
        &self.inner.root
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
                size_bytes: Some(entry.size_bytes),
                sha256: Some(entry.sha256.clone()),
                parts: entry.parts.clone(),
            });
        }
        let file_name = reference.file_name().unwrap_or(id.as_str()).to_owned();
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
            sha256: None,
            parts,
        })
    }

    /// All finished models in the folder, by id. Models of `file:` references are not among them.
    pub async fn list(&self) -> Result<Vec<StoredModel>, StoreError> {
        let root = self.inner.root.clone();
        blocking(move || {
            let fail = |source| StoreError::io("list", &root, source);
            let mut models = Vec::new();
            for entry in fs::read_dir(&root).map_err(fail)? {
                let folder = entry.map_err(fail)?.path();
                let hidden = folder
                    .file_name()
                    .is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
                if !hidden && let Some(manifest) = manifest::read(&folder)? {
                    models.push(manifest.stored_in(&folder));
                }
            }
            models.sort_by(|a, b| (&a.id, &a.reference).cmp(&(&b.id, &b.reference)));
            Ok(models)
        })
        .await
    }

    /// The model, if it is here and whole as far as its size tells; `None` means that [`Self::pull`] has work to do.
    pub async fn get(&self, reference: &ModelRef) -> Result<Option<StoredModel>, StoreError> {
        let model = self.resolve(reference)?;
        self.find(&model).await
    }

    async fn find(&self, model: &Resolved) -> Result<Option<StoredModel>, StoreError> {
        if let ModelRef::File(file) = &model.reference {
            let (file, model) = (file.clone(), model.clone());
            return blocking(move || match in_place(&file, &model) {
                Err(StoreError::NotAFile { .. }) => Ok(None),
                other => other.map(Some),
            })
            .await;
        }
        let folder = self.folder(&model.reference);
        let (reference, pinned) = (model.reference.clone(), model.sha256.clone());
        blocking(move || {
            let manifest = manifest::read(&folder)?.filter(|m| m.reference == reference);
            // A newer program can pin another file under the same name.
            let manifest = manifest.filter(|m| pinned.is_none_or(|sha256| sha256 == m.sha256));
            Ok(manifest.map(|manifest| manifest.stored_in(&folder)))
        })
        .await
    }

    /// Gives the model, and fetches it first if it is not here.
    ///
    /// Two pulls of one model, in one process or in several, share the work: the second waits for the first. `progress`
    /// is called from any thread and must return quickly. After a cancellation, a dropped future, an error or a crash,
    /// the next pull goes on where this one ended, as far as a checksum can prove the result; a wheel that was not whole
    /// is fetched anew.
    pub async fn pull(
        &self,
        reference: &ModelRef,
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
        if let Some(stored) = self.find(&model).await? {
            return Ok(done(stored, &report));
        }
        // Work on the blocking pool ends soon after this future is dropped.
        let cancel = cancel.child_token();
        let _ends_with_this = cancel.clone().drop_guard();
        let (name, locks) = (folder_name(&model.reference), self.inner.root.join(".locks"));
        file::make_dir(&locks)?;
        let context = Context::acquire(&locks.join(&name), cancel, Arc::clone(&report)).await?;
        if let Some(stored) = self.find(&model).await? {
            return Ok(done(stored, &report));
        }
        let work = self.inner.root.join(".work").join(&name);
        let target = self.inner.root.join(&name);
        let pull = Pull {
            sources: &self.inner.sources,
            model: &model,
            work,
            target,
            context,
        };
        Box::pin(pull.run()).await
    }

    fn folder(&self, reference: &ModelRef) -> PathBuf {
        self.inner.root.join(folder_name(reference))
    }
}

fn done(stored: StoredModel, report: &Report) -> StoredModel {
    let size = stored.size_bytes;
    report(Progress {
        phase: Phase::Done,
        done_bytes: size,
        total_bytes: Some(size),
    });
    stored
}

/// Name of a model's folder: readable, and different for different references. Only catalogue names have no `@`.
pub(crate) fn folder_name(reference: &ModelRef) -> String {
    if let ModelRef::Catalogue(name) = reference {
        return name.as_str().to_owned();
    }
    let mut readable = reference::slug(reference.model_id().as_str());
    readable.truncate(MAX_READABLE_BYTES);
    let digest = file::hex(&Sha256::digest(reference.to_string()));
    // A leading dot would hide it.
    format!("{}@{}", readable.trim_start_matches('.'), &digest[..16])
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_folder_is_the_named_one_then_the_caches() {
        let root = |variables: &[(&str, &str)]| {
            root_from(|name| {
                variables
                    .iter()
                    .find(|(n, _)| *n == name)
                    .map(|(_, value)| PathBuf::from(value))
            })
        };
        let all = [("RBEE_MODELS", "/m"), ("XDG_CACHE_HOME", "/c"), ("HOME", "/h")];
        assert_eq!(root(&all).unwrap(), Path::new("/m"));
        assert_eq!(root(&all[1..]).unwrap(), Path::new("/c/rbee/models"));
        assert_eq!(root(&all[2..]).unwrap(), Path::new("/h/.cache/rbee/models"));
        let relative = [("XDG_CACHE_HOME", "c"), ("HOME", "/h")];
        assert_eq!(root(&relative).unwrap(), Path::new("/h/.cache/rbee/models"));
        assert!(matches!(root(&[]), Err(StoreError::NoRoot)));
    }

    #[test]
    fn every_reference_has_its_own_visible_folder() {
        let texts = [
            "smollm2-135m-instruct",
            "pip:a==1/x/SmolLM2.gguf",
            "pip:a==2/x/SmolLM2.gguf",
            "hf:org/repo",
            "hf:org/repo@v1",
            "hf:org/repo/x.gguf",
            "hf:org/repo@v1/x.gguf",
            "hf:org/repo/.hidden.gguf",
        ];
        let names: std::collections::BTreeSet<_> = texts.iter().map(|t| folder_name(&t.parse().unwrap())).collect();
        assert_eq!(names.len(), texts.len());
        assert!(
            names
                .iter()
                .all(|name| !name.starts_with('.') && !name.contains('/') && name.len() < 200),
            "{names:?}"
        );
    }

    #[test]
    fn options_keep_secrets_out_of_logs() {
        let options = StoreOptions {
            hub_token: Some("hf_secret".to_owned()),
            pip_env: vec![("PIP_INDEX_URL".to_owned(), "https://me:secret@index.example".to_owned())],
            ..StoreOptions::default()
        };
        assert!(!format!("{options:?}").contains("secret"));
    }
}
