//! Ids as types: short, printable, and checked where they enter.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Longest id in bytes.
const MAX_LEN: usize = 256;

/// Why a text is no id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdError(&'static str);

impl fmt::Display for IdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for IdError {}

fn check(text: &str) -> Result<(), IdError> {
    if text.is_empty() {
        return Err(IdError("an id must not be empty"));
    }
    if text.len() > MAX_LEN {
        return Err(IdError("an id must not be longer than 256 bytes"));
    }
    if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(IdError("an id must not contain spaces or control characters"));
    }
    Ok(())
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Checks and takes the text: 1 to 256 bytes, no white space, no control characters.
            pub fn new(text: impl Into<String>) -> Result<Self, IdError> {
                let text = text.into();
                check(&text)?;
                Ok(Self(text))
            }

            /// The id as it is written.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl std::str::FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::new(text)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

id!(
    /// One worker process, for as long as it lives.
    WorkerId
);
id!(
    /// One host's hive; kept on its disk, so that it survives restarts.
    HiveId
);
id!(
    /// A model as clients name it, for example `smollm2-135m-instruct` or `org/name`.
    ModelId
);
id!(
    /// One run of a queen.
    QueenId
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_short_and_printable() {
        assert_eq!(WorkerId::new("worker-123").unwrap().as_str(), "worker-123");
        assert!(ModelId::new("meta-llama/Llama-2-7b").is_ok());
        assert!(WorkerId::new("").is_err());
        assert!(WorkerId::new("two words").is_err());
        assert!(WorkerId::new("line\nbreak").is_err());
        assert!(WorkerId::new("x".repeat(257)).is_err());
    }
}
