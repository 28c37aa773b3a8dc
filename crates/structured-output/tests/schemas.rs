//! Whatever a model prefers, a constrained answer is JSON that its schema accepts.

mod support;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use serde_json::{Map, Value, json};
use structured_output::{Grammar, GrammarError};
use support::ToyVocabulary;

const NAMES: [&str; 8] = ["name", "id", "street number", "größe", "tags", "\"quoted\"", "a", "ab"];

/// Random schemas of all kinds that are supported.
struct Schemas {
    rng: StdRng,
}

impl Schemas {
    fn document(&mut self) -> Value {
        let mut root = self.object(3);
        root["$defs"] = json!({
            "leaf": self.scalar(),
            "node": {
                "type": "object",
                "properties": {"value": {"$ref": "#/$defs/leaf"}, "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]}},
                "required": ["value", "next"],
                "additionalProperties": false,
            },
        });
        root
    }

    fn schema(&mut self, depth: usize) -> Value {
        match self.rng.random_range(0..if depth == 0 { 6 } else { 10 }) {
            0..4 => self.scalar(),
            4 => json!({"$ref": "#/$defs/leaf"}),
            5 => json!({"$ref": "#/$defs/node"}),
            6 => self.array(depth - 1),
            7 => json!({"anyOf": [self.schema(depth - 1), self.scalar(), self.object(depth - 1)]}),
            _ => self.object(depth - 1),
        }
    }

    fn scalar(&mut self) -> Value {
        let low = self.rng.random_range(-1000..1000);
        let high = low + self.rng.random_range(1..500);
        let length = self.rng.random_range(0..5);
        let choices = [
            json!({"type": "string", "minLength": length, "maxLength": length + 4}),
            json!({"type": "string", "pattern": "^[a-z]{2,5}(-[0-9]{3})?$"}),
            json!({"type": "string", "pattern": "^(foo|bar\\d)+$"}),
            json!({"type": "string", "format": "uuid"}),
            json!({"type": "string", "format": "ipv4"}),
            json!({"type": "integer", "minimum": low, "maximum": high}),
            json!({"type": "integer", "exclusiveMinimum": low, "maximum": low + 100, "multipleOf": 5}),
            json!({"type": "number", "exclusiveMinimum": f64::from(low) / 8.0, "maximum": f64::from(high) / 8.0}),
            json!({"type": "boolean"}),
            json!({"type": ["null", "boolean"]}),
            json!({"enum": ["red", "blé", "with \"quotes\"", 12, null, {"a": [1]}]}),
            json!({"const": format!("only {low}")}),
        ];
        choices.choose(&mut self.rng).cloned().unwrap_or_default()
    }

    fn array(&mut self, depth: usize) -> Value {
        let least = self.rng.random_range(0..3);
        match self.rng.random_range(0..3) {
            0 => json!({"type": "array", "items": self.schema(depth), "minItems": least, "maxItems": least + 2}),
            1 => {
                json!({"type": "array", "prefixItems": [self.schema(depth), self.scalar()], "items": false, "minItems": 2})
            }
            _ => json!({"type": "array", "items": self.schema(depth)}),
        }
    }

    fn object(&mut self, depth: usize) -> Value {
        let mut properties = Map::new();
        let mut required = Vec::new();
        for name in NAMES {
            if self.rng.random_bool(0.4) {
                properties.insert(name.to_owned(), self.schema(depth));
                if self.rng.random_bool(0.5) {
                    required.push(name);
                }
            }
        }
        let mut object = json!({"type": "object", "properties": properties, "required": required});
        match self.rng.random_range(0..4) {
            0 => object["additionalProperties"] = self.scalar(),
            1 => {
                object["patternProperties"] = json!({"^x-[a-z]{1,3}$": self.scalar()});
                object["additionalProperties"] = json!(false);
            }
            _ => object["additionalProperties"] = json!(false),
        }
        object
    }
}

/// The parsed answer, after proof that `schema` accepts it.
fn assert_valid(schema: &Value, answer: &str) -> Value {
    let parsed: Value = serde_json::from_str(answer).unwrap_or_else(|error| panic!("{error}: {answer}"));
    let validator = jsonschema::options()
        .should_validate_formats(true)
        .build(schema)
        .expect("a valid schema");
    if let Err(error) = validator.validate(&parsed) {
        panic!("{error}\n{schema}\n{answer}");
    }
    parsed
}

#[test]
fn a_hundred_random_schemas_are_kept_by_a_model_that_draws_at_random() {
    let vocabulary = ToyVocabulary::new();
    for seed in 0..100 {
        let mut schemas = Schemas {
            rng: StdRng::seed_from_u64(seed),
        };
        let schema = schemas.document();
        let answer = vocabulary.random_answer(&Grammar::JsonSchema(schema.clone()), seed);
        assert_valid(&schema, &answer);
    }
}

#[test]
fn any_json_object_is_one() {
    let vocabulary = ToyVocabulary::new();
    for seed in 0..20 {
        let answer = vocabulary.random_answer(&Grammar::JsonObject, seed);
        // Numbers may be beyond what Rust's types hold: the text is checked, not the values.
        let raw: &serde_json::value::RawValue = serde_json::from_str(&answer).expect(&answer);
        assert!(raw.get().starts_with('{'), "{answer}");
    }
}

#[test]
fn a_schema_that_allows_everything_allows_any_json() {
    let vocabulary = ToyVocabulary::new();
    for schema in [json!(true), json!({})] {
        let mut constraint = vocabulary
            .grammars()
            .constraint(&Grammar::JsonSchema(schema))
            .expect("a constraint");
        vocabulary.take(constraint.as_mut(), r#"[1, "a", {"b": null}]"#);
        assert!(vocabulary.may_end(constraint.as_mut()));
    }
}

#[test]
fn blanks_come_one_at_a_time_and_lines_never_break() {
    let vocabulary = ToyVocabulary::new();
    let constraint = || {
        vocabulary
            .grammars()
            .constraint(&Grammar::JsonObject)
            .expect("a constraint")
    };
    for answer in [r#"{"a":1,"b":[2,3]}"#, r#"{"a": 1, "b": [2, 3]}"#, r#"{ "a" : 1 }"#] {
        let mut constraint = constraint();
        vocabulary.take(constraint.as_mut(), answer);
        assert!(vocabulary.may_end(constraint.as_mut()));
    }
    for answer in [" {", "\n{", "{  \"a\"", "{\n", "{\"a\":  1", "{\"a\": 1}  "] {
        assert!(!vocabulary.follows(constraint().as_mut(), answer), "{answer:?}");
    }
    let mut open = constraint();
    vocabulary.take(open.as_mut(), "{");
    assert!(!vocabulary.allowed(open.as_mut()).is_allowed(vocabulary.token("  ")));
}

#[test]
fn properties_come_in_the_order_of_the_schema() {
    let schema = json!({"type": "object", "properties": {"z": {"const": 1}, "a": {"const": 2}}, "required": ["z", "a"], "additionalProperties": false});
    let vocabulary = ToyVocabulary::new();
    let mut constraint = vocabulary
        .grammars()
        .constraint(&Grammar::JsonSchema(schema))
        .expect("a constraint");
    vocabulary.take(constraint.as_mut(), r#"{"z":1,"a":2}"#);
    let allowed: Vec<u32> = vocabulary
        .allowed(constraint.as_mut())
        .iter()
        .filter(|&token| token != 32)
        .collect();
    assert_eq!(allowed, vocabulary.end_tokens, "nothing but an end");
}

#[test]
fn an_exclusive_bound_is_outside_its_range() {
    let vocabulary = ToyVocabulary::new();
    let ends = |schema: &Value, number: &str| {
        let grammar = Grammar::JsonSchema(schema.clone());
        let mut constraint = vocabulary.grammars().constraint(&grammar).expect("a constraint");
        vocabulary.follows(constraint.as_mut(), number) && vocabulary.may_end(constraint.as_mut())
    };
    let schema = json!({"type": "number", "exclusiveMinimum": 0, "maximum": 0.5});
    assert!(ends(&schema, "0.25") && ends(&schema, "0.5") && ends(&schema, "0.000001"));
    assert!(!ends(&schema, "0") && !ends(&schema, "0.0") && !ends(&schema, "-0"));
    let schema = json!({"type": "number", "minimum": -47.5, "exclusiveMaximum": -47.0});
    assert!(ends(&schema, "-47.5") && ends(&schema, "-47.001"));
    assert!(!ends(&schema, "-47") && !ends(&schema, "-47.00000000000000000001"));
    let schema = json!({"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 5});
    assert!(ends(&schema, "4") && !ends(&schema, "3") && !ends(&schema, "5"));
}

#[test]
fn special_tokens_are_no_text_of_a_string() {
    let vocabulary = ToyVocabulary::new();
    let grammar = Grammar::JsonSchema(json!({"type": "string"}));
    let mut constraint = vocabulary.grammars().constraint(&grammar).expect("a constraint");
    vocabulary.take(constraint.as_mut(), "\"");
    let mask = vocabulary.allowed(constraint.as_mut());
    for special in ["<|end|>", "[TOOL_CALLS]", "<|user|>"] {
        assert!(!mask.is_allowed(vocabulary.token(special)), "{special}");
    }
    vocabulary.take(constraint.as_mut(), "<|end|>\"");
}

fn refusal(schema: Value) -> GrammarError {
    let refused = ToyVocabulary::new().grammars().constraint(&Grammar::JsonSchema(schema));
    refused.err().expect("an unsupported schema")
}

#[test]
fn what_is_not_supported_is_refused_with_its_place_in_the_schema() {
    let schema = json!({"type": "object", "properties": {
        "uniqueItems": {"type": "string"},
        "a/b": {"type": "array", "items": {"type": "array", "uniqueItems": true}},
    }});
    let refused = refusal(schema);
    let expected = GrammarError::UnsupportedKeyword {
        keyword: "uniqueItems".to_owned(),
        pointer: "/properties/a~1b/items/uniqueItems".to_owned(),
    };
    assert_eq!(refused, expected);
    assert!(refused.to_string().contains("/properties/a~1b/items/uniqueItems"));
    let refused = refusal(json!({"anyOf": [{"type": "null"}, {"if": {}, "then": {}}]}));
    assert!(matches!(refused, GrammarError::UnsupportedKeyword { pointer, .. } if pointer == "/anyOf/1/if"));
}

#[test]
fn broken_and_impossible_schemas_are_refused_in_one_short_line() {
    for (schema, word) in [
        (json!(false), "false"),
        (json!(3), "schema"),
        (json!({"type": "strin"}), "strin"),
        (json!({"type": "integer", "minimum": 3, "maximum": 2}), "minimum"),
        (json!({"$ref": "#/$defs/missing"}), "missing"),
        (json!({"$ref": "http://127.0.0.1:1/other.json"}), "http"),
        (json!({"type": "string", "pattern": "("}), "regex"),
        (json!({"oneOf": [{"type": "integer"}, {"type": "number"}]}), "oneOf"),
    ] {
        let GrammarError::Schema(text) = refusal(schema.clone()) else {
            panic!("{schema}");
        };
        assert!(
            text.contains(word) && text.len() <= 400 && !text.contains('\n'),
            "{schema}: {text}"
        );
    }
}

#[test]
fn a_schema_cannot_bring_settings_of_its_own() {
    let schema = json!({"x-guidance": {"lenient": true, "whitespace_flexible": true, "whitespace_pattern": "\\n+"},
                        "type": "array", "uniqueItems": true});
    assert!(matches!(refusal(schema), GrammarError::UnsupportedKeyword { .. }));
}

#[test]
fn a_deep_schema_is_no_danger_to_the_stack() {
    let mut schema = json!({"type": "integer"});
    for _ in 0..120 {
        schema =
            json!({"type": "object", "properties": {"a": schema}, "required": ["a"], "additionalProperties": false});
    }
    let vocabulary = ToyVocabulary::new();
    let mut constraint = vocabulary
        .grammars()
        .constraint(&Grammar::JsonSchema(schema))
        .expect("a constraint");
    vocabulary.take(
        constraint.as_mut(),
        &format!("{}7{}", "{\"a\":".repeat(120), "}".repeat(120)),
    );
    assert!(vocabulary.may_end(constraint.as_mut()));
}

#[test]
fn a_vocabulary_without_an_end_is_refused() {
    let tokens = ToyVocabulary::new().tokens;
    let without_end = structured_output::Grammars::new(
        {
            let tokens = tokens.clone();
            move || tokens
        },
        Vec::new(),
    );
    assert!(matches!(
        without_end.constraint(&Grammar::JsonObject),
        Err(GrammarError::Vocabulary(_))
    ));
    let unknown_end = structured_output::Grammars::new(move || tokens, vec![100_000]);
    assert!(matches!(
        unknown_end.constraint(&Grammar::JsonObject),
        Err(GrammarError::Vocabulary(_))
    ));
}
