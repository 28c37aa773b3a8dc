//! The catalogue: well-known models under short names. Those that the program brings can be extended by a file.

use std::fs;
use std::path::Path;

use serde::Deserialize;
use shared_contract::ModelId;

use crate::file::is_sha256;
use crate::{ModelRef, StoreError};

/// The list that comes with the program.
const BUILT_IN: &str = include_str!("catalogue.toml");

/// Models known by a short name.
#[derive(Debug, Clone)]
pub struct Catalogue {
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
    /// Weights, counted one by one; about, for people.
    pub parameters: u64,
    /// How most of the weights are stored, for example `Q4_K_M`.
    pub quantization: String,
    /// Licence of the weights, as its owner calls it.
    pub licence: String,
    /// Where the licence can be read.
    pub licence_url: String,
    /// Size of the finished file. `None` where only the source knows.
    #[serde(default)]
    pub size_bytes: Option<u64>,
    /// Checksum of the finished file, 64 lower-case hexadecimal digits. `None`: the model is not pinned, and its owner can
    /// exchange the file; what comes is held against what the source promises then.
    #[serde(default)]
    pub sha256: Option<String>,
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
    /// A reference to a file: `pip:`, `hf:` or `https:`.
    pub reference: ModelRef,
    /// What has to be downloaded for it: shown as the total before the server says it.
    #[serde(default)]
    pub download_bytes: Option<u64>,
}

/// A mistake in a catalogue: where, and what.
struct Mistake {
    entry: String,
    why: String,
}

impl Catalogue {
    /// The catalogue that comes with the program.
    pub fn built_in() -> Self {
        match parse(BUILT_IN) {
            Ok(entries) => Self { entries },
            Err(Mistake { entry, why }) => unreachable!("the built-in catalogue is tested: {entry}: {why}"),
        }
    }

