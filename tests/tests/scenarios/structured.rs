//! Answers of a form: JSON of a schema, and calls of tools, from a model that is far too small to keep to either by itself.
//!
//! Takes more than five seconds: a real model writes several hundred answers.

use std::collections::BTreeSet;

use futures_util::{StreamExt, stream};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rbee_tests::chats::{ask, with};
use rbee_tests::{Cluster, http, models};
use serde_json::{Map, Value, json};

/// Requests in flight together.
const AT_A_TIME: usize = 8;

const QUESTIONS: [&str; 5] = [
    "Describe a bee.",
    "Invent a person.",
    "Why is the sky blue?",
    "Réponds en français : quelle heure est-il ?",
    "Say nothing at all.",
];

/// Random schemas whose answers have an end.
struct Schemas(StdRng);

impl Schemas {
    fn document(seed: u64) -> Value {
        let mut schemas = Self(StdRng::seed_from_u64(seed));
        let mut root = schemas.object(2);
        root["$defs"] = json!({"leaf": schemas.scalar()});
        root
    }

    fn any(&mut self, depth: usize) -> Value {
        match self.0.random_range(0..if depth == 0 { 5 } else { 9 }) {
            0..4 => self.scalar(),
            4 => json!({"$ref": "#/$defs/leaf"}),
            5 => json!({"anyOf": [self.scalar(), self.object(depth - 1), {"type": "null"}]}),
            6 => self.array(depth - 1),
            _ => self.object(depth - 1),
        }
    }

    fn scalar(&mut self) -> Value {
        let low = self.0.random_range(-1_000..1_000);
        let high = low + self.0.random_range(1..500);
        let length = self.0.random_range(0..5);
        let choices = [
            json!({"type": "string", "minLength": length, "maxLength": length + 8}),
            json!({"type": "string", "pattern": "^[a-z]{2,5}(-[0-9]{3})?$"}),
            json!({"type": "string", "format": "ipv4"}),
            json!({"type": "integer", "minimum": low, "maximum": high}),
            json!({"type": "number", "exclusiveMinimum": f64::from(low) / 8.0, "maximum": f64::from(high) / 8.0}),
            json!({"type": "boolean"}),
            json!({"enum": ["red", "blé", "with \"quotes\"", 12, null, {"a": [1]}]}),
            json!({"const": format!("only {low}")}),
        ];
        choices.choose(&mut self.0).cloned().expect("there are some")
    }

    fn array(&mut self, depth: usize) -> Value {
        let least = self.0.random_range(0..3);
        json!({"type": "array", "items": self.any(depth), "minItems": least, "maxItems": least + 2})
    }

    fn object(&mut self, depth: usize) -> Value {
        let mut properties = Map::new();
        for name in ["name", "id", "street number", "größe", "\"quoted\"", "a", "ab"] {
            if self.0.random_bool(0.4) {
                properties.insert(name.to_owned(), self.any(depth));
            }
        }
        let names = properties.keys().cloned();
        let required: Vec<_> = names.filter(|_| self.0.random_bool(0.7)).collect();
        json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
    }
}

/// The value that this text spells, after proof that the schema accepts it.
fn fitting(schema: &Value, text: &str) -> Value {
    let value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let validator = jsonschema::options()
        .should_validate_formats(true)
        .build(schema)
        .expect("a valid schema");
    if let Err(error) = validator.validate(&value) {
        panic!("{error}\n{schema}\n{text}");
    }
    value
}

