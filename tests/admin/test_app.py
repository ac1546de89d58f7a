"""The control plane over real sockets, in the loop it shares with the rest."""

import asyncio
import errno
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

import httpx
import msgspec
import pytest
import uvloop
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from starlette.responses import StreamingResponse

from gateway import config
from gateway.admin.app import AdminServer, admin_app, in_turns, serve_admin
from gateway.admin.state import NO_STATS, PlaneStats, WorkerStats, added
from gateway.flow.ledger_facts import LedgerStats
from gateway.http1.facts import ServerStats
from gateway.services.backends import BackendService
from gateway.services.key_facts import KeyStats
from gateway.services.limit_facts import LenderStats, LimitStats
from gateway.services.metrics import Metrics
from gateway.services.metrics_table import METRICS
from gateway.services.prompts import PromptStats
from gateway.services.record import AuditStats
from gateway.services.zombies import ZombieStats
from scheduler.estimate import Estimator
from scheduler.model import Backlog, GateStats, PoolStats, Stats
from scheduler.settings import Settings
from tests.services.engines import Engine, running, vllm

SECRET = "sk-backend-secret-0123456789"
Record = TypeVar("Record")


class Fixed(Generic[Record]):
    """A service that stands still: one record for ever."""

    def __init__(self, record: Record) -> None:
        self._record = record

    def stats(self) -> Record:
        return self._record


class Queues(Fixed[Stats]):
    """Two users wait all the time, ten minutes pass between two looks, and one of them is served."""

    looks = 0

    def backlogs(self) -> tuple[float, list[Backlog]]:
        self.looks += 1
        served = Backlog(("m", "t"), ("t", "a"), 0.0, 1.0, 100.0 * self.looks, 5 * self.looks)
        return 600.0 * self.looks, [served, Backlog(("m", "t"), ("t", "b"), 0.0, 1.0, 0.0, 0)]


class World:
    """A gateway for the control plane to look at: real backends and metrics, the rest standing still."""

    def __init__(self, *sections: config.Backend) -> None:
        self.metrics = Metrics(dialects=["openai"], routes=["/v1/chat/completions"])
        self.metrics.know(models=["m"], backends=["a", "b"])
        self.backends = BackendService(
            sections,
            config.Discovery(timeout=2.0, eject_after=1),
            config.Upstream(),
            {},
            clock=time.monotonic,
            on_change=lambda topology: None,
        )
        pool = PoolStats(pool="m", queued=3, running=2, slots=4, oldest_wait=1, service_time=1, mean_cost=1, scale=1)
        self.scheduler = Queues(
            Stats(
                now=0.0,
                queued=3,
                running=2,
                pools=(pool,),
                gates=(GateStats(gate="a", slots=4, running=2),),
                parties=(),
                tenants=(),
                granted=5,
                refused={},
                stray_releases=0,
            )
        )
        self.zombies = Fixed((ZombieStats("a", 1, 6),))
        self.estimator = Estimator(Settings())
        self.limits = Fixed(
            LimitStats(
                open=0, refused=0, expired=0, principals=0, meters=0, store=LenderStats(0, 0, 0, False), shared=None
            )
        )
        self.draining = False

    def stats(self) -> PlaneStats:
        return PlaneStats(
            server=ServerStats(open=4, busy=1, accepted=9, refused=0, requests=12, timed_out=0, buffered=7),
            audit=AuditStats(written=7, pending=1, failures=0, dropped=0, oldest_seconds=0.1),
            prompts=PromptStats(stored=4, dropped=0, redaction_failed=1, pending_bytes=0),
            keys=KeyStats(hashed=1, refused=0, unavailable=0, cached=1, negative=0, flights=0),
            ledger=LedgerStats(open=2, body_bytes=2048, waiting=3),
            tracing=None,
            tokens=None,
            upstream=0,
            log_lines_dropped=0,
            ready=self.ready(),
        )

    def workers(self) -> list[WorkerStats]:
        return [WorkerStats(worker=0, pid=1, up=True, restarts=0)]

    async def refresh(self) -> None:
        pass

    def ready(self) -> bool:
        return not self.draining and bool(self.backends.models())


def section(name: str, engine: Engine) -> config.Backend:
    return config.Backend(name=name, url=engine.url, engine="vllm", key=SECRET)


def run(body: Callable[[], Awaitable[None]], *, uv: bool = True) -> None:
    async def main() -> None:
        await body()

    uvloop.run(main()) if uv else asyncio.run(main())


