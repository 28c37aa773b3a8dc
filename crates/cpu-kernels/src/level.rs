//! Which instruction set the kernels use.

use std::fmt;
use std::str::FromStr;

use crate::KernelsError;

/// An instruction set that there are kernels for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// What every target has.
    Portable,
    /// x86-64 with AVX2, FMA and F16C: 8 lanes, 16 registers.
    Avx2,
    /// [`Level::Avx2`] and AVX-VNNI: products of bytes in one instruction instead of three.
    AvxVnni,
    /// x86-64 with AVX-512 F, BW, VL, DQ and VNNI: 16 lanes, 32 registers.
    Avx512,
    /// [`Level::Avx512`] and AMX-INT8, which multiplies whole tiles; the operating system has to permit it.
    Amx,
}

impl Level {
    /// All levels, the simplest first.
    pub const ALL: [Self; 5] = [Self::Portable, Self::Avx2, Self::AvxVnni, Self::Avx512, Self::Amx];

    /// The best level of this processor.
    pub(crate) fn detect() -> Self {
        Self::ALL
            .into_iter()
            .rev()
            .find(|level| level.is_available())
            .unwrap_or(Self::Portable)
    }

    /// Whether this processor has it, and the operating system lets this process use it.
    #[cfg(target_arch = "x86_64")]
    pub fn is_available(self) -> bool {
        macro_rules! all_of {
            ($($feature:tt),*) => { $(is_x86_feature_detected!($feature))&&* };
        }
        let avx2 = || all_of!("avx2", "fma", "f16c");
        let avx512 = || avx2() && all_of!("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vnni");
        match self {
            Self::Portable => true,
            Self::Avx2 => avx2(),
            Self::AvxVnni => avx2() && all_of!("avxvnni"),
            Self::Avx512 => avx512(),
            Self::Amx => avx512() && crate::amx::is_available(),
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
            Self::AvxVnni => "avxvnni",
            Self::Avx512 => "avx512",
            Self::Amx => "amx",
        })
    }
}

impl FromStr for Level {
    type Err = KernelsError;

    fn from_str(name: &str) -> Result<Self, KernelsError> {
        Self::ALL
            .into_iter()
            .find(|level| level.to_string() == name)
            .ok_or_else(|| KernelsError::UnknownLevel(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_is_found_by_its_own_name() {
        for level in Level::ALL {
            assert_eq!(level.to_string().parse::<Level>().ok(), Some(level));
        }
        let error = "sse9".parse::<Level>().expect_err("no such level");
        assert!(error.to_string().contains("\"sse9\""), "{error}");
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
