//! Which instruction set the kernels use.

use std::fmt;
use std::str::FromStr;

/// An instruction set that there are kernels for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// What every target has.
    Portable,
    /// x86-64 with AVX2, FMA and F16C: 8 lanes, 16 registers.
    Avx2,
    /// x86-64 with AVX-512 F and VL: 16 lanes, 32 registers.
    Avx512,
}

impl Level {
    /// All levels, the simplest first.
    pub const ALL: [Self; 3] = [Self::Portable, Self::Avx2, Self::Avx512];

    /// The best level of this processor.
    pub(crate) fn detect() -> Self {
        Self::ALL
            .into_iter()
            .rev()
            .find(|level| level.is_available())
            .unwrap_or(Self::Portable)
    }

    /// Whether this processor has it.
    #[cfg(target_arch = "x86_64")]
    pub fn is_available(self) -> bool {
        let avx2 =
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        match self {
            Self::Portable => true,
            Self::Avx2 => avx2,
            Self::Avx512 => avx2 && is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl"),
        }
    }

    /// Whether this processor has it.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn is_available(self) -> bool {
        self == Self::Portable
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        })
    }
}

impl FromStr for Level {
    type Err = LevelError;

    fn from_str(name: &str) -> Result<Self, LevelError> {
        Self::ALL
            .into_iter()
            .find(|level| level.to_string() == name)
            .ok_or_else(|| LevelError::Unknown(name.to_owned()))
    }
}

/// Why a level cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LevelError {
    /// No level has this name.
    #[error("unknown CPU kernels {0:?}: RBEE_CPU_KERNELS is portable, avx2 or avx512")]
    Unknown(String),
    /// The processor lacks the level.
    #[error("this processor has no {0}: leave RBEE_CPU_KERNELS unset or name another level")]
    Unavailable(Level),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_is_found_by_its_own_name() {
        for level in Level::ALL {
            assert_eq!(level.to_string().parse(), Ok(level));
        }
        assert_eq!("sse9".parse::<Level>(), Err(LevelError::Unknown("sse9".to_owned())));
    }

    #[test]
    fn the_detected_level_is_available_and_nothing_available_is_better() {
        let best = Level::detect();
        assert!(best.is_available());
        assert!(
            Level::ALL
                .into_iter()
                .filter(|level| level.is_available())
                .all(|level| level <= best)
        );
    }
}
