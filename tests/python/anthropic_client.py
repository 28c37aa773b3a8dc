"""The official Anthropic client against the cluster of ANTHROPIC_BASE_URL. Exits with an error if anything is off."""

import asyncio
from typing import Literal

import anthropic
from anthropic.types import Message
from pydantic import BaseModel, Field

from checks import BASE, BUSY, CHAT, QUESTION, SYSTEM, crowd, refused, strict

client = anthropic.Anthropic(max_retries=0)
create = client.messages.create
# The newest client has no argument for it; those before had.
greedy = dict(extra_body={"temperature": 0})
sky = dict(model=CHAT, system=SYSTEM, messages=[{"role": "user", "content": QUESTION}], **greedy)


def texts_of(message):
    return [block.text for block in message.content if block.type == "text"]


def messages():
    cut = strict(create(**sky, max_tokens=12))
    (text,) = texts_of(cut)
    assert text.startswith("The sky") and (cut.role, cut.model) == ("assistant", CHAT), cut
    assert (cut.stop_reason, cut.stop_sequence, cut.usage.output_tokens) == ("max_tokens", None, 12), cut
    assert cut._request_id, "request-id"

    stop = text[8:13]
    stopped = strict(create(**sky, max_tokens=100, stop_sequences=["never said", stop]))
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", stop), stopped
    assert texts_of(stopped) == [text[: text.index(stop)]], stopped

    # The same said in blocks; what marks them for a cache is no mistake.
    system = [{"type": "text", "text": SYSTEM, "cache_control": {"type": "ephemeral"}}]
    blocks = [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]
    assert texts_of(create(**{**sky, "system": system, "messages": blocks}, max_tokens=12)) == [text]

    # A conversation goes on: what was answered comes back as it was given.
    more = [*sky["messages"], cut.to_param(), {"role": "user", "content": "Go on."}]
    whole = strict(create(model=CHAT, messages=more, max_tokens=100, **greedy))
    assert whole.stop_reason == "end_turn" and texts_of(whole)[0], whole

    # An answer that is begun is gone on with.
    begun = [*sky["messages"], {"role": "assistant", "content": "The sky is"}]
    assert texts_of(create(**{**sky, "messages": begun}, max_tokens=4))[0].startswith(" blue")


def streams():
    whole = create(**sky, max_tokens=12)
    events = [strict(event) for event in create(**sky, max_tokens=12, stream=True)]
    kinds = [event.type for event in events]
    begin, end = ["message_start", "content_block_start"], ["content_block_stop", "message_delta", "message_stop"]
    assert kinds[:2] == begin and kinds[-3:] == end and set(kinds[2:-3]) == {"content_block_delta"}, kinds
    start, delta = events[0].message, events[-2]
    assert start.content == [] and start.stop_reason is None and start.model == CHAT, start
    assert "".join(event.delta.text for event in events[2:-3]) == texts_of(whole)[0], events
    assert delta.delta.stop_reason == "max_tokens" and delta.usage.output_tokens == 12, delta

    with client.messages.stream(**sky, max_tokens=12) as stream:
        text = "".join(stream.text_stream)
        final = strict(stream.get_final_message(), Message)
    assert [text] == texts_of(final) == texts_of(whole) and final.stop_reason == "max_tokens", final
    assert final.usage.output_tokens == 12 and stream.request_id, final
    prompt = [(usage.input_tokens + (usage.cache_read_input_tokens or 0)) for usage in (final.usage, whole.usage)]
    assert prompt[0] == prompt[1] > 12, (final.usage, whole.usage)


async def together():
    client = anthropic.AsyncAnthropic(max_retries=0)
    answers = await asyncio.gather(*(client.messages.create(**sky, max_tokens=8) for _ in range(4)))
    assert len({texts_of(answer)[0] for answer in answers}) == 1, answers
    await client.close()


class Weather(BaseModel):
    city: Literal["Oslo", "Rome", "Lima"]
    day: int = Field(ge=1, le=31)


class Bee(BaseModel):
    name: Literal["Maya", "Willi"]
    colour: Literal["yellow", "black", "both"]
    legs: Literal[2, 6, 8]


