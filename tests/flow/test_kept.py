"""What a kept connection remembers of one request (its head, key, route, lent parsers) changes nothing for the next.

Requests of many kinds follow each other at random on one connection, every feature on. Each must be answered, sent on
and recorded exactly as on a connection of its own.
"""

import asyncio
import os
import random
import re
from typing import Any

import uvloop

from gateway import config as cfg
from gateway.store.limits import Limits
from tests.collector import collector
from tests.flow.engine import Engine, json_answer, plain, stream
from tests.gateway import Gateway, chat, gateway
from tests.services.keyring import revoke
from tests.wire import Client

SEED = int(os.environ.get("FAIRGATE_TEST_SEED") or random.SystemRandom().randrange(2**32))
STEPS = 150
CHAT = "/v1/chat/completions"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
VARYING_FIELDS = re.compile(
    "date|content-length|retry-after.*|x-fairgate-(queue|overhead)-ms|x-ratelimit-(remaining|reset)-.*"
)
VARYING_TEXT = re.compile(
    rf"\b[0-9a-f]{{12}}-\d+\b|(?<={TRACE}-)[0-9a-f]{{16}}|\b00-(?!{TRACE})[0-9a-f]{{32}}-[0-9a-f]{{16}}"
)
ROW = (
    "tenant", "user", "ip", "dialect", "route", "method", "model_asked", "model_served", "backend", "status", "outcome",
    "error", "prompt_tokens", "completion_tokens", "usage_estimated", "bytes_in",
)  # fmt: skip
EVERYTHING: dict[str, Any] = {
    "cors": cfg.Cors(origins=["https://chat.example"]),
    "hsts": True,
    "trusted_proxies": ["127.0.0.0/8"],
    "aliases": {"gone": "other"},
    "identity": cfg.Identity(argon2_time_cost=1, argon2_memory_kib=8, failures_per_minute=10_000),
}
Seen = tuple[Any, ...]


