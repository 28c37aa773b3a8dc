//! Element formats of weights as files store them.

use std::fmt;

/// How a matrix's elements are stored: the layouts of GGML (`ggml-common.h`), or plain little-endian numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// 32 elements: f16 scale, 4-bit values from -8 on.
    Q4_0,
    /// 32 elements: f16 scale and minimum, 4-bit values from 0 on.
    Q4_1,
    /// 32 elements: f16 scale, 5-bit values from -16 on.
    Q5_0,
    /// 32 elements: f16 scale and minimum, 5-bit values from 0 on.
    Q5_1,
    /// 32 elements: f16 scale, 8-bit signed values.
    Q8_0,
    /// 256 elements: f16 scale and minimum, 6-bit factors of both for each 32, 4-bit values.
    Q4K,
    /// 256 elements: as [`Format::Q4K`] with 5-bit values.
    Q5K,
    /// 256 elements: f16 scale, an 8-bit factor of it for each 16, 6-bit values from -32 on.
    Q6K,
    /// IEEE halves.
    F16,
    /// The upper halves of f32.
    Bf16,
    /// Single precision; kept as f16, or as bf16 where an element is beyond f16's range.
    F32,
}

impl Format {
    /// All formats.
    pub const ALL: [Self; 11] = [
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
        Self::F16,
        Self::Bf16,
        Self::F32,
    ];

    /// Elements that are stored together; a row holds whole blocks.
    pub const fn block_elements(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::Q4K | Self::Q5K | Self::Q6K => 256,
            Self::F16 | Self::Bf16 | Self::F32 => 1,
        }
    }

    /// Bytes of such a block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::Q4_0 => 2 + 16,
            Self::Q4_1 => 2 + 2 + 16,
            Self::Q5_0 => 2 + 4 + 16,
            Self::Q5_1 => 2 + 2 + 4 + 16,
            Self::Q8_0 => 2 + 32,
            Self::Q4K => 2 + 2 + 12 + 128,
            Self::Q5K => 2 + 2 + 12 + 32 + 128,
            Self::Q6K => 128 + 64 + 16 + 2,
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }

    /// Whether elements are small integers with a common scale.
    pub const fn is_quantised(self) -> bool {
        self.block_elements() > 1
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::F32 => "F32",
        })
    }
}
