//! Arithmetic of the CPU path: products with quantised and half-precision weights, attention over a paged f16 cache,
//! the small per-row operations between them, and the threads that all of it runs on; for every x86-64 level chosen at
//! run time, and in portable code elsewhere.
//!
//! Owns all `unsafe` of the engine, and the rule that makes batching invisible: a row's results do not depend, bit for
//! bit, on what other rows are computed beside it, nor on how many threads compute them. Products with quantised
//! weights are, beyond that, the same bits on every level but the portable one.
//!
//! Must not know: model families, files, candle, tokens, sequences' life. It sees slices of numbers, and raw blocks in
//! the layouts of [`Format`].

mod activations;
#[cfg(target_arch = "x86_64")]
mod amx;
mod attention;
mod elementwise;
mod exp;
mod format;
mod halves;
mod kv;
mod level;
mod matrix;
mod memory;
mod multiply;
mod pool;
mod rope;
mod shared;
mod simd;
#[cfg(test)]
mod testing;
mod tiles;

use std::num::NonZeroUsize;

pub use activations::{Activations, Forms, RmsNorm};
pub use attention::{AttentionScratch, AttentionShape, Qkv, Span};
pub use elementwise::Activation;
pub use format::Format;
pub use kv::{BLOCK_TOKENS, KvCache};
pub use level::Level;
pub use matrix::{Matrix, MatrixError};
pub use multiply::{MAX_PRODUCTS, Product, Store};
pub use pool::Pool;
pub use rope::{RopeStyle, RopeTable};

/// Name of the environment variable that forces one level: `portable`, `avx2`, `avxvnni`, `avx512` or `amx`.
pub const LEVEL_VARIABLE: &str = "RBEE_CPU_KERNELS";

/// The operations, at one instruction set level, on threads of their own. One per model.
#[derive(Debug)]
pub struct Kernels {
    level: Level,
    pool: Pool,
}

impl Kernels {
    /// Kernels of a given level that share work among `threads` threads, the caller's among them.
    ///
    /// # Errors
    /// This processor lacks the level, or the system refuses threads.
    pub fn new(level: Level, threads: NonZeroUsize) -> Result<Self, KernelsError> {
        if !level.is_available() {
            return Err(KernelsError::UnavailableLevel(level));
        }
        let pool = Pool::new(threads).map_err(|source| KernelsError::Threads { threads, source })?;
        Ok(Self { level, pool })
    }

    /// Kernels of the level that [`LEVEL_VARIABLE`] names, else of the best one.
    ///
    /// # Errors
    /// The variable names no level, or one that this processor lacks; or the system refuses threads.
    pub fn from_env(threads: NonZeroUsize) -> Result<Self, KernelsError> {
        let level = match std::env::var(LEVEL_VARIABLE) {
            Ok(name) if !name.is_empty() => name.parse()?,
            _ => Level::detect(),
        };
        Self::new(level, threads)
    }

    /// The level in use.
    pub fn level(&self) -> Level {
        self.level
    }

    /// Threads that share the work, the caller's among them.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// The threads.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }
}

/// Why there are no kernels to be had.
#[derive(Debug, thiserror::Error)]
pub enum KernelsError {
    /// No level has this name.
    #[error("unknown CPU kernels {0:?}: RBEE_CPU_KERNELS is portable, avx2, avxvnni, avx512 or amx")]
    UnknownLevel(String),
    /// The processor lacks the level.
    #[error("this processor has no {0}: leave RBEE_CPU_KERNELS unset or name another level")]
    UnavailableLevel(Level),
    /// The system refuses threads.
    #[error("no {threads} threads to compute on: use fewer, or raise the limit of processes")]
    Threads {
        /// How many were asked for.
        threads: NonZeroUsize,
        /// The system's reason.
        source: std::io::Error,
    },
}
