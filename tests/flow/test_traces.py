"""Traces end to end: a real gateway, a real engine socket, and a collector process that decodes OTLP/HTTP (O4)."""

import asyncio
import re
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

from gateway import config as cfg
from gateway.admin.state import register_sources
from gateway.app import App
from gateway.services.spans import ATTRIBUTES
from gateway.services.tracing import TracingStats
from tests.collector import Collector, Spans, collector
from tests.flow.engine import Answer, Engine, hang, json_answer, plain, start_and_hang, stream
from tests.gateway import Gateway, chat, gateway
from tests.servers import free_port
from tests.wire import WAIT

CHAT = "/v1/chat/completions"
SERVER, UPSTREAM = f"POST {CHAT}", "chat m"
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
THEIRS = f"traceparent: 00-{TRACE}-{SPAN}-01\r\ntracestate: congo=1\r\n"
Test = Callable[[Gateway, Engine, Collector], Coroutine[Any, Any, None]]


def run(answer: Answer, test: Test, *, slots: int = 4, **settings: Any) -> None:
    async def main() -> None:
        async with collector() as there, Engine(answer) as engine:
            tracing = cfg.Tracing(endpoint=there.url, **settings)
            async with gateway(engine.url, slots=slots, tracing=tracing) as g:
                await test(g, engine, there)
                await g.idle()

    uvloop.run(main())


def told(engine: Engine) -> dict[str, str]:
    """The trace fields of the next request that the engine got."""
    head, _ = engine.chats.get_nowait()
    return dict(re.findall(r"(?m)^(traceparent|tracestate): (.*)\r$", head.decode()))


def tree(spans: Spans) -> dict[str, str]:
    """Name -> name of its parent; an id of somebody else's span stays an id."""
    names = {span["id"]: name for name, span in spans.items()}
    return {name: names.get(span["parent"], span["parent"]) for name, span in spans.items()}


def test_a_stream_is_part_of_its_clients_trace_and_the_engine_of_ours() -> None:
    async def test(g: Gateway, engine: Engine, there: Collector) -> None:
        status, fields, _ = await g.ask(CHAT, chat(stream=True), extra=THEIRS)
        assert status == 200
        spans = await there.spans(3)
        assert tree(spans) == {SERVER: SPAN, "queue": SERVER, UPSTREAM: SERVER}
        assert {span["trace"] for span in spans.values()} == {TRACE}
        upstream = spans[UPSTREAM]
        assert told(engine) == {"traceparent": f"00-{TRACE}-{upstream['id']}-01", "tracestate": "congo=1"}
        server = spans[SERVER]["attributes"]
        assert server["fairgate.request_id"] == fields["x-request-id"]
        assert (server["http.response.status_code"], server["fairgate.outcome"]) == (200, "done")
        assert upstream["attributes"]["gen_ai.usage.input_tokens"] == 7
        assert upstream["attributes"]["gen_ai.usage.output_tokens"] == 3
        assert upstream["attributes"]["gen_ai.provider.name"] == "openai"
        assert upstream["start"] < upstream["events"]["first_byte"] <= upstream["end"] <= spans[SERVER]["end"]
        assert upstream["resource"]["service.name"] == "fairgate"
        assert not any(span["failed"] for span in spans.values())

    run(stream, test)


def test_each_request_of_a_connection_is_traced() -> None:
    """A head that repeats is not read again; its request is another one all the same."""

    async def test(g: Gateway, engine: Engine, there: Collector) -> None:
        client = await g.connect()
        traces = set()
        for _ in range(3):
            await client.send(g.request(CHAT, chat()))
            assert (await client.answer())[0] == 200
            spans = await there.spans(3)
            traces.add(spans[SERVER]["trace"])
            assert told(engine)["traceparent"].split("-")[1:3] == [spans[SERVER]["trace"], spans[UPSTREAM]["id"]]
        assert len(traces) == 3
        client.close()

    run(plain, test)


def test_nothing_but_the_allowlist_leaves() -> None:
    """T: neither prompt nor key nor address, wherever the client puts them."""
    secret = "correct horse battery"

    async def test(g: Gateway, engine: Engine, there: Collector) -> None:
        body = chat(user=secret) | {"messages": [{"role": "user", "content": secret}], "metadata": {"x": secret}}
        await g.ask(f"{CHAT}?q=horse", body, extra=f"User-Agent: {secret}\r\n")
        await g.ask(CHAT, chat(model=secret))
        await g.ask(f"/{secret.replace(' ', '_')}")
        await g.ask(CHAT, chat(model=secret), key=await g.add_key(user="forced", force_model="m"))
        lines = [await there.line() for _ in range(8)]
        for line in lines:
            assert line["attributes"].keys() <= ATTRIBUTES.keys()
            sent = repr({**line, "headers": ""})
            assert not any(word in sent for word in ("horse", g.key, "127.0.0.1"))
        assert [line["name"] for line in lines if line["kind"] == "SPAN_KIND_SERVER"] == [SERVER, SERVER, "GET", SERVER]

    run(plain, test)


