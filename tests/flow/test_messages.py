"""Anthropic's Messages API through the gateway: what the engine gets, what is metered, who answers in whose shape."""

import asyncio
import json
from typing import Any

import pytest
import uvloop

from gateway import config as cfg
from tests.flow.engine import END, MESSAGE, SSE_HEAD, START, STOP, WORD, Engine, answering, chunk, json_answer, streamed
from tests.gateway import Gateway, chat, gateway
from tests.wire import WAIT

MESSAGES, COUNT = "/v1/messages", "/v1/messages/count_tokens"
VERSION = "anthropic-version: 2023-06-01\r\n"
Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter


async def asked(engine: Engine) -> tuple[dict[str, str], Any]:
    """Fields and body of the request that the engine got."""
    head, body = await asyncio.wait_for(engine.chats.get(), WAIT)
    fields = (line.split(": ", 1) for line in head.decode().split("\r\n")[1:] if line)
    return {name.lower(): value for name, value in fields}, json.loads(body)


def test_the_engine_gets_the_apis_own_fields_and_no_others() -> None:
    """R9, A6: version and features of the API pass, the key and what else the client says do not."""

    async def main() -> None:
        async with Engine(answering(json_answer(MESSAGE))) as engine, gateway(engine.url, "vllm") as g:
            api = f"{VERSION}anthropic-beta: a-1,b-2\r\nanthropic-else: 1\r\nX-Stainless-OS: x\r\n"
            body = chat(max_tokens=9_999_999, top_k=3)
            assert (await g.ask(MESSAGES + "?beta=true", body, key="", extra=f"x-api-key: {g.key}\r\n{api}"))[0] == 200
            fields, sent = await asked(engine)
            assert fields.keys() == {
                "host", "content-type", "accept", "accept-encoding", "x-request-id", "content-length",
                "anthropic-version", "anthropic-beta",
            }  # fmt: skip
            assert (fields["anthropic-version"], fields["anthropic-beta"]) == ("2023-06-01", "a-1,b-2")
            assert sent == body | {"max_tokens": 4096}
            await g.ask("/v1/chat/completions", chat(), extra=api)
            fields, _ = await asked(engine)
            assert not [name for name in fields if name.startswith("anthropic")]

    uvloop.run(main())


@pytest.mark.parametrize("stream", [True, False])
def test_what_the_engine_reports_is_recorded(stream: bool) -> None:
    """A3, U1: the cached tokens, which the API counts apart, are part of our prompt."""

    async def main() -> None:
        script = streamed(START, WORD, WORD, WORD, END, STOP) if stream else answering(json_answer(MESSAGE))
        async with Engine(script) as engine, gateway(engine.url, "llamacpp") as g:
            status, head, body = await g.ask(MESSAGES, chat(stream=stream))
            assert status == 200
            assert body == (START + WORD * 3 + END + STOP if stream else MESSAGE)
            assert head["request-id"] == head["x-request-id"]
            (row,) = await g.records(1)
            assert (row["dialect"], row["route"], row["outcome"]) == ("anthropic", MESSAGES, "done")
            assert (row["prompt_tokens"], row["cached_tokens"], row["completion_tokens"]) == (7, 2, 3)
            assert row["usage_estimated"] == 0

    uvloop.run(main())


def test_a_stream_without_its_last_event_is_an_error_and_an_estimate() -> None:
    """A5, A7: an `error` event in place of the end, and the tokens that came."""

    async def main() -> None:
        async with Engine(streamed(START, WORD, WORD)) as engine, gateway(engine.url, "ollama") as g:
            status, _, body = await g.ask(MESSAGES, chat(stream=True))
            assert status == 200
            told = body.removeprefix(START + WORD + WORD)
            assert told.startswith(b"event: error\ndata: ")
            error = json.loads(told.split(b"data: ")[1])
            assert (error["type"], error["error"]["type"], error["error"]["code"]) == (
                "error", "api_error", "upstream_broke",
            )  # fmt: skip
            (row,) = await g.records(1)
            assert (row["outcome"], row["error"]) == ("upstream_failed", "upstream_broke")
            assert (row["prompt_tokens"], row["cached_tokens"], row["completion_tokens"]) == (7, 2, 3)
            assert row["usage_estimated"] == 1

    uvloop.run(main())


def test_counting_is_a_request_of_no_tokens() -> None:
    """A3: it has its turn, its row and its scope; a 404 of an engine without the route is the answer."""

    async def main() -> None:
        count = json_answer(b'{"input_tokens":14}')
        async with Engine(answering(count)) as engine, gateway(engine.url, "vllm") as g:
            assert (await g.ask(COUNT, chat()))[::2] == (200, b'{"input_tokens":14}')
            assert (await asked(engine))[1] == chat()
            engine.answer = answering(json_answer(b"404 page not found", "404 Not Found"))
            status, _, body = await g.ask(COUNT, chat())
            assert (status, json.loads(body)["error"]["type"]) == (404, "not_found_error")
            for row, wanted in zip(await g.records(2), (200, 404), strict=True):
                assert (row["status"], row["prompt_tokens"], row["completion_tokens"]) == (wanted, 0, 0)

    uvloop.run(main())


