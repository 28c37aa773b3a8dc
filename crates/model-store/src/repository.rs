//! Whole repositories: which of a hub's files make up a model, and their pull into one folder.

use std::path::PathBuf;

use crate::download::{Fetched, Order, RemoteFile};
use crate::manifest::{Manifest, ManifestFile, Origin};
use crate::progress::{Phase, Tracker};
use crate::pull::Pull;
use crate::{RepositoryRef, Retry, StoreError, StoredModel, http};

/// Weights in one file; in several, the index says which.
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Without these there is no model.
const NEEDED: [&str; 2] = [CONFIG, "tokenizer.json"];
/// These belong to it where they are there.
const WELCOME: [&str; 3] = ["generation_config.json", "tokenizer_config.json", "chat_template.jinja"];
/// Names a folder as a model.
pub(crate) const CONFIG: &str = "config.json";
/// Files of other kinds that an error message names at most.
const MAX_HINTS: usize = 5;

/// Whether a file's name is one that weights have.
pub(crate) fn is_weights(name: &str) -> bool {
    let shard = || {
        let (number, count) = name
            .strip_prefix("model-")?
            .strip_suffix(".safetensors")?
            .split_once("-of-")?;
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        Some(digits(number) && digits(count))
    };
    name == WEIGHTS || shard().unwrap_or(false)
}

/// The files that make up the model, sorted; or why there is none.
pub(crate) fn select(files: &[String]) -> Result<Vec<&str>, String> {
    let has = |name: &str| files.iter().any(|file| file == name);
    // Other weights beside the one file are the same in another form.
    let whole = has(WEIGHTS);
    let is_wanted = |name: &str| {
        NEEDED.contains(&name)
            || WELCOME.contains(&name)
            || if whole {
                name == WEIGHTS
            } else {
                name == INDEX || is_weights(name)
            }
    };
    let missing = NEEDED.into_iter().find(|name| !has(name));
    let missing = missing.or_else(|| (!whole && !has(INDEX)).then_some(WEIGHTS));
    if let Some(missing) = missing {
        let others: Vec<&str> = files
            .iter()
            .map(String::as_str)
            .filter(|name| name.ends_with(".gguf"))
            .collect();
        let remedy = if others.is_empty() {
            "only repositories with safetensors weights and a tokenizer can be used as a whole".to_owned()
        } else {
            let shown = others[..others.len().min(MAX_HINTS)].join(", ");
            format!("name one of its files behind a `/`, for example: {shown}")
        };
        return Err(format!("it has no {missing}; {remedy}"));
    }
    let mut selected: Vec<&str> = files
        .iter()
        .map(String::as_str)
        .filter(|name| is_wanted(name))
        .collect();
    selected.sort_unstable();
    selected.dedup();
    Ok(selected)
}

/// A file that lies in the work folder.
pub(crate) struct Arrived {
    path: PathBuf,
    entry: ManifestFile,
    origin: Origin,
}

