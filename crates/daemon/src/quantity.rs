//! Sizes and durations as people write them in settings: `512MiB`, `15min`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;

/// A number of bytes: `1GiB`, `500 MB`, or plain bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Bytes(ByteSize);

/// A stretch of time: `15min`, `90s`, `1h 30m`, or `0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Span(Duration);

/// A text is no quantity. The text fits behind the setting's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// No number of bytes.
    #[error("`{0}` is no size; write it as 512MiB, 16GiB, or as a number of bytes")]
    Bytes(String),
    /// No duration.
    #[error("`{0}` is no duration; write it as 90s, 15min, 2h, or 0")]
    Span(String),
}

impl Bytes {
    /// So many mebibytes.
    pub const fn mib(count: u64) -> Self {
        Self(ByteSize::mib(count))
    }

    /// The number.
    pub const fn bytes(self) -> u64 {
        self.0.as_u64()
    }
}

impl Span {
    /// So many seconds.
    pub const fn secs(count: u64) -> Self {
        Self(Duration::from_secs(count))
    }

    /// The time.
    pub const fn duration(self) -> Duration {
        self.0
    }
}

impl FromStr for Bytes {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        // Its parser takes fractions and a sign by way of floating point.
        match text.trim().parse::<ByteSize>() {
            Ok(size) if !text.contains('-') => Ok(Self(size)),
            _ => Err(QuantityError::Bytes(text.to_owned())),
        }
    }
}

impl FromStr for Span {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        match text.trim() {
            "0" => Ok(Self(Duration::ZERO)),
            text => humantime::parse_duration(text)
                .map(Self)
                .map_err(|_| QuantityError::Span(text.to_owned())),
        }
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0.display().iec(), f)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_zero() {
            return f.write_str("0");
        }
        fmt::Display::fmt(&humantime::format_duration(self.0), f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("1GiB", 1 << 30),
            ("512 MiB", 512 << 20),
            ("2gb", 2_000_000_000),
            ("1.5KiB", 1536),
            ("4096", 4096),
            ("0", 0),
        ] {
            assert_eq!(text.parse::<Bytes>().map(Bytes::bytes), Ok(bytes), "{text}");
        }
        for text in ["", "much", "-1GiB", "1GiBi", "GiB"] {
            let error = text.parse::<Bytes>().unwrap_err().to_string();
            assert!(error.contains("512MiB"), "{error}");
        }
    }

    #[test]
    fn durations_are_read_as_people_write_them() {
        for (text, seconds) in [("15min", 900), ("90s", 90), ("1h 30m", 5400), ("0", 0), (" 2h ", 7200)] {
            assert_eq!(text.parse::<Span>(), Ok(Span::secs(seconds)), "{text}");
        }
        for text in ["", "15", "soon", "-1s"] {
            let error = text.parse::<Span>().unwrap_err().to_string();
            assert!(error.contains("15min"), "{error}");
        }
    }

    #[test]
    fn what_is_shown_can_be_read_again() {
        for size in [Bytes::default(), Bytes::mib(1024), Bytes::mib(1536)] {
            assert_eq!(size.to_string().parse(), Ok(size));
        }
        for span in [Span::default(), Span::secs(900), Span::secs(5401)] {
            assert_eq!(span.to_string().parse(), Ok(span));
        }
        assert_eq!(Bytes::mib(1024).to_string(), "1.0 GiB");
        assert_eq!(Span::secs(900).to_string(), "15m");
    }
}
