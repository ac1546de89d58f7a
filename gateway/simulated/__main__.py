"""The simulated Ollama as a process: prints one JSON line when it listens, runs until SIGTERM or SIGINT.

Owns: command line, socket, uvicorn.
"""

import argparse
import asyncio
import ipaddress
import json
import os
import socket
import sys

import uvicorn

from gateway.simulated.application import app
from gateway.simulated.engine import Settings

_GRACE = 1  # seconds that running answers get at SIGTERM


def main(arguments: list[str] | None = None) -> int:
    """Run; the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    host, port = options.listen
    try:
        bound = _bind(host, port)
    except OSError as err:
        parser.exit(1, f"{parser.prog}: {err.strerror}: {host}:{port}\n")
    settings = Settings(
        models=tuple(name.strip() for name in options.models.split(",") if name.strip()),
        slots=options.slots,
        tokens_per_second=options.tokens_per_second,
        ttft=options.ttft,
        load_seconds=options.load_seconds,
        max_queue=options.max_queue,
        check_host=ipaddress.ip_address(bound.getsockname()[0]).is_loopback,
    )
    config = uvicorn.Config(
        app(settings), log_level="warning", access_log=False, timeout_graceful_shutdown=_GRACE, lifespan="off"
    )
    asyncio.run(_serve(uvicorn.Server(config), bound, options.exit_with_stdin))
    return 0


def _parser() -> argparse.ArgumentParser:
    defaults = Settings()
    parser = argparse.ArgumentParser(prog="python -m gateway.simulated", description="A simulated Ollama.")
    add = parser.add_argument
    add("--listen", type=_address, default="127.0.0.1:11435", metavar="HOST:PORT", help="port 0 takes a free one")
    add("--slots", type=_slots, default=defaults.slots, help="parallel requests per model")
    add("--tokens-per-second", type=float, default=defaults.tokens_per_second, help="0: as fast as it goes")
    add("--ttft", type=float, default=defaults.ttft, help="seconds before the first token")
    add("--load-seconds", type=float, default=defaults.load_seconds, help="seconds to load a model")
    add("--max-queue", type=int, default=defaults.max_queue, help="waiting requests before 503")
    add("--models", default=",".join(defaults.models), help="comma-separated names")
    add("--exit-with-stdin", action="store_true", help="exit when standard input closes, as when a parent dies")
    return parser


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not port.isdecimal() or int(port) > 65_535:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    return host.strip("[]") or "127.0.0.1", int(port)


def _slots(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen(2048)
    except OSError:
        bound.close()
        raise
    return bound


async def _serve(server: uvicorn.Server, bound: socket.socket, exit_with_stdin: bool) -> None:
    host, port = bound.getsockname()[:2]
    # The socket listens already: a client that reads this line may connect, its request waits for the loop.
    shown = f"[{host}]" if ":" in host else host
    print(json.dumps({"url": f"http://{shown}:{port}", "pid": os.getpid(), "simulated": True}), flush=True)
    if exit_with_stdin:
        loop = asyncio.get_running_loop()
        loop.add_reader(sys.stdin.fileno(), _stop_at_end, server)
    await server.serve(sockets=[bound])


def _stop_at_end(server: uvicorn.Server) -> None:
    if not os.read(sys.stdin.fileno(), 4096):
        asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
        server.should_exit = True


if __name__ == "__main__":
    sys.exit(main())
