//! Reading the header of a GGUF file where it lies in memory. All sizes in it are checked before they are believed;
//! large arrays stay where they are.
//!
//! The format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>, versions 2 and 3.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::Path;

use crate::FormatError;
use crate::file::{FileFormat, ModelFile, Place, Source, TensorEntry, map, open};
use crate::tensor_type::TensorType;
use crate::value::{Array, Element, Elements, Value};

/// What every GGUF file begins with.
const MAGIC: &[u8] = b"GGUF";
/// Where tensors begin in the file unless it says otherwise, as a multiple of bytes.
const DEFAULT_ALIGNMENT: usize = 32;
/// As many dimensions as GGML knows.
const MAX_DIMS: u32 = 4;
/// GGUF's number for arrays.
const ARRAY: u32 = 9;
/// Bytes of a file that are read first, in search of its header's end.
const FIRST_READ: usize = 1 << 18;
/// Bytes of a header, beyond any: a vocabulary takes some 20 MiB.
const MAX_HEADER: usize = 1 << 28;
/// Values of the metadata, and tensors, beyond any: each takes some ten times the memory of its bytes in the file.
const MAX_ENTRIES: usize = 1 << 18;

impl ModelFile {
    /// Opens a GGUF file.
    ///
    /// # Errors
    /// It is unreadable, something else, damaged, one of several parts, or has tensors of unknown types.
    pub fn gguf(path: &Path) -> Result<Self, FormatError> {
        let mapping = map(path)?;
        if !mapping.starts_with(MAGIC) {
            return Err(FormatError::NotGguf(path.to_owned()));
        }
        let Header { metadata, tensors } = read(&mapping, mapping.len()).map_err(|stop| match stop {
            Stop::Refused(error) => error,
            Stop::More(_) => cut_short(),
        })?;
        let sources = vec![Source::Mapped(mapping)];
        Ok(Self::new(FileFormat::Gguf, metadata, tensors, sources))
    }
}

/// The description in a GGUF file. The file is read, not mapped, as far as its header goes: whoever changes it meanwhile
/// causes an error at worst. The weights are not there.
pub(crate) fn description(path: &Path) -> Result<ModelFile, FormatError> {
    let (file, len) = open(path)?;
    describe(file, len)
        .map_err(|source| FormatError::unreadable(path, source))?
        .unwrap_or_else(|| Err(FormatError::NotGguf(path.to_owned())))
}

/// The description at the beginning of a file of `len` bytes; `None`: it is no GGUF file.
fn describe(mut file: impl Read, mut len: usize) -> io::Result<Option<Result<ModelFile, FormatError>>> {
    let mut bytes = Vec::new();
    let mut wanted = FIRST_READ;
    loop {
        let target = wanted.min(len);
        file.by_ref()
            .take((target - bytes.len()) as u64)
            .read_to_end(&mut bytes)?;
        if bytes.len() < target {
            // It has been cut since its length was asked for.
            len = bytes.len();
        }
        if !bytes.starts_with(MAGIC) {
            return Ok(None);
        }
        let error = match read(&bytes, len) {
            Ok(Header { metadata, tensors }) => {
                let sources = vec![Source::Beginning(bytes)];
                return Ok(Some(Ok(ModelFile::new(FileFormat::Gguf, metadata, tensors, sources))));
            }
            Err(Stop::Refused(error)) => error,
            Err(Stop::More(end)) if end > MAX_HEADER => {
                FormatError::Damaged(format!("its header is longer than {MAX_HEADER} bytes"))
            }
            Err(Stop::More(end)) => {
                wanted = end.max(4 * bytes.len());
                continue;
            }
        };
        return Ok(Some(Err(error)));
    }
}

/// What a header says.
#[derive(Debug)]
struct Header {
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, TensorEntry>,
}

/// Why reading a header ended before its end.
#[derive(Debug)]
enum Stop {
    /// The file goes on beyond the bytes that are there; the header needs them up to this one at least.
    More(usize),
    Refused(FormatError),
}

