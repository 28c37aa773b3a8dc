//! Reading the header of a GGUF file where it lies in memory. All sizes in it are checked before they are believed;
//! large arrays stay where they are.
//!
//! The format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>, versions 2 and 3.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::quantized::GgmlDType;

use crate::error::LoadError;
use crate::file::{Array, Element, FileFormat, ModelFile, Place, TensorEntry, Value, map, tensor_bytes};

/// Where tensors begin in the file unless it says otherwise, as a multiple of bytes.
const DEFAULT_ALIGNMENT: usize = 32;
/// As many dimensions as GGML knows.
const MAX_DIMS: u32 = 4;
/// GGUF's number for arrays.
const ARRAY: u32 = 9;

impl ModelFile {
    /// Opens a GGUF file.
    ///
    /// # Errors
    /// It is unreadable, something else, damaged, or has tensors of unknown types.
    pub(crate) fn gguf(path: &Path) -> Result<Self, LoadError> {
        let mapping = map(path)?;
        if !mapping.starts_with(b"GGUF") {
            return Err(LoadError::NotGguf(path.to_owned()));
        }
        let (metadata, tensors) = read(&mapping)?;
        Ok(Self::new(FileFormat::Gguf, metadata, tensors, vec![mapping]))
    }
}

type Header = (BTreeMap<String, Value>, BTreeMap<String, TensorEntry>);

fn read(file: &[u8]) -> Result<Header, LoadError> {
    let mut cursor = Cursor { file, at: 4 };
    let version = cursor.u32()?;
    if !matches!(version, 2 | 3) {
        return Err(LoadError::Unsupported(format!(
            "GGUF of version {version} is not supported; versions 2 and 3 in little-endian order are"
        )));
    }
    let (tensors, values) = (cursor.u64()?, cursor.u64()?);
    let mut metadata = BTreeMap::new();
    for _ in 0..values {
        let key = cursor.name()?.to_owned();
        let value = cursor.value()?;
        if metadata.insert(key.clone(), value).is_some() {
            return Err(LoadError::Damaged(format!("{key} is in its metadata twice")));
        }
    }
    let mut entries = BTreeMap::new();
    for _ in 0..tensors {
        let (name, entry) = cursor.tensor()?;
        if entries.insert(name.to_owned(), entry).is_some() {
            return Err(LoadError::Damaged(format!("tensor {name} is in it twice")));
        }
    }
    let alignment = match metadata.get("general.alignment") {
        None => DEFAULT_ALIGNMENT,
        Some(value) => value
            .as_count()
            .filter(|alignment| alignment.is_power_of_two())
            .ok_or_else(|| LoadError::Damaged("its alignment is not a power of two".to_owned()))?,
    };
    let data = cursor.at.checked_next_multiple_of(alignment).unwrap_or(usize::MAX);
    for (name, entry) in &mut entries {
        place(name, entry, data, file.len())?;
    }
    Ok((metadata, entries))
}

/// Turns an offset into the data into one into the file, whose end it must not pass.
fn place(name: &str, entry: &mut TensorEntry, data: usize, file_bytes: usize) -> Result<(), LoadError> {
    let bytes = tensor_bytes(entry.dtype, &entry.dims)
        .ok_or_else(|| LoadError::Damaged(format!("tensor {name} has the impossible shape {:?}", entry.dims)))?;
    let Place::Mapped { start, .. } = &mut entry.place else {
        return Ok(());
    };
    let from = data.checked_add(*start);
    let end = from.and_then(|from| from.checked_add(bytes));
    match from.zip(end).filter(|&(_, end)| end <= file_bytes) {
        Some((from, _)) => *start = from,
        None => {
            return Err(LoadError::Damaged(format!(
                "tensor {name} lies outside of the file's {file_bytes} bytes: it may be cut short"
            )));
        }
    }
    if start.is_multiple_of(align_of::<f32>()) {
        Ok(())
    } else {
        Err(LoadError::Damaged(format!("tensor {name} is not aligned")))
    }
}

/// A place in the header.
struct Cursor<'a> {
    file: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn bytes(&mut self, count: usize) -> Result<&'a [u8], LoadError> {
        let end = self.at.checked_add(count);
        let bytes = end.and_then(|end| self.file.get(self.at..end));
        let bytes = bytes.ok_or_else(|| LoadError::Damaged("its header is cut short".to_owned()))?;
        self.at += count;
        Ok(bytes)
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], LoadError> {
        let mut fixed = [0; N];
        fixed.copy_from_slice(self.bytes(N)?);
        Ok(fixed)
    }

    fn u32(&mut self) -> Result<u32, LoadError> {
        self.fixed().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, LoadError> {
        self.fixed().map(u64::from_le_bytes)
    }

    fn size(&mut self) -> Result<usize, LoadError> {
        usize::try_from(self.u64()?).map_err(|_| LoadError::Damaged("its header has impossible sizes".to_owned()))
    }

    /// A key, or a tensor's name.
    fn name(&mut self) -> Result<&'a str, LoadError> {
        let size = self.size()?;
        std::str::from_utf8(self.bytes(size)?).map_err(|_| LoadError::Damaged("a name in it is not UTF-8".to_owned()))
    }

    fn value(&mut self) -> Result<Value, LoadError> {
        match self.u32()? {
            ARRAY => self.array().map(Value::Array),
            number => {
                let element = element(number)?;
                let Some(size) = element.size() else {
                    // Texts are for people, too: one that is not UTF-8 is no reason to refuse the model.
                    let size = self.size()?;
                    return Ok(Value::Text(String::from_utf8_lossy(self.bytes(size)?).into_owned()));
                };
                let value = element.scalar(self.bytes(size)?);
                value.ok_or_else(|| LoadError::Damaged("its header has impossible sizes".to_owned()))
            }
        }
    }

    /// Steps over an array; only strings have to be looked at one by one.
    fn array(&mut self) -> Result<Array, LoadError> {
        let element = element(self.u32()?)?;
        let len = self.size()?;
        let start = self.at;
        match element.size() {
            Some(size) => {
                self.bytes(len.saturating_mul(size))?;
            }
            None => {
                for _ in 0..len {
                    let size = self.size()?;
                    self.bytes(size)?;
                }
            }
        }
        Ok(Array::Packed {
            element,
            len,
            start,
            end: self.at,
        })
    }

    fn tensor(&mut self) -> Result<(&'a str, TensorEntry), LoadError> {
        let name = self.name()?;
        let count = self.u32()?;
        if count > MAX_DIMS {
            return Err(LoadError::Damaged(format!("tensor {name} has {count} dimensions")));
        }
        // The file has them innermost first.
        let mut dims = (0..count).map(|_| self.size()).collect::<Result<Vec<_>, _>>()?;
        dims.reverse();
        let dtype = tensor_type(name, self.u32()?)?;
        let place = Place::Mapped {
            mapping: 0,
            start: self.size()?,
        };
        Ok((name, TensorEntry { dtype, dims, place }))
    }
}

