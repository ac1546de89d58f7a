"""Limits and budgets at the door of a whole gateway (L1, L2, A10): real sockets, real store."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop

from gateway import config as cfg
from gateway.services.accounts import find_tenant
from gateway.store.limits import Limits
from tests.flow.engine import SSE_HEAD, Engine, answering, chunk, hang, json_answer, plain, start_and_hang, stream
from tests.flow.run import run
from tests.gateway import Gateway, chat, gateway
from tests.servers import Redis
from tests.services.limited import command
from tests.wire import WAIT

CHAT = "/v1/chat/completions"


async def budget(g: Gateway, scope: str) -> dict[str, tuple[int, int]]:
    """name -> (spent, on lease)."""
    return {row.budget.partition("/")[0]: (row.spent, row.held) for row in await g.store.budgets(scope)}


def test_a_rate_is_told_and_kept() -> None:
    """L1, A10: 429 in dialect when it is used up, and the fields on every answer."""

    async def test(g: Gateway, engine: Engine) -> None:
        key = await g.add_key(limits=Limits(requests_per_minute=2, tokens_per_minute=100_000))
        remaining = []
        for _ in range(2):
            status, fields, _ = await g.ask(CHAT, chat(), key=key)
            assert (status, fields["x-ratelimit-limit-requests"]) == (200, "2")
            assert fields["x-ratelimit-limit-tokens"] == "100000"
            assert 95_000 < int(fields["x-ratelimit-remaining-tokens"]) < 100_000
            remaining.append(fields["x-ratelimit-remaining-requests"])
        assert remaining == ["1", "0"]
        status, fields, body = await g.ask(CHAT, chat(), key=key)
        assert (status, json.loads(body)["error"]["code"]) == (429, "rate_limit_exceeded")
        assert 1 <= int(fields["retry-after"]) <= 60
        assert "x-should-retry" not in fields
        assert fields["x-ratelimit-remaining-requests"] == "0"
        assert fields["x-ratelimit-reset-requests"].endswith("s")

    run(plain, test)


def test_without_limits_no_fields() -> None:
    async def test(g: Gateway, engine: Engine) -> None:
        _, fields, _ = await g.ask(CHAT, chat())
        assert not any(name.startswith("x-ratelimit") for name in fields)

    run(plain, test)


def test_a_budget_is_settled_with_the_truth() -> None:
    """L2: the estimate is 4096 tokens and more, the engine reports 10; then the next estimate does not fit."""

    async def test(g: Gateway, engine: Engine) -> None:
        key = await g.add_key(limits=Limits(tokens_per_day=4125))
        for _ in range(2):
            status, fields, body = await g.ask(CHAT, chat(), key=key)
            assert status == 200
            assert fields["x-ratelimit-limit-tokens"] == "4125"
        status, fields, body = await g.ask(CHAT, chat(max_tokens=4096), key=key)
        assert (status, json.loads(body)["error"]["code"]) == (429, "budget_exceeded")
        assert fields["x-should-retry"] == "false"
        assert (await g.ask(CHAT, chat(max_tokens=20), key=key))[0] == 200
        (row,) = await g.records(1)
        await g.app.limits.close()
        assert await budget(g, f"key:{row['key']}") == {"tokens": (30, 0)}

    run(plain, test)


BEHIND = json.dumps({"prompt_logprobs": [{"12": {"logprob": -1.0, "rank": 1, "decoded_token": "a"}}] * 20_000}).encode()
LONG = {
    "vllm": (
        CHAT,
        b'{"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10},%b' % BEHIND[1:],
    ),
    "ollama": (
        "/api/generate",
        b'{"done":true,"total_duration":9,"prompt_eval_count":7,"eval_count":3,%b' % BEHIND[1:],
    ),
}


@pytest.mark.parametrize("read", [5_000, 65_536, 10**7])
@pytest.mark.parametrize("kind", LONG)
def test_what_an_engine_writes_behind_its_counts_makes_no_answer_free(kind: str, read: int) -> None:
    """A7, L2: a caller may ask for more than is kept of an answer (vLLM's `prompt_logprobs`, Ollama's `logprobs`)."""
    path, answer = LONG[kind]

    async def slowly(head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        whole = json_answer(answer)
        for at in range(0, len(whole), read):
            writer.write(whole[at : at + read])
            await writer.drain()

    async def test(g: Gateway, engine: Engine) -> None:
        assert await g.ask(path, chat(prompt="x", stream=False)) != b""
        (row,) = await g.records(1)
        assert (row["prompt_tokens"], row["completion_tokens"], row["usage_estimated"]) == (7, 3, 0)

    run(slowly, test, engine="ollama" if kind == "ollama" else "vllm")


@pytest.mark.parametrize("kind", LONG)
def test_an_answer_left_behind_its_counts_is_not_free(kind: str) -> None:
    """A7, L2: whoever has read the counts has read all that was generated."""
    path, answer = LONG[kind]

    async def half(head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(json_answer(answer)[:20_000])
        await hang(head, body, reader, writer)

    async def test(g: Gateway, engine: Engine) -> None:
        client = await g.connect()
        await client.send(g.request(path, chat(prompt="x", stream=False)))
        await client.head()
        await client.reader.readexactly(19_000)
        client.close()
        (row,) = await g.records(1)
        assert (row["outcome"], row["prompt_tokens"], row["completion_tokens"]) == ("client_gone", 7, 3)

    run(half, test, engine="ollama" if kind == "ollama" else "vllm")


def test_the_running_usage_of_one_answer_is_not_that_of_all() -> None:
    """A7, L2: with `n` answers a frame's usage (vLLM's `continuous_usage_stats`) counts the tokens of its own."""
    count = 3

    async def running(head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(SSE_HEAD)
        for tokens in range(1, 5):
            for index in range(count):
                usage = {"prompt_tokens": 7, "completion_tokens": tokens, "total_tokens": 7 + tokens}
                answer = {"choices": [{"index": index, "delta": {"content": "a"}}], "usage": usage}
                writer.write(chunk(b"data: %b\n\n" % json.dumps(answer).encode()))
        await hang(head, body, reader, writer)

    async def test(g: Gateway, engine: Engine) -> None:
        client = await g.connect()
        options = {"include_usage": True, "continuous_usage_stats": True}
        await client.send(g.request(CHAT, chat(n=count, stream=True, stream_options=options)))
        await client.head()
        chunks = client.chunks()
        read = b""
        while read.count(b"\n\n") < 4 * count:
            read += await anext(chunks)
        client.close()
        (row,) = await g.records(1)
        assert (row["outcome"], row["completion_tokens"]) == ("client_gone", 4 * count)
        assert (row["prompt_tokens"], row["usage_estimated"]) == (7, 1)

    run(running, test)


UNCOUNTED = {
    CHAT: {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "word " * 800}, "finish_reason": "stop"}]
    },
    "/v1/completions": {"choices": [{"index": 0, "text": "word " * 800, "finish_reason": "stop"}]},
    "/v1/responses": {"output": [{"type": "message", "content": [{"type": "output_text", "text": "word " * 800}]}]},
}


@pytest.mark.parametrize("path", [*UNCOUNTED, "/v1/messages", "/api/chat"])
def test_a_plain_answer_that_its_engine_does_not_count_is_not_free(path: str) -> None:
    """L2: its tokens are estimated by its size, and are never more than could be asked for."""
    answer = json_answer(json.dumps(UNCOUNTED.get(path, UNCOUNTED[CHAT])).encode())
    body = chat(prompt="x", input="x", stream=False)

    async def test(g: Gateway, engine: Engine) -> None:
        key = await g.add_key(limits=Limits(tokens_per_day=7000))
        told = [(await g.ask(path, body, key=key))[0] for _ in range(5)]
        assert told == [200, 200, 200, 429, 429]
        rows = await g.records(5)
        assert all(row["usage_estimated"] for row in rows[:3])
        assert all(900 < row["completion_tokens"] < 1200 for row in rows[:3])
        limits = {"max_tokens": 5, "max_output_tokens": 5, "options": {"num_predict": 5}}
        assert (await g.ask(path, body | limits))[0] == 200
        assert (await g.records(6))[5]["completion_tokens"] == 5

    run(answering(answer), test)


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/rerank"])
def test_what_generates_nothing_has_no_output_by_its_size(path: str) -> None:
    """L2"""

    async def test(g: Gateway, engine: Engine) -> None:
        assert (await g.ask(path, {"model": "m", "input": "x", "query": "x", "documents": []}))[0] == 200
        (row,) = await g.records(1)
        assert (row["prompt_tokens"] > 0, row["completion_tokens"], row["usage_estimated"]) == (True, 0, 1)

    run(answering(json_answer(b'{"data":[],"results":[],"pad":"%b"}' % (b"x" * 4000))), test)


def test_to_be_shown_a_model_costs_no_tokens() -> None:
    """A2, L2: there is no prompt. Clients ask for each model of their list."""

    async def test(g: Gateway, engine: Engine) -> None:
        key = await g.add_key(limits=Limits(tokens_per_day=10))
        for _ in range(3):
            assert (await g.ask("/api/show", {"model": "m"}, key=key))[0] == 200
        rows = await g.records(3)
        assert [(row["prompt_tokens"], row["completion_tokens"]) for row in rows] == [(0, 0)] * 3
        await g.app.limits.close()
        assert await budget(g, f"key:{rows[0]['key']}") == {"tokens": (0, 0)}

    run(answering(json_answer(b'{"details":{},"model_info":{}}')), test, engine="ollama")


def test_the_running_usage_of_one_prompt_is_not_that_of_all() -> None:
    """A7, L2: of a completion of several, whose client leaves, the prompts are estimated."""
    prompts = ["word " * 80] * 20

    async def running(head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(SSE_HEAD)
        usage = {"prompt_tokens": 81, "completion_tokens": 1, "total_tokens": 82}
        for index in range(len(prompts)):
            answer = {"choices": [{"index": index, "text": "a"}], "usage": usage}
            writer.write(chunk(b"data: %b\n\n" % json.dumps(answer).encode()))
        await hang(head, body, reader, writer)

    async def test(g: Gateway, engine: Engine) -> None:
        client = await g.connect()
        options = {"include_usage": True, "continuous_usage_stats": True}
        body = {"model": "m", "prompt": prompts, "stream": True, "stream_options": options}
        await client.send(g.request("/v1/completions", body))
        await client.head()
        chunks = client.chunks()
        read = b""
        while read.count(b"\n\n") < len(prompts):
            read += await anext(chunks)
        client.close()
        (row,) = await g.records(1)
        assert (row["outcome"], row["completion_tokens"], row["usage_estimated"]) == ("client_gone", len(prompts), 1)
        assert 81 * len(prompts) < row["prompt_tokens"] < 200 * len(prompts)

    run(running, test)


def test_a_stream_that_begins_with_an_error_costs_nothing() -> None:
    """L2: it failed before any token."""

    async def failed(head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(SSE_HEAD + chunk(b'data: {"error":{"message":"out of memory"}}\n\n') + b"0\r\n\r\n")

    async def test(g: Gateway, engine: Engine) -> None:
        key = await g.add_key(limits=Limits(tokens_per_day=10_000))
        assert (await g.ask(CHAT, chat(stream=True), key=key))[0] == 502
        (row,) = await g.records(1)
        assert (row["outcome"], row["completion_tokens"]) == ("upstream_failed", 0)
        await g.app.limits.close()
        assert await budget(g, f"key:{row['key']}") == {"tokens": (0, 0)}
        stats = g.app.scheduler.stats()
        assert stats.parties[0].usage == pytest.approx(0.0, abs=1e-6)
        assert stats.pools[0].service_time == 0.0  # nor does it tell how long an answer takes

    run(failed, test)


def test_what_never_ran_costs_nothing_and_what_a_client_left_costs_what_it_got() -> None:
    """L2, H6"""

    async def leave(g: Gateway, key: str, stop: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        client = await g.connect()
        await client.send(g.request(CHAT, chat(stream=True), key=key))
        await stop()
        client.close()

    async def test(g: Gateway, engine: Engine) -> None:
        key = await g.add_key(limits=Limits(tokens_per_day=10_000, concurrent=1, gpu_seconds_total=1000))
        async with asyncio.timeout(WAIT):
            await leave(g, key, engine.chats.get)
            (row,) = await g.records(1)
        assert row["outcome"] == "client_gone"
        await g.app.limits.close()
        spent = await budget(g, f"key:{row['key']}")
        assert 0 < row["prompt_tokens"] < 40
        assert row["usage_estimated"]
        assert spent["tokens"][0] == row["prompt_tokens"] + row["completion_tokens"]
        assert spent["tokens"][1] == spent["gpu"][1] == 0
        assert 1 <= spent["gpu"][0] < 1000 * WAIT

    run(start_and_hang, test)


def test_what_produces_no_tokens_is_held_for_its_input_only() -> None:
    """L2: an estimate of embeddings has no output, or a small budget would refuse them all."""

    async def test(g: Gateway, engine: Engine) -> None:
        key = await g.add_key(limits=Limits(tokens_per_day=100))
        assert (await g.ask("/v1/embeddings", {"model": "m", "input": "x"}, key=key))[0] == 200
        assert (await g.ask(CHAT, chat(), key=key))[0] == 429

    run(plain, test)


def test_the_shortest_input_does_not_pass_a_spent_budget() -> None:
    """L2: less than a token by estimate is a token."""

    async def test(g: Gateway, engine: Engine) -> None:
        key = await g.add_key(limits=Limits(tokens_total=5))
        tiny = {"model": "m", "input": "x", "padding": "y" * 100_000}
        answers = [(await g.ask("/v1/embeddings", tiny, key=key))[0] for _ in range(2)]
        assert answers == [200, 429]

    run(plain, test)


def test_the_fields_tell_of_the_limit_with_the_least_left() -> None:
    """A10: tenant, user or key; and no time where a budget never comes back."""

    async def test(g: Gateway, engine: Engine) -> None:
        key = await g.add_key(limits=Limits(requests_per_minute=60, tokens_total=50_000))
        await g.store.set_limits("tenant", (await find_tenant(g.store, "t")).id, Limits(requests_per_minute=7))
        g.app.keys.invalidate()
        _, fields, _ = await g.ask(CHAT, chat(), key=key)
        assert (fields["x-ratelimit-limit-requests"], fields["x-ratelimit-remaining-requests"]) == ("7", "6")
        assert fields["x-ratelimit-limit-tokens"] == "50000"
        assert "x-ratelimit-reset-requests" in fields
        assert "x-ratelimit-reset-tokens" not in fields

    run(plain, test)


def test_how_long_a_model_took_is_what_its_next_request_is_expected_to_take() -> None:
    """L2: of time of a GPU; learned from what came to its end and told its tokens."""

    async def test(g: Gateway, engine: Engine) -> None:
        pace = g.app.limits.pace
        before = pace.seconds("m", 0, 1000)
        await g.ask(CHAT, chat(), key=await g.add_key(limits=Limits(gpu_seconds_total=1000)))
        await g.idle()
        assert pace.seconds("m", 0, 1000) < before

    run(plain, test)


def test_another_share_reaches_the_queue() -> None:
    """S: of user and tenant, with the next request after a second at the latest."""

    async def test(g: Gateway, engine: Engine) -> None:
        tenant = await find_tenant(g.store, "t")
        (user,) = await g.store.users(tenant.id)
        await g.ask(CHAT, chat())
        await g.store.set_share("tenant", tenant.id, 2.0)
        await g.store.set_share("user", user.id, 3.0)
        stats = g.app.scheduler.stats
        async with asyncio.timeout(WAIT):
            while (stats().tenants[0].share, stats().parties[0].share) != (2.0, 3.0):
                await g.ask(CHAT, chat())

    run(plain, test)


def test_open_requests_are_counted_until_they_end() -> None:
    """L1"""

    async def test(g: Gateway, engine: Engine) -> None:
        key = await g.add_key(limits=Limits(concurrent=1))
        client = await g.connect()
        await client.send(g.request(CHAT, chat(), key=key))
        await engine.chats.get()
        status, fields, _ = await g.ask(CHAT, chat(), key=key)
        assert (status, fields["retry-after"]) == (429, "2")
        client.close()
        await g.idle()
        assert g.app.limits.stats().open == 0
        client = await g.connect()
        await client.send(g.request(CHAT, chat(), key=key))
        await engine.chats.get()
        client.close()

    run(hang, test)


def test_a_tenants_ceiling_holds_over_all_its_keys() -> None:
    """K1: each scope holds, so the tighter one does; a change acts on running gateways."""

    async def test(g: Gateway, engine: Engine) -> None:
        one = await g.add_key(limits=Limits(requests_per_minute=50))
        two = await g.add_key(user="v")
        tenant = await g.store.tenant("t")
        assert tenant is not None
        await g.store.set_limits("tenant", tenant.id, Limits(requests_per_minute=3))
        answers = [(await g.ask(CHAT, chat(stream=True), key=key))[0] for key in (one, two, one, two)]
        assert answers == [200, 200, 200, 429]
        await g.store.set_limits("tenant", tenant.id, Limits())
        async with asyncio.timeout(WAIT):
            while (await g.ask(CHAT, chat(), key=two))[0] != 200:
                await asyncio.sleep(0.05)

    run(stream, test)


def test_two_gateways_share_limits_and_budgets(redis: Redis, postgresql_url: str, tmp_path: Path) -> None:
    """D, L3: one rate, one number of open requests, one budget over both; each tells what is left of all."""
    command(redis.port, "FLUSHALL")
    shared: dict[str, Any] = {"store": postgresql_url, "shared": redis.url(), "limits": cfg.Quotas(deadline=2.0)}

    def spool(name: str) -> cfg.Audit:
        return cfg.Audit(batch_seconds=0.02, spool=str(tmp_path / name))

    async def main() -> None:
        async with Engine(plain) as engine, gateway(engine.url, audit=spool("one"), **shared) as one:
            key = await one.add_key(user="w", limits=Limits(requests_per_minute=6, tokens_per_day=100_000))
            async with gateway(engine.url, audit=spool("two"), **shared) as two:
                answers = [await g.ask(CHAT, chat(), key=key) for g in (one, two) * 4]
                assert sorted(status for status, _, _ in answers) == [200] * 6 + [429] * 2
                assert {fields["x-ratelimit-limit-requests"] for _, fields, _ in answers} == {"6"}
                assert answers[-1][1]["x-ratelimit-remaining-requests"] == "0"
                await two.idle()
            await one.idle()
            await one.app.limits.close()
            (row, *_) = [record for record in await one.records(4) if record["status"] == 200]
            assert await budget(one, f"key:{row['key']}") == {"tokens": (60, 0)}

    uvloop.run(main())


def test_with_redis_away_the_limited_are_refused_and_others_served(redis: Redis) -> None:
    """L3, fail closed: 503 in dialect within the deadline; recovery without restart."""

    async def test(g: Gateway, engine: Engine) -> None:
        key = await g.add_key(user="w", limits=Limits(requests_per_minute=1000))
        redis.kill()
        try:
            status, fields, body = await g.ask(CHAT, chat(), key=key)
            assert (status, json.loads(body)["error"]["code"]) == (503, "limits_unavailable")
            assert "retry-after" in fields
            assert (await g.ask(CHAT, chat()))[0] == 200
        finally:
            redis.start()
        async with asyncio.timeout(4 * WAIT):
            while (await g.ask(CHAT, chat(), key=key))[0] != 200:
                await asyncio.sleep(0.05)

    run(plain, test, shared=redis.url(), limits=cfg.Quotas(deadline=1.0))


def test_a_key_has_only_so_many_requests_open_at_once() -> None:
    """H3: `caps.connections_per_key`; room comes back with the end of one, however it ends, and others have theirs."""

    async def test(g: Gateway, engine: Engine) -> None:
        clients = [await g.connect() for _ in range(2)]
        for client in clients:
            await client.send(g.request(CHAT, chat()))
            await asyncio.wait_for(engine.chats.get(), WAIT)
        status, fields, body = await g.ask(CHAT, chat())
        assert (status, json.loads(body)["error"]["code"]) == (429, "rate_limit_exceeded")
        assert b"requests of this key are open" in body
        assert int(fields["retry-after"]) >= 1
        engine.answer = plain
        assert (await g.ask(CHAT, chat(), key=await g.add_key(user="other")))[0] == 200
        clients[0].reset()
        async with asyncio.timeout(WAIT):
            while g.app.ledger.stats().open > 1:
                await asyncio.sleep(0.01)
        assert (await g.ask(CHAT, chat()))[0] == 200
        clients[1].reset()

    run(hang, test, caps=cfg.Caps(connections_per_key=2))
