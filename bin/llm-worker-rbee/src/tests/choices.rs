//! Several answers to one request, and how probable their tokens were.

use serde_json::{Value, json};

use super::requests::{CHAT, COMPLETIONS, chat, chunks, completion, of_choice, text_of};
use super::support::{ANSWER, Script, TestWorker};

/// Says one of two things; the second is less probable by half a unit of the logarithm.
fn undecided() -> Script {
    Script {
        or: &[("no.", 0.5)],
        ..Script::new("yes.")
    }
}

/// Natural logarithms of the probabilities of what [`undecided`] says first.
const YES: f64 = -0.474_08;
const NO: f64 = -0.974_08;

fn is_near(value: &Value, expected: f64) -> bool {
    value.as_f64().is_some_and(|value| (value - expected).abs() < 1e-3)
}

fn texts(answer: &Value, pointer: &str) -> Vec<String> {
    let choices = answer["choices"].as_array().unwrap().iter();
    choices
        .map(|choice| choice.pointer(pointer).unwrap().as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn several_answers_are_numbered_and_the_prompt_is_counted_once() {
    let worker = TestWorker::start(Script::new("Hello"), &["--slots", "2"]).await;
    let answer = worker.answer(CHAT, &chat(json!({"n": 3}))).await;
    let choices = answer["choices"].as_array().unwrap();
    for (index, choice) in choices.iter().enumerate() {
        assert_eq!(choice["index"], index);
        assert_eq!(choice["message"]["content"], "Hello");
        assert_eq!(choice["finish_reason"], "stop");
    }
    assert_eq!(choices.len(), 3);
    let prompt = "User: Hi\n".len();
    assert_eq!(answer["usage"]["prompt_tokens"], prompt);
    assert_eq!(answer["usage"]["completion_tokens"], 15);
    worker
        .until_metric("rbee_worker_time_to_first_token_seconds_count 1")
        .await;
    worker
        .until_metric("rbee_worker_inter_token_latency_seconds_count 12")
        .await;
}

#[tokio::test]
async fn what_a_request_finds_in_the_prefix_cache_is_told_and_what_its_own_answers_share_is_not() {
    let worker = TestWorker::start(Script::new("Hello"), &[]).await;
    let first = worker.answer(CHAT, &chat(json!({"n": 2}))).await;
    assert_eq!(first["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    worker.until_metric("rbee_worker_prefix_hit_tokens_total 8").await;
    let second = worker.answer(CHAT, &chat(json!({"n": 2}))).await;
    assert_eq!(
        second["usage"]["prompt_tokens_details"]["cached_tokens"], 8,
        "the one full block"
    );
    worker.until_metric("rbee_worker_prefix_hit_tokens_total 24").await;
    let body = json!({"prompt": "of eight", "max_tokens": 1});
    let done = |events: Vec<String>| serde_json::from_str::<Value>(events.last().unwrap()).unwrap();
    assert_eq!(
        done(worker.stream("/v1/infer", &body).await)["usage"]["cached_tokens"],
        0
    );
    assert_eq!(
        done(worker.stream("/v1/infer", &body).await)["usage"]["cached_tokens"],
        8
    );
}

#[tokio::test]
async fn a_stream_brings_all_answers_each_with_its_role_its_text_and_its_end_and_one_usage() {
    let worker = TestWorker::start(Script::new("Hello"), &["--slots", "3"]).await;
    let body = chat(json!({"n": 3, "stream": true, "stream_options": {"include_usage": true}}));
    let chunks = chunks(&worker.stream(CHAT, &body).await);
    for index in 0..3 {
        assert_eq!(of_choice(&chunks, index, "/delta/role"), [&json!("assistant")]);
        assert_eq!(text_of(&chunks, index, "/delta/content"), "Hello");
        assert_eq!(of_choice(&chunks, index, "/finish_reason"), [&json!("stop")]);
    }
    let (usage, others) = chunks.split_last().unwrap();
    assert_eq!(usage["usage"]["completion_tokens"], 15);
    assert!(others.iter().all(|chunk| chunk["usage"].is_null()));
}

#[tokio::test]
async fn answers_come_side_by_side_and_not_one_after_another() {
    let worker = TestWorker::start(Script::endless("la "), &["--slots", "2"]).await;
    // Many times what is kept for a reader that stays behind, so that no answer can be complete before it is read.
    let body = completion(json!({"n": 2, "stream": true, "max_tokens": 500}));
    let chunks = chunks(&worker.stream(COMPLETIONS, &body).await);
    let first_end = chunks
        .iter()
        .position(|chunk| !chunk["choices"][0]["finish_reason"].is_null());
    let begun = |index: u32| chunks.iter().position(|chunk| chunk["choices"][0]["index"] == index);
    assert!(begun(0) < first_end && begun(1) < first_end, "{first_end:?}");
}

#[tokio::test]
async fn a_seed_gives_the_same_answers_again_and_each_answer_another() {
    let worker = TestWorker::start(undecided(), &[]).await;
    let body = chat(json!({"n": 16, "seed": 7, "temperature": 1}));
    let several = texts(&worker.answer(CHAT, &body).await, "/message/content");
    assert_eq!(texts(&worker.answer(CHAT, &body).await, "/message/content"), several);
    assert!(
        several.iter().any(|text| text == "yes.") && several.iter().any(|text| text == "no."),
        "{several:?}"
    );
    for (index, text) in several.iter().enumerate() {
        let alone = chat(json!({"seed": 7 + index, "temperature": 1}));
        assert_eq!(&texts(&worker.answer(CHAT, &alone).await, "/message/content")[0], text);
    }
}

#[tokio::test]
async fn what_a_request_says_of_sampling_decides_what_is_said() {
    let worker = TestWorker::start(undecided(), &[]).await;
    let no = (ANSWER + u32::from(b'n')).to_string();
    for (sampling, expected) in [
        (json!({"n": 8, "temperature": 0}), "yes."),
        (json!({"n": 8, "temperature": 0, "logit_bias": {no: 1}}), "no."),
        (json!({"n": 8, "temperature": 2, "top_k": 1}), "yes."),
        (json!({"n": 8, "temperature": 2, "min_p": 0.9}), "yes."),
    ] {
        let answer = worker.answer(CHAT, &chat(sampling)).await;
        assert_eq!(texts(&answer, "/message/content"), [expected; 8]);
    }
}

#[tokio::test]
async fn several_prompts_have_answers_of_their_own_in_their_order() {
    let worker = TestWorker::start(Script::new("!"), &[]).await;
    let body = completion(json!({"prompt": ["one", "three"], "n": 2, "echo": true}));
    let answer = worker.answer(COMPLETIONS, &body).await;
    assert_eq!(texts(&answer, "/text"), ["one!", "one!", "three!", "three!"]);
    let indices: Vec<_> = answer["choices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|choice| &choice["index"])
        .collect();
    assert_eq!(indices, [&json!(0), &json!(1), &json!(2), &json!(3)]);
    assert_eq!(answer["usage"]["prompt_tokens"], 4 + 6, "each prompt once");
    assert_eq!(answer["usage"]["completion_tokens"], 4);
}

#[tokio::test]
async fn of_more_answers_than_are_wanted_the_most_probable_come_back_and_all_are_counted() {
    let worker = TestWorker::start(undecided(), &[]).await;
    let body = completion(json!({"n": 2, "best_of": 16, "seed": 7, "temperature": 1}));
    let answer = worker.answer(COMPLETIONS, &body).await;
    assert_eq!(texts(&answer, "/text"), ["yes.", "yes."]);
    assert!(answer["choices"][0]["logprobs"].is_null(), "nobody asked for them");
    let tokens = answer["usage"]["completion_tokens"].as_u64().unwrap();
    assert!((16 * 3..16 * 4).contains(&tokens), "{tokens}");
}

#[tokio::test]
async fn a_chat_tells_how_probable_its_tokens_were_and_what_they_might_have_been() {
    let worker = TestWorker::start(undecided(), &[]).await;
    let asked = json!({"logprobs": true, "top_logprobs": 2, "temperature": 0});
    let answer = worker.answer(CHAT, &chat(asked.clone())).await;
    let tokens = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(tokens.len(), "yes.".len());
    assert_eq!((&tokens[0]["token"], &tokens[0]["bytes"]), (&json!("y"), &json!([121])));
    assert!(is_near(&tokens[0]["logprob"], YES), "{}", tokens[0]);
    let top = tokens[0]["top_logprobs"].as_array().unwrap();
    assert_eq!(
        (&top[0]["token"], &top[1]["token"], top.len()),
        (&json!("y"), &json!("n"), 2)
    );
    assert!(is_near(&top[0]["logprob"], YES) && is_near(&top[1]["logprob"], NO));
    assert!(is_near(&tokens[1]["logprob"], 0.0), "the rest is certain");

    let mut asked = chat(asked);
    asked["stream"] = json!(true);
    let chunks = chunks(&worker.stream(CHAT, &asked).await);
    let streamed = of_choice(&chunks, 0, "/logprobs/content").into_iter();
    let streamed: Vec<_> = streamed.flat_map(|content| content.as_array().unwrap()).collect();
    assert_eq!(streamed, tokens.iter().collect::<Vec<_>>());

    let plain = worker.answer(CHAT, &chat(json!({}))).await;
    assert!(plain["choices"][0]["logprobs"].is_null());
}

#[tokio::test]
async fn logprobs_end_with_the_text_where_a_stop_text_cuts_it() {
    let worker = TestWorker::start(Script::new("one, two"), &[]).await;
    for stream in [false, true] {
        let body = chat(json!({"logprobs": true, "stop": ", t", "stream": stream}));
        let tokens: Vec<String> = if stream {
            let chunks = chunks(&worker.stream(CHAT, &body).await);
            assert_eq!(text_of(&chunks, 0, "/delta/content"), "one");
            let content = of_choice(&chunks, 0, "/logprobs/content").into_iter();
            content
                .flat_map(|content| content.as_array().unwrap())
                .map(spelling)
                .collect()
        } else {
            let answer = worker.answer(CHAT, &body).await;
            let content = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
            content.iter().map(spelling).collect()
        };
        assert_eq!(tokens, ["o", "n", "e"]);
    }
}

fn spelling(token: &Value) -> String {
    token["token"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn tokens_of_a_cut_character_are_spelled_by_their_bytes() {
    let worker = TestWorker::start(Script::new("é"), &[]).await;
    let answer = worker.answer(CHAT, &chat(json!({"logprobs": true}))).await;
    let tokens = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(
        tokens.iter().map(|token| &token["bytes"]).collect::<Vec<_>>(),
        [&json!([195]), &json!([169])]
    );
    assert_eq!(tokens[0]["token"], "bytes:\\xc3");
}

#[tokio::test]
async fn an_echo_begins_with_the_prompt_and_tells_how_probable_that_was() {
    let worker = TestWorker::start(Script::new("!"), &[]).await;
    let asked = json!({"prompt": "ab", "echo": true, "logprobs": 1});
    let answer = worker.answer(COMPLETIONS, &completion(asked.clone())).await;
    let choice = &answer["choices"][0];
    assert_eq!(choice["text"], "ab!");
    let logprobs = &choice["logprobs"];
    assert_eq!(
        logprobs["tokens"],
        json!(["", "a", "b", "!"]),
        "the opening token has no text"
    );
    assert_eq!(logprobs["text_offset"], json!([0, 0, 1, 2]));
    assert!(logprobs["token_logprobs"][0].is_null() && logprobs["top_logprobs"][0].is_null());
    assert!(
        is_near(&logprobs["token_logprobs"][1], -1_000.0),
        "the model would have said `!`: {logprobs}"
    );
    assert!(is_near(&logprobs["top_logprobs"][1]["!"], 0.0));
    assert!(is_near(&logprobs["token_logprobs"][3], 0.0));

    let mut streamed = completion(asked);
    streamed["stream"] = json!(true);
    let chunks = chunks(&worker.stream(COMPLETIONS, &streamed).await);
    assert_eq!(text_of(&chunks, 0, "/text"), "ab!");
    for list in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        let pieces = of_choice(&chunks, 0, &format!("/logprobs/{list}")).into_iter();
        let pieces: Vec<_> = pieces.flat_map(|piece| piece.as_array().unwrap().clone()).collect();
        assert_eq!(json!(pieces), logprobs[list], "{list}");
    }
}

#[tokio::test]
async fn a_prompt_can_be_judged_without_an_answer() {
    let worker = TestWorker::start(Script::new("!"), &[]).await;
    let body = completion(json!({"prompt": [97, 98], "echo": true, "logprobs": 0, "max_tokens": 0}));
    let answer = worker.answer(COMPLETIONS, &body).await;
    let choice = &answer["choices"][0];
    assert_eq!(
        (&choice["text"], &choice["finish_reason"]),
        (&json!("ab"), &json!("length"))
    );
    assert_eq!(choice["logprobs"]["tokens"], json!(["a", "b"]));
    assert_eq!(answer["usage"]["completion_tokens"], 0);
}

#[tokio::test]
async fn an_echo_without_logprobs_is_text_only() {
    let worker = TestWorker::start(Script::new("!"), &[]).await;
    let body = completion(json!({"echo": true, "stream": true}));
    let chunks = chunks(&worker.stream(COMPLETIONS, &body).await);
    assert_eq!(text_of(&chunks, 0, "/text"), "Once!");
    assert!(of_choice(&chunks, 0, "/logprobs").is_empty());
}
