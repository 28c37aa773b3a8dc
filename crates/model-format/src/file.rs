//! A model's description and weights, whatever files they lie in: metadata by GGUF's keys, tensors by GGUF's names.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::ops::Deref;
use std::path::Path;

use memmap2::Mmap;

use crate::FormatError;
use crate::tensor_type::TensorType;
use crate::value::{Array, Element, Elements, Value};

/// An open model: a GGUF file ([`ModelFile::gguf`]) or a folder of safetensors ([`ModelFile::safetensors`]), both under
/// the same names. The files must not be changed while it is open; dropping it unmaps them.
pub struct ModelFile {
    format: FileFormat,
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, TensorEntry>,
    sources: Vec<Source>,
    /// Names of tensors that nobody has asked for yet.
    unused: RefCell<BTreeSet<String>>,
}

/// What kind of files a model was read from: they differ in how llama's query and key rows are ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileFormat {
    /// One GGUF file.
    Gguf,
    /// A folder as Hugging Face lays it out.
    Safetensors,
}

/// A file's bytes.
pub(crate) enum Source {
    /// All of them.
    Mapped(Mmap),
    /// Its header and perhaps some more.
    Beginning(Vec<u8>),
}

/// A tensor's type, shape and place.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorEntry {
    /// How its elements are stored.
    pub dtype: TensorType,
    /// Outermost first.
    pub dims: Vec<usize>,
    pub(crate) place: Place,
}

/// Where a tensor's bytes are.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Place {
    /// From `start` of a source on, as many as type and shape ask for.
    File { source: usize, start: usize },
    /// In memory: computed from others, or from the metadata.
    Computed(Vec<u8>),
}

/// One tensor, its bytes as GGML lays them out.
#[derive(Debug, Clone)]
pub struct RawTensor<'a> {
    /// By which it was asked for.
    pub name: String,
    /// How its elements are stored.
    pub dtype: TensorType,
    /// Outermost first.
    pub dims: Vec<usize>,
    /// As many bytes as type and shape ask for.
    pub data: &'a [u8],
}

impl ModelFile {
    /// Opens a model: a folder as [`ModelFile::safetensors`], anything else as [`ModelFile::gguf`].
    ///
    /// # Errors
    /// The files are unreadable, damaged, or of a kind that is not supported.
    pub fn open(path: &Path) -> Result<Self, FormatError> {
        if path.is_dir() {
            Self::safetensors(path)
        } else {
            Self::gguf(path)
        }
    }

    /// From what a reader found. Every tensor must lie inside of its file.
    pub(crate) fn new(
        format: FileFormat,
        metadata: BTreeMap<String, Value>,
        tensors: BTreeMap<String, TensorEntry>,
        sources: Vec<Source>,
    ) -> Self {
        let unused = RefCell::new(tensors.keys().cloned().collect());
        Self {
            format,
            metadata,
            tensors,
            sources,
            unused,
        }
    }

    /// What kind of files it is.
    pub fn format(&self) -> FileFormat {
        self.format
    }

