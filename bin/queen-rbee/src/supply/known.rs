//! Which models there are, by what the hives have on disk, the catalogue, aliases and statements; and what each takes.

use std::collections::BTreeMap;
use std::num::NonZeroU64;

use hive_contract::{Capabilities, MemoryNeed, ModelEntry, ModelFacts};
use model_store::{CatalogueEntry, ModelRef};
use scheduler::{LEAST_TOKENS, ModelNeed, Need};
use shared_contract::{HiveId, ModelId};

/// Tokens by which the engine's cache grows, where no hive says so.
const BLOCK: NonZeroU64 = NonZeroU64::new(32).expect("a block has tokens");
/// A process with everything but weights and cache, on the main processor and on a GPU, where no hive says so.
const CPU_PROCESS_BYTES: u64 = 96 << 20;
const GPU_PROCESS_BYTES: u64 = 600 << 20;
/// A token takes about this share of the weights in the cache, and hardly less than so much: measured over the models of
/// the catalogue.
const KV_SHARE: u64 = 40_000;
const KV_LEAST_BYTES: u64 = 24 << 10;

/// A model, and where it comes from.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct KnownModel {
    pub(crate) id: ModelId,
    /// What a hive without the file is asked for; `None`: only those that have it can serve it.
    pub(crate) source: Option<String>,
    /// Hives that have whole files of it, each with its reference.
    pub(crate) copies: BTreeMap<HiveId, String>,
    /// Size of its files.
    pub(crate) size_bytes: Option<u64>,
    /// Tokens that it was made for; 0 is unknown.
    pub(crate) context_length: u32,
    /// What a worker takes.
    pub(crate) need: ModelNeed,
    /// Why that is an estimate, where it is one.
    pub(crate) estimate: Option<String>,
}

/// What is known of a model besides what hives say.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sources<'a> {
    /// Its entry in the catalogue.
    pub(crate) entry: Option<&'a CatalogueEntry>,
    /// The reference that an alias, a statement or an operator gives it.
    pub(crate) reference: Option<&'a str>,
    /// Longest prompt plus answer that it is asked for with.
    pub(crate) tokens: Option<u64>,
}

impl KnownModel {
    /// The model with this id, by what the hives told; `None` if nobody knows it. `entries` may tell of other models, too.
    pub(crate) fn gather<'a>(
        id: &ModelId,
        sources: Sources<'_>,
        entries: impl IntoIterator<Item = (&'a HiveId, &'a ModelEntry)>,
    ) -> Option<Self> {
        let mut copies = BTreeMap::new();
        let mut largest: Option<&ModelEntry> = None;
        for (hive, entry) in entries {
            if entry.id == *id && entry.problem.is_none() {
                copies.entry(hive.clone()).or_insert_with(|| entry.reference.clone());
                if largest.is_none_or(|known| weight(known) < weight(entry)) {
                    largest = Some(entry);
                }
            }
        }
        let shared = copies.values().find(|reference| !is_of_one_host(reference));
        let source = match sources {
            Sources { entry: Some(entry), .. } => Some(entry.id.to_string()),
            Sources {
                reference: Some(reference),
                ..
            // While no hive has told of a path, each is asked to look for itself.
            } if copies.is_empty() || !is_of_one_host(reference) => Some(reference.to_owned()),
            _ => shared.cloned(),
        };
        if source.is_none() && copies.is_empty() {
            return None;
        }
        let facts = largest.and_then(|entry| entry.facts.as_ref());
        let size_bytes = largest
            .map(|entry| entry.size_bytes)
            .or_else(|| sources.entry?.size_bytes);
        let context_length = facts
            .map(|facts| facts.context_length)
            .or_else(|| sources.entry.map(|entry| entry.context_length))
            .unwrap_or(0);
        let (need, estimate) = need(facts, size_bytes, sources, context_length);
        Some(Self {
            id: id.clone(),
            source,
            copies,
            size_bytes,
            context_length,
            need,
            estimate,
        })
    }

    /// What this hive is asked to start; `None` if it neither has the model nor could fetch it.
    pub(crate) fn reference_on(&self, hive: &HiveId) -> Option<&str> {
        self.copies.get(hive).or(self.source.as_ref()).map(String::as_str)
    }

    /// What it is asked for in general.
    pub(crate) fn reference(&self) -> &str {
        let own = self.source.as_deref();
        own.or_else(|| self.copies.values().next().map(String::as_str))
            .unwrap_or(self.id.as_str())
    }
}

