"""The main job end to end on real sockets: bytes pass unchanged, are metered and recorded, and all is given back."""

import asyncio
import json
import os
import re
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from gateway import config as cfg
from gateway.flow.engine_errors import engine_refused
from tests.flow.engine import (
    DONE,
    PLAIN,
    SSE_HEAD,
    USAGE_FRAME,
    Engine,
    answering,
    chunk,
    cut,
    deaf_port,
    frame,
    hang,
    json_answer,
    plain,
    start_and_hang,
    stream,
)
from tests.flow.run import run
from tests.gateway import Gateway, chat
from tests.wire import WAIT, Client

CHAT = "/v1/chat/completions"


def test_a_plain_answer_passes_unchanged_and_is_recorded() -> None:
    """U1, H7, H8, R9"""

    async def test(g: Gateway, engine: Engine) -> None:
        status, fields, body = await g.ask(CHAT, chat(), extra="X-Fairgate-User: boss\r\nCookie: c=1\r\n")
        assert (status, body) == (200, PLAIN)
        assert fields["content-type"] == "application/json"
        assert fields["x-content-type-options"] == "nosniff"
        assert int(fields["x-fairgate-queue-ms"]) == 0
        assert 0.0 < float(fields["x-fairgate-overhead-ms"]) < 1000 * WAIT
        head, sent = engine.chats.get_nowait()
        assert f"Host: 127.0.0.1:{engine.port}".encode() in head
        assert b"authorization" not in head.lower()
        assert b"cookie" not in head.lower()
        assert b"x-fairgate" not in head.lower()
        assert json.loads(sent) == chat(max_tokens=4096)
        (record,) = await g.records(1)
        assert record["id"] == fields["x-request-id"]
        assert (record["status"], record["outcome"], record["error"]) == (200, "done", "")
        assert (record["prompt_tokens"], record["completion_tokens"], record["usage_estimated"]) == (7, 3, 0)
        assert (record["model_served"], record["backend"], record["dialect"]) == ("m", "engine", "openai")
        assert record["bytes_out"] > len(PLAIN)
        assert record["total_us"] >= record["first_byte_us"] > 0

    run(plain, test)


@pytest.mark.parametrize("asked", [True, False], ids=["usage asked", "usage hidden"])
def test_a_stream_is_metered_and_the_usage_frame_goes_only_to_who_asked(asked: bool) -> None:
    """A7"""

    async def test(g: Gateway, engine: Engine) -> None:
        options = {"stream_options": {"include_usage": True}} if asked else {}
        _, fields, body = await g.ask(CHAT, chat(stream=True, **options))
        frames = frame("a") + frame("b") + frame("c")
        assert body == frames + (USAGE_FRAME if asked else b"") + DONE
        assert fields["content-type"] == "text/event-stream"
        (record,) = await g.records(1)
        assert (record["prompt_tokens"], record["completion_tokens"], record["usage_estimated"]) == (7, 3, 0)

    run(stream, test)


def test_http_1_0_gets_the_payload_without_chunks() -> None:
    """H1"""

    async def test(g: Gateway, engine: Engine) -> None:
        client = await g.connect()
        await client.send(g.request(CHAT, chat(stream=True)).replace(b"HTTP/1.1", b"HTTP/1.0", 1))
        status, fields, body = await client.answer()
        assert status == 200
        assert "transfer-encoding" not in fields
        assert body == frame("a") + frame("b") + frame("c") + DONE

    run(stream, test)


def test_keep_alive_across_streams_and_refusals() -> None:
    """Bad input leaves the connection usable where the framing allows."""

    async def test(g: Gateway, engine: Engine) -> None:
        client = await g.connect()
        for body, status in [(chat(stream=True), 200), (b"{", 400), ({"messages": []}, 400), (chat(), 200)]:
            await client.send(g.request(CHAT, body))
            assert (await client.answer())[0] == status
        await client.send(g.request("/v1/nothing"))
        assert (await client.answer())[0] == 404
        await client.send(g.request(CHAT))
        status, fields, _ = await client.answer()
        assert (status, fields["allow"]) == (405, "POST")
        assert [r["status"] for r in await g.records(6)] == [200, 400, 400, 200, 404, 405]

    run(stream, test)


