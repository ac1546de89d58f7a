"""Clients that stall, flood or bomb, in their hundreds: each gets its end, and others keep being served (H3, H4)."""

import asyncio

import pytest
import uvloop

from gateway import config as cfg
from tests.flow.engine import DONE, Engine, plain, stream
from tests.flow.run import run
from tests.gateway import Gateway, chat, gateway
from tests.wire import WAIT, Client

CHAT = "/v1/chat/completions"
CROWD = 300


async def served(g: Gateway) -> None:
    """Somebody else's stream, whole."""
    status, _, body = await g.ask(CHAT, chat(stream=True))
    assert status == 200
    assert body.endswith(DONE)


def later(g: Gateway, seconds: float) -> None:
    """Move the clock of the client side for one sweep."""
    loop = asyncio.get_running_loop()
    g.app.server.now = lambda: loop.time() + seconds
    g.app.server.sweep()
    g.app.server.now = loop.time


HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: g\r\n"
BOMBS = {
    "100 000 fields": (HEAD + b"a: b\r\n" * 100_000 + b"\r\n", 431),
    "one endless field": (HEAD + b"a: " + b"x" * 5_000_000, 431),
    "an endless field name": (HEAD + b"x" * 5_000_000, 431),
    "an endless target": (b"GET /" + b"x" * 5_000_000, 414),
    "101 fields": (HEAD + b"a: b\r\n" * 100 + b"\r\n", 431),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_head_that_is_too_much_is_refused_before_it_is_held(bomb: str) -> None:
    """H3: a status, the end of the connection, and no more than the cap was kept."""
    wire, expected = BOMBS[bomb]

    async def test(g: Gateway, _: Engine) -> None:
        client = await g.connect()
        client.writer.write(wire)  # not drained: the gateway need not take it
        assert (await client.answer())[0] == expected
        assert await client.at_end()
        await served(g)

    run(stream, test)


def test_a_body_in_single_byte_chunks_is_read_whole() -> None:
    """H1: framing is six times the payload here, and only the payload counts towards the cap."""

    async def test(g: Gateway, _: Engine) -> None:
        text = g.request(CHAT, chat(stream=True, user="x" * 5000)).partition(b"\r\n\r\n")[2]
        head = g.request(CHAT, extra="Transfer-Encoding: chunked\r\n", method="POST")
        client = await g.connect()
        await client.send(head + b"".join(b"1\r\n%c\r\n" % byte for byte in text) + b"0\r\n\r\n")
        status, _, body = await client.answer()
        assert status == 200
        assert body.endswith(DONE)

    run(stream, test, caps=cfg.Caps(body_bytes=8192))


STALLS = {
    "nothing": b"",
    "half a head": HEAD + b"X-Filler: a",
    "half a body": None,
    "idle after an answer": b"GET /healthz HTTP/1.1\r\nHost: g\r\n\r\n",
}


@pytest.mark.parametrize("stall", STALLS)
def test_a_crowd_that_stalls_does_not_keep_others_waiting(stall: str) -> None:
    """H4: hundreds at once, all ended by their timer in turns; the loop is never held for all of them."""

    async def test(g: Gateway, _: Engine) -> None:
        wire = STALLS[stall]
        clients = [await g.connect() for _ in range(CROWD)]
        for client in clients:
            await client.send(g.request(CHAT, chat(stream=True))[:-1] if wire is None else wire)
            if stall.startswith("idle"):
                assert (await client.answer())[0] == 200
        await served(g)
        async with asyncio.timeout(WAIT):
            while len(g.app.server.connections) < CROWD:
                await asyncio.sleep(0)
        await served(g)
        if wire is None:
            async with asyncio.timeout(WAIT):
                while len(g.busy()) < CROWD:
                    await asyncio.sleep(0)
        later(g, 80)
        ended = await asyncio.gather(*(client.rest() for client in clients))
        expected = b"HTTP/1.1 408" if stall.startswith("half") else b""
        assert all(raw.startswith(expected) if expected else not raw for raw in ended)
        assert g.app.server.stats().timed_out >= CROWD
        assert g.app.ledger.body_bytes == 0
        await served(g)

    run(stream, test, caps=cfg.Caps(connections_per_key=CROWD))


def test_a_flood_of_connections_is_refused_and_those_inside_are_served() -> None:
    """H3: each connection over the cap gets a 503 and its end."""

    async def test(g: Gateway, _: Engine) -> None:
        inside = await g.connect()
        await inside.send(g.request("/healthz"))
        assert (await inside.answer())[0] == 200
        crowd = await asyncio.gather(*(Client.connect(g.port) for _ in range(CROWD)))
        answers = await asyncio.gather(*(client.rest() for client in crowd[-100:]))
        assert all(raw.startswith(b"HTTP/1.1 503") for raw in answers)
        for _ in range(3):
            await inside.send(g.request(CHAT, chat(stream=True)))
            assert (await inside.answer())[2].endswith(DONE)
        assert g.app.server.stats().open <= 51

    run(stream, test, caps=cfg.Caps(connections=50))


def test_two_thousand_idle_connections_cost_others_nothing() -> None:
    """H3: kept connections are a set entry and a deadline, no timer each."""

    async def test(g: Gateway, _: Engine) -> None:
        crowd = []
        for _ in range(20):
            crowd += await asyncio.gather(*(Client.connect(g.port) for _ in range(100)))
        for client in crowd:
            client.writer.write(b"GET /healthz HTTP/1.1\r\nHost: g\r\n\r\n")
        assert {(await client.answer())[0] for client in crowd} == {200}
        assert g.app.server.stats().open == 2000
        for _ in range(5):
            await served(g)
        later(g, 76)
        assert all(await asyncio.gather(*(client.at_end() for client in crowd)))

    run(stream, test, caps=cfg.Caps(connections_per_ip=5000))


def test_a_body_as_deep_as_can_be_read_is_answered_or_refused() -> None:
    """H5: it is read more than once, and the stack is not equally deep each time."""

    async def main() -> None:
        async with Engine(plain) as engine, gateway(engine.url) as g:
            for depth in range(900, 1000):
                body = b'{"model":"m","prompt":["",%b],"max_tokens":9999999}' % (b"[" * depth + b"]" * depth)
                status, _, told = await g.ask("/v1/completions", body)
                assert status == 200 or (status == 400 and b"nested too deeply" in told), (depth, told)
            await g.idle()

    uvloop.run(main())