    /// This catalogue with the entries of a TOML file of the same form; an entry with a known name takes its place.
    pub fn extended(mut self, file: &Path) -> Result<Self, StoreError> {
        let text = fs::read_to_string(file).map_err(|source| StoreError::io("read catalogue", file, source))?;
        let added = parse(&text).map_err(|Mistake { entry, why }| StoreError::Catalogue {
            file: file.to_path_buf(),
            entry,
            why,
        })?;
        for entry in added {
            match self.entries.iter_mut().find(|known| known.id == entry.id) {
                Some(known) => *known = entry,
                None => self.entries.push(entry),
            }
        }
        Ok(self)
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

    /// Which field has a value that cannot be meant, and why.
    fn mistake(&self) -> Option<(&'static str, &'static str)> {
        let is_reference = matches!(self.id.as_str().parse(), Ok(ModelRef::Catalogue(_)));
        let is_file =
            |part: &CataloguePart| matches!(part.reference, ModelRef::Pip(_) | ModelRef::Hub(_) | ModelRef::Url(_));
        // Of these, the source says size and checksum.
        let is_told = matches!(self.parts.as_slice(), [part] if !matches!(part.reference, ModelRef::Pip(_)));
        let is_plain = |name: &str| !matches!(name, "" | "." | "..") && !name.contains(['/', '\\']);
        let fits = |limit: u64| self.size_bytes.is_none_or(|bytes| (1..=limit).contains(&bytes));
        let checks = [
            (
                is_reference,
                "id",
                "a name has lower-case letters, digits, `.`, `_`, `-`, and begins with a letter or digit",
            ),
            (!self.family.is_empty(), "family", "it is empty"),
            (self.parameters > 0, "parameters", "it must be more than 0"),
            (!self.quantization.is_empty(), "quantization", "it is empty"),
            (fits(u64::MAX), "size_bytes", "it must be more than 0"),
            (
                self.sha256.as_deref().is_none_or(is_sha256),
                "sha256",
                "it must have 64 lower-case hexadecimal digits",
            ),
            (self.context_length > 0, "context_length", "it must be more than 0"),
            (is_plain(&self.file_name), "file_name", "it must be a plain file name"),
            (!self.parts.is_empty(), "parts", "there must be one at least"),
            (
                self.parts.iter().all(is_file),
                "parts",
                "each reference must be one to a file: pip:, hf:ORG/REPO/FILE or https:",
            ),
            (
                self.sha256.is_some() || is_told,
                "sha256",
                "it may be left out only where the one part is an hf: or https: file",
            ),
        ];
        let wrong = checks.into_iter().find(|(is_right, ..)| !is_right);
        wrong.map(|(_, field, why)| (field, why))
    }
}

/// Reads each entry for itself, so that a mistake can be told with the entry's name.
fn parse(text: &str) -> Result<Vec<CatalogueEntry>, Mistake> {
    let whole = |why: String| Mistake {
        entry: "the file".to_owned(),
        why,
    };
    let mut table: toml::Table = toml::from_str(text).map_err(|error| whole(error.to_string().trim().to_owned()))?;
    let models = match table.remove("model") {
        Some(toml::Value::Array(models)) => models,
        None => Vec::new(),
        Some(_) => {
            return Err(whole(
                "`model` must be a list: write each entry below [[model]]".to_owned(),
            ));
        }
    };
    if let Some(unknown) = table.keys().next() {
        return Err(whole(format!(
            "`{unknown}` is not known; entries stand below [[model]]"
        )));
    }
    let mut entries: Vec<CatalogueEntry> = Vec::with_capacity(models.len());
    for (nth, model) in models.into_iter().enumerate() {
        let name = model.get("id").and_then(toml::Value::as_str);
        let name = name.map_or_else(|| format!("entry {}", nth + 1), |id| format!("entry `{id}`"));
        let mistake = |field: &str, why: String| Mistake {
            entry: if field == "." {
                name.clone()
            } else {
                format!("{name}: {field}")
            },
            why,
        };
        let entry: CatalogueEntry = serde_path_to_error::deserialize(model)
            .map_err(|error| mistake(&error.path().to_string(), error.inner().message().trim().to_owned()))?;
        if let Some((field, why)) = entry.mistake() {
            return Err(mistake(field, why.to_owned()));
        }
        if entries.iter().any(|known| known.id == entry.id) {
            return Err(mistake("id", "it is there twice".to_owned()));
        }
        entries.push(entry);
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINE: &str = r#"
        [[model]]
        id = "mine"
        family = "llama"
        parameters = 1
        quantization = "Q8_0"
        licence = "MIT"
        licence_url = "https://example.org/licence"
        context_length = 2048
        file_name = "mine.gguf"
        chat = true

        [[model.parts]]
        reference = "hf:me/mine-GGUF/mine.gguf"
    "#;

    fn extended(text: &str) -> Result<Catalogue, StoreError> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("mine.toml");
        fs::write(&file, text).unwrap();
        Catalogue::built_in().extended(&file)
    }

    #[test]
    fn every_built_in_entry_is_a_file_with_a_licence_and_its_name_is_a_reference_to_itself() {
        let catalogue = Catalogue::built_in();
        for entry in catalogue.entries() {
            let id = entry.id.as_str();
            let reference: ModelRef = id.parse().unwrap();
            assert_eq!(reference.model_id(), entry.id);
            assert!(entry.licence_note().contains("https://"), "{id}");
            assert!(entry.file_name.ends_with(".gguf"), "{id}");
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

    #[test]
    fn a_file_adds_its_entries_and_replaces_those_with_a_known_name() {
        let before = Catalogue::built_in().entries().len();
        let with_mine = extended(MINE).unwrap();
        assert_eq!(with_mine.entries().len(), before + 1);
        let mine = with_mine.get("mine").unwrap();
        assert_eq!((mine.size_bytes, &mine.sha256), (None, &None));

        let replaced = extended(&MINE.replace("\"mine\"", "\"gemma3-270m\"")).unwrap();
        assert_eq!(replaced.entries().len(), before);
        assert_eq!(replaced.get("gemma3-270m").unwrap().file_name, "mine.gguf");
        assert_eq!(extended("").unwrap().entries().len(), before);
    }

    #[test]
    fn a_mistake_is_told_with_file_entry_and_field() {
        let change = |from: &str, to: &str| MINE.replace(from, to);
        let cases = [
            (change("chat = true", ""), "entry `mine`", "missing field `chat`"),
            (
                change("chat = true", "chat = 1"),
                "entry `mine`: chat",
                "expected a boolean",
            ),
            (
                change("chat = true", "chat = true\ncolour = 1"),
                "entry `mine`",
                "unknown field `colour`",
            ),
            (change("id = \"mine\"", ""), "entry 1", "missing field `id`"),
            (change("\"mine\"", "\"My Model\""), "entry `My Model`: id", "spaces"),
            (change("\"mine\"", "\"Mine\""), "entry `Mine`: id", "lower-case"),
            (
                change("chat = true", "chat = true\nsize_bytes = 0"),
                "entry `mine`: size_bytes",
                "more than 0",
            ),
            (
                change("chat = true", "chat = true\nsha256 = \"AB\""),
                "entry `mine`: sha256",
                "64 lower-case",
            ),
            (
                change("\"mine.gguf\"", "\"../m.gguf\""),
                "entry `mine`: file_name",
                "plain",
            ),
            (
                change("hf:me/mine-GGUF/mine.gguf", "hf:me/mine"),
                "entry `mine`: parts",
                "one to a file",
            ),
            (
                change("hf:me/mine-GGUF/mine.gguf", "hf:me"),
                "entry `mine`: parts[0].reference",
                "REPO",
            ),
            (
                change("hf:me/mine-GGUF/mine.gguf", "pip:a==1/m.gguf"),
                "entry `mine`: sha256",
                "left out only",
            ),
            (
                change("[[model.parts]]", "[[model.other]]"),
                "entry `mine`",
                "unknown field `other`",
            ),
            (format!("{MINE}{MINE}"), "entry `mine`: id", "twice"),
            ("model = 1".to_owned(), "the file", "[[model]]"),
            ("modle = []".to_owned(), "the file", "`modle` is not known"),
            ("[[model".to_owned(), "the file", "line 1"),
        ];
        for (text, place, why) in cases {
            let error = extended(&text).unwrap_err();
            let said = error.to_string();
            assert!(matches!(error, StoreError::Catalogue { .. }), "{said}");
            assert!(
                said.contains(&format!("mine.toml: {place}: ")) && said.contains(why),
                "{said}"
            );
        }
        let missing = Catalogue::built_in().extended(Path::new("/no/such.toml")).unwrap_err();
        assert!(missing.to_string().contains("/no/such.toml"), "{missing}");
    }
}