BAD = [
    (CHAT, b"{", 400, "invalid_request"),
    (CHAT, b"[]", 400, "invalid_request"),
    (CHAT, {"messages": []}, 400, "invalid_request"),
    (CHAT, chat(model=7), 400, "invalid_request"),
    (CHAT, chat(max_tokens="many"), 400, "invalid_request"),
    (CHAT, chat(model="other"), 403, "model_not_available"),
    ("/api/chat", chat(model="other"), 403, "model_not_available"),
    (CHAT, b"x" * 2_000_000, 413, "request_too_large"),
    ("/api/pull", {"model": "m"}, 403, "operation_blocked"),
    ("/nowhere", None, 404, "not_found"),
]


@pytest.mark.parametrize(("path", "body", "status", "code"), BAD)
def test_bad_input_gets_a_clear_error_in_the_callers_dialect(path: str, body: Any, status: int, code: str) -> None:
    """A5, H10, U1: and one audit row, and no engine is asked."""

    async def test(g: Gateway, engine: Engine) -> None:
        got, fields, text = await g.ask(path, body)
        error = json.loads(text)["error"]
        assert got == status
        assert isinstance(error, str) == path.startswith("/api/")
        assert fields["x-fairgate-error"] == "gateway"
        (record,) = await g.records(1)
        assert (record["status"], record["outcome"], record["error"]) == (status, "refused", code)
        assert engine.chats.empty()

    run(plain, test, caps=cfg.Caps(body_bytes=1_000_000))


def test_without_a_key_nothing_is_served() -> None:
    """H10, K2: all routes that are not public answer 401, before any body is read."""

    async def test(g: Gateway, engine: Engine) -> None:
        for row in g.app.routes.rows:
            method = "POST" if row.method == "*" else row.method
            path = row.path.replace("*", "x")
            status, fields, _ = await g.ask(path, None if method == "GET" else chat(), key="", method=method)
            expected = {"public": (200, 404), "key": (401,), "never": (403,)}[row.access]
            assert status in expected, path
            assert ("www-authenticate" in fields) == (status == 401)
        assert engine.chats.empty()

    run(plain, test)


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT):
        while not condition():
            await asyncio.sleep(0)


PHASES = ["queued", "connecting", "waiting for the head", "mid-stream", "non-stream"]


@pytest.mark.parametrize("leave", ["close", "reset"])
@pytest.mark.parametrize("phase", PHASES)
def test_a_client_that_leaves_frees_everything_at_once(phase: str, leave: str) -> None:
    """H6: the engine sees the abort, slot and ledger return to zero, one row says client_gone."""

    async def test(g: Gateway, engine: Engine) -> None:
        blocker = None
        if phase == "queued":
            blocker = await g.connect()
            await blocker.send(g.request(CHAT, chat()))
            await engine.chats.get()
        if phase == "connecting":
            pool = g.app.pools["engine"]
            pool.address = msgspec.structs.replace(pool.address, port=deaf_port())
        client = await g.connect()
        await client.send(g.request(CHAT, chat(stream=phase == "mid-stream")))
        if phase == "queued":
            await _until(lambda: g.app.scheduler.stats().queued == 1)
        elif phase == "connecting":
            await _until(lambda: g.app.scheduler.stats().running == 1)
        else:
            await asyncio.wait_for(engine.chats.get(), WAIT)
        if phase == "mid-stream":
            assert (await client.head())[0] == 200
        getattr(client, leave)()
        if phase in PHASES[2:]:
            await asyncio.wait_for(engine.aborted.get(), WAIT)
        (record,) = await g.records(1)
        assert (record["outcome"], record["status"]) == ("client_gone", 499)
        assert record["usage_estimated"] == (phase in PHASES[2:])
        if phase == "mid-stream":
            assert record["completion_tokens"] in (1, 2)
        if blocker is not None:
            blocker.close()
        await g.idle()
        assert g.app.scheduler.stats().running == 0

    run(start_and_hang if phase == "mid-stream" else hang, test, slots=1)


