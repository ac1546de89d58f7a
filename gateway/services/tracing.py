"""The part of tracing that requests use: which trace a request belongs to, whether it is sampled, and the export queue.

Owns W3C Trace Context (what is accepted, what an engine is told), sampling, and the bounded queue to the exporting
thread. Must not know OpenTelemetry (`spans.py` does) nor how a request is served. Nothing here can delay a request:
`ended` appends or counts a loss, and an exporter that hangs or fails loses traces, not requests.

W3C Trace Context: https://www.w3.org/TR/trace-context/ (sections 3.2 traceparent, 3.3 tracestate).
"""

import asyncio
import logging
import random
import re
import sys
import threading
from collections import deque
from collections.abc import Mapping
from typing import Protocol

import msgspec

from gateway.config import ConfigError, Tracing
from gateway.services.record import AuditRecord

log = logging.getLogger("fairgate.tracing")

EXTRA = "pip install 'fairgate[otel]'"
EVERY = 1.0  # maximum seconds from a request's end to its export, while the collector keeps up
BATCH = 64  # requests per call of the exporter; it holds the interpreter while it encodes, so few
SWITCH = 0.0005
"""Seconds until a thread that waits for the interpreter gets it. Encoding 64 requests takes about 10 ms of Python,
which every stream would feel with the usual 5 ms."""
CLOSE_SECONDS = 2.0  # for what is queued at the stop, even if the collector does not answer

SAMPLED = 0x01
STATE_BYTES = 512  # of a tracestate; the standard allows dropping longer ones
STATE_MEMBERS = 32

_PARENT = re.compile(
    rb"(?!ff)(?P<version>[0-9a-f]{2})-(?P<trace>(?!0{32})[0-9a-f]{32})-(?P<span>(?!0{16})[0-9a-f]{16})"
    rb"-(?P<flags>[0-9a-f]{2})(?P<later>-[!-~]{0,200})?"
)
_MEMBER = re.compile(
    rb"[ \t]*(?:[a-z0-9][a-z0-9_*/-]{0,255}(?:@[a-z][a-z0-9_*/-]{0,13})?=(?:[ -+\--<>-~]{0,255}[!-+\--<>-~])?)?[ \t]*"
)


class Parent(msgspec.Struct, frozen=True, gc=False):
    """A valid `traceparent`."""

    trace_id: int
    span_id: int
    sampled: bool


def parent_of(headers: Mapping[bytes, bytes]) -> Parent | None:
    """The client's `traceparent`; None if it is absent or invalid."""
    field = headers.get(b"traceparent")
    found = _PARENT.fullmatch(field) if field is not None else None
    if found is None or (found["later"] and found["version"] == b"00"):
        return None
    return Parent(int(found["trace"], 16), int(found["span"], 16), bool(int(found["flags"], 16) & SAMPLED))


def _state_of(headers: Mapping[bytes, bytes]) -> bytes:
    """The client's `tracestate` as a field line; empty if it is absent or invalid."""
    state = headers.get(b"tracestate", b"")
    if not state or len(state) > STATE_BYTES:
        return b""
    members = state.split(b",")
    if len(members) > STATE_MEMBERS or not all(map(_MEMBER.fullmatch, members)):
        return b""
    return b"tracestate: %b\r\n" % state


def passed_on(headers: Mapping[bytes, bytes]) -> bytes:
    """The client's own trace fields as lines for the engine, unchanged; empty unless they are valid."""
    if b"traceparent" not in headers or parent_of(headers) is None:
        return b""
    return b"traceparent: %b\r\n%b" % (headers[b"traceparent"], _state_of(headers))


class Trace(msgspec.Struct, frozen=True, gc=False):
    """A request's place in its trace. Ids are integers; `parent_id` 0: the trace begins here. `fields` are the lines
    for the engine, whose spans become children of the span `upstream_id`."""

    trace_id: int
    parent_id: int
    span_id: int
    upstream_id: int
    sampled: bool
    fields: bytes


class Ended(msgspec.Struct, frozen=True, gc=False):
    """A finished request that waits for its export. Times are seconds of one monotonic clock; 0.0 = did not happen.
    `operation` is the route's kind, `engine` the backend's, `model` the one requested by the client or its key, if it
    was found; empty if the request did not get that far."""

    trace: Trace
    row: AuditRecord
    operation: str
    engine: str
    model: str
    started: float
    queued: float
    granted: float
    sent: float
    first_byte: float
    ended: float


