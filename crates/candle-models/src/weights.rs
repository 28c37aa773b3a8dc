//! Loading a network's tensors onto a backend, with progress.

use crate::backend::Backend;
use crate::error::LoadError;
use crate::gguf::{Gguf, RawTensor};

/// A file's tensors on their way to a backend.
pub(crate) struct Weights<'a, B: Backend> {
    gguf: &'a Gguf,
    backend: &'a B,
    progress: &'a mut dyn FnMut(f32),
    total_bytes: usize,
    read_bytes: usize,
    device_bytes: usize,
}

impl<'a, B: Backend> Weights<'a, B> {
    /// `progress` gets shares of 1 that rise as tensors arrive.
    pub(crate) fn new(gguf: &'a Gguf, backend: &'a B, progress: &'a mut dyn FnMut(f32)) -> Self {
        Self {
            gguf,
            backend,
            progress,
            total_bytes: gguf.tensor_bytes(),
            read_bytes: 0,
            device_bytes: 0,
        }
    }

    pub(crate) fn gguf(&self) -> &'a Gguf {
        self.gguf
    }

    /// Bytes that the matrices loaded so far take on the device.
    pub(crate) fn device_bytes(&self) -> usize {
        self.device_bytes
    }

    pub(crate) fn matrix(&mut self, name: &str, rows: usize, cols: usize) -> Result<B::Matrix, LoadError> {
        let raw = self.gguf.tensor(name, &[rows, cols])?;
        let matrix = self.backend.load_matrix(&raw)?;
        self.device_bytes += self.backend.matrix_bytes(&matrix);
        self.advance(&raw);
        Ok(matrix)
    }

    pub(crate) fn vector(&mut self, name: &str, len: usize) -> Result<B::Vector, LoadError> {
        let raw = self.gguf.tensor(name, &[len])?;
        let vector = self.backend.load_vector(&raw)?;
        self.advance(&raw);
        Ok(vector)
    }

    fn advance(&mut self, raw: &RawTensor<'_>) {
        self.read_bytes += raw.data.len();
        (self.progress)((self.read_bytes as f32 / self.total_bytes.max(1) as f32).min(1.0));
    }
}
