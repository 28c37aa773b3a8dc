//! A GGUF file: its metadata with types, and its tensors' raw blocks in the mapped file.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Cursor;
use std::path::Path;

use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::quantized::{GgmlDType, QTensor, ggml_file};
use candle_core::{Device, Tensor};
use memmap2::Mmap;

use crate::error::LoadError;

/// An open file. It must not be changed while it is open.
pub(crate) struct Gguf {
    memory: Mmap,
    content: Content,
    /// Names of tensors that nobody has asked for yet.
    unused: RefCell<BTreeSet<String>>,
}

/// One tensor's place in the file.
#[derive(Debug, Clone)]
pub(crate) struct RawTensor<'a> {
    pub(crate) name: String,
    pub(crate) dtype: GgmlDType,
    /// Outermost first.
    pub(crate) dims: Vec<usize>,
    pub(crate) data: &'a [u8],
}

impl Gguf {
    pub(crate) fn open(path: &Path) -> Result<Self, LoadError> {
        let unreadable = |source| LoadError::Unreadable {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(unreadable)?;
        if !file.metadata().map_err(unreadable)?.is_file() {
            return Err(unreadable(std::io::ErrorKind::InvalidInput.into()));
        }
        let memory = map(&file).map_err(unreadable)?;
        if !memory.starts_with(b"GGUF") {
            return Err(LoadError::NotGguf(path.to_owned()));
        }
        // Candle divides by the alignment that the file states, unchecked; nothing is left half-changed by a panic.
        let content = std::panic::catch_unwind(|| Content::read(&mut Cursor::new(&memory[..])))
            .map_err(|_| LoadError::Damaged("its header makes no sense".to_owned()))?
            .map_err(|error| LoadError::Damaged(format!("its header cannot be read: {error}")))?;
        let unused = RefCell::new(content.tensor_infos.keys().cloned().collect());
        Ok(Self {
            memory,
            content,
            unused,
        })
    }

    pub(crate) fn value(&self, key: &str) -> Option<&Value> {
        self.content.metadata.get(key)
    }

    pub(crate) fn string(&self, key: &str) -> Option<&str> {
        self.value(key)?.to_string().ok().map(String::as_str)
    }

    pub(crate) fn flag(&self, key: &str) -> Option<bool> {
        self.value(key)?.to_bool().ok()
    }

    pub(crate) fn float(&self, key: &str) -> Option<f32> {
        match self.value(key)? {
            Value::F32(value) => Some(*value),
            Value::F64(value) => Some(*value as f32),
            _ => None,
        }
    }

    /// A count or an index, whatever integer type it has.
    pub(crate) fn count(&self, key: &str) -> Option<usize> {
        count(self.value(key)?)
    }

    pub(crate) fn required_count(&self, key: &str) -> Result<usize, LoadError> {
        self.count(key)
            .filter(|&n| n > 0)
            .ok_or_else(|| missing(key, "a positive integer"))
    }

    pub(crate) fn required_float(&self, key: &str) -> Result<f32, LoadError> {
        self.float(key)
            .filter(|x| x.is_finite())
            .ok_or_else(|| missing(key, "a finite number"))
    }

    pub(crate) fn array(&self, key: &str) -> Option<&[Value]> {
        self.value(key)?.to_vec().ok().map(Vec::as_slice)
    }

    /// Sum of all tensors' bytes.
    pub(crate) fn tensor_bytes(&self) -> usize {
        self.content
            .tensor_infos
            .keys()
            .filter_map(|name| self.locate(name).ok())
            .map(|raw| raw.data.len())
            .sum()
    }

    pub(crate) fn has_tensor(&self, name: &str) -> bool {
        self.content.tensor_infos.contains_key(name)
    }

    /// A tensor of the given shape, which counts as used from now on.
    pub(crate) fn tensor(&self, name: &str, dims: &[usize]) -> Result<RawTensor<'_>, LoadError> {
        self.unused.borrow_mut().remove(name);
        let raw = self.locate(name)?;
        if raw.dims != dims {
            return Err(LoadError::Damaged(format!(
                "tensor {name} has the shape {:?}, not {dims:?}",
                raw.dims
            )));
        }
        Ok(raw)
    }