fn element(number: u32) -> Result<Element, LoadError> {
    Ok(match number {
        0 => Element::U8,
        1 => Element::I8,
        2 => Element::U16,
        3 => Element::I16,
        4 => Element::U32,
        5 => Element::I32,
        6 => Element::F32,
        7 => Element::Flag,
        8 => Element::Text,
        10 => Element::U64,
        11 => Element::I64,
        12 => Element::F64,
        ARRAY => return Err(LoadError::Unsupported("its metadata has an array of arrays".to_owned())),
        _ => {
            return Err(LoadError::Damaged(format!(
                "its metadata has a value of the unknown type {number}"
            )));
        }
    })
}

/// GGML's numbers for types of tensors.
fn tensor_type(name: &str, number: u32) -> Result<GgmlDType, LoadError> {
    let unsupported = match number {
        0 => return Ok(GgmlDType::F32),
        1 => return Ok(GgmlDType::F16),
        2 => return Ok(GgmlDType::Q4_0),
        3 => return Ok(GgmlDType::Q4_1),
        6 => return Ok(GgmlDType::Q5_0),
        7 => return Ok(GgmlDType::Q5_1),
        8 => return Ok(GgmlDType::Q8_0),
        10 => return Ok(GgmlDType::Q2K),
        11 => return Ok(GgmlDType::Q3K),
        12 => return Ok(GgmlDType::Q4K),
        13 => return Ok(GgmlDType::Q5K),
        14 => return Ok(GgmlDType::Q6K),
        30 => return Ok(GgmlDType::BF16),
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => {
            return Err(LoadError::Unsupported(format!(
                "tensor {name} has the unknown type {number}"
            )));
        }
    };
    Err(LoadError::Unsupported(format!(
        "tensor {name} is of type {unsupported}, which is not supported; \
         take a file of F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K or Q6_K"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn string(text: &str) -> Vec<u8> {
        let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
        bytes.extend(text.as_bytes());
        bytes
    }

    fn header(tensors: u64, values: u64, rest: &[&[u8]]) -> Vec<u8> {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend(tensors.to_le_bytes());
        bytes.extend(values.to_le_bytes());
        rest.iter().for_each(|part| bytes.extend(*part));
        bytes
    }

    fn refusal(bytes: &[u8]) -> String {
        read(bytes).expect_err("the header makes no sense").to_string()
    }

    #[test]
    fn a_file_may_promise_any_number_of_things_and_costs_only_what_it_has() {
        let endless = u64::MAX.to_le_bytes();
        for (tensors, values, rest) in [
            (u64::MAX, 0, vec![]),
            (0, u64::MAX, vec![]),
            (0, 1, vec![endless.to_vec()]),
            (0, 1, vec![string("k"), vec![9, 0, 0, 0, 8, 0, 0, 0], endless.to_vec()]),
            (0, 1, vec![string("k"), vec![9, 0, 0, 0, 12, 0, 0, 0], endless.to_vec()]),
        ] {
            let rest: Vec<&[u8]> = rest.iter().map(Vec::as_slice).collect();
            assert_eq!(
                refusal(&header(tensors, values, &rest)),
                "the model file is damaged: its header is cut short"
            );
        }
    }

    #[test]
    fn what_is_in_a_header_twice_is_refused() {
        let value = [string("k"), vec![7, 0, 0, 0, 1]].concat();
        assert!(refusal(&header(0, 2, &[&value, &value])).contains("k is in its metadata twice"));
        let tensor = [string("t"), vec![1, 0, 0, 0], 4u64.to_le_bytes().to_vec(), vec![0; 12]].concat();
        assert!(refusal(&header(2, 0, &[&tensor, &tensor])).contains("tensor t is in it twice"));
    }

    #[test]
    fn types_that_are_not_supported_are_named() {
        let tensor = [string("t"), vec![0, 0, 0, 0], vec![23, 0, 0, 0], vec![0; 8]].concat();
        assert!(refusal(&header(1, 0, &[&tensor])).starts_with("tensor t is of type IQ4_XS, which is not supported"));
        let value = [string("k"), vec![9, 0, 0, 0, 9, 0, 0, 0], vec![0; 8]].concat();
        assert_eq!(refusal(&header(0, 1, &[&value])), "its metadata has an array of arrays");
        assert!(refusal(b"GGUF\0\0\0\x03").contains("GGUF of version 50331648 is not supported"));
    }
}
