//! Answers that have a form: JSON, and calls of tools.

use serde_json::{Value, json};

use super::requests::{CHAT, chat, chunks, of_choice, text_of};
use super::support::{Script, TestWorker};

/// One that a model keeps to by saying `{"ok":true}` or `{"ok":false}`.
fn schema() -> Value {
    json!({
        "type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": false,
    })
}

fn format_of(schema: &Value) -> Value {
    json!({"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": true}})
}

fn tool(name: &str) -> Value {
    let parameters = json!({
        "type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"],
        "additionalProperties": false,
    });
    json!({"type": "function", "function": {"name": name, "parameters": parameters}})
}

fn with_tools(more: Value) -> Value {
    let mut body = chat(json!({"tools": [tool("rain"), tool("wind")], "max_tokens": 200}));
    let Value::Object(more) = more else { panic!("an object") };
    body.as_object_mut().unwrap().extend(more);
    body
}

const RAIN: &str = "<tool_call>\n{\"name\": \"rain\", \"arguments\": {\"city\": \"Oslo\"}}\n</tool_call>";
const BOTH: &str = "Let me look.\n<tool_call>\n{\"name\": \"rain\", \"arguments\": {\"city\": \"Oslo\"}}\n</tool_call>\n\
                    <tool_call>\n{\"name\": \"wind\", \"arguments\": {\"city\": \"Rome\"}}\n</tool_call>";

fn content(answer: &Value) -> &Value {
    &answer["choices"][0]["message"]["content"]
}

#[tokio::test]
async fn an_answer_keeps_to_its_schema_whatever_the_model_would_say() {
    let worker = TestWorker::start(Script::new("I would rather chat."), &[]).await;
    let body = chat(json!({"response_format": format_of(&schema()), "n": 3}));
    let answer = worker.answer(CHAT, &body).await;
    for choice in answer["choices"].as_array().unwrap() {
        let value: Value = serde_json::from_str(choice["message"]["content"].as_str().unwrap()).unwrap();
        assert!(
            value["ok"].is_boolean() && value.as_object().unwrap().len() == 1,
            "{value}"
        );
        assert_eq!(choice["finish_reason"], "stop");
    }
}