def test_a_refused_request_has_a_span_and_says_why() -> None:
    async def test(g: Gateway, engine: Engine, there: Collector) -> None:
        await g.ask(CHAT, chat(), key="fg_wrong")
        spans = await there.spans(1)
        assert spans[SERVER]["attributes"]["error.type"] == "invalid_api_key"
        assert not spans[SERVER]["failed"]  # a 4xx is no failure of ours
        blocker = await g.connect()
        await blocker.send(g.request(CHAT, chat()))
        await engine.chats.get()
        await g.ask(CHAT, chat(), key=await g.add_key(user="other"), extra="x-queue-timeout: 0\r\n")
        spans = await there.spans(2)
        assert spans["queue"]["failed"]
        assert spans["queue"]["attributes"]["error.type"] == "queue_timeout"
        blocker.close()

    run(hang, test, slots=1)


def test_an_engine_that_fails_fails_its_span() -> None:
    async def answer(head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(json_answer(b"Traceback at 10.0.0.5:/srv/secret.py", "500 Internal Server Error"))

    async def test(g: Gateway, engine: Engine, there: Collector) -> None:
        assert (await g.ask(CHAT, chat()))[0] == 502
        spans = await there.spans(3)
        assert [spans[name]["failed"] for name in (SERVER, "queue", UPSTREAM)] == [True, False, True]
        assert spans[UPSTREAM]["attributes"]["error.type"] == "upstream_broke"
        assert "secret" not in repr(spans)

    run(answer, test)


def test_a_client_that_leaves_ends_its_spans() -> None:
    async def test(g: Gateway, engine: Engine, there: Collector) -> None:
        client = await g.connect()
        await client.send(g.request(CHAT, chat(stream=True)))
        await client.head()
        client.reset()
        spans = await there.spans(3)
        server = spans[SERVER]["attributes"]
        assert (server["http.response.status_code"], server["fairgate.outcome"]) == (499, "client_gone")
        assert "first_byte" in spans[UPSTREAM]["events"]
        assert not spans[UPSTREAM]["failed"]

    run(start_and_hang, test)


def test_what_is_not_kept_is_not_exported_and_the_engine_is_told_so() -> None:
    """Probes have no trace at all; a client that keeps its trace is followed whatever our share."""

    async def test(g: Gateway, engine: Engine, there: Collector) -> None:
        await g.ask("/healthz", extra=THEIRS)
        await g.ask(CHAT, chat())
        assert told(engine)["traceparent"].endswith("-00")
        await g.ask(CHAT, chat(), extra=THEIRS)
        spans = await there.spans(3)
        assert spans.keys() == {SERVER, "queue", UPSTREAM}
        assert {span["trace"] for span in spans.values()} == {TRACE}
        await _counted(g.app, lambda stats: stats.exported == 1)

    run(plain, test, ratio=0.0)


def test_who_asked_and_what_the_collector_wants_are_settings() -> None:
    async def test(g: Gateway, engine: Engine, there: Collector) -> None:
        await g.ask(CHAT, chat())
        server = (await there.spans(3))[SERVER]
        (row,) = await g.records(1)
        assert server["attributes"]["fairgate.tenant"] == row["tenant"] != ""
        assert server["attributes"]["fairgate.user"] == row["user"] != ""
        assert server["headers"]["x-scope"] == "abc"
        assert server["resource"]["service.name"] == "llm"

    run(plain, test, identities=True, headers={"x-scope": "abc"}, service="llm")


@pytest.mark.parametrize("how", ["away", "refuses", "stopped"])
def test_a_collector_that_is_down_costs_nobody_a_request(how: str) -> None:
    """Requests are served as ever, a stop is quick, and what was lost is counted."""

    async def main() -> None:
        async with collector("403") as there, Engine(plain) as engine:
            if how == "stopped":
                there.process.send_signal(19)  # takes connections, never answers
            url = f"http://127.0.0.1:{free_port()}/v1/traces" if how == "away" else there.url
            async with asyncio.timeout(WAIT * 4):
                async with gateway(engine.url, tracing=cfg.Tracing(endpoint=url, timeout=1.0)) as g:
                    for _ in range(20):
                        assert (await g.ask(CHAT, chat()))[0] == 200
                    await _counted(g.app, lambda stats: stats.failed > 0)
                    assert (await g.ask(CHAT, chat()))[0] == 200
                    register_sources(g.app)
                    text = b"".join(g.app.metrics.exposition()[1]).decode()
                    assert re.search(r'fairgate_traces_lost_total\{cause="export_failed"\} [1-9]', text)

    uvloop.run(main())


async def _counted(app: App, true: Callable[[TracingStats], bool]) -> None:
    assert app.tracing is not None
    async with asyncio.timeout(WAIT):
        while not true(app.tracing.stats()):
            await asyncio.sleep(0.01)


def test_without_tracing_the_clients_own_fields_pass_if_they_are_valid() -> None:
    async def main() -> None:
        async with Engine(plain) as engine, gateway(engine.url) as g:
            assert g.app.tracing is None
            await g.ask(CHAT, chat(), extra=THEIRS)
            assert told(engine) == {"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "congo=1"}
            await g.ask(CHAT, chat(), extra="traceparent: 00-x\r\ntracestate: congo=1\r\n")
            assert told(engine) == {}

    uvloop.run(main())
