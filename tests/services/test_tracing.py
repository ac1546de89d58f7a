"""Trace context, sampling, the bounded queue, and the spans as the SDK's own in-memory exporter sees them (O4)."""

import asyncio
import io
import itertools
import socket
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from gateway import config as cfg
from gateway.services.record import AuditRecord
from gateway.services.spans import ANSWER_BYTES, ATTRIBUTES, Session, SpanExport, otlp
from gateway.services.tracing import BATCH, Ended, Trace, TracingService, open_tracing, parent_of, passed_on
from tests.wire import WAIT

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
VALID = f"00-{TRACE}-{SPAN}-01".encode()
ON = cfg.Tracing(endpoint="http://127.0.0.1:1/v1/traces")


# ---- W3C Trace Context


@pytest.mark.parametrize(
    "field",
    [
        b"",
        b"00",
        VALID.upper(),
        VALID + b"-00",  # version 00 ends with its flags
        b"ff" + VALID[2:],
        b"00-" + b"0" * 32 + VALID[35:],
        VALID[:36] + b"0" * 16 + b"-01",
        VALID[:-3],
        VALID[:-1] + b"g",
        VALID + b", " + VALID,  # two fields, joined by the wire
        b"01" + VALID[2:] + b"-" + b"x" * 300,
        b" " + VALID,
        VALID + b"\n",
    ],
)
def test_what_is_no_traceparent_goes_nowhere(field: bytes) -> None:
    """O4: neither on to the engine nor into a trace; its tracestate goes with it."""
    headers = {b"traceparent": field, b"tracestate": b"a=1"}
    assert parent_of(headers) is None
    assert passed_on(headers) == b""


def test_a_valid_one_passes_unchanged_of_later_versions_too() -> None:
    assert passed_on({b"traceparent": VALID}) == b"traceparent: %b\r\n" % VALID
    later = b"cc" + VALID[2:] + b"-what-the-future-brings"
    assert passed_on({b"traceparent": later}) == b"traceparent: %b\r\n" % later
    parent = parent_of({b"traceparent": later})
    assert parent is not None
    assert (parent.trace_id, parent.span_id, parent.sampled) == (int(TRACE, 16), int(SPAN, 16), True)
    assert passed_on({}) == b""


@pytest.mark.parametrize("state", [b"congo=t61rcWkgMzE", b"rojo=00f067aa0ba902b7, congo=t61 r", b"fw5@dt=F;1,,a=b"])
def test_a_valid_tracestate_passes_with_it(state: bytes) -> None:
    lines = passed_on({b"traceparent": VALID, b"tracestate": state})
    assert lines.endswith(b"\r\ntracestate: %b\r\n" % state)
    assert passed_on({b"tracestate": state}) == b""


@pytest.mark.parametrize(
    "state",
    [b"novalue", b"UPPER=1", b"a=b=c", b"a=1\x7f", b"a=\xff", b"a=1,b", b"a=" + b"x" * 600, b",".join([b"a=1"] * 33)],
)
def test_an_invalid_tracestate_is_dropped_without_the_traceparent(state: bytes) -> None:
    assert passed_on({b"traceparent": VALID, b"tracestate": state}) == b"traceparent: %b\r\n" % VALID


@given(st.binary(max_size=80), st.binary(max_size=80))
def test_nothing_a_client_sends_adds_a_line(parent: bytes, state: bytes) -> None:
    """H8: at most two field lines, whatever came."""
    for headers in ({b"traceparent": parent, b"tracestate": state}, {b"traceparent": VALID, b"tracestate": state}):
        lines = passed_on(headers)
        assert lines.count(b"\n") == lines.count(b"\r") == lines.count(b"\r\n") <= 2
        assert lines.isascii()


# ---- sampling


