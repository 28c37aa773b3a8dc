//! Streams, told event by event.

use proptest::prelude::*;
use serde_json::{Value, json};
use shared_contract::ErrorKind;

use super::identity;
use crate::{Translate, messages, responses};

fn responses() -> Box<dyn Translate> {
    let (_, reply) = responses::translate(br#"{"model": "alias", "input": "Hi", "stream": true}"#).unwrap();
    reply.stream(identity())
}

fn messages() -> Box<dyn Translate> {
    let body =
        br#"{"model": "alias", "max_tokens": 5, "messages": [{"role": "user", "content": "Hi"}], "stream": true}"#;
    messages::translate(body).unwrap().1.stream(identity())
}

/// A chunk of a chat's stream.
fn chunk(delta: &Value, finish_reason: &Value) -> String {
    let choice = json!({"index": 0, "delta": delta, "finish_reason": finish_reason});
    let chunk = json!({
        "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 3, "model": "real", "choices": [choice], "usage": null,
    });
    format!("data: {chunk}\n\n")
}

fn start() -> String {
    chunk(&json!({"role": "assistant", "content": ""}), &Value::Null)
}

fn text(piece: &str) -> String {
    chunk(&json!({"content": piece}), &Value::Null)
}

fn calls(index: usize) -> String {
    let call = json!({"index": index, "id": format!("call_{index}"), "type": "function", "function": {"name": "f", "arguments": ""}});
    chunk(&json!({"tool_calls": [call]}), &Value::Null)
}

fn arguments(index: usize, piece: &str) -> String {
    let call = json!({"index": index, "function": {"arguments": piece}});
    chunk(&json!({"tool_calls": [call]}), &Value::Null)
}

fn finish(reason: &str) -> String {
    chunk(&json!({}), &json!(reason))
}

fn end() -> String {
    let usage = json!({"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14, "prompt_tokens_details": {"cached_tokens": 8}});
    let chunk = json!({"id": "chatcmpl-1", "created": 3, "model": "real", "choices": [], "usage": usage});
    format!("data: {chunk}\n\ndata: [DONE]\n\n")
}

/// All that is told of a whole stream.
fn told(mut stream: Box<dyn Translate>, bytes: &str) -> String {
    let mut out = Vec::new();
    stream.push(bytes.as_bytes(), &mut out);
    stream.end(&mut out);
    String::from_utf8(out).unwrap()
}

/// The events of a stream, each named as its data says.
fn events(stream: &str) -> Vec<Value> {
    let blocks = stream.split_terminator("\n\n").filter(|block| !block.starts_with(':'));
    let events = blocks.map(|block| {
        let (name, data) = block.strip_prefix("event: ").unwrap().split_once("\ndata: ").unwrap();
        let data: Value = serde_json::from_str(data).unwrap();
        assert_eq!(data["type"], name);
        data
    });
    events.collect()
}

fn names(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["type"].as_str().unwrap()).collect()
}

#[test]
fn a_text_in_responses_has_the_official_events_in_order() {
    let stream = [start(), text("Hé"), text("llo"), finish("stop"), end()].concat();
    let got = events(&told(responses(), &stream));
    let part = |text: &str| json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []});
    let item = |status: &str, content: Value| json!({"id": "msg_1_0", "type": "message", "status": status, "role": "assistant", "content": content});
    let place = |kind: &str, number: u32, more: Value| {
        let mut event = json!({"type": kind, "sequence_number": number, "item_id": "msg_1_0", "output_index": 0, "content_index": 0});
        event.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        event
    };
    let whole = item("completed", json!([part("Héllo")]));
    let expected = [
        json!({"type": "response.output_item.added", "sequence_number": 2, "output_index": 0, "item": item("in_progress", json!([]))}),
        place("response.content_part.added", 3, json!({"part": part("")})),
        place("response.output_text.delta", 4, json!({"delta": "Hé", "logprobs": []})),
        place("response.output_text.delta", 5, json!({"delta": "llo", "logprobs": []})),
        place("response.output_text.done", 6, json!({"text": "Héllo", "logprobs": []})),
        place("response.content_part.done", 7, json!({"part": part("Héllo")})),
        json!({"type": "response.output_item.done", "sequence_number": 8, "output_index": 0, "item": whole}),
    ];
    assert_eq!(got[2..9], expected);
    assert_eq!(names(&got[..2]), ["response.created", "response.in_progress"]);
    for begun in &got[..2] {
        assert_eq!(
            (&begun["response"]["status"], &begun["response"]["model"]),
            (&json!("in_progress"), &json!("real"))
        );
        assert_eq!(
            (&begun["response"]["id"], &begun["response"]["usage"]),
            (&json!("resp_1"), &Value::Null)
        );
    }
    let last = &got[9];
    assert_eq!(
        (&last["type"], &last["sequence_number"], got.len()),
        (&json!("response.completed"), &json!(9), 10)
    );
    assert_eq!(
        (&last["response"]["output"], &last["response"]["status"]),
        (&json!([whole]), &json!("completed"))
    );
    assert_eq!(last["response"]["usage"]["total_tokens"], 14);
}

