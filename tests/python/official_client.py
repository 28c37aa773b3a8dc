"""The official OpenAI client against the cluster named by OPENAI_BASE_URL. Exits with an error if anything is off."""

import asyncio

import openai

CHAT = "smollm2-135m-instruct"
BASE = "gemma3-270m"
client = openai.OpenAI(max_retries=0)
question = [
    {"role": "system", "content": "You answer in one short sentence."},
    {"role": "user", "content": [{"type": "text", "text": "Why is the sky blue?"}]},
]


def refused(kind, call, **about):
    try:
        call()
    except kind as error:
        for name, value in about.items():
            found = getattr(error, name)
            assert found == value, f"{name} is {found!r}, not {value!r}: {error}"
        return str(error)
    raise AssertionError(f"nothing was raised where {kind.__name__} should be")


def models():
    ids = {model.id for model in client.models.list()}
    assert ids == {CHAT, BASE}, ids
    assert client.models.retrieve(CHAT).id == CHAT
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
    assert chunks[-1].usage == whole.usage and chunks[-1].choices == []
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


def errors():
    create = client.chat.completions.create
    hello = [{"role": "user", "content": "Hello"}]
    said = refused(openai.NotFoundError, lambda: create(model="nope", messages=hello), code="model_not_found")
    assert CHAT in said and BASE in said, said
    said = refused(openai.BadRequestError, lambda: create(model=BASE, messages=hello))
    assert "chat template" in said, said
    refused(openai.BadRequestError, lambda: create(model=CHAT, messages=hello, temperature=9), param="temperature")
    refused(openai.BadRequestError, lambda: create(model=CHAT, messages=hello, n=3), param="n")
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    refused(openai.BadRequestError, lambda: create(model=CHAT, messages=hello, tools=tools), param="tools")
    long = [{"role": "user", "content": "word " * 9000}]
    refused(openai.BadRequestError, lambda: create(model=CHAT, messages=long), code="context_length_exceeded")


models()
chat()
asyncio.run(together())
completions()
errors()
