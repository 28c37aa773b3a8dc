//! JSON files of a repository, field by field.

use std::path::Path;

use serde_json::{Map, Value as Json};

use crate::FormatError;

/// Largest JSON file that is read: beyond any tokenizer.
const MAX_JSON_BYTES: u64 = 1 << 28;

/// A JSON object of the repository and what it is called in error messages.
#[derive(Debug, Clone)]
pub(crate) struct Fields {
    name: String,
    map: Map<String, Json>,
}

impl Fields {
    /// `None` where the file is missing.
    pub(crate) fn read(folder: &Path, file_name: &str) -> Result<Option<Self>, FormatError> {
        let Some(text) = read_text(&folder.join(file_name))? else {
            return Ok(None);
        };
        match serde_json::from_str(&text) {
            Ok(Json::Object(map)) => Ok(Some(Self {
                name: file_name.to_owned(),
                map,
            })),
            Ok(_) => Err(FormatError::Damaged(format!("{file_name} is no JSON object"))),
            Err(error) => Err(FormatError::Damaged(format!("{file_name} is no JSON: {error}"))),
        }
    }

    /// The same, where the file must be there.
    pub(crate) fn required(folder: &Path, file_name: &str) -> Result<Self, FormatError> {
        Self::read(folder, file_name)?.ok_or_else(|| absent(&folder.join(file_name)))
    }

    /// The same, where a file that is missing says nothing.
    pub(crate) fn read_or_empty(folder: &Path, file_name: &str) -> Result<Self, FormatError> {
        Ok(Self::read(folder, file_name)?.unwrap_or_else(|| Self::empty(file_name)))
    }

    /// No fields at all.
    pub(crate) fn empty(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            map: Map::new(),
        }
    }

    /// The field's value; a null counts as missing.
    pub(crate) fn get(&self, key: &str) -> Option<&Json> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    pub(crate) fn object(&self, key: &str) -> Result<Option<Self>, FormatError> {
        self.field(key, "an object", |value| {
            Some(Self {
                name: format!("{}: {key}", self.name),
                map: value.as_object()?.clone(),
            })
        })
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<&str>, FormatError> {
        self.field(key, "a string", Json::as_str)
    }

    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>, FormatError> {
        self.field(key, "true or false", Json::as_bool)
    }

    pub(crate) fn count(&self, key: &str) -> Result<Option<usize>, FormatError> {
        self.field(key, "a count", |value| usize::try_from(value.as_u64()?).ok())
    }

    pub(crate) fn number(&self, key: &str) -> Result<Option<f64>, FormatError> {
        self.field(key, "a number", Json::as_f64)
    }

    pub(crate) fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>, FormatError> {
        self.field(key, "a list of numbers", |value| {
            value.as_array()?.iter().map(Json::as_f64).collect()
        })
    }

    pub(crate) fn required_count(&self, key: &str) -> Result<usize, FormatError> {
        match self.count(key)? {
            Some(0) => Err(self.wrong(key, "positive")),
            count => count.ok_or_else(|| self.lacks(key)),
        }
    }

    pub(crate) fn required_number(&self, key: &str) -> Result<f64, FormatError> {
        match self.number(key)? {
            Some(number) if number > 0.0 => Ok(number),
            Some(_) => Err(self.wrong(key, "positive")),
            None => Err(self.lacks(key)),
        }
    }

    pub(crate) fn lacks(&self, key: &str) -> FormatError {
        FormatError::Damaged(format!("{} lacks {key}", self.name))
    }

    pub(crate) fn wrong(&self, key: &str, expected: &str) -> FormatError {
        FormatError::Damaged(format!("{}: {key} is not {expected}", self.name))
    }

    fn field<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        convert: impl FnOnce(&'a Json) -> Option<T>,
    ) -> Result<Option<T>, FormatError> {
        let value = self.get(key);
        value
            .map(|value| convert(value).ok_or_else(|| self.wrong(key, expected)))
            .transpose()
    }
}

/// A text file of the repository; `None` where it is missing.
pub(crate) fn read_text(path: &Path) -> Result<Option<String>, FormatError> {
    let size = match std::fs::metadata(path) {
        Ok(data) => data.len(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(FormatError::unreadable(path, error)),
    };
    if size > MAX_JSON_BYTES {
        return Err(FormatError::unreadable(path, std::io::ErrorKind::FileTooLarge.into()));
    }
    let text = std::fs::read_to_string(path);
    text.map(Some).map_err(|error| FormatError::unreadable(path, error))
}

/// The error for a file that must be there.
pub(super) fn absent(path: &Path) -> FormatError {
    FormatError::unreadable(path, std::io::ErrorKind::NotFound.into())
}