#[tokio::test]
async fn what_fits_the_form_is_said_as_the_model_says_it() {
    let worker = TestWorker::start(Script::new(r#"{"bees":[1,2],"name":"é"}"#), &[]).await;
    let body = chat(json!({"response_format": {"type": "json_object"}}));
    let answer = worker.answer(CHAT, &body).await;
    let value: Value = serde_json::from_str(content(&answer).as_str().unwrap()).unwrap();
    assert_eq!(value, json!({"bees": [1, 2], "name": "é"}));
}

#[tokio::test]
async fn json_that_the_token_limit_cuts_ends_with_the_reason_length() {
    let worker = TestWorker::start(Script::new(r#"{"ok":true}"#), &[]).await;
    let body = chat(json!({"response_format": format_of(&schema()), "max_tokens": 5}));
    let answer = worker.answer(CHAT, &body).await;
    assert_eq!(
        (content(&answer), &answer["choices"][0]["finish_reason"]),
        (&json!("{\"ok\""), &json!("length"))
    );
}

#[tokio::test]
async fn a_schema_that_cannot_be_kept_is_refused_where_it_stands() {
    let worker = TestWorker::start(Script::new("x"), &[]).await;
    let body = chat(json!({"response_format": format_of(&json!({"type": "abacus"}))}));
    let (status, error) = worker.refusal(CHAT, &body).await;
    assert_eq!(
        (status, &error["param"]),
        (400, &json!("response_format.json_schema.schema")),
        "{error}"
    );

    let mut bad = tool("wind");
    bad["function"]["parameters"]["properties"] = json!({"city": {"type": "abacus"}});
    bad["function"]["strict"] = json!(true);
    let body = chat(json!({"tools": [tool("rain"), bad]}));
    let (status, error) = worker.refusal(CHAT, &body).await;
    assert_eq!(
        (status, &error["param"]),
        (400, &json!("tools[1].function.parameters")),
        "{error}"
    );
}

#[tokio::test]
async fn a_form_for_an_answer_that_may_be_a_call_is_refused() {
    let worker = TestWorker::start(Script::new(RAIN), &[]).await;
    let format = json!({"type": "json_object"});
    let (status, error) = worker
        .refusal(CHAT, &with_tools(json!({"response_format": format})))
        .await;
    assert_eq!((status, &error["param"]), (400, &json!("response_format")));
    let body = with_tools(json!({"response_format": format, "tool_choice": "required"}));
    assert_eq!(
        worker.answer(CHAT, &body).await["choices"][0]["finish_reason"],
        "tool_calls"
    );
}

#[tokio::test]
async fn calls_are_told_apart_from_the_text_before_them() {
    let worker = TestWorker::start(Script::new(BOTH), &[]).await;
    let answer = worker.answer(CHAT, &with_tools(json!({}))).await;
    assert_eq!(content(&answer).as_str().unwrap().trim_end(), "Let me look.");
    let calls = answer["choices"][0]["message"]["tool_calls"].as_array().unwrap();
    let said: Vec<(&str, Value)> = calls
        .iter()
        .map(|call| {
            assert_eq!(call["type"], "function");
            let function = &call["function"];
            let arguments = serde_json::from_str(function["arguments"].as_str().unwrap()).unwrap();
            (function["name"].as_str().unwrap(), arguments)
        })
        .collect();
    assert_eq!(
        said,
        [("rain", json!({"city": "Oslo"})), ("wind", json!({"city": "Rome"}))]
    );
    let ids: Vec<_> = calls.iter().map(|call| call["id"].as_str().unwrap()).collect();
    assert!(
        ids.iter().all(|id| id.starts_with("call_")) && ids[0] != ids[1],
        "{ids:?}"
    );
    assert_eq!(answer["choices"][0]["finish_reason"], "tool_calls");
}

#[tokio::test]
async fn calls_are_streamed_piece_by_piece() {
    let worker = TestWorker::start(Script::new(BOTH), &[]).await;
    let chunks = chunks(
        &worker
            .stream(CHAT, &with_tools(json!({"stream": true, "logprobs": true})))
            .await,
    );
    assert_eq!(text_of(&chunks, 0, "/delta/content").trim_end(), "Let me look.");
    let deltas = of_choice(&chunks, 0, "/delta/tool_calls").into_iter();
    let deltas: Vec<_> = deltas.flat_map(|deltas| deltas.as_array().unwrap()).collect();
    for (index, name, city) in [(0, "rain", "Oslo"), (1, "wind", "Rome")] {
        let of_call: Vec<_> = deltas.iter().filter(|delta| delta["index"] == index).collect();
        let (first, rest) = of_call.split_first().unwrap();
        assert_eq!(
            (&first["function"]["name"], &first["type"]),
            (&json!(name), &json!("function"))
        );
        assert!(first["id"].as_str().unwrap().starts_with("call_"));
        assert!(rest.len() > 2, "in pieces: {rest:?}");
        assert!(
            rest.iter()
                .all(|delta| delta.get("id").is_none() && delta["function"].get("name").is_none())
        );
        let arguments: String = of_call
            .iter()
            .map(|delta| delta["function"]["arguments"].as_str().unwrap())
            .collect();
        assert_eq!(
            serde_json::from_str::<Value>(&arguments).unwrap(),
            json!({"city": city})
        );
    }
    assert_eq!(of_choice(&chunks, 0, "/finish_reason"), [&json!("tool_calls")]);
    let tokens = of_choice(&chunks, 0, "/logprobs/content").into_iter();
    let spelled: String = tokens
        .flat_map(|tokens| tokens.as_array().unwrap())
        .map(|token| token["token"].as_str().unwrap())
        .collect();
    assert!(
        spelled.starts_with("Let me look.") && !spelled.contains("rain"),
        "of the text only: {spelled}"
    );
}

#[tokio::test]
async fn a_call_that_the_limit_cuts_off_before_it_has_a_name_is_not_taken_for_text() {
    let worker = TestWorker::start(Script::new(BOTH), &[]).await;
    // A token of the fake model is a byte.
    let limit = BOTH.find("wind").expect("the second call") - 3;
    let answer = worker.answer(CHAT, &with_tools(json!({"max_tokens": limit}))).await;
    assert_eq!(content(&answer).as_str().unwrap().trim_end(), "Let me look.");
    let calls = answer["choices"][0]["message"]["tool_calls"].as_array().unwrap();
    assert_eq!(calls.len(), 1, "{answer}");
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn a_call_that_is_required_comes_whatever_the_model_would_say() {
    let worker = TestWorker::start(Script::new("I would rather chat."), &[]).await;
    let named = json!({"type": "function", "function": {"name": "wind"}});
    for (choice, names) in [(json!("required"), &["rain", "wind"][..]), (named, &["wind"][..])] {
        // A named call is one call without being told so.
        let body = with_tools(json!({"tool_choice": choice, "parallel_tool_calls": names.len() == 1}));
        let answer = worker.answer(CHAT, &body).await;
        assert!(content(&answer).is_null(), "{answer}");
        let calls = answer["choices"][0]["message"]["tool_calls"].as_array().unwrap();
        assert_eq!(calls.len(), 1, "{answer}");
        assert!(names.contains(&calls[0]["function"]["name"].as_str().unwrap()));
        let arguments: Value = serde_json::from_str(calls[0]["function"]["arguments"].as_str().unwrap()).unwrap();
        assert!(
            arguments == json!({"city": "Oslo"}) || arguments == json!({"city": "Rome"}),
            "{arguments}"
        );
        assert_eq!(answer["choices"][0]["finish_reason"], "tool_calls");
    }
}

#[tokio::test]
async fn without_parallel_calls_there_is_one() {
    let worker = TestWorker::start(Script::new(BOTH), &[]).await;
    let answer = worker
        .answer(CHAT, &with_tools(json!({"parallel_tool_calls": false})))
        .await;
    assert_eq!(
        answer["choices"][0]["message"]["tool_calls"].as_array().unwrap().len(),
        1
    );
}

#[tokio::test]
async fn a_model_that_calls_nothing_just_answers() {
    let worker = TestWorker::start(Script::new("It is dry."), &[]).await;
    let answer = worker.answer(CHAT, &with_tools(json!({}))).await;
    let message = &answer["choices"][0]["message"];
    assert_eq!(
        (&message["content"], message.get("tool_calls")),
        (&json!("It is dry."), None)
    );
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
}

#[tokio::test]
async fn a_model_that_must_not_call_is_not_told_of_tools_and_its_text_is_text() {
    let worker = TestWorker::start(Script::new(RAIN), &[]).await;
    let answer = worker.answer(CHAT, &with_tools(json!({"tool_choice": "none"}))).await;
    assert_eq!(
        (content(&answer), &answer["choices"][0]["finish_reason"]),
        (&json!(RAIN), &json!("stop"))
    );
    assert_eq!(answer["usage"]["prompt_tokens"], "User: Hi\n".len());
    let told = worker.answer(CHAT, &with_tools(json!({}))).await;
    assert_eq!(
        told["usage"]["prompt_tokens"],
        "Tool: rain\nTool: wind\nUser: Hi\n".len()
    );
}

#[tokio::test]
async fn a_call_that_the_token_limit_cuts_ends_with_the_reason_length() {
    let worker = TestWorker::start(Script::new(RAIN), &[]).await;
    let limit = RAIN.find("slo").unwrap();
    let answer = worker.answer(CHAT, &with_tools(json!({"max_tokens": limit}))).await;
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "length");
    assert_eq!(choice["message"]["tool_calls"][0]["function"]["name"], "rain");
}

#[tokio::test]
async fn a_conversation_with_calls_goes_on() {
    let worker = TestWorker::start(Script::new("It is dry."), &[]).await;
    let call =
        json!({"id": "call_1", "type": "function", "function": {"name": "rain", "arguments": "{\"city\":\"Oslo\"}"}});
    let messages = json!([
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "content": null, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "no"},
    ]);
    let answer = worker.answer(CHAT, &with_tools(json!({"messages": messages}))).await;
    assert_eq!(content(&answer), "It is dry.");
}
