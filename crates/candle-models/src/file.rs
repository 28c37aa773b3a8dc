//! A model's description and weights, whatever files they lie in: metadata by GGUF's keys, tensors by GGUF's names.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;

use candle_core::quantized::{GgmlDType, QTensor, ggml_file};
use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use memmap2::Mmap;

use crate::error::LoadError;

/// An open model: a GGUF file ([`ModelFile::gguf`]) or a folder of safetensors ([`ModelFile::safetensors`]), both under
/// the same names. The files must not be changed while it is open; dropping it unmaps them.
pub(crate) struct ModelFile {
    format: FileFormat,
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, TensorEntry>,
    mappings: Vec<Mmap>,
    /// Names of tensors that nobody has asked for yet.
    unused: RefCell<BTreeSet<String>>,
}

/// What kind of files a model was read from: they differ in how llama's query and key rows are ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileFormat {
    /// One GGUF file.
    Gguf,
    /// A folder as Hugging Face lays it out.
    Safetensors,
}

/// A value of the metadata.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Integer(i128),
    Float(f64),
    Flag(bool),
    Text(String),
    Array(Array),
}

/// An array of the metadata.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Array {
    /// As it lies in the first mapping: `len` elements in the bytes from `start` to `end`, whose bounds are checked.
    Packed {
        element: Element,
        len: usize,
        start: usize,
        end: usize,
    },
    /// Put together by the reader of the file.
    Values(Vec<Value>),
}

/// Types of GGUF's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Element {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    F32,
    F64,
    Flag,
    Text,
}

/// A tensor's type, shape and place.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TensorEntry {
    pub(crate) dtype: GgmlDType,
    /// Outermost first.
    pub(crate) dims: Vec<usize>,
    pub(crate) place: Place,
}

/// Where a tensor's bytes are.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Place {
    /// From `start` of a mapping on, as many as type and shape ask for.
    Mapped { mapping: usize, start: usize },
    /// In memory: computed from others, or from the metadata.
    Computed(Vec<u8>),
}

/// One tensor, its bytes as GGML lays them out.
#[derive(Debug, Clone)]
pub(crate) struct RawTensor<'a> {
    pub(crate) name: String,
    pub(crate) dtype: GgmlDType,
    /// Outermost first.
    pub(crate) dims: Vec<usize>,
    pub(crate) data: &'a [u8],
}

impl ModelFile {
    /// From what a reader found. Every mapped tensor must lie inside of its mapping: [`tensor_bytes`] says how many bytes
    /// it takes.
    pub(crate) fn new(
        format: FileFormat,
        metadata: BTreeMap<String, Value>,
        tensors: BTreeMap<String, TensorEntry>,
        mappings: Vec<Mmap>,
    ) -> Self {
        let unused = RefCell::new(tensors.keys().cloned().collect());
        Self {
            format,
            metadata,
            tensors,
            mappings,
            unused,
        }
    }

    pub(crate) fn format(&self) -> FileFormat {
        self.format
    }