BROKEN = {
    "no answer": (cut(), 502, b""),
    "half a head": (cut(b"HTTP/1.1 200 OK\r\nCont"), 502, b""),
    "garbage": (cut(b"SSH-2.0\r\n\r\n"), 502, b""),
    "head, then nothing": (cut(SSE_HEAD), 502, b""),
    "ends without [DONE]": (cut(SSE_HEAD + chunk(frame("a")), b"0\r\n\r\n"), 200, frame("a")),
    "cut between frames": (cut(SSE_HEAD + chunk(frame("a"))), 200, frame("a")),
    "broken chunk": (cut(SSE_HEAD + chunk(frame("a")), b"zz\r\n"), 200, frame("a")),
}


@pytest.mark.parametrize("case", BROKEN)
def test_an_engine_that_breaks_is_told_in_dialect(case: str) -> None:
    """A5: a status before the first byte, an error frame after it; never a clean end."""
    answer, status, before = BROKEN[case]

    async def test(g: Gateway, engine: Engine) -> None:
        got, _, body = await g.ask(CHAT, chat(stream=True))
        assert got == status
        assert body.startswith(before)
        rest = body[len(before) :]
        error = json.loads(rest.removeprefix(b"data: "))["error"]
        assert error["code"] == "upstream_broke"
        assert b"[DONE]" not in body
        (record,) = await g.records(1)
        assert (record["outcome"], record["error"]) == ("upstream_failed", "upstream_broke")

    run(answer, test)


def test_a_stream_cut_inside_a_frame_ends_with_the_frame_before_and_an_error() -> None:
    """A5: half a frame is of no use to a client; a frame of ours in its place is."""

    async def test(g: Gateway, engine: Engine) -> None:
        _, _, body = await g.ask(CHAT, chat(stream=True, stream_options={"include_usage": True}))
        assert body.startswith(frame("a") + b'data: {"error":')
        (record,) = await g.records(1)
        assert record["outcome"] == "upstream_failed"

    run(cut(SSE_HEAD + chunk(frame("a")), b"20\r\ndata: {"), test)


def test_a_huge_frame_cut_in_the_middle_is_cut_for_the_client_too() -> None:
    """A5: of a frame too large to be held a part was sent, behind which nothing can be told."""

    async def test(g: Gateway, engine: Engine) -> None:
        client = await g.connect()
        await client.send(g.request(CHAT, chat(stream=True)))
        await client.head()
        assert not (await client.rest()).endswith(b"0\r\n\r\n")
        (record,) = await g.records(1)
        assert record["outcome"] == "upstream_failed"

    run(cut(SSE_HEAD + b"fffff\r\ndata: {" + b"x" * 70_000), test)