async def get(admin: AdminServer, path: str, **more: Any) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False) as http:
        return await http.request(more.pop("method", "GET"), f"http://127.0.0.1:{admin.port}{path}", **more)


@pytest.mark.parametrize("uv", [True, False])
def test_metrics_in_both_formats(uv: bool) -> None:
    """O2: services' statistics are read at scrape."""

    async def body() -> None:
        engine = vllm("m")
        async with running(engine):
            world = World(section("a", engine))
            await world.backends.refresh()
            world.metrics.count_request("openai", "/v1/chat/completions", 200, "done")
            admin = await serve_admin("127.0.0.1:0", admin_app(world))
            plain = await get(admin, "/metrics")
            assert plain.headers["content-type"].startswith("text/plain")
            found = {(s.name, *sorted(s.labels.values())): s.value for f in parse_text(plain.text) for s in f.samples}
            assert found["fairgate_requests_total", "/v1/chat/completions", "2xx", "done", "openai"] == 1
            assert found["fairgate_queue_depth", "m"] == 3
            assert found["fairgate_slots_running", "a"] == 2
            assert (found["fairgate_slots_zombie", "a"], found["fairgate_zombies_total", "a"]) == (1, 6)
            assert found["fairgate_backend_up", "a"] == 1
            assert found["fairgate_audit_written_total",] == 7
            assert found["fairgate_prompts_total", "redaction_failed"] == 1
            assert found["fairgate_connections", "client"] == 4
            assert (found["fairgate_connections_accepted_total",], found["fairgate_connections_refused_total",]) == (
                9,
                0,
            )
            assert (found["fairgate_key_hashes_total",], found["fairgate_keys_cached",]) == (1, 1)
            assert found["fairgate_queue_timeout_seconds",] == Settings().queue_timeout
            assert found["fairgate_traces_waiting",] == 0
            assert found["fairgate_buffered_bytes", "bodies"] == 2048
            opened = await get(admin, "/metrics", headers={"accept": "application/openmetrics-text;version=1.0.0"})
            assert 'fairgate_jain_index{model="m"}' not in plain.text  # a window has to be over
            assert 'fairgate_jain_index{model="m"} 0.5' in opened.text
            assert opened.headers["content-type"].startswith("application/openmetrics-text")
            assert {family.name for family in parse_openmetrics(opened.text)} >= {"fairgate_requests"}
            await admin.close()

    run(body, uv=uv)


def test_health_and_readiness_with_reasons() -> None:
    """O1"""

    async def body() -> None:
        engine, dead = vllm("m"), vllm("n")
        async with running(engine, dead):
            world = World(section("a", engine), section("b", dead))
            admin = await serve_admin("127.0.0.1:0", admin_app(world))
            assert (await get(admin, "/healthz")).text == "ok\n"
            before = await get(admin, "/readyz")
            assert before.status_code == 503
            assert before.json()["backends"] == {"a": "not looked at yet", "b": "not looked at yet"}
            await dead.stop()
            await world.backends.refresh()
            after = await get(admin, "/readyz")
            assert after.status_code == 200
            assert after.json()["ready"] is True
            assert (after.json()["store"], after.json()["shared"]) == ("ok", "not used")
            assert after.json()["backends"]["a"] == "ok"
            assert after.json()["backends"]["b"].startswith("ejected: ConnectError")
            world.draining = True
            drained = await get(admin, "/readyz")
            assert (drained.status_code, drained.json()["draining"]) == (503, True)
            assert (await get(admin, "/healthz")).status_code == 200, "alive while it drains"
            await admin.close()

    run(body)


