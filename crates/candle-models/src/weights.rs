//! Loading a network's tensors onto a backend, with progress.

use crate::backend::Backend;
use crate::error::LoadError;
use model_format::{ModelFile, RawTensor};

/// A file's tensors on their way to a backend.
pub(crate) struct Weights<'a, B: Backend> {
    file: &'a ModelFile,
    backend: &'a B,
    progress: &'a mut dyn FnMut(f32),
    total_bytes: usize,
    read_bytes: usize,
    device_bytes: usize,
}

impl<'a, B: Backend> Weights<'a, B> {
    /// `progress` gets shares of 1 that rise as tensors arrive.
    pub(crate) fn new(file: &'a ModelFile, backend: &'a B, progress: &'a mut dyn FnMut(f32)) -> Self {
        Self {
            file,
            backend,
            progress,
            total_bytes: file.tensor_bytes(),
            read_bytes: 0,
            device_bytes: 0,
        }
    }

    /// Bytes that what was loaded so far takes on the device.
    pub(crate) fn device_bytes(&self) -> usize {
        self.device_bytes
    }

    pub(crate) fn matrix(&mut self, name: &str, rows: usize, cols: usize) -> Result<B::Matrix, LoadError> {
        let raw = self.file.tensor(name, &[rows, cols])?;
        self.load(&raw)
    }

    /// Several matrices of one width that lie in one tensor, one below the other.
    pub(crate) fn stacked<const N: usize>(
        &mut self,
        name: &str,
        rows: [usize; N],
        cols: usize,
    ) -> Result<[B::Matrix; N], LoadError> {
        let raw = self.file.tensor(name, &[rows.iter().sum(), cols])?;
        let mut first = 0;
        let pieces = rows.map(|rows| {
            let piece = raw.rows(first, rows);
            first += rows;
            self.load(&piece)
        });
        let pieces = pieces.into_iter().collect::<Result<Vec<_>, _>>()?;
        pieces
            .try_into()
            .map_err(|_| LoadError::Damaged(format!("tensor {name} has other parts than expected")))
    }

    pub(crate) fn vector(&mut self, name: &str, len: usize) -> Result<B::Vector, LoadError> {
        let raw = self.file.tensor(name, &[len])?;
        let vector = self.backend.load_vector(&raw)?;
        self.device_bytes += len * size_of::<f32>();
        self.advance(&raw);
        Ok(vector)
    }

    fn load(&mut self, raw: &RawTensor<'_>) -> Result<B::Matrix, LoadError> {
        let matrix = self.backend.load_matrix(raw)?;
        self.device_bytes += self.backend.matrix_bytes(&matrix);
        self.advance(raw);
        Ok(matrix)
    }

    fn advance(&mut self, raw: &RawTensor<'_>) {
        self.read_bytes += raw.data.len();
        (self.progress)((self.read_bytes as f32 / self.total_bytes.max(1) as f32).min(1.0));
    }
}
