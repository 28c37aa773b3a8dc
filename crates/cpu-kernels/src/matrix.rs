//! Weights as they lie in memory.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::halves::HalfKind;
use crate::memory::Memory;
use crate::shared::SharedOut;
use crate::tiles::{self, STRIP_ROWS, TILE_COLS, TileKind};
use crate::{Format, Kernels};

/// Bytes of raw weights that one packing task reads, about.
const PACK_BYTES: usize = 256 * 1024;

/// A matrix of weights, one row per output, laid out for the kernels: quantised formats as tiles of 16 rows and 32
/// columns (rows padded to 16), the others as plain rows of halves.
pub struct Matrix {
    rows: usize,
    cols: usize,
    kept: Kept,
    memory: Memory,
}

/// How the elements lie in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kept {
    Tiles(TileKind),
    Halves(HalfKind),
}

/// Why bytes are no matrix.
#[derive(Debug, thiserror::Error)]
pub enum MatrixError {
    /// The bytes are too many or too few.
    #[error(
        "a {format} matrix of {rows} rows and {cols} columns takes {expected} bytes, not {actual}: the file is damaged"
    )]
    Length {
        /// Element format.
        format: Format,
        /// Outputs.
        rows: usize,
        /// Inputs.
        cols: usize,
        /// Bytes that it takes.
        expected: usize,
        /// Bytes that there are.
        actual: usize,
    },
    /// A row would not be whole blocks, or there is nothing.
    #[error("no {format} matrix has {rows} rows and {cols} columns: columns come in blocks of {block}")]
    Shape {
        /// Element format.
        format: Format,
        /// Outputs.
        rows: usize,
        /// Inputs.
        cols: usize,
        /// Elements that are stored together.
        block: usize,
    },
    /// The system has no memory.
    #[error("no memory for a {format} matrix of {rows} rows and {cols} columns: use a smaller model")]
    Memory {
        /// Element format.
        format: Format,
        /// Outputs.
        rows: usize,
        /// Inputs.
        cols: usize,
        /// The system's reason.
        source: std::io::Error,
    },
}

impl Matrix {
    /// Lays out a matrix of `rows` rows (outputs) and `cols` columns (inputs) from `raw`: rows one after the other, in
    /// blocks of `format`. Works in parallel on the kernels' threads.
    ///
    /// # Errors
    /// `raw` has another length than the shape asks for, the shape is empty or cuts a block, or there is no memory.
    pub fn pack(kernels: &Kernels, format: Format, rows: usize, cols: usize, raw: &[u8]) -> Result<Self, MatrixError> {
        let block = format.block_elements();
        let shape = || MatrixError::Shape {
            format,
            rows,
            cols,
            block,
        };
        if rows == 0 || cols == 0 || !cols.is_multiple_of(block) {
            return Err(shape());
        }
        let row_bytes = cols / block * format.block_bytes();
        let expected = rows.checked_mul(row_bytes).ok_or_else(shape)?;
        if raw.len() != expected {
            let actual = raw.len();
            return Err(MatrixError::Length {
                format,
                rows,
                cols,
                expected,
                actual,
            });
        }
        let kept = match TileKind::of(format) {
            Some(kind) => Kept::Tiles(kind),
            None => Kept::Halves(HalfKind::for_elements(format, raw)),
        };
        let strip_bytes = kept.strip_bytes(cols);
        let bytes = match kept {
            Kept::Tiles(_) => rows.div_ceil(STRIP_ROWS).checked_mul(strip_bytes).ok_or_else(shape)?,
            Kept::Halves(_) => rows * cols * size_of::<u16>(),
        };
        let mut memory = Memory::zeroed(bytes).map_err(|source| MatrixError::Memory {
            format,
            rows,
            cols,
            source,
        })?;
        let per_task = (PACK_BYTES / (STRIP_ROWS * row_bytes)).max(1);
        let out = SharedOut::new(memory.as_mut_slice());
        let pack = |task: usize| {
            let (raw_step, step) = (per_task * STRIP_ROWS * row_bytes, per_task * strip_bytes);
            let raw = &raw[task * raw_step..];
            let raw = &raw[..raw.len().min(raw_step)];
            let len = step.min(bytes - task * step);
            // SAFETY: tasks' ranges do not overlap; `window` checks that this one exists.
            let out = unsafe { std::slice::from_raw_parts_mut(out.window(task * step, len), len) };
            kept.pack(format, raw, row_bytes, strip_bytes, out);
        };
        kernels.pool().for_each(rows.div_ceil(per_task * STRIP_ROWS), &pack);
        Ok(Self {
            rows,
            cols,
            kept,
            memory,
        })
    }