@pytest.mark.parametrize("path", [COUNT, "/api/show"])
def test_engines_that_cannot_are_not_asked(path: str) -> None:
    """A3, K8: of a model that the key may use otherwise, that is no secret; of any other nothing is told."""

    async def main() -> None:
        async with Engine(answering(json_answer(MESSAGE))) as engine, gateway(engine.url, "openai") as g:
            own = await g.add_key(user="narrow", models=("else",))
            told = [await g.ask(path, chat(), key=key) for key in (g.key, own)]
            told.append(await g.ask(path, chat(model="unknown")))
            assert [status for status, _, _ in told] == [404, 403, 403]
            assert b"has no route for this kind of request" in told[0][2]
            assert all(b"model_not_available" in body for _, _, body in told[1:])
            assert told[0][1]["x-fairgate-error"] == "gateway"
            assert [row["outcome"] for row in await g.records(3)] == ["refused"] * 3
            assert engine.chats.empty()

    uvloop.run(main())


def test_the_named_user_is_billed() -> None:
    """K10: `metadata.user_id`, of keys that are marked for it only."""

    async def main() -> None:
        async with Engine(answering(json_answer(MESSAGE))) as engine, gateway(engine.url, "ollama") as g:
            named = chat(metadata={"user_id": "ann"})
            assert (await g.ask(MESSAGES, named))[0] == 200
            assert (await g.ask(MESSAGES, named, key=await g.add_key(user="ui", on_behalf=True)))[0] == 200
            first, second = await g.records(2)
            assert (first["user"] == "~ann", second["user"]) == (False, "~ann")

    uvloop.run(main())


async def error_of(g: Gateway, path: str, extra: str = "", **more: Any) -> tuple[int, Any, dict[str, str]]:
    status, head, body = await g.ask(path, extra=extra, **more)
    return status, json.loads(body), head


def test_errors_and_lists_are_in_the_shape_of_who_asks() -> None:
    """A5, A8: what lies below the API's path, and the list of models where the API's version is said."""

    async def main() -> None:
        async with Engine(answering(json_answer(MESSAGE))) as engine, gateway(engine.url, "ollama") as g:
            for path, status in {MESSAGES + "/batches": 404, MESSAGES: 405, "/v1/models/none": 403}.items():
                got, error, head = await error_of(g, path, VERSION)
                assert (got, error["type"], error["request_id"]) == (status, "error", head["request-id"]), path
            got, error, head = await error_of(g, MESSAGES, body=chat(), key="wrong")
            assert (got, error["error"]["type"]) == (401, "authentication_error")
            assert head["request-id"] == error["request_id"]
            assert "type" not in (await error_of(g, "/v1/models/none"))[1]
            assert "request-id" not in (await g.ask("/v1/models"))[1]
            listed = json.loads((await g.ask("/v1/models", extra=VERSION))[2])
            assert [model["id"] for model in listed["data"]] == ["m"]
            assert listed["first_id"] == listed["last_id"] == "m"
            assert json.loads((await g.ask("/v1/models"))[2])["object"] == "list"
            assert "models" in json.loads((await g.ask("/api/tags", extra=VERSION))[2])

    uvloop.run(main())


@pytest.mark.parametrize("early", [True, False])
def test_a_silent_stream_gets_comments_which_break_no_event(early: bool) -> None:
    """A11: whether or not the engine's head is there."""

    async def main() -> None:
        async def answer(head: bytes, body: bytes, reader: Reader, writer: Writer) -> None:
            writer.write(SSE_HEAD if early else b"")
            await engine.go.wait()
            writer.write((b"" if early else SSE_HEAD) + b"".join(map(chunk, (START, WORD, END, STOP))) + b"0\r\n\r\n")

        often = cfg.Timeouts(comment=0.05)
        async with Engine(answer) as engine, gateway(engine.url, "ollama", timeouts=often) as g:
            client = await g.connect()
            await client.send(g.request(MESSAGES, chat(stream=True)))
            status, head = await client.head()
            assert (status, head["request-id"]) == (200, head["x-request-id"])
            chunks = client.chunks()
            assert await anext(chunks) == b": keep-alive\n\n"
            engine.go.set()
            rest = b"".join([data async for data in chunks])
            assert rest.replace(b": keep-alive\n\n", b"") == START + WORD + END + STOP
            (row,) = await g.records(1)
            assert (row["prompt_tokens"], row["completion_tokens"]) == (7, 3)

    uvloop.run(main())
