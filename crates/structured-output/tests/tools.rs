//! Tool calls: constrained answers, and what the parser makes of them.

mod support;

use batch_engine::Constraint;
use serde_json::{Value, json};
use structured_output::{Grammar, GrammarError, ToolCallParser, ToolEvent, ToolFormat, ToolSpec};
use support::ToyVocabulary;

const FORMATS: [ToolFormat; 3] = [ToolFormat::Hermes, ToolFormat::Llama3, ToolFormat::Mistral];

fn tools() -> Vec<ToolSpec> {
    let tool = |name: &str, parameters| ToolSpec {
        name: name.to_owned(),
        description: None,
        parameters,
        strict: true,
    };
    let city = json!({"type": "object", "properties": {"city": {"type": "string", "maxLength": 8}, "days": {"$ref": "#/$defs/days"}},
                      "required": ["city"], "additionalProperties": false, "$defs": {"days": {"type": "integer", "minimum": 1, "maximum": 9}}});
    vec![tool("get", None), tool("get_weather", Some(city))]
}

fn names() -> Vec<String> {
    tools().into_iter().map(|tool| tool.name).collect()
}

/// Calls of `tools` in a format; what a test cares for is changed.
struct Calls {
    tools: Vec<ToolSpec>,
    format: ToolFormat,
    required: bool,
    named: Option<&'static str>,
    parallel: bool,
}

impl Calls {
    fn of(format: ToolFormat) -> Self {
        Self {
            tools: tools(),
            format,
            required: false,
            named: None,
            parallel: true,
        }
    }

    fn required(format: ToolFormat) -> Self {
        Self {
            required: true,
            ..Self::of(format)
        }
    }

    fn grammar(self) -> Grammar {
        Grammar::Tools {
            tools: self.tools,
            format: self.format,
            required: self.required,
            named: self.named.map(str::to_owned),
            parallel: self.parallel,
        }
    }

    fn constraint(self, vocabulary: &ToyVocabulary) -> Result<Box<dyn Constraint>, GrammarError> {
        vocabulary.grammars().constraint(&self.grammar())
    }
}

/// A call of `get_weather`, and the same with another before it.
fn examples(format: ToolFormat) -> [&'static str; 2] {
    match format {
        ToolFormat::Hermes => [
            "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Rome\"}}\n</tool_call>",
            "<tool_call>\n{\"name\": \"get\", \"arguments\": {}}\n</tool_call>\n\
             <tool_call>{\"name\":\"get_weather\",\"arguments\":{\"city\":\"Rome\",\"days\":3}}</tool_call>",
        ],
        ToolFormat::Llama3 => [
            r#"{"name": "get_weather", "parameters": {"city": "Rome"}}"#,
            r#"{"name": "get", "parameters": {}}; {"name":"get_weather","parameters":{"city":"Rome","days":3}}"#,
        ],
        ToolFormat::Mistral => [
            r#"[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Rome"}}]"#,
            r#"[TOOL_CALLS][{"name": "get", "arguments": {}}, {"name":"get_weather","arguments":{"city":"Rome","days":3}}]"#,
        ],
    }
}

/// The calls that the parser finds, and the text around them.
fn parse(format: ToolFormat, text: &str) -> (String, Vec<(String, String)>) {
    let mut events = Vec::new();
    let mut parser = ToolCallParser::new(format, names());
    parser.push(text, &mut events);
    parser.finish(&mut events);
    let (mut text, mut calls) = (String::new(), Vec::<(String, String)>::new());
    for event in events {
        match event {
            ToolEvent::Text(piece) => text.push_str(&piece),
            ToolEvent::Begin { name, .. } => calls.push((name, String::new())),
            ToolEvent::Arguments { index, piece } => calls[index].1.push_str(&piece),
            ToolEvent::End { index } => assert_eq!(index + 1, calls.len()),
        }
    }
    (text, calls)
}

#[test]
fn the_usual_spellings_of_calls_are_allowed_in_every_format() {
    let vocabulary = ToyVocabulary::new();
    for format in FORMATS {
        for example in examples(format) {
            for calls in [Calls::required(format), Calls::of(format)] {
                let mut constraint = calls.constraint(&vocabulary).expect("a constraint");
                vocabulary.take(constraint.as_mut(), example);
                assert!(vocabulary.may_end(constraint.as_mut()), "{example}");
            }
        }
    }
}

#[test]
fn required_calls_of_a_random_model_are_found_again_and_their_arguments_are_valid() {
    let vocabulary = ToyVocabulary::new();
    let specs = tools();
    for format in FORMATS {
        for seed in 0..20 {
            let answer = vocabulary.random_answer(&Calls::required(format).grammar(), seed);
            let (text, calls) = parse(format, &answer);
            assert!(text.is_empty() && !calls.is_empty(), "{answer}");
            for (name, arguments) in calls {
                let arguments: Value = serde_json::from_str(&arguments).expect(&arguments);
                let tool = specs.iter().find(|tool| tool.name == name).expect("a known tool");
                match &tool.parameters {
                    Some(schema) => assert!(jsonschema::is_valid(schema, &arguments), "{arguments}"),
                    None => assert_eq!(arguments, json!({})),
                }
            }
        }
    }
}