def test_the_parent_decides_and_new_traces_are_kept_by_their_share() -> None:
    none, all_of_them = (TracingService(cfg.Tracing(ratio=ratio), Sink()) for ratio in (0.0, 1.0))
    kept = none.begin({b"traceparent": VALID, b"tracestate": b"a=1"})
    assert (kept.sampled, f"{kept.trace_id:032x}", f"{kept.parent_id:016x}") == (True, TRACE, SPAN)
    assert kept.fields == f"traceparent: 00-{TRACE}-{kept.upstream_id:016x}-01\r\ntracestate: a=1\r\n".encode()
    assert not all_of_them.begin({b"traceparent": VALID[:-1] + b"0"}).sampled
    assert all_of_them.begin({}).sampled
    fresh = none.begin({b"tracestate": b"a=1"})
    assert (fresh.sampled, fresh.parent_id) == (False, 0)
    assert fresh.fields == f"traceparent: 00-{fresh.trace_id:032x}-{fresh.upstream_id:016x}-00\r\n".encode()
    third = TracingService(cfg.Tracing(ratio=0.3), Sink())
    share = sum(third.begin({}).sampled for _ in range(4000)) / 4000
    assert 0.25 < share < 0.35  # 6.9 standard deviations: once in 10^11 runs


# ---- the queue


class Sink:
    """An exporter that does what a test says, and remembers what it was given."""

    def __init__(self, act: Callable[[list[Ended]], bool] = lambda batch: True) -> None:
        self.act = act
        self.seen: list[Ended] = []
        self.down = threading.Event()

    def export(self, batch: list[Ended]) -> bool:
        self.seen += batch
        return self.act(batch)

    def shutdown(self) -> None:
        self.down.set()


def a_trace(**more: Any) -> Trace:
    facts = {"trace_id": int(TRACE, 16), "parent_id": 0, "span_id": 5, "upstream_id": 6, "sampled": True, "fields": b""}
    return Trace(**(facts | more))


def a_request(**row: Any) -> Ended:
    facts = {
        "id": "r1", "started_at": 1_700_000_000_000_000, "tenant": "tenant-7", "user": "user-8", "key": "key-9",
        "ip": "192.0.2.7", "route": "/v1/chat/completions", "method": "POST", "model_asked": "llama3",
        "model_served": "llama3:8b", "backend": "gpu1", "status": 200, "outcome": "done", "prompt_tokens": 7,
        "completion_tokens": 3,
    }  # fmt: skip
    record = AuditRecord(**(facts | row))
    return Ended(a_trace(), record, "chat", "ollama", "llama3", 10.0, 10.1, 10.4, 10.5, 11.0, 12.0)


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, WAIT * 2))


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT):
        while not true():
            await asyncio.sleep(0.005)


def test_everything_arrives_in_order_and_a_stop_exports_the_rest() -> None:
    async def main() -> None:
        sink = Sink()
        service = TracingService(ON, sink)
        service.start()
        for number in range(BATCH * 3 + 5):
            service.ended(a_request(id=str(number)))
        await service.close()
        assert [request.row.id for request in sink.seen] == [str(number) for number in range(BATCH * 3 + 5)]
        assert service.stats().exported == BATCH * 3 + 5
        assert (service.stats().waiting, service.stats().dropped, service.stats().failed) == (0, 0, 0)
        assert sink.down.is_set()

    run(main())


def test_a_hanging_exporter_holds_nobody_up_and_losses_are_counted() -> None:
    """O4: a full queue drops; a stop does not wait for the collector longer than it says."""

    async def main() -> None:
        sink = Sink(lambda batch: sink.down.wait(WAIT * 4))
        service = TracingService(cfg.Tracing(queue=BATCH * 2), sink)
        service.start()
        for _ in range(BATCH + 1):
            service.ended(a_request())
        await until(lambda: len(sink.seen) >= BATCH)
        began = time.monotonic()
        for _ in range(10_000):
            service.ended(a_request())
        assert time.monotonic() - began < 1.0
        stats = service.stats()
        assert stats.waiting == BATCH * 2
        assert stats.waiting + stats.dropped + len(sink.seen) == 10_000 + BATCH + 1
        began = time.monotonic()
        await service.close()
        assert time.monotonic() - began < WAIT
        assert service.stats().waiting == 0

    run(main())


