"""An OTLP/HTTP collector as a process of its own: decodes what is posted and prints each span as a line of JSON.

`python -m tests.collector [STATUS]` prints its port first; with a STATUS it refuses every export with it.
"""

import contextlib
import gzip
import json
import sys
from asyncio import create_subprocess_exec, subprocess, timeout
from collections.abc import AsyncIterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.wire import WAIT

Spans = dict[str, dict[str, Any]]


class Collector:
    """A running collector process."""

    def __init__(self, process: subprocess.Process, port: int) -> None:
        self.process = process
        self.port = port
        self.url = f"http://127.0.0.1:{port}/v1/traces"

    async def line(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        async with timeout(WAIT):
            return json.loads(await self.process.stdout.readline())  # type: ignore[no-any-return]

    async def spans(self, count: int) -> Spans:
        """The next `count` spans by their names."""
        found = [await self.line() for _ in range(count)]
        return {span["name"]: span for span in found}


@contextlib.asynccontextmanager
async def collector(*arguments: str) -> AsyncIterator[Collector]:
    process = await create_subprocess_exec(
        sys.executable, "-m", "tests.collector", *arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    try:
        async with timeout(30):
            port = int(await process.stdout.readline())
        yield Collector(process, port)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()  # lines nobody asked for too: the pipe closes behind the last one


# ---- the process


def plain(attributes: list[KeyValue]) -> dict[str, Any]:
    """Protobuf's pairs -> a dict."""
    return {pair.key: getattr(pair.value, str(pair.value.WhichOneof("value"))) for pair in attributes}


def shown(span: Span, resource: dict[str, Any], headers: dict[str, str]) -> dict[str, Any]:
    return {
        "name": span.name,
        "kind": Span.SpanKind.Name(span.kind),
        "trace": span.trace_id.hex(),
        "id": span.span_id.hex(),
        "parent": span.parent_span_id.hex(),
        "start": span.start_time_unix_nano,
        "end": span.end_time_unix_nano,
        "attributes": plain(list(span.attributes)),
        "events": {event.name: event.time_unix_nano for event in span.events},
        "failed": span.status.code == 2,
        "resource": resource,
        "headers": headers,
    }


class Handler(BaseHTTPRequestHandler):
    """One export."""

    status = 200

    def do_POST(self) -> None:  # the name http.server looks for
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.status == 200:
            message = ExportTraceServiceRequest.FromString(gzip.decompress(body))
            for group in message.resource_spans:
                for span in (span for scope in group.scope_spans for span in scope.spans):
                    line = shown(span, plain(list(group.resource.attributes)), dict(self.headers.items()))
                    print(json.dumps(line), flush=True)
        self.send_response(self.status)
        self.send_header("Content-Length", "0")
        self.end_headers()


def main() -> None:
    Handler.status = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
