//! Other hives of the fleet that have a model: their files are copied over the local network before its source is asked.
//!
//! `GET {hive}/v1/models/{id}?reference=` answers with a [`ModelDetail`], `GET {hive}/v1/models/{id}/file?reference=&name=`
//! with a file, also in ranges. What a hive gives must be what the model's own source promises, as far as that can be known:
//! by a pinned checksum, or because the hub answers in time.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hive_contract::{ModelDetail, ModelFileEntry};
use reqwest::header::HeaderMap;
use reqwest::{Method, Url};

use crate::download::{self, Fetched, Order, RemoteFile, Source};
use crate::file::is_sha256;
use crate::http::{self, Bearer, Request};
use crate::hub::is_commit;
use crate::manifest::Origin;
use crate::progress::{Phase, Tracker};
use crate::pull::{Pull, Whole};
use crate::repository;
use crate::store::Resolved;
use crate::{ModelRef, Retry, StoreError, StoredModel};

/// Longest wait for what a hive says of a model, and for what the hub says while hives could give it.
const ASK_LIMIT: Duration = Duration::from_secs(5);
/// Largest answer that is read.
const MAX_DETAIL_BYTES: u64 = 4 << 20;
/// Tries without progress: there are other hives, and the source.
const ATTEMPTS: u32 = 2;

/// A hive that may have a model.
#[derive(Clone, PartialEq, Eq)]
pub struct Peer {
    /// For people and logs, for example `gpu-box-2`.
    pub name: String,
    /// `http://HOST:PORT`.
    pub base_url: String,
    /// The fleet's token; sent to this address only.
    pub token: Option<String>,
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer")
            .field("name", &self.name)
            .field("base_url", &self.base_url)
            .finish_non_exhaustive()
    }
}

/// What a model's files must be, as far as that is known without the hives.
#[derive(Debug, Default)]
struct Promise {
    /// All files; empty where nothing is known.
    files: Vec<PromisedFile>,
    /// The commit of the hub.
    revision: Option<String>,
}

/// A file with what is known of it.
#[derive(Debug)]
struct PromisedFile {
    name: String,
    size_bytes: Option<u64>,
    sha256: Option<String>,
}

impl Peer {
    fn fault(&self, why: impl Into<String>) -> StoreError {
        StoreError::Peer {
            peer: self.name.clone(),
            why: why.into(),
        }
    }

    fn base(&self) -> Result<Url, StoreError> {
        let url = Url::parse(&self.base_url).ok();
        let url = url.filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        url.ok_or_else(|| self.fault(format!("`{}` is no http or https address", self.base_url)))
    }

    fn bearer(&self, base: &Url) -> Result<Option<Bearer>, StoreError> {
        let Some(token) = &self.token else { return Ok(None) };
        let bearer = Bearer::new(token, base);
        let bearer = bearer.ok_or_else(|| self.fault("its token has characters that no token has"));
        bearer.map(Some)
    }
}

/// Address of a model, or with `file` of one of its files.
fn address(base: &Url, model: &Resolved, file: Option<&str>) -> Url {
    let mut url = base.clone();
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty()
            .extend(["v1", "models", model.id.as_str()])
            .extend(file.map(|_| "file"));
    }
    let mut query = url.query_pairs_mut();
    query.append_pair("reference", &model.reference.to_string());
    if let Some(name) = file {
        query.append_pair("name", name);
    }
    drop(query);
    url
}