def test_a_few_traces_wait_for_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """O4: those that end during an export are no batch of their own; a full one does not wait, and neither does a
    stop."""
    every = 0.2
    monkeypatch.setattr("gateway.services.tracing.EVERY", every)
    begun: list[float] = []
    sizes: list[int] = []

    def act(batch: list[Ended]) -> bool:
        begun.append(time.monotonic())
        sizes.append(len(batch))
        if len(begun) < 4:
            service.ended(a_request())
        return True

    async def main() -> None:
        service.start()
        service.ended(a_request())
        await until(lambda: len(begun) == 4)
        for _ in range(BATCH + 1):
            service.ended(a_request())
        await until(lambda: sum(sizes) == 4 + BATCH + 1)
        service.ended(a_request())
        await service.close()

    service = TracingService(ON, Sink(act))
    run(main())
    gaps = [after - before for before, after in itertools.pairwise(begun)]
    assert sizes[:4] == [1, 1, 1, 1]
    assert all(gap >= every for gap, size in zip(gaps[:-1], sizes[1:-1], strict=True) if size < BATCH)
    assert sum(sizes) == 4 + BATCH + 2


@pytest.mark.parametrize("raises", [True, False])
def test_an_exporter_that_fails_is_counted_and_asked_again(raises: bool) -> None:
    def act(batch: list[Ended]) -> bool:
        if len(sink.seen) == len(batch):
            return bool(1 / 0) if raises else False
        return True

    async def main() -> None:
        service = TracingService(ON, sink)
        service.start()
        service.ended(a_request())
        await until(lambda: service.stats().failed == 1)
        service.ended(a_request())
        await until(lambda: service.stats().exported == 1)
        await service.close()

    sink = Sink(act)
    run(main())


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gateway.services.spans", None)
    assert open_tracing(cfg.Tracing()) is None
    with pytest.raises(cfg.ConfigError, match=r"tracing.endpoint.*fairgate\[otel\]"):
        open_tracing(ON)


class Answering(threading.Thread):
    """A collector that gives these bytes to each export, for two of them. `sent`: how many it could send in all;
    `connections` that were made."""

    def __init__(self, head: bytes, body: bytes = b"") -> None:
        super().__init__(daemon=True)
        self.sent = self.connections = 0
        self._answer = head + b"\r\n\r\n", body
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1/traces"
        self.start()

    def run(self) -> None:
        exports = 0
        while exports < 2:
            link, _ = self._listener.accept()
            self.connections += 1
            with link, link.makefile("rb") as lines:
                link.settimeout(WAIT)
                while exports < 2 and (length := self._length(lines)) is not None:
                    lines.read(length)
                    exports += 1
                    if not self._whole(link):
                        break
        self._listener.close()

    def _length(self, lines: io.BufferedReader) -> int | None:
        """Of the body that comes; None at the end of the connection."""
        fields = [line.lower() for line in iter(lines.readline, b"\r\n") if line] if lines.peek(1) else []
        return next((int(field[15:]) for field in fields if field.startswith(b"content-length:")), None)

    def _whole(self, link: socket.socket) -> bool:
        head, body = self._answer
        link.sendall(head)
        try:
            for at in range(0, len(body), 4096):
                self.sent += link.send(body[at : at + 4096])
        except OSError:
            return False
        return True


def exported(collector: Answering) -> list[bool]:
    """Two exports of a request, and whether they are taken for done."""
    settings = cfg.Tracing(endpoint=collector.url, timeout=WAIT)
    export = SpanExport(settings, otlp(settings))
    done = [export.export([a_request()]) for _ in range(2)]
    collector.join(WAIT)
    return done


def test_an_answer_without_end_is_not_read() -> None:
    """O4: whoever listens at the endpoint cannot fill the gateway's memory."""
    length = 256 * ANSWER_BYTES
    collector = Answering(b"HTTP/1.1 200 OK\r\nContent-Length: %d" % length, bytes(length))
    assert exported(collector) == [True, True]
    assert collector.sent < length