impl Pull<'_> {
    /// Runs to the end for a whole repository; what it leaves when it fails is good for the next pull.
    pub(crate) async fn run_repository(self, repository: &RepositoryRef) -> Result<StoredModel, StoreError> {
        self.context.enter(Phase::Resolve);
        let files = self.locate_all(repository).await?;
        let size = files
            .iter()
            .filter_map(|(_, file)| file.source.size)
            .fold(0, u64::saturating_add);
        self.reserve(Some(size), size).await?;
        let retry = self.sources.downloader.retry;
        let arrived = self.download_all(files, retry).await?;
        self.publish_folder(arrived).await
    }

    /// Names and sources of the model's files, all of one commit.
    pub(crate) async fn locate_all(&self, repository: &RepositoryRef) -> Result<Vec<(String, RemoteFile)>, StoreError> {
        let (hub, downloader) = (&self.sources.hub, &self.sources.downloader);
        let (http, retry, cancel) = (&downloader.http, downloader.retry, &self.context.cancel);
        let listing = hub.list(repository, http, retry, cancel).await?;
        let unusable = |why: String| StoreError::Hub {
            reference: Box::new(self.model.reference.clone()),
            why,
        };
        let mut files = Vec::new();
        for name in select(&listing.files).map_err(unusable)? {
            let file = listing.pinned.with_file(name);
            let file = file.ok_or_else(|| unusable(format!("its file {name:?} has a name that cannot be kept")))?;
            files.push((name.to_owned(), hub.locate(&file, http, retry, cancel).await?));
        }
        let announced = files.iter().filter_map(|(_, file)| file.source.size);
        if announced.fold(0, u64::saturating_add) > downloader.max_bytes {
            return Err(StoreError::TooLarge {
                what: self.model.reference.to_string(),
                limit_bytes: downloader.max_bytes,
            });
        }
        Ok(files)
    }

    pub(crate) async fn download_all(
        &self,
        files: Vec<(String, RemoteFile)>,
        retry: Retry,
    ) -> Result<Vec<Arrived>, StoreError> {
        let totals = files.iter().map(|(_, file)| file.source.size);
        let mut tracker = Tracker::new(self.context.report.clone(), Phase::Download, totals);
        let mut all = Vec::with_capacity(files.len());
        for (index, (name, file)) in files.into_iter().enumerate() {
            let path = self.work.join(format!("blob-{name}"));
            let order = Order {
                source: &file.source,
                target: &path,
                retry,
                room: None,
                index,
            };
            let fetched = self.sources.downloader.fetch(&order, &self.context, &mut tracker);
            let Fetched { size, sha256 } = fetched.await?;
            all.push(Arrived {
                path,
                entry: ManifestFile {
                    name,
                    size_bytes: size,
                    sha256,
                },
                origin: Origin {
                    reference: file.reference,
                    url: http::printable(&file.source.url),
                    revision: file.commit,
                },
            });
        }
        Ok(all)
    }

    /// Gives all files their names at once.
    pub(crate) async fn publish_folder(&self, arrived: Vec<Arrived>) -> Result<StoredModel, StoreError> {
        let (mut paths, mut entries, mut origins) = (Vec::new(), Vec::new(), Vec::new());
        for Arrived { path, entry, origin } in arrived {
            paths.push(path);
            entries.push(entry);
            origins.push(origin);
        }
        // Each file was held against its announced checksum when it was complete.
        self.publish_files(Manifest::of_folder(self.model, entries, origins), paths)
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selected(files: &[&str]) -> Result<Vec<String>, String> {
        let files: Vec<String> = files.iter().map(|&name| name.to_owned()).collect();
        select(&files).map(|names| names.into_iter().map(str::to_owned).collect())
    }

    #[test]
    fn the_weights_are_taken_in_one_form_with_what_belongs_to_them() {
        let common = [
            "tokenizer.json",
            "config.json",
            "README.md",
            "pytorch_model.bin",
            "q/m.gguf",
        ];
        let one = [
            "model.safetensors",
            "model-00001-of-00002.safetensors",
            "generation_config.json",
        ];
        assert_eq!(
            selected(&[common.as_slice(), &one].concat()).unwrap(),
            [
                "config.json",
                "generation_config.json",
                "model.safetensors",
                "tokenizer.json"
            ]
        );
        let several = [
            "model-00002-of-00002.safetensors",
            "model-00001-of-00002.safetensors",
            "model.safetensors.index.json",
            "consolidated.safetensors",
            "model.fp16.safetensors",
            "onnx/model.safetensors",
        ];
        assert_eq!(
            selected(&[common.as_slice(), &several].concat()).unwrap(),
            [
                "config.json",
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "model.safetensors.index.json",
                "tokenizer.json"
            ]
        );
    }

    #[test]
    fn a_repository_that_lacks_something_is_told_with_the_files_that_could_be_meant() {
        let why = selected(&["config.json", "tokenizer.json", "pytorch_model.bin"]).unwrap_err();
        assert!(
            why.contains("no model.safetensors") && why.contains("safetensors weights"),
            "{why}"
        );
        let why = selected(&["model.safetensors", "config.json"]).unwrap_err();
        assert!(why.contains("no tokenizer.json"), "{why}");
        let why = selected(&["README.md", "m-q4.gguf", "m-q8.gguf"]).unwrap_err();
        assert!(
            why.contains("no config.json") && why.ends_with("for example: m-q4.gguf, m-q8.gguf"),
            "{why}"
        );
    }
}
