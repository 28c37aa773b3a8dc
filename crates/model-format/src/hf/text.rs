//! The text side of a repository: `tokenizer.json`, what `tokenizer_config.json` and `generation_config.json` add to it,
//! and the chat template.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value as Json;

use super::fields::{Fields, absent, read_text};
use super::integer;
use crate::FormatError;
use crate::value::{Array, Value};

const TOKENIZER_CONFIG: &str = "tokenizer_config.json";

/// Adds the text side's files to the metadata: the tokenizer under `tokenizer.huggingface.*`, the chat template where
/// GGUF files have it.
pub(crate) fn describe(folder: &Path, metadata: &mut BTreeMap<String, Value>) -> Result<(), FormatError> {
    let path = folder.join("tokenizer.json");
    let json = read_text(&path)?.ok_or_else(|| absent(&path))?;
    let read = |name: &str| Fields::read_or_empty(folder, name);
    let (config, generation) = (read("config.json")?, read("generation_config.json")?);
    let tokenizer = read(TOKENIZER_CONFIG)?;
    let mut set = |key: &str, value| metadata.insert(key.to_owned(), value);
    set("tokenizer.huggingface.json", Value::Text(json));
    for name in ["bos_token", "eos_token"] {
        if let Some(spelling) = spelling(&tokenizer, name)? {
            set(&format!("tokenizer.huggingface.{name}"), Value::Text(spelling));
        }
        let key = format!("{name}_id");
        let named = [ids(&config, &key)?, ids(&generation, &key)?].concat();
        if let Some(&id) = named.first() {
            set(&format!("tokenizer.huggingface.{key}"), integer(id));
        }
        if name == "eos_token" {
            let named = named.into_iter().map(integer).collect();
            set("tokenizer.huggingface.end_token_ids", Value::Array(Array::of(named)));
        }
    }
    if let Some(template) = template(folder, &tokenizer)? {
        set("tokenizer.chat_template", Value::Text(template));
    }
    Ok(())
}

/// The folder's chat template.
pub(crate) fn chat_template(folder: &Path) -> Result<Option<String>, FormatError> {
    template(folder, &Fields::read_or_empty(folder, TOKENIZER_CONFIG)?)
}

fn template(folder: &Path, tokenizer: &Fields) -> Result<Option<String>, FormatError> {
    match read_text(&folder.join("chat_template.jinja"))? {
        Some(template) => Ok(Some(template)),
        None => template_of(tokenizer),
    }
}

/// One id or a list of them.
fn ids(fields: &Fields, key: &str) -> Result<Vec<usize>, FormatError> {
    let id = |value: &Json| value.as_u64().and_then(|id| usize::try_from(id).ok());
    let ids = match fields.get(key) {
        None => Some(Vec::new()),
        Some(Json::Array(list)) => list.iter().map(id).collect(),
        Some(one) => id(one).map(|id| vec![id]),
    };
    ids.ok_or_else(|| fields.wrong(key, "a token's id or a list of them"))
}

/// A token's spelling, by itself or in an object with its properties.
fn spelling(fields: &Fields, key: &str) -> Result<Option<String>, FormatError> {
    let Some(value) = fields.get(key) else {
        return Ok(None);
    };
    let text = value.as_str().or_else(|| value.get("content")?.as_str());
    text.map(|text| Some(text.to_owned()))
        .ok_or_else(|| fields.wrong(key, "a token's spelling"))
}

/// The template, or the one named `default` of several.
fn template_of(fields: &Fields) -> Result<Option<String>, FormatError> {
    let wrong = || fields.wrong("chat_template", "a template or a list of named ones");
    match fields.get("chat_template") {
        None => Ok(None),
        Some(Json::String(template)) => Ok(Some(template.clone())),
        Some(Json::Array(templates)) => {
            let default = templates.iter().find(|template| template["name"] == "default");
            let source = default.map(|template| template["template"].as_str().ok_or_else(wrong));
            source.transpose().map(|source| source.map(str::to_owned))
        }
        Some(_) => Err(wrong()),
    }
}
