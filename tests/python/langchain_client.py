"""LangChain's OpenAI provider against the cluster of OPENAI_BASE_URL. Exits with an error if anything is off."""

import asyncio
import math
from typing import Literal

from langchain_core.exceptions import (
    ContextOverflowError,
    ModelAPIError,
    ModelAuthenticationError,
    ModelInvalidRequestError,
    ModelNotFoundError,
    ModelRateLimitError,
)
from langchain_core.messages import AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel, Field

from checks import BASE, BUSY, CHAT, QUESTION, SYSTEM, crowd, refused

question = [SystemMessage(SYSTEM), HumanMessage(QUESTION)]


def chat_model(**more):
    return ChatOpenAI(**{"model": CHAT, "temperature": 0, "max_tokens": 12, "max_retries": 0, **more})


def whole_and_streamed(llm):
    """Asks both ways. Returns both answers, the second put together of its chunks, which must be several."""
    whole = llm.invoke(question)
    chunks = list(llm.stream(question))
    assert len([chunk for chunk in chunks if chunk.text]) > 1, chunks
    assert all(isinstance(chunk, AIMessageChunk) for chunk in chunks), chunks
    streamed = sum(chunks[1:], chunks[0])
    assert streamed.text == whole.text != "", (streamed, whole)
    for key in ("input_tokens", "output_tokens", "total_tokens"):
        assert streamed.usage_metadata[key] == whole.usage_metadata[key], (streamed, whole)
    assert whole.usage_metadata["output_tokens"] == 12, whole
    return whole, streamed


def chat():
    answers = whole_and_streamed(chat_model(stream_usage=True))
    for answer in answers:
        assert answer.response_metadata["finish_reason"] == "length", answer
        assert answer.response_metadata["model_name"] == CHAT, answer
    stop = answers[0].text[8:13]
    stopped = chat_model(stop=[stop]).invoke(question)
    assert stopped.response_metadata["finish_reason"] == "stop" and stopped.text == answers[0].text[:8], stopped

    prompt = ChatPromptTemplate.from_messages([("system", "{rule}"), ("user", "{question}")])
    chain = prompt | chat_model() | StrOutputParser()
    asked = {"rule": SYSTEM, "question": QUESTION}
    assert chain.batch([asked] * 3) == [answers[0].text] * 3
    assert asyncio.run(chain.ainvoke(asked)) == answers[0].text


def chat_by_responses():
    by_responses = whole_and_streamed(chat_model(use_responses_api=True))
    assert by_responses[0].text == chat_model().invoke(question).text, by_responses
    for answer in by_responses:
        assert answer.response_metadata["status"] == "incomplete", answer
        assert answer.response_metadata["incomplete_details"] == {"reason": "max_output_tokens"}, answer


def completions():
    llm = OpenAI(model=BASE, temperature=0, max_tokens=6, max_retries=0)
    whole = llm.generate(["The capital of France is", "One two three"])
    first, second = (choice.text for (choice,) in whole.generations)
    assert first.startswith(" the capital") and second != first, whole
    assert whole.llm_output["token_usage"]["completion_tokens"] == 12, whole
    assert "".join(llm.stream("The capital of France is")) == first


class Weather(BaseModel):
    """Tells the weather of a city."""

    city: Literal["Oslo", "Rome", "Lima"]
    day: int = Field(ge=1, le=31)


class Bee(BaseModel):
    """A bee."""

    name: str = Field(max_length=20)
    colour: Literal["yellow", "black", "both"]
    legs: int = Field(ge=2, le=8)


def tools(**api):
    llm = chat_model(max_tokens=100, **api)
    asked = [HumanMessage("Weather in Rome?")]
    caller = llm.bind_tools([Weather], tool_choice="any", parallel_tool_calls=False, strict=True)
    called = caller.invoke(asked)
    (call,) = called.tool_calls
    assert call["name"] == "Weather" and call["id"] and not called.invalid_tool_calls, called
    Weather.model_validate(call["args"])

    chunks = list(caller.stream(asked))
    assert len([chunk for chunk in chunks if chunk.tool_call_chunks]) > 1, chunks
    (streamed,) = sum(chunks[1:], chunks[0]).tool_calls
    assert (streamed["name"], streamed["args"]) == ("Weather", call["args"]), streamed

    told = [*asked, called, ToolMessage("sun", tool_call_id=call["id"])]
    answer = llm.bind_tools([Weather], tool_choice="none").invoke(told)
    assert answer.text and not answer.tool_calls, answer


def forms(**api):
    llm = chat_model(max_tokens=200, **api)
    for method in ("function_calling", "json_schema"):
        bee = llm.with_structured_output(Bee, method=method, strict=True, include_raw=True).invoke("Describe a bee.")
        assert isinstance(bee["parsed"], Bee) and bee["parsing_error"] is None, bee
    *_, last = llm.with_structured_output(Bee, strict=True).stream("Describe a bee.")
    assert last == bee["parsed"], last


def embeddings():
    # Without this setting LangChain cuts the texts into OpenAI's own tokens.
    embedder = OpenAIEmbeddings(model=CHAT, check_embedding_ctx_length=False, max_retries=0)
    bee, cee = embedder.embed_documents(["a bee", "a cee"])
    assert bee != cee and math.isclose(math.hypot(*bee), 1, rel_tol=1e-5), bee
    assert embedder.embed_query("a bee") == bee


def errors():
    def raises(kind, text="Hello", **settings):
        return refused(kind, lambda: chat_model(**settings).invoke(text))

    assert raises(ModelNotFoundError, model="nope").code == "model_not_found"
    assert raises(ModelInvalidRequestError, temperature=9).param == "temperature"
    raises(ModelAuthenticationError, api_key="not-one-of-the-keys")
    # On this an agent shortens its conversation.
    assert raises(ContextOverflowError, "word " * 9000).code == "context_length_exceeded"
    errors = crowd(lambda: chat_model(model=BUSY).invoke("Hello"))
    assert isinstance(errors[429], ModelRateLimitError) and isinstance(errors[503], ModelAPIError), errors


chat()
completions()
tools()
forms()
embeddings()
errors()
chat_by_responses()
tools(use_responses_api=True)
forms(use_responses_api=True)