#[test]
fn a_required_call_is_all_there_is() {
    let vocabulary = ToyVocabulary::new();
    for format in FORMATS {
        let constraint = || Calls::required(format).constraint(&vocabulary).expect("a constraint");
        assert!(!vocabulary.may_end(constraint().as_mut()));
        assert!(!vocabulary.follows(constraint().as_mut(), "Let me see"));
        let mut called = constraint();
        vocabulary.take(called.as_mut(), examples(format)[0]);
        assert!(!vocabulary.follows(called.as_mut(), " So"));
    }
}

#[test]
fn a_named_tool_is_the_only_one() {
    let vocabulary = ToyVocabulary::new();
    for format in FORMATS {
        let named = |name| Calls {
            named: Some(name),
            ..Calls::of(format)
        };
        let mut constraint = named("get_weather").constraint(&vocabulary).expect("a constraint");
        vocabulary.take(constraint.as_mut(), examples(format)[0]);
        let mut other = named("get").constraint(&vocabulary).expect("a constraint");
        assert!(!vocabulary.follows(other.as_mut(), examples(format)[0]));
        let unknown = named("drop").constraint(&vocabulary).err();
        assert_eq!(unknown, Some(GrammarError::UnknownTool("drop".to_owned())));
    }
}

#[test]
fn one_call_is_all_where_calls_are_not_parallel() {
    let vocabulary = ToyVocabulary::new();
    for format in FORMATS {
        for required in [true, false] {
            let calls = || Calls {
                parallel: false,
                required,
                ..Calls::of(format)
            };
            let mut one = calls().constraint(&vocabulary).expect("a constraint");
            vocabulary.take(one.as_mut(), examples(format)[0]);
            assert!(vocabulary.may_end(one.as_mut()));
            let mut two = calls().constraint(&vocabulary).expect("a constraint");
            assert!(!vocabulary.follows(two.as_mut(), examples(format)[1]));
        }
    }
}

#[test]
fn free_text_is_not_bent_before_a_call() {
    let vocabulary = ToyVocabulary::new();
    let all = vocabulary.tokens.len();
    for format in FORMATS {
        let mut constraint = Calls::of(format).constraint(&vocabulary).expect("a constraint");
        for byte in "Sure!\n<tool_c {\"name\": [TOOL \u{fc} }".bytes() {
            assert_eq!(vocabulary.allowed(constraint.as_mut()).iter().count(), all);
            constraint.accept(byte.into()).expect("free text");
        }
        // A special token that is no opening, and bytes that are no character.
        for token in [vocabulary.token("<|user|>"), 0xff, 0xc3] {
            constraint.accept(token).expect("free text");
        }
        assert!(vocabulary.may_end(constraint.as_mut()));
    }
}

#[test]
fn text_may_come_before_a_call_but_then_the_grammar_bites() {
    let vocabulary = ToyVocabulary::new();
    for format in [ToolFormat::Hermes, ToolFormat::Mistral] {
        let mut constraint = Calls::of(format).constraint(&vocabulary).expect("a constraint");
        vocabulary.take(constraint.as_mut(), "I <tool_<tool [TOOL_look it up. ");
        vocabulary.take(constraint.as_mut(), examples(format)[0]);
        assert!(vocabulary.may_end(constraint.as_mut()));
        assert!(!vocabulary.follows(constraint.as_mut(), "and"));
        let mut wrong = Calls::of(format).constraint(&vocabulary).expect("a constraint");
        assert!(!vocabulary.follows(wrong.as_mut(), &examples(format)[0].replace("Rome", "Constantinople")));
    }
}

#[test]
fn a_token_that_completes_an_opening_must_go_on_as_a_call_does() {
    let vocabulary = ToyVocabulary::new();
    let mut constraint = Calls::of(ToolFormat::Hermes)
        .constraint(&vocabulary)
        .expect("a constraint");
    vocabulary.take(constraint.as_mut(), "<tool_call");
    let mask = vocabulary.allowed(constraint.as_mut());
    assert!(mask.is_allowed(vocabulary.token(">\n")) && mask.is_allowed(b'x'.into()));
    assert!(!mask.is_allowed(vocabulary.token("></")));
    constraint.accept(vocabulary.token(">\n")).expect("an allowed token");
    vocabulary.take(constraint.as_mut(), "{\"name\": \"get\"");
    assert!(!vocabulary.may_end(constraint.as_mut()));

    let mut constraint = Calls::of(ToolFormat::Hermes)
        .constraint(&vocabulary)
        .expect("a constraint");
    vocabulary.take(constraint.as_mut(), "<tool");
    constraint.accept(vocabulary.token("_call>")).expect("free text");
    assert!(!vocabulary.follows(constraint.as_mut(), "x"));
}