#[test]
fn calls_in_responses_are_items_whose_arguments_grow() {
    let stream = [
        start(),
        text("A moment."),
        calls(0),
        arguments(0, "{\"a\""),
        arguments(0, ": 1}"),
        calls(1),
        finish("tool_calls"),
        end(),
    ];
    let got = events(&told(responses(), &stream.concat()));
    let expected = [
        "response.output_item.done",
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.output_item.added",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ];
    assert_eq!(names(&got)[7..], expected);
    let item = json!({
        "id": "fc_1_1", "type": "function_call", "status": "completed", "call_id": "call_0", "name": "f", "arguments": "{\"a\": 1}",
    });
    assert_eq!((&got[12]["item"], &got[12]["output_index"]), (&item, &json!(1)));
    assert_eq!(
        (&got[10]["delta"], &got[11]["arguments"]),
        (&json!(": 1}"), &json!("{\"a\": 1}"))
    );
    assert_eq!(got[16]["response"]["output"][1], item);
}

#[test]
fn an_answer_in_responses_that_is_cut_off_is_incomplete() {
    let got = events(&told(
        responses(),
        &[start(), text("a"), finish("length"), end()].concat(),
    ));
    let last = got.last().unwrap();
    assert_eq!(
        (&last["type"], &last["response"]["status"]),
        (&json!("response.incomplete"), &json!("incomplete"))
    );
    assert_eq!(last["response"]["incomplete_details"]["reason"], "max_output_tokens");
}

#[test]
fn logprobs_come_with_the_text_in_responses() {
    let token = json!({"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []});
    let chunk = json!({"model": "real", "choices": [{"index": 0, "delta": {"content": "a"}, "logprobs": {"content": [token]}}]});
    let got = events(&told(
        responses(),
        &[start(), format!("data: {chunk}\n\n"), finish("stop"), end()].concat(),
    ));
    assert_eq!(
        (&got[4]["logprobs"], &got[5]["logprobs"]),
        (&json!([token]), &json!([token]))
    );
    assert_eq!(
        got[8]["response"]["output"][0]["content"][0]["logprobs"],
        json!([token])
    );
}

#[test]
fn a_text_in_messages_has_the_official_events_in_order() {
    let stream = [start(), text("Hé"), text("llo"), finish("stop"), end()].concat();
    let usage = |input: u32, cached: u32, output: u32| {
        json!({
            "input_tokens": input, "cache_creation_input_tokens": 0, "cache_read_input_tokens": cached, "output_tokens": output,
        })
    };
    let mut begun = usage(0, 0, 0);
    begun["service_tier"] = json!("standard");
    let message = json!({
        "id": "msg_1", "type": "message", "role": "assistant", "model": "real", "content": [], "stop_reason": null,
        "stop_sequence": null, "usage": begun,
    });
    let delta =
        |text: &str| json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}});
    let expected = [
        json!({"type": "message_start", "message": message}),
        json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": "", "citations": null}}),
        delta("Hé"),
        delta("llo"),
        json!({"type": "content_block_stop", "index": 0}),
        json!({"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": null}, "usage": usage(2, 8, 4)}),
        json!({"type": "message_stop"}),
    ];
    assert_eq!(events(&told(messages(), &stream)), expected);
}

#[test]
fn calls_in_messages_are_blocks_whose_input_grows() {
    let stream = [
        start(),
        text("A moment."),
        calls(0),
        arguments(0, "{\"a\""),
        arguments(0, ": 1}"),
        calls(1),
        finish("tool_calls"),
        end(),
    ];
    let got = events(&told(messages(), &stream.concat()));
    let opened = |index: u32| {
        json!({
            "type": "content_block_start", "index": index + 1,
            "content_block": {"type": "tool_use", "id": format!("call_{index}"), "name": "f", "input": {}},
        })
    };
    let grown = |piece: &str| {
        json!({
            "type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": piece},
        })
    };
    let stopped = |index: u32| json!({"type": "content_block_stop", "index": index});
    let expected = [
        stopped(0),
        opened(0),
        grown("{\"a\""),
        grown(": 1}"),
        stopped(1),
        opened(1),
        stopped(2),
    ];
    assert_eq!(got[3..10], expected);
    assert_eq!(got[10]["delta"]["stop_reason"], "tool_use");
}