/// The models on a hive's disk that can be used.
pub(crate) fn usable(capabilities: &Capabilities) -> impl Iterator<Item = &ModelEntry> {
    capabilities.models.iter().filter(|entry| entry.problem.is_none())
}

/// Whether a reference means something on one host only.
pub(crate) fn is_of_one_host(reference: &str) -> bool {
    matches!(reference.parse(), Ok(ModelRef::File(_)))
}

/// A reference without what may be a signature in it.
pub(crate) fn printable(reference: &str) -> String {
    let parsed = reference.parse();
    parsed.map_or_else(|_| reference.to_owned(), |reference: ModelRef| reference.printable())
}

fn weight(entry: &ModelEntry) -> (bool, u64) {
    // One that was read tells more than one that was not.
    (entry.facts.is_some(), entry.size_bytes)
}

/// What a worker takes, and why that is an estimate where no hive has read the model.
fn need(
    facts: Option<&ModelFacts>,
    size_bytes: Option<u64>,
    Sources { entry, tokens, .. }: Sources<'_>,
    context_length: u32,
) -> (ModelNeed, Option<String>) {
    let trained = match context_length {
        0 => LEAST_TOKENS,
        tokens => tokens.into(),
    };
    if let Some(memory) = facts.and_then(|facts| facts.memory) {
        let block = NonZeroU64::new(memory.block_tokens.into()).unwrap_or(BLOCK);
        let of = |need: MemoryNeed| Need::new(need.fixed_bytes, need.kv_bytes_per_token, block, trained, tokens);
        let need = ModelNeed {
            cpu: of(memory.cpu),
            gpu: of(memory.gpu),
        };
        return (need, None);
    }
    let (weights, why) = match (facts, size_bytes, entry) {
        (Some(facts), ..) => (
            facts.weight_bytes,
            "its hive says how large it is, and not what a worker takes",
        ),
        (None, Some(bytes), _) => (bytes, "no hive has the file yet: reckoned from its size"),
        (None, None, Some(entry)) => (
            entry.parameters.saturating_mul(bits(&entry.quantization)) / 8,
            "no hive has the file yet: reckoned from the number of its weights",
        ),
        (None, None, None) => (
            0,
            "no hive has the file yet, and nobody knows its size: the hive that fetches it will",
        ),
    };
    let kv = facts.map_or_else(
        || (weights / KV_SHARE).max(KV_LEAST_BYTES),
        |facts| facts.kv_bytes_per_token,
    );
    let of = |process: u64| {
        let fixed = weights.saturating_add(weights / 8).saturating_add(process);
        Need::new(fixed, kv, BLOCK, trained, tokens)
    };
    let need = ModelNeed {
        cpu: of(CPU_PROCESS_BYTES),
        gpu: of(GPU_PROCESS_BYTES),
    };
    (need, Some(why.to_owned()))
}

/// Bits of one weight, about.
fn bits(quantization: &str) -> u64 {
    let digits = quantization.trim_start_matches(|c: char| !c.is_ascii_digit());
    let digits: String = digits.chars().take_while(char::is_ascii_digit).collect();
    digits
        .parse()
        .map_or(16, |bits: u64| bits.clamp(1, 32) + u64::from(bits < 16))
}

#[cfg(test)]
mod tests {
    use model_store::Catalogue;

    use super::*;

    fn hive(id: &str) -> HiveId {
        HiveId::new(id).unwrap()
    }

    fn entry(id: &str, reference: &str) -> ModelEntry {
        ModelEntry {
            id: ModelId::new(id).unwrap(),
            reference: reference.into(),
            size_bytes: 1 << 30,
            sha256: None,
            revision: None,
            facts: None,
            problem: None,
        }
    }

    fn gather(id: &str, sources: Sources<'_>, entries: &[(HiveId, ModelEntry)]) -> Option<KnownModel> {
        let entries = entries.iter().map(|(hive, entry)| (hive, entry));
        KnownModel::gather(&ModelId::new(id).unwrap(), sources, entries)
    }

