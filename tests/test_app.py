"""Reload: all or nothing, without touching what runs (O7), and the order of start and stop."""

import asyncio
import json
import os
import resource
import signal
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop

from gateway import config as cfg
from gateway.app import App
from tests.flow.engine import SSE_HEAD, Engine, chunk, frame, hang, plain
from tests.gateway import Gateway, chat, gateway
from tests.load import answer, request
from tests.process import CHEAP_IDENTITY, GatewayProcess, provision
from tests.services.test_checkup import make
from tests.wire import WAIT

CHAT = "/v1/chat/completions"


def replaced(app: App, **changes: object) -> cfg.Config:
    return msgspec.structs.replace(app.config, **changes)


async def until_routed(g: Gateway, model: str) -> None:
    async with asyncio.timeout(WAIT):
        while g.app.backends.route(model, "openai", "chat") is None:
            await asyncio.sleep(0.01)


def test_a_reload_moves_new_requests_and_leaves_running_ones() -> None:
    """O7, R6"""
    gate = asyncio.Event()

    async def slow(head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(SSE_HEAD + chunk(frame("old")))
        await gate.wait()
        writer.write(chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")

    async def main() -> None:
        async with Engine(slow) as old, Engine(plain, ("new-model",)) as new, gateway(old.url) as g:
            client = await g.connect()
            await client.send(g.request(CHAT, chat(stream=True)))
            assert (await client.head())[0] == 200
            backend = cfg.Backend(name="other", url=new.url, engine="openai", slots=2)
            scheduling = cfg.Settings(half_life=60.0)
            ignored = g.app.reload(replaced(g.app, backends=[backend], scheduling=scheduling, listen="127.0.0.1:1"))
            assert ignored == ["listen"]
            await until_routed(g, "new-model")
            assert (await g.ask(CHAT, chat(model="new-model")))[0] == 200
            assert (await g.ask(CHAT, chat(model="m")))[0] == 403
            await g.app.operations.look()
            assert g.app.estimator.settings.half_life == 60.0
            gate.set()
            text = b"".join([part async for part in client.chunks()])
            assert text.endswith(b"data: [DONE]\n\n")
            await g.idle()
            assert {each.gate for each in g.app.scheduler.stats().gates} == {"other"}

    uvloop.run(main())


def test_a_running_request_keeps_its_timers_when_its_backend_moves() -> None:
    """O7, R4: the address changes under a request that an engine does not answer."""

    async def main() -> None:
        async with (
            Engine(hang) as old,
            Engine(plain) as new,
            gateway(old.url, upstream=cfg.Upstream(first_byte=0.3)) as g,
        ):
            client = await g.connect()
            await client.send(g.request(CHAT, chat()))
            await asyncio.wait_for(old.chats.get(), WAIT)
            g.app.reload(replaced(g.app, backends=[cfg.Backend(name="engine", url=new.url, engine="openai", slots=4)]))
            assert (await client.head())[0] == 504
            assert (await g.ask(CHAT, chat()))[0] == 200
            await g.idle()

    uvloop.run(main())


def test_who_waits_is_served_by_a_backend_that_a_reload_brings() -> None:
    """O7: nobody who waits is lost, though the backend is of a configuration that came later than their requests."""

    async def main() -> None:
        async with Engine(hang) as busy, Engine(plain) as new, gateway(busy.url, slots=1) as g:
            clients = [await g.connect() for _ in range(11)]
            for client in clients:
                await client.send(g.request(CHAT, chat()))
            async with asyncio.timeout(WAIT):
                await busy.chats.get()
                while g.app.scheduler.stats().queued < 10:
                    await asyncio.sleep(0.01)
            backends = [*g.app.config.backends, cfg.Backend(name="new", url=new.url, engine="openai", slots=2)]
            g.app.reload(replaced(g.app, backends=backends))
            async with asyncio.timeout(WAIT):
                answers = [asyncio.ensure_future(client.answer()) for client in clients]
                await asyncio.wait(answers, return_when=asyncio.FIRST_COMPLETED)
                while sum(answer.done() for answer in answers) < 10:
                    await asyncio.sleep(0.01)
            assert [answer.result()[0] for answer in answers if answer.done()] == [200] * 10
            assert new.chats.qsize() == 10
            assert (await g.ask(CHAT, chat()))[0] == 200
            for client in clients:
                client.reset()
            await asyncio.wait(answers)
            await g.idle()

    uvloop.run(main())


def test_a_backend_that_moves_keeps_its_models_and_its_queue_until_it_was_looked_at() -> None:
    """O7: nobody is told that a model is unknown, or that none serves it, while the new address is looked at."""

    async def held(head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await gate.wait()
        await plain(head, body, reader, writer)

    gate = asyncio.Event()

    async def main() -> None:
        async with Engine(held, ("m", "n")) as old, Engine(plain, ("m",)) as new, gateway(old.url, slots=1) as g:
            clients = [await g.connect() for _ in range(3)]
            for client in clients[:2]:
                await client.send(g.request(CHAT, chat()))
            async with asyncio.timeout(WAIT):
                while g.app.scheduler.stats().queued < 1:
                    await asyncio.sleep(0.01)
            new.list_after = 0.5
            g.app.reload(replaced(g.app, backends=[msgspec.structs.replace(g.app.config.backends[0], url=new.url)]))
            await clients[2].send(g.request(CHAT, chat()))
            gate.set()
            assert [(await client.answer())[0] for client in clients] == [200, 200, 200]
            assert (old.chats.qsize(), new.chats.qsize()) == (1, 2)  # who only waited follows: the old one may be off
            async with asyncio.timeout(WAIT):
                while g.app.backends.route("n", "openai", "chat") is not None:
                    await asyncio.sleep(0.01)

    uvloop.run(main())


def test_a_failure_on_a_backend_of_before_does_not_bring_its_generation_back() -> None:
    """O7, R5: the request that a reload left on a dying engine ejects it; only the new backends are the scheduler's."""

    async def main() -> None:
        async with (
            Engine(hang) as old,
            Engine(plain, ("new-model",)) as new,
            gateway(old.url, upstream=cfg.Upstream(first_byte=0.5), discovery=cfg.Discovery(eject_after=1)) as g,
        ):
            client = await g.connect()
            await client.send(g.request(CHAT, chat()))
            await asyncio.wait_for(old.chats.get(), WAIT)
            g.app.reload(replaced(g.app, backends=[cfg.Backend(name="other", url=new.url, engine="openai", slots=2)]))
            await until_routed(g, "new-model")
            assert (await client.head())[0] == 504
            assert {each.gate for each in g.app.scheduler.stats().gates} == {"other"}
            assert (await g.ask(CHAT, chat(model="new-model")))[0] == 200
            await g.idle()

    uvloop.run(main())


def test_a_failure_reported_by_a_generation_before_ejects_in_the_one_in_force() -> None:
    """O7, R5: the engine stays, so its breaker does; the request that fails began before the reload."""

    async def main() -> None:
        async with (
            Engine(hang) as engine,
            gateway(engine.url, upstream=cfg.Upstream(first_byte=0.5), discovery=cfg.Discovery(eject_after=1)) as g,
        ):
            client = await g.connect()
            await client.send(g.request(CHAT, chat()))
            await asyncio.wait_for(engine.chats.get(), WAIT)
            (backend,) = g.app.config.backends
            g.app.reload(replaced(g.app, backends=[msgspec.structs.replace(backend, slots=3)]))
            assert [(each.gate, each.slots) for each in g.app.scheduler.stats().gates] == [("engine", 3)]
            assert (await client.head())[0] == 504
            assert [(each.gate, each.slots) for each in g.app.scheduler.stats().gates] == [("engine", 0)]
            await g.idle()

    uvloop.run(main())


def test_a_reload_that_fails_changes_nothing() -> None:
    """O7"""

    async def main() -> None:
        async with Engine(plain) as engine, gateway(engine.url) as g:
            runtime = g.app.runtime
            broken = cfg.Backend(name="b", url="https://localhost:1", engine="openai", ca="/nowhere.pem")
            with pytest.raises(OSError, match="No such file"):
                g.app.reload(replaced(g.app, backends=[broken]))
            with pytest.raises(cfg.ConfigError, match="backends: none is left"):
                g.app.reload(cfg.Config())  # of an empty file
            with pytest.raises(cfg.ConfigError, match="tls"):
                g.app.reload(replaced(g.app, tls=cfg.Tls(cert="/nowhere.pem", key="/nowhere.pem")))
            assert g.app.runtime is runtime
            assert (await g.ask(CHAT, chat()))[0] == 200

    uvloop.run(main())


def test_a_reload_to_more_connections_allows_their_files() -> None:
    """O7, H3: as the start does; else the larger cap is refused its descriptors."""

    async def main() -> None:
        async with Engine(plain) as engine, gateway(engine.url) as g:
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (1000, hard))
            try:
                g.app.reload(replaced(g.app, caps=cfg.Caps(connections=1000)))
                assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 2000
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    uvloop.run(main())


def test_what_needs_a_restart_is_named_as_long_as_it_is_not_in_force(tmp_path: Path) -> None:
    """O7"""

    async def main() -> None:
        async with Engine(plain) as engine, gateway(engine.url) as g:
            before = g.app.config
            later = replaced(g.app, store="other.db", tls=make(tmp_path, 5), log=cfg.Log(level="error", requests=True))
            for _ in range(2):
                assert g.app.reload(later) == ["store", "tls", "log.level"]
            assert g.app.config == msgspec.structs.replace(before, log=cfg.Log(level=before.log.level, requests=True))
            assert g.app.reload(before) == []
            assert (await g.ask(CHAT, chat()))[0] == 200

    uvloop.run(main())


def test_what_does_not_go_together_before_a_restart_is_not_reloaded() -> None:
    """L2, O7: a longer `expire` needs a restart, the longer requests for which it was meant would not."""

    async def main() -> None:
        async with Engine(plain) as engine, gateway(engine.url) as g:
            before = g.app.config
            later = replaced(g.app, limits=cfg.Quotas(expire=20_000.0), upstream=cfg.Upstream(total=18_000.0))
            with pytest.raises(cfg.ConfigError, match=r"^limits\.expire: until a restart it is 7200, less than"):
                g.app.reload(later)
            assert g.app.config == before
            assert g.app.reload(replaced(g.app, limits=cfg.Quotas(expire=20_000.0))) == ["limits"]

    uvloop.run(main())


def test_a_hangup_reloads_a_running_process(tmp_path: Path) -> None:
    """O7: the new engine is watched, also after a second one; a faulty file changes nothing and is said."""

    def section(name: str, engine: Engine) -> dict[str, Any]:
        return {"name": name, "url": engine.url, "engine": "openai", "slots": 2}

    async def watched(process: GatewayProcess) -> set[str]:
        state = json.loads((await asyncio.to_thread(process.fetch, "/readyz"))[1])
        return {name for name, verdict in state["backends"].items() if verdict == "ok"}

    async def reloaded(process: GatewayProcess, names: set[str]) -> None:
        os.kill(process.pid, signal.SIGHUP)
        async with asyncio.timeout(WAIT):
            while await watched(process) != names:
                await asyncio.sleep(0.02)

    async def main() -> None:
        async with Engine(plain) as one, Engine(plain) as two:
            process = GatewayProcess(tmp_path, {"backends": [section("one", one)]})
            await asyncio.to_thread(process.started)
            try:
                process.settings["backends"] = [section("two", two)]
                process.write()
                await reloaded(process, {"two"})
                process.settings["backends"] = [section("two", two), section("one", one)]
                process.write()
                await reloaded(process, {"one", "two"})
                process.file.write_text("lisen: 1")
                os.kill(process.pid, signal.SIGHUP)
                async with asyncio.timeout(WAIT):
                    while "not reloaded" not in process.log():
                        await asyncio.sleep(0.02)
                assert await watched(process) == {"one", "two"}
            finally:
                assert await asyncio.to_thread(process.stop) == 0

    uvloop.run(main())


def test_who_listens_has_models(tmp_path: Path) -> None:
    """R2: a request at the first possible moment after a start finds the model, however slow the engine's list is."""

    async def main() -> None:
        async with Engine(plain) as engine:
            engine.list_after = 0.5
            section = {"name": "e", "url": engine.url, "engine": "openai", "slots": 2}
            process = GatewayProcess(tmp_path, {"backends": [section], "identity": CHEAP_IDENTITY})
            token = (await provision(process.settings["store"]))[0]
            process.start()
            try:
                async with asyncio.timeout(30):
                    assert await _first_answer(process.port, token) == 200
            finally:
                assert await asyncio.to_thread(process.stop) == 0

    uvloop.run(main())


async def _first_answer(port: int, token: str) -> int:
    while True:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionRefusedError:
            await asyncio.sleep(0.005)
            continue
        writer.write(request("first", token))
        status, _ = await answer(reader)
        writer.close()
        return status
