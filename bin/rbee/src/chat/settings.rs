//! How answers are made: what `/set` changes.

use serde_json::{Map, Value};

use crate::cli::RunArgs;
use crate::run::short_number;

/// What takes a setting back to what the worker does by itself.
const DEFAULT: &str = "default";

/// What a setting takes.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// A number from the first to the second.
    Number(f64, f64),
    /// The same without the first itself.
    Above(f64, f64),
    /// A whole number from here on.
    Whole(u64),
    /// Any text.
    Text,
}

/// One setting, by its name in a request.
#[derive(Debug)]
struct Known {
    name: &'static str,
    kind: Kind,
    help: &'static str,
}

/// All settings, with the bounds of the queen's endpoints.
const KNOWN: [Known; 10] = [
    known(
        "temperature",
        Kind::Number(0.0, 2.0),
        "0 always takes the likeliest token",
    ),
    known("top_p", Kind::Number(0.0, 1.0), "the likeliest tokens with this sum"),
    known("top_k", Kind::Whole(0), "so many of the likeliest, 0 for all"),
    known("min_p", Kind::Number(0.0, 1.0), "tokens so likely beside the best"),
    known("max_tokens", Kind::Whole(1), "most tokens of an answer"),
    known("seed", Kind::Whole(0), "makes a varied answer repeatable"),
    known("stop", Kind::Text, "a text that ends the answer"),
    known(
        "repetition_penalty",
        Kind::Above(0.0, 10.0),
        "above 1 avoids what was said",
    ),
    known(
        "presence_penalty",
        Kind::Number(-2.0, 2.0),
        "above 0 avoids tokens that came",
    ),
    known(
        "frequency_penalty",
        Kind::Number(-2.0, 2.0),
        "the same, more so for frequent ones",
    ),
];

const fn known(name: &'static str, kind: Kind, help: &'static str) -> Known {
    Known { name, kind, help }
}

/// The settings that were given, by their names.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Settings(Map<String, Value>);

impl Settings {
    /// Those of the command line.
    pub(super) fn of(args: &RunArgs) -> Self {
        let given = [
            ("max_tokens", args.max_tokens.map(Value::from)),
            ("temperature", args.temperature.map(short_number)),
            ("top_p", args.top_p.map(short_number)),
            ("seed", args.seed.map(Value::from)),
        ];
        let given = given
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value?)));
        Self(given.collect())
    }

    /// Those of a request's body.
    pub(super) fn of_body(body: &Value) -> Result<Self, String> {
        let mut settings = Self::default();
        for name in names() {
            match &body[name] {
                Value::Null => {}
                Value::String(text) => settings.set(name, text)?,
                value => settings.set(name, &value.to_string())?,
            }
        }
        Ok(settings)
    }

    /// Writes them into a request's body.
    pub(super) fn apply(&self, body: &mut Value) {
        for (name, value) in &self.0 {
            body[name] = value.clone();
        }
    }

    /// What this one is set to.
    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }

    /// Changes one; the error says what it takes.
    pub(super) fn set(&mut self, name: &str, text: &str) -> Result<(), String> {
        let Some(known) = KNOWN.iter().find(|known| known.name == name) else {
            let names: Vec<_> = names().collect();
            return Err(format!("there is no setting `{name}`; there are {}", names.join(", ")));
        };
        if text == DEFAULT {
            self.0.shift_remove(name);
            return Ok(());
        }
        let value = known.kind.parse(text);
        let value =
            value.ok_or_else(|| format!("{name} takes {}, or `{DEFAULT}`; not `{text}`", known.kind.words()))?;
        self.0.insert(name.to_owned(), value);
        Ok(())
    }

    /// All of them, a line each.
    pub(super) fn list(&self) -> String {
        let mut text = String::new();
        for Known { name, kind, help } in &KNOWN {
            let value = match self.get(name) {
                Some(Value::String(text)) => format!("{text:?}"),
                Some(value) => value.to_string(),
                None => DEFAULT.to_owned(),
            };
            text.push_str(&format!("{name:<18}  {value:<7}  {:<13}  {help}\n", kind.words()));
        }
        text
    }
}

/// The names, in the order in which they are shown.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    KNOWN.iter().map(|known| known.name)
}

impl Kind {
    fn parse(self, text: &str) -> Option<Value> {
        let number = |from: f64, to: f64| {
            let number = text.parse::<f64>().ok()?;
            (from..=to).contains(&number).then_some(number)
        };
        match self {
            Self::Number(from, to) => number(from, to).map(Value::from),
            Self::Above(from, to) => number(from, to).filter(|number| *number > from).map(Value::from),
            Self::Whole(from) => text
                .parse::<u64>()
                .ok()
                .filter(|number| *number >= from)
                .map(Value::from),
            Self::Text => Some(text.into()),
        }
    }

    fn words(self) -> String {
        match self {
            Self::Number(from, to) => format!("{from} to {to}"),
            Self::Above(from, to) => format!("above {from} to {to}"),
            Self::Whole(from) => format!("whole, from {from}"),
            Self::Text => "text".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_setting_is_sent_as_it_was_typed_until_it_is_taken_back() {
        let mut settings = Settings::default();
        settings.set("temperature", "0.7").unwrap();
        settings.set("max_tokens", "12").unwrap();
        settings.set("stop", "The End").unwrap();
        let mut body = json!({});
        settings.apply(&mut body);
        assert_eq!(body, json!({"temperature": 0.7, "max_tokens": 12, "stop": "The End"}));
        assert_eq!(Settings::of_body(&body).unwrap(), settings);
        settings.set("temperature", "default").unwrap();
        assert_eq!(settings.get("temperature"), None);
    }

    #[test]
    fn what_a_setting_does_not_take_is_refused_with_what_it_takes() {
        let mut settings = Settings::default();
        for (name, text, words) in [
            ("temperature", "2.1", "0 to 2"),
            ("temperature", "warm", "0 to 2"),
            ("temperature", "NaN", "0 to 2"),
            ("repetition_penalty", "0", "above 0"),
            ("max_tokens", "0", "whole, from 1"),
            ("seed", "-1", "whole, from 0"),
            ("warmth", "1", "temperature, top_p"),
        ] {
            let error = settings.set(name, text).unwrap_err();
            assert!(error.contains(words), "{name} {text}: {error}");
        }
        assert_eq!(settings, Settings::default());
    }

    #[test]
    fn the_list_names_every_setting_with_its_value() {
        let mut settings = Settings::default();
        settings.set("top_k", "40").unwrap();
        let list = settings.list();
        assert_eq!(list.lines().count(), KNOWN.len());
        assert!(list.lines().all(|line| line.chars().count() <= 80), "{list}");
        assert!(
            list.contains("top_k               40       whole, from 0  so many"),
            "{list}"
        );
        assert!(list.contains("seed                default"), "{list}");
    }
}