/// The files that a hive offers, if they are what was asked for; or what is wrong with them.
fn acceptable(detail: ModelDetail, model: &Resolved, promise: &Promise) -> Result<Vec<ModelFileEntry>, String> {
    let ModelDetail { entry, mut files } = detail;
    if entry.reference != model.reference.to_string() {
        return Err(format!("it has {} under this id", entry.reference));
    }
    if let Some(problem) = entry.problem {
        return Err(format!("its copy cannot be used: {problem}"));
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    let names: Vec<String> = files.iter().map(|file| file.name.clone()).collect();
    let is_complete = match &model.reference {
        // Only names that a repository's files can have are ever used as names here.
        ModelRef::Repository(_) => repository::select(&names)? == names,
        _ => names == [model.file_name.as_str()],
    };
    if !is_complete {
        return Err(format!("it has other files: {}", names.join(", ")));
    }
    if let Some(file) = files.iter().find(|file| !is_sha256(&file.sha256)) {
        return Err(format!("it knows no checksum of {}", file.name));
    }
    let mut is_proven = !promise.files.is_empty();
    for PromisedFile {
        name,
        size_bytes,
        sha256,
    } in &promise.files
    {
        let Some(file) = files.iter().find(|file| file.name == *name) else {
            return Err(format!("it has no {name}"));
        };
        // Before room is made for it.
        if let Some(expected) = size_bytes.filter(|expected| *expected != file.size_bytes) {
            return Err(format!("its {name} has {} bytes, not {expected}", file.size_bytes));
        }
        match sha256 {
            Some(expected) if *expected != file.sha256 => {
                return Err(format!("its {name} has the sha256 {}, not {expected}", file.sha256));
            }
            Some(_) => {}
            None => is_proven = false,
        }
    }
    match &promise.revision {
        Some(expected) if !is_proven && entry.revision.as_ref() != Some(expected) => {
            let found = entry.revision.as_deref().unwrap_or("unknown");
            Err(format!("it has the commit {found}, not {expected}"))
        }
        _ => Ok(files),
    }
}

impl Pull<'_> {
    /// Copies the model from the first hive that gives it; `None` leaves it to the source. What a hive gave before it failed
    /// is continued by the next one, and by the source where that has the same file.
    pub(crate) async fn copy_from_peers(&self) -> Result<Option<StoredModel>, StoreError> {
        if self.peers.is_empty() {
            return Ok(None);
        }
        self.context.enter(Phase::Resolve);
        let promise = self.promise().await?;
        for peer in self.peers {
            match self.copy_from(peer, &promise).await {
                Ok(stored) => return Ok(Some(stored)),
                Err(error) if error.is_about_this_host() => return Err(error),
                Err(error) => tracing::warn!(peer = %peer.name, %error, "a hive did not give the model"),
            }
        }
        let target = self.whole_path();
        if target != self.blob_path(0) {
            // The source makes the file of something else, and needs the space.
            self.context.blocking(move |_| download::discard(&target)).await?;
        }
        Ok(None)
    }

    /// What is known of the model without the hives. The hub has a few seconds to say it.
    async fn promise(&self) -> Result<Promise, StoreError> {
        if let Some(sha256) = &self.model.sha256 {
            let files = vec![PromisedFile {
                name: self.model.file_name.clone(),
                size_bytes: self.model.size_bytes,
                sha256: Some(sha256.clone()),
            }];
            return Ok(Promise { files, revision: None });
        }
        let asked = async {
            match self.model.parts.as_slice() {
                [part] => match &part.reference {
                    ModelRef::Hub(hub) => {
                        let file = self.locate_in_hub(hub).await?;
                        Ok(vec![(self.model.file_name.clone(), file)])
                    }
                    ModelRef::Repository(repository) => self.locate_all(repository).await,
                    _ => Ok(Vec::new()),
                },
                _ => Ok(Vec::new()),
            }
        };
        let files = match tokio::time::timeout(ASK_LIMIT, asked).await {
            Ok(Ok(files)) => files,
            Ok(Err(StoreError::Cancelled)) => return Err(StoreError::Cancelled),
            Ok(Err(error)) => {
                tracing::info!(%error, "the hub does not say what the model is; what the hives have is taken as it is");
                Vec::new()
            }
            Err(_) => {
                tracing::info!("the hub does not answer; what the hives have is taken as it is");
                Vec::new()
            }
        };
        let revision = files.iter().find_map(|(_, file)| file.commit.clone());
        let files = files.into_iter().map(|(name, file)| PromisedFile {
            name,
            size_bytes: file.source.size,
            sha256: file.source.sha256,
        });
        Ok(Promise {
            files: files.collect(),
            revision: revision.or_else(|| self.named_commit()),
        })
    }

    /// The commit, where the reference names one.
    fn named_commit(&self) -> Option<String> {
        let revision = match &self.model.reference {
            ModelRef::Hub(hub) => hub.repository().revision(),
            ModelRef::Repository(repository) => repository.revision(),
            _ => return None,
        };
        is_commit(revision).then(|| revision.to_owned())
    }

    async fn copy_from(&self, peer: &Peer, promise: &Promise) -> Result<StoredModel, StoreError> {
        let base = peer.base()?;
        let bearer = peer.bearer(&base)?;
        let detail = self.ask(peer, &base, bearer.as_ref()).await?;
        let revision = detail.entry.revision.clone();
        let files = acceptable(detail, self.model, promise).map_err(|why| peer.fault(why))?;
        let size = files.iter().map(|file| file.size_bytes).fold(0, u64::saturating_add);
        let limit_bytes = self.sources.downloader.max_bytes;
        if size > limit_bytes {
            let what = self.model.reference.printable();
            return Err(StoreError::TooLarge { what, limit_bytes });
        }
        self.reserve(Some(size), size).await?;
        let from: Arc<str> = format!("hive {}", peer.name).into();
        let remote = |file: ModelFileEntry| {
            let source = Source {
                what: format!("{} of {from}", file.name),
                from: Arc::clone(&from),
                url: address(&base, self.model, Some(&file.name)),
                bearer: bearer.clone(),
                size: Some(file.size_bytes),
                sha256: Some(file.sha256),
            };
            let file_of = RemoteFile {
                reference: self.model.reference.clone(),
                source,
                commit: revision.clone(),
            };
            (file.name, file_of)
        };
        let files = files.into_iter().map(remote);
        let retry = self.sources.downloader.retry;
        let retry = Retry {
            attempts: retry.attempts.min(ATTEMPTS),
            ..retry
        };
        if let ModelRef::Repository(_) = &self.model.reference {
            let arrived = self.download_all(files.collect(), retry).await?;
            return self.publish_folder(arrived).await;
        }
        match files.map(|(_, file)| file).next() {
            Some(file) => self.copy_file(file, retry).await,
            None => Err(peer.fault("it has no file of it")),
        }
    }

    async fn ask(&self, peer: &Peer, base: &Url, bearer: Option<&Bearer>) -> Result<ModelDetail, StoreError> {
        let url = address(base, self.model, None);
        let request = Request {
            method: Method::GET,
            url: &url,
            headers: HeaderMap::new(),
            bearer,
            leave_origin: false,
        };
        let answer = tokio::select! {
            () = self.context.cancel.cancelled() => return Err(StoreError::Cancelled),
            answer = tokio::time::timeout(
                ASK_LIMIT,
                self.sources.downloader.http.receive(&request, MAX_DETAIL_BYTES),
            ) => answer,
        };
        let body = answer.map_err(|_| peer.fault("it does not answer"))??;
        serde_json::from_slice(&body).map_err(|error| peer.fault(format!("its answer makes no sense: {error}")))
    }

    /// Copies a model that is one file, whatever its source makes it of.
    async fn copy_file(&self, file: RemoteFile, retry: Retry) -> Result<StoredModel, StoreError> {
        let report = Arc::clone(&self.context.report);
        let mut tracker = Tracker::new(report, Phase::Download, [file.source.size]);
        let path = self.whole_path();
        let order = Order {
            source: &file.source,
            target: &path,
            retry,
            room: None,
            index: 0,
        };
        let fetched = self.sources.downloader.fetch(&order, &self.context, &mut tracker);
        let Fetched { size, sha256 } = fetched.await?;
        let origin = Origin {
            reference: file.reference,
            url: http::printable(&file.source.url),
            revision: file.commit,
        };
        self.publish(Whole { path, size, sha256 }, vec![origin]).await
    }

    /// Where a model's one file goes: to the place of the source's own download, where that is the same file.
    fn whole_path(&self) -> PathBuf {
        match self.model.parts.as_slice() {
            [part] if !matches!(part.reference, ModelRef::Pip(_)) => self.blob_path(0),
            _ => self.work.join("whole"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const SHA256: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    /// What becomes of a hive's word on `hf:org/repo/m.gguf`, of which a hub promises size, checksum and commit.
    fn judged(size: u64, sha256: Option<&str>, revision: Option<&str>) -> Result<Vec<ModelFileEntry>, String> {
        let reference: ModelRef = "hf:org/repo/m.gguf".parse().unwrap();
        let model = Resolved {
            id: reference.model_id(),
            reference: reference.clone(),
            file_name: "m.gguf".to_owned(),
            size_bytes: None,
            sha256: None,
            parts: Vec::new(),
        };
        let promise = Promise {
            files: vec![PromisedFile {
                name: "m.gguf".to_owned(),
                size_bytes: Some(3),
                sha256: sha256.map(str::to_owned),
            }],
            revision: Some(COMMIT.to_owned()),
        };
        let detail = json!({
            "id": model.id, "reference": reference, "size_bytes": size, "revision": revision,
            "files": [{"name": "m.gguf", "size_bytes": size, "sha256": SHA256}],
        });
        acceptable(serde_json::from_value(detail).unwrap(), &model, &promise)
    }

    #[test]
    fn a_hives_word_counts_where_the_checksum_proves_it_or_at_least_size_and_commit_are_the_hubs() {
        assert!(judged(3, Some(SHA256), None).is_ok());
        assert!(judged(3, None, Some(COMMIT)).is_ok());
        let why = judged(u64::MAX, Some(SHA256), Some(COMMIT)).unwrap_err();
        assert!(why.contains("m.gguf has 18446744073709551615 bytes, not 3"), "{why}");
        let other = "f".repeat(40);
        for (revision, found) in [(Some(other.as_str()), other.as_str()), (None, "unknown")] {
            let why = judged(3, None, revision).unwrap_err();
            assert!(why.contains(&format!("the commit {found}, not {COMMIT}")), "{why}");
        }
        assert!(
            judged(3, Some(&"0".repeat(64)), Some(COMMIT))
                .unwrap_err()
                .contains("sha256")
        );
    }
}