#[test]
fn a_text_in_one_chunk_with_the_end_of_a_call_stands_behind_it() {
    let more = json!({"index": 0, "function": {"arguments": "2}"}});
    let next = json!({"index": 1, "id": "call_1", "type": "function", "function": {"name": "g", "arguments": "{}"}});
    let mixed = chunk(&json!({"content": "So.", "tool_calls": [more, next]}), &Value::Null);
    let stream = [
        start(),
        calls(0),
        arguments(0, "{\"a\":"),
        mixed,
        finish("tool_calls"),
        end(),
    ]
    .concat();
    let got = events(&told(messages(), &stream));
    let told: Vec<_> = got.iter().filter_map(|event| event["delta"].as_object()).collect();
    let said = |index: usize, name: &str| told[index][name].as_str().unwrap().to_owned();
    assert_eq!([said(0, "partial_json"), said(1, "partial_json")].concat(), "{\"a\":2}");
    assert_eq!((said(2, "text"), said(3, "partial_json")), ("So.".into(), "{}".into()));
    assert_eq!(said(4, "stop_reason"), "tool_use");
}

#[test]
fn the_stop_text_is_told_in_messages() {
    let choice = json!({"index": 0, "delta": {}, "finish_reason": "stop", "stop_reason": "END"});
    let last = format!("data: {}\n\n", json!({"model": "real", "choices": [choice]}));
    let got = events(&told(messages(), &[start(), text("a"), last, end()].concat()));
    assert_eq!(
        got[4]["delta"],
        json!({"stop_reason": "stop_sequence", "stop_sequence": "END"})
    );
}

#[test]
fn an_answer_that_says_nothing_is_an_empty_text() {
    let stream = [start(), finish("stop"), end()].concat();
    let got = events(&told(responses(), &stream));
    assert_eq!(got.last().unwrap()["response"]["output"][0]["content"][0]["text"], "");
    let got = events(&told(messages(), &stream));
    let expected = [
        "message_start",
        "content_block_start",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ];
    assert_eq!(names(&got), expected);
}

#[test]
fn comments_pass_and_are_pings_once_a_message_has_begun() {
    let stream = [
        ": waiting, place 3 of 5\n\n",
        &start(),
        ": keep-alive\n\n",
        &finish("stop"),
        &end(),
    ]
    .concat();
    let (first, second) = (told(responses(), &stream), told(messages(), &stream));
    assert!(first.starts_with(": waiting, place 3 of 5\n\n") && first.contains("\n\n: keep-alive\n\n"));
    assert!(second.starts_with(": waiting, place 3 of 5\n\n") && !second.contains("keep-alive"));
    assert_eq!(events(&second)[1], json!({"type": "ping"}));
}

#[test]
fn a_failure_ends_the_stream_with_an_error_in_the_dialects_shape() {
    let error = ErrorKind::UpstreamTimeout.object("The worker was silent.", None);
    let error = format!("data: {}\n\n", json!({"error": error}));
    let stream = [start(), text("a"), error.clone(), text("b"), end()].concat();
    let got = events(&told(responses(), &stream));
    let expected = json!({
        "type": "error", "sequence_number": 5, "code": "upstream_timeout", "message": "The worker was silent.", "param": null,
    });
    assert_eq!(got[5], expected);
    assert_eq!((&got[6]["type"], got.len()), (&json!("response.failed"), 7));
    assert_eq!(
        got[6]["response"]["error"],
        json!({"code": "server_error", "message": "The worker was silent."})
    );
    assert_eq!(got[6]["response"]["output"][0]["content"][0]["text"], "a");
    let got = events(&told(messages(), &stream));
    let expected = json!({"type": "error", "error": {"type": "timeout_error", "message": "The worker was silent."}});
    assert_eq!(got[3..], *std::slice::from_ref(&expected));
    // Before anything was said, too.
    assert_eq!(events(&told(messages(), &error)), [expected]);
    let got = events(&told(responses(), &error));
    assert_eq!(
        names(&got),
        ["response.created", "response.in_progress", "error", "response.failed"]
    );
}

#[test]
fn a_stream_that_is_not_whole_ends_with_an_error() {
    for stream in [
        String::new(),
        start(),
        [start(), finish("stop")].concat(),
        [start(), "data: [DONE]\n\n".to_owned()].concat(),
        [start(), finish("stop"), "data: [DONE]\n\n".to_owned()].concat(),
        "data: {\n\n".to_owned(),
        [start(), arguments(0, "{}")].concat(),
        [start(), calls(0), calls(1), arguments(0, "{}")].concat(),
    ] {
        assert_eq!(
            names(&events(&told(responses(), &stream))).last(),
            Some(&"response.failed"),
            "{stream}"
        );
        assert_eq!(
            names(&events(&told(messages(), &stream))).last(),
            Some(&"error"),
            "{stream}"
        );
    }
}