REFUSALS = [
    (
        "400 Bad Request",
        b'{"error":{"message":"10.0.0.5: maximum context length is 2048"}}',
        400,
        "context_length_exceeded",
    ),
    ("401 Unauthorized", b'{"error":"Unauthorized"}', 502, "upstream_broke"),
    ("404 Not Found", b'{"error":"model \\"m\\" not found"}', 403, "model_not_available"),
    ("404 Not Found", b'{"detail":"Not Found"}', 404, "upstream_rejected"),
    ("404 Not Found", b"404 page /srv/secret not found", 404, "upstream_rejected"),
    ("500 Internal Server Error", b"Traceback at 10.0.0.5:/srv/secret.py", 502, "upstream_broke"),
    ("500 Internal Server Error", b'{"error":"this model does not support embeddings"}', 400, "upstream_rejected"),
    ("500 Internal Server Error", b'{"error":{"message":"image input is not supported"}}', 400, "upstream_rejected"),
    ("500 Internal Server Error", b'{"error":"input (700 tokens) is too large to process"}', 400, "upstream_rejected"),
    ("500 Internal Server Error", b"Jinja Exception: conversation roles must alternate", 400, "upstream_rejected"),
    ("500 Internal Server Error", b'{"error":"system message must be at the beginning"}', 400, "upstream_rejected"),
    ("501 Not Implemented", b'{"error":"This server does not support reranking"}', 400, "upstream_rejected"),
    ("503 Service Unavailable", b'{"error":{"message":"Loading model"}}', 503, "model_loading"),
    ("503 Service Unavailable", b'{"error":"server busy"}', 503, "engine_busy"),
]


