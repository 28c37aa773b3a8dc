//! How to choose tokens, when to end, how to answer.

use serde_json::{Map, Value, json};

use super::{accepted, invalid, refusal, unknown, with, wrong_type};
use crate::{Generation, MAX_CHOICES, MAX_LOGIT_BIASES, MAX_STOP_BYTES, StreamMode};

fn generation(name: &str, value: Value) -> Generation {
    accepted(&with(name, value)).generation
}

#[test]
fn every_parameter_is_read() {
    let request = accepted(&json!({
        "model": "m", "messages": [{"role": "user", "content": "Hi"}],
        "temperature": 0, "top_p": 0.5, "top_k": 40, "min_p": 0.125, "typical_p": 0.75, "repetition_penalty": 1.5,
        "presence_penalty": -2, "frequency_penalty": 2, "logit_bias": {"50256": -100, "7": 0.5}, "seed": -1,
        "stop": ["x", "y"], "n": 3, "stream": true, "stream_options": {"include_usage": true},
    }));
    let expected = Generation {
        temperature: 0.0,
        top_p: 0.5,
        top_k: 40,
        min_p: 0.125,
        typical_p: 0.75,
        repetition_penalty: 1.5,
        presence_penalty: -2.0,
        frequency_penalty: 2.0,
        logit_bias: vec![(7, 0.5), (50256, -100.0)],
        seed: Some(u64::MAX),
        stop: vec!["x".to_owned(), "y".to_owned()],
        n: 3,
        stream: StreamMode::On { include_usage: true },
        ignored: vec![],
    };
    assert_eq!(request.generation, expected);
}

#[test]
fn top_k_is_off_at_zero_and_at_minus_one() {
    for (value, top_k) in [
        (json!(-1), 0),
        (json!(0), 0),
        (json!(1), 1),
        (json!(u64::MAX), u32::MAX),
    ] {
        assert_eq!(generation("top_k", value).top_k, top_k);
    }
    assert_eq!(refusal(&with("top_k", json!(-2))), invalid("top_k"));
}

#[test]
fn the_ends_of_each_range_are_part_of_it() {
    for (name, values) in [
        ("temperature", vec![json!(0), json!(2)]),
        ("top_p", vec![json!(0), json!(1)]),
        ("min_p", vec![json!(0), json!(1)]),
        ("typical_p", vec![json!(0.001), json!(1)]),
        ("repetition_penalty", vec![json!(0.001), json!(10)]),
        ("presence_penalty", vec![json!(-2), json!(2)]),
        ("frequency_penalty", vec![json!(-2.0), json!(2.0)]),
        ("n", vec![json!(1), json!(MAX_CHOICES)]),
    ] {
        for value in values {
            accepted(&with(name, value));
        }
    }
}

#[test]
fn a_value_out_of_range_names_its_path() {
    let long = "x".repeat(MAX_STOP_BYTES + 1);
    for (path, name, value) in [
        ("temperature", "temperature", json!(2.1)),
        ("temperature", "temperature", json!(-0.1)),
        ("top_p", "top_p", json!(1.5)),
        ("min_p", "min_p", json!(-0.1)),
        ("min_p", "min_p", json!(1.1)),
        ("typical_p", "typical_p", json!(0)),
        ("typical_p", "typical_p", json!(1.1)),
        ("repetition_penalty", "repetition_penalty", json!(0)),
        ("repetition_penalty", "repetition_penalty", json!(1e-300)),
        ("repetition_penalty", "repetition_penalty", json!(10.5)),
        ("presence_penalty", "presence_penalty", json!(2.5)),
        ("frequency_penalty", "frequency_penalty", json!(-2.5)),
        ("n", "n", json!(0)),
        ("n", "n", json!(-1)),
        ("n", "n", json!(MAX_CHOICES + 1)),
        ("stop", "stop", json!("")),
        ("stop[1]", "stop", json!(["a", ""])),
        ("stop", "stop", json!(["a", "b", "c", "d", "e"])),
        ("stop", "stop", json!(long)),
        ("stream_options", "stream_options", json!({"include_usage": true})),
    ] {
        assert_eq!(refusal(&with(name, value)), invalid(path));
    }
}

#[test]
fn a_wrong_type_names_its_path() {
    for (name, value) in [
        ("temperature", json!("hot")),
        ("top_p", json!({})),
        ("top_k", json!(1.5)),
        ("min_p", json!("0.1")),
        ("typical_p", json!([])),
        ("repetition_penalty", json!(true)),
        ("n", json!(1.5)),
        ("seed", json!(0.5)),
        ("stop", json!(1)),
        ("stream", json!("yes")),
        ("logit_bias", json!([])),
    ] {
        assert_eq!(refusal(&with(name, value)), wrong_type(name));
    }
    assert_eq!(refusal(&with("stop", json!(["a", 1]))), wrong_type("stop[1]"));
}

#[test]
fn the_options_of_a_stream_are_read_strictly() {
    let mut body = with("stream", json!(true));
    body["stream_options"] = json!({"include_usage": 1});
    assert_eq!(refusal(&body), wrong_type("stream_options.include_usage"));
    body["stream_options"] = json!({"usage": true});
    assert_eq!(refusal(&body), unknown("stream_options.usage"));
    body["stream_options"] = json!({"include_obfuscation": false});
    let expected = StreamMode::On { include_usage: false };
    assert_eq!(accepted(&body).generation.stream, expected);
}

#[test]
fn biases_come_in_order_of_their_tokens() {
    let biases = generation("logit_bias", json!({"10": 1, "9": -1, "4294967295": 100, "0": -100})).logit_bias;
    assert_eq!(biases, [(0, -100.0), (9, -1.0), (10, 1.0), (u32::MAX, 100.0)]);
}

#[test]
fn a_bias_is_of_a_token_once_and_within_its_range() {
    for (map, expected) in [
        (json!({"7": 100.5}), invalid("logit_bias.7")),
        (json!({"7": -101}), invalid("logit_bias.7")),
        (json!({"7": "1"}), wrong_type("logit_bias.7")),
        (json!({"7": null}), wrong_type("logit_bias.7")),
        (json!({"07": 1}), invalid("logit_bias")),
        (json!({"+7": 1}), invalid("logit_bias")),
        (json!({"-1": 1}), invalid("logit_bias")),
        (json!({"hello": 1}), invalid("logit_bias")),
        (json!({"4294967296": 1}), invalid("logit_bias")),
    ] {
        assert_eq!(refusal(&with("logit_bias", map)), expected);
    }
    let biases = |count: usize| -> Map<String, Value> { (0..count).map(|id| (id.to_string(), json!(1))).collect() };
    accepted(&with("logit_bias", biases(MAX_LOGIT_BIASES).into()));
    let too_many = with("logit_bias", biases(MAX_LOGIT_BIASES + 1).into());
    assert_eq!(refusal(&too_many), invalid("logit_bias"));
}
