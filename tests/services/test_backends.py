"""Discovery, routes and ejection against real loopback servers; time is the test's own clock."""

import asyncio
import gzip
import json
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import httpx
import pytest

from gateway import config, simulated
from gateway.admin.app import serve_admin
from gateway.api.bridges import BRIDGES
from gateway.api.openai import OpenAI
from gateway.api.routes import Routes
from gateway.http1.facts import Address
from gateway.plane import address_of
from gateway.services import discovery
from gateway.services.backend_facts import Topology
from gateway.services.backends import BackendService
from gateway.services.catalogue import SERVED_BY
from tests.services.engines import HANG, Engine, answer, listed, llamacpp, ollama, openai, running, tag, vllm

MINUTE = 60.0


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class World:
    """A service over some engines, what it published, and its clock."""

    def __init__(
        self,
        *sections: config.Backend,
        previous: BackendService | None = None,
        clock: Callable[[], float] | None = None,
        **settings: Any,
    ) -> None:
        """`clock`: where time itself must pass; else it stands still until the test moves `self.clock`."""
        self.clock = Clock()
        self.published: list[Topology] = []
        self.changed = asyncio.Event()
        self.service = BackendService(
            sections,
            config.Discovery(**{"timeout": 2.0, **settings}),
            config.Upstream(),
            {"llama3": config.Model(first_byte=9.0, max_output_tokens=77, cost_factor=3.0)},
            clock=clock or self.clock,
            on_change=self._publish,
            previous=previous,
        )

    def _publish(self, topology: Topology) -> None:
        self.published.append(topology)
        self.changed.set()

    async def until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            self.changed.clear()
            await asyncio.wait_for(self.changed.wait(), 20)


def section(name: str, engine: Engine, kind: str, **more: Any) -> config.Backend:
    return config.Backend(name=name, url=engine.url, engine=kind, **more)  # type: ignore[arg-type]


def names(service: BackendService) -> list[str]:
    return [model.name for model in service.models()]


def ejected(service: BackendService, name: str = "a") -> bool:
    return any(stats.name == name and stats.state == "open" for stats in service.stats())