async def answer(head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    if b"fail" in body:
        writer.write(json_answer(b"{}", "500 Internal Server Error"))
    else:
        await (stream if b'"stream": true' in body else plain)(head, body, reader, writer)


async def requests(g: Gateway) -> list[bytes]:
    """One of each kind; some are the same head with another body."""
    limited = await g.add_key(user="limited", limits=Limits(requests_per_minute=100_000, tokens_per_minute=10**9))
    forced = await g.add_key(user="forced", force_model="m")
    behalf = await g.add_key(user="ui", on_behalf=True)
    inside = await g.add_key(user="inside", cidrs=("10.0.0.0/8",))
    lists = await g.add_key(user="lists", scopes=("ollama",))
    body = b'{"model":"m","messages":[]}'
    chunked = g.request(CHAT, method="POST", extra="Transfer-Encoding: chunked\r\n") + b"%x\r\n%b\r\n" % (
        len(body),
        body,
    )
    origin = "Origin: https://chat.example\r\n"
    return [
        g.request(CHAT, chat()),
        g.request(CHAT, chat(user="somebody")),
        g.request(CHAT, chat(), extra=f"traceparent: 00-{TRACE}-00f067aa0ba902b7-01\r\ntracestate: a=1\r\n"),
        g.request(CHAT, chat(stream=True)),
        g.request(CHAT, chat(stream=True, stream_options={"include_usage": True})),
        g.request(CHAT, chat(model="fail")),
        g.request(CHAT, chat(model="other")),
        g.request(CHAT, chat(model="gone")),
        g.request(CHAT, b"[]"),
        g.request(CHAT, chat(), key=limited),
        g.request(CHAT, chat(), key=limited, extra="x-queue-timeout: 3\r\n"),
        g.request(CHAT, chat(), key=limited, extra="x-queue-timeout: x\r\n"),
        g.request(CHAT, chat(model="gone"), key=forced),
        g.request(CHAT, chat(user="ann"), key=behalf),
        g.request(CHAT, chat(), key=behalf, extra="X-OpenWebUI-User-Email: bob\r\n"),
        g.request(CHAT, chat(), key=inside, extra="X-Forwarded-For: 10.1.2.3\r\n"),
        g.request(CHAT, chat(), key=inside, extra="X-Forwarded-For: 11.1.2.3\r\n"),
        g.request(CHAT, chat(), key=lists),
        g.request(CHAT, chat(), key="fg_wrong"),
        g.request(CHAT, chat(), key=""),
        g.request(CHAT, chat(), extra=origin),
        g.request(CHAT, method="OPTIONS", key="", extra=f"{origin}Access-Control-Request-Method: POST\r\n"),
        chunked + b"0\r\n\r\n",
        chunked + b"0\r\nConnection: close\r\n\r\n",
        g.request(CHAT, body, extra="Expect: 100-continue\r\n"),
        g.request(CHAT, body, extra="X-Request-ID: mine-1\r\n"),
        g.request(CHAT),
        g.request("/v1/models"),
        g.request("/v1/models", key=lists),
        g.request("/v1/models/m"),
        g.request("/api/chat", chat(stream=False)),
        g.request("/api/pull", {"model": "m"}),
        g.request("/nowhere"),
        g.request("/healthz", key=""),
    ]  # fmt: skip


class Talk:
    """Asks one request after the other."""

    def __init__(self, g: Gateway, engine: Engine) -> None:
        self.g, self.engine = g, engine
        self.asked = 0
        self.closed = False  # the last answer ended its connection

    async def ask(self, client: Client, request: bytes) -> Seen:
        """What the client saw and what the engine got."""
        await client.send(request)
        status, fields, payload = await client.answer()
        if status == 100:
            status, fields, payload = await client.answer()
        self.asked += 1
        self.closed = fields.get("connection") == "close"
        got = [head + body for head, body in (self.engine.chats.get_nowait() for _ in range(self.engine.chats.qsize()))]
        kept = {name: value for name, value in fields.items() if not VARYING_FIELDS.fullmatch(name)}
        texts = [*map(repr, kept.items()), *(part.decode("latin-1") for part in (payload, *got))]
        return status, *(VARYING_TEXT.sub("ID", text) for text in texts)

    async def rows(self) -> list[Seen]:
        """The rows of all that was asked, in its order."""
        return [tuple(row[name] for name in ROW) for row in await self.g.records(self.asked)]


def test_requests_of_a_kept_connection_do_not_colour_each_other() -> None:
    """Seen by the client, by the engine, and in the trail."""
    print(f"FAIRGATE_TEST_SEED={SEED}")
    draw = random.Random(SEED)

    async def test(g: Gateway, engine: Engine) -> None:
        talk, kinds = Talk(g, engine), await requests(g)
        for request in kinds:  # once before: keys are verified, what is asked for the first time has been
            await talk.ask(await g.connect(), request)
        alone = [await talk.ask(await g.connect(), request) for request in kinds]
        client, walk = await g.connect(), []
        for _ in range(STEPS):
            kind = draw.choice(walk[-3:]) if walk and draw.random() < 0.5 else draw.randrange(len(kinds))
            walk.append(kind)
            seen = await talk.ask(client, kinds[kind])
            assert seen == alone[kind], walk
            if talk.closed:
                client = await g.connect()
        rows = await talk.rows()
        assert rows[2 * len(kinds) :] == [rows[len(kinds) + kind] for kind in walk]

    async def main() -> None:
        async with collector() as there, Engine(answer, ("m", "fail", "other")) as engine:
            settings = EVERYTHING | {"tracing": cfg.Tracing(endpoint=there.url)}
            async with gateway(engine.url, **settings) as g:
                await test(g, engine)
                await g.idle()

    uvloop.run(main())


def test_a_connection_forgets_a_key_that_is_revoked() -> None:
    """K3: at once where it was revoked, though the head is the one that was let in."""

    async def main() -> None:
        async with Engine(plain) as engine, gateway(engine.url) as g:
            client, wire = await g.connect(), g.request(CHAT, chat())
            statuses = []
            for revoked in (False, False, False, True):
                if revoked:
                    for key in await g.store.keys():
                        assert await revoke(g.store, g.app.keys, key.id)
                await client.send(wire)
                statuses.append((await client.answer())[0])
            assert statuses == [200, 200, 200, 401]

    uvloop.run(main())
