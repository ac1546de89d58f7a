"""The unmodified `ollama` client through a real gateway, in Ollama's own API."""

import asyncio
import json
from typing import Any

import ollama
import pytest
import uvloop

from gateway import config as cfg
from tests.clients.conftest import ANIMAL, ASK_WEATHER, ENDLESS, QUESTION, WEATHER, Site, word
from tests.gateway import Gateway, gateway


@pytest.fixture(params=["own", "compatible"])
def site(request: pytest.FixtureRequest) -> Site:
    """Engines that speak this API, and those that are asked in OpenAI's words (A4)."""
    made: Site = request.getfixturevalue(request.param)
    return made


def asynchronous(g: Gateway, key: str = "") -> ollama.AsyncClient:
    return ollama.AsyncClient(host=g.url, headers={"Authorization": f"Bearer {key or g.key}"})


# ---- what it reads


OWN = pytest.mark.parametrize("site", ["own"], indirect=True)
"""What only Ollama itself knows or can."""


@OWN
def test_lists_and_shows(site: Site, native: ollama.Client) -> None:
    """A2, A8"""
    listed = native.list().models
    assert {site.model, site.embed_model} <= {model.model for model in listed}
    assert all(model.size and model.digest and model.details and model.modified_at for model in listed)
    shown = native.show(site.model)
    assert shown.capabilities == ["completion", "tools"]
    assert shown.modelinfo


def test_ps_tells_what_is_loaded(site: Site) -> None:
    """A8, R2: once discovery has looked."""

    async def main() -> None:
        async with gateway(site.backend, "ollama", discovery=cfg.Discovery(interval=0.05)) as g:
            client = asynchronous(g)
            await client.chat(site.model, QUESTION)
            async with asyncio.timeout(10):
                while not (loaded := {model.model: model for model in (await client.ps()).models}):
                    await asyncio.sleep(0.02)
            assert loaded[site.model].size_vram
            assert loaded[site.model].expires_at is not None
            await client._client.aclose()

    uvloop.run(main())


def test_chat_whole_and_streamed_agree(site: Site, native: ollama.Client) -> None:
    """A2"""
    whole = native.chat(site.model, QUESTION)
    parts = list(native.chat(site.model, QUESTION, stream=True))
    assert "lighthouses" in (whole.message.content or "")
    assert "".join(part.message.content or "" for part in parts) == whole.message.content
    assert (parts[-1].done, parts[-1].done_reason) == (True, "stop")
    assert not any(part.done for part in parts[:-1])
    assert parts[-1].eval_count == whole.eval_count == len(parts) - 1
    assert parts[-1].prompt_eval_count == whole.prompt_eval_count


def test_generate_with_options(site: Site, native: ollama.Client) -> None:
    """A6: `num_predict` reaches the engine, and the other options beside it."""
    parts = list(native.generate(site.model, "Write 200 words", stream=True, options={"num_predict": 40, "seed": 3}))
    assert (parts[-1].done_reason, parts[-1].eval_count) == ("length", 40)
    again = native.generate(site.model, "Write 200 words", options={"num_predict": 40, "seed": 3})
    other = native.generate(site.model, "Write 200 words", options={"num_predict": 40, "seed": 4})
    assert "".join(part.response for part in parts) == again.response
    assert other.response != again.response


@OWN
def test_a_context_and_no_thoughts(site: Site, native: ollama.Client) -> None:
    thinker = next(model.model for model in native.list().models if "qwen3" in str(model.model))
    assert not native.chat(thinker, QUESTION, think=False).message.thinking
    assert native.generate(site.model, "Write 2 words").context


def test_embeddings_by_both_routes(site: Site, native: ollama.Client) -> None:
    """A2"""
    many = native.embed(site.embed_model, ["one lighthouse", "two queues"])
    assert len(many.embeddings) == 2
    assert many.prompt_eval_count
    old = native.embeddings(site.embed_model, "one lighthouse")
    assert list(old.embedding) == pytest.approx(many.embeddings[0], abs=1e-6)


def test_tools(site: Site, native: ollama.Client) -> None:
    whole = native.chat(site.model, ASK_WEATHER, tools=[WEATHER])
    (call,) = whole.message.tool_calls or []
    assert call.function.name == "get_weather"
    assert isinstance(call.function.arguments["city"], str)
    parts = native.chat(site.model, ASK_WEATHER, tools=[WEATHER], stream=True)
    calls = [each for part in parts for each in part.message.tool_calls or []]
    assert [each.function for each in calls] == [call.function]


def test_formats_and_thinking(site: Site, native: ollama.Client) -> None:
    """A1: fields the gateway does not know pass untouched."""
    animal = native.chat(site.model, QUESTION, format=ANIMAL)
    assert set(json.loads(animal.message.content or "")) == {"name", "legs"}
    thinker = next(model.model for model in native.list().models if "qwen3" in str(model.model))
    assert native.chat(thinker, QUESTION, think=True).message.thinking


