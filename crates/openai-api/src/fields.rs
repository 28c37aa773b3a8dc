//! Reading an object's fields one by one, with errors that name the path.

use serde_json::{Map, Value};

use crate::error::InvalidRequest;

/// The fields of an object that have not been read yet. `null` is as good as absent everywhere.
pub struct Fields {
    /// Path of the object with a dot at its end, or empty for the body.
    prefix: String,
    map: Map<String, Value>,
}

impl Fields {
    /// Those of a request's body.
    pub fn of_body(body: &[u8]) -> Result<Self, InvalidRequest> {
        match serde_json::from_slice(body).map_err(InvalidRequest::json)? {
            Value::Object(map) => Ok(Self {
                prefix: String::new(),
                map,
            }),
            _ => Err(InvalidRequest::json("it is some other JSON value")),
        }
    }

    /// Those of a value that stands at `path`.
    pub fn of_value(path: &str, value: Value) -> Result<Self, InvalidRequest> {
        match value {
            Value::Object(map) => Ok(Self {
                prefix: format!("{path}."),
                map,
            }),
            other => Err(InvalidRequest::wrong_type(path, "an object", &other)),
        }
    }

    /// Path of the field of this name.
    pub fn path(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Any value.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.map.remove(name).filter(|value| !value.is_null())
    }

    /// Any value, which must be there.
    pub fn required(&mut self, name: &str) -> Result<Value, InvalidRequest> {
        self.take(name).ok_or_else(|| InvalidRequest::missing(self.path(name)))
    }

    /// A text.
    pub fn string(&mut self, name: &str) -> Result<Option<String>, InvalidRequest> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(InvalidRequest::wrong_type(self.path(name), "a string", &other)),
        }
    }

    /// A truth value.
    pub fn boolean(&mut self, name: &str) -> Result<Option<bool>, InvalidRequest> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(InvalidRequest::wrong_type(self.path(name), "a boolean", &other)),
        }
    }

    /// A text that must be there; it may be empty.
    pub fn required_string(&mut self, name: &str) -> Result<String, InvalidRequest> {
        self.string(name)?
            .ok_or_else(|| InvalidRequest::missing(self.path(name)))
    }

    /// The items of an array.
    pub fn array(&mut self, name: &str) -> Result<Option<Vec<Value>>, InvalidRequest> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Array(items)) => Ok(Some(items)),
            Some(other) => Err(InvalidRequest::wrong_type(self.path(name), "an array", &other)),
        }
    }

    /// The fields of an object that must be there.
    pub fn object(&mut self, name: &str) -> Result<Self, InvalidRequest> {
        let value = self.required(name)?;
        Self::of_value(&self.path(name), value)
    }

    /// A whole number; what is larger than `i64` holds is taken as the largest.
    pub fn integer(&mut self, name: &str) -> Result<Option<i64>, InvalidRequest> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match value.as_i64() {
            Some(number) => Ok(Some(number)),
            None if value.is_u64() => Ok(Some(i64::MAX)),
            None => Err(InvalidRequest::wrong_type(self.path(name), "an integer", &value)),
        }
    }

    /// A whole number of at least 1; what is larger than `u32` holds is taken as the largest.
    pub(crate) fn count(&mut self, name: &str) -> Result<Option<u32>, InvalidRequest> {
        match self.integer(name)? {
            None => Ok(None),
            Some(..=0) => Err(InvalidRequest::value(self.path(name), "must be at least 1")),
            Some(count) => Ok(Some(u32::try_from(count).unwrap_or(u32::MAX))),
        }
    }

    /// A whole number from `low` to `high`.
    pub(crate) fn integer_within(&mut self, name: &str, low: u32, high: u32) -> Result<Option<u32>, InvalidRequest> {
        let Some(number) = self.integer(name)? else {
            return Ok(None);
        };
        match u32::try_from(number) {
            Ok(number) if (low..=high).contains(&number) => Ok(Some(number)),
            _ => Err(InvalidRequest::value(
                self.path(name),
                format_args!("must be between {low} and {high}, got {number}"),
            )),
        }
    }

    /// A number above 0 that is at most `high`.
    pub(crate) fn positive_number(&mut self, name: &str, high: f64) -> Result<Option<f32>, InvalidRequest> {
        // What is nearer to 0 than `f32` can be is 0.
        match self.number(name, 0.0, high)? {
            Some(0.0) => Err(InvalidRequest::value(
                self.path(name),
                format_args!("must be above 0 and at most {high}"),
            )),
            number => Ok(number),
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

    /// Passes over fields whatever they hold: those that repeat what stands elsewhere.
    pub fn pass_over(&mut self, names: &[&str]) {
        for name in names {
            self.map.remove(*name);
        }
    }

    /// Takes parameters that are known and not supported; each passes only with a value that asks for nothing.
    pub(crate) fn refuse(&mut self, unsupported: &[Unsupported]) -> Result<(), InvalidRequest> {
        for parameter in unsupported {
            if let Some(value) = self.take(parameter.name)
                && !(parameter.asks_for_nothing)(&value)
            {
                let path = self.path(parameter.name);
                return Err(match parameter.remedy {
                    Some(remedy) => InvalidRequest::unsupported(path, format_args!("is not supported; {remedy}")),
                    None => InvalidRequest::unsupported(
                        path,
                        format_args!("this value is not supported yet; leave `{}` out", parameter.name),
                    ),
                });
            }
        }
        Ok(())
    }

    /// Ends the reading: what is left is known to nobody.
    pub fn finish(self) -> Result<(), InvalidRequest> {
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
    /// What to send in its place, if there is something.
    remedy: Option<&'static str>,
}

impl Unsupported {
    pub(crate) const fn new(name: &'static str, asks_for_nothing: fn(&Value) -> bool) -> Self {
        Self {
            name,
            asks_for_nothing,
            remedy: None,
        }
    }

    /// One that has a successor, which `remedy` names.
    pub(crate) const fn replaced(
        name: &'static str,
        asks_for_nothing: fn(&Value) -> bool,
        remedy: &'static str,
    ) -> Self {
        Self {
            name,
            asks_for_nothing,
            remedy: Some(remedy),
        }
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

    pub(crate) fn no(value: &Value) -> bool {
        value == &Value::Bool(false)
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

    pub(crate) fn usual_tier(value: &Value) -> bool {
        matches!(value.as_str(), Some("auto" | "default"))
    }

    pub(crate) fn medium(value: &Value) -> bool {
        value.as_str() == Some("medium")
    }

    pub(crate) fn text_only(value: &Value) -> bool {
        value
            .as_array()
            .is_some_and(|items| items.len() == 1 && items[0] == "text")
    }
}
