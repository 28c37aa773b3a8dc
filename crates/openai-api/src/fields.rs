//! Reading an object's fields one by one, with errors that name the path.

use serde_json::{Map, Value};

use crate::error::InvalidRequest;

/// The fields of an object that have not been read yet. `null` is as good as absent everywhere.
pub(crate) struct Fields {
    /// Path of the object with a dot at its end, or empty for the body.
    prefix: String,
    map: Map<String, Value>,
}

impl Fields {
    /// Those of a request's body.
    pub(crate) fn of_body(body: &[u8]) -> Result<Self, InvalidRequest> {
        match serde_json::from_slice(body).map_err(InvalidRequest::json)? {
            Value::Object(map) => Ok(Self {
                prefix: String::new(),
                map,
            }),
            _ => Err(InvalidRequest::json("it is some other JSON value")),
        }
    }

    /// Those of a value that stands at `path`.
    pub(crate) fn of_value(path: &str, value: Value) -> Result<Self, InvalidRequest> {
        match value {
            Value::Object(map) => Ok(Self {
                prefix: format!("{path}."),
                map,
            }),
            other => Err(InvalidRequest::wrong_type(path, "an object", &other)),
        }
    }

    pub(crate) fn path(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        self.map.remove(name).filter(|value| !value.is_null())
    }

    pub(crate) fn required(&mut self, name: &str) -> Result<Value, InvalidRequest> {
        self.take(name).ok_or_else(|| InvalidRequest::missing(self.path(name)))
    }

    pub(crate) fn string(&mut self, name: &str) -> Result<Option<String>, InvalidRequest> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(InvalidRequest::wrong_type(self.path(name), "a string", &other)),
        }
    }

    pub(crate) fn boolean(&mut self, name: &str) -> Result<Option<bool>, InvalidRequest> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(InvalidRequest::wrong_type(self.path(name), "a boolean", &other)),
        }
    }

    /// A whole number of at least 1; what is larger than `u32` holds is taken as the largest.
    pub(crate) fn count(&mut self, name: &str) -> Result<Option<u32>, InvalidRequest> {
        let Some(value) = self.take(name) else { return Ok(None) };
        if !value.is_i64() && !value.is_u64() {
            return Err(InvalidRequest::wrong_type(self.path(name), "an integer", &value));
        }
        match value.as_u64() {
            None | Some(0) => Err(InvalidRequest::value(self.path(name), "must be at least 1")),
            Some(count) => Ok(Some(u32::try_from(count).unwrap_or(u32::MAX))),
        }
    }

    pub(crate) fn number(&mut self, name: &str, low: f64, high: f64) -> Result<Option<f32>, InvalidRequest> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let Some(number) = value.as_f64() else {
            return Err(InvalidRequest::wrong_type(self.path(name), "a number", &value));
        };
        if !(low..=high).contains(&number) {
            return Err(InvalidRequest::value(
                self.path(name),
                format_args!("must be between {low} and {high}, got {number}"),
            ));
        }
        Ok(Some(number as f32))
    }

    /// Takes parameters that are known and not supported; each passes only with a value that asks for nothing.
    pub(crate) fn refuse(&mut self, unsupported: &[Unsupported]) -> Result<(), InvalidRequest> {
        for parameter in unsupported {
            if let Some(value) = self.take(parameter.name)
                && !(parameter.asks_for_nothing)(&value)
            {
                return Err(InvalidRequest::unsupported(
                    self.path(parameter.name),
                    format_args!("this value is not supported yet; leave `{}` out", parameter.name),
                ));
            }
        }
        Ok(())
    }

    /// Ends the reading: what is left is known to nobody.
    pub(crate) fn finish(self) -> Result<(), InvalidRequest> {
        match self.map.keys().next() {
            Some(name) => Err(InvalidRequest::unknown(self.path(name))),
            None => Ok(()),
        }
    }
}

/// A parameter that OpenAI knows and this server does not support yet.
pub(crate) struct Unsupported {
    name: &'static str,
    asks_for_nothing: fn(&Value) -> bool,
}

impl Unsupported {
    pub(crate) const fn new(name: &'static str, asks_for_nothing: fn(&Value) -> bool) -> Self {
        Self { name, asks_for_nothing }
    }

    #[cfg(test)]
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }
}

/// The values that ask for nothing, by parameter.
pub(crate) mod nothing {
    use serde_json::Value;

    pub(crate) fn never(_: &Value) -> bool {
        false
    }

    pub(crate) fn zero(value: &Value) -> bool {
        value.as_f64() == Some(0.0)
    }

    pub(crate) fn one(value: &Value) -> bool {
        value.as_u64() == Some(1)
    }

    pub(crate) fn no(value: &Value) -> bool {
        value == &Value::Bool(false)
    }

    pub(crate) fn yes(value: &Value) -> bool {
        value == &Value::Bool(true)
    }

    pub(crate) fn empty(value: &Value) -> bool {
        match value {
            Value::Array(items) => items.is_empty(),
            Value::Object(fields) => fields.is_empty(),
            _ => false,
        }
    }

    pub(crate) fn none_or_auto(value: &Value) -> bool {
        matches!(value.as_str(), Some("none" | "auto"))
    }

    pub(crate) fn medium(value: &Value) -> bool {
        value.as_str() == Some("medium")
    }

    pub(crate) fn text_only(value: &Value) -> bool {
        value
            .as_array()
            .is_some_and(|items| items.len() == 1 && items[0] == "text")
    }

    pub(crate) fn text_format(value: &Value) -> bool {
        value
            .as_object()
            .is_some_and(|format| format.len() == 1 && format.get("type").is_some_and(|kind| kind == "text"))
    }
}
