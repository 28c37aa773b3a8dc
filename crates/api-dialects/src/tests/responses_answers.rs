//! What `POST /v1/responses` answers.

use serde_json::{Value, json};

use super::{call, completion, identity};
use crate::responses;

fn answer(more: &Value, chat: &[u8]) -> Value {
    let mut body = json!({"model": "alias", "input": "Hi"});
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    let (_, reply) = responses::translate(body.to_string().as_bytes()).unwrap();
    serde_json::from_slice(&reply.whole(chat, identity()).unwrap()).unwrap()
}

#[test]
fn a_text_is_one_message_and_the_request_is_repeated() {
    let tool = json!({"type": "function", "name": "weather", "parameters": {"type": "object"}});
    let more = json!({
        "instructions": "i", "temperature": 0.2, "max_output_tokens": 9, "metadata": {"a": "b"}, "tools": [tool],
        "tool_choice": "none", "parallel_tool_calls": false, "text": {"format": {"type": "json_object"}},
    });
    let chat = completion(&json!({"role": "assistant", "content": "Ho", "refusal": null}), "stop");
    let part = json!({"type": "output_text", "text": "Ho", "annotations": [], "logprobs": []});
    let shown = json!({"type": "function", "name": "weather", "description": null, "parameters": {"type": "object"}, "strict": false});
    let expected = json!({
        "id": "resp_1", "object": "response", "created_at": 7, "status": "completed", "background": false,
        "error": null, "incomplete_details": null, "instructions": "i", "max_output_tokens": 9, "max_tool_calls": null,
        "metadata": {"a": "b"}, "model": "real",
        "output": [{"id": "msg_1_0", "type": "message", "status": "completed", "role": "assistant", "content": [part]}],
        "parallel_tool_calls": false, "previous_response_id": null, "reasoning": {"effort": null, "summary": null},
        "service_tier": "default", "store": false, "temperature": 0.2,
        "text": {"format": {"type": "json_object"}, "verbosity": "medium"}, "tool_choice": "none", "tools": [shown],
        "top_logprobs": 0, "top_p": 1.0, "truncation": "disabled",
        "usage": {
            "input_tokens": 10, "input_tokens_details": {"cached_tokens": 8, "cache_write_tokens": 0},
            "output_tokens": 4, "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 14,
        },
    });
    assert_eq!(answer(&more, &chat), expected);
}

#[test]
fn an_answer_that_was_cut_off_is_incomplete() {
    let chat = completion(&json!({"role": "assistant", "content": "Ho"}), "length");
    let answer = answer(&json!({}), &chat);
    assert_eq!(answer["status"], "incomplete");
    assert_eq!(answer["incomplete_details"], json!({"reason": "max_output_tokens"}));
    assert_eq!(answer["output"][0]["status"], "incomplete");
}

#[test]
fn only_the_last_item_of_an_answer_can_have_been_cut_off() {
    let calls = json!([call("1", "{}"), call("2", "{")]);
    let chat = completion(
        &json!({"role": "assistant", "content": "Ho", "tool_calls": calls}),
        "length",
    );
    let answer = answer(&json!({}), &chat);
    let statuses = [0, 1, 2].map(|index: usize| answer["output"][index]["status"].clone());
    assert_eq!(statuses, ["completed", "completed", "incomplete"]);
}

#[test]
fn calls_are_items_of_their_own() {
    let calls = json!([call("call_1", "{\"city\": \"Rome\"}"), call("call_2", "{}")]);
    let item = |index: u32, id: &str, arguments: &str| {
        json!({
            "id": format!("fc_1_{index}"), "type": "function_call", "status": "completed",
            "call_id": id, "name": "weather", "arguments": arguments,
        })
    };
    let silent = answer(
        &json!({}),
        &completion(
            &json!({"role": "assistant", "content": null, "tool_calls": calls}),
            "tool_calls",
        ),
    );
    assert_eq!(
        silent["output"],
        json!([item(0, "call_1", "{\"city\": \"Rome\"}"), item(1, "call_2", "{}")])
    );
    let spoken = answer(
        &json!({}),
        &completion(
            &json!({"role": "assistant", "content": "A moment.", "tool_calls": calls}),
            "tool_calls",
        ),
    );
    assert_eq!(spoken["output"][0]["content"][0]["text"], "A moment.");
    assert_eq!(spoken["output"][1], item(1, "call_1", "{\"city\": \"Rome\"}"));
}

#[test]
fn an_output_can_be_sent_back_as_input() {
    let calls = json!([call("call_1", "{}")]);
    let chat = completion(
        &json!({"role": "assistant", "content": "A moment.", "tool_calls": calls}),
        "tool_calls",
    );
    let mut input = answer(&json!({}), &chat)["output"].as_array().unwrap().clone();
    input.push(json!({"type": "function_call_output", "call_id": "call_1", "output": "sun"}));
    let body = json!({"model": "m", "input": input}).to_string();
    let (translated, _) = responses::translate(body.as_bytes()).unwrap();
    assert!(translated.ignored.is_empty());
    let expected = json!([
        {"role": "assistant", "content": "A moment.", "tool_calls": calls},
        {"role": "tool", "content": "sun", "tool_call_id": "call_1"},
    ]);
    assert_eq!(super::chat(&translated)["messages"], expected);
}

#[test]
fn what_is_no_completion_cannot_be_told() {
    let (_, reply) = responses::translate(br#"{"model": "m", "input": "Hi"}"#).unwrap();
    assert!(reply.whole(b"{\"choices\": []}", identity()).is_err());
}
