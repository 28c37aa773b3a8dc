//! What one worker began is finished by another one.

use proptest::prelude::*;

use super::*;

/// Cuts bytes into chunks at these places.
fn cut(bytes: &Bytes, cuts: &[prop::sample::Index]) -> Vec<Bytes> {
    let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
    cuts.extend([0, bytes.len()]);
    cuts.sort_unstable();
    cuts.windows(2).map(|cut| bytes.slice(cut[0]..cut[1])).collect()
}

fn models() -> impl Strategy<Value = Model> {
    let pieces = prop::collection::vec("[a-zä\"\\\\ \n€]{1,4}", 0..12);
    (pieces, any::<bool>()).prop_map(|(pieces, include_usage)| Model { pieces, include_usage })
}

fn all(events: &[Bytes]) -> Bytes {
    events.concat().into()
}

/// Places where workers break off, one after the other, in shares of what they would send.
fn breaks() -> impl Strategy<Value = Vec<(prop::sample::Index, bool)>> {
    prop::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 1..3)
}

/// Workers that send what `speak` gives, those of `breaks` not to its end.
fn workers(
    breaks: &[(prop::sample::Index, bool)],
    speak: impl Fn(&Value) -> Vec<Bytes> + Send + 'static,
) -> impl FnMut(&Value) -> Worker + Send + 'static {
    let mut breaks: VecDeque<_> = breaks.iter().copied().collect();
    move |asked| {
        let mut bytes = all(&speak(asked));
        let then = match breaks.pop_front() {
            Some((place, is_clean)) => {
                bytes.truncate(place.index(bytes.len() + 1));
                if is_clean { Then::Ends } else { Then::Breaks }
            }
            None => Then::Ends,
        };
        Worker::streams([bytes], then)
    }
}

proptest! {
    #[test]
    fn any_chunks_give_the_same_output(model in models(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..9)) {
        let chunks = cut(&all(&model.by_tokens(&json!({}))), &cuts);
        let output = Script::of(&model.request(), [Worker::streams(chunks, Then::Ends)]).output();
        prop_assert_eq!(&output, &model.undisturbed());
        prop_assert!(!output.contains("tokens ") || model.include_usage);
    }

    #[test]
    fn wherever_workers_break_off_those_that_take_up_tokens_give_the_undisturbed_output(model in models(), breaks in breaks()) {
        let speaking = model.clone();
        let script = Script::new(&model.request(), workers(&breaks, move |asked| speaking.by_tokens(asked)));
        prop_assert_eq!(script.output(), model.undisturbed());
    }

    #[test]
    fn wherever_workers_break_off_those_that_know_the_text_only_give_the_same_text(model in models(), breaks in breaks()) {
        let speaking = model.clone();
        let script = Script::new(&model.request(), workers(&breaks, move |asked| speaking.by_text(asked)));
        let output = script.output();
        prop_assert_eq!(text(&output), model.pieces.concat());
        let data = data(&output);
        let chunks: Vec<_> = data.iter().filter(|data| data.is_object()).collect();
        prop_assert_eq!(data.last(), Some(&json!("[DONE]")));
        prop_assert_eq!(data.len(), chunks.len() + 1);
        prop_assert!(chunks.iter().all(|chunk| chunk["id"] == chunks[0]["id"]));
        let count = |is: &dyn Fn(&Value) -> bool| chunks.iter().filter(|chunk| is(chunk)).count();
        prop_assert_eq!(count(&|chunk| chunk["choices"][0]["delta"]["role"].is_string()), 1);
        prop_assert_eq!(count(&|chunk| chunk["choices"][0]["finish_reason"].is_string()), 1);
        prop_assert!(count(&|chunk| chunk["usage"].is_object()) <= usize::from(model.include_usage));
    }
}

fn hello() -> Model {
    Model::new(&["Hel", "lo", " wor", "ld"])
}

/// The first `count` events of a worker that names its tokens; then it breaks off.
fn begins(model: &Model, count: usize) -> Worker {
    Worker::streams(model.by_tokens(&json!({})).into_iter().take(count), Then::Breaks)
}