    /// All keys, ascending.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &str> {
        self.metadata.keys().map(String::as_str)
    }

    pub(crate) fn value(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    pub(crate) fn string(&self, key: &str) -> Option<&str> {
        match self.value(key)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(crate) fn flag(&self, key: &str) -> Option<bool> {
        match self.value(key)? {
            Value::Flag(flag) => Some(*flag),
            _ => None,
        }
    }

    /// A number of any type.
    pub(crate) fn float(&self, key: &str) -> Option<f64> {
        self.value(key)?.as_float()
    }

    /// A count or an index: a number that is not negative, whatever integer type it has.
    pub(crate) fn count(&self, key: &str) -> Option<usize> {
        self.value(key)?.as_count()
    }

    pub(crate) fn required_count(&self, key: &str) -> Result<usize, LoadError> {
        self.count(key)
            .filter(|&n| n > 0)
            .ok_or_else(|| missing(key, "a positive integer"))
    }

    pub(crate) fn required_float(&self, key: &str) -> Result<f64, LoadError> {
        self.float(key)
            .filter(|x| x.is_finite())
            .ok_or_else(|| missing(key, "a finite number"))
    }

    /// The elements of an array of strings; `None` where it is missing, another type, or not UTF-8.
    pub(crate) fn strings(&self, key: &str) -> Option<Vec<&str>> {
        match self.array(key)? {
            Array::Values(values) => values.iter().map(Value::as_text).collect(),
            Array::Packed {
                element: Element::Text,
                len,
                start,
                end,
            } => {
                let mut rest = self.mappings.first()?.get(*start..*end)?;
                let mut strings = Vec::with_capacity(*len);
                for _ in 0..*len {
                    let (size, behind) = rest.split_first_chunk()?;
                    let (text, behind) = behind.split_at_checked(usize::try_from(u64::from_le_bytes(*size)).ok()?)?;
                    strings.push(std::str::from_utf8(text).ok()?);
                    rest = behind;
                }
                Some(strings)
            }
            Array::Packed { .. } => None,
        }
    }

    /// The elements of an array of numbers.
    pub(crate) fn floats(&self, key: &str) -> Option<Vec<f32>> {
        self.scalars(key, |value| value.as_float().map(|x| x as f32))
    }

    /// The elements of an array of integers of any type.
    pub(crate) fn integers(&self, key: &str) -> Option<Vec<i64>> {
        self.scalars(key, |value| match value {
            Value::Integer(n) => i64::try_from(*n).ok(),
            _ => None,
        })
    }

    /// The elements of an array of truth values.
    pub(crate) fn flags(&self, key: &str) -> Option<Vec<bool>> {
        self.scalars(key, |value| match value {
            Value::Flag(flag) => Some(*flag),
            _ => None,
        })
    }

    fn array(&self, key: &str) -> Option<&Array> {
        match self.value(key)? {
            Value::Array(array) => Some(array),
            _ => None,
        }
    }

    fn scalars<T>(&self, key: &str, convert: impl Fn(&Value) -> Option<T>) -> Option<Vec<T>> {
        match self.array(key)? {
            Array::Values(values) => values.iter().map(convert).collect(),
            Array::Packed {
                element, start, end, ..
            } => {
                let bytes = self.mappings.first()?.get(*start..*end)?;
                let size = element.size()?;
                bytes
                    .chunks_exact(size)
                    .map(|bytes| convert(&element.scalar(bytes)?))
                    .collect()
            }
        }
    }

    /// All tensors' names, types and shapes.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = (&str, &TensorEntry)> {
        self.tensors.iter().map(|(name, entry)| (name.as_str(), entry))
    }

    pub(crate) fn has_tensor(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Sum of all tensors' bytes.
    pub(crate) fn tensor_bytes(&self) -> usize {
        self.tensors.values().filter_map(TensorEntry::bytes).sum()
    }

    /// A tensor of the given shape, which counts as used from now on.
    pub(crate) fn tensor(&self, name: &str, dims: &[usize]) -> Result<RawTensor<'_>, LoadError> {
        self.unused.borrow_mut().remove(name);
        let entry = self.tensors.get(name);
        let entry = entry.ok_or_else(|| LoadError::Damaged(format!("tensor {name} is missing")))?;
        if entry.dims != dims {
            return Err(LoadError::Damaged(format!(
                "tensor {name} has the shape {:?}, not {dims:?}",
                entry.dims
            )));
        }
        let data = entry.bytes().and_then(|bytes| match &entry.place {
            Place::Mapped { mapping, start } => self.mappings.get(*mapping)?.get(*start..start.checked_add(bytes)?),
            Place::Computed(data) => data.get(..bytes),
        });
        Ok(RawTensor {
            name: name.to_owned(),
            dtype: entry.dtype,
            dims: entry.dims.clone(),
            data: data.ok_or_else(|| LoadError::Damaged(format!("tensor {name} lies outside of its file")))?,
        })
    }

    /// Rows of a matrix whose width is known.
    pub(crate) fn rows_of(&self, name: &str) -> Result<usize, LoadError> {
        match self.tensors.get(name).map(|entry| entry.dims.as_slice()) {
            Some(&[rows, _]) => Ok(rows),
            Some(_) => Err(LoadError::Damaged(format!("tensor {name} is not a matrix"))),
            None => Err(LoadError::Damaged(format!("tensor {name} is missing"))),
        }
    }

    /// Refuses files with tensors that the family did not ask for: they would change its results.
    pub(crate) fn refuse_unused_tensors(&self, family: &str) -> Result<(), LoadError> {
        match self.unused.borrow().first() {
            None => Ok(()),
            Some(name) => Err(LoadError::Unsupported(format!(
                "this variant of the {family} family is not supported: its tensor {name} has no place in the model"
            ))),
        }
    }
}

impl Value {
    pub(crate) fn as_count(&self) -> Option<usize> {
        match self {
            Self::Integer(n) => usize::try_from(*n).ok(),
            _ => None,
        }
    }

    pub(crate) fn as_float(&self) -> Option<f64> {
        match self {
            Self::Float(x) => Some(*x),
            Self::Integer(n) => Some(*n as f64),
            _ => None,
        }
    }

    pub(crate) fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }
}

impl Element {
    /// Bytes of one, where all have as many.
    pub(crate) fn size(self) -> Option<usize> {
        match self {
            Self::U8 | Self::I8 | Self::Flag => Some(1),
            Self::U16 | Self::I16 => Some(2),
            Self::U32 | Self::I32 | Self::F32 => Some(4),
            Self::U64 | Self::I64 | Self::F64 => Some(8),
            Self::Text => None,
        }
    }