@pytest.mark.parametrize("status", [b"200 OK", b"503 Unavailable"])
def test_an_empty_answer_of_a_collector_can_be_read(status: bytes) -> None:
    """O4: some versions of the exporter log the text of a refusal."""
    collector = Answering(b"HTTP/1.1 %b\r\nContent-Length: 0" % status)
    assert [Session().post(collector.url, b"", timeout=WAIT).text for _ in range(2)] == ["", ""]


def test_connections_to_a_collector_are_kept() -> None:
    collector = Answering(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 2", b"\n\0")
    assert exported(collector) == [True, True]
    assert collector.connections == 1


def test_a_collector_that_sends_elsewhere_has_nothing() -> None:
    """O4: as a proxy does that wants https; the spans are lost, and counted as such."""
    collector = Answering(b"HTTP/1.1 301 Moved\r\nLocation: https://127.0.0.1:1/v1/traces\r\nContent-Length: 0")
    assert exported(collector) == [False, False]


# ---- spans


def spans_of(request: Ended, **settings: Any) -> dict[str, ReadableSpan]:
    memory = InMemorySpanExporter()
    assert SpanExport(cfg.Tracing(**settings), memory).export([request])
    return {span.name: span for span in memory.get_finished_spans()}


def ids(span: ReadableSpan) -> tuple[int, int, int]:
    assert span.context is not None
    return span.context.trace_id, span.context.span_id, span.parent.span_id if span.parent is not None else 0


def test_a_request_is_a_server_span_with_its_queue_and_its_upstream() -> None:
    found = spans_of(a_request(cached_tokens=2, queue_len=3, rank=2))
    assert list(found) == ["POST /v1/chat/completions", "queue", "chat llama3:8b"]
    server, queue, upstream = found.values()
    assert [span.kind.name for span in found.values()] == ["SERVER", "INTERNAL", "CLIENT"]
    assert ids(server) == (int(TRACE, 16), 5, 0)
    assert ids(upstream) == (int(TRACE, 16), 6, 5)
    assert ids(queue)[::2] == (int(TRACE, 16), 5)
    start = 1_700_000_000_000_000_000
    assert (server.start_time, server.end_time) == (start, start + 2_000_000_000)
    assert [round((t - start) / 1e8) for t in (queue.start_time, queue.end_time)] == [1, 4]  # type: ignore[operator]
    assert [round((event.timestamp - start) / 1e8) for event in upstream.events] == [10]
    assert dict(upstream.attributes or {}) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "ollama",
        "gen_ai.request.model": "llama3",
        "gen_ai.response.model": "llama3:8b",
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.usage.cache_read.input_tokens": 2,
        "fairgate.backend": "gpu1",
    }
    assert dict(server.resource.attributes) | {"service.version": ""} == {
        "service.name": "fairgate",
        "service.version": "",
    }


@pytest.mark.parametrize("identities", [True, False])
def test_who_asked_is_told_only_by_choice_and_from_where_never(identities: bool) -> None:
    """O4, T: every attribute is of the allowlist; addresses and keys have no name in it."""
    text = ""
    for span in spans_of(a_request(error="upstream_broke"), identities=identities).values():
        assert set(span.attributes or {}) <= ATTRIBUTES.keys()
        text += span.to_json()
    assert ("tenant-7" in text, "user-8" in text) == (identities, identities)
    assert "192.0.2.7" not in text
    assert "key-9" not in text
    assert not any(word in name for name in ATTRIBUTES for word in ("address", "prompt", "key", "message", ".ip"))


def test_the_clients_own_words_are_no_attributes() -> None:
    """A model that does not exist and a method that nobody knows are text of the client's choice."""
    request = a_request(model_asked="my password is x", model_served="", method="SECRET", backend="", status=403)
    refused = Ended(request.trace, request.row, "chat", "", "", 10.0, 0.0, 0.0, 0.0, 0.0, 12.0)
    (span,) = spans_of(refused).values()
    assert span.name == "_OTHER /v1/chat/completions"
    assert "password" not in span.to_json()
    assert "SECRET" not in span.to_json()
    assert not span.status.is_ok or span.status.status_code.name == "UNSET"
