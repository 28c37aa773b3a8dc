//! Why a request is refused.

use shared_contract::{ErrorKind, ErrorObject};

/// A request that is not valid: answered with status 400.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct InvalidRequest {
    /// Path of the offending parameter, for example `messages[0].content`; `None` if it is the body as a whole.
    pub param: Option<String>,
    /// What is wrong, for people.
    pub message: String,
    /// What is wrong, for programs.
    pub code: InvalidCode,
}

/// The closed set of reasons; the words are OpenAI's where it has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum InvalidCode {
    /// The body is no JSON object.
    InvalidJson,
    /// A required parameter is not there.
    MissingParameter,
    /// Of the wrong JSON type.
    InvalidType,
    /// Of the right type, and out of range or not one of the values there are.
    InvalidValue,
    /// Known, and not supported by this server yet.
    UnsupportedParameter,
    /// Known to nobody.
    UnknownParameter,
}

impl InvalidCode {
    /// The `code` of the error body.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidJson => "invalid_json",
            Self::MissingParameter => "missing_required_parameter",
            Self::InvalidType => "invalid_type",
            Self::InvalidValue => "invalid_value",
            Self::UnsupportedParameter => "unsupported_parameter",
            Self::UnknownParameter => "unknown_parameter",
        }
    }
}

impl InvalidRequest {
    /// The inner object of the error body.
    pub fn object(&self) -> ErrorObject {
        ErrorObject {
            code: Some(self.code.as_str().to_owned()),
            ..ErrorKind::InvalidRequest.object(self.message.clone(), self.param.as_deref())
        }
    }

    /// The body is no JSON object, and why.
    pub fn json(reason: impl std::fmt::Display) -> Self {
        Self {
            param: None,
            message: format!("the body is not a valid JSON object: {reason}"),
            code: InvalidCode::InvalidJson,
        }
    }

    /// The required parameter at `path` is not there.
    pub fn missing(path: impl Into<String>) -> Self {
        let path = path.into();
        Self::at(InvalidCode::MissingParameter, path, "is required")
    }

    /// The parameter at `path` is of the wrong JSON type.
    pub fn wrong_type(path: impl Into<String>, expected: &str, got: &serde_json::Value) -> Self {
        let got = type_name(got);
        Self::at(
            InvalidCode::InvalidType,
            path,
            format_args!("expected {expected}, got {got}"),
        )
    }

    /// The parameter at `path` is of the right type, and its value cannot be used.
    pub fn value(path: impl Into<String>, reason: impl std::fmt::Display) -> Self {
        Self::at(InvalidCode::InvalidValue, path, reason)
    }

    /// The parameter at `path` is known, and not supported.
    pub fn unsupported(path: impl Into<String>, detail: impl std::fmt::Display) -> Self {
        Self::at(InvalidCode::UnsupportedParameter, path, detail)
    }

    /// The parameter at `path` is known to nobody.
    pub fn unknown(path: impl Into<String>) -> Self {
        Self::at(InvalidCode::UnknownParameter, path, "unknown parameter")
    }

    fn at(code: InvalidCode, path: impl Into<String>, reason: impl std::fmt::Display) -> Self {
        let path = path.into();
        Self {
            message: format!("{path}: {reason}"),
            param: Some(path),
            code,
        }
    }
}

fn type_name(value: &serde_json::Value) -> &'static str {
    use serde_json::Value;
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.is_f64() => "a number with a fraction",
        Value::Number(_) => "an integer",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