def run(body: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(body())


# -- what each engine says ------------------------------------------------------------------------------------------


def test_every_engine_is_read_in_its_own_way() -> None:
    """R1, R2: models, loaded ones and slots of the four kinds."""

    async def body() -> None:
        a, b = ollama("llama3:latest", "qwen:7b", loaded=("qwen:7b",)), vllm("org/big")
        c, d = llamacpp("/models/tiny.gguf", 6), openai("gpt-x")
        async with running(a, b, c, d):
            world = World(
                section("a", a, "ollama"),
                section("b", b, "vllm"),
                section("c", c, "llamacpp"),
                section("d", d, "openai"),
            )
            await world.service.refresh()
            service = world.service
            assert names(service) == ["/models/tiny.gguf", "gpt-x", "llama3:latest", "org/big", "qwen:7b"]
            assert service.topology.gates == {"a": 4, "b": 4, "c": 6, "d": 4}
            assert service.topology.pools["qwen:7b"] == (("a", 0),)
            assert service.topology.pools["llama3:latest"] == (("a", 1),)
            assert service.topology.pools["org/big"] == (("b", 0),)
            assert world.published[-1] == service.topology
            one = next(model for model in service.models() if model.name == "qwen:7b")
            assert (one.created, one.owned_by, one.loaded) == (1740819600, "library", True)
            assert one.running["expires_at"] == "2026-01-01T00:00:00Z"
            assert one.detail == tag("qwen:7b")
            assert [stats.version for stats in service.stats()] == ["0.32.0", "", "b1-abc", ""]
            assert set(a.hosts) == {f"127.0.0.1:{a.port}"}

    run(body)


def test_lists_tell_the_least_context_of_a_models_backends() -> None:
    """A8: as the engines tell it, where they do: any of the backends may get the request."""

    async def body() -> None:
        long, short, local, small, odd = vllm("m"), vllm("m", "n"), llamacpp("tiny", slots=2), ollama("q:7b"), vllm("x")
        for engine, length in ((long, 32768), (short, 8192), (odd, True)):
            said = listed("m", "n") if engine is short else listed("m" if engine is long else "x")
            engine.says("/v1/models", {"data": [{**one, "max_model_len": length} for one in said["data"]]})
        local.says("/props", {"total_slots": 2, "default_generation_settings": {"n_ctx": 2048}})
        small.says("/api/ps", {"models": [{**tag("q:7b"), "context_length": 4096}]})
        async with running(long, short, local, small, odd):
            world = World(
                section("long", long, "vllm"),
                section("short", short, "vllm"),
                section("local", local, "llamacpp"),
                section("small", small, "ollama"),
                section("odd", odd, "vllm"),
            )
            await world.service.refresh()
            told = {model.name: model.context for model in world.service.models()}
            assert told == {"m": 8192, "n": 8192, "tiny": 2048, "q:7b": 4096, "x": 0}
            (shown,) = [model for model in world.service.models() if model.name == "tiny"]
            assert json.loads(OpenAI().model(shown))["max_model_len"] == 2048
            (silent,) = [model for model in world.service.models() if model.name == "x"]
            assert "max_model_len" not in json.loads(OpenAI().model(silent))

    run(body)


def test_the_engines_own_addresses_do_not_reach_a_list() -> None:
    """A8: no URLs: Ollama's cloud models carry a `remote_host`."""

    async def body() -> None:
        engine = ollama()
        engine.says("/api/tags", {"models": [{**tag("m:cloud"), "remote_host": "https://inner:443", "x": 1}]})
        async with running(engine):
            world = World(section("a", engine, "ollama"))
            await world.service.refresh()
            assert world.service.models()[0].detail == tag("m:cloud")

    run(body)


def test_key_and_base_path_are_used() -> None:
    """R1, R9"""

    async def body() -> None:
        engine = Engine()
        engine.says("/deep/v1/models", listed("m"))
        async with running(engine):
            spec = config.Backend(
                name="a", url=engine.url + "/deep/v1/", engine="openai", key="up-key", weight=2.0, slots=3
            )
            world = World(spec)
            await world.service.refresh()
            assert names(world.service) == ["m"]
            assert engine.keys == ["bearer up-key"]
            backend = world.service.backend("a")
            assert address_of(spec) == Address("127.0.0.1", engine.port, False)
            assert backend.host_header == f"127.0.0.1:{engine.port}".encode()
            assert (backend.base_path, backend.auth) == (b"/deep", b"Bearer up-key")
            assert world.service.topology.gates == {"a": 3}
            assert "up-key" not in repr(backend)

    run(body)


@pytest.mark.parametrize(
    ("url", "host", "port", "tls", "header"),
    [
        ("http://gpu1", "gpu1", 80, False, b"gpu1"),
        ("https://gpu1", "gpu1", 443, True, b"gpu1"),
        ("https://gpu1:8443/x/", "gpu1", 8443, True, b"gpu1:8443"),
        ("http://[::1]:9000/v1", "::1", 9000, False, b"[::1]:9000"),
    ],
)
def test_addresses_are_taken_apart(url: str, host: str, port: int, tls: bool, header: bytes) -> None:
    """R9: the Host of a backend is its own."""
    spec = config.Backend(name="a", url=url, engine="vllm")
    assert World(spec).service.backend("a").host_header == header
    assert address_of(spec) == Address(host, port, tls)


def test_a_configured_list_narrows() -> None:
    """R1: also by the short name of an Ollama model."""

    async def body() -> None:
        engine = ollama("llama3:latest", "qwen:7b", "secret:1b")
        async with running(engine):
            world = World(section("a", engine, "ollama", models=["llama3", "qwen:7b", "absent"]))
            await world.service.refresh()
            assert names(world.service) == ["llama3:latest", "qwen:7b"]
            assert world.service.route("secret:1b", "openai", "chat") is None

    run(body)


def test_a_server_without_a_list_serves_the_configured_one() -> None:
    """R1: transformers serve answers 500 on /v1/models."""

    async def body() -> None:
        engine = Engine()
        engine.says("/v1/models", {"detail": "boom"}, 500)
        async with running(engine):
            world = World(section("a", engine, "openai", models=["m"]), section("b", engine, "openai"))
            await world.service.refresh()
            assert world.service.route("m", "openai", "chat").candidates == ("a",)  # type: ignore[union-attr]
            assert [stats.up for stats in world.service.stats()] == [True, False]
            engine.says("/v1/models", {"detail": "down"}, 503)
            await world.service.refresh()
            assert [stats.up for stats in world.service.stats()] == [False, False]

    run(body)


def test_names_in_any_script_and_a_long_list() -> None:
    """R2"""

    async def body() -> None:
        many = [f"modèle-{n}/Ω:7b" for n in range(3000)]
        engine = ollama(*many)
        async with running(engine):
            world = World(section("a", engine, "ollama"))
            await world.service.refresh()
            assert len(world.service.models()) == 3000
            assert world.service.route("modèle-2999/Ω:7b", "ollama", "chat") is not None

    run(body)


DEEP = b'{"models": [], "x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"

BROKEN: dict[str, Callable[[], bytes]] = {
    "not json": lambda: answer(b"<html>"),
    "wrong shape": lambda: answer(b'{"models": {"a": 1}}'),
    "a number for a name": lambda: answer(b'{"models": [{"name": 7}]}'),
    "an empty name": lambda: answer(b'{"models": [{"name": ""}]}'),
    "a control character": lambda: answer(b'{"models": [{"name": "a\\nb"}]}'),
    "a long name": lambda: answer(json.dumps({"models": [{"name": "x" * 300}]}).encode()),
    "not utf-8": lambda: answer(b'{"models": [{"name": "\xff"}]}'),
    "a size that no disk has": lambda: answer(b'{"models": [{"name": "m", "size": 18446744073709551616}]}'),
    "half a surrogate": lambda: answer(b'{"models": [{"name": "\\ud800"}]}'),
    "deep": lambda: answer(DEEP),
    "too many": lambda: answer(json.dumps({"models": [{"name": f"m{n}"} for n in range(10_001)]}).encode()),
    "too large": lambda: answer(b'{"models": [], "x": "' + b"y" * discovery.MAX_ANSWER + b'"}'),
    "a wrong status": lambda: answer(b'{"models": []}', 500),
    "a redirect": lambda: answer(b"", 302, "Location: http://127.0.0.1:1/"),
    "cut off": lambda: b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
    "no http": lambda: b"SSH-2.0-OpenSSH\r\n",
    "nothing": lambda: b"",
    "compressed": lambda: answer(gzip.compress(b'{"models": []}'), 200, "Content-Encoding: gzip"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_answer_is_a_failure_with_a_line(broken: str, caplog: pytest.LogCaptureFixture) -> None:
    """R2: never an exception that ends the watch; the models of the last good look stay until forgotten."""
    raw = BROKEN[broken]()
    caplog.set_level(logging.INFO, "fairgate.backends")

    async def body() -> None:
        engine = ollama("m:1")
        async with running(engine):
            world = World(section("a", engine, "ollama"))
            await world.service.refresh()
            engine.answers["/api/tags"] = raw
            await world.service.refresh()
            stats = world.service.stats()[0]
            assert not stats.up
            assert stats.failure
            assert stats.misses == 1
            assert names(world.service) == ["m:1"]
            assert [line.message for line in caplog.records] == ["backend seen", "backend not seen"]
            await world.service.refresh()
            assert len(caplog.records) == 2, "one line per change, not per look"

    run(body)


def test_an_engines_cookies_are_not_kept() -> None:
    """R2: nor sent back, which ends the watch where their text is none that a request may hold."""

    async def body() -> None:
        engine = ollama("m:1")
        for path, raw in engine.answers.items():
            engine.answers[path] = raw.replace(b"\r\n", b"\r\nSet-Cookie: a=\xff; Path=/\r\n", 1)
        async with running(engine):
            http = discovery.client(engine.url, key="", ca="", timeout=2.0)
            async with http:
                for _ in range(2):
                    sighting = await discovery.look(http, "ollama", frozenset(), 2.0)
                    assert [model.name for model in sighting.models] == ["m:1"]
            assert not http.cookies

    run(body)


def test_a_slow_answer_is_cut() -> None:
    """R2: the limit is for the whole look, not between two bytes."""

    async def body() -> None:
        slow, quick = vllm("m"), vllm("n")
        slow.answers["/health"] = HANG
        async with running(slow, quick):
            world = World(section("a", slow, "vllm"), section("b", quick, "vllm"), timeout=0.3)
            started = asyncio.get_running_loop().time()
            await world.service.refresh()
            assert asyncio.get_running_loop().time() - started < 2.0
            assert names(world.service) == ["n"]
            assert "no complete answer" in world.service.stats()[0].failure

    run(body)


def test_a_loading_llamacpp_is_not_up() -> None:
    """R2, R7"""

    async def body() -> None:
        engine = llamacpp("m", 2)
        engine.says("/health", {"error": {"code": 503, "message": "Loading model"}}, 503)
        async with running(engine):
            world = World(section("a", engine, "llamacpp"))
            await world.service.refresh()
            assert world.service.stats()[0].failure == "/health: status 503"
            engine.says("/health", {"status": "ok"})
            engine.says("/props", {"total_slots": 0})
            await world.service.refresh()
            assert "total_slots" in world.service.stats()[0].failure

    run(body)


# -- routes ---------------------------------------------------------------------------------------------------------


def test_routes_prefer_loaded_then_weight() -> None:
    """R3"""

    async def body() -> None:
        engines = [ollama("m:1"), ollama("m:1", loaded=("m:1",)), ollama("m:1"), ollama("m:1", loaded=("m:1",))]
        async with running(*engines):
            weights = [1.0, 1.0, 5.0, 2.0]
            world = World(
                *(
                    section(f"b{n}", e, "ollama", weight=w)
                    for n, (e, w) in enumerate(zip(engines, weights, strict=True))
                )
            )
            await world.service.refresh()
            route = world.service.route("m:1", "openai", "chat")
            assert route is not None
            assert route.candidates == ("b3", "b1", "b2", "b0")
            assert world.service.topology.pools == {"m:1": (("b3", 0), ("b1", 0), ("b2", 1), ("b0", 1))}

    run(body)


def test_a_name_without_a_tag_means_latest_and_gets_the_overrides_of_the_model() -> None:
    """R4, A9: `name` is `name:latest`; overrides apply to both spellings."""

    async def body() -> None:
        engine = ollama("llama3:latest", "qwen:7b")
        async with running(engine):
            world = World(section("a", engine, "ollama"))
            await world.service.refresh()
            short, long = (world.service.route(name, "ollama", "chat") for name in ("llama3", "llama3:latest"))
            assert short is not None
            assert short == long
            assert (short.model, short.pool) == ("llama3:latest", "llama3:latest")
            assert (short.terms.first_byte, short.terms.max_output_tokens, short.terms.cost_factor) == (9.0, 77, 3.0)
            other = world.service.route("qwen:7b", "ollama", "chat")
            assert other is not None
            assert (other.terms.first_byte, other.terms.connect, other.terms.retries) == (300.0, 5.0, 2)
            assert world.service.route("qwen", "ollama", "chat") is None

    run(body)


def test_only_engines_that_serve_a_route_are_candidates() -> None:
    """R3, A2: native Ollama routes need an Ollama; a mixed model gets a queue of its own for them."""

    async def body() -> None:
        a, b = ollama("m:1", "only:1"), vllm("m:1", "v")
        async with running(a, b):
            world = World(section("a", a, "ollama"), section("b", b, "vllm"))
            await world.service.refresh()
            route = world.service.route
            both, native = route("m:1", "openai", "chat"), route("m:1", "ollama", "show")
            assert both == route("m:1", "ollama", "chat")
            assert both is not None
            assert native is not None
            assert (both.pool, both.candidates) == ("m:1", ("b", "a"))
            assert (native.pool, native.candidates) == ("m:1\tollama", ("a",))
            assert world.service.topology.pools["m:1\tollama"] == (("a", 1),)
            assert route("only:1", "ollama", "show").pool == "only:1"  # type: ignore[union-attr]
            assert route("v", "ollama", "show") is None
            assert route("v", "anthropic", "chat") is not None
            assert route("only:1", "openai", "rerank") is None
            assert route("v", "openai", "nonsense") is None
            assert set(world.service.topology.pools) == {"m:1", "m:1\tollama", "m:1\tvllm", "only:1", "v"}

    run(body)


EVERY = {"ollama", "vllm", "llamacpp", "openai"}
OPENAI = {"chat": EVERY, "completion": EVERY, "embedding": EVERY, "responses": EVERY, "rerank": EVERY - {"ollama"}}
OLLAMA = {"chat": EVERY, "completion": EVERY, "embedding": EVERY, "show": {"ollama"}}
ANTHROPIC = {"chat": EVERY, "count": EVERY - {"openai"}}


def test_every_kind_of_request_has_its_engines() -> None:
    """A1, R1, A4: by other compatible engines too (SGLang, Infinity: `/v1/rerank`), and over bridges."""
    table = {"openai": OPENAI, "ollama": OLLAMA, "anthropic": ANTHROPIC}
    assert {(d, str(kind)): engines for (d, kind), engines in SERVED_BY.items()} == {
        (dialect, kind): engines for dialect, kinds in table.items() for kind, engines in kinds.items()
    }


def test_routes_of_one_kind_name_the_same_engines() -> None:
    """The catalogue keeps one row a kind."""
    for row in Routes().rows:
        if row.metered and row.upstream not in BRIDGES:
            assert SERVED_BY[row.dialect.name, row.kind] == (row.engines or EVERY), row.path


# -- the watch, the breaker, forgetting -----------------------------------------------------------------------------


def test_a_backend_unseen_has_no_models() -> None:
    """R2, K8: at `forget`, not before."""

    async def body() -> None:
        engine = vllm("m")
        async with running(engine):
            world = World(section("a", engine, "vllm"), eject_after=99)
            await world.service.refresh()
        world.clock.now += MINUTE - 0.1
        assert world.service.tick() == pytest.approx(world.clock.now + 0.1)
        assert names(world.service) == ["m"]
        world.clock.now += 0.1
        world.service.tick()
        assert names(world.service) == []
        assert world.service.route("m", "openai", "chat") is None
        assert world.published[-1].pools == {}

    run(body)


def test_failed_requests_eject_and_one_probe_decides() -> None:
    """R2: gates 4 -> 0 -> 1 -> 0 -> 1 -> 4."""

    async def body() -> None:
        engine = vllm("m")
        async with running(engine):
            world = World(section("a", engine, "vllm"))
            service = world.service
            await service.refresh()
            for kind in ("connect", "timeout", "broken"):
                assert not ejected(service)
                service.failed("a", kind)  # type: ignore[arg-type]
            assert ejected(service)
            assert service.route("m", "openai", "chat") is not None, "ejected is not unknown"
            await service.refresh()
            assert service.stats()[0].state == "open"
            world.clock.now += 10
            await service.refresh()
            assert not ejected(service)
            service.failed("a", "connect")
            world.clock.now += 10
            await service.refresh()
            service.succeeded("a")
            assert [topology.gates["a"] for topology in world.published] == [4, 0, 1, 0, 1, 4]
            assert service.stats()[0].failures == {"connect": 2, "timeout": 1, "broken": 1}
            assert service.stats()[0].ejections == 2

    run(body)


def test_a_dead_backend_is_ejected_without_a_victim_and_comes_back() -> None:
    """R2"""

    async def body() -> None:
        engine = vllm("m")
        async with running(engine):
            world = World(section("a", engine, "vllm"))
            await world.service.refresh()
            await engine.stop()
            for _ in range(3):
                await world.service.refresh()
            assert ejected(world.service)
            await engine.start()
            await world.service.refresh()
            assert [topology.gates["a"] for topology in world.published] == [4, 0, 4]

    run(body)


def asked_while_looks_hang(world: World, tell: Callable[[BackendService], None]) -> Coroutine[Any, Any, None]:
    """Looks for two minutes, with what requests tell between them."""

    async def body() -> None:
        for _ in range(8):
            world.clock.now += 7.5
            tell(world.service)
            world.clock.now += 7.5
            await world.service.refresh()
            world.service.tick()

    return body()


def test_an_engine_that_serves_is_neither_ejected_nor_forgotten_however_late_its_looks_come() -> None:
    """R2: a list that hangs while a model loads. When nothing is served any more it goes as any other."""

    async def body() -> None:
        engine = vllm("m")
        async with running(engine):
            world = World(section("a", engine, "vllm"), timeout=0.05)
            service = world.service
            await service.refresh()
            engine.answers["/v1/models"] = HANG
            await asked_while_looks_hang(world, lambda service: service.succeeded("a"))
            assert names(service) == ["m"]
            assert service.route("m", "openai", "chat") is not None
            assert [topology.gates["a"] for topology in world.published] == [4]
            stats = service.stats()[0]
            assert (stats.up, stats.misses, stats.last_seen) == (False, 0, 120.0)
            service.succeeded("a")
            world.clock.now += MINUTE - 1
            service.tick()
            world.clock.now += MINUTE - 1
            service.tick()
            assert names(service) == ["m"], "served since the last look, whenever that was"
            for _ in range(4):
                await service.refresh()
            assert ejected(service)
            world.clock.now += MINUTE
            service.tick()
            assert names(service) == []

    run(body)


@pytest.mark.parametrize("fate", ["idle", "errors", "broken"])
def test_an_engine_that_serves_nothing_goes_with_its_looks(fate: str) -> None:
    """R2: what answers in front of a dead engine is no service either."""

    def tell(service: BackendService) -> None:
        if fate == "errors":
            service.succeeded("a", 502)
        elif fate == "broken":
            service.failed("a", "broken")

    async def body() -> None:
        engine = vllm("m")
        async with running(engine):
            world = World(section("a", engine, "vllm"), timeout=0.05)
            await world.service.refresh()
            engine.answers["/v1/models"] = HANG
            await asked_while_looks_hang(world, tell)
            assert ejected(world.service)
            assert world.published[1].gates == {"a": 0}
            assert names(world.service) == []

    run(body)


def test_a_new_generation_knows_what_was_served_in_the_one_before() -> None:
    """O7, R2"""

    async def body() -> None:
        engine = vllm("m")
        async with running(engine):
            old = World(section("a", engine, "vllm"), timeout=0.05)
            await old.service.refresh()
            engine.answers["/v1/models"] = HANG
            await asked_while_looks_hang(old, lambda service: service.succeeded("a"))
            new = World(section("a", engine, "vllm"), previous=old.service, clock=old.clock)
            new.service.tick()
            assert names(new.service) == ["m"]

    run(body)


def test_slots_and_loaded_state_follow_the_engine() -> None:
    """R1, R2: what changes is published, what does not is not."""

    async def body() -> None:
        a, b = llamacpp("m", 2), ollama("n:1")
        async with running(a, b):
            world = World(section("a", a, "llamacpp"), section("b", b, "ollama"))
            await world.service.refresh()
            seen = len(world.published)
            await world.service.refresh()
            assert len(world.published) == seen
            a.says("/props", {"total_slots": 8})
            b.says("/api/ps", {"models": [tag("n:1")]})
            await world.service.refresh()
            assert world.published[-1].gates == {"a": 8, "b": 4}
            assert world.published[-1].pools["n:1"] == (("b", 0),)

    run(body)


def test_adaptive_slots_follow_the_speed_and_survive_a_reload() -> None:
    """S 5.6: more while the engine keeps to its time per token, fewer when it does not."""

    async def body() -> None:
        engine = vllm("m")
        async with running(engine):
            backend = section("a", engine, "vllm", adaptive=config.Adaptive(tpot=0.02, low=1, high=20))
            world = World(backend)
            await world.service.refresh()
            assert world.service.topology.gates == {"a": 1}
            for n in range(100):
                world.service.measured("a", 0.01, float(n), float(n))
            grown = world.service.topology.gates["a"]
            assert 5 < grown <= 20
            assert world.published[-1].gates == {"a": grown}
            again = World(backend, previous=world.service)
            assert again.service.topology.gates == {"a": grown}
            for n in range(200, 400):
                world.service.measured("a", 0.5, float(n), float(n))
            assert world.service.topology.gates["a"] == 1

    run(body)


def test_the_watch_looks_by_itself_and_ends_when_cancelled() -> None:
    """R2: discovery every interval; a broken look does not end it; an ejected backend gets its look in time."""

    async def body() -> None:
        engine, other = vllm("m"), Engine()
        async with running(engine, other):
            world = World(
                section("a", engine, "vllm"),
                section("b", other, "vllm"),
                clock=asyncio.get_running_loop().time,
                interval=0.05,
                eject_for=0.05,
                eject_after=2,
            )
            watch = asyncio.create_task(world.service.run())
            await asyncio.wait_for(world.service.looked(), 10)
            assert names(world.service) == ["m"]
            engine.says("/v1/models", listed("m", "m2"))
            await world.until(lambda: names(world.service) == ["m", "m2"])
            other.says("/health", b"")
            other.says("/v1/models", listed("late"))
            await world.until(lambda: names(world.service) == ["late", "m", "m2"])
            world.service.failed("a", "connect")
            world.service.failed("a", "connect")
            assert ejected(world.service)
            await world.until(lambda: not ejected(world.service))
            assert world.service.topology.gates["a"] == 1
            watch.cancel()
            with pytest.raises(asyncio.CancelledError):
                await watch

    run(body)


@pytest.mark.parametrize("reloaded", [False, True])
def test_an_ejected_backend_is_looked_at_when_its_time_has_come(reloaded: bool) -> None:
    """R2: not a whole interval later, also if a request of before a reload ejected it."""

    async def body() -> None:
        engine = vllm("m")
        async with running(engine):
            clock = asyncio.get_running_loop().time
            terms = {"clock": clock, "interval": 3600.0, "eject_for": 0.05, "eject_after": 1}
            old = World(section("a", engine, "vllm"), **terms)
            world = World(section("a", engine, "vllm"), **terms, previous=old.service) if reloaded else old
            watch = asyncio.create_task(world.service.run())
            await world.until(lambda: bool(names(world.service)))
            await world.service.looked()
            await asyncio.sleep(0)  # the watch waits
            old.service.failed("a", "timeout")
            world.service.current()  # as the hub does
            await world.until(lambda: world.service.topology.gates["a"] == 1)
            assert engine.asked["/health"] == 2
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)

    run(body)


def test_a_new_generation_keeps_what_is_known_of_unchanged_backends() -> None:
    """O7: a reload must not empty the lists until the next look."""

    async def body() -> None:
        a, b = vllm("m"), vllm("n")
        async with running(a, b):
            old = World(section("a", a, "vllm"), section("b", b, "vllm"), eject_after=1)
            await old.service.refresh()
            old.service.failed("a", "connect")
            changed = config.Backend(name="b", url=b.url, engine="openai")
            new = World(section("a", a, "vllm", slots=9), changed, previous=old.service)
            assert names(new.service) == ["m"]
            assert ejected(new.service)
            assert new.service.stats()[0].slots == 9
            assert new.service.topology.gates == {"a": 0, "b": 4}

    run(body)


def test_a_generation_that_is_only_prepared_changes_nothing() -> None:
    """O7: the reload may still be refused."""

    async def body() -> None:
        a = vllm("m")
        async with running(a):
            old = World(section("a", a, "vllm"), eject_after=1)
            await old.service.refresh()
            new = World(section("a", a, "vllm"), previous=old.service, eject_after=2)
            old.service.failed("a", "connect")
            assert ejected(old.service)
            assert new.service.topology.gates == {"a": 4}
            assert new.service.current().gates == new.service.topology.gates == {"a": 0}
            await old.service.refresh()
            assert ejected(old.service)
            new.service.enforce()
            old.clock.now = new.clock.now = old.clock.now + MINUTE
            await new.service.refresh()
            new.service.succeeded("a")
            old.service.failed("a", "connect")
            assert not ejected(new.service)
            old.service.failed("a", "connect")
            assert ejected(new.service)

    run(body)


def test_what_requests_of_before_a_reload_tell_is_passed_on_whatever_the_new_generation_told_between() -> None:
    """R2: a breaker that both share, ejected again by an answer of before that breaks."""

    async def body() -> None:
        a = vllm("m")
        async with running(a):
            old = World(section("a", a, "vllm"), eject_after=1)
            await old.service.refresh()
            new = World(section("a", a, "vllm"), previous=old.service, eject_after=1)
            old.service.failed("a", "broken")
            new.clock.now += MINUTE
            await new.service.refresh()
            new.service.succeeded("a")
            told = len(old.published)
            old.service.failed("a", "broken")
            assert len(old.published) == told + 1
            assert new.service.current().gates == {"a": 0}

    run(body)


def test_without_backends_there_are_no_models() -> None:
    """R2: no backends is a valid, empty world."""

    async def body() -> None:
        world = World()
        await world.service.refresh()
        await asyncio.wait_for(world.service.looked(), 1)
        assert (list(world.service.models()), world.service.stats()) == ([], ())

    run(body)


def test_the_simulated_ollama_is_read_like_a_real_one() -> None:
    """R2: a server written without this code in mind; loaded follows /api/ps."""

    async def body() -> None:
        server = await serve_admin("127.0.0.1:0", simulated.app(simulated.Settings(load_seconds=0.0, ttft=0.0)))
        spec = config.Backend(name="sim", url=f"http://127.0.0.1:{server.port}", engine="ollama")
        world = World(spec)
        service = world.service
        await service.refresh()
        assert service.stats()[0].failure == ""
        assert names(service)
        chosen = next(name for name in names(service) if "embed" not in name)
        assert service.topology.pools[chosen] == (("sim", 1),)
        async with httpx.AsyncClient(base_url=spec.url, trust_env=False) as http:
            asked = {"model": chosen, "prompt": "hi", "stream": False, "options": {"num_predict": 1}}
            assert (await http.post("/api/generate", json=asked)).status_code == 200
        await service.refresh()
        assert service.topology.pools[chosen] == (("sim", 0),)
        loaded = next(model for model in service.models() if model.name == chosen)
        assert loaded.loaded
        assert loaded.running["name"] == chosen
        assert loaded.detail["digest"] == loaded.digest
        assert loaded.created > 0
        await server.close()

    run(body)