impl From<FormatError> for Stop {
    fn from(error: FormatError) -> Self {
        Self::Refused(error)
    }
}

fn cut_short() -> FormatError {
    FormatError::Damaged("its header is cut short".to_owned())
}

fn impossible_size() -> FormatError {
    FormatError::Damaged("its header has impossible sizes".to_owned())
}

/// Reads the header of a file of `file_bytes` bytes, of which the first ones are there.
fn read(bytes: &[u8], file_bytes: usize) -> Result<Header, Stop> {
    let mut cursor = Cursor {
        bytes,
        at: MAGIC.len(),
        file_bytes,
    };
    let version = cursor.u32()?;
    if !matches!(version, 2 | 3) {
        return Err(Stop::Refused(FormatError::Unsupported(format!(
            "GGUF of version {version} is not supported; versions 2 and 3 in little-endian order are"
        ))));
    }
    let (tensors, values) = (cursor.u64()?, cursor.u64()?);
    let metadata = cursor.metadata(values)?;
    let entries = cursor.tensors(tensors)?;
    let header = Header {
        metadata,
        tensors: entries,
    };
    Ok(header.placed(cursor.at, file_bytes)?)
}

impl Header {
    /// With tensors' offsets into the data as offsets into the file; the header ends at `end`.
    fn placed(mut self, end: usize, file_bytes: usize) -> Result<Self, FormatError> {
        let alignment = match self.metadata.get("general.alignment") {
            None => DEFAULT_ALIGNMENT,
            Some(value) => value
                .as_count()
                .filter(|alignment| alignment.is_power_of_two())
                .ok_or_else(|| FormatError::Damaged("its alignment is not a power of two".to_owned()))?,
        };
        let parts = self.metadata.get("split.count").and_then(Value::as_count);
        if let Some(parts) = parts.filter(|&parts| parts > 1) {
            return Err(FormatError::Unsupported(format!(
                "the file is one of {parts} parts; join them to one file first"
            )));
        }
        let data = end.checked_next_multiple_of(alignment).unwrap_or(usize::MAX);
        for (name, entry) in &mut self.tensors {
            place(name, entry, data, file_bytes)?;
        }
        Ok(self)
    }
}

/// Turns an offset into the data into one into the file, whose end it must not pass.
fn place(name: &str, entry: &mut TensorEntry, data: usize, file_bytes: usize) -> Result<(), FormatError> {
    let bytes = entry
        .bytes()
        .ok_or_else(|| FormatError::Damaged(format!("tensor {name} has the impossible shape {:?}", entry.dims)))?;
    let Place::File { start, .. } = &mut entry.place else {
        return Ok(());
    };
    let from = data.checked_add(*start);
    let end = from.and_then(|from| from.checked_add(bytes));
    match from.zip(end).filter(|&(_, end)| end <= file_bytes) {
        Some((from, _)) => *start = from,
        None => {
            return Err(FormatError::Damaged(format!(
                "tensor {name} lies outside of the file's {file_bytes} bytes: it may be cut short"
            )));
        }
    }
    if start.is_multiple_of(align_of::<f32>()) {
        Ok(())
    } else {
        Err(FormatError::Damaged(format!("tensor {name} is not aligned")))
    }
}

/// A place in the header.
struct Cursor<'a> {
    /// The file's first bytes.
    bytes: &'a [u8],
    at: usize,
    /// The whole file's length.
    file_bytes: usize,
}