/// A script, run to its end: its output and what was asked.
fn run(script: Script) -> (String, Vec<Asking>) {
    let seen = Arc::clone(&script.seen);
    let output = script.output();
    let askings = seen.lock().unwrap().askings.clone();
    (output, askings)
}

#[test]
fn another_worker_is_told_the_tokens_before_everything_else() {
    let model = hello();
    let request = model.request();
    let (output, askings) = run(Script::of(&request, [begins(&model, 3)]));
    let mut expected = request;
    expected["resume"] = json!({"id": "c-1", "created": 7, "tokens": [0, 1]});
    assert_eq!(askings[0].body, expected);
    assert_eq!(askings[0].needs, Some(Feature::Resume));
    // Nobody was there; one that knows the text only is asked next.
    assert_eq!(askings[1].needs, Some(Feature::ContinueFinalMessage));
    assert_eq!(text(&output), "Hello");
    assert!(error(&output).contains("nobody is there"), "{output}");
    assert!(!output.contains("[DONE]"));
}

#[test]
fn a_worker_that_knows_the_text_only_is_asked_to_go_on_with_the_message_for_the_tokens_that_are_left() {
    let model = Model::new(&["Hel", "lo", " \n", "you"]);
    let mut request = model.request();
    request["max_tokens"] = json!(10);
    let (_, askings) = run(Script::of(&request, [begins(&model, 4)]));
    let body = &askings[1].body;
    assert_eq!(body["messages"][1], json!({"role": "assistant", "content": "Hello"}));
    assert_eq!(
        (&body["continue_final_message"], &body["add_generation_prompt"]),
        (&json!(true), &json!(false))
    );
    assert_eq!((&body["max_tokens"], &body["stream"]), (&json!(7), &json!(true)));
}

#[test]
fn white_space_at_the_seam_comes_once_also_where_the_answer_ends_like_it_began() {
    // The rest, with the space that the next worker was not told of, is how the whole text begins: it could be a repetition.
    let pieces = [" €", "a", "€€", " \\", " \"ä", "€\n\n\n", "ä", "\n", "\\ ", "€"];
    let model = Model::new(&pieces);
    let speaking = model.clone();
    let mut taken = Some(pieces.len());
    let script = Script::new(&model.request(), move |asked| {
        let events = speaking.by_text(asked);
        match taken.take() {
            // The role, and all pieces but the last.
            Some(count) => Worker::streams(events.into_iter().take(count), Then::Breaks),
            None => Worker::streams(events, Then::Ends),
        }
    });
    assert_eq!(text(&script.output()), pieces.concat());
}

#[test]
fn tokens_and_prompt_are_counted_as_if_one_worker_had_done_it_all() {
    let model = Model {
        include_usage: true,
        ..hello()
    };
    let mut is_first = true;
    let speaking = model.clone();
    let script = Script::new(&model.request(), move |asked| {
        let events = speaking.by_text(asked);
        let (count, then) = if std::mem::take(&mut is_first) {
            (3, Then::Breaks)
        } else {
            (99, Then::Ends)
        };
        Worker::streams(events.into_iter().take(count), then)
    });
    let output = script.output();
    let usage = data(&output)
        .into_iter()
        .find(|data| data["usage"].is_object())
        .unwrap();
    assert_eq!(usage["usage"]["prompt_tokens"], 5);
    assert_eq!(usage["usage"]["completion_tokens"], 5);
    assert_eq!(usage["usage"]["total_tokens"], 10);
    assert!(usage["rbee"].is_object());
}

#[test]
fn a_completion_goes_on_from_the_prompt_with_its_text_at_any_worker() {
    let request = json!({"model": "m", "prompt": "Once", "stream": true});
    let chunk = |text: &str, finish: Value| {
        sse::event(
            &json!({"id": "x", "object": "text_completion", "created": 1, "model": "m",
            "choices": [{"index": 0, "text": text, "finish_reason": finish}]}),
        )
    };
    let first = Worker::streams([chunk(" upon", Value::Null)], Then::Breaks);
    let second = Worker::streams(
        [chunk(" a time", Value::Null), chunk("", json!("length")), sse::DONE],
        Then::Ends,
    );
    let (output, askings) = run(Script::of(&request, [first, second]));
    assert_eq!(
        (askings[0].body["prompt"].as_str(), askings[0].needs),
        (Some("Once upon"), None)
    );
    assert_eq!(askings[0].body["max_tokens"], 15);
    assert_eq!(text(&output), " upon a time");
    assert!(output.ends_with("data: [DONE]\n\n"));
}