/// Any answer: its stream, its whole text, and the arguments of its calls.
fn any_answer() -> impl Strategy<Value = (String, String, Vec<String>)> {
    let texts = prop::collection::vec(any::<String>(), 0..4);
    let calls_ = prop::collection::vec(prop::collection::vec(any::<String>(), 0..4), 0..3);
    (texts, calls_, any::<bool>()).prop_map(|(texts, all, with_comments)| {
        let mut stream = vec![": waiting\n\n".to_owned(), start()];
        stream.extend(texts.iter().map(|piece| text(piece)));
        for (index, pieces) in all.iter().enumerate() {
            stream.push(calls(index));
            stream.extend(pieces.iter().map(|piece| arguments(index, piece)));
        }
        stream.extend([finish("stop"), end()]);
        let between = if with_comments { ": keep-alive\n\n" } else { "" };
        (
            stream.join(between),
            texts.concat(),
            all.iter().map(|pieces| pieces.concat()).collect(),
        )
    })
}

/// Pushes bytes in pieces of these lengths, and then the rest.
fn told_in_pieces(mut stream: Box<dyn Translate>, bytes: &[u8], lengths: &[usize]) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::new(), bytes);
    for &length in lengths {
        let (piece, after) = rest.split_at(length.min(rest.len()));
        stream.push(piece, &mut out);
        rest = after;
    }
    stream.push(rest, &mut out);
    stream.end(&mut out);
    out
}

proptest! {
    #[test]
    fn however_a_stream_is_cut_the_same_events_are_told(
        (stream, _, _) in any_answer(),
        lengths in prop::collection::vec(1_usize..40, 0..60),
    ) {
        for begin in [responses, messages] {
            let pieces = told_in_pieces(begin(), stream.as_bytes(), &lengths);
            prop_assert_eq!(String::from_utf8(pieces).unwrap(), told(begin(), &stream));
        }
    }

    #[test]
    fn a_client_of_responses_that_joins_the_deltas_has_the_items_of_the_end((stream, text, arguments) in any_answer()) {
        let got = events(&told(responses(), &stream));
        for (number, event) in got.iter().enumerate() {
            prop_assert_eq!(&event["sequence_number"], number);
        }
        let output = got.last().unwrap()["response"]["output"].as_array().unwrap();
        let joined = |index: usize| -> String {
            let own = got.iter().filter(|event| event["output_index"] == index && event["delta"].is_string());
            own.map(|event| event["delta"].as_str().unwrap()).collect()
        };
        let has_text = !text.is_empty() || arguments.is_empty();
        prop_assert_eq!(output.len(), usize::from(has_text) + arguments.len());
        let mut expected: Vec<&String> = arguments.iter().collect();
        if has_text {
            expected.insert(0, &text);
        }
        for (index, (item, expected)) in output.iter().zip(expected).enumerate() {
            let said = item.get("arguments").unwrap_or(&item["content"][0]["text"]);
            prop_assert_eq!(said, expected);
            prop_assert_eq!(&joined(index), expected);
            let done = got.iter().find(|event| event["type"] == "response.output_item.done" && event["output_index"] == index);
            prop_assert_eq!(&done.unwrap()["item"], item);
        }
    }

    #[test]
    fn the_blocks_of_a_message_follow_each_other_and_hold_the_answer((stream, text, arguments) in any_answer()) {
        let got = events(&told(messages(), &stream));
        let mut blocks: Vec<String> = Vec::new();
        let mut is_open = false;
        for event in &got {
            match event["type"].as_str().unwrap() {
                "content_block_start" => {
                    prop_assert!(!is_open && event["index"] == blocks.len());
                    is_open = true;
                    blocks.push(String::new());
                }
                "content_block_delta" => {
                    prop_assert!(is_open && event["index"] == blocks.len() - 1);
                    let delta = &event["delta"];
                    let piece = delta.get("text").unwrap_or(&delta["partial_json"]);
                    blocks.last_mut().unwrap().push_str(piece.as_str().unwrap());
                }
                "content_block_stop" => {
                    prop_assert!(is_open && event["index"] == blocks.len() - 1);
                    is_open = false;
                }
                _ => prop_assert!(!is_open || event["type"] == "ping"),
            }
        }
        let mut expected = arguments;
        if !text.is_empty() || expected.is_empty() {
            expected.insert(0, text);
        }
        prop_assert_eq!(blocks, expected);
    }

    #[test]
    fn whatever_comes_there_is_one_end(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for (begin, end) in [(messages as fn() -> _, "event: error\n"), (responses, "event: response.failed\n")] {
            let out = String::from_utf8(told_in_pieces(begin(), &bytes, &[])).unwrap();
            prop_assert_eq!(out.matches(end).count(), 1);
        }
    }
}
