//! Arithmetic of the fused CPU path: products with f16 weights, attention over f16 KV caches and the small
//! per-row operations between them, for every x86-64 level chosen at run time and portable code elsewhere.
//!
//! Owns all `unsafe` of the engine, and the rule that makes batching invisible: a row's results do not depend, bit
//! for bit, on what other rows are computed beside it, nor on how many threads compute them.
//!
//! Must not know: model families, files, candle, tokens. It sees slices of numbers. Work is spread over the rayon
//! pool that the caller runs in (`ThreadPool::install`).

mod attention;
mod elementwise;
mod exp;
mod level;
mod matrix;
mod multiply;
mod shared;
mod simd;
mod tile;

pub use attention::{AttentionJob, AttentionShape, KvCache};
pub use elementwise::{Activation, RopeStyle, RopeTable};
pub use level::{Level, LevelError};
pub use matrix::HalfMatrix;
pub use multiply::Product;

/// Name of the environment variable that forces one level: `portable`, `avx2` or `avx512`.
pub const LEVEL_VARIABLE: &str = "RBEE_CPU_KERNELS";

/// The operations, at one instruction set level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kernels {
    level: Level,
}

impl Kernels {
    /// The best level that this processor has.
    pub fn detect() -> Self {
        Self { level: Level::detect() }
    }

    /// A given level.
    ///
    /// # Errors
    /// This processor lacks it.
    pub fn with_level(level: Level) -> Result<Self, LevelError> {
        if level.is_available() {
            Ok(Self { level })
        } else {
            Err(LevelError::Unavailable(level))
        }
    }

    /// The level that [`LEVEL_VARIABLE`] names, else the best one.
    ///
    /// # Errors
    /// The variable names no level, or one that this processor lacks.
    pub fn from_env() -> Result<Self, LevelError> {
        match std::env::var(LEVEL_VARIABLE) {
            Ok(name) if !name.is_empty() => Self::with_level(name.parse()?),
            _ => Ok(Self::detect()),
        }
    }

    /// The level in use.
    pub fn level(self) -> Level {
        self.level
    }
}
