"""Streams asked for, and answered by the engine in one piece: what the unmodified clients make of it."""

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import ollama
import openai
import pytest
import uvloop

from tests.clients.conftest import QUESTION, WEATHER
from tests.flow.engine import MESSAGE, USAGE, Engine, answering, json_answer
from tests.gateway import Gateway, chat, gateway

CALL = {"id": "x", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}
ANSWER: dict[str, Any] = {
    "id": "c",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "naïve", "tool_calls": [CALL], "odd": 1.0},
            "logprobs": {"content": []},
            "finish_reason": "tool_calls",
        }
    ],
    "usage": USAGE,
}


@contextlib.asynccontextmanager
async def answered(body: Any, indent: int | None = None) -> AsyncIterator[Gateway]:
    """A gateway before an engine that says this whatever it is asked."""
    text = body if isinstance(body, bytes) else json.dumps(body, indent=indent).encode()
    async with Engine(answering(json_answer(text))) as engine, gateway(engine.url) as g:
        yield g
        (row,) = await g.records(1)
        assert (row["outcome"], row["prompt_tokens"], row["completion_tokens"]) == ("done", 7, 3)


@pytest.mark.parametrize("usage", [True, False])
@pytest.mark.parametrize("indent", [None, 1])
def test_openais_client_reads_it_as_a_stream(usage: bool, indent: int | None) -> None:
    """A5: it would find no event in a plain answer, and end without a word."""

    async def main() -> None:
        async with (
            answered(ANSWER, indent) as g,
            openai.AsyncOpenAI(base_url=f"{g.url}/v1", api_key=g.key) as client,
            client.chat.completions.stream(
                model="m", messages=QUESTION, stream_options={"include_usage": True} if usage else openai.omit
            ) as stream,
        ):
            chunks = [event.chunk async for event in stream if event.type == "chunk"]
            made = (await stream.get_final_completion()).choices[0]
        assert (made.message.content, made.finish_reason) == ("naïve", "tool_calls")
        assert made.message.tool_calls is not None
        assert made.message.tool_calls[0].function.arguments == '{"city": "Oslo"}'
        assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
        assert [chunk.usage.completion_tokens for chunk in chunks if chunk.usage] == [3] * usage

    uvloop.run(main())


def test_a_completion_is_a_stream_of_one_too() -> None:
    body = {"id": "c", "object": "text_completion", "choices": [{"index": 0, "text": "hi"}], "usage": USAGE}

    async def main() -> None:
        async with answered(body) as g:
            client = openai.AsyncOpenAI(base_url=f"{g.url}/v1", api_key=g.key)
            stream = await client.completions.create(model="m", prompt="x", stream=True)
            assert [part.choices[0].text async for part in stream] == ["hi"]
            await client.close()

    uvloop.run(main())


def test_anthropics_client_reads_it_as_a_stream() -> None:
    async def main() -> None:
        async with (
            answered(ANSWER) as g,
            anthropic.AsyncAnthropic(base_url=g.url, api_key=g.key) as client,
            client.messages.stream(model="m", max_tokens=9, messages=QUESTION) as stream,
        ):
            message = await stream.get_final_message()
        assert [block.type for block in message.content] == ["text", "tool_use"]
        assert (message.stop_reason, message.usage.output_tokens) == ("tool_use", 3)

    uvloop.run(main())


def test_ollamas_client_reads_it_as_a_stream() -> None:
    async def main() -> None:
        async with answered(ANSWER) as g:
            client = ollama.AsyncClient(host=g.url, headers={"Authorization": f"Bearer {g.key}"})
            parts = [part async for part in await client.chat("m", QUESTION, tools=[WEATHER], stream=True)]
            await client._client.aclose()
        assert "".join(part.message.content or "" for part in parts) == "naïve"
        assert [call.function.arguments for part in parts for call in part.message.tool_calls or ()] == [
            {"city": "Oslo"}
        ]
        assert (parts[-1].done, parts[-1].eval_count) == (True, 3)

    uvloop.run(main())


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", b'{"id":"c"}'),
        ("/v1/chat/completions", b'{"choices":[{"message":3}]}'),
        ("/v1/chat/completions", b'{"error":{"message":"at 10.0.0.5"}}'),
        ("/v1/responses", b'{"object":"response","output":[]}'),
        ("/v1/messages", MESSAGE),
    ],
)
def test_of_what_no_stream_can_be_made_is_an_error(path: str, body: bytes) -> None:
    """A5: with its status, since nothing went out."""
    kind: Any = "ollama" if path == "/v1/messages" else "openai"

    async def main() -> None:
        async with Engine(answering(json_answer(body))) as engine, gateway(engine.url, kind) as g:
            status, _, told = await g.ask(path, chat(stream=True, input="x", max_tokens=9))
            assert (status, json.loads(told)["error"]["code"]) == (502, "upstream_broke")
            assert b"10.0.0.5" not in told
            assert (await g.records(1))[0]["outcome"] == "upstream_failed"

    uvloop.run(main())
