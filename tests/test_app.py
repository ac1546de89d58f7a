"""Reload: all or nothing, without touching what runs (O7), and the order of start and stop."""

import asyncio

import msgspec
import pytest
import uvloop

from gateway import config as cfg
from gateway.app import App
from tests.flow.engine import SSE_HEAD, Engine, chunk, frame, plain
from tests.gateway import Gateway, chat, gateway
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


def test_a_reload_that_fails_changes_nothing() -> None:
    """O7"""

    async def main() -> None:
        async with Engine(plain) as engine, gateway(engine.url) as g:
            runtime = g.app.runtime
            broken = cfg.Backend(name="b", url="https://localhost:1", engine="openai", ca="/nowhere.pem")
            with pytest.raises(OSError, match="No such file"):
                g.app.reload(replaced(g.app, backends=[broken]))
            with pytest.raises(cfg.ConfigError, match="tls"):
                g.app.reload(replaced(g.app, tls=cfg.Tls(cert="/nowhere.pem", key="/nowhere.pem")))
            assert g.app.runtime is runtime
            assert (await g.ask(CHAT, chat()))[0] == 200

    uvloop.run(main())
