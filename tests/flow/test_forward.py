"""The attempts of one request on its backends: how many, what they are counted as, and which answers pass (R5, H8)."""

import asyncio
import json

import msgspec
import pytest
import uvloop

from gateway import config as cfg
from gateway.store.limits import Limits
from tests.flow.engine import PLAIN, Answer, Engine, deaf_port, hang, json_answer, plain
from tests.gateway import Gateway, chat, gateway
from tests.servers import free_port
from tests.wire import WAIT

CHAT = "/v1/chat/completions"
FAR_OFF = cfg.Discovery(interval=3600.0, eject_after=3)  # nothing is found out but by requests


@pytest.mark.parametrize("alone", [True, False])
def test_only_a_backend_among_others_is_given_up_for_another(alone: bool) -> None:
    """R5: one that is alone is tried once, and its failure told; each further attempt is counted."""

    async def main() -> None:
        async with Engine(plain) as good, Engine(plain) as dead:
            urls = {"dead": dead.url} if alone else {"dead": dead.url, "good": good.url}
            backends = [cfg.Backend(name=name, url=url, engine="openai", slots=1) for name, url in urls.items()]
            async with gateway("", backends=backends, discovery=FAR_OFF) as g:
                await dead.__aexit__()
                g.app.pools["dead"].close()
                status, _, body = await g.ask(CHAT, chat())
                code = json.loads(body).get("error", {}).get("code", "")
                assert (status, code) == ((502, "upstream_unreachable") if alone else (200, ""))
                assert g.app.backends.stats()[0].failures["connect"] == 1
                text = b"".join(g.app.metrics.exposition()[1])
                assert (b'fairgate_retries_total{backend="dead"} 1' in text) is not alone

    uvloop.run(main())


WOULD_NOT = [
    ("503 Service Unavailable", b'{"error":"server busy, please try again.  maximum pending requests exceeded"}'),
    ("503 Service Unavailable", b'{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}'),
    ("429 Too Many Requests", b'{"error":{"message":"slow down"}}'),
]


