//! Templates with tools, in the manner of those that come with the models.

use serde_json::{Value, json};

use super::ChatTemplate;

/// The conversation in which each template must say everything: a call, its result, another question.
fn conversation() -> Vec<Value> {
    vec![
        json!({"role": "system", "content": "Be brief."}),
        json!({"role": "user", "content": "Rome?"}),
        json!({"role": "assistant", "content": null, "tool_calls": [
            {"id": "call_0001", "type": "function", "function": {"name": "weather", "arguments": {"city": "Rome", "days": 2}}},
        ]}),
        json!({"role": "tool", "tool_call_id": "call_0001", "name": "weather", "content": "sunny"}),
    ]
}

fn tools() -> [Value; 1] {
    [json!({"type": "function", "function": {
        "name": "weather",
        "description": "The <b>weather</b>",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    }})]
}

/// A tool as `tojson` writes it, with its members in their own order.
const TOOL: &str = concat!(
    r#"{"type": "function", "function": {"name": "weather", "description": "The <b>weather</b>", "#,
    r#""parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}}}"#
);

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new(source, Some("<s>"), Some("</s>")).expect("a template")
}

fn render(source: &str, messages: &[Value], tools: Option<&[Value]>) -> String {
    template(source).render(messages, tools, true).expect("a prompt")
}