def test_stats_and_no_secret_in_any_of_it() -> None:
    """O3, O5: what `fairgate top` reads; backend keys appear nowhere."""

    async def body() -> None:
        engine = vllm("m")
        engine.says("/v1/models", {"error": SECRET})
        async with running(engine):
            world = World(section("a", engine))
            await world.backends.refresh()
            engine.says("/v1/models", {"data": [{"id": "m"}]})
            await world.backends.refresh()
            admin = await serve_admin("127.0.0.1:0", admin_app(world))
            stats = (await get(admin, "/stats")).json()
            assert stats["backends"][0]["name"] == "a"
            assert stats["backends"][0]["loaded"] == ["m"]
            assert stats["scheduler"]["pools"][0]["queued"] == 3
            assert (stats["audit"]["written"], stats["ledger"]["waiting"]) == (7, 3)
            for path in ("/stats", "/metrics", "/readyz", "/healthz"):
                assert SECRET not in (await get(admin, path)).text, path
            await admin.close()

    run(body)


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/readyz", "/stats", "/metrics/", "/nothing"])
def test_headers_methods_and_unknown_paths(path: str) -> None:
    """H8, H10, H11"""

    async def body() -> None:
        admin = await serve_admin("127.0.0.1:0", admin_app(World()))
        answer = await get(admin, path)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["cache-control"] == "no-store"
        assert "server" not in answer.headers
        unknown = path in (
            "/metrics/",
            "/nothing",
        )  # a slash more is another path, and no redirect to a name it was sent
        assert (answer.status_code == 404) == unknown
        assert "location" not in answer.headers
        posted = await get(admin, path, method="POST")
        assert posted.status_code == (404 if unknown else 405)
        await admin.close()

    run(body)


def test_the_admin_listener_leaves_signal_handlers_alone() -> None:
    """H13: SIGTERM and SIGINT belong to the application."""

    async def body() -> None:
        handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
        admin = await serve_admin("127.0.0.1:0", admin_app(World()))
        assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
        await admin.close()
        assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers

    run(body)


def test_close_ends_the_listener_and_is_idempotent() -> None:
    """H13: also while a client keeps its connection and another waits for an answer that takes too long."""

    async def body() -> None:
        started = asyncio.Event()

        async def endless() -> Any:
            started.set()
            yield b"x"
            await asyncio.Event().wait()

        app = admin_app(World())
        app.add_route("/endless", lambda request: StreamingResponse(endless()))
        admin = await serve_admin("127.0.0.1:0", app)
        _reader, writer = await asyncio.open_connection("127.0.0.1", admin.port)
        writer.write(b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n")
        await started.wait()
        async with httpx.AsyncClient(trust_env=False) as kept:
            assert (await kept.get(f"http://127.0.0.1:{admin.port}/healthz")).status_code == 200
            await asyncio.wait_for(admin.close(), 20)
        await admin.close()
        assert "closed" in repr(admin)
        writer.close()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", admin.port)

    run(body)


def test_a_listener_nobody_closed_ends_with_its_loop() -> None:
    """H13: a start that fails after the admin listener must end, not hang."""
    ports: list[int] = []

    async def body() -> None:
        admin = await serve_admin("127.0.0.1:0", admin_app(World()))
        ports.append(admin.port)
        assert (await get(admin, "/healthz")).status_code == 200

    run(body)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", ports[0]), timeout=5)


def test_an_address_in_use_is_told() -> None:
    """H10: at start, not in a log line later."""

    async def body() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            listen = f"127.0.0.1:{taken.getsockname()[1]}"
            with pytest.raises(OSError, match=f"admin.listen {listen}: Address already in use$") as refused:
                await serve_admin(listen, admin_app(World()))
            assert refused.value.errno == errno.EADDRINUSE
        with pytest.raises(ValueError, match="not HOST:PORT"):
            await serve_admin("nonsense", admin_app(World()))

    run(body)


def test_a_scrape_lets_the_loop_turn_between_two_metrics() -> None:
    """O2: so that streams go on."""

    async def body() -> None:
        metrics = World().metrics
        parts = 0
        turns: list[int] = []
        async for _ in in_turns(metrics.exposition()[1]):
            assert turns == list(range(parts)), "what was called for after a part ran before the next one"
            asyncio.get_running_loop().call_soon(turns.append, parts)
            parts += 1
        assert parts >= len(METRICS)

    run(body)


def test_what_a_gone_worker_held_is_not_counted_on() -> None:
    """O2: what it did stays in the sums; its spool, its connections and their bounds went with it."""
    audit = AuditStats(7, 2, 0, 0, 1.0, interrupted=1, spool_bytes=4096, spool_limit=1 << 30)
    server = ServerStats(open=4, busy=1, accepted=9, refused=2, requests=12, timed_out=0, buffered=7)
    gone = added([msgspec.structs.replace(NO_STATS, audit=audit, server=server)], past=True)
    assert (gone.audit.written, gone.audit.interrupted, gone.server.accepted) == (7, 1, 9)
    assert (gone.audit.spool_bytes, gone.audit.spool_limit, gone.audit.pending, gone.server.open) == (0, 0, 0, 0)
    assert added([gone, msgspec.structs.replace(NO_STATS, audit=audit)]).audit.spool_limit == 1 << 30
