//! The catalogue: well-known models under short names, each pinned by size and checksum.

use serde::Deserialize;
use shared_contract::ModelId;

use crate::ModelRef;

/// The list that comes with the program.
const BUILT_IN: &str = include_str!("catalogue.toml");

/// Models known by a short name.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Catalogue {
    #[serde(rename = "model")]
    entries: Vec<CatalogueEntry>,
}

/// One model of the catalogue.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CatalogueEntry {
    /// Short name; also the id under which clients ask for it.
    pub id: ModelId,
    /// Architecture as the file's header names it, for example `llama`.
    pub family: String,
    /// Licence of the weights, as its owner calls it.
    pub licence: String,
    /// Where the licence can be read.
    pub licence_url: String,
    /// Size of the finished file.
    pub size_bytes: u64,
    /// Checksum of the finished file, 64 lower-case hexadecimal digits.
    pub sha256: String,
    /// Longest context that the model was trained for, in tokens.
    pub context_length: u32,
    /// Name of the finished file.
    pub file_name: String,
    /// Whether the file has a chat template; without one it serves completions only.
    pub chat: bool,
    /// What the file is made of, in order; never empty.
    pub parts: Vec<CataloguePart>,
}

/// One source of a catalogue entry.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CataloguePart {
    /// A `pip:` or `hf:` reference.
    pub reference: ModelRef,
    /// What has to be downloaded for it: shown as the total before the server says it.
    #[serde(default)]
    pub download_bytes: Option<u64>,
}

impl Catalogue {
    /// The catalogue that comes with the program.
    pub fn built_in() -> Self {
        toml::from_str(BUILT_IN).expect("the built-in catalogue is part of the program and tested with it")
    }

    /// All entries.
    pub fn entries(&self) -> &[CatalogueEntry] {
        &self.entries
    }

    /// The entry of this name.
    pub fn get(&self, name: &str) -> Option<&CatalogueEntry> {
        self.entries.iter().find(|entry| entry.id.as_str() == name)
    }

    /// All names, for an error message.
    pub(crate) fn names(&self) -> String {
        self.entries
            .iter()
            .map(|entry| entry.id.as_str())
            .collect::<Vec<_>>()
            .join(", ")
    }
}

impl CatalogueEntry {
    /// A line for people who pull the model, for example `smollm2-135m-instruct: Apache-2.0 (https://...)`.
    pub fn licence_note(&self) -> String {
        format!("{}: {} ({})", self.id, self.licence, self.licence_url)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::file::is_sha256;

    #[test]
    fn every_built_in_entry_is_complete_and_its_name_is_a_reference_to_itself() {
        let catalogue = Catalogue::built_in();
        let mut seen = HashSet::new();
        for entry in catalogue.entries() {
            let id = entry.id.as_str();
            assert!(seen.insert(id), "{id} twice");
            let reference: ModelRef = id.parse().unwrap();
            assert!(matches!(reference, ModelRef::Catalogue(_)), "{id}");
            assert_eq!(reference.model_id(), entry.id);
            assert!(is_sha256(&entry.sha256), "{id}: {}", entry.sha256);
            assert!(entry.size_bytes > 0 && entry.context_length > 0, "{id}");
            assert!(
                !entry.file_name.is_empty() && !entry.file_name.contains(['/', '\\']),
                "{id}"
            );
            assert!(
                !entry.family.is_empty() && entry.licence_note().contains("https://"),
                "{id}"
            );
            assert!(!entry.parts.is_empty(), "{id}");
            for part in &entry.parts {
                assert!(
                    matches!(part.reference, ModelRef::Pip(_) | ModelRef::Hub(_)),
                    "{id}: {}",
                    part.reference
                );
            }
        }
    }

    #[test]
    fn both_test_models_are_known_and_only_the_instruct_model_chats() {
        let catalogue = Catalogue::built_in();
        assert!(catalogue.get("smollm2-135m-instruct").unwrap().chat);
        let gemma = catalogue.get("gemma3-270m").unwrap();
        assert!(!gemma.chat);
        assert_eq!(gemma.parts.len(), 4);
        assert_eq!(catalogue.get("no-such-model"), None);
    }
}