/// Qwen's ways: tools in the system message, results as turns of the user, the last question found from behind,
/// thoughts before it cut off.
const QWEN: &str = r##"{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\n\n' }}{%- endif %}
    {{- "# Tools\n<tools>" }}
    {%- for tool in tools %}{{- "\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "\n</tools>\n<tool_call>\n{\"name\": <its name>, \"arguments\": <an object>}\n</tool_call><|im_end|>\n" }}
{%- elif messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}
{%- endif %}
{%- set found = namespace(open=true, question=messages|length - 1) %}
{%- for m in messages[::-1] %}
    {%- if found.open and m.role == "user" and m.content is string and not m.content.startswith('<tool_response>') %}
        {%- set found.open = false %}
        {%- set found.question = (messages|length - 1) - loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for m in messages %}
    {%- set text = m.content if m.content is string else '' %}
    {%- if m.role == "user" %}
        {{- '<|im_start|>user\n' + text + '<|im_end|>' + '\n' }}
    {%- elif m.role == "assistant" %}
        {%- if '</think>' in text and loop.index0 < found.question %}
            {%- set text = text.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\n' + text }}
        {%- for call in m.tool_calls or [] %}
            {%- if text or not loop.first %}{{- '\n' }}{%- endif %}
            {%- if call.function %}{%- set call = call.function %}{%- endif %}
            {{- '<tool_call>\n{"name": "' + call.name + '", "arguments": ' }}
            {{- call.arguments if call.arguments is string else call.arguments | tojson }}
            {{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif m.role == "tool" %}
        {%- if loop.first or messages[loop.index0 - 1].role != "tool" %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\n<tool_response>\n' + text + '\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != "tool" %}{{- '<|im_end|>\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}
{%- endif %}"##;

/// Llama's ways: names set where they are not defined, messages cut and set anew, tools written over several lines
/// before the first question, a single call.
const LLAMA: &str = r##"{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") if strftime_now is defined else "26 Jul 2024" %}
{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- set system = "" %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{%- if builtin_tools is defined or tools is not none %}{{- "Environment: ipython\n" }}{%- endif %}
{{- "Date: " + date_string + "\n\n" + system + "<|eot_id|>" }}
{%- if not tools is none %}
    {%- if messages | length == 0 %}{{- raise_exception("there must be a question") }}{%- endif %}
    {%- set question = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
    {{- '<|start_header_id|>user<|end_header_id|>\n\n' -}}
    {{- 'Answer as {"name": its name, "parameters": a dictionary}.' }}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\n\n" }}{%- endfor %}
    {{- question + "<|eot_id|>"}}
{%- endif %}
{%- for m in messages %}
    {%- if 'tool_calls' in m %}
        {%- if not m.tool_calls|length == 1 %}{{- raise_exception("one call at a time") }}{%- endif %}
        {%- set call = m.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}
        {{- '{"name": "' + call.name + '", "parameters": ' }}{{- call.arguments | tojson }}{{- "}<|eot_id|>" }}
    {%- elif m.role == "tool" or m.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\n\n" }}
        {%- if m.content is mapping or m.content is iterable and m.content is not string %}
            {{- m.content | tojson }}
        {%- else %}
            {{- m.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- else %}
        {{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n'+ m['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"##;

/// Mistral's ways: tools only before the last question, which is found among the chosen messages, their members taken
/// apart, JSON cut open for an id.
const MISTRAL: &str = r##"{%- set rest = messages[1:] if messages[0]["role"] == "system" else messages %}
{%- set questions = rest | selectattr("role", "equalto", "user") | list %}
{{- bos_token }}
{%- for m in rest %}
    {%- if m["role"] == "user" %}
        {%- if tools is not none and (m == questions[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, value in tool.function.items() if key != "return" %}
                    {{- '"' + key + '": ' }}{{- '"' + value + '"' if value is string else value|tojson }}
                    {%- if not loop.last %}{{- ", " }}{%- endif %}
                {%- endfor %}
                {{- "}}" }}{{- ", " if not loop.last else "]" }}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- set system = messages[0]["content"] + "\n\n" if loop.first and messages[0]["role"] == "system" else "" %}
        {{- "[INST] " + system + m["content"] + "[/INST]" }}
    {%- elif m.tool_calls is defined and m.tool_calls is not none %}
        {{- "[TOOL_CALLS] [" }}
        {%- for call in m.tool_calls %}
            {%- if not call.id is defined or call.id|length != 9 %}{{- raise_exception("an id has length 9") }}{%- endif %}
            {%- set out = call.function|tojson %}
            {{- out[:-1] + ', "id": "' + call.id + '"}' }}{{- ", " if not loop.last else "]" + eos_token }}
        {%- endfor %}
    {%- elif m["role"] == "assistant" %}
        {{- " " + m["content"]|trim + eos_token}}
    {%- elif m["role"] == "tool" %}
        {{- '[TOOL_RESULTS] {"content": ' + m.content|string + ', "call_id": "' + m.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- endif %}
{%- endfor %}"##;

/// A template of the ChatML family that knows no tools.
const CHATML: &str = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}\
                      {% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

#[test]
fn a_qwen_conversation_with_a_call_and_its_result_is_rendered() {
    let prompt = render(QWEN, &conversation(), Some(&tools()));
    let expected = format!(
        "<|im_start|>system\nBe brief.\n\n# Tools\n<tools>\n{TOOL}\n</tools>\n<tool_call>\n{{\"name\": <its name>, \
         \"arguments\": <an object>}}\n</tool_call><|im_end|>\n<|im_start|>user\nRome?<|im_end|>\n\
         <|im_start|>assistant\n<tool_call>\n{{\"name\": \"weather\", \"arguments\": {{\"city\": \"Rome\", \"days\": 2}}}}\n\
         </tool_call><|im_end|>\n<|im_start|>user\n<tool_response>\nsunny\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    );
    assert_eq!(prompt, expected);
}

#[test]
fn thoughts_of_earlier_answers_are_cut_off() {
    let messages = [
        json!({"role": "user", "content": "Hi"}),
        json!({"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello"}),
        json!({"role": "user", "content": "So?"}),
    ];
    let prompt = render(QWEN, &messages, None);
    assert_eq!(
        prompt,
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nSo?<|im_end|>\n\
         <|im_start|>assistant\n"
    );
}

#[test]
fn a_llama_conversation_with_a_call_and_its_result_is_rendered() {
    let prompt = render(LLAMA, &conversation(), Some(&tools()));
    let tool = serde_json::to_string_pretty(&tools()[0])
        .expect("JSON")
        .replace("  ", "    ");
    let expected = format!(
        "<s><|start_header_id|>system<|end_header_id|>\n\nEnvironment: ipython\nDate: 26 Jul 2024\n\nBe brief.<|eot_id|>\
         <|start_header_id|>user<|end_header_id|>\n\nAnswer as {{\"name\": its name, \"parameters\": a dictionary}}.\
         {tool}\n\nRome?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n{{\"name\": \"weather\", \"parameters\": \
         {{\"city\": \"Rome\", \"days\": 2}}}}<|eot_id|><|start_header_id|>ipython<|end_header_id|>\n\nsunny<|eot_id|>\
         <|start_header_id|>assistant<|end_header_id|>\n\n"
    );
    assert_eq!(prompt, expected);
    let plain = render(LLAMA, &conversation()[..2], None);
    assert!(!plain.contains("ipython") && plain.contains("Rome?<|eot_id|>"));
}

#[test]
fn a_mistral_conversation_with_a_call_and_its_result_is_rendered() {
    let prompt = render(MISTRAL, &conversation(), Some(&tools()));
    let expected = format!(
        "<s>[AVAILABLE_TOOLS] [{TOOL}][/AVAILABLE_TOOLS][INST] Be brief.\n\nRome?[/INST][TOOL_CALLS] [{{\"name\": \"weather\", \
         \"arguments\": {{\"city\": \"Rome\", \"days\": 2}}, \"id\": \"call_0001\"}}]</s>\
         [TOOL_RESULTS] {{\"content\": sunny, \"call_id\": \"call_0001\"}}[/TOOL_RESULTS]"
    );
    assert_eq!(prompt, expected);
    let plain = render(MISTRAL, &conversation()[..2], None);
    assert_eq!(plain, "<s>[INST] Be brief.\n\nRome?[/INST]");
}

#[test]
fn a_template_knows_tools_if_it_asks_for_them() {
    for source in [QWEN, LLAMA, MISTRAL] {
        assert!(template(source).knows_tools());
        assert_eq!(template(source).source(), source);
    }
    let mentioned = "{# tools #}{% for message in messages %}{{ message.tools }}tools{% endfor %}";
    for source in [CHATML, mentioned] {
        assert!(!template(source).knows_tools());
    }
    assert_eq!(
        render(CHATML, &conversation()[1..2], Some(&tools())),
        render(CHATML, &conversation()[1..2], None)
    );
}