#[tokio::test]
async fn a_hundred_schemas_are_kept_by_answers_drawn_at_random_eight_at_a_time() {
    let (cluster, _worker) = Cluster::serving_with(models::SMOLLM2, &["--slots", "8"]).await;
    let cluster = &cluster;
    let is_cut = async |seed: u64| {
        let schema = Schemas::document(seed);
        let format =
            json!({"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": true}});
        let fields = json!({"temperature": 1, "seed": seed, "max_tokens": 512, "response_format": format});
        let question = QUESTIONS[seed as usize % QUESTIONS.len()];
        let answer = http::post(cluster.chat_url(), &ask(question, &fields)).await;
        assert_eq!(answer.status, 200, "{schema}: {answer:?}");
        let is_cut = answer.body["choices"][0]["finish_reason"] == "length";
        if !is_cut {
            assert_eq!(answer.body["choices"][0]["finish_reason"], "stop");
            fitting(&schema, answer.text());
        }
        is_cut
    };
    let cut: Vec<bool> = stream::iter(0..100)
        .map(is_cut)
        .buffer_unordered(AT_A_TIME)
        .collect()
        .await;
    let cut = cut.into_iter().filter(|&is_cut| is_cut).count();
    assert!(cut <= 3, "{cut} of 100 answers did not come to an end");
}

fn tools() -> Value {
    let tool = |name: &str, description: &str, parameters: &Value| json!({"type": "function", "function": {"name": name, "description": description, "parameters": parameters}});
    json!([
        tool("get_weather", "The weather of a place", &weather()),
        tool("send_mail", "Sends a mail", &mail()),
        tool(
            "ring_the_bell",
            "Rings the bell",
            &json!({"type": "object", "additionalProperties": false})
        ),
    ])
}

fn weather() -> Value {
    json!({
        "type": "object",
        "properties": {
            "city": {"type": "string", "minLength": 1, "maxLength": 24},
            "unit": {"enum": ["celsius", "fahrenheit"]},
            "days": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 6}, "maxItems": 3},
        },
        "required": ["city", "unit"],
        "additionalProperties": false,
    })
}

fn mail() -> Value {
    json!({
        "type": "object",
        "properties": {
            "to": {"type": "string", "pattern": "^[a-z]{1,12}@[a-z]{1,12}\\.org$"},
            "text": {"type": "string", "maxLength": 40},
        },
        "required": ["to", "text"],
        "additionalProperties": false,
    })
}

/// Names and arguments of the calls, after proof that each fits its tool.
fn calls<'a>(calls: impl IntoIterator<Item = &'a Value>) -> Vec<(String, String)> {
    let calls = calls.into_iter().map(|function| {
        let text = |key: &str| {
            function[key]
                .as_str()
                .unwrap_or_else(|| panic!("no {key} in {function}"))
                .to_owned()
        };
        (text("name"), text("arguments"))
    });
    let calls: Vec<_> = calls.collect();
    for (name, arguments) in &calls {
        let schema = match name.as_str() {
            "get_weather" => weather(),
            "send_mail" => mail(),
            "ring_the_bell" => json!({"type": "object", "additionalProperties": false}),
            other => panic!("no tool `{other}`"),
        };
        fitting(&schema, arguments);
    }
    calls
}

/// The functions called in a stream, put together as clients do.
fn joined(chunks: &[Value]) -> Vec<Value> {
    let mut functions: Vec<Value> = Vec::new();
    let mut ids = BTreeSet::new();
    let deltas = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["delta"]["tool_calls"].as_array());
    for delta in deltas.flatten() {
        let index = usize::try_from(delta["index"].as_u64().expect("an index")).expect("a small one");
        if let Some(id) = delta["id"].as_str() {
            assert_eq!(index, functions.len(), "calls begin in order");
            assert!(ids.insert(id.to_owned()), "an id of its own");
            functions.push(json!({"name": delta["function"]["name"], "arguments": ""}));
        }
        let so_far = functions[index]["arguments"].as_str().expect("a text");
        let piece = delta["function"]["arguments"]
            .as_str()
            .expect("a piece of the arguments");
        functions[index]["arguments"] = json!(format!("{so_far}{piece}"));
    }
    functions
}