def refusing(line: str, text: bytes) -> Answer:
    """An engine that would not begin."""

    async def answer(head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(json_answer(text, line))

    return answer


@pytest.mark.parametrize(("line", "text"), WOULD_NOT)
@pytest.mark.parametrize("other", ["free", "taken", "refusing"])
def test_who_finds_an_engine_that_would_not_begin_gets_another(
    line: str, text: bytes, other: str, caplog: pytest.LogCaptureFixture
) -> None:
    """R5, R7: it has slots free all the time, and would refuse all who wait for one that serves. It is not ejected for
    what it answers, what it refused has cost nothing, and the log has its words."""

    async def main() -> None:
        async with Engine(refusing(line, text)) as full, Engine(plain) as good:
            good.answer = {"free": plain, "taken": held(good), "refusing": refusing(line, text)}[other]
            urls = {"full": (full.url, 9), "good": (good.url, 1 if other == "taken" else 8)}
            backends = [cfg.Backend(name=n, url=url, engine="openai", slots=slots) for n, (url, slots) in urls.items()]
            async with gateway("", backends=backends, discovery=FAR_OFF) as g:
                clients = [await g.connect() for _ in range(4)]
                for number, asked in enumerate((1, 2, 4, 7)):  # each newcomer sends who waits once more to the full one
                    await clients[number].send(g.request(CHAT, chat()))
                    async with asyncio.timeout(WAIT):
                        while other == "taken" and (g.app.scheduler.stats().queued, full.chats.qsize()) < (
                            number,
                            asked,
                        ):
                            await asyncio.sleep(0)
                good.go.set()
                status, served = (503, {"full", "good"}) if other == "refusing" else (200, {"good"})
                assert [(await client.answer())[0] for client in clients] == [status] * 4
                assert {row["backend"] for row in await g.records(4)} <= served
                assert [stats.state for stats in g.app.backends.stats()] == ["closed", "closed"]
                said = [vars(each)["cause"] for each in caplog.records if vars(each).get("backend") == "full"]
                assert said
                assert all(repr(text) in cause for cause in said)
                assert b'fairgate_retries_total{backend="full"} 0' not in b"".join(g.app.metrics.exposition()[1])
                await g.idle()

    uvloop.run(main())


LATER = [("37", 37, 45), ("3600", 50, 60), ("0", 1, 6), ("-5", 1, 6), ("9" * 400, 1, 6), ("Wed, 21 Oct 2026", 1, 6)]


@pytest.mark.parametrize(("later", "least", "most"), LATER)
@pytest.mark.parametrize(("line", "text"), WOULD_NOT)
def test_clients_come_back_when_the_engine_says_so(line: str, text: bytes, later: str, least: int, most: int) -> None:
    """A10, R7: within the minute that may be said, and spread."""

    async def main() -> None:
        async with Engine(refusing(f"{line}\r\nRetry-After: {later}", text)) as engine, gateway(engine.url) as g:
            _, fields, _ = await g.ask(CHAT, chat())
            assert least <= int(fields["retry-after"]) <= most
            assert least * 1000 <= int(fields["retry-after-ms"]) <= most * 1000

    uvloop.run(main())


def test_an_engine_that_would_not_begin_does_not_refuse_all_who_wait() -> None:
    """S, R7: a slot it refused is none for a while, and who waits finds it ready, or is told by its own time."""

    async def main() -> None:
        async with Engine(refusing(*WOULD_NOT[0])) as engine, gateway(engine.url, slots=1) as g:
            clients = [await g.connect() for _ in range(3)]
            for client in clients:
                await client.send(g.request(CHAT, chat()))
            first = asyncio.ensure_future(clients[0].answer())
            assert (await first)[0] == 503
            engine.answer = plain
            assert (g.app.scheduler.stats().running, g.app.scheduler.stats().queued) == (1, 2)
            assert [(await client.answer())[0] for client in clients[1:]] == [200, 200]
            assert [row["slot_us"] < 900_000 for row in await g.records(3)] == [True] * 3
            await g.idle()

    uvloop.run(main())


def test_a_client_that_leaves_the_queue_for_another_backend_had_no_slot() -> None:
    """U1: its record tells the whole wait, and nothing of the slot that it gave back."""

    async def main() -> None:
        async with Engine(hang) as good, Engine(plain) as dead:
            urls = {"dead": dead.url, "good": good.url}
            backends = [cfg.Backend(name=name, url=url, engine="openai", slots=1) for name, url in urls.items()]
            async with gateway("", backends=backends, discovery=FAR_OFF) as g:
                await dead.__aexit__()
                g.app.pools["dead"].close()
                running, waiting = await g.connect(), await g.connect()
                await running.send(g.request(CHAT, chat()))
                async with asyncio.timeout(WAIT):
                    await good.chats.get()
                    await waiting.send(g.request(CHAT, chat()))
                    while not g.app.scheduler.stats().queued:
                        await asyncio.sleep(0)
                waiting.reset()
                (row,) = await g.records(1)
                assert row["queue_us"] > 0
                assert row["slot_us"] == 0
                running.reset()
                await g.idle()

    uvloop.run(main())


def test_a_request_that_a_dead_connection_took_was_nobodys_work() -> None:
    """L2, U1: the engine reset a connection that was kept; the client left while another backend was waited for."""

    async def dies(head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not dead.go.is_set():
            await dead.go.wait()
            return await plain(head, body, reader, writer)
        pool = g.app.pools["dead"]
        pool.address = msgspec.structs.replace(pool.address, port=free_port())
        raise ConnectionError

    dead, good = Engine(dies), Engine(hang)
    g: Gateway

    async def main() -> None:
        nonlocal g
        async with good, dead:
            urls = {"dead": dead.url, "good": good.url}
            backends = [cfg.Backend(name=name, url=url, engine="openai", slots=1) for name, url in urls.items()]
            async with gateway("", backends=backends, discovery=FAR_OFF) as g:
                key = await g.add_key(limits=Limits(tokens_per_day=10_000))
                first, running, waiting = [await g.connect() for _ in range(3)]
                g.app.pools["dead"].rest = 0.0
                for client, engine in ((first, dead), (running, good)):
                    await client.send(g.request(CHAT, chat()))
                    await asyncio.wait_for(engine.chats.get(), WAIT)
                dead.go.set()
                assert (await first.answer())[0] == 200
                await waiting.send(g.request(CHAT, chat(), key=key))
                async with asyncio.timeout(WAIT):
                    while not g.app.scheduler.stats().queued:
                        await asyncio.sleep(0.01)
                waiting.reset()
                row = next(row for row in await g.records(2) if row["outcome"] == "client_gone")
                assert (row["prompt_tokens"], row["usage_estimated"], row["slot_us"]) == (0, 0, 0)
                await g.app.limits.close()
                assert [each.spent for each in await g.store.budgets(f"key:{row['key']}")] == [0]
                running.reset()
                await g.idle()

    uvloop.run(main())


@pytest.mark.parametrize("in_time", [True, False])
def test_all_waits_of_a_request_are_one_wait(in_time: bool) -> None:
    """U1, A11, S: what was waited for a backend that takes no connection is told and does not begin anew; what its dial
    took is not the gateway's own."""

    async def main() -> None:
        async with Engine(plain) as deaf, Engine(plain) as other:
            deaf.answer, other.answer = held(deaf), held(other)
            urls = {"deaf": deaf.url, "other": other.url}
            backends = [cfg.Backend(name=name, url=url, engine="openai", slots=1) for name, url in urls.items()]
            settings = {"upstream": cfg.Upstream(connect=0.5), "discovery": FAR_OFF, "backends": backends}
            async with gateway("", **settings) as g:
                clients = [await g.connect() for _ in range(3)]
                for client, engine in zip(clients, (deaf, other), strict=False):
                    await client.send(g.request(CHAT, chat()))
                    await asyncio.wait_for(engine.chats.get(), WAIT)
                pool = g.app.pools["deaf"]
                pool.address = msgspec.structs.replace(pool.address, port=deaf_port())
                await clients[2].send(g.request(CHAT, chat(), extra="x-queue-timeout: 1\r\n"))
                async with asyncio.timeout(WAIT):
                    while not g.app.scheduler.stats().queued:
                        await asyncio.sleep(0.01)
                    await asyncio.sleep(0.6)  # the wait that is measured
                    deaf.go.set()
                    assert (await clients[0].answer())[0] == 200
                    while g.app.backends.stats()[0].failures["connect"] < 1:
                        await asyncio.sleep(0.01)
                if in_time:
                    other.go.set()
                status, fields, _ = await clients[2].answer()
                assert status == (200 if in_time else 429)
                assert 600 <= int(fields["x-fairgate-queue-ms"]) <= 1500
                other.go.set()
                row = next(row for row in await g.records(3) if row["queue_us"] >= 600_000)
                assert (row["queue_us"] <= 1_500_000, row["status"]) == (True, status)
                if in_time:
                    assert 0.0 < float(fields["x-fairgate-overhead-ms"]) < 450.0
                await g.idle()

    uvloop.run(main())


def held(engine: Engine) -> Answer:
    """It answers when the test says so, and keeps no connection."""

    async def answer(head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await engine.go.wait()
        writer.write(json_answer(PLAIN).replace(b"\r\n", b"\r\nConnection: close\r\n", 1))

    return answer


@pytest.mark.parametrize(("answered", "told"), [("299 Odd", 299), ("300 Multiple Choices", 502)])
def test_an_answer_that_is_no_success_is_not_passed_on(answered: str, told: int) -> None:
    """H8"""

    async def answer(head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(json_answer(PLAIN, answered))

    async def main() -> None:
        async with Engine(answer) as engine, gateway(engine.url) as g:
            status, _, body = await g.ask(CHAT, chat())
            assert (status, body == PLAIN) == (told, told == 299)

    uvloop.run(main())


def test_an_engine_that_answers_between_its_failures_is_not_ejected() -> None:
    """R2: failures count in a row."""

    async def answer(head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if b"fail" in body:
            raise ConnectionError
        await plain(head, body, reader, writer)

    async def main() -> None:
        async with Engine(answer) as engine, gateway(engine.url, discovery=FAR_OFF) as g:
            for words in ("fail", "fail", "go on", "fail", "fail"):
                status, _, _ = await g.ask(CHAT, chat(user=words))
                assert status == (502 if words == "fail" else 200)
            assert [stats.state for stats in g.app.backends.stats()] == ["closed"]

    uvloop.run(main())


TOO_LONG = [
    "This model's maximum context length is 8192 tokens. However, you requested {total} tokens ({prompt} in the "
    "messages, {cap} in the completion). Please reduce the length of the messages or completion.",
    "'max_tokens' or 'max_completion_tokens' is too large: {cap}. This model's maximum context length is 8192 tokens "
    "and your request has {prompt} input tokens ({cap} > 8192 - {prompt}).",
    "You passed {prompt} input tokens and requested {cap} output tokens. However, the model's context length is only "
    "8192 tokens, resulting in a maximum input length of 4096 tokens. Please reduce the length of the input prompt.",
    "Requested token count exceeds the model's maximum context length of 8192 tokens. You requested a total of {total} "
    "tokens: {prompt} tokens from the input messages and {cap} tokens for the completion.",
    "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 8192. Given: {prompt} `inputs` tokens and "
    "{cap} `max_new_tokens`",
    "The prompt and {cap} tokens exceed the context size.",
]
"""vLLM of three ages, SGLang, TGI, and one that gives no figures."""


def of_context(text: str, prompt: int) -> Answer:
    """An engine with a context of 8192 tokens that refuses what may outgrow it."""

    async def answer(head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        cap = json.loads(body)["max_tokens"]
        if prompt + cap <= 8192:
            await plain(head, body, reader, writer)
        else:
            said = {"error": {"message": text.format(prompt=prompt, cap=cap, total=prompt + cap)}}
            writer.write(json_answer(json.dumps(said).encode(), "400 Bad Request"))

    return answer


@pytest.mark.parametrize(
    ("prompt", "named", "asked"),
    [
        (5000, {}, [4096, 3192]),
        (8191, {}, [4096, 1]),
        (9000, {}, [4096]),
        (5000, {"max_tokens": 4000}, [4000]),
        (5000, {"max_tokens": 9999}, [4096]),
    ],
    ids=["fits", "just fits", "a prompt too long", "a limit of its own", "a limit above the cap"],
)
@pytest.mark.parametrize("text", TOO_LONG[:-1])
def test_a_limit_that_the_gateway_added_is_lowered_to_what_is_left(
    text: str, prompt: int, named: dict[str, int], asked: list[int]
) -> None:
    """A6, R7: who named no limit is served as without the gateway; nobody else is asked for twice."""

    async def main() -> None:
        async with Engine(of_context(text, prompt)) as engine, gateway(engine.url, slots=1) as g:
            status, _, _ = await g.ask(CHAT, chat(**named))
            assert [json.loads((await engine.chats.get())[1])["max_tokens"] for _ in asked] == asked
            assert engine.chats.empty()
            assert status == (200 if len(asked) > 1 else 400)
            (row,) = await g.records(1)
            assert (row["status"], row["outcome"]) == (status, "done" if status == 200 else "refused")
            await g.idle()

    uvloop.run(main())


@pytest.mark.parametrize(("prompt", "asked"), [(5000, [4096, 2048]), (8000, [4096, 2048, 1024, 512, 256])])
def test_an_engine_that_does_not_say_what_is_left_is_asked_for_half(prompt: int, asked: list[int]) -> None:
    """A6: no further than there is sense in it."""

    async def main() -> None:
        async with Engine(of_context(TOO_LONG[-1], prompt)) as engine, gateway(engine.url, slots=1) as g:
            status, _, body = await g.ask(CHAT, chat())
            assert [json.loads((await engine.chats.get())[1])["max_tokens"] for _ in asked] == asked
            assert status == (200 if prompt == 5000 else 400)
            assert (b"asked for up to 256 tokens" in body) == (prompt == 8000)
            await g.idle()

    uvloop.run(main())


@pytest.mark.parametrize("line", ["500 Internal Server Error", "404 Not Found"])
def test_an_engine_that_only_fails_does_not_get_what_another_would_serve(line: str) -> None:
    """R2: it lists its models, and has its slots free all the time. Whom it failed is told; it is not ejected for what
    it answers, and what it serves in between begins the count anew."""

    async def main() -> None:
        async with Engine(refusing(line, b'{"error":"out of order"}')) as bad, Engine(plain) as good:
            backends = [cfg.Backend(name=n, url=e.url, engine="openai", slots=2) for n, e in (("a", bad), ("b", good))]
            async with gateway("", backends=backends, discovery=FAR_OFF) as g:
                answers = await asyncio.gather(*(g.ask(CHAT, chat()) for _ in range(40)))
                failed = [status for status, _, _ in answers if status != 200]
                assert len(failed) == bad.chats.qsize() == 4  # two before it counts, then one for each of its slots
                assert g.app.runtime.failing == {"a": 4}
                assert [stats.state for stats in g.app.backends.stats()] == ["closed", "closed"]
                bad.answer = plain
                async with asyncio.timeout(WAIT):
                    while g.app.runtime.failing:
                        assert (await g.ask(CHAT, chat()))[0] == 200
                await g.idle()

    uvloop.run(main())


def test_an_engine_that_is_alone_fails_at_once_all_that_it_fails() -> None:
    """R2: who waits for its slots would only be told later."""

    async def main() -> None:
        async with Engine(refusing("500 Internal Server Error", b"{}")) as engine, gateway(engine.url, slots=1) as g:
            assert [(await g.ask(CHAT, chat()))[0] for _ in range(8)] == [502] * 8
            assert g.app.scheduler.stats().running == 0
            await g.idle()

    uvloop.run(main())
