//! Asks a model hub (Hugging Face's protocol) for size, checksum and commit of a file, and for the files of a repository.
//!
//! `HEAD {endpoint}/{org}/{repo}/resolve/{rev}/{file}` answers with `X-Repo-Commit`, and for large files, which it keeps
//! elsewhere, with a redirect whose `X-Linked-Etag` is the sha256 and whose `X-Linked-Size` is the size. The `ETag` of a
//! small file is a git hash, which says nothing of use here. `GET {endpoint}/api/models/{org}/{repo}/revision/{rev}`
//! answers with JSON: the commit (`sha`) and the files' paths (`siblings`, each with `rfilename`).

use reqwest::header::{ACCEPT_ENCODING, CONTENT_LENGTH, ETAG, HeaderMap, HeaderValue};
use reqwest::{Method, Url};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use crate::download::{RemoteFile, Source};
use crate::file::is_sha256;
use crate::http::{self, Backoff, Bearer, Failure, Http, Request, Retry};
use crate::{HubRef, ModelRef, RepositoryRef, StoreError};

/// Largest list of a repository's files that is read.
const MAX_LISTING_BYTES: u64 = 16 << 20;

/// Where the hub is and who asks.
#[derive(Clone)]
pub(crate) struct Hub {
    pub(crate) endpoint: Url,
    pub(crate) bearer: Option<Bearer>,
}

/// What the hub says a repository consists of.
pub(crate) struct Listing {
    /// The repository at the commit that the revision stood for.
    pub(crate) pinned: RepositoryRef,
    /// Paths of its files.
    pub(crate) files: Vec<String>,
}

/// The part of the hub's answer that matters.
#[derive(Deserialize)]
struct Answer {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

impl Hub {
    /// Checks endpoint and token.
    pub(crate) fn new(endpoint: &str, token: Option<&str>) -> Result<Self, StoreError> {
        let setting = |name, value: &str, why: &str| StoreError::Setting {
            name,
            value: value.to_owned(),
            why: why.to_owned(),
        };
        let url = Url::parse(endpoint.trim_end_matches('/'))
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
            .ok_or_else(|| setting("HF_ENDPOINT", endpoint, "it is no http or https address"))?;
        let bearer = match token.map(str::trim).filter(|token| !token.is_empty()) {
            None => None,
            Some(token) => {
                let bearer = Bearer::new(token, &url);
                let refused = || setting("HF_TOKEN", "...", "it has characters that no token has");
                Some(bearer.ok_or_else(refused)?)
            }
        };
        Ok(Self { endpoint: url, bearer })
    }

    fn file_url(&self, hub: &HubRef, revision: &str) -> Url {
        let repository = hub.repository();
        // A `/` in the revision is written `%2F` already, which must not be encoded again.
        let revision = revision.replace("%2F", "/");
        let names = [repository.org(), repository.repo(), "resolve", &revision];
        self.url(names.into_iter().chain(hub.file().split('/')))
    }

    fn url<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Url {
        let mut url = self.endpoint.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(names);
        }
        url
    }

