//! JSON schemas as llguidance takes them, and its errors in terms of the schema.

use llguidance::JsonCompileOptions;
use serde_json::{Map, Value, json};

use crate::error::GrammarError;
use crate::matcher::first_line;

/// What may stand between two parts of a JSON text: nothing or one blank. More, and a small model would lose itself in
/// blanks and line breaks, which are always likely and never end.
const BLANK: &str = r"\x20";

/// The key under which llguidance looks for its own settings.
const SETTINGS: &str = "x-guidance";

/// The number next to 0: closer ones would make for very long grammars.
const SMALLEST: f64 = 1e-15;

/// What llguidance says of keywords that it knows and does not support, before a list of them in JSON.
const UNSUPPORTED: &str = "Unimplemented keys: ";

/// Members whose own members are named by the schema's author, not by the standard.
const MAPS_OF_SCHEMAS: [&str; 5] = [
    "properties",
    "patternProperties",
    "$defs",
    "definitions",
    "dependentSchemas",
];

/// Members that hold values, not schemas.
const VALUES: [&str; 5] = ["const", "enum", "default", "examples", "required"];

/// The schema of any JSON object.
pub(crate) fn any_object() -> Value {
    json!({"type": "object"})
}

/// The schema as llguidance is to read it: with the layout of the text to be written, in place of settings of
/// llguidance that came along, and without exclusive bounds.
pub(crate) fn prepared(schema: &Value) -> Value {
    let mut schema = match schema {
        Value::Bool(true) => json!({}),
        other => other.clone(),
    };
    if schema.is_object() {
        for_each_schema(&mut schema, &mut |members| {
            include_bound(members, "exclusiveMinimum", "minimum", f64::next_up, f64::max);
            include_bound(members, "exclusiveMaximum", "maximum", f64::next_down, f64::min);
        });
        let options = JsonCompileOptions {
            whitespace_pattern: Some(BLANK.to_owned()),
            ..JsonCompileOptions::default()
        };
        options.apply_to(&mut schema);
    }
    schema
}

/// Replaces an exclusive bound of a number by the next number inside it.
///
/// llguidance compares decimals, and JSON is read as binary numbers: `0.10000000000000000001` is above an exclusive
/// minimum of 0.1 only until it is parsed. Moreover llguidance 1.9 lets a whole bound through where the other bound has
/// the same integer part, as in `0 < x <= 0.5`.
fn include_bound(
    members: &mut Map<String, Value>,
    exclusive: &str,
    inclusive: &str,
    next: fn(f64) -> f64,
    stricter: fn(f64, f64) -> f64,
) {
    let is_integer = members.get("type").is_some_and(|kind| kind == "integer");
    let Some(bound) = members.get(exclusive).and_then(Value::as_f64) else {
        return;
    };
    if is_integer {
        return;
    }
    let inside = if bound == 0.0 {
        SMALLEST.copysign(next(0.0))
    } else {
        next(bound)
    };
    let bound = match members.get(inclusive).and_then(Value::as_f64) {
        Some(other) => stricter(inside, other),
        None => inside,
    };
    members.shift_remove(exclusive);
    members.insert(inclusive.to_owned(), json!(bound));
}

/// Calls `apply` with a schema and all schemas inside.
fn for_each_schema(schema: &mut Value, apply: &mut dyn FnMut(&mut Map<String, Value>)) {
    match schema {
        Value::Object(members) => {
            apply(members);
            for (name, member) in members.iter_mut() {
                match member {
                    Value::Object(named) if MAPS_OF_SCHEMAS.contains(&name.as_str()) => {
                        named.values_mut().for_each(|schema| for_each_schema(schema, apply));
                    }
                    _ if VALUES.contains(&name.as_str()) => {}
                    member => for_each_schema(member, apply),
                }
            }
        }
        Value::Array(elements) => elements.iter_mut().for_each(|element| for_each_schema(element, apply)),
        _ => {}
    }
}

/// The error of a schema that llguidance refused with `error`.
pub(crate) fn explain(schema: &Value, error: &str) -> GrammarError {
    unsupported_keyword(schema, error).unwrap_or_else(|| GrammarError::Schema(first_line(error)))
}

fn unsupported_keyword(schema: &Value, error: &str) -> Option<GrammarError> {
    let (_, list) = error.split_once(UNSUPPORTED)?;
    let keywords: Vec<String> = serde_json::from_str(list.lines().next()?).ok()?;
    let keyword = keywords.into_iter().next()?;
    let pointer = locate(schema, &keyword, "")?;
    Some(GrammarError::UnsupportedKeyword { keyword, pointer })
}

/// Where a schema, or one inside it, uses a keyword.
fn locate(schema: &Value, keyword: &str, path: &str) -> Option<String> {
    match schema {
        Value::Object(members) if members.contains_key(keyword) => Some(format!("{path}/{keyword}")),
        Value::Object(members) => members.iter().find_map(|(name, member)| {
            let path = format!("{path}/{}", escaped(name));
            if VALUES.contains(&name.as_str()) || name == SETTINGS {
                None
            } else if MAPS_OF_SCHEMAS.contains(&name.as_str()) {
                let named = member.as_object()?;
                named
                    .iter()
                    .find_map(|(name, schema)| locate(schema, keyword, &format!("{path}/{}", escaped(name))))
            } else {
                locate(member, keyword, &path)
            }
        }),
        Value::Array(elements) => elements
            .iter()
            .enumerate()
            .find_map(|(index, element)| locate(element, keyword, &format!("{path}/{index}"))),
        _ => None,
    }
}

/// A member's name inside a JSON pointer (RFC 6901).
fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}