@pytest.mark.parametrize(("line", "text", "status", "code"), REFUSALS)
def test_what_the_engine_says_of_itself_stays_inside(line: str, text: bytes, status: int, code: str) -> None:
    """H8, R7: its status class and our sentence; `Retry-After` on every 503."""

    async def test(g: Gateway, engine: Engine) -> None:
        got, fields, body = await g.ask(CHAT, chat())
        assert got == status
        assert json.loads(body)["error"]["code"] == code
        assert not any(word in body for word in (b"10.0.0.5", b"secret", b"Unauthorized"))
        assert ("retry-after" in fields) == (status == 503)
        assert "x-fairgate-overhead-ms" in fields
        (row,) = await g.records(1)
        assert row["outcome"] == ("upstream_failed" if status > 500 else "refused")

    async def answer(head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(json_answer(text, line))

    run(answer, test)


EXPLAINED = {
    "longer than the engine accepts": (b"input (700 tokens) is too large to process. increase the physical",),
    "more texts than the engine accepts at once": (b"batch size 64 > maximum allowed batch size 32",),
    "does not accept messages with these roles": (
        b"Conversation roles must alternate user/assistant/user/assistant/...",
        b"Only user and assistant roles are supported!",
        b"System role not supported",
        b"System message must be at the beginning.",
    ),
    "does not support what this request asks for": (b"registry.ollama.ai/library/m does not support tools",),
}
"""A part of our sentence -> what engines say: vLLM, llama.cpp, TGI, TEI, Ollama, templates of Mistral and Gemma."""


@pytest.mark.parametrize(("ours", "theirs"), [(ours, each) for ours, said in EXPLAINED.items() for each in said])
def test_a_refusal_is_explained(ours: str, theirs: bytes) -> None:
    """R7: whoever is refused has to know what to change."""
    error = engine_refused(400, json.dumps({"error": {"message": theirs.decode()}}).encode(), None)
    assert ours in error.message
    assert error.status == 400


@pytest.mark.parametrize(
    ("theirs", "length", "prompt"),
    [
        (b"This model's maximum context length is 8192 tokens. However, you requested 9096 tokens", 8192, None),
        (
            b"maximum context length is 4096 tokens and your request has 2104 input tokens (2000 > 4096 - 2104)",
            4096,
            2104,
        ),
        (b"The decoder prompt (length 9254) is longer than the maximum model length of 4096.", 4096, 9254),
        (b"The input (9000 tokens) is longer than the model's context length (8192 tokens).", 8192, 9000),
        (b"request (9000 tokens) exceeds the available context size (8192 tokens), try increasing it", 8192, 9000),
        (b"Input validation error: `inputs` must have less than 512 tokens. Given: 700", 512, None),
        (b"`inputs` tokens + `max_new_tokens` must be <= 4096. Given: 6 `inputs` tokens and", 4096, 6),
        (b"the input length exceeds the context length", None, None),
    ],
)
def test_a_prompt_that_is_too_long_is_told_as_agents_know_it(
    theirs: bytes, length: int | None, prompt: int | None
) -> None:
    """R7: by code and phrases that make them shorten the conversation; of the engine's text, figures alone."""
    error = engine_refused(400, json.dumps({"error": {"message": theirs.decode()}}).encode(), None)
    said = f"is {length} tokens" if length else "is exceeded"
    assert (error.code, error.status) == ("context_length_exceeded", 400)
    assert error.message.startswith(f"The prompt is too long: this model's maximum context length {said}.")
    assert (f"The prompt has {prompt} tokens." in error.message) == (prompt is not None)


@pytest.mark.parametrize("theirs", [b"context length is %b tokens", b"no string, no context length: %b"])
def test_digits_without_end_in_an_engines_error_are_no_figure(theirs: bytes) -> None:
    """H8: engines quote what was sent; searching it must not take the loop's time."""
    began = time.process_time()
    error = engine_refused(400, theirs % (b"1" * 60_000), None)
    assert (error.code, time.process_time() - began < 2.0) == ("context_length_exceeded", True)
    assert "is exceeded." in error.message


def test_a_prompt_that_is_too_long_for_a_stream_is_told_before_it() -> None:
    """R7: SGLang says so in the first frame, under a status of success."""

    async def test(g: Gateway, engine: Engine) -> None:
        status, _, body = await g.ask(CHAT, chat(stream=True))
        assert (status, json.loads(body)["error"]["code"]) == (400, "context_length_exceeded")
        assert json.loads(body)["error"]["message"].endswith(
            "maximum context length is 8192 tokens. The prompt has 9000 tokens."
        )

    said = b'data: {"error":{"message":"The input (9000 tokens) is longer than the context length (8192 tokens)"}}\n\n'
    run(answering(SSE_HEAD + chunk(said) + chunk(DONE) + b"0\r\n\r\n"), test)


@pytest.mark.parametrize(
    ("path", "named", "added"),
    [
        (CHAT, {}, True),
        (CHAT, {"max_tokens": None, "n": 2}, True),
        (CHAT, {"max_completion_tokens": 9}, False),
        ("/v1/messages", {}, True),
        ("/api/chat", {"options": {"num_predict": -1}}, True),
        ("/api/chat", {"options": {"num_predict": 9}}, False),
        ("/v1/embeddings", {"input": "x"}, False),
    ],
)
def test_who_named_no_limit_is_told_the_one_that_does_not_fit(path: str, named: dict[str, Any], added: bool) -> None:
    """A6, R7: vLLM refuses a prompt with which the limit is longer than the context."""

    async def test(g: Gateway, engine: Engine) -> None:
        status, _, body = await g.ask(path, chat(**named))
        assert (status, b"The prompt is too long" in body) == (400, True)
        assert (b"asked for up to 4096 tokens" in body) == added

    text = b'{"error":{"message":"maximum context length is 8192 tokens"}}'
    run(answering(json_answer(text, "400 Bad Request")), test)


def test_the_slot_is_held_to_the_last_byte_and_the_newcomer_is_next() -> None:
    """S: 1 slot, one user with many queued, another arrives: served next, and not before the stream has ended."""
    gates: list[asyncio.Event] = []

    async def answer(head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        gate = asyncio.Event()
        gates.append(gate)
        writer.write(SSE_HEAD + chunk(frame("a")))
        await gate.wait()
        writer.write(chunk(USAGE_FRAME) + chunk(DONE) + b"0\r\n\r\n")

    async def test(g: Gateway, engine: Engine) -> None:
        heavy, light = g.key, await g.add_key(user="light")
        clients = []
        for key in (heavy, light):
            assert (await g.ask("/v1/models", key=key))[0] == 200  # verified keys are taken in order of arrival
        for n in range(30):
            client = await g.connect()
            await client.send(g.request(CHAT, chat(stream=True, user=f"heavy{n}"), key=heavy))
            clients.append(client)
        await _until(lambda: g.app.scheduler.stats().queued == 29)
        client = await g.connect()
        await client.send(g.request(CHAT, chat(stream=True, user="light"), key=light))
        clients.append(client)
        await _until(lambda: g.app.scheduler.stats().queued == 30)
        order = []
        for n in range(3):
            _, body = await asyncio.wait_for(engine.chats.get(), WAIT)
            order.append(json.loads(body)["user"])
            await _until(lambda n=n: len(gates) == n + 1)
            assert engine.chats.empty()
            assert g.app.scheduler.stats().running == 1
            gates[n].set()
        assert order == ["heavy0", "light", "heavy1"]
        for client in clients:
            client.close()

    run(answer, test, slots=1)


def test_a_queue_timeout_is_a_429_with_retry_after() -> None:
    """A10"""

    async def test(g: Gateway, engine: Engine) -> None:
        blocker = await g.connect()
        await blocker.send(g.request(CHAT, chat()))
        await engine.chats.get()
        other = await g.add_key(user="other")
        status, fields, body = await g.ask(CHAT, chat(), key=other, extra="x-queue-timeout: 0\r\n")
        assert status == 429
        assert json.loads(body)["error"]["code"] == "queue_timeout"
        assert 1 <= int(fields["retry-after"]) <= 60
        assert int(fields["retry-after-ms"]) >= 1000
        blocker.close()
        outcomes = {record["outcome"] for record in await g.records(2)}
        assert outcomes == {"timed_out", "client_gone"}

    run(hang, test, slots=1)


def test_the_place_at_entry_is_recorded_of_those_too_who_got_no_slot() -> None:
    """U1"""

    async def test(g: Gateway, engine: Engine) -> None:
        blocker = await g.connect()
        await blocker.send(g.request(CHAT, chat()))
        await engine.chats.get()
        for waiting in (1, 2, 3):
            client = await g.connect()
            await client.send(g.request(CHAT, chat()))
            while g.app.scheduler.stats().queued < waiting:
                await asyncio.sleep(0)
        await Client.close_all()
        rows = [record for record in await g.records(4) if not record["slot_us"]]
        assert sorted((row["rank"], row["queue_len"]) for row in rows) == [(0, 0), (1, 1), (2, 2)]

    run(hang, test, slots=1)


def test_silence_is_filled_with_comments_that_clients_ignore() -> None:
    """A11: while queued and while the engine thinks; the stream itself is unchanged."""

    async def answer(head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.3)
        await stream(head, body, reader, writer)

    async def test(g: Gateway, engine: Engine) -> None:
        status, _, body = await g.ask(CHAT, chat(stream=True))
        assert status == 200
        assert body.startswith(b": keep-alive\n\n")
        assert body.replace(b": keep-alive\n\n", b"") == frame("a") + frame("b") + frame("c") + DONE

    run(answer, test, timeouts=cfg.Timeouts(comment=0.05))


def test_settings_changed_at_runtime_reach_the_next_ticket() -> None:
    """S: queue timeout and class offsets are the scheduler's effective ones, not the file's."""

    async def test(g: Gateway, engine: Engine) -> None:
        await g.store.operate("setting", "queue_timeout", "0.1", 1, "me")
        await g.app.operations.look()
        blocker = await g.connect()
        await blocker.send(g.request(CHAT, chat()))
        await engine.chats.get()
        status, _, body = await g.ask(CHAT, chat(), key=await g.add_key(user="other"))
        assert (status, json.loads(body)["error"]["code"]) == (429, "queue_timeout")
        blocker.close()

    run(hang, test, slots=1)


def test_an_engine_that_dropped_all_kept_connections_costs_nobody_a_request() -> None:
    """R5, R6: a stale connection is tried once, then a new one, whatever `retries` says."""

    async def once(head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await plain(head, body, reader, writer)
        await writer.drain()
        if engine_restarts.is_set():
            raise ConnectionError

    engine_restarts = asyncio.Event()

    async def test(g: Gateway, engine: Engine) -> None:
        for _ in range(5):
            assert (await g.ask(CHAT, chat()))[0] == 200
        engine_restarts.set()
        for _ in range(5):
            assert (await g.ask(CHAT, chat()))[0] == 200

    run(once, test, upstream=cfg.Upstream(retries=0))


def test_an_unknown_model_may_be_a_404_by_choice() -> None:
    """K8: the same answer for forbidden and unknown, with the configured status."""

    async def test(g: Gateway, engine: Engine) -> None:
        narrow = await g.add_key(user="narrow", models=("other",))
        answers = [await g.ask(CHAT, chat(model=model), key=key) for model, key in (("none", g.key), ("m", narrow))]
        assert [status for status, _, _ in answers] == [404, 404]
        first, second = (re.sub(rb'"request_id":"[^"]*"', b"", body) for _, _, body in answers)
        assert first == second

    identity = cfg.Identity(argon2_time_cost=1, argon2_memory_kib=8, unknown_model_status=404)
    run(plain, test, identity=identity)


def test_authentication_and_gaps_are_counted() -> None:
    """O2"""

    async def test(g: Gateway, engine: Engine) -> None:
        await g.ask(CHAT, chat(stream=True))
        await g.ask("/v1/models", key="")
        await g.ask("/v1/models", key="fg_wrong")
        text = b"".join(g.app.metrics.exposition()[1]).decode()
        for line in ('result="ok"} 1', 'result="missing"} 1', 'result="invalid"} 1'):
            assert any(row.startswith("fairgate_auth") and line in row for row in text.splitlines()), line
        assert re.search(r'fairgate_inter_chunk_seconds_count\{model="m"\} [1-9]', text)

    run(stream, test)


def test_a_comment_comes_when_the_silence_is_as_long_as_said() -> None:
    """A11: within a quarter of `timeouts.comment`, wherever in its looks the stream fell silent; not before."""
    comment = 100.0

    async def answer(head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(SSE_HEAD + chunk(frame("a")))
        await writer.drain()
        await reader.read(1)

    async def test(g: Gateway, engine: Engine) -> None:
        server, time = g.app.server, 0.0
        server._timer.cancel()
        server.now = lambda: time
        for _ in range(3):
            client = await g.connect()
            await client.send(g.request(CHAT, chat(stream=True)))
            await client.head()
            (connection,) = g.busy()
            for spoken in (30.0, 55.0, 80.0):
                begun = time
                while time < begun + spoken:
                    time += 1.0
                    server._expire([c for c in server.connections if c.quiet_at <= time], time)
                connection.write(b"")
                connection.bytes_out += 1  # a frame passed
                silent, before = time, connection.bytes_out
                while connection.bytes_out == before:
                    time += 1.0
                    server._expire([c for c in server.connections if c.quiet_at <= time], time)
                assert comment <= time - silent <= comment * 1.25 + 1.0
            client.close()
            await g.idle()

    run(answer, test, timeouts=cfg.Timeouts(comment=comment))


def test_the_request_that_finds_out_that_the_disk_refuses_is_not_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """U3: nothing of it would be left if the process died now."""

    def refuse(*_: object) -> int:
        raise OSError(28, "No space left on device")

    async def test(g: Gateway, engine: Engine) -> None:
        monkeypatch.setattr(os, "pwrite", refuse)
        status, _, body = await g.ask(CHAT, chat())
        assert (status, json.loads(body)["error"]["code"]) == (503, "audit_unavailable")
        assert engine.chats.empty()
        monkeypatch.undo()
        async with asyncio.timeout(WAIT):
            while g.app.audit.full:
                await asyncio.sleep(0.01)
        assert (await g.ask(CHAT, chat()))[0] == 200
        assert [row["outcome"] for row in await g.records(2)] == ["refused", "done"]

    run(plain, test)