def tools():
    schema = {**Weather.model_json_schema(), "additionalProperties": False}
    tool = {"name": "weather", "description": "Tells the weather of a city.", "input_schema": schema, "strict": True}
    asked = [{"role": "user", "content": "Weather in Rome?"}]
    ask = dict(
        model=CHAT, messages=asked, tools=[tool], max_tokens=100, **greedy,
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
    )
    called = strict(create(**ask))
    (call,) = called.content
    assert (called.stop_reason, call.type, call.name) == ("tool_use", "tool_use", "weather"), called
    Weather.model_validate(call.input)

    with client.messages.stream(**ask) as stream:
        parts = [event.partial_json for event in stream if event.type == "input_json"]
        final = strict(stream.get_final_message(), Message)
    (streamed,) = final.content
    assert len(parts) > 1 and streamed.input == call.input and streamed.id != call.id, parts
    assert final.stop_reason == "tool_use" and streamed.name == "weather", final

    named = {"type": "tool", "name": "weather", "disable_parallel_tool_use": True}
    assert create(**{**ask, "tool_choice": named}).content[0].type == "tool_use"

    for content in ["sun", [{"type": "text", "text": "sun"}]]:
        result = {"type": "tool_result", "tool_use_id": call.id, "content": content, "is_error": False}
        messages = [*asked, called.to_param(), {"role": "user", "content": [result]}]
        told = create(**{**ask, "messages": messages, "tool_choice": {"type": "none"}, "max_tokens": 8})
        assert texts_of(told)[0] and told.stop_reason in ("end_turn", "max_tokens"), told


def forms():
    ask = dict(model=CHAT, messages=[{"role": "user", "content": "Describe a bee."}], max_tokens=200, **greedy)
    parsed = client.messages.parse(**ask, output_format=Bee)
    assert isinstance(parsed.parsed_output, Bee), parsed
    with client.messages.stream(**ask, output_format=Bee) as stream:
        assert stream.get_final_message().parsed_output == parsed.parsed_output


def counts():
    counted = {key: sky[key] for key in ("model", "system", "messages")}
    usage = create(**sky, max_tokens=1).usage
    tokens = strict(client.messages.count_tokens(**counted)).input_tokens
    assert tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0), (tokens, usage)
    tool = {"name": "weather", "input_schema": Weather.model_json_schema()}
    assert client.messages.count_tokens(**counted, tools=[tool]).input_tokens > tokens
    refused(anthropic.NotFoundError, lambda: client.messages.count_tokens(**{**counted, "model": "nope"}))


def errors():
    hello = dict(messages=[{"role": "user", "content": "Hello"}], max_tokens=4)
    said = refused(anthropic.NotFoundError, lambda: create(model="nope", **hello), type="not_found_error")
    assert CHAT in said.api_message and said.request_id, said
    for stream in (False, True):
        ask = dict(model=CHAT, **hello, stream=stream, extra_body={"temperature": 9})
        said = refused(anthropic.BadRequestError, lambda: create(**ask), type="invalid_request_error")
        assert "temperature" in said.api_message, said
    said = refused(anthropic.BadRequestError, lambda: create(model=BASE, **hello))
    assert "chat template" in said.api_message, said
    long = [{"role": "user", "content": "word " * 9000}]
    said = refused(anthropic.BadRequestError, lambda: create(model=CHAT, messages=long, max_tokens=4))
    assert "prompt is too long" in said.api_message, said

    stranger = anthropic.Anthropic(api_key="not-one-of-the-keys", max_retries=0)
    ask = lambda: stranger.messages.create(model=CHAT, **hello)
    refused(anthropic.AuthenticationError, ask, type="authentication_error")

    errors = crowd(lambda: create(model=BUSY, **hello))
    full, nobody = errors[429], errors[503]
    assert isinstance(full, anthropic.RateLimitError) and full.type == "rate_limit_error", full
    assert isinstance(nobody, anthropic.ServiceUnavailableError) and nobody.type == "overloaded_error", nobody
    # A stream that waits has begun: what becomes of it stands in it.
    waiting = create(model=BUSY, **hello, stream=True)
    refused(anthropic.APIStatusError, lambda: list(waiting), type="overloaded_error")


messages()
streams()
asyncio.run(together())
tools()
forms()
counts()
errors()
