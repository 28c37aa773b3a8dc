use proptest::prelude::*;

use super::*;

const FORMATS: [ToolFormat; 3] = [ToolFormat::Hermes, ToolFormat::Llama3, ToolFormat::Mistral];

fn parser(format: ToolFormat) -> ToolCallParser {
    ToolCallParser::new(format, ["get", "set"].map(str::to_owned))
}

/// The events of a text that comes in pieces; neighbouring pieces of the same kind are joined.
fn events<'a>(format: ToolFormat, pieces: impl IntoIterator<Item = &'a str>) -> Vec<ToolEvent> {
    let mut parser = parser(format);
    let mut events = Vec::new();
    for piece in pieces {
        parser.push(piece, &mut events);
    }
    parser.finish(&mut events);
    let mut joined: Vec<ToolEvent> = Vec::new();
    for event in events {
        match (joined.last_mut(), event) {
            (Some(ToolEvent::Text(text)), ToolEvent::Text(more)) => text.push_str(&more),
            (Some(ToolEvent::Arguments { piece, .. }), ToolEvent::Arguments { piece: more, .. }) => {
                piece.push_str(&more);
            }
            (_, event) => joined.push(event),
        }
    }
    joined
}

fn text(text: &str) -> ToolEvent {
    ToolEvent::Text(text.to_owned())
}

fn call(index: usize, name: &str, arguments: &str) -> [ToolEvent; 3] {
    [
        ToolEvent::Begin {
            index,
            name: name.to_owned(),
        },
        ToolEvent::Arguments {
            index,
            piece: arguments.to_owned(),
        },
        ToolEvent::End { index },
    ]
}

#[test]
fn calls_are_told_from_the_text_before_and_between_them() {
    let answer = "Let me see. \n<tool_call>\n{\"name\": \"get\", \"arguments\": {\"a\": \"}<\\\"\"}}\n</tool_call>\n\
                  <tool_call>{\"name\": \"set\", \"arguments\": {}}</tool_call> done\n";
    let expected: Vec<ToolEvent> = [text("Let me see.")]
        .into_iter()
        .chain(call(0, "get", "{\"a\": \"}<\\\"\"}"))
        .chain(call(1, "set", "{}"))
        .chain([text(" done\n")])
        .collect();
    assert_eq!(events(ToolFormat::Hermes, [answer]), expected);
    let answer = r#"{"name": "get", "parameters": {"a": 1}}; {"type": "function", "name": "set", "parameters": {}}"#;
    let expected = [call(0, "get", "{\"a\": 1}"), call(1, "set", "{}")].concat();
    assert_eq!(events(ToolFormat::Llama3, [answer]), expected);
    let answer = "Hm\n[TOOL_CALLS] [{\"name\": \"get\", \"arguments\": {\"a\": 1}, \"id\": \"x\"}, {\"name\": \"set\", \"arguments\": {}}]\n";
    let expected = [vec![text("Hm")], expected].concat();
    assert_eq!(events(ToolFormat::Mistral, [answer]), expected);
}

#[test]
fn text_is_passed_on_at_once_and_only_what_may_open_a_call_is_held_back() {
    let mut parser = parser(ToolFormat::Hermes);
    let mut heard = |piece: &str| {
        let mut events = Vec::new();
        parser.push(piece, &mut events);
        events
    };
    assert_eq!(heard("Hello"), [text("Hello")]);
    assert_eq!(heard(" a <b> c"), [text(" a <b> c")]);
    assert_eq!(heard(" <tool"), []);
    assert_eq!(heard("box>"), [text(" <toolbox>")]);
    assert_eq!(heard("x \n<tool_call>"), [text("x")]);
    assert_eq!(heard("{\"name\": \"get\", \"arg"), []);
    let begin = ToolEvent::Begin {
        index: 0,
        name: "get".to_owned(),
    };
    assert_eq!(heard("uments\": "), []);
    let arguments = |piece: &str| ToolEvent::Arguments {
        index: 0,
        piece: piece.to_owned(),
    };
    assert_eq!(heard("{\"a\""), [begin, arguments("{\"a\"")]);
    assert_eq!(heard(": 1"), [arguments(": 1")]);
    assert_eq!(heard("}"), [arguments("}"), ToolEvent::End { index: 0 }]);
    assert_eq!(heard("}\n</tool_call>"), []);
}

#[test]
fn what_is_no_call_after_all_is_text() {
    for answer in [
        "<tool_call>\nwhat?\n</tool_call>",
        "<tool_call>{\"name\": \"unknown\", \"arguments\": {}}</tool_call>",
        "<tool_call>{\"name\": \"get\", \"arguments\": 3}</tool_call>",
        "<tool_call>{\"name\": \"get\", \"arguments\"",
        "<tool_call>{\"tool\": \"get\"}",
        "  <tool_call",
        " \n",
    ] {
        assert_eq!(events(ToolFormat::Hermes, [answer]), [text(answer)]);
    }
    for answer in ["[TOOL_CALLS] get", "[TOOL_CALLS] [3]", "[TOOL_"] {
        assert_eq!(events(ToolFormat::Mistral, [answer]), [text(answer)]);
    }
    for answer in [
        "{\"name\": \"Bob\"}",
        "{\"answer\": 3}",
        "I {\"name\": \"get\", \"parameters\": {}}",
        "{",
        " ",
    ] {
        assert_eq!(events(ToolFormat::Llama3, [answer]), [text(answer)]);
    }
    let endless = format!("<tool_call>{{\"name\": \"{}", "x".repeat(MAX_FRAME_BYTES));
    assert_eq!(events(ToolFormat::Hermes, [endless.as_str()]), [text(&endless)]);
}