#[test]
fn an_answer_that_has_all_the_tokens_it_may_have_is_finished_by_the_queen() {
    let model = hello();
    let mut request = model.request();
    request["max_completion_tokens"] = json!(2);
    let events = model.by_text(&request).into_iter().take(3);
    let (output, askings) = run(Script::of(&request, [Worker::streams(events, Then::Breaks)]));
    assert_eq!(askings, []);
    let data = data(&output);
    assert_eq!(data[3]["choices"][0]["finish_reason"], "length");
    assert_eq!((&data[3]["id"], &data[4]), (&data[0]["id"], &json!("[DONE]")));
}

#[test]
fn between_the_finish_and_done_nobody_needs_to_be_asked() {
    let model = hello();
    let (output, askings) = run(Script::of(&model.request(), [begins(&model, 6)]));
    assert_eq!((output, askings), (model.undisturbed(), vec![]));
}

#[test]
fn a_worker_that_writes_no_done_is_not_to_blame() {
    let model = hello();
    let events = model.by_tokens(&json!({})).into_iter().take(6);
    let script = Script::of(&model.request(), [Worker::streams(events, Then::Ends)]);
    let seen = Arc::clone(&script.seen);
    assert_eq!(script.output(), model.undisturbed());
    assert_eq!(seen.lock().unwrap().blamed, []);
}

#[test]
fn a_usage_that_nobody_can_tell_any_more_does_not_spoil_an_answer_that_is_complete() {
    let model = Model {
        include_usage: true,
        ..hello()
    };
    let (output, askings) = run(Script::of(&model.request(), [begins(&model, 6)]));
    assert_eq!(askings.len(), 1, "somebody might have told it");
    assert_eq!(text(&output), "Hello world");
    assert!(output.ends_with("data: [DONE]\n\n") && !output.contains("error"));
}

#[test]
fn what_happens_after_done_harms_nobody() {
    let model = hello();
    let events = model.by_tokens(&json!({}));
    let script = Script::of(&model.request(), [Worker::streams(events, Then::Breaks)]);
    let seen = Arc::clone(&script.seen);
    assert_eq!(script.output(), model.undisturbed());
    assert_eq!(seen.lock().unwrap().blamed, []);
}

#[test]
fn an_answer_of_which_the_client_has_only_the_role_is_made_again_as_the_same_answer() {
    let model = hello();
    let again = Worker::streams(model.by_text(&json!({"messages": [{}]})), Then::Ends);
    let (output, askings) = run(Script::of(&model.request(), [begins(&model, 1), again]));
    assert_eq!((askings[0].body.clone(), askings[0].needs), (model.request(), None));
    assert_eq!(data(&output), data(&model.undisturbed()));
}

#[test]
fn where_nobody_can_go_on_an_error_says_why_and_there_is_no_done() {
    let chunk = |choice: Value| {
        sse::event(
            &json!({"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}),
        )
    };
    let text = json!({"index": 0, "delta": {"content": "a"}, "finish_reason": null});
    let mut second = text.clone();
    second["index"] = json!(1);
    let mut sure = text.clone();
    sure["logprobs"] = json!({"content": []});
    let call = json!({"index": 0, "delta": {"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": ""}}]}});
    let thought = json!({"index": 0, "delta": {"reasoning_content": "hm"}});
    for (member, choice, reason) in [
        (json!({"n": 2}), &text, "several answers"),
        (json!({}), &second, "several answers"),
        (json!({"logprobs": true}), &text, "log probabilities"),
        (json!({}), &sure, "log probabilities"),
        (json!({}), &call, "call a tool"),
        (json!({}), &thought, "not plain text"),
        (json!({"response_format": {"type": "json_object"}}), &text, "a form"),
    ] {
        let mut request = hello().request();
        request
            .as_object_mut()
            .unwrap()
            .extend(member.as_object().unwrap().clone());
        let (output, askings) = run(Script::of(
            &request,
            [Worker::streams([chunk(choice.clone())], Then::Breaks)],
        ));
        assert!(error(&output).contains(reason), "{member} {choice}: {output}");
        assert!(!output.contains("[DONE]"));
        assert_eq!(askings, [], "{member} {choice}");
    }
}

