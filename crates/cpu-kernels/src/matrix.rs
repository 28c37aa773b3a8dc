//! Weights as they lie in memory.

use half::f16;
use half::slice::HalfFloatSliceExt;
use memmap2::MmapMut;
use rayon::prelude::*;

/// A row-major matrix of f16, one row per output. Rows are contiguous; nothing is padded.
pub struct HalfMatrix {
    rows: usize,
    cols: usize,
    // Anonymous memory rather than a Vec, so that the kernel may be asked for huge pages.
    memory: MmapMut,
}

impl HalfMatrix {
    /// Rows that one call of `fill` gets at most.
    const FILL_ROWS: usize = 64;

    /// Builds a matrix from pieces of f32 rows: `fill(first_row, piece)` writes the rows from `first_row` on that
    /// `piece` (a multiple of `cols` long) has room for. Pieces are filled in parallel, in any order, and rounded to
    /// f16; no f32 copy of the whole is ever made.
    ///
    /// # Errors
    /// The first error of `fill`, or the system's when there is no memory.
    ///
    /// # Panics
    /// `rows` or `cols` is 0.
    pub fn from_rows<E: Send + From<std::io::Error>>(
        rows: usize,
        cols: usize,
        fill: impl Fn(usize, &mut [f32]) -> Result<(), E> + Sync,
    ) -> Result<Self, E> {
        assert!(rows > 0 && cols > 0, "a matrix has rows and columns");
        let too_large = || std::io::Error::from(std::io::ErrorKind::OutOfMemory);
        let bytes = rows
            .checked_mul(cols)
            .and_then(|n| n.checked_mul(size_of::<f16>()))
            .ok_or_else(too_large)?;
        let mut memory = MmapMut::map_anon(bytes)?;
        // Large pages spare most TLB misses of a walk through all weights; without them everything still works.
        #[cfg(target_os = "linux")]
        let _unavailable = memory.advise(memmap2::Advice::HugePage);
        halves_mut(&mut memory)
            .par_chunks_mut(Self::FILL_ROWS * cols)
            .enumerate()
            .try_for_each_init(
                || vec![0.0f32; Self::FILL_ROWS * cols],
                |piece, (index, out)| {
                    let piece = &mut piece[..out.len()];
                    fill(index * Self::FILL_ROWS, piece).map(|()| out.convert_from_f32_slice(piece))
                },
            )?;
        Ok(Self { rows, cols, memory })
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
        self.rows * self.cols * size_of::<f16>()
    }

    /// One row.
    ///
    /// # Panics
    /// There is no such row.
    pub fn row(&self, row: usize) -> &[f16] {
        &self.data()[row * self.cols..][..self.cols]
    }

    pub(crate) fn data(&self) -> &[f16] {
        // SAFETY: the mapping is page-aligned, `rows * cols * 2` bytes long and initialised (the system zeroes it),
        // and every bit pattern is an f16; it lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr().cast(), self.rows * self.cols) }
    }
}

fn halves_mut(memory: &mut MmapMut) -> &mut [f16] {
    let len = memory.len() / size_of::<f16>();
    // SAFETY: as in `HalfMatrix::data`, and the mapping is borrowed mutably for as long as the slice lives.
    unsafe { std::slice::from_raw_parts_mut(memory.as_mut_ptr().cast(), len) }
}

impl std::fmt::Debug for HalfMatrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HalfMatrix")
            .field("rows", &self.rows)
            .field("cols", &self.cols)
            .finish_non_exhaustive()
    }
}
