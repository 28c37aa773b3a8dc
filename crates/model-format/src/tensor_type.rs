//! Element types of tensors, as GGML numbers and lays them out.

use std::fmt;

/// How a tensor's elements are stored: the layouts of GGML (`ggml-common.h`), or plain little-endian numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TensorType {
    /// Single precision.
    F32,
    /// IEEE halves.
    F16,
    /// The upper halves of f32.
    Bf16,
    /// Double precision.
    F64,
    /// Signed bytes.
    I8,
    /// Signed integers of 16 bits.
    I16,
    /// Signed integers of 32 bits.
    I32,
    /// Signed integers of 64 bits.
    I64,
    /// 4 bits, a scale for each 32.
    Q4_0,
    /// 4 bits, a scale and a minimum for each 32.
    Q4_1,
    /// 5 bits, a scale for each 32.
    Q5_0,
    /// 5 bits, a scale and a minimum for each 32.
    Q5_1,
    /// 8 bits, a scale for each 32.
    Q8_0,
    /// 8 bits, a scale and a sum for each 32.
    Q8_1,
    /// 2 bits in blocks of 256.
    Q2K,
    /// 3 bits in blocks of 256.
    Q3K,
    /// 4 bits in blocks of 256.
    Q4K,
    /// 5 bits in blocks of 256.
    Q5K,
    /// 6 bits in blocks of 256.
    Q6K,
    /// 8 bits in blocks of 256.
    Q8K,
    /// 1.6 bits from a codebook.
    Iq1S,
    /// 1.8 bits from a codebook.
    Iq1M,
    /// 2.1 bits from a codebook.
    Iq2Xxs,
    /// 2.3 bits from a codebook.
    Iq2Xs,
    /// 2.6 bits from a codebook.
    Iq2S,
    /// 3.1 bits from a codebook.
    Iq3Xxs,
    /// 3.4 bits from a codebook.
    Iq3S,
    /// 4 bits that do not rise evenly, a scale for each 32.
    Iq4Nl,
    /// 4 bits that do not rise evenly, in blocks of 256.
    Iq4Xs,
    /// Ternary, 1.7 bits.
    Tq1_0,
    /// Ternary, 2.1 bits.
    Tq2_0,
    /// 4-bit floating point, an exponent for each 32.
    Mxfp4,
}

/// A type's facts: GGML's number and name, elements and bytes of a block.
struct Layout(u32, &'static str, usize, usize);

impl TensorType {
    /// All types.
    pub const ALL: [Self; 32] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::F64,
        Self::I8,
        Self::I16,
        Self::I32,
        Self::I64,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q8_1,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
        Self::Q8K,
        Self::Iq1S,
        Self::Iq1M,
        Self::Iq2Xxs,
        Self::Iq2Xs,
        Self::Iq2S,
        Self::Iq3Xxs,
        Self::Iq3S,
        Self::Iq4Nl,
        Self::Iq4Xs,
        Self::Tq1_0,
        Self::Tq2_0,
        Self::Mxfp4,
    ];

    const fn layout(self) -> Layout {
        match self {
            Self::F32 => Layout(0, "F32", 1, 4),
            Self::F16 => Layout(1, "F16", 1, 2),
            Self::Bf16 => Layout(30, "BF16", 1, 2),
            Self::F64 => Layout(28, "F64", 1, 8),
            Self::I8 => Layout(24, "I8", 1, 1),
            Self::I16 => Layout(25, "I16", 1, 2),
            Self::I32 => Layout(26, "I32", 1, 4),
            Self::I64 => Layout(27, "I64", 1, 8),
            Self::Q4_0 => Layout(2, "Q4_0", 32, 18),
            Self::Q4_1 => Layout(3, "Q4_1", 32, 20),
            Self::Q5_0 => Layout(6, "Q5_0", 32, 22),
            Self::Q5_1 => Layout(7, "Q5_1", 32, 24),
            Self::Q8_0 => Layout(8, "Q8_0", 32, 34),
            Self::Q8_1 => Layout(9, "Q8_1", 32, 36),
            Self::Q2K => Layout(10, "Q2_K", 256, 84),
            Self::Q3K => Layout(11, "Q3_K", 256, 110),
            Self::Q4K => Layout(12, "Q4_K", 256, 144),
            Self::Q5K => Layout(13, "Q5_K", 256, 176),
            Self::Q6K => Layout(14, "Q6_K", 256, 210),
            Self::Q8K => Layout(15, "Q8_K", 256, 292),
            Self::Iq1S => Layout(19, "IQ1_S", 256, 50),
            Self::Iq1M => Layout(29, "IQ1_M", 256, 56),
            Self::Iq2Xxs => Layout(16, "IQ2_XXS", 256, 66),
            Self::Iq2Xs => Layout(17, "IQ2_XS", 256, 74),
            Self::Iq2S => Layout(22, "IQ2_S", 256, 82),
            Self::Iq3Xxs => Layout(18, "IQ3_XXS", 256, 98),
            Self::Iq3S => Layout(21, "IQ3_S", 256, 110),
            Self::Iq4Nl => Layout(20, "IQ4_NL", 32, 18),
            Self::Iq4Xs => Layout(23, "IQ4_XS", 256, 136),
            Self::Tq1_0 => Layout(34, "TQ1_0", 256, 54),
            Self::Tq2_0 => Layout(35, "TQ2_0", 256, 66),
            Self::Mxfp4 => Layout(39, "MXFP4", 32, 17),
        }
    }

    /// The type of GGML's number.
    pub fn of_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.layout().0 == number)
    }

    /// The name as people write it, for example `Q4_K`.
    pub const fn name(self) -> &'static str {
        self.layout().1
    }

    /// Elements that are stored together; a row holds whole blocks.
    pub const fn block_elements(self) -> usize {
        self.layout().2
    }

    /// Bytes of such a block.
    pub const fn block_bytes(self) -> usize {
        self.layout().3
    }

    /// Bytes of a tensor with these dimensions, outermost first; `None` where the shape is empty, too large, or its rows
    /// are not whole blocks.
    pub fn tensor_bytes(self, dims: &[usize]) -> Option<usize> {
        let (&width, outer) = dims.split_last()?;
        let block = self.block_elements();
        if width == 0 || !width.is_multiple_of(block) || outer.contains(&0) {
            return None;
        }
        let row = (width / block).checked_mul(self.block_bytes())?;
        outer.iter().try_fold(row, |bytes, &dim| bytes.checked_mul(dim))
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_is_found_by_its_number_and_has_a_name_of_its_own() {
        for dtype in TensorType::ALL {
            assert_eq!(TensorType::of_number(dtype.layout().0), Some(dtype));
            let same = TensorType::ALL.into_iter().filter(|other| other.name() == dtype.name());
            assert_eq!(same.count(), 1, "{dtype}");
        }
        assert_eq!(TensorType::of_number(4), None, "a type that GGML has given up");
    }

    #[test]
    fn a_tensor_takes_whole_blocks_in_each_row() {
        assert_eq!(TensorType::Q4K.tensor_bytes(&[3, 512]), Some(3 * 2 * 144));
        assert_eq!(TensorType::F32.tensor_bytes(&[7]), Some(28));
        for dims in [&[][..], &[2, 0], &[0, 256], &[1, 255], &[usize::MAX, 256]] {
            assert_eq!(TensorType::Q6K.tensor_bytes(dims), None, "{dims:?}");
        }
    }
}
