"""The relays Python users write themselves: aiohttp on uvloop, FastAPI with httpx under uvicorn."""

from __future__ import annotations

from pathlib import Path

from bench.peers.base import Peer, distribution, make_venv

RELAYS = Path(__file__).parent.parent / "relays"


class _Relay(Peer):
    script = ""
    packages: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()

    def install(self) -> None:
        make_venv(self.kept, list(self.packages))

    def missing(self) -> str | None:
        return None if (self.kept / "venv" / ".ready").exists() else "its packages are not installed"

    def command(self) -> list[str]:
        python = self.kept / "venv" / "bin" / "python"
        return [str(python), str(RELAYS / self.script), str(self.port), str(self.backend_port)]

    def version(self) -> str:
        return ", ".join(distribution(self.kept / "venv" / "bin" / "python", name) for name in self.shown)


class Aiohttp(_Relay):
    """aiohttp server and client, well done."""

    name = "aiohttp"
    note = "relay of 40 lines"
    script = "aiohttp_relay.py"
    packages = ("aiohttp", "uvloop")
    shown = ("aiohttp", "uvloop")


class FastApi(_Relay):
    """FastAPI + httpx, as tutorials show it."""

    name = "fastapi"
    slow = True
    note = "relay of 40 lines, httpx"
    script = "fastapi_relay.py"
    packages = ("fastapi", "httpx", "uvicorn[standard]")
    shown = ("fastapi", "httpx", "uvicorn")
