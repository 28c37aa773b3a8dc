"""The official OpenAI client against the cluster of OPENAI_BASE_URL. Exits with an error if anything is off."""

import asyncio
import json
import math
from typing import Literal

import openai
from openai.types.responses import Response
from pydantic import BaseModel, Field

from checks import BASE, BUSY, CHAT, QUESTION, SYSTEM, crowd, refused, strict

client = openai.OpenAI(max_retries=0)
question = [
    {"role": "system", "content": SYSTEM},
    {"role": "user", "content": [{"type": "text", "text": QUESTION}]},
]


def models():
    ids = {model.id for model in client.models.list()}
    assert {CHAT, BASE, BUSY} <= ids, ids
    assert strict(client.models.retrieve(CHAT)).id == CHAT
    refused(openai.NotFoundError, lambda: client.models.retrieve("no/such"), code="model_not_found")


def chat():
    whole = client.chat.completions.create(model=CHAT, messages=question, temperature=0, max_completion_tokens=12)
    choice = whole.choices[0]
    assert choice.message.role == "assistant" and choice.message.content.startswith("The sky"), choice
    assert choice.finish_reason == "length" and whole.usage.completion_tokens == 12, whole
    assert whole._request_id, "x-request-id"

    chunks = list(
        client.chat.completions.create(
            model=CHAT, messages=question, temperature=0, max_tokens=12, stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == choice.message.content, (text, choice)
    assert chunks[0].choices[0].delta.role == "assistant"
    usage = chunks[-1].usage
    assert (usage.prompt_tokens, usage.total_tokens) == (whole.usage.prompt_tokens, whole.usage.total_tokens), usage
    assert chunks[-1].choices == []
    assert chunks[-2].choices[0].finish_reason == "length"

    stop = text[8:13]
    with client.chat.completions.stream(model=CHAT, messages=question, temperature=0, stop=[stop]) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion().choices[0]
    assert final.finish_reason == "stop" and final.message.content == text[: text.index(stop)], final

    stopped = client.chat.completions.create(model=CHAT, messages=question, temperature=0, stop=stop)
    assert stopped.choices[0].message.content == final.message.content, stopped

    sampled = [
        client.chat.completions.create(model=CHAT, messages=question, seed=1, temperature=1, top_p=0.9, max_tokens=12)
        for _ in range(2)
    ]
    assert sampled[0].choices[0].message.content == sampled[1].choices[0].message.content


async def together():
    client = openai.AsyncOpenAI(max_retries=0)
    ask = lambda: client.chat.completions.create(model=CHAT, messages=question, temperature=0, max_tokens=8)
    answers = await asyncio.gather(*(ask() for _ in range(6)))
    assert len({answer.choices[0].message.content for answer in answers}) == 1, answers
    await client.close()


def completions():
    for model, start in [(CHAT, " Paris"), (BASE, " the capital")]:
        whole = client.completions.create(model=model, prompt="The capital of France is", temperature=0, max_tokens=6)
        assert whole.choices[0].text.startswith(start), whole
        stream = client.completions.create(
            model=model, prompt="The capital of France is", temperature=0, max_tokens=6, stream=True
        )
        assert "".join(chunk.choices[0].text for chunk in stream) == whole.choices[0].text


def choices():
    ask = dict(model=CHAT, messages=question, n=3, seed=1, temperature=1, max_tokens=12, logprobs=True, top_logprobs=2)
    several = strict(client.chat.completions.create(
        **ask, logit_bias={"5": -100}, presence_penalty=1, frequency_penalty=-1, user="u", store=True,
        metadata={"a": "b"}, extra_body={"top_k": 50, "min_p": 0.01, "typical_p": 0.95, "repetition_penalty": 1.1},
    ))
    assert [choice.index for choice in several.choices] == [0, 1, 2], several
    assert len({choice.message.content for choice in several.choices}) > 1, several
    for choice in several.choices:
        tokens = choice.logprobs.content
        assert b"".join(bytes(token.bytes) for token in tokens).decode(errors="replace") == choice.message.content, choice
        assert all(token.logprob <= token.top_logprobs[0].logprob <= 0 for token in tokens), tokens
    assert several.usage.completion_tokens == sum(len(choice.logprobs.content) for choice in several.choices), several

    texts = [choice.message.content for choice in client.chat.completions.create(**ask).choices]
    streamed = ["", "", ""]
    for chunk in client.chat.completions.create(**ask, stream=True):
        for choice in strict(chunk).choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts, (streamed, texts)

    ask = dict(model=BASE, prompt=["One two", "Red green"], n=2, best_of=3, seed=1, max_tokens=4, logprobs=5)
    strict(client.completions.create(**ask))
    whole = client.completions.create(**ask, echo=True)
    starts = [choice.text.split(" ")[0] for choice in whole.choices]
    assert starts == ["One", "One", "Red", "Red"], whole
    for choice in whole.choices:
        assert choice.logprobs.token_logprobs[0] is None and choice.logprobs.text_offset[0] == 0, choice
    for prompt in [[5, 6, 7], [[5, 6], [7]]]:
        assert client.completions.create(model=BASE, prompt=prompt, max_tokens=2).choices


class Bee(BaseModel):
    name: str = Field(max_length=20)
    colour: Literal["yellow", "black", "both"]
    legs: int = Field(ge=2, le=8)
    flowers: list[Literal["rose", "clover"]] = Field(max_length=3)


def forms():
    ask = dict(model=CHAT, messages=[{"role": "user", "content": "Describe a bee."}], seed=1, temperature=1)
    parsed = client.chat.completions.parse(**ask, response_format=Bee).choices[0].message
    assert isinstance(parsed.parsed, Bee), parsed
    with client.chat.completions.stream(**ask, response_format=Bee) as stream:
        for _ in stream:
            pass
        assert stream.get_final_completion().choices[0].message.parsed == parsed.parsed
    messages = [*ask["messages"], parsed, {"role": "user", "content": "Another one."}]
    any_object = client.chat.completions.create(
        model=CHAT, messages=messages, response_format={"type": "json_object"}, temperature=0, max_tokens=300,
    ).choices[0]
    assert any_object.message.content.startswith("{"), any_object
    assert any_object.finish_reason == "length" or isinstance(json.loads(any_object.message.content), dict), any_object


class Weather(BaseModel):
    """Tells the weather of a city."""

    city: Literal["Oslo", "Rome", "Lima"]
    day: int = Field(ge=1, le=31)


def tools():
    tool = openai.pydantic_function_tool(Weather)
    ask = dict(
        model=CHAT, messages=[{"role": "user", "content": "Weather in Rome?"}], tools=[tool], tool_choice="required",
        parallel_tool_calls=False, temperature=0,
    )
    choice = strict(client.chat.completions.create(**ask)).choices[0]
    (call,) = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls" and choice.message.content is None, choice
    assert call.function.name == "Weather", call
    arguments = Weather.model_validate_json(call.function.arguments)

    with client.chat.completions.stream(**ask) as stream:
        pieces = [event.arguments_delta for event in stream if event.type == "tool_calls.function.arguments.delta"]
        final = stream.get_final_completion().choices[0]
    assert len(pieces) > 1 and "".join(pieces) == call.function.arguments, pieces
    (streamed,) = final.message.tool_calls
    assert streamed.function.parsed_arguments == arguments and streamed.id != call.id, streamed

    named = {"type": "function", "function": {"name": "Weather"}}
    assert client.chat.completions.create(**{**ask, "tool_choice": named}).choices[0].message.tool_calls
    # A call goes back as it came, whole or streamed, as an object of the client or as a dictionary.
    said, dumped = choice.message, choice.message.model_dump()
    for message, id in [(said, call.id), (dumped, call.id), (final.message, streamed.id)]:
        messages = [*ask["messages"], message, {"role": "tool", "tool_call_id": id, "content": "sun"}]
        again = client.chat.completions.create(
            model=CHAT, messages=messages, tools=[tool], tool_choice="none", max_tokens=8
        )
        assert again.choices[0].message.tool_calls is None, again


sky = dict(model=CHAT, instructions=SYSTEM, input=QUESTION, temperature=0)


def responses():
    same = client.chat.completions.create(model=CHAT, messages=question, temperature=0, max_tokens=12)
    cut = strict(client.responses.create(**sky, max_output_tokens=12), Response)
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens"), cut
    assert cut.output_text == same.choices[0].message.content and cut.instructions == SYSTEM, cut
    (message,) = cut.output
    assert (message.type, message.role, message.status) == ("message", "assistant", "incomplete"), message
    spent = (cut.usage.input_tokens, cut.usage.output_tokens, cut.usage.total_tokens)
    assert spent == (same.usage.prompt_tokens, 12, same.usage.prompt_tokens + 12), cut.usage

    events = [strict(event) for event in client.responses.create(**sky, max_output_tokens=12, stream=True)]
    assert [event.sequence_number for event in events] == list(range(len(events))), events
    kinds = [event.type.removeprefix("response.") for event in events]
    begin = ["created", "in_progress", "output_item.added", "content_part.added", "output_text.delta"]
    end = ["output_text.done", "content_part.done", "output_item.done", "incomplete"]
    assert kinds[:5] == begin and kinds[-4:] == end and set(kinds[4:-4]) == {"output_text.delta"}, kinds
    assert "".join(event.delta for event in events[4:-4]) == events[-4].text == cut.output_text, events
    last = strict(events[-1].response, Response)
    assert last.output_text == cut.output_text and last.usage.output_tokens == 12, last
    assert {event.response.id for event in events if hasattr(event, "response")} == {last.id}, events
    assert {event.item_id for event in events if hasattr(event, "item_id")} == {last.output[0].id}, events

    # A conversation goes on: earlier output comes back as it was given, as objects of the client.
    parts = [{"type": "input_text", "text": "Go on."}]
    more = [{"role": "user", "content": QUESTION}, message, {"role": "user", "content": parts}]
    with client.responses.stream(model=CHAT, input=more, max_output_tokens=100, temperature=0) as stream:
        parts = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert final.status == "completed" and final.output_text == "".join(parts) != "", final
    assert final.usage.input_tokens > cut.usage.input_tokens, final.usage


def responses_in_forms():
    ask = dict(model=CHAT, input="Describe a bee.", temperature=0)
    parsed = client.responses.parse(**ask, text_format=Bee)
    assert isinstance(parsed.output_parsed, Bee) and parsed.status == "completed", parsed
    with client.responses.stream(**ask, text_format=Bee) as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_parsed == parsed.output_parsed

    ask = dict(
        model=CHAT, input=[{"role": "user", "content": "Weather in Rome?"}], temperature=0, tool_choice="required",
        tools=[openai.pydantic_function_tool(Weather)], parallel_tool_calls=False,
    )
    called = client.responses.parse(**ask)
    (call,) = called.output
    assert (call.type, call.name, call.status) == ("function_call", "Weather", "completed"), call
    assert isinstance(call.parsed_arguments, Weather), call
    with client.responses.stream(**ask) as stream:
        parts = [event.delta for event in stream if event.type == "response.function_call_arguments.delta"]
        (streamed,) = stream.get_final_response().output
    assert len(parts) > 1 and "".join(parts) == call.arguments == streamed.arguments, parts
    assert streamed.call_id != call.call_id and streamed.parsed_arguments == call.parsed_arguments, streamed

    schema = {**Weather.model_json_schema(), "additionalProperties": False}
    tools = [{"type": "function", "name": "Weather", "parameters": schema, "strict": True}]
    named = {**ask, "tools": tools, "tool_choice": {"type": "function", "name": "Weather"}}
    events = [strict(event) for event in client.responses.create(**named, stream=True)]
    kinds = [event.type.removeprefix("response.") for event in events]
    begin = ["created", "in_progress", "output_item.added", "function_call_arguments.delta"]
    end = ["function_call_arguments.done", "output_item.done", "completed"]
    assert kinds[:4] == begin and kinds[-3:] == end and set(kinds[3:-3]) == {begin[3]}, kinds
    assert Weather.model_validate_json(events[-3].arguments) and events[2].item.name == "Weather", events

    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sun"}
    told = client.responses.create(
        model=CHAT, input=[*ask["input"], call, result], tools=tools, tool_choice="none", max_output_tokens=8,
    )
    assert strict(told, Response).output_text and told.tools[0].name == "Weather", told


def responses_refused():
    create = client.responses.create
    refused(openai.NotFoundError, lambda: create(**{**sky, "model": "nope"}), code="model_not_found")
    for name, value in [("temperature", 9), ("previous_response_id", "resp_1"), ("background", True)]:
        refused(openai.BadRequestError, lambda: create(**{**sky, name: value}), param=name)
    refused(openai.BadRequestError, lambda: create(**sky, tools=[{"type": "web_search"}]), param="tools[0].type")
    errors = crowd(lambda: create(model=BUSY, input="Hello"))
    assert isinstance(errors[429], openai.RateLimitError) and errors[503].code == "no_capacity", errors
    # A stream that waits has begun: what becomes of it stands in it.
    events = [strict(event) for event in create(model=BUSY, input="Hello", stream=True)]
    assert [event.type for event in events][-2:] == ["error", "response.failed"], events
    assert events[-2].code == "no_capacity" and events[-1].response.status == "failed", events


def embeddings():
    def vectors(**how):
        answer = client.embeddings.create(model=CHAT, input=["a bee", "a cee"], **how)
        return [item.embedding for item in answer.data], answer

    # Unless told otherwise, the client asks for base64 and decodes it.
    usual, _ = vectors()
    floats, answer = vectors(encoding_format="float")
    strict(answer)
    assert len(floats) == 2 and floats[0] != floats[1], answer
    pairs = zip(sum(usual, []), sum(floats, []), strict=True)
    assert all(math.isclose(one, other, rel_tol=1e-6) for one, other in pairs), answer
    assert all(math.isclose(math.hypot(*vector), 1, rel_tol=1e-5) for vector in floats), answer
    assert isinstance(vectors(encoding_format="base64")[0][0], str)
    assert vectors(dimensions=len(floats[0]))[0] == usual
    refused(openai.BadRequestError, lambda: vectors(dimensions=2), param="dimensions")
    for tokens in [[5, 6], [[5, 6], [7]]]:
        assert client.embeddings.create(model=CHAT, input=tokens).data
    assert client.embeddings.create(model=BASE, input="a bee").data[0].embedding


def errors():
    create = client.chat.completions.create
    hello = [{"role": "user", "content": "Hello"}]
    said = refused(openai.NotFoundError, lambda: create(model="nope", messages=hello), code="model_not_found")
    assert CHAT in said.message and BASE in said.message and said.param == "model", said
    said = refused(openai.BadRequestError, lambda: create(model=BASE, messages=hello), type="invalid_request_error")
    assert "chat template" in said.message and said.request_id, said
    refused(openai.BadRequestError, lambda: create(model=CHAT, messages=hello, temperature=9), param="temperature")
    refused(openai.BadRequestError, lambda: create(model=CHAT, messages=hello, n=17), param="n")
    for name, value, param in [
        ("tools", [{"type": "custom"}], "tools[0].type"),
        ("functions", [{"name": "f"}], "functions"),
        ("top_logprobs", 3, "top_logprobs"),
        ("response_format", {"type": "xml"}, "response_format.type"),
    ]:
        refused(openai.BadRequestError, lambda: create(model=CHAT, messages=hello, **{name: value}), param=param)
    long = [{"role": "user", "content": "word " * 9000}]
    refused(openai.BadRequestError, lambda: create(model=CHAT, messages=long), code="context_length_exceeded")

    stranger = openai.OpenAI(api_key="not-one-of-the-keys", max_retries=0)
    refused(openai.AuthenticationError, lambda: stranger.models.list(), code="invalid_api_key")
    refused(openai.NotFoundError, lambda: client.post("/nothing/here", cast_to=object), code="not_found")

    errors = crowd(lambda: create(model=BUSY, messages=hello))
    full, nobody = errors[429], errors[503]
    assert isinstance(full, openai.RateLimitError) and full.type == "rate_limit_error", full
    assert isinstance(nobody, openai.InternalServerError) and nobody.code == "no_capacity", nobody
    # A stream that waits has begun: what becomes of it stands in it.
    waiting = create(model=BUSY, messages=hello, stream=True)
    assert "busy" in refused(openai.APIError, lambda: list(waiting), code="no_capacity").message


def besides():
    """What stands in the headers of an answer."""
    hello = [{"role": "user", "content": "Hello"}]
    create = client.chat.completions.with_raw_response.create
    ask = dict(model=CHAT, messages=hello, max_tokens=2)
    headers = create(**ask, user="u", store=True).headers
    assert set(headers["x-rbee-ignored-parameters"].split(", ")) == {"store", "user"}, headers
    assert headers["x-rbee-worker"] and headers["x-rbee-attempts"] == "1", headers
    ask["extra_headers"] = {"x-rbee-strict": "true"}
    assert "x-rbee-ignored-parameters" not in create(**ask).headers
    refused(openai.BadRequestError, lambda: create(**ask, user="u"), param="user")


models()
chat()
asyncio.run(together())
completions()
choices()
forms()
tools()
responses()
responses_in_forms()
responses_refused()
embeddings()
errors()
besides()
