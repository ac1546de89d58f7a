"""Floods of invalid keys: ten failures a minute of each address, wherever it is told from (K4, H9)."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable

import pytest
import uvloop

from gateway.config import Caps
from gateway.services.keyfmt import mint
from tests.flow.engine import Engine, plain
from tests.gateway import FAST_HASH, Gateway, chat, gateway
from tests.wire import Client

CHAT = "/v1/chat/completions"
LENGTH = b"Content-Length: 60000\r\n"
ALLOWED = FAST_HASH.failures_per_minute


async def invalid(g: Gateway, source: str = "127.0.0.1", extra: str = "") -> tuple[int, dict[str, str]]:
    """One request with a key that does not exist, from an address of its own."""
    client = Client(*await asyncio.open_connection("127.0.0.1", g.port, local_addr=(source, 0)))
    await client.send(g.request(CHAT, chat(), key=mint().token, extra=extra))
    status, fields, _ = await client.answer()
    client.close()
    return status, fields


async def several(g: Gateway, count: int, source: str = "127.0.0.1", extra: str = "") -> set[int]:
    """At once, so that nothing of the rate comes back meanwhile."""
    return {status for status, _ in await asyncio.gather(*(invalid(g, source, extra) for _ in range(count)))}


def test_one_address_is_throttled_and_a_proven_key_behind_it_goes_on() -> None:
    """K4"""

    async def main() -> None:
        async with Engine(plain) as engine, gateway(engine.url) as g:
            assert (await g.ask(CHAT, chat()))[0] == 200
            assert await several(g, ALLOWED) == {401}
            status, fields = await invalid(g)
            assert status == 429
            assert 1 <= float(fields["retry-after"]) <= 60
            assert (await g.ask(CHAT, chat()))[0] == 200
            hashed = g.app.keys.stats().hashed
            assert 429 in await several(g, 200)
            assert g.app.keys.stats().hashed == hashed, "a key that does not exist is never hashed"

    asyncio.run(main())


def test_each_address_has_failures_of_its_own() -> None:
    """K4: an attacker who has many does not use up those of others."""

    async def main() -> None:
        async with Engine(plain) as engine, gateway(engine.url) as g:
            sources = [f"127.0.{n}.7" for n in range(5)]
            answers = await asyncio.gather(*(invalid(g, source) for source in sources for _ in range(ALLOWED)))
            assert Counter(status for status, _ in answers) == {401: 5 * ALLOWED}
            assert {(await invalid(g, source))[0] for source in sources} == {429}
            assert (await invalid(g, "127.0.9.9"))[0] == 401

    asyncio.run(main())


def test_the_address_that_a_trusted_proxy_tells_is_the_one_that_counts() -> None:
    """H9: and one that a stranger writes is not."""

    async def main() -> None:
        async with Engine(plain) as engine, gateway(engine.url, trusted_proxies=["127.0.0.1/32"]) as g:
            told = [f"X-Forwarded-For: 198.51.100.{n}, 203.0.113.{n}\r\n" for n in range(5)]
            for extra in told:
                assert await several(g, ALLOWED, extra=extra) == {401}
                assert await several(g, 1, extra=extra) == {429}
            forged = [f"X-Forwarded-For: 192.0.2.{n}\r\n" for n in range(ALLOWED)]
            await asyncio.gather(*(invalid(g, "127.0.0.2", extra) for extra in forged))
            assert await several(g, 1, "127.0.0.2", "X-Forwarded-For: 192.0.2.99\r\n") == {429}

    asyncio.run(main())


def test_a_good_request_overtakes_a_flood_of_refusals() -> None:
    """K4: refusals take turns, and a request that came behind hundreds of bad ones does not wait for theirs."""

    async def main() -> None:
        async with Engine(plain) as engine, gateway(engine.url) as g:
            assert (await g.ask(CHAT, chat()))[0] == 200
            clients = [await g.connect() for _ in range(400)]
            for client in clients:
                await client.send(g.request(CHAT, chat(), key=""))
            good = asyncio.ensure_future(g.ask(CHAT, chat()))
            flood = asyncio.gather(*(client.answer() for client in clients))
            await asyncio.wait({good, flood}, return_when=asyncio.FIRST_COMPLETED)
            assert good.done()
            assert not flood.done()
            assert (await good)[0] == 200
            assert {status for status, _, _ in await flood} == {401}

    asyncio.run(main())


@pytest.mark.parametrize(
    "request_of",
    [
        lambda g: g.request(CHAT, b"x" * 60_000, key=""),
        lambda g: g.request(CHAT, b"x" * 60_000, key="", extra="Content-Length: 200000\r\n").replace(LENGTH, b""),
        lambda g: g.request("/v1/models", key="") * 800,
    ],
    ids=["a body", "half a body", "requests sent ahead"],
)
def test_strangers_who_wait_for_their_refusal_make_the_gateway_hold_nothing(
    request_of: Callable[[Gateway], bytes],
) -> None:
    """H3, K4: `caps.bodies_bytes` counts only what keys brought."""

    async def main() -> None:
        async with Engine(plain) as engine, gateway(engine.url) as g:
            clients = [await g.connect() for _ in range(400)]
            for client in clients:
                client.writer.write(request_of(g))
            flood = asyncio.gather(*(client.answer() for client in clients))
            most = busy = 0
            while not flood.done():
                most = max(most, sum(c.reader.buffered for c in g.app.server.connections))
                busy = max(busy, len(g.busy()))
                await asyncio.sleep(0)
            assert {status for status, _, _ in await flood} == {401}
            assert busy > 200
            assert most < 3_000_000  # of 15 to 24 millions sent: 50 refusals are told at once

    uvloop.run(main())


def test_bodies_that_come_with_keys_nobody_knows_take_half_the_room_at_most() -> None:
    """H3: while the keys are looked up; who is known has the rest."""
    caps = Caps(body_bytes=1_000_000, bodies_bytes=1_000_000)
    known = chat(padding="x" * 300_000)

    async def main() -> None:
        async with Engine(plain) as engine, gateway(engine.url, caps=caps) as g:
            assert (await g.ask(CHAT, known))[0] == 200
            clients = [await g.connect() for _ in range(300)]
            for client in clients:
                client.writer.write(g.request(CHAT, b"x" * 60_000, key=mint().token))
            flood = asyncio.gather(*(client.answer() for client in clients))
            most = 0
            while g.app.ledger.body_bytes < 500_000:
                await asyncio.sleep(0)
            good = asyncio.ensure_future(g.ask(CHAT, known))
            while not flood.done():
                most = max(most, sum(c.reader.buffered for c in g.app.server.connections))
                await asyncio.sleep(0)
            assert (await good)[0] == 200
            assert {status for status, _, _ in await flood} == {401, 503}
            assert most < 2_000_000  # of 18 millions sent
            await g.idle()

    uvloop.run(main())


def test_a_client_that_leaves_before_it_is_refused_is_recorded() -> None:
    """U1, K4: who hangs up while a refusal waits for its turn still leaves a row."""

    async def main() -> None:
        async with Engine(plain) as engine, gateway(engine.url) as g:
            clients = [await g.connect() for _ in range(200)]
            for client in clients:
                await client.send(g.request(CHAT, chat(), key=""))
            await clients[0].answer()
            for client in clients:
                client.close()
            rows = await g.records(len(clients))
            assert {row["outcome"] for row in rows} == {"refused", "client_gone"}

    asyncio.run(main())


def test_many_sources_do_not_hold_up_a_proven_key() -> None:
    """K4: whatever strangers cost is paid away from the loop, and bounded."""

    async def main() -> None:
        async with Engine(plain) as engine, gateway(engine.url, trusted_proxies=["127.0.0.1/32"]) as g:
            assert (await g.ask(CHAT, chat()))[0] == 200
            flood = asyncio.gather(
                *(invalid(g, extra=f"X-Forwarded-For: 10.0.{n >> 8}.{n & 255}\r\n") for n in range(300))
            )
            longest = 0.0
            while not flood.done():
                began = time.monotonic()
                assert (await g.ask(CHAT, chat()))[0] == 200
                longest = max(longest, time.monotonic() - began)
            assert Counter(status for status, _ in await flood).keys() <= {401, 503}
            assert longest < 5.0

    asyncio.run(main())