    /// Outputs of a product with this matrix.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs of a product with this matrix.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        self.memory.as_slice().len()
    }

    /// Bytes that a matrix will take in memory once it is packed.
    pub fn packed_bytes(format: Format, rows: usize, cols: usize) -> usize {
        match TileKind::of(format) {
            Some(kind) => rows
                .div_ceil(STRIP_ROWS)
                .saturating_mul(Kept::Tiles(kind).strip_bytes(cols)),
            None => rows.saturating_mul(cols).saturating_mul(size_of::<u16>()),
        }
    }

    /// One row as numbers: an embedding.
    ///
    /// # Panics
    /// There is no such row, or `out` is not `cols` long.
    pub fn row_to_f32(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows, "row {row} of a matrix with {} rows", self.rows);
        assert_eq!(out.len(), self.cols, "a row is as long as the matrix is wide");
        match self.kept {
            Kept::Tiles(kind) => {
                let strip = self.strip(row / STRIP_ROWS);
                tiles::row_to_f32(kind.layout(), strip, row % STRIP_ROWS, out);
            }
            Kept::Halves(kind) => {
                let row = &self.halves()[row * self.cols..][..self.cols];
                for (out, &bits) in out.iter_mut().zip(row) {
                    *out = kind.to_f32(bits);
                }
            }
        }
    }

    pub(crate) fn is_quantised(&self) -> bool {
        matches!(self.kept, Kept::Tiles(_))
    }

    pub(crate) fn kept(&self) -> Kept {
        self.kept
    }

    /// Strips of 16 rows, the last of which may be cut short.
    pub(crate) fn strips(&self) -> usize {
        self.rows.div_ceil(STRIP_ROWS)
    }

    /// Bytes of a whole strip.
    pub(crate) fn strip_bytes(&self) -> usize {
        self.kept.strip_bytes(self.cols)
    }

    /// The tiles of one strip.
    fn strip(&self, strip: usize) -> &[u8] {
        &self.memory.as_slice()[strip * self.strip_bytes()..][..self.strip_bytes()]
    }

    /// All tiles; strips lie one after the other.
    pub(crate) fn tiles(&self) -> &[u8] {
        debug_assert!(self.is_quantised(), "halves are no tiles");
        self.memory.as_slice()
    }

    /// The bits of all elements, row by row.
    pub(crate) fn halves(&self) -> &[u16] {
        debug_assert!(!self.is_quantised(), "tiles are no halves");
        // SAFETY: the memory is aligned to a page and initialised (the system zeroes it), `rows * cols` halves long, and
        // every bit pattern is a u16; it lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.memory.as_slice().as_ptr().cast(), self.rows * self.cols) }
    }
}

impl Kept {
    fn strip_bytes(self, cols: usize) -> usize {
        match self {
            Self::Tiles(kind) => cols / TILE_COLS * kind.layout().bytes(),
            Self::Halves(_) => STRIP_ROWS * cols * size_of::<u16>(),
        }
    }

    /// Packs whole strips, or the rest of a matrix.
    fn pack(self, format: Format, raw: &[u8], row_bytes: usize, strip_bytes: usize, out: &mut [u8]) {
        match self {
            Self::Tiles(kind) => {
                let strips = out.chunks_exact_mut(strip_bytes);
                for (rows, strip) in raw.chunks(STRIP_ROWS * row_bytes).zip(strips) {
                    tiles::pack_strip(format, kind.layout(), rows, row_bytes, strip);
                }
            }
            Self::Halves(kind) if format == Format::F32 => {
                // In pieces, since the conversion of a slice is vector code.
                const PIECE: usize = 64;
                let (values, _none) = raw.as_chunks::<4>();
                for (out, values) in out.chunks_mut(PIECE * size_of::<u16>()).zip(values.chunks(PIECE)) {
                    let mut floats = [0.0; PIECE];
                    for (float, &value) in floats.iter_mut().zip(values) {
                        *float = f32::from_le_bytes(value);
                    }
                    let (out, _none) = out.as_chunks_mut::<2>();
                    for (out, bits) in out.iter_mut().zip(kind.round(&floats)) {
                        *out = bits.to_ne_bytes();
                    }
                }
            }
            Self::Halves(_) => {
                let (values, _none) = raw.as_chunks::<2>();
                for (out, &value) in out.as_chunks_mut::<2>().0.iter_mut().zip(values) {
                    *out = u16::from_le_bytes(value).to_ne_bytes();
                }
            }
        }
    }
}