#[test]
fn a_call_inside_of_what_is_none_is_found() {
    let found = events(
        ToolFormat::Hermes,
        ["Use <tool_call> so: <tool_call>{\"name\": \"get\", \"arguments\": {}}</tool_call>"],
    );
    let expected: Vec<ToolEvent> = [text("Use <tool_call> so:")]
        .into_iter()
        .chain(call(0, "get", "{}"))
        .collect();
    assert_eq!(found, expected);
}

#[test]
fn small_slips_of_unconstrained_models_are_forgiven() {
    for answer in [
        "<tool_call>{\"name\": \"get\", \"arguments\": {}</tool_call>",
        "<tool_call>{\"name\": \"get\", \"arguments\": {}}",
        "<tool_call>{\"arguments\": {}, \"name\": \"get\"}</tool_call>",
        "<tool_call>{\"name\": \"get\"}</tool_call>",
        "<tool_call>{\"name\": \"get\", \"parameters\": {}, \"x\": [1, true]}</tool_call>",
    ] {
        assert_eq!(events(ToolFormat::Hermes, [answer]), call(0, "get", "{}"), "{answer}");
    }
}

#[test]
fn an_answer_that_is_cut_off_leaves_its_call_without_an_end() {
    let found = events(
        ToolFormat::Hermes,
        ["<tool_call>{\"name\": \"get\", \"arguments\": {\"a\": [1, "],
    );
    assert_eq!(found, call(0, "get", "{\"a\": [1, ")[..2]);
    let found = events(
        ToolFormat::Hermes,
        ["<tool_call>{\"name\": \"get\", \"arguments\": {\"a\": ]} so"],
    );
    let expected = [&call(0, "get", "{\"a\": ")[..2], &[text("]} so")]].concat();
    assert_eq!(found, expected);
}

/// Texts in which every beginning of a call, and every way to break one, is likely.
fn answers() -> impl Strategy<Value = String> {
    let parts = [
        "<tool_call>",
        "</tool_call>",
        "[TOOL_CALLS]",
        "{\"name\": ",
        "\"get\"",
        "\"set\", ",
        "\"no\"",
        "\"arguments\": ",
        "\"parameters\": ",
        "{",
        "}",
        "[",
        "]",
        ",",
        "; ",
        "\"",
        "\\",
        "\n",
        " ",
        "é<",
        "text",
        "12",
        "{}",
        "<tool_call>\n{\"name\": \"get\", \"arguments\": {\"a\": 1}}\n</tool_call>",
        "{\"name\": \"set\", \"parameters\": {\"é\": \"}\"}}",
        "[TOOL_CALLS] [{\"name\": \"get\", \"arguments\": {}}, {\"name\": \"set\", \"arguments\": {}}]",
    ];
    prop::collection::vec(prop::sample::select(parts.to_vec()), 0..12).prop_map(|parts| parts.concat())
}

/// The text cut at some of its characters.
fn pieces<'a>(text: &'a str, cuts: &[prop::sample::Index]) -> Vec<&'a str> {
    let mut ends: Vec<usize> = cuts
        .iter()
        .map(|cut| text.floor_char_boundary(cut.index(text.len() + 1)))
        .collect();
    ends.extend([0, text.len()]);
    ends.sort_unstable();
    ends.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn the_events_do_not_depend_on_how_a_text_is_cut(answer in answers(), cuts: [prop::sample::Index; 8]) {
        for format in FORMATS {
            let whole = events(format, [answer.as_str()]);
            prop_assert_eq!(&events(format, pieces(&answer, &cuts)), &whole);
            let characters = answer.char_indices().map(|(at, c)| &answer[at..at + c.len_utf8()]);
            prop_assert_eq!(&events(format, characters), &whole);
        }
    }

    #[test]
    fn a_text_without_calls_comes_out_as_it_went_in(answer in "[a-z<>{}\\[\\]_ \n\"é]{0,40}") {
        for format in FORMATS {
            let whole: String = events(format, [answer.as_str()])
                .into_iter()
                .map(|event| match event {
                    ToolEvent::Text(text) => text,
                    other => format!("{other:?}"),
                })
                .collect();
            prop_assert_eq!(&whole, &answer);
        }
    }

    #[test]
    fn calls_are_counted_and_their_events_come_in_order(answer in answers()) {
        for format in FORMATS {
            let mut open = None;
            let mut calls = 0;
            for event in events(format, [answer.as_str()]) {
                match event {
                    ToolEvent::Text(text) => prop_assert!(!text.is_empty()),
                    ToolEvent::Begin { index, name } => {
                        prop_assert!(index == calls && (name == "get" || name == "set"));
                        calls += 1;
                        open = Some(index);
                    }
                    ToolEvent::Arguments { index, piece } => {
                        prop_assert!(open == Some(index) && !piece.is_empty());
                    }
                    ToolEvent::End { index } => prop_assert_eq!(open.take(), Some(index)),
                }
            }
        }
    }
}