#[test]
fn a_tool_call_that_has_begun_is_taken_up_by_its_tokens() {
    let call = json!({"id": "c-1", "object": "chat.completion.chunk", "created": 7, "model": "m",
        "choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": ""}}]}}]});
    let begun = Worker::streams([named(0, &sse::event(&call))], Then::Breaks);
    let (_, askings) = run(Script::of(&hello().request(), [begun]));
    assert_eq!(askings.len(), 1);
    assert_eq!(
        (askings[0].needs, &askings[0].body["resume"]["tokens"]),
        (Some(Feature::Resume), &json!([0]))
    );
}

#[test]
fn an_error_event_of_a_worker_is_a_break_unless_the_request_is_to_blame() {
    let model = hello();
    let error = |kind: ErrorKind| super::super::explain::error(kind.object("out of paper", None));
    let failing = |kind| {
        let mut events: Vec<_> = model.by_tokens(&json!({})).into_iter().take(3).collect();
        events.push(error(kind));
        Worker::streams(events, Then::Ends)
    };
    let speaking = model.clone();
    let mut first = Some(failing(ErrorKind::Internal));
    let script = Script::new(&model.request(), move |asked| {
        first
            .take()
            .unwrap_or_else(|| Worker::streams(speaking.by_tokens(asked), Then::Ends))
    });
    assert_eq!(script.output(), model.undisturbed());
    // Nobody goes on: its own words are the best there are.
    let (output, _) = run(Script::of(&model.request(), [failing(ErrorKind::Internal)]));
    assert!(output.ends_with("\n\n") && output.contains("out of paper"));
    let (output, askings) = run(Script::of(&model.request(), [failing(ErrorKind::InvalidRequest)]));
    assert!(output.contains("out of paper"));
    assert_eq!(askings, []);
}

#[test]
fn a_request_that_kills_its_workers_is_not_given_to_all_of_them() {
    let model = hello();
    let asked = Arc::new(Mutex::new(0));
    let count = Arc::clone(&asked);
    let script = Script::new(&model.request(), move |_| {
        *count.lock().unwrap() += 1;
        Worker::streams([], Then::Breaks)
    });
    assert!(error(&script.output()).contains("too many"));
    assert_eq!(*asked.lock().unwrap(), 3);
}

#[test]
fn a_worker_of_the_same_revision_is_asked_to_take_up_tokens_and_of_any_to_take_up_a_text() {
    let model = hello();
    let mut script = Script::of(&model.request(), [begins(&model, 3)]);
    script.receipt.report = Some(report());
    let (_, askings) = run(script);
    let revisions: Vec<_> = askings.iter().map(|asking| asking.revision.as_deref()).collect();
    assert_eq!(revisions, [Some("r7"), None]);
}

#[test]
fn a_stream_whose_events_never_end_is_relayed_and_not_taken_up() {
    let endless = Bytes::from(vec![b'x'; super::super::events::MAX_EVENT_BYTES + 1]);
    let chunks = || [endless.clone(), Bytes::from_static(b"yz")];
    let (output, askings) = run(Script::of(
        &hello().request(),
        [Worker::streams(chunks(), Then::Breaks)],
    ));
    let (relayed, event) = output.split_once("\n\ndata: ").unwrap();
    assert!(relayed.starts_with('x') && relayed.ends_with("xyz"));
    assert!(event.contains("too long"));
    assert_eq!(askings, []);
    let (output, _) = run(Script::of(&hello().request(), [Worker::streams(chunks(), Then::Ends)]));
    assert!(output.ends_with("xyz"), "it may well be complete");
}
