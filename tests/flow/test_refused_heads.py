"""What a client is told of a head that is no request: in the words of the API whose path it names (A5, H2)."""

import json
from typing import Any

import pytest
import uvloop

from gateway import config as cfg
from tests.flow.engine import Engine, plain
from tests.gateway import gateway

BROKEN = {
    "no host": (b"POST %b HTTP/1.1\r\n\r\n", 400),
    "two lengths": (b"POST %b HTTP/1.1\r\nHost: g\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
    "bare LF": (b"POST %b HTTP/1.1\nHost: g\n\n", 400),
    "version": (b"POST %b HTTP/3.0\r\nHost: g\r\n\r\n", 505),
    "method": (b"BREW %b HTTP/1.1\r\nHost: g\r\n\r\n", 501),
    "absolute": (b"POST http://other%b HTTP/1.1\r\nHost: g\r\n\r\n", 400),
    "long target": (b"GET %b?" + b"x" * 9000 + b" HTTP/1.1\r\n", 414),
    "long head": (b"GET %b HTTP/1.1\r\nHost: g\r\nX: " + b"x" * 40_000, 431),
    "half a head": (b"POST %b HTTP/1.1\r\nHost: g\r\n", 408),
}


def shape(answer: Any) -> str:
    """Whose error it is."""
    if isinstance(answer["error"], str):
        return "ollama"
    return "anthropic" if answer.get("type") == "error" else "openai"


@pytest.mark.parametrize("how", BROKEN)
def test_a_head_that_is_no_request_is_refused_in_the_words_of_its_path(how: str) -> None:
    """A5, H2"""
    broken, wanted = BROKEN[how]
    paths = {
        b"/api/chat": "ollama",
        b"/api/x": "ollama",
        b"/v1/messages": "anthropic",
        b"/v1/chat/completions": "openai",
    }

    async def main() -> None:
        timeouts = cfg.Timeouts(head=0.1)
        async with Engine(plain) as engine, gateway(engine.url, timeouts=timeouts) as g:
            for path, whose in paths.items():
                client = await g.connect()
                await client.send(broken % path)
                status, fields, body = await client.answer()
                assert (status, fields["connection"]) == (wanted, "close")
                assert shape(json.loads(body)) == whose

    uvloop.run(main())


def test_where_no_path_can_be_read_the_words_are_openais() -> None:
    async def main() -> None:
        async with Engine(plain) as engine, gateway(engine.url) as g:
            for garbage in (b"\x16\x03\x01\x02\r\n\r\n", b"GET\r\n\r\n", b"GET api/chat HTTP/1.1\r\n\r\n"):
                client = await g.connect()
                await client.send(garbage)
                status, _, body = await client.answer()
                assert (status, shape(json.loads(body))) == (400, "openai")

    uvloop.run(main())