    /// All keys, ascending.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.metadata.keys().map(String::as_str)
    }

    /// The value of a key.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    /// A string.
    pub fn string(&self, key: &str) -> Option<&str> {
        self.value(key)?.as_text()
    }

    /// A truth value.
    pub fn flag(&self, key: &str) -> Option<bool> {
        match self.value(key)? {
            Value::Flag(flag) => Some(*flag),
            _ => None,
        }
    }

    /// A number of any type.
    pub fn float(&self, key: &str) -> Option<f64> {
        self.value(key)?.as_float()
    }

    /// A count or an index: a number that is not negative, whatever integer type it has.
    pub fn count(&self, key: &str) -> Option<usize> {
        self.value(key)?.as_count()
    }

    /// A count that must be there, and not zero.
    ///
    /// # Errors
    /// It is missing or something else.
    pub fn required_count(&self, key: &str) -> Result<usize, FormatError> {
        self.count(key)
            .filter(|&n| n > 0)
            .ok_or_else(|| missing(key, "a positive integer"))
    }

    /// A number that must be there.
    ///
    /// # Errors
    /// It is missing or something else.
    pub fn required_float(&self, key: &str) -> Result<f64, FormatError> {
        self.float(key)
            .filter(|x| x.is_finite())
            .ok_or_else(|| missing(key, "a finite number"))
    }

    /// The elements of an array of strings; `None` where it is missing, another type, or not UTF-8.
    pub fn strings(&self, key: &str) -> Option<Vec<&str>> {
        match &self.array(key)?.0 {
            Elements::Values(values) => values.iter().map(Value::as_text).collect(),
            Elements::Packed {
                element: Element::Text,
                len,
                start,
                end,
            } => {
                let mut rest = self.sources.first()?.get(*start..*end)?;
                let mut strings = Vec::with_capacity(*len);
                for _ in 0..*len {
                    let (size, behind) = rest.split_first_chunk()?;
                    let (text, behind) = behind.split_at_checked(usize::try_from(u64::from_le_bytes(*size)).ok()?)?;
                    strings.push(std::str::from_utf8(text).ok()?);
                    rest = behind;
                }
                Some(strings)
            }
            Elements::Packed { .. } => None,
        }
    }

    /// The elements of an array of numbers.
    pub fn floats(&self, key: &str) -> Option<Vec<f32>> {
        self.scalars(key, |value| value.as_float().map(|x| x as f32))
    }

    /// The elements of an array of integers of any type.
    pub fn integers(&self, key: &str) -> Option<Vec<i64>> {
        self.scalars(key, |value| match value {
            Value::Integer(n) => i64::try_from(*n).ok(),
            _ => None,
        })
    }

    /// The elements of an array of truth values.
    pub fn flags(&self, key: &str) -> Option<Vec<bool>> {
        self.scalars(key, |value| match value {
            Value::Flag(flag) => Some(*flag),
            _ => None,
        })
    }

    pub(crate) fn array(&self, key: &str) -> Option<&Array> {
        match self.value(key)? {
            Value::Array(array) => Some(array),
            _ => None,
        }
    }

    fn scalars<T>(&self, key: &str, convert: impl Fn(&Value) -> Option<T>) -> Option<Vec<T>> {
        match &self.array(key)?.0 {
            Elements::Values(values) => values.iter().map(convert).collect(),
            Elements::Packed {
                element, start, end, ..
            } => {
                let bytes = self.sources.first()?.get(*start..*end)?;
                let size = element.size()?;
                bytes
                    .chunks_exact(size)
                    .map(|bytes| convert(&element.scalar(bytes)?))
                    .collect()
            }
        }
    }

    /// All tensors' names, types and shapes.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &TensorEntry)> {
        self.tensors.iter().map(|(name, entry)| (name.as_str(), entry))
    }

    /// Whether it has a tensor of this name.
    pub fn has_tensor(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Sum of all tensors' bytes.
    pub fn tensor_bytes(&self) -> usize {
        self.tensors.values().filter_map(TensorEntry::bytes).sum()
    }

    /// A tensor of the given shape, which counts as used from now on.
    ///
    /// # Errors
    /// It is missing, or has another shape.
    pub fn tensor(&self, name: &str, dims: &[usize]) -> Result<RawTensor<'_>, FormatError> {
        self.unused.borrow_mut().remove(name);
        let entry = self.tensors.get(name);
        let entry = entry.ok_or_else(|| FormatError::Damaged(format!("tensor {name} is missing")))?;
        if entry.dims != dims {
            return Err(FormatError::Damaged(format!(
                "tensor {name} has the shape {:?}, not {dims:?}",
                entry.dims
            )));
        }
        let data = entry.bytes().and_then(|bytes| match &entry.place {
            Place::File { source, start } => self.sources.get(*source)?.get(*start..start.checked_add(bytes)?),
            Place::Computed(data) => data.get(..bytes),
        });
        Ok(RawTensor {
            name: name.to_owned(),
            dtype: entry.dtype,
            dims: entry.dims.clone(),
            data: data.ok_or_else(|| FormatError::Damaged(format!("tensor {name} lies outside of its file")))?,
        })
    }

    /// Rows of a matrix whose width is known.
    ///
    /// # Errors
    /// It is missing, or no matrix.
    pub fn rows_of(&self, name: &str) -> Result<usize, FormatError> {
        match self.tensors.get(name).map(|entry| entry.dims.as_slice()) {
            Some(&[rows, _]) => Ok(rows),
            Some(_) => Err(FormatError::Damaged(format!("tensor {name} is not a matrix"))),
            None => Err(FormatError::Damaged(format!("tensor {name} is missing"))),
        }
    }

    /// The first tensor that nobody has asked for yet.
    pub fn unused_tensor(&self) -> Option<String> {
        self.unused.borrow().first().cloned()
    }
}

impl Deref for Source {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(mapping) => mapping,
            Self::Beginning(bytes) => bytes,
        }
    }
}

impl TensorEntry {
    /// Bytes that type and shape ask for; `None` where they make no sense together.
    pub fn bytes(&self) -> Option<usize> {
        self.dtype.tensor_bytes(&self.dims)
    }
}

impl<'a> RawTensor<'a> {
    /// `count` rows of a matrix from `first` on.
    ///
    /// # Panics
    /// It is no matrix, or has not as many rows.
    pub fn rows(&self, first: usize, count: usize) -> RawTensor<'a> {
        let row_bytes = self.data.len() / self.dims[0];
        RawTensor {
            name: self.name.clone(),
            dtype: self.dtype,
            dims: vec![count, self.dims[1]],
            data: &self.data[first * row_bytes..][..count * row_bytes],
        }
    }
}

/// The error for a key that is missing or has another type.
fn missing(key: &str, what: &str) -> FormatError {
    FormatError::Damaged(format!("its metadata lacks {key}, {what}"))
}

/// Opens a plain file; also gives its length.
pub(crate) fn open(path: &Path) -> Result<(File, usize), FormatError> {
    let unreadable = |source| FormatError::unreadable(path, source);
    // Asked first: opening a pipe would wait for its other end.
    if !std::fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(unreadable(std::io::Error::other("it is no file")));
    }
    let file = File::open(path).map_err(unreadable)?;
    let len = usize::try_from(file.metadata().map_err(unreadable)?.len())
        .map_err(|_| unreadable(std::io::ErrorKind::FileTooLarge.into()))?;
    Ok((file, len))
}

/// Maps a file.
pub(crate) fn map(path: &Path) -> Result<Mmap, FormatError> {
    let (file, _) = open(path)?;
    // SAFETY: model files are written once under another name and then renamed, never changed in place.
    unsafe { Mmap::map(&file) }.map_err(|source| FormatError::unreadable(path, source))
}