#[test]
fn a_special_token_opens_a_call_like_its_spelling() {
    let vocabulary = ToyVocabulary::new();
    let opening = vocabulary.token("[TOOL_CALLS]");
    for calls in [Calls::required(ToolFormat::Mistral), Calls::of(ToolFormat::Mistral)] {
        let mut constraint = calls.constraint(&vocabulary).expect("a constraint");
        assert!(vocabulary.allowed(constraint.as_mut()).is_allowed(opening));
        constraint.accept(opening).expect("an allowed token");
        assert!(!vocabulary.may_end(constraint.as_mut()));
        vocabulary.take(constraint.as_mut(), r#" [{"name": "get", "arguments": {}}]"#);
        assert!(vocabulary.may_end(constraint.as_mut()));
    }
}

#[test]
fn other_json_is_no_call_of_llama() {
    let vocabulary = ToyVocabulary::new();
    for answer in ["{\"name\": \"Bob\", \"age\": 3}", "See {\"name\": \"get\", so", "{}"] {
        let mut constraint = Calls::of(ToolFormat::Llama3)
            .constraint(&vocabulary)
            .expect("a constraint");
        vocabulary.take(constraint.as_mut(), answer);
        assert!(vocabulary.may_end(constraint.as_mut()));
    }
    let mut call = Calls::of(ToolFormat::Llama3)
        .constraint(&vocabulary)
        .expect("a constraint");
    vocabulary.take(call.as_mut(), "\n {\"name\": \"get\"");
    assert!(!vocabulary.follows(call.as_mut(), ", \"age\": 3}"));
}

#[test]
fn a_schema_that_cannot_be_kept_is_an_error_of_a_strict_tool_only() {
    let vocabulary = ToyVocabulary::new();
    let calls = |strict| {
        let mut calls = Calls::required(ToolFormat::Hermes);
        calls.tools[1].strict = strict;
        calls.tools[1].parameters = Some(json!({"type": "object", "properties": {"a": {"not": {}}}}));
        calls
    };
    let Some(GrammarError::Tool { tool, source }) = calls(true).constraint(&vocabulary).err() else {
        panic!("a refusal");
    };
    assert_eq!(tool, "get_weather");
    assert!(source.to_string().contains("/properties/a/not"));
    let mut lenient = calls(false).constraint(&vocabulary).expect("a constraint");
    vocabulary.take(
        lenient.as_mut(),
        "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"b\": [1]}}",
    );
}

#[test]
fn arguments_are_an_object_whatever_their_schema_leaves_open() {
    let vocabulary = ToyVocabulary::new();
    let call = "<tool_call>\n{\"name\": \"get\", \"arguments\": ";
    for parameters in [
        json!({}),
        json!({"properties": {"a": {"type": "integer"}}}),
        json!(true),
    ] {
        let mut calls = Calls::required(ToolFormat::Hermes);
        calls.tools[0].parameters = Some(parameters);
        let mut constraint = calls.constraint(&vocabulary).expect("a constraint");
        vocabulary.take(constraint.as_mut(), call);
        let allowed: Vec<u32> = vocabulary.allowed(constraint.as_mut()).iter().collect();
        assert!(
            allowed.contains(&b'{'.into()) && !allowed.contains(&b'['.into()),
            "{allowed:?}"
        );
    }
    let mut calls = Calls::required(ToolFormat::Hermes);
    calls.tools[0].parameters = Some(json!({"type": "string"}));
    assert!(matches!(calls.constraint(&vocabulary), Err(GrammarError::Tool { .. })));
}

#[test]
fn calls_without_tools_are_refused() {
    let mut calls = Calls::of(ToolFormat::Hermes);
    calls.tools.clear();
    let refused = calls.constraint(&ToyVocabulary::new()).err();
    assert_eq!(refused, Some(GrammarError::NoTools));
}

#[test]
fn the_format_is_told_by_the_template() {
    let qwen =
        "{%- if tools %}within <tool_call></tool_call>: {\"name\": <function-name>, \"arguments\": <args>}{%- endif %}";
    let qwen_coder = "<tool_call>\n<function=example>\n<parameter=a> arguments";
    let llama = r#"Respond {"name": f, "parameters": p}. {{- '{"name": "' + tool_call.name + '", ' }}{{- '"parameters": ' }} role ipython"#;
    let mistral = r#"{{- "[TOOL_CALLS] [" }}"name", "arguments" [AVAILABLE_TOOLS]"#;
    let newer_mistral = "[TOOL_CALLS]name[ARGS]{}";
    let plain = "{% for message in messages %}<|im_start|>{{ message.content }}{% endfor %}";
    assert_eq!(ToolFormat::of_template(qwen), Some(ToolFormat::Hermes));
    assert_eq!(ToolFormat::of_template(llama), Some(ToolFormat::Llama3));
    assert_eq!(ToolFormat::of_template(mistral), Some(ToolFormat::Mistral));
    for other in [qwen_coder, newer_mistral, plain] {
        assert_eq!(ToolFormat::of_template(other), None);
    }
}