    #[test]
    fn a_model_that_nobody_has_and_no_list_names_is_unknown() {
        assert_eq!(gather("x", Sources::default(), &[]), None);
        let damaged = ModelEntry {
            problem: Some("the file is cut off".into()),
            ..entry("x", "hf:a/b/x.gguf")
        };
        assert_eq!(gather("x", Sources::default(), &[(hive("h"), damaged)]), None);
    }

    #[test]
    fn a_file_of_one_host_is_asked_for_there_only() {
        let known = gather(
            "tiny",
            Sources::default(),
            &[(hive("a"), entry("tiny", "file:/m/tiny.gguf"))],
        );
        let known = known.unwrap();
        assert_eq!(known.reference_on(&hive("a")), Some("file:/m/tiny.gguf"));
        assert_eq!(known.reference_on(&hive("b")), None);
    }

    #[test]
    fn a_path_that_no_hive_has_told_of_may_be_on_any_of_them() {
        let sources = Sources {
            reference: Some("file:/m/tiny.gguf"),
            ..Sources::default()
        };
        let known = gather("tiny", sources, &[]).unwrap();
        assert_eq!(known.reference_on(&hive("a")), Some("file:/m/tiny.gguf"));
        let told = [(hive("a"), entry("tiny", "file:/m/tiny.gguf"))];
        let known = gather("tiny", sources, &told).unwrap();
        assert_eq!(known.reference_on(&hive("b")), None);
    }

    #[test]
    fn each_hive_is_asked_for_the_file_that_it_has_and_others_for_one_that_can_be_fetched() {
        let copies = [
            (hive("a"), entry("m", "file:/m/m.gguf")),
            (hive("b"), entry("m", "hf:o/r/m.gguf")),
        ];
        let known = gather("m", Sources::default(), &copies).unwrap();
        assert_eq!(known.reference_on(&hive("a")), Some("file:/m/m.gguf"));
        assert_eq!(known.reference_on(&hive("c")), Some("hf:o/r/m.gguf"));
    }

    #[test]
    fn what_a_hive_has_read_is_exact_and_the_rest_an_estimate_that_says_so() {
        let catalogue = Catalogue::built_in();
        let sources = Sources {
            entry: catalogue.get("smollm2-135m-instruct"),
            ..Sources::default()
        };
        let listed = gather("smollm2-135m-instruct", sources, &[]).unwrap();
        assert!(listed.estimate.as_ref().unwrap().contains("no hive has the file"));
        assert!(listed.need.cpu.fixed_bytes > listed.size_bytes.unwrap());
        assert_eq!(listed.source.as_deref(), Some("smollm2-135m-instruct"));

        let need = MemoryNeed {
            fixed_bytes: 7,
            kv_bytes_per_token: 2,
        };
        let facts = ModelFacts {
            family: "llama".into(),
            name: None,
            parameters: 1,
            layers: 1,
            heads: 1,
            kv_heads: 1,
            context_length: 2048,
            quantization: "Q4_1".into(),
            weight_bytes: 5,
            kv_bytes_per_token: 2,
            chat: true,
            memory: Some(hive_contract::MemoryNeeds {
                cpu: need,
                gpu: need,
                block_tokens: 16,
            }),
        };
        let read = ModelEntry {
            facts: Some(facts),
            ..entry("smollm2-135m-instruct", "smollm2-135m-instruct")
        };
        let known = gather("smollm2-135m-instruct", sources, &[(hive("a"), read)]).unwrap();
        assert_eq!(known.estimate, None);
        assert_eq!((known.need.gpu.fixed_bytes, known.need.gpu.block_tokens), (7, 16));
        assert_eq!(known.context_length, 2048);
    }

    #[test]
    fn every_model_of_the_catalogue_has_a_need_that_is_not_absurd() {
        for entry in Catalogue::built_in().entries() {
            let sources = Sources {
                entry: Some(entry),
                ..Sources::default()
            };
            let known = gather(entry.id.as_str(), sources, &[]).unwrap();
            let fixed = known.need.cpu.fixed_bytes;
            assert!(
                fixed > entry.parameters / 4 && fixed < entry.parameters * 5 + (1 << 30),
                "{}: {fixed}",
                entry.id
            );
        }
    }

    #[test]
    fn the_width_of_a_weight_is_read_off_the_name_of_its_form() {
        assert_eq!(["Q4_K_M", "Q8_0", "BF16", "F32", "odd"].map(bits), [5, 9, 16, 32, 16]);
    }
}
