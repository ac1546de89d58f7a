"""The unmodified `openai` client through a real gateway: what it reads, raises, retries and cancels."""

import asyncio
import json
import time
from typing import Any

import openai
import pydantic
import pytest
import uvloop

from gateway import config as cfg
from tests.clients.conftest import ANIMAL, ASK_WEATHER, ENDLESS, QUESTION, WEATHER, Site, word
from tests.gateway import Gateway, gateway


def said(chunks: list[Any]) -> str:
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


# ---- what it reads


def test_lists_and_retrieves_models(site: Site, sdk: openai.OpenAI) -> None:
    """A1, A8"""
    listed = sdk.models.list().data
    assert {site.model, site.embed_model} <= {model.id for model in listed}
    for model in listed:
        assert sdk.models.retrieve(model.id) == model


def test_chat(site: Site, sdk: openai.OpenAI) -> None:
    """A1, H7"""
    raw = sdk.chat.completions.with_raw_response.create(model=site.model, messages=QUESTION)
    answer = raw.parse()
    assert answer.choices[0].finish_reason == "stop"
    assert "lighthouses" in (answer.choices[0].message.content or "")
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 20
    assert answer._request_id == raw.headers["x-request-id"]
    assert raw.headers["content-type"].startswith("application/json")


@pytest.mark.parametrize("asked", [None, False, True], ids=["unsaid", "declined", "asked"])
def test_streams_carry_usage_only_where_asked(site: Site, sdk: openai.OpenAI, asked: bool | None) -> None:
    """A7"""
    options: dict[str, Any] = {} if asked is None else {"stream_options": {"include_usage": asked}}
    whole = sdk.chat.completions.create(model=site.model, messages=QUESTION)
    chunks = list(sdk.chat.completions.create(model=site.model, messages=QUESTION, stream=True, **options))
    assert said(chunks) == whole.choices[0].message.content
    last = chunks.pop() if asked else None
    assert (last and last.usage) == (whole.usage if asked else None)
    assert last is None or last.choices == []
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert len({chunk.id for chunk in chunks}) == 1


def test_the_streaming_helper_assembles_the_answer(site: Site, sdk: openai.OpenAI) -> None:
    with sdk.chat.completions.stream(model=site.model, messages=QUESTION) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert kinds[0] == "chunk"
    assert {"content.delta", "content.done"} <= set(kinds)
    assert "lighthouses" in (final.choices[0].message.content or "")


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
def test_output_limits_reach_the_engine_by_either_name(site: Site, sdk: openai.OpenAI, limit: str) -> None:
    """A6"""
    limits: dict[str, Any] = {limit: 5}
    answer = sdk.chat.completions.create(model=site.model, messages=ENDLESS, **limits)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5


def test_tools(site: Site, sdk: openai.OpenAI) -> None:
    ask: Any = {"model": site.model, "messages": ASK_WEATHER, "tools": [WEATHER]}
    whole = sdk.chat.completions.create(**ask).choices[0]
    assert whole.finish_reason == "tool_calls"
    (call,) = whole.message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "get_weather"
    assert isinstance(json.loads(call.function.arguments)["city"], str)
    chunks = list(sdk.chat.completions.create(**ask, stream=True))
    parts = [part for chunk in chunks for choice in chunk.choices for part in choice.delta.tool_calls or []]
    streamed = "".join(part.function.arguments or "" for part in parts if part.function)
    assert json.loads(streamed) == json.loads(call.function.arguments)
    result = {"role": "tool", "tool_call_id": call.id, "content": "rain"}
    turn: list[Any] = [*ASK_WEATHER, whole.message.model_dump(exclude_none=True), result]
    final = sdk.chat.completions.create(model=site.model, messages=turn, tools=ask["tools"])
    assert final.choices[0].message.content


class Animal(pydantic.BaseModel):
    """What the structured answer must parse into."""

    name: str
    legs: int


def test_structured_answers(site: Site, sdk: openai.OpenAI) -> None:
    """A1: a body field the gateway does not know passes untouched."""
    asked: Any = {"type": "json_schema", "json_schema": {"name": "animal", "schema": ANIMAL, "strict": True}}
    answer = sdk.chat.completions.create(model=site.model, messages=QUESTION, response_format=asked)
    assert Animal.model_validate_json(answer.choices[0].message.content or "").name