#[tokio::test]
async fn a_call_that_is_required_has_arguments_that_fit_and_its_pieces_in_a_stream_are_the_same() {
    let (cluster, _worker) = Cluster::serving_with(models::SMOLLM2, &["--slots", "8"]).await;
    let cluster = &cluster;
    let called = async |seed: u64| {
        let name = [None, Some("get_weather"), Some("send_mail")][seed as usize % 3];
        let choice = match name {
            Some(name) => json!({"type": "function", "function": {"name": name}}),
            None => json!("required"),
        };
        let is_parallel = seed % 4 == 3;
        let fields = json!({
            "tools": tools(), "tool_choice": choice, "parallel_tool_calls": is_parallel,
            "temperature": 1, "seed": seed, "max_tokens": 300,
        });
        let body = ask("What is the weather in Oslo today? Mail it to ada.", &fields);
        let whole = http::post(cluster.chat_url(), &body).await;
        assert_eq!(whole.status, 200, "{whole:?}");
        let choice = &whole.body["choices"][0];
        let listed = choice["message"]["tool_calls"].as_array().expect("calls");
        let functions: Vec<_> = listed.iter().map(|call| call["function"].clone()).collect();
        // A model as small as this one may go on calling; then the last call is cut.
        let is_cut = is_parallel && choice["finish_reason"] == "length";
        if !is_cut {
            assert_eq!(choice["finish_reason"], "tool_calls", "{choice}");
            assert!(choice["message"]["content"].is_null(), "{choice}");
        }
        let made = calls(&functions[..functions.len() - usize::from(is_cut)]);
        assert!(
            is_parallel || made.len() == 1,
            "one call at a time was asked for: {made:?}"
        );
        if let Some(wanted) = name {
            assert!(made.iter().all(|(name, _)| name == wanted), "{made:?}");
        }

        let chunks = http::chunks(cluster.chat_url(), &with(body, &json!({"stream": true}))).await;
        let last = &chunks.last().expect("chunks")["choices"][0];
        assert_eq!(last["finish_reason"], choice["finish_reason"]);
        assert_eq!(joined(&chunks), functions);
        made
    };
    let made: Vec<_> = stream::iter(0..24)
        .map(called)
        .buffer_unordered(AT_A_TIME)
        .collect()
        .await;
    let names: BTreeSet<_> = made.iter().flatten().map(|(name, _)| name.as_str()).collect();
    assert!(names.len() >= 2, "{names:?}");
}

#[tokio::test]
async fn the_answer_of_a_tool_goes_back_into_the_conversation() {
    let (cluster, _worker) = Cluster::serving(models::SMOLLM2).await;
    let mut messages = vec![json!({"role": "user", "content": "What is the weather in Oslo?"})];
    let fields = json!({"tools": tools(), "tool_choice": "required", "max_tokens": 400});
    let first = http::post(cluster.chat_url(), &ask("What is the weather in Oslo?", &fields)).await;
    let said = first.body["choices"][0]["message"].clone();
    let calls = said["tool_calls"].as_array().expect("calls").clone();
    messages.push(said);
    for call in &calls {
        messages.push(json!({"role": "tool", "tool_call_id": call["id"], "content": "rain, 4 degrees"}));
    }
    let fields = json!({"messages": messages, "tools": tools(), "tool_choice": "none"});
    let second = http::post(cluster.chat_url(), &ask("", &fields)).await;
    assert_eq!(second.status, 200, "{second:?}");
    assert!(
        second.body["choices"][0]["message"]["tool_calls"].is_null(),
        "{second:?}"
    );
    assert!(!second.text().is_empty());
    let tokens = |answer: &http::Answer| answer.body["usage"]["prompt_tokens"].as_u64().expect("a count");
    let untold = with(ask("", &fields), &json!({"messages": [messages[0]]}));
    assert!(
        tokens(&second) > tokens(&http::post(cluster.chat_url(), &untold).await),
        "the model reads the call and its answer"
    );
}