    /// The value in exactly [`Element::size`] bytes, little-endian.
    pub(crate) fn scalar(self, bytes: &[u8]) -> Option<Value> {
        Some(match self {
            Self::U8 => Value::Integer(u8::from_le_bytes(bytes.try_into().ok()?).into()),
            Self::I8 => Value::Integer(i8::from_le_bytes(bytes.try_into().ok()?).into()),
            Self::U16 => Value::Integer(u16::from_le_bytes(bytes.try_into().ok()?).into()),
            Self::I16 => Value::Integer(i16::from_le_bytes(bytes.try_into().ok()?).into()),
            Self::U32 => Value::Integer(u32::from_le_bytes(bytes.try_into().ok()?).into()),
            Self::I32 => Value::Integer(i32::from_le_bytes(bytes.try_into().ok()?).into()),
            Self::U64 => Value::Integer(u64::from_le_bytes(bytes.try_into().ok()?).into()),
            Self::I64 => Value::Integer(i64::from_le_bytes(bytes.try_into().ok()?).into()),
            Self::F32 => Value::Float(f32::from_le_bytes(bytes.try_into().ok()?).into()),
            Self::F64 => Value::Float(f64::from_le_bytes(bytes.try_into().ok()?)),
            Self::Flag => Value::Flag(bytes != [0]),
            Self::Text => return None,
        })
    }
}

impl TensorEntry {
    /// Bytes that type and shape ask for; `None` where they make no sense together.
    pub(crate) fn bytes(&self) -> Option<usize> {
        tensor_bytes(self.dtype, &self.dims)
    }
}

/// Bytes of a tensor; `None` where the shape is empty, too large, or its rows are not whole blocks.
pub(crate) fn tensor_bytes(dtype: GgmlDType, dims: &[usize]) -> Option<usize> {
    let (&width, outer) = dims.split_last()?;
    let block = dtype.block_size();
    if width == 0 || !width.is_multiple_of(block) || outer.contains(&0) {
        return None;
    }
    let row = (width / block).checked_mul(dtype.type_size())?;
    outer.iter().try_fold(row, |bytes, &dim| bytes.checked_mul(dim))
}

impl<'a> RawTensor<'a> {
    /// `count` rows of a matrix from `first` on.
    pub(crate) fn rows(&self, first: usize, count: usize) -> RawTensor<'a> {
        let row_bytes = self.data.len() / self.dims[0];
        RawTensor {
            name: self.name.clone(),
            dtype: self.dtype,
            dims: vec![count, self.dims[1]],
            data: &self.data[first * row_bytes..][..count * row_bytes],
        }
    }

    /// All elements.
    pub(crate) fn to_f32(&self) -> candle_core::Result<Vec<f32>> {
        match self.dtype {
            GgmlDType::F32 => Ok(each(self.data, f32::from_le_bytes)),
            GgmlDType::F16 => Ok(each(self.data, |bytes| f16::from_le_bytes(bytes).to_f32())),
            GgmlDType::BF16 => Ok(each(self.data, |bytes| bf16::from_le_bytes(bytes).to_f32())),
            _ => self
                .to_qtensor(&Device::Cpu)?
                .dequantize(&Device::Cpu)?
                .flatten_all()?
                .to_vec1(),
        }
    }

    /// As candle's quantised tensor on `device`.
    pub(crate) fn to_qtensor(&self, device: &Device) -> candle_core::Result<QTensor> {
        ggml_file::qtensor_from_ggml(self.dtype, self.data, self.dims.clone(), device)
    }

    /// As a plain tensor of the type that the file has, where that is not quantised.
    pub(crate) fn to_dense(&self, device: &Device) -> Option<candle_core::Result<Tensor>> {
        let dtype = match self.dtype {
            GgmlDType::F32 => DType::F32,
            GgmlDType::F16 => DType::F16,
            GgmlDType::BF16 => DType::BF16,
            _ => return None,
        };
        Some(Tensor::from_raw_buffer(self.data, dtype, &self.dims, device))
    }
}

fn each<const N: usize>(bytes: &[u8], convert: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    let (chunks, _) = bytes.as_chunks::<N>();
    chunks.iter().map(|chunk| convert(*chunk)).collect()
}

/// The error for a key that is missing or has another type.
pub(crate) fn missing(key: &str, what: &str) -> LoadError {
    LoadError::Damaged(format!("its metadata lacks {key}, {what}"))
}

/// Maps a file.
pub(crate) fn map(path: &Path) -> Result<Mmap, LoadError> {
    let unreadable = |source| LoadError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(unreadable)?;
    if !file.metadata().map_err(unreadable)?.is_file() {
        return Err(unreadable(std::io::ErrorKind::InvalidInput.into()));
    }
    // SAFETY: model files are written once under another name and then renamed, never changed in place.
    unsafe { Mmap::map(&file) }.map_err(unreadable)
}
