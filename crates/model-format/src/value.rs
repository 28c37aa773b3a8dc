//! Values of a model's metadata, as GGUF has them.

/// A value of the metadata.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Of any integer type.
    Integer(i128),
    /// Single or double precision.
    Float(f64),
    /// A truth value.
    Flag(bool),
    /// A string.
    Text(String),
    /// Several values of one type.
    Array(Array),
}

/// An array of the metadata. [`crate::ModelFile`] gives its elements.
#[derive(Debug, Clone, PartialEq)]
pub struct Array(pub(crate) Elements);

/// Where an array's elements are.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Elements {
    /// As they lie in the first source: `len` elements in the bytes from `start` to `end`, whose bounds are checked.
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

impl Value {
    /// A count or an index: an integer that is not negative.
    pub fn as_count(&self) -> Option<usize> {
        match self {
            Self::Integer(n) => usize::try_from(*n).ok(),
            _ => None,
        }
    }

    /// A number of any type.
    pub fn as_float(&self) -> Option<f64> {
        match self {
            Self::Float(x) => Some(*x),
            Self::Integer(n) => Some(*n as f64),
            _ => None,
        }
    }

    /// A string.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }
}

impl Array {
    pub(crate) fn of(values: Vec<Value>) -> Self {
        Self(Elements::Values(values))
    }

    /// How many elements it has.
    pub(crate) fn len(&self) -> usize {
        match &self.0 {
            Elements::Packed { len, .. } => *len,
            Elements::Values(values) => values.len(),
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
