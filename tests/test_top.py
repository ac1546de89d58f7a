"""The live view: what stands where, from a real `/stats` and from a full one."""

import asyncio
import contextlib
import http.server
import io
import json
import os
import pty
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import uvloop

from gateway.admin.app import admin_app, serve_admin
from gateway.cli import main
from gateway.commands.top import CLEAR_BELOW, bar, count, picture, seconds
from tests.flow.engine import Engine, hang
from tests.gateway import chat, gateway
from tests.servers import free_port


def test_the_picture_shows_backends_queues_and_users() -> None:
    """O5: one running, two waiting, seen through the admin listener by the command itself."""

    async def watched() -> None:
        async with Engine(hang) as engine, gateway(engine.url, slots=1) as g:
            for _ in range(3):
                client = await g.connect()
                await client.send(g.request("/v1/chat/completions", chat()))
            await engine.chats.get()
            while g.app.scheduler.stats().queued < 2:
                await asyncio.sleep(0)
            admin = await serve_admin("127.0.0.1:0", admin_app(g.app))
            command = [sys.executable, "-m", "gateway", "top", "--admin", f"http://127.0.0.1:{admin.port}"]
            command += ["--store", g.app.config.store]
            run = asyncio.to_thread
            shown = await run(subprocess.run, [*command, "--once"], capture_output=True, text=True, check=True)
            lines = shown.stdout.splitlines()
            assert "1 running" in lines[0]
            assert "2 queued" in lines[0]
            assert any(line.split()[:3] == ["engine", "up", "1/1"] for line in lines)
            assert any(line.split()[:4] == ["m", "2", "1", "1"] for line in lines)
            assert any(line.startswith("t/u ") and "100%" in line for line in lines)
            raw = await run(subprocess.run, [*command, "--json"], capture_output=True, text=True, check=True)
            assert json.loads(raw.stdout)["scheduler"]["queued"] == 2
            away = ["--store", f"postgresql://owner@127.0.0.1:{free_port()}/x"]
            known = await run(subprocess.run, [*command, *away], capture_output=True, text=True, check=True)
            assert "ids are shown instead of names" in known.stderr
            assert "2 queued" in known.stdout
            drawn = await run(in_a_terminal, command)
            assert drawn.index("\x1b[?7l") < drawn.index("2 queued") < drawn.index("\x1b[?7h")
            await admin.close()

    uvloop.run(watched())


def in_a_terminal(command: list[str]) -> str:
    """What it draws, and what it leaves at Ctrl-C."""
    ours, its = pty.openpty()
    drawn = ""
    with open(ours, "rb", buffering=0) as screen, subprocess.Popen(command, stdin=its, stdout=its, stderr=its) as top:
        os.close(its)
        while CLEAR_BELOW not in drawn:
            drawn += screen.read(65536).decode(errors="replace")
        top.send_signal(signal.SIGINT)
        with contextlib.suppress(OSError):  # the end of a terminal
            while more := screen.read(65536):
                drawn += more.decode(errors="replace")
        assert top.wait(30) == 0
    return drawn


def drawn_until(screen: io.FileIO, words: str) -> None:
    drawn = ""
    while words not in drawn:
        drawn += screen.read(65536).decode(errors="replace")


def test_top_goes_on_after_a_restart_of_the_gateway() -> None:
    """O5: while the gateway is away, the view says so."""

    async def watched() -> None:
        async with Engine(hang) as engine, gateway(engine.url) as g:
            admin = await serve_admin("127.0.0.1:0", admin_app(g.app))
            address = f"127.0.0.1:{admin.port}"
            command = [sys.executable, "-m", "gateway", "top", "--admin", f"http://{address}", "--interval", "0.2"]
            ours, its = pty.openpty()
            top = await asyncio.create_subprocess_exec(*command, stdout=its, stderr=its)
            os.close(its)
            with io.FileIO(ours) as screen:
                await asyncio.to_thread(drawn_until, screen, "ready")
                await admin.close()
                await asyncio.to_thread(drawn_until, screen, "no statistics from")
                admin = await serve_admin(address, admin_app(g.app))
                await asyncio.to_thread(drawn_until, screen, "ready")
                top.send_signal(signal.SIGINT)
                assert await top.wait() == 0
            await admin.close()

    uvloop.run(watched())


class Other(http.server.BaseHTTPRequestHandler):
    """Something else than a gateway, that has JSON at /stats or no /stats at all."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/stats" else 404)
        self.end_headers()
        self.wfile.write(b'{"scheduler": "no"}')

    def log_message(self, *_: object) -> None:
        """Tests print what they need."""


def test_what_is_no_gateway_is_said_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """O5"""
    file = tmp_path / "fairgate.yaml"
    file.write_text(f"store: {tmp_path / 'x.db'}\nadmin: {{listen: ''}}\n")

    def said(*words: str) -> str:
        assert main(["top", "--once", "--config", str(file), *words]) == 1
        without_names, sentence = capsys.readouterr().err.splitlines()
        assert f"no store {tmp_path / 'x.db'}: ids are shown" in without_names
        return sentence

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Other) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert "admin.listen is empty" in said()
        assert "another program" in said("--admin", url)
        assert "status 404" in said("--admin", f"{url}/away")
        assert "no statistics from" in said("--admin", "http://h\x01")
        server.shutdown()
        thread.join()
    assert not (tmp_path / "x.db").exists()


@pytest.mark.parametrize("colour", [True, False])
def test_colours_are_only_where_wanted(colour: bool) -> None:
    empty = {"queued": 0, "running": 0, "granted": 0, "refused": {}, "pools": [], "gates": [], "parties": []}
    stats = {
        "version": "1",
        "ready": False,
        "draining": True,
        "backends": [],
        "scheduler": empty,
        "zombies": [],
        "server": {"open": 0, "requests": 0},
        "audit": {"written": 0, "pending": 0},
    }
    text = "\n".join(picture(stats, {}, 80, colour=colour))
    assert ("\x1b[" in text) == colour
    assert "draining" in text
    assert "nobody lately" in text


def test_numbers_for_people() -> None:
    assert [count(n) for n in (0, 950, 999.9, 12_345, 4_500_000, 2e9)] == ["0", "950", "1.0k", "12.3k", "4.5M", "2.0G"]
    assert [seconds(n) for n in (0.0421, 9.87, 600)] == ["42ms", "9.9s", "10min"]
    assert bar(0.5, 4) == "██  "
    assert bar(7.0, 2) == "██"
    assert bar(-1.0, 2) == "  "
