"""The pieces of the hot path that are watched one by one: each a name, a call, and what must precede every call.

The pieces that need a running application come from a `Rig`; the others are picked from `wire` and `api`. Knows nothing
of clocks or counters: `test_parts` times them, `instructions` counts them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any
from unittest import mock

from bench.micro import api, wire
from bench.micro.rig import ANSWER, BODY, FRAME, STREAM_HEAD, Rig
from gateway.flow import phases
from gateway.flow.exchange import Exchange
from gateway.flow.settle import settle
from gateway.flow.ticket import ticket
from gateway.http1.wire import RequestReader

WATCHED = {
    "request SDK chat, 16 fields, 300 B": "parse a repeated request",
    "response head, 8 fields": "parse an answer's head",
    "walk one frame": "walk a chunk",
    "read openai 1 KB, stream": "read a body",
    "edit openai 1 KB, stream: insert": "edit a body",
    "tap.feed SSE": "tap a frame",
}


def nothing() -> None:
    """No preparation."""


@dataclass(frozen=True)
class Part:
    """`prepare` runs before each `call` and is not measured."""

    name: str
    call: Callable[[], object]
    prepare: Callable[[], object] = nothing


def parts(rig: Rig) -> Iterator[Part]:
    """All watched parts; `rig` is warm and has one pair of connections. Call them inside its loop."""
    found = dict((*wire.parts(), *api.parts()))
    for name, title in WATCHED.items():
        yield Part(title, found[name])
    yield _new_head()
    request = rig.request(900)
    yield Part("one exchange", partial(_exchange, rig, request))
    x = _unsettled(rig, request)
    settle(x, rig.gateway.app.runtime)
    yield from _services(rig, x)
    kept: list[Exchange] = []
    yield Part(
        "settle", lambda: settle(kept.pop(), rig.gateway.app.runtime), lambda: kept.append(_unsettled(rig, request))
    )
    yield Part("relay a chunk", _relayed(rig.beside(1)))


def _new_head() -> Part:
    """A head that no request before had."""
    post = (
        b"POST /v1/chat/completions HTTP/1.1\r\n" + wire.SDK_FIELDS + b"Content-Length: 300\r\nX-Number: %d\r\n\r\n%b"
    )
    numbers = count(10**6)
    ready: list[tuple[RequestReader, bytes]] = []

    def prepare() -> None:
        ready.append((RequestReader(), post % (next(numbers), b"x" * 300)))

    def call() -> None:
        reader, data = ready.pop()
        reader.feed(data)

    return Part("parse a new request", call, prepare)


def _exchange(rig: Rig, request: bytes) -> None:
    rig.ask(request)
    rig.answer(ANSWER)
    rig.check(BODY)


def _unsettled(rig: Rig, request: bytes) -> Exchange:
    """One exchange that has all behind it but its settlement."""
    kept: list[Exchange] = []
    with mock.patch.object(phases, "settle", lambda x, rt: kept.append(x)):
        _exchange(rig, request)
    return kept[0]


def _services(rig: Rig, x: Exchange) -> Iterator[Part]:
    app = rig.gateway.app
    token = rig.gateway.key.encode()
    yield Part("look a key up", partial(app.keys.lookup, token, "127.0.0.1"))
    asked = ticket(x, app.runtime)

    def submit() -> None:
        got: Any = app.scheduler.submit(asked)
        got.release(1.0)

    yield Part("submit and release", submit)
    yield Part("render the metrics", lambda: sum(map(len, app.metrics.exposition()[1])))


def _relayed(pair: Rig) -> Callable[[], None]:
    """An open stream; each call passes one frame."""
    pair.ask(pair.request(900, stream=True))
    pair.answer(STREAM_HEAD)
    (upstream, _), (_, client) = pair.engines[0], pair.clients[0]
    written = client.written

    def call() -> None:
        upstream.data_received(FRAME)
        written.clear()

    return call
