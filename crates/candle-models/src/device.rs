//! Which device a model runs on, as operators write it.

use std::fmt;
use std::str::FromStr;

/// `cpu`, `cuda:N` or `metal:N`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeviceSpec {
    /// The fused CPU path.
    Cpu,
    /// The CUDA device with this ordinal, by candle.
    Cuda(usize),
    /// The Metal device with this ordinal, by candle.
    Metal(usize),
}

impl DeviceSpec {
    /// Whether this build can drive such a device at all. Cheap: asked before a model is fetched.
    ///
    /// # Errors
    /// The build lacks the cargo feature.
    pub fn check_build(self) -> Result<(), DeviceError> {
        match self {
            Self::Cuda(_) if !cfg!(feature = "cuda") => Err(DeviceError::NotBuilt {
                device: self,
                feature: "cuda",
            }),
            Self::Metal(_) if !cfg!(feature = "metal") => Err(DeviceError::NotBuilt {
                device: self,
                feature: "metal",
            }),
            _ => Ok(()),
        }
    }

    /// Candle's handle of the device.
    pub(crate) fn open(self) -> Result<candle_core::Device, DeviceError> {
        self.check_build()?;
        match self {
            Self::Cpu => Ok(candle_core::Device::Cpu),
            Self::Cuda(ordinal) => candle_core::Device::new_cuda(ordinal),
            Self::Metal(ordinal) => candle_core::Device::new_metal(ordinal),
        }
        .map_err(|error| DeviceError::Unusable {
            device: self,
            reason: error.to_string(),
        })
    }
}

impl fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
            Self::Metal(ordinal) => write!(f, "metal:{ordinal}"),
        }
    }
}

impl FromStr for DeviceSpec {
    type Err = DeviceError;

    /// Case is ignored; a missing ordinal means the first device.
    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let unknown = || DeviceError::Unknown(text.to_owned());
        let lower = text.trim().to_ascii_lowercase();
        let (kind, ordinal) = lower.split_once(':').unwrap_or((&lower, "0"));
        let ordinal = ordinal.parse().map_err(|_| unknown())?;
        match kind {
            "cpu" if lower == "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(ordinal)),
            "metal" => Ok(Self::Metal(ordinal)),
            _ => Err(unknown()),
        }
    }
}

/// Why a device cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// No such kind of device.
    #[error("unknown device {0:?}: use cpu, cuda:N or metal:N")]
    Unknown(String),
    /// The program was built without support for it.
    #[error("this build cannot use {device}: build it with `--features {feature}`, or use cpu")]
    NotBuilt {
        /// The device asked for.
        device: DeviceSpec,
        /// The cargo feature that brings it.
        feature: &'static str,
    },
    /// The machine does not have it, or the driver refuses.
    #[error("cannot use {device}: {reason}")]
    Unusable {
        /// The device asked for.
        device: DeviceSpec,
        /// What the driver says.
        reason: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_as_they_are_written() {
        for text in ["cpu", "cuda:0", "cuda:3", "metal:1"] {
            assert_eq!(text.parse::<DeviceSpec>().expect(text).to_string(), text);
        }
        assert_eq!("CUDA".parse(), Ok(DeviceSpec::Cuda(0)));
        for text in ["", "cpu:1", "cuda:", "cuda:x", "tpu:0", "cuda:-1"] {
            assert_eq!(text.parse::<DeviceSpec>(), Err(DeviceError::Unknown(text.to_owned())));
        }
    }

    #[test]
    #[cfg(not(feature = "cuda"))]
    fn a_device_that_the_build_lacks_is_refused_with_the_feature_to_build_with() {
        let error = DeviceSpec::Cuda(0).open().expect_err("not built");
        assert_eq!(
            error.to_string(),
            "this build cannot use cuda:0: build it with `--features cuda`, or use cpu"
        );
        assert_eq!(DeviceSpec::Cpu.check_build(), Ok(()));
    }
}
