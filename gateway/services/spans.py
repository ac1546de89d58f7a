"""Turns finished requests into OpenTelemetry spans and exports them over OTLP/HTTP. Imported only if tracing is on.

Owns the names: spans and attributes follow the semantic conventions for HTTP servers and for generative AI if these
define a name, else `fairgate.*`. ATTRIBUTES is the allowlist, and nothing else can be exported: no prompt, no key, no
address of a client or an engine. Identities are exported only with `tracing.identities`. Must not know how requests are
served.

One request is one server span. Below it are `queue` (the wait for a slot) and a client span for the engine's work,
which has an event `first_byte` and the tokens (on one span only, so that sums over spans are right).
"""

import time
from collections.abc import Iterator
from typing import Any, Final

import requests
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from gateway import __version__
from gateway.config import Tracing
from gateway.services.tracing import Ended, Trace

ATTRIBUTES: Final = {
    "http.request.method": "the request's method; `_OTHER` for uncommon methods",
    "http.route": "path of the matching row in the route table",
    "http.response.status_code": "status that the client got; 499 if it had left",
    "error.type": "the error code that the client got",
    "gen_ai.operation.name": "`chat`, `text_completion`, `embeddings`, `rerank`",
    "gen_ai.provider.name": "kind of engine",
    "gen_ai.request.model": "the model that the client or its key asked for, once it was found",
    "gen_ai.response.model": "the model that served the request",
    "gen_ai.usage.input_tokens": "tokens of the prompt",
    "gen_ai.usage.output_tokens": "tokens of the answer",
    "gen_ai.usage.cache_read.input_tokens": "prompt tokens that the engine had cached",
    "fairgate.request_id": "the request's id, as in logs, audit and `X-Request-ID`",
    "fairgate.outcome": "how the request ended, as in the audit trail",
    "fairgate.backend": "the backend's name in the configuration",
    "fairgate.usage_estimated": "whether the gateway estimated the tokens",
    "fairgate.queue.rank": "place in the queue on arrival",
    "fairgate.tenant": "id of the tenant; only with `tracing.identities`",
    "fairgate.user": "id of the user; only with `tracing.identities`",
}
"""Every attribute that our spans may have, and what it contains."""

OPERATIONS: Final = {
    "chat": "chat",
    "responses": "chat",
    "completion": "text_completion",
    "embedding": "embeddings",
    "rerank": "rerank",
}
"""Kind of a route -> `gen_ai.operation.name`."""

METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "CONNECT", "TRACE"})
SCOPE: Final = InstrumentationScope("fairgate", __version__)
UNSET: Final = Status(StatusCode.UNSET)
FAILED: Final = Status(StatusCode.ERROR)
BREATH_EVERY: Final = 8  # requests, about half a millisecond of work
BREATH: Final = 50e-6
"""Seconds that this thread sleeps: otherwise the event loop gets the interpreter only after its switch interval (5
ms)."""

ANSWER_BYTES: Final = 64 * 1024
"""Read of a collector's answer. OTLP's answers are a few bytes; `requests` would hold one of any length in memory."""

_ids = RandomIdGenerator()

Attributes = dict[str, str | int | bool]


class Session(requests.Session):
    """Bounds the answers that the exporter reads, and refuses redirects, which the exporter takes for success."""

    def request(self, *args: Any, **options: Any) -> requests.Response:
        """Raises RequestException, also for a redirect: the spans were not taken."""
        answer = super().request(*args, **{**options, "stream": True})
        if 300 <= answer.status_code < 400:
            answer.close()
            raise requests.TooManyRedirects("the collector redirects: correct tracing.endpoint")
        begin = next(answer.iter_content(ANSWER_BYTES), b"")
        answer.close()
        answer._content = begin  # by itself, an empty answer that was read is an error
        return answer


def otlp(settings: Tracing) -> SpanExporter:
    """The OTLP/HTTP exporter. It ignores proxies and credentials of the environment."""
    session = Session()
    session.trust_env = False
    return OTLPSpanExporter(
        endpoint=settings.endpoint,
        certificate_file=settings.ca or None,
        headers=settings.headers,
        timeout=settings.timeout,
        compression=Compression.Gzip,
        session=session,
    )