impl HalfKind {
    /// How elements of a format are kept: f32 as f16, unless one of them is beyond its range.
    fn for_elements(format: Format, raw: &[u8]) -> Self {
        // Halfway between the largest f16 and what would be the next, from where on rounding gives infinity.
        const BEYOND: f32 = 65_520.0;
        let fits = |value: &[u8; 4]| f32::from_le_bytes(*value).abs() < BEYOND;
        match format {
            Format::Bf16 => Self::Bf16,
            Format::F32 if !raw.as_chunks::<4>().0.iter().all(fits) => Self::Bf16,
            _ => Self::F16,
        }
    }

    fn to_f32(self, bits: u16) -> f32 {
        match self {
            Self::F16 => f16::from_bits(bits).to_f32(),
            Self::Bf16 => bf16::from_bits(bits).to_f32(),
        }
    }

    fn round<const N: usize>(self, values: &[f32; N]) -> [u16; N] {
        match self {
            Self::F16 => {
                let mut halves = [f16::ZERO; N];
                halves.convert_from_f32_slice(values);
                halves.map(f16::to_bits)
            }
            Self::Bf16 => values.map(|value| bf16::from_f32(value).to_bits()),
        }
    }
}

impl std::fmt::Debug for Matrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Matrix")
            .field("rows", &self.rows)
            .field("cols", &self.cols)
            .field("kept", &self.kept)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Numbers, kernels, raw};

    #[test]
    fn bytes_that_are_no_matrix_are_refused_by_name() {
        let kernels = kernels(1).next().expect("one level at least");
        let error = |format, rows, cols, len: usize| {
            Matrix::pack(&kernels, format, rows, cols, &vec![0; len])
                .expect_err("no matrix")
                .to_string()
        };
        assert_eq!(
            error(Format::Q4_1, 3, 64, 119),
            "a Q4_1 matrix of 3 rows and 64 columns takes 120 bytes, not 119: the file is damaged"
        );
        assert_eq!(
            error(Format::Q6K, 2, 128, 210),
            "no Q6_K matrix has 2 rows and 128 columns: columns come in blocks of 256"
        );
        assert_eq!(
            error(Format::F32, 0, 4, 0),
            "no F32 matrix has 0 rows and 4 columns: columns come in blocks of 1"
        );
        let too_large = usize::MAX / 16;
        assert!(error(Format::Q8_0, too_large, 32, 0).starts_with("no Q8_0 matrix has"));
    }

    #[test]
    fn single_precision_beyond_halves_is_kept_as_bf16() {
        let kernels = kernels(1).next().expect("one level at least");
        let values: [f32; 4] = [1.0, 70_000.0, -3.0, 1e30];
        let raw: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let matrix = Matrix::pack(&kernels, Format::F32, 2, 2, &raw).expect("a matrix");
        let mut row = [0.0; 2];
        matrix.row_to_f32(0, &mut row);
        assert!((row[1] - 70_000.0).abs() <= 70_000.0 / 256.0, "{}", row[1]);
        matrix.row_to_f32(1, &mut row);
        assert!((row[1] - 1e30).abs() <= 1e30 / 256.0, "{}", row[1]);
    }

    #[test]
    fn a_large_matrix_is_packed_in_pieces_as_a_small_one_is_at_once() {
        let kernels = kernels(3).next().expect("one level at least");
        let (rows, cols) = (1001, 512);
        let raw = raw(Format::Q5_1, rows, cols, &mut Numbers::new(5));
        let large = Matrix::pack(&kernels, Format::Q5_1, rows, cols, &raw).expect("a matrix");
        assert!(raw.len() > PACK_BYTES);
        let row_bytes = raw.len() / rows;
        let (mut row, mut expected) = (vec![0.0; cols], vec![0.0; cols]);
        for index in [0, 400, 1000] {
            let alone = Matrix::pack(&kernels, Format::Q5_1, 1, cols, &raw[index * row_bytes..][..row_bytes]);
            alone.expect("a matrix").row_to_f32(0, &mut expected);
            large.row_to_f32(index, &mut row);
            assert_eq!(row, expected);
        }
    }
}
