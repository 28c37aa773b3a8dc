//! Parameters that are accepted and have no effect on the answer. A request that has them says so by
//! [`Generation::ignored`](crate::Generation::ignored).

use serde_json::Value;

use crate::error::InvalidRequest;
use crate::fields::{Fields, nothing};

/// Header of an answer: the names of the request's parameters that have had no effect, with `, ` between them.
pub const IGNORED_HEADER: &str = "x-rbee-ignored-parameters";

/// Header of a request: `true` has it refused where such parameters would be ignored.
pub const STRICT_HEADER: &str = "x-rbee-strict";

/// A parameter without effect.
pub(crate) struct Ignored {
    name: &'static str,
    kind: Kind,
    /// Values that nothing is lost of.
    asks_for_nothing: fn(&Value) -> bool,
}

/// The JSON type that a value has to have.
enum Kind {
    String,
    Boolean,
    Object,
}

/// Those of chats and completions: they label or file a request for OpenAI's own bookkeeping, or say how to cache it.
pub(crate) const OF_ALL: [Ignored; 8] = [
    Ignored::new("user", Kind::String, nothing::never),
    Ignored::new("metadata", Kind::Object, nothing::empty),
    Ignored::new("store", Kind::Boolean, nothing::no),
    Ignored::new("service_tier", Kind::String, nothing::usual_tier),
    Ignored::new("prompt_cache_key", Kind::String, nothing::never),
    Ignored::new("prompt_cache_retention", Kind::String, nothing::never),
    Ignored::new("prompt_cache_options", Kind::Object, nothing::empty),
    Ignored::new("safety_identifier", Kind::String, nothing::never),
];

/// Those of chats besides: hints for models that reason, and for servers that guess ahead.
pub(crate) const OF_CHATS: [Ignored; 3] = [
    Ignored::new("reasoning_effort", Kind::String, nothing::never),
    Ignored::new("verbosity", Kind::String, nothing::medium),
    Ignored::new("prediction", Kind::Object, nothing::never),
];

/// Those of embeddings.
pub(crate) const OF_EMBEDDINGS: [Ignored; 1] = [Ignored::new("user", Kind::String, nothing::never)];

impl Ignored {
    const fn new(name: &'static str, kind: Kind, asks_for_nothing: fn(&Value) -> bool) -> Self {
        Self {
            name,
            kind,
            asks_for_nothing,
        }
    }

    #[cfg(test)]
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// Whether it asks for something that is not done.
    fn take(&self, fields: &mut Fields) -> Result<bool, InvalidRequest> {
        let Some(value) = fields.take(self.name) else {
            return Ok(false);
        };
        let (is_kind, expected) = match self.kind {
            Kind::String => (value.is_string(), "a string"),
            Kind::Boolean => (value.is_boolean(), "a boolean"),
            Kind::Object => (value.is_object(), "an object"),
        };
        if is_kind {
            Ok(!(self.asks_for_nothing)(&value))
        } else {
            Err(InvalidRequest::wrong_type(fields.path(self.name), expected, &value))
        }
    }
}

/// Takes these parameters; the names of those that ask for something.
pub(crate) fn take(fields: &mut Fields, parameters: &[Ignored]) -> Result<Vec<&'static str>, InvalidRequest> {
    let mut names = Vec::new();
    for parameter in parameters {
        if parameter.take(fields)? {
            names.push(parameter.name);
        }
    }
    Ok(names)
}

/// Refuses a request that must not have such parameters, for the first that it has.
pub fn refuse_ignored(names: &[&'static str]) -> Result<(), InvalidRequest> {
    match names.first() {
        None => Ok(()),
        Some(name) => Err(InvalidRequest::unsupported(
            *name,
            "has no effect here, and the request asks to be refused rather than served without; leave it out",
        )),
    }
}