class SpanExport:
    """Implements `tracing.Exporter` with an exporter of the SDK."""

    def __init__(self, settings: Tracing, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._identities = settings.identities
        self._resource = Resource({"service.name": settings.service, "service.version": __version__})

    def export(self, batch: list[Ended]) -> bool:
        spans: list[ReadableSpan] = []
        for number, request in enumerate(batch):
            if number % BREATH_EVERY == 0:
                time.sleep(BREATH)
            spans += self.spans(request)
        return self._exporter.export(spans) is SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def spans(self, request: Ended) -> Iterator[ReadableSpan]:
        """The server span of a request and its children, as far as the request got."""
        trace = request.trace
        yield self._server(request)
        if request.queued:
            yield self._queue(request)
        if request.sent:
            yield self._upstream(request, _context(trace, trace.upstream_id))

    def _server(self, request: Ended) -> ReadableSpan:
        trace, row = request.trace, request.row
        method = row.method if row.method in METHODS else "_OTHER"
        attributes: Attributes = {
            "http.request.method": method,
            "http.route": row.route,
            "http.response.status_code": row.status,
            "error.type": row.error,
            "fairgate.request_id": row.id,
            "fairgate.outcome": row.outcome,
        }
        if self._identities:
            attributes |= {"fairgate.tenant": row.tenant, "fairgate.user": row.user}
        return self._span(
            request,
            f"{method} {row.route}".rstrip(),
            _context(trace, trace.span_id),
            _context(trace, trace.parent_id, remote=True) if trace.parent_id else None,
            attributes | _asked(request),
            (request.started, request.ended),
            kind=SpanKind.SERVER,
            status=FAILED if row.status >= 500 else UNSET,
        )

    def _queue(self, request: Ended) -> ReadableSpan:
        trace, row = request.trace, request.row
        refused = not request.granted and row.error
        return self._span(
            request,
            "queue",
            _context(trace, _ids.generate_span_id()),
            _context(trace, trace.span_id),
            {"fairgate.queue.rank": row.rank, "error.type": row.error if refused else ""},
            (request.queued, request.granted or request.ended),
            status=FAILED if refused else UNSET,
        )

    def _upstream(self, request: Ended, context: SpanContext) -> ReadableSpan:
        row = request.row
        attributes = _asked(request) | {
            "gen_ai.provider.name": request.engine,
            "gen_ai.response.model": row.model_served,
            "gen_ai.usage.input_tokens": row.prompt_tokens,
            "gen_ai.usage.output_tokens": row.completion_tokens,
            "gen_ai.usage.cache_read.input_tokens": row.cached_tokens,
            "fairgate.usage_estimated": row.usage_estimated,
            "fairgate.backend": row.backend,
            "error.type": row.error,
        }
        name = f"{attributes.get('gen_ai.operation.name', 'upstream')} {row.model_served}"
        first = request.first_byte
        return self._span(
            request,
            name,
            context,
            _context(request.trace, request.trace.span_id),
            attributes,
            (request.sent, request.ended),
            kind=SpanKind.CLIENT,
            status=FAILED if row.error else UNSET,
            events=(Event("first_byte", timestamp=_nanoseconds(request, first)),) if first else (),
        )

    def _span(
        self,
        request: Ended,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        attributes: Attributes,
        times: tuple[float, float],
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        status: Status = UNSET,
        events: tuple[Event, ...] = (),
    ) -> ReadableSpan:
        """Attributes without information (empty text, zero) are left out; one that is not in the allowlist is a bug."""
        strangers = attributes.keys() - ATTRIBUTES.keys()
        if strangers:
            raise ValueError(f"not in the allowlist: {sorted(strangers)}")
        return ReadableSpan(
            name,
            context,
            parent,
            self._resource,
            {key: value for key, value in attributes.items() if value},
            events,
            kind=kind,
            status=status,
            start_time=_nanoseconds(request, times[0]),
            end_time=_nanoseconds(request, times[1]),
            instrumentation_scope=SCOPE,
        )


def _asked(request: Ended) -> Attributes:
    """What was asked of a model. A name that matched no model is the client's own text, and is not exported."""
    return {
        "gen_ai.operation.name": OPERATIONS.get(request.operation, ""),
        "gen_ai.request.model": request.model,
    }


def _context(trace: Trace, span: int, *, remote: bool = False) -> SpanContext:
    return SpanContext(trace.trace_id, span, remote, TraceFlags(TraceFlags.SAMPLED))


def _nanoseconds(request: Ended, at: float) -> int:
    """Nanoseconds since the epoch: the arrival by the wall clock, later times by the monotonic clock."""
    return request.row.started_at * 1000 + int((at - request.started) * 1e9)