    /// Asks for the file; the source that comes back is pinned to the commit.
    pub(crate) async fn locate(
        &self,
        hub: &HubRef,
        http: &Http,
        retry: Retry,
        cancel: &CancellationToken,
    ) -> Result<RemoteFile, StoreError> {
        let url = self.file_url(hub, hub.repository().revision());
        let request = Request {
            method: Method::HEAD,
            url: &url,
            headers: HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static("identity"))]),
            bearer: self.bearer.as_ref(),
            leave_origin: false,
        };
        let mut backoff = Backoff::new(retry);
        loop {
            let answer = tokio::select! {
                () = cancel.cancelled() => return Err(StoreError::Cancelled),
                answer = http.send(&request) => answer,
            };
            match answer {
                Ok(response) => return Ok(self.describe(hub, url, response.headers())),
                Err(failure) => {
                    let missing = format!(" or the file {}", hub.file());
                    let failure = self.explain(failure, &ModelRef::Hub(hub.clone()), hub.repository(), &missing);
                    backoff.pause(failure, cancel).await?;
                }
            }
        }
    }

    /// Asks which files there are, at which commit.
    pub(crate) async fn list(
        &self,
        repository: &RepositoryRef,
        http: &Http,
        retry: Retry,
        cancel: &CancellationToken,
    ) -> Result<Listing, StoreError> {
        let (org, repo) = (repository.org(), repository.repo());
        let revision = repository.revision().replace("%2F", "/");
        let url = self.url(["api", "models", org, repo, "revision", &revision]);
        let request = Request {
            method: Method::GET,
            url: &url,
            headers: HeaderMap::new(),
            bearer: self.bearer.as_ref(),
            leave_origin: false,
        };
        let mut backoff = Backoff::new(retry);
        let body = loop {
            let answer = tokio::select! {
                () = cancel.cancelled() => return Err(StoreError::Cancelled),
                answer = http.receive(&request, MAX_LISTING_BYTES) => answer,
            };
            match answer {
                Ok(body) => break body,
                Err(failure) => {
                    let reference = ModelRef::Repository(repository.clone());
                    let failure = self.explain(failure, &reference, repository, "");
                    backoff.pause(failure, cancel).await?;
                }
            }
        };
        let nonsense = |why: String| http::broken(&url, format!("its list of files makes no sense: {why}"));
        let answer: Answer = serde_json::from_slice(&body).map_err(|error| nonsense(error.to_string()))?;
        let pinned = Some(&answer.sha).filter(|sha| is_commit(sha));
        let pinned = pinned.and_then(|sha| repository.at(sha));
        Ok(Listing {
            pinned: pinned.ok_or_else(|| nonsense("it has no commit".to_owned()))?,
            files: answer.siblings.into_iter().map(|sibling| sibling.rfilename).collect(),
        })
    }

    /// Words a refusal with its remedy; other failures stay as they are.
    fn explain(&self, failure: Failure, reference: &ModelRef, repository: &RepositoryRef, missing: &str) -> Failure {
        match failure {
            Failure::Final(StoreError::Refused { status, .. }) if (400..500).contains(&status) => {
                Failure::Final(StoreError::Hub {
                    reference: Box::new(reference.clone()),
                    why: self.refusal(repository, missing, status),
                })
            }
            other => other,
        }
    }

    fn describe(&self, hub: &HubRef, asked: Url, headers: &HeaderMap) -> RemoteFile {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
        let commit = text("x-repo-commit").filter(|commit| is_commit(commit));
        let linked = text("x-linked-size");
        // The length of a redirect is that of its own body.
        let size = linked.or_else(|| text(CONTENT_LENGTH.as_str()).filter(|_| !headers.contains_key("location")));
        let sha256 = text("x-linked-etag")
            .or_else(|| text(ETAG.as_str()))
            .map(unquoted)
            .filter(|sum| is_sha256(sum));
        let reference = ModelRef::Hub(hub.clone());
        let source = Source {
            what: reference.to_string(),
            from: self.endpoint.host_str().unwrap_or_default().into(),
            url: commit.map_or(asked, |commit| self.file_url(hub, commit)),
            bearer: self.bearer.clone(),
            size: size.and_then(|size| size.parse().ok()),
            sha256,
        };
        RemoteFile {
            reference,
            source,
            commit: commit.map(str::to_owned),
        }
    }

    fn refusal(&self, repository: &RepositoryRef, missing: &str, status: u16) -> String {
        let (org, repo, revision) = (repository.org(), repository.repo(), repository.revision());
        match (status, self.bearer.is_some()) {
            (401 | 403, false) => format!(
                "it answered {status}: {org}/{repo} does not exist, or it is private or gated; set HF_TOKEN to a token \
                 of an account that may read it"
            ),
            (401 | 403, true) => format!(
                "it answered {status}: the token in HF_TOKEN may not read {org}/{repo}; if the repository is gated, \
                 accept its terms on the hub with that token's account"
            ),
            (404, _) => {
                format!("it answered 404: the repository {org}/{repo}, its revision {revision}{missing} does not exist")
            }
            _ => format!("it answered {status}"),
        }
    }
}

/// Whether this names a commit, and not a branch or a tag.
pub(crate) fn is_commit(text: &str) -> bool {
    text.len() >= 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The value of an ETag without its quotes and its mark of weakness, in lower case.
fn unquoted(etag: &str) -> String {
    etag.strip_prefix("W/").unwrap_or(etag).trim_matches('"').to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub_ref(text: &str) -> HubRef {
        match text.parse().unwrap() {
            ModelRef::Hub(hub) => hub,
            other => panic!("{other} is no hf: reference"),
        }
    }

    #[test]
    fn addresses_are_built_like_the_hubs_own() {
        let hub = Hub::new("https://hub.example/mirror/", None).unwrap();
        let file = hub_ref("hf:Org/Repo@refs%2Fpr%2F1/a folder/m.gguf");
        let url = hub.file_url(&file, file.repository().revision());
        assert_eq!(
            url.as_str(),
            "https://hub.example/mirror/Org/Repo/resolve/refs%2Fpr%2F1/a%20folder/m.gguf"
        );
    }

    #[test]
    fn a_small_file_of_the_hub_has_a_git_hash_which_is_not_taken_for_a_checksum() {
        let hub = Hub::new("https://hub.example", None).unwrap();
        let file = hub_ref("hf:Org/Repo/config.json");
        let headers = HeaderMap::from_iter([
            (
                ETAG,
                HeaderValue::from_static("W/\"4f2e9bd1c7f1b2c34a5f66a3e5d2c1b0a9f8e7d6\""),
            ),
            (CONTENT_LENGTH, HeaderValue::from_static("17")),
        ]);
        let described = hub.describe(&file, hub.file_url(&file, "main"), &headers);
        assert_eq!(
            (described.source.sha256, described.source.size, described.commit),
            (None, Some(17), None)
        );
    }

    #[test]
    fn a_wrong_endpoint_or_token_is_named() {
        let wrong = |endpoint, token| Hub::new(endpoint, token).err().unwrap().to_string();
        assert!(wrong("hub.example", None).contains("HF_ENDPOINT"));
        let token = wrong("https://hub.example", Some("two\nlines"));
        assert!(token.contains("HF_TOKEN") && !token.contains("lines"));
    }
}