    /// Rows of a matrix whose width is known.
    pub(crate) fn rows_of(&self, name: &str) -> Result<usize, LoadError> {
        match self.locate(name)?.dims[..] {
            [rows, _] => Ok(rows),
            _ => Err(LoadError::Damaged(format!("tensor {name} is not a matrix"))),
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

    fn locate(&self, name: &str) -> Result<RawTensor<'_>, LoadError> {
        let info = self.content.tensor_infos.get(name);
        let info = info.ok_or_else(|| LoadError::Damaged(format!("tensor {name} is missing")))?;
        let dims = info.shape.dims().to_vec();
        let nonsense = || LoadError::Damaged(format!("tensor {name} has the impossible shape {dims:?}"));
        let block = info.ggml_dtype.block_size();
        let width = dims
            .last()
            .copied()
            .filter(|&width| width > 0 && width.is_multiple_of(block));
        let width = width.ok_or_else(nonsense)?;
        let rows = dims[..dims.len() - 1]
            .iter()
            .try_fold(1usize, |n, &dim| n.checked_mul(dim));
        let row_bytes = (width / block).checked_mul(info.ggml_dtype.type_size());
        let bytes = rows
            .filter(|&n| n > 0)
            .zip(row_bytes)
            .and_then(|(n, bytes)| n.checked_mul(bytes));
        let bytes = bytes.ok_or_else(nonsense)?;
        let start = self
            .content
            .tensor_data_offset
            .checked_add(info.offset)
            .and_then(|n| usize::try_from(n).ok());
        let start = start.filter(|start| start.is_multiple_of(align_of::<f32>()));
        let end = start.and_then(|start| start.checked_add(bytes));
        let data = start.zip(end).and_then(|(start, end)| self.memory.get(start..end));
        let data = data.ok_or_else(|| {
            let size = self.memory.len();
            LoadError::Damaged(format!(
                "tensor {name} lies outside of the file's {size} bytes: it may be cut short"
            ))
        })?;
        Ok(RawTensor {
            name: name.to_owned(),
            dtype: info.ggml_dtype,
            dims,
            data,
        })
    }
}

impl RawTensor<'_> {
    /// As candle's quantised tensor on `device`.
    pub(crate) fn to_qtensor(&self, device: &Device) -> candle_core::Result<QTensor> {
        ggml_file::qtensor_from_ggml(self.dtype, self.data, self.dims.clone(), device)
    }

    /// All elements.
    pub(crate) fn to_f32(&self) -> candle_core::Result<Vec<f32>> {
        self.to_qtensor(&Device::Cpu)?
            .dequantize(&Device::Cpu)?
            .flatten_all()?
            .to_vec1()
    }

    /// The rows of a matrix from `first` on, as many as `out` has room for.
    pub(crate) fn rows_to_f32(&self, first: usize, out: &mut [f32]) -> candle_core::Result<()> {
        let (all, width) = (self.dims[0], self.dims[1]);
        let rows = out.len() / width;
        let row_bytes = self.data.len() / all;
        let data = &self.data[first * row_bytes..][..rows * row_bytes];
        let piece = RawTensor {
            name: String::new(),
            dtype: self.dtype,
            dims: vec![rows, width],
            data,
        };
        out.copy_from_slice(&piece.to_f32()?);
        Ok(())
    }

    /// All elements as a plain tensor.
    pub(crate) fn to_tensor(&self, device: &Device) -> candle_core::Result<Tensor> {
        self.to_qtensor(&Device::Cpu)?.dequantize(device)
    }
}

/// An integer of any type that is not negative.
pub(crate) fn count(value: &Value) -> Option<usize> {
    match *value {
        Value::U8(n) => Some(n.into()),
        Value::U16(n) => Some(n.into()),
        Value::U32(n) => usize::try_from(n).ok(),
        Value::U64(n) => usize::try_from(n).ok(),
        Value::I8(n) => usize::try_from(n).ok(),
        Value::I16(n) => usize::try_from(n).ok(),
        Value::I32(n) => usize::try_from(n).ok(),
        Value::I64(n) => usize::try_from(n).ok(),
        _ => None,
    }
}

fn missing(key: &str, what: &str) -> LoadError {
    LoadError::Damaged(format!("its metadata lacks {key}, {what}"))
}

fn map(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: model files are written once under another name and then renamed, never changed in place.
    unsafe { Mmap::map(file) }
}
