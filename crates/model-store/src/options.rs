//! Settings of a store, and the folder that it uses unless another is named.

use std::env;
use std::fmt;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use crate::{Retry, StoreError};

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
    /// Connections over which one large file comes.
    pub parallel: NonZeroUsize,
    /// Budget of the folder: before a pull, the models that were used least recently and that nobody holds are removed
    /// until it fits. `None`: as much as the disk has.
    pub max_bytes: Option<u64>,
    /// A catalogue of the user's that extends the one that comes with the program.
    pub catalogue_file: Option<PathBuf>,
}

impl Default for StoreOptions {
    /// `python3`, the public hub without a token, 5 tries, 60 s of silence, files of 1 TiB, 4 connections, no budget.
    fn default() -> Self {
        Self {
            python: "python3".to_owned(),
            pip_env: Vec::new(),
            hub_endpoint: "https://huggingface.co".to_owned(),
            hub_token: None,
            retry: Retry::default(),
            read_timeout: Duration::from_secs(60),
            max_file_bytes: 1 << 40,
            parallel: const { NonZeroUsize::new(4).unwrap() },
            max_bytes: None,
            catalogue_file: None,
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
            .field("parallel", &self.parallel)
            .field("max_bytes", &self.max_bytes)
            .field("catalogue_file", &self.catalogue_file)
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

#[cfg(test)]
mod tests {
    use std::path::Path;

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
    fn options_keep_secrets_out_of_logs() {
        let options = StoreOptions {
            hub_token: Some("hf_secret".to_owned()),
            pip_env: vec![("PIP_INDEX_URL".to_owned(), "https://me:secret@index.example".to_owned())],
            ..StoreOptions::default()
        };
        assert!(!format!("{options:?}").contains("secret"));
    }
}