impl<'a> Cursor<'a> {
    fn bytes(&mut self, count: usize) -> Result<&'a [u8], Stop> {
        let end = self.at.checked_add(count).filter(|&end| end <= self.file_bytes);
        let end = end.ok_or_else(cut_short)?;
        let bytes = self.bytes.get(self.at..end).ok_or(Stop::More(end))?;
        self.at = end;
        Ok(bytes)
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], Stop> {
        let mut fixed = [0; N];
        fixed.copy_from_slice(self.bytes(N)?);
        Ok(fixed)
    }

    fn u32(&mut self) -> Result<u32, Stop> {
        self.fixed().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Stop> {
        self.fixed().map(u64::from_le_bytes)
    }

    fn size(&mut self) -> Result<usize, Stop> {
        Ok(usize::try_from(self.u64()?).map_err(|_| impossible_size())?)
    }

    /// A key, or a tensor's name.
    fn name(&mut self) -> Result<&'a str, Stop> {
        let size = self.size()?;
        let name = std::str::from_utf8(self.bytes(size)?);
        Ok(name.map_err(|_| FormatError::Damaged("a name in it is not UTF-8".to_owned()))?)
    }

    fn metadata(&mut self, count: u64) -> Result<BTreeMap<String, Value>, Stop> {
        let mut metadata = BTreeMap::new();
        for _ in 0..count {
            bounded(metadata.len())?;
            let key = self.name()?;
            if metadata.insert(key.to_owned(), self.value()?).is_some() {
                let what = format!("{key} is in its metadata twice");
                return Err(Stop::Refused(FormatError::Damaged(what)));
            }
        }
        Ok(metadata)
    }

    fn value(&mut self) -> Result<Value, Stop> {
        match self.u32()? {
            ARRAY => self.array().map(Value::Array),
            number => {
                let element = element(number)?;
                let Some(size) = element.size() else {
                    // Texts are for people, too: one that is not UTF-8 is no reason to refuse the model.
                    let size = self.size()?;
                    return Ok(Value::Text(String::from_utf8_lossy(self.bytes(size)?).into_owned()));
                };
                Ok(element.scalar(self.bytes(size)?).ok_or_else(impossible_size)?)
            }
        }
    }

    /// Steps over an array; only strings have to be looked at one by one.
    fn array(&mut self) -> Result<Array, Stop> {
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
        Ok(Array(Elements::Packed {
            element,
            len,
            start,
            end: self.at,
        }))
    }

    fn tensors(&mut self, count: u64) -> Result<BTreeMap<String, TensorEntry>, Stop> {
        let mut tensors = BTreeMap::new();
        for _ in 0..count {
            bounded(tensors.len())?;
            let (name, entry) = self.tensor()?;
            if tensors.insert(name.to_owned(), entry).is_some() {
                let what = format!("tensor {name} is in it twice");
                return Err(Stop::Refused(FormatError::Damaged(what)));
            }
        }
        Ok(tensors)
    }

    fn tensor(&mut self) -> Result<(&'a str, TensorEntry), Stop> {
        let name = self.name()?;
        let count = self.u32()?;
        if count > MAX_DIMS {
            let what = format!("tensor {name} has {count} dimensions");
            return Err(Stop::Refused(FormatError::Damaged(what)));
        }
        // The file has them innermost first.
        let mut dims = (0..count).map(|_| self.size()).collect::<Result<Vec<_>, _>>()?;
        dims.reverse();
        let number = self.u32()?;
        let dtype = TensorType::of_number(number)
            .ok_or_else(|| FormatError::Unsupported(format!("tensor {name} has the unknown type {number}")))?;
        let place = Place::File {
            source: 0,
            start: self.size()?,
        };
        Ok((name, TensorEntry { dtype, dims, place }))
    }
}

fn bounded(entries: usize) -> Result<(), FormatError> {
    if entries < MAX_ENTRIES {
        return Ok(());
    }
    Err(FormatError::Damaged(format!(
        "its header has more than {MAX_ENTRIES} values or tensors"
    )))
}

fn element(number: u32) -> Result<Element, FormatError> {
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
        ARRAY => {
            return Err(FormatError::Unsupported(
                "its metadata has an array of arrays".to_owned(),
            ));
        }
        _ => {
            return Err(FormatError::Damaged(format!(
                "its metadata has a value of the unknown type {number}"
            )));
        }
    })
}

#[cfg(test)]
mod tests;