class Exporter(Protocol):
    """Exports traces. Called on one thread, and may block there."""

    def export(self, batch: list[Ended]) -> bool:
        """Send a batch; whether the collector accepted it."""
        ...

    def shutdown(self) -> None:
        """Stop waiting for the collector; called from another thread."""
        ...


class TracingStats(msgspec.Struct, frozen=True):
    """Requests whose trace waits, was exported, found the queue full, or was not accepted."""

    waiting: int
    exported: int
    dropped: int
    failed: int


OFF = TracingStats(0, 0, 0, 0)


class TracingService:
    """Tracing, if it is on."""

    def __init__(self, settings: Tracing, exporter: Exporter) -> None:
        self._exporter = exporter
        self._limit = settings.queue
        self._random = random.Random()  # noqa: S311  # seeded by the system, and ids are no secrets
        self._kept = round(settings.ratio * (1 << 64))
        self._queue: deque[Ended] = deque()
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="tracing", daemon=True)
        self._exported = self._dropped = self._failed = 0

    # ---- on the event loop

    def begin(self, headers: Mapping[bytes, bytes]) -> Trace:
        """A place in the client's trace, sampled if the client samples it, or in a new trace, sampled by the configured
        ratio."""
        bits = self._random.getrandbits
        span, upstream = bits(64) or 1, bits(64) or 1
        parent, state = parent_of(headers) if b"traceparent" in headers else None, b""
        if parent is None:
            parent = Parent(bits(128) or 1, 0, bits(64) < self._kept)
        else:
            state = _state_of(headers)
        fields = b"traceparent: 00-%032x-%016x-%02x\r\n%b" % (parent.trace_id, upstream, parent.sampled, state)
        return Trace(parent.trace_id, parent.span_id, span, upstream, parent.sampled, fields)

    def ended(self, request: Ended) -> None:
        """Queue a request for export, or count it as lost. Never waits, never raises."""
        waiting = len(self._queue)
        if waiting >= self._limit:
            self._dropped += 1
            return
        self._queue.append(request)
        if waiting == BATCH:
            self._wake.set()

    def stats(self) -> TracingStats:
        return TracingStats(len(self._queue), self._exported, self._dropped, self._failed)

    def start(self) -> None:
        sys.setswitchinterval(min(SWITCH, sys.getswitchinterval()))
        self._thread.start()

    async def close(self) -> None:
        """Export what is queued for up to CLOSE_SECONDS, then stop."""
        self._stopping = True
        self._wake.set()
        await asyncio.to_thread(self._thread.join, CLOSE_SECONDS)
        left = len(self._queue)
        self._queue.clear()
        self._dropped += left
        await asyncio.to_thread(self._exporter.shutdown)
        if left:
            log.warning("traces lost at the stop", extra={"requests": left})

    # ---- on the exporting thread

    def _run(self) -> None:
        stopping = False
        while not stopping:
            self._wake.wait(EVERY)
            self._wake.clear()
            stopping = self._stopping
            while batch := self._take():
                self._export(batch)
                if len(self._queue) < BATCH and not stopping:
                    break  # gather what came meanwhile, until the next interval or a full batch

    def _take(self) -> list[Ended]:
        batch: list[Ended] = []
        while self._queue and len(batch) < BATCH:
            try:
                batch.append(self._queue.popleft())
            except IndexError:  # `close` has given up meanwhile and emptied the queue
                break
        return batch

    def _export(self, batch: list[Ended]) -> None:
        try:
            taken = self._exporter.export(batch)
        except Exception as error:
            log.warning("traces were not exported", extra={"cause": repr(error)})
            taken = False
        if taken:
            self._exported += len(batch)
        else:
            self._failed += len(batch)


def open_tracing(settings: Tracing) -> TracingService | None:
    """None if tracing is off. Raises ConfigError if OpenTelemetry is not installed."""
    if not settings.endpoint:
        return None
    try:
        from gateway.services.spans import SpanExport, otlp
    except ImportError as error:
        raise ConfigError(f"tracing.endpoint: OpenTelemetry is not installed ({error.name}): {EXTRA}") from error
    return TracingService(settings, SpanExport(settings, otlp(settings)))
