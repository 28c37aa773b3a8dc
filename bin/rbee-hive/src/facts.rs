//! What the headers of models say, read once for as long as their files do not change.

use std::collections::HashMap;
use std::fs::{self, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use hive_contract::{MemoryNeed, MemoryNeeds, ModelFacts};
use model_format::{Backend, Facts, KV_BLOCK_TOKENS};

/// Models that are remembered; beyond that, all are forgotten and read again when they are asked for.
const LIMIT: usize = 256;

/// What is known of models by their paths. Clones share it.
#[derive(Debug, Default, Clone)]
pub(crate) struct FactsCache {
    known: Arc<Mutex<HashMap<PathBuf, Known>>>,
}

#[derive(Debug)]
struct Known {
    stamp: Stamp,
    facts: Arc<Facts>,
}

/// Changes when a file does, or a file of a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    size_bytes: u64,
    modified: Option<SystemTime>,
    files: usize,
}

impl FactsCache {
    /// What the header of the model at this path says: a file, or a folder. The error says why it cannot be read.
    pub(crate) async fn of(&self, path: &Path) -> Result<Arc<Facts>, String> {
        let (cache, path) = (self.clone(), path.to_owned());
        let read = |path: &Path| model_format::facts(path).map_err(|error| error.to_string());
        let facts = tokio::task::spawn_blocking(move || cache.look(&path, read)).await;
        // It panics with us, or the hive is ending.
        facts.unwrap_or_else(|error| match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err("the hive is ending".to_owned()),
        })
    }

    /// What is known, or else what `read` says.
    fn look(&self, path: &Path, read: impl FnOnce(&Path) -> Result<Facts, String>) -> Result<Arc<Facts>, String> {
        let stamp = Stamp::of(path).map_err(|error| format!("read {}: {error}", path.display()))?;
        if let Some(known) = self.lock().get(path)
            && known.stamp == stamp
        {
            return Ok(Arc::clone(&known.facts));
        }
        // Why it cannot be read may be gone the next time.
        let facts = read(path).map(Arc::new)?;
        let mut known = self.lock();
        if known.len() >= LIMIT {
            known.clear();
        }
        let entry = Known {
            stamp,
            facts: Arc::clone(&facts),
        };
        known.insert(path.to_owned(), entry);
        Ok(facts)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PathBuf, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stamp {
    fn of(path: &Path) -> io::Result<Self> {
        let own = fs::metadata(path)?;
        let mut stamp = Self {
            size_bytes: 0,
            modified: None,
            files: 0,
        };
        stamp.add(&own);
        if own.is_dir() {
            for entry in fs::read_dir(path)? {
                // Hubs' own caches have links here.
                stamp.add(&fs::metadata(entry?.path())?);
            }
        }
        Ok(stamp)
    }

    fn add(&mut self, file: &Metadata) {
        self.files += 1;
        self.size_bytes = self.size_bytes.wrapping_add(file.len());
        self.modified = self.modified.max(file.modified().ok());
    }
}

/// The same in the contract's words.
pub(crate) fn in_contract(facts: &Facts) -> ModelFacts {
    ModelFacts {
        family: facts.family.clone(),
        name: facts.name.clone(),
        parameters: facts.parameters,
        layers: facts.layers,
        heads: facts.heads,
        kv_heads: facts.kv_heads,
        context_length: facts.context_length,
        quantization: facts.quantization.clone(),
        weight_bytes: facts.weight_bytes,
        kv_bytes_per_token: facts.kv_bytes_per_token,
        chat: facts.chat,
        memory: Some(MemoryNeeds {
            cpu: need(facts, Backend::Cpu),
            gpu: need(facts, Backend::Gpu),
            block_tokens: u32::try_from(KV_BLOCK_TOKENS).unwrap_or(u32::MAX),
        }),
    }
}

fn need(facts: &Facts, backend: Backend) -> MemoryNeed {
    let memory = facts.memory(backend);
    MemoryNeed {
        fixed_bytes: memory.total(0),
        kv_bytes_per_token: memory.kv_bytes_per_token,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The weights' size that is known of a path, which is the file's, and whether its header was read for that.
    fn look(cache: &FactsCache, path: &Path) -> (Result<u64, String>, bool) {
        let mut is_read = false;
        let facts = cache.look(path, |path| {
            is_read = true;
            let weight_bytes = fs::metadata(path).unwrap().len();
            Ok(Facts {
                weight_bytes,
                ..crate::placement::tests::facts()
            })
        });
        (facts.map(|facts| facts.weight_bytes), is_read)
    }

    #[test]
    fn a_header_is_read_again_only_when_the_file_changed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.gguf");
        let cache = FactsCache::default();
        fs::write(&path, "x").unwrap();
        let first = look(&cache, &path);
        assert_eq!(first, (Ok(1), true));
        assert_eq!(look(&cache, &path), (first.0, false));
        fs::write(&path, "xy").unwrap();
        assert_eq!(look(&cache, &path), (Ok(2), true));
        fs::remove_file(&path).unwrap();
        assert!(look(&cache, &path).0.unwrap_err().contains("a.gguf"));
    }

    #[test]
    fn a_header_that_could_not_be_read_is_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.gguf");
        fs::write(&path, "x").unwrap();
        let cache = FactsCache::default();
        let failed = cache.look(&path, |_| Err("too many open files".into()));
        assert_eq!(failed.unwrap_err(), "too many open files");
        assert_eq!(look(&cache, &path), (Ok(1), true));
    }

    #[test]
    fn of_a_folder_every_file_counts_and_the_memory_is_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let cache = FactsCache::default();
        assert!(look(&cache, folder.path()).1);
        assert!(!look(&cache, folder.path()).1);
        for number in 0..LIMIT {
            let path = folder.path().join(number.to_string());
            fs::write(&path, "x").unwrap();
            assert!(look(&cache, &path).1);
        }
        assert!(look(&cache, folder.path()).1);
        assert!(cache.lock().len() <= LIMIT);
    }
}