def test_the_key_from_its_environment(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """K2"""
    monkeypatch.setenv("OLLAMA_API_KEY", site.key)
    client = ollama.Client(host=site.url)
    assert client.list().models
    client._client.close()


def test_the_async_client(site: Site) -> None:
    async def main() -> None:
        client = ollama.AsyncClient(host=site.url, headers={"Authorization": f"Bearer {site.key}"})
        assert (await client.list()).models
        whole = await client.chat(site.model, QUESTION)
        parts = [part async for part in await client.chat(site.model, QUESTION, stream=True)]
        assert "".join(part.message.content or "" for part in parts) == whole.message.content
        assert (await client.generate(site.model, "Hello")).done
        assert (await client.embed(site.embed_model, "a")).embeddings
        await client._client.aclose()

    uvloop.run(main())


# ---- what it raises


def refused(error: ollama.ResponseError, status: int) -> None:
    """Its text is our plain sentence: the client found `error` to be a string (A5)."""
    assert error.status_code == status
    assert not error.error.lstrip().startswith("{")


@pytest.mark.parametrize("operation", ["pull", "push", "create", "copy", "delete"])
def test_what_changes_the_engine_is_refused(site: Site, native: ollama.Client, operation: str) -> None:
    """A2: for every key, streamed or not; the engine hears nothing of it."""
    seen = site.stats()["mutations"]
    asks: dict[str, list[tuple[Any, ...]]] = {
        "create": [(site.model, None, site.model)],
        "copy": [(site.model, "mine")],
    }
    for arguments in asks.get(operation, [(site.model,)]):
        with pytest.raises(ollama.ResponseError) as caught:
            getattr(native, operation)(*arguments)
        refused(caught.value, 403)
    if operation in ("pull", "push", "create"):
        with pytest.raises(ollama.ResponseError) as caught:
            list(getattr(native, operation)(site.model, stream=True))
        refused(caught.value, 403)
    assert site.stats()["mutations"] == seen


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_errors(site: Site, native: ollama.Client, stream: bool) -> None:
    """A5, K8, H8: not ours, not there, not possible, not a request."""
    cases: list[tuple[str, Any, Any, int]] = [
        ("no-such-model", QUESTION, {}, 403),
        (site.embed_model, QUESTION, {}, 400),
        (site.model, QUESTION, {"num_predict": "many"}, 400),
    ]
    for model, messages, options, status in cases:
        with pytest.raises(ollama.ResponseError) as caught:
            list(native.chat(model, messages, options=options, stream=stream))
        refused(caught.value, status)


def test_a_bad_key(site: Site) -> None:
    """K2"""
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        client = ollama.Client(host=site.url, headers=headers)
        with pytest.raises(ollama.ResponseError) as caught:
            client.list()
        refused(caught.value, 401)
        client._client.close()


def test_a_queue_timeout(site: Site) -> None:
    """A10: this client does not retry by itself; it gets the status and a sentence."""

    async def main() -> None:
        async with gateway(site.backend, "ollama", slots=1) as g:
            hasty = await g.add_key(user="hasty", queue_timeout=0.1)
            first, second = asynchronous(g), asynchronous(g, hasty)
            stream = await first.chat(site.model, ENDLESS, stream=True)
            await anext(stream)
            with pytest.raises(ollama.ResponseError) as caught:
                await second.chat(site.model, QUESTION)
            refused(caught.value, 429)
            await stream.aclose()
            assert (await second.chat(site.model, QUESTION)).done
            await g.idle()
            await asyncio.gather(first._client.aclose(), second._client.aclose())

    uvloop.run(main())


# ---- what it cancels


def test_a_stream_closed_midway(site: Site, native: ollama.Client) -> None:
    """H6"""
    with site.abort_seen():
        stream: Any = native.generate(site.model, ENDLESS[0]["content"], stream=True)
        for _ in range(3):
            next(stream)
        stream.close()


def test_a_cancelled_whole_answer(site: Site) -> None:
    """H6: non-stream."""

    async def main() -> None:
        async with gateway(site.backend, "ollama") as g:
            client = asynchronous(g)
            started = site.stats()["started"]
            task = asyncio.create_task(client.chat(site.model, ENDLESS))
            await asyncio.to_thread(site.wait, "start", started + 1)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            (record,) = await g.records(1)
            assert record["outcome"] == "client_gone"
            await client._client.aclose()

    with site.abort_seen():
        uvloop.run(main())


# ---- many at once


def test_50_streams_at_once_are_all_whole(site: Site) -> None:
    async def one(client: ollama.AsyncClient, number: int) -> int:
        ask = [{"role": "user", "content": word(number)}]
        parts = [part async for part in await client.chat(site.model, ask, stream=True)]
        assert (parts[-1].done, parts[-1].eval_count) == (True, len(parts) - 1)
        assert f"You wrote about {word(number)}." in "".join(part.message.content or "" for part in parts)
        return parts[-1].eval_count or 0

    async def main() -> None:
        async with gateway(site.backend, "ollama", slots=16) as g:
            client = asynchronous(g)
            counts = await asyncio.gather(*(one(client, number) for number in range(50)))
            await client._client.aclose()
            assert sum(r["completion_tokens"] for r in await g.records(50)) == sum(counts)

    uvloop.run(main())