def test_embeddings(site: Site, sdk: openai.OpenAI) -> None:
    answer = sdk.embeddings.create(model=site.embed_model, input=["one lighthouse", "two queues"])
    assert [row.index for row in answer.data] == [0, 1]
    assert answer.usage.prompt_tokens > 0
    first, second = (row.embedding for row in answer.data)
    assert len(first) == len(second) > 8
    assert first != second
    plain = sdk.embeddings.create(model=site.embed_model, input="one lighthouse", encoding_format="float")
    assert plain.data[0].embedding == pytest.approx(first, abs=1e-6)


def test_completions(site: Site, sdk: openai.OpenAI) -> None:
    whole = sdk.completions.create(model=site.model, prompt="Tell me about queues")
    assert whole.usage is not None
    chunks = list(sdk.completions.create(model=site.model, prompt="Tell me about queues", stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert all(chunk.choices for chunk in chunks), "the extra frame was not asked for"
    # Ollama itself writes zeros into each chunk of this route once usage is asked for, and the gateway asks for it.
    assert not any(chunk.usage and chunk.usage.total_tokens for chunk in chunks)
    asked: Any = {"include_usage": True}
    *_, last = sdk.completions.create(
        model=site.model, prompt="Tell me about queues", stream=True, stream_options=asked
    )
    assert (last.choices, last.usage) == ([], whole.usage)


def test_responses(site: Site, sdk: openai.OpenAI) -> None:
    """A1: whole and streamed, and a tool called."""
    whole = sdk.responses.create(model=site.model, input=QUESTION)
    with sdk.responses.stream(model=site.model, input=QUESTION) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
    assert "lighthouses" in final.output_text
    assert (final.output_text, final.usage, final.status) == (whole.output_text, whole.usage, "completed")
    tool: Any = {"type": "function", **WEATHER["function"]}
    (call,) = sdk.responses.create(model=site.model, input=ASK_WEATHER, tools=[tool]).output
    assert call.type == "function_call"
    assert isinstance(json.loads(call.arguments)["city"], str)


def test_the_output_limit_of_responses_reaches_the_engine(site: Site, sdk: openai.OpenAI) -> None:
    """A6"""
    answer = sdk.responses.create(model=site.model, input=ENDLESS, max_output_tokens=5)
    assert answer.usage is not None
    assert (answer.status, answer.usage.output_tokens) == ("incomplete", 5)


def test_the_async_client(site: Site) -> None:
    async def main() -> None:
        async with openai.AsyncOpenAI(base_url=f"{site.url}/v1", api_key=site.key) as client:
            assert [model async for model in client.models.list()]
            whole = await client.chat.completions.create(model=site.model, messages=QUESTION)
            stream = await client.chat.completions.create(model=site.model, messages=QUESTION, stream=True)
            assert said([chunk async for chunk in stream]) == whole.choices[0].message.content
            vectors = await client.embeddings.create(model=site.embed_model, input="a")
            assert len(vectors.data) == 1

    uvloop.run(main())


# ---- what it raises


def code_of(error: openai.APIStatusError) -> str:
    """Our error code; every error names the request, in the body as in the field (A5)."""
    body: Any = error.body
    assert body["request_id"] == error.request_id == error.response.headers["x-request-id"]
    return str(body["code"])


def test_a_bad_key(site: Site, sdk: openai.OpenAI) -> None:
    """K2"""
    for key in ("wrong", site.key[:-1] + ("a" if site.key[-1] != "a" else "b")):
        with pytest.raises(openai.AuthenticationError) as caught:
            sdk.with_options(api_key=key).chat.completions.create(model=site.model, messages=QUESTION, stream=True)
        assert caught.value.status_code == 401
        assert code_of(caught.value)
        assert key not in caught.value.response.text


def test_a_model_that_is_not_there(site: Site, sdk: openai.OpenAI) -> None:
    """K8"""
    with pytest.raises(openai.PermissionDeniedError) as caught:
        sdk.chat.completions.create(model="gpt-4o", messages=QUESTION)
    assert (code_of(caught.value), caught.value.param) == ("model_not_available", "model")


BAD: list[dict[str, Any]] = [
    {"messages": "hello"},
    {"messages": QUESTION, "max_tokens": "many"},
    {"messages": QUESTION, "model": 7},
    {"messages": QUESTION, "model": None},
    {"messages": QUESTION, "stream": "yes"},
]


@pytest.mark.parametrize("body", BAD, ids=json.dumps)
def test_a_bad_request(site: Site, sdk: openai.OpenAI, body: dict[str, Any]) -> None:
    """A5: said by the gateway; no engine is asked."""
    asked = site.stats()["started"]
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.chat.completions.create(**{"model": site.model, **body})
    assert code_of(caught.value) == "invalid_request"
    assert caught.value.response.headers["x-fairgate-error"] == "gateway"
    assert site.stats()["started"] == asked


def test_what_the_engine_refuses(site: Site, sdk: openai.OpenAI) -> None:
    """H8: an embedding model cannot chat; the client hears it in our words, with the engine's status class."""
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.chat.completions.create(model=site.embed_model, messages=QUESTION)
    assert code_of(caught.value) == "upstream_rejected"


def test_unknown_routes(sdk: openai.OpenAI) -> None:
    """H10"""
    with pytest.raises(openai.NotFoundError) as caught:
        sdk.files.list()
    assert code_of(caught.value) == "not_found"
    with pytest.raises(openai.NotFoundError):
        sdk.images.generate(model="m", prompt="a lighthouse")


def client_of(g: Gateway, key: str = "", **options: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{g.url}/v1", api_key=key or g.key, **options)


def test_a_model_the_key_may_not_use(site: Site) -> None:
    """K8, A8: it is not listed, cannot be retrieved and answers as one that does not exist."""

    async def main() -> None:
        async with gateway(site.backend, "ollama") as g:
            narrow = await g.add_key(models=(site.embed_model,), allow_all_models=False)
            async with client_of(g, narrow) as client:
                assert [model.id async for model in client.models.list()] == [site.embed_model]
                bodies = set()
                for model in (site.model, "no-such-model"):
                    with pytest.raises(openai.PermissionDeniedError) as caught:
                        await client.chat.completions.create(model=model, messages=QUESTION)
                    bodies.add(caught.value.response.text.replace(str(caught.value.request_id), "ID"))
                assert len(bodies) == 1
                with pytest.raises((openai.PermissionDeniedError, openai.NotFoundError)):
                    await client.models.retrieve(site.model)
                assert (await client.embeddings.create(model=site.embed_model, input="a")).data

    uvloop.run(main())


# ---- what it retries


async def occupied(g: Gateway, client: openai.AsyncOpenAI, model: str) -> openai.AsyncStream[Any]:
    """A stream that has begun and holds the only slot."""
    stream = await client.chat.completions.create(model=model, messages=ENDLESS, stream=True)
    await anext(stream)
    assert g.app.scheduler.stats().running == 1
    return stream


def test_a_queue_timeout_after_its_retries(site: Site) -> None:
    """A10: the client waits what Retry-After says, tries again, and raises in the end."""

    async def main() -> None:
        async with gateway(site.backend, "ollama", slots=1) as g, client_of(g, max_retries=1) as client:
            stream = await occupied(g, client, site.model)
            begun = time.monotonic()
            with pytest.raises(openai.RateLimitError) as caught:
                await client.chat.completions.create(
                    model=site.model, messages=QUESTION, extra_headers={"x-queue-timeout": "0"}
                )
            took = time.monotonic() - begun
            await stream.close()
            assert code_of(caught.value) == "queue_timeout"
            wait = int(caught.value.response.headers["retry-after-ms"]) / 1000
            assert 1 <= wait <= 60
            assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60
            assert took >= 1, "it did not wait before its retry"
            records = await g.records(3)
            assert sorted(r["outcome"] for r in records) == ["client_gone", "timed_out", "timed_out"]
            await g.idle()

    uvloop.run(main())


def test_a_refused_client_succeeds_by_its_own_retry(site: Site) -> None:
    """A10: Retry-After honoured: refused while the slot is taken, served when it comes back."""

    async def main() -> None:
        async with gateway(site.backend, "ollama", slots=1) as g, client_of(g) as client:
            stream = await occupied(g, client, site.model)
            again = asyncio.create_task(
                client.chat.completions.create(
                    model=site.model, messages=QUESTION, extra_headers={"x-queue-timeout": "0"}
                )
            )
            await g.records(1)
            await stream.close()
            assert (await again).choices[0].finish_reason == "stop"
            assert [r["status"] for r in await g.records(3)] == [429, 499, 200]

    uvloop.run(main())


# ---- what it cancels


def test_a_stream_closed_midway(site: Site, sdk: openai.OpenAI) -> None:
    """H6"""
    with site.abort_seen():
        stream = sdk.chat.completions.create(model=site.model, messages=ENDLESS, stream=True)
        for _ in range(3):
            next(stream)
        stream.close()


def test_a_completion_closed_midway(site: Site) -> None:
    """A7, L2: Ollama writes a usage of nothing into each chunk, which makes no answer free."""

    async def main() -> None:
        async with gateway(site.backend, "ollama") as g, client_of(g) as client:
            stream = await client.completions.create(model=site.model, prompt="Write 90000 words", stream=True)
            for _ in range(5):
                await anext(stream)
            await stream.close()
            (record,) = await g.records(1)
            assert (record["outcome"], record["usage_estimated"]) == ("client_gone", 1)
            assert record["prompt_tokens"] > 0
            assert record["completion_tokens"] >= 5
            await g.idle()

    with site.abort_seen():
        uvloop.run(main())


def test_a_response_closed_midway(site: Site) -> None:
    """H6, A7: what was relayed is counted, and marked as an estimate."""

    async def main() -> None:
        async with gateway(site.backend, "ollama") as g, client_of(g) as client:
            stream = await client.responses.create(model=site.model, input=ENDLESS, stream=True)
            async for event in stream:
                if event.type == "response.output_text.delta":
                    break
            await stream.close()
            (record,) = await g.records(1)
            assert (record["route"], record["outcome"]) == ("/v1/responses", "client_gone")
            assert record["usage_estimated"] == 1
            assert record["completion_tokens"] >= 1
            await g.idle()

    with site.abort_seen():
        uvloop.run(main())


def test_a_client_that_times_out_on_a_whole_answer(site: Site, sdk: openai.OpenAI) -> None:
    """H6: non-stream."""
    with site.abort_seen(), pytest.raises(openai.APITimeoutError):
        sdk.with_options(timeout=0.5, max_retries=0).chat.completions.create(model=site.model, messages=ENDLESS)


def test_a_cancelled_task(site: Site) -> None:
    """H6: and the record says what was relayed."""

    async def main() -> None:
        async with gateway(site.backend, "ollama") as g, client_of(g) as client:
            seen = asyncio.Event()

            async def consume() -> None:
                async for _ in await client.chat.completions.create(model=site.model, messages=ENDLESS, stream=True):
                    seen.set()

            task = asyncio.create_task(consume())
            await seen.wait()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            (record,) = await g.records(1)
            assert (record["outcome"], record["usage_estimated"]) == ("client_gone", 1)
            assert record["completion_tokens"] >= 1
            await g.idle()

    with site.abort_seen():
        uvloop.run(main())


# ---- many at once


def test_200_streams_at_once_are_all_whole(site: Site) -> None:
    """Five users share 32 slots; every stream is complete and its own, and each has its record."""

    async def one(client: openai.AsyncOpenAI, number: int) -> tuple[int, str, Any]:
        ask: list[Any] = [{"role": "user", "content": word(number)}]
        options: Any = {"stream_options": {"include_usage": True}}
        stream = await client.chat.completions.create(model=site.model, messages=ask, stream=True, **options)
        chunks = [chunk async for chunk in stream]
        assert chunks[-2].choices[0].finish_reason == "stop"
        return number, said(chunks), chunks[-1].usage

    async def main() -> None:
        caps = cfg.Caps(connections_per_key=1000)
        async with gateway(site.backend, "ollama", slots=32, caps=caps) as g:
            clients = [client_of(g, await g.add_key(user=f"u{n}"), max_retries=0, timeout=100) for n in range(5)]
            answers = await asyncio.gather(*(one(clients[n % 5], n) for n in range(200)))
            await asyncio.gather(*(client.close() for client in clients))
            assert all(f"You wrote about {word(number)}." in text for number, text, _ in answers)
            records = await g.records(200)
            assert {r["outcome"] for r in records} == {"done"}
            counted = sum(r["completion_tokens"] for r in records)
            assert counted == sum(usage.completion_tokens for _, _, usage in answers)
            await g.idle()

    uvloop.run(main())
