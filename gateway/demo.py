"""`fairgate demo`: the gateway with the embedded store in front of a real or a simulated Ollama, and a key to try it.

Owns the temporary set-up (store, tenant, user, key, engine) and the output. The gateway it starts is the real one.
Everything it has started ends with it.
"""

import asyncio
import contextlib
import json
import os
import resource
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import msgspec

from gateway import config as cfg
from gateway import loading
from gateway.app import App, serve
from gateway.process import FILES_PER_STREAM, FILES_SPARE
from gateway.services.accounts import KeyTerms, create_key, create_tenant, create_user
from gateway.store import open_store
from gateway.urls import bracketed, parse_listen

OLLAMA = "http://localhost:11434"
NEXT = "Ctrl-C ends all of it. Your own engine, users and limits: docs/quickstart.md."
SHOWN = 3
"""Lines shown by `--once` from the beginning and from the end of a long answer."""


class DemoError(Exception):
    """The demo cannot start; the message says why."""


class Options(msgspec.Struct, frozen=True):
    """The command line. Empty `backend`: a local Ollama if one answers, else the simulated one."""

    listen: str = "127.0.0.1:8080"
    backend: str = ""
    engine: cfg.EngineKind = "ollama"
    model: str = ""
    slots: int | None = None
    json: bool = False
    once: bool = False


class Target(msgspec.Struct, frozen=True):
    """The engine behind the demo."""

    url: str
    engine: cfg.EngineKind
    simulated: bool


class Command(msgspec.Struct, frozen=True):
    """A request to paste, and what its answer must contain."""

    title: str
    method: str
    path: str
    body: dict[str, object] | None
    key: bool
    status: int
    expect: str  # text that the answer must contain


def commands(model: str) -> list[Command]:
    """The five commands of the demo."""
    messages = [{"role": "user", "content": "Why is the sky blue? One sentence."}]
    chat: dict[str, object] = {"model": model, "messages": messages}
    streamed = chat | {"stream": True}
    return [
        Command("OpenAI chat (SSE)", "POST", "/v1/chat/completions", streamed, True, 200, "data: [DONE]"),
        Command("Ollama chat (NDJSON)", "POST", "/api/chat", chat, True, 200, '"done":true'),
        Command("the models this key may use", "GET", "/v1/models", None, True, 200, '"object":"list"'),
        Command("without a key: 401", "GET", "/v1/models", None, False, 401, '"error"'),
        Command("changing the engine is refused: 403", "POST", "/api/pull", {"model": model}, True, 403, '"error"'),
    ]  # fmt: skip


def curl(command: Command, url: str, key: str) -> list[str]:
    """The command as an argument list for curl."""
    line = ["curl", "-sN"]
    if command.method != "GET":
        line += ["-X", command.method]
    line.append(url + command.path)
    if command.key:
        line += ["-H", f"Authorization: Bearer {key}"]
    if command.body is not None:
        line += ["-H", "Content-Type: application/json", "-d", json.dumps(command.body)]
    return line


async def demo(options: Options) -> int:
    """Run the demo; the exit status. Raises DemoError, ConfigError, OSError."""
    with tempfile.TemporaryDirectory(prefix="fairgate-demo-") as folder:
        async with _target(options) as target:
            config = _config(options, target, Path(folder) / "fairgate.db")
            key = await _provision(config)
            if options.once:
                return await _once(options, config, key, target)
            await serve(config, lambda app: _show(app, options, target, key))
    return 0


@contextlib.asynccontextmanager
async def _target(options: Options) -> AsyncIterator[Target]:
    if options.backend:
        yield Target(options.backend, options.engine, False)
    elif await _answers(OLLAMA):
        yield Target(OLLAMA, "ollama", False)
    else:
        async with _simulated(options.slots or 4) as url:
            yield Target(url, "ollama", True)


async def _answers(url: str) -> bool:
    try:
        async with httpx.AsyncClient(timeout=0.5, trust_env=False) as http:
            return (await http.get(f"{url}/api/version")).status_code == 200
    except httpx.HTTPError:
        return False


@contextlib.asynccontextmanager
async def _simulated(slots: int) -> AsyncIterator[str]:
    """Run the simulated Ollama in a process of its own; it ends when this process dies (its standard input closes)."""
    command = (sys.executable, "-m", "gateway.simulated", "--listen", "127.0.0.1:0", "--slots", str(slots))
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *command, "--exit-with-stdin", stdin=pipe, stdout=pipe, start_new_session=True
    )
    assert process.stdout is not None  # noqa: S101  # asked for as a pipe
    try:
        line = await process.stdout.readline()
        if not line:
            raise DemoError("the simulated Ollama did not start")
        yield json.loads(line)["url"]
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


def _config(options: Options, target: Target, store: Path) -> cfg.Config:
    backend = cfg.Backend(name="demo", url=target.url, engine=target.engine, slots=options.slots)
    config = cfg.Config(
        listen=options.listen,
        store=str(store),
        playground=True,
        backends=[backend],
        admin=cfg.Admin(listen="127.0.0.1:0"),
        caps=_caps(),
        log=cfg.Log(level="warning"),
    )
    loading.check(config)
    return config


def _caps() -> cfg.Caps:
    """Caps for a single key and address that do everything here, within this machine's limit of open files."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    carried = 10_000 if most == resource.RLIM_INFINITY else (most - FILES_SPARE) // FILES_PER_STREAM
    connections = max(1, min(10_000, carried))
    return cfg.Caps(connections=connections, connections_per_ip=connections, connections_per_key=connections)


async def _provision(config: cfg.Config) -> str:
    """Create a tenant that may use every model, a user, and a key for one day; returns the key."""
    store = await open_store(config.store)
    try:
        tenant = await create_tenant(store, "demo", allow_all_models=True)
        user = await create_user(store, tenant, "demo")
        _, token = await create_key(store, user, KeyTerms(name="demo", days=1), config.identity)
    finally:
        await store.close()
    return token


def _models(app: App, options: Options) -> tuple[str, str]:
    """A chat and an embedding model to use in the commands."""
    names = [model.name for model in app.backends.models()]
    chat = [name for name in names if "embed" not in name] or names
    embed = [name for name in names if "embed" in name] or chat
    if not names:
        raise DemoError("the backend shows no models")
    return options.model or chat[0], embed[0]


def _urls(app: App) -> tuple[str, str]:
    host, _ = parse_listen(app.config.listen)
    admin = f"http://127.0.0.1:{app.admin.port}" if app.admin is not None else ""
    return f"http://{bracketed(host)}:{app.port}", admin


def _show(app: App, options: Options, target: Target, key: str) -> None:
    url, admin = _urls(app)
    model, embed = _models(app, options)
    if options.json:
        facts = {"url": url, "admin_url": admin, "key": key, "model": model, "embed_model": embed, "pid": os.getpid()}
        print(json.dumps(facts), flush=True)
        return
    engine = "a SIMULATED Ollama (no real model answers)" if target.simulated else f"{target.engine} at {target.url}"
    lines = [
        f"fairgate listens on {url}, in front of {engine}",
        f"key        {key}",
        f"playground {url}/playground",
        f"metrics    {admin}/metrics",
    ]
    for each in commands(model):
        lines += ["", f"# {each.title}", shlex.join(curl(each, url, key))]
    print("\n".join(lines), _snippet(url, key, model), f"\n{NEXT}", sep="\n", flush=True)


def _snippet(url: str, key: str, model: str) -> str:
    return f"""
# OpenAI SDK
from openai import OpenAI
client = OpenAI(base_url="{url}/v1", api_key="{key}")
for chunk in client.chat.completions.create(
    model="{model}", stream=True, messages=[{{"role": "user", "content": "Why is the sky blue?"}}]
):
    print(chunk.choices[0].delta.content or "", end="", flush=True)"""


async def _once(options: Options, config: cfg.Config, key: str, target: Target) -> int:
    """Start, run the five commands, stop. Returns 0 only if each gave the expected answer."""
    ready: asyncio.Future[App] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(serve(config, ready.set_result))
    await asyncio.wait((serving, ready), return_when=asyncio.FIRST_COMPLETED)
    if not ready.done():
        await serving  # it ended before it was ready: this raises the reason
    app = ready.result()
    try:
        url, _ = _urls(app)
        model, _ = _models(app, options)
        print(f"fairgate listens on {url}, in front of {'a SIMULATED Ollama' if target.simulated else target.url}")
        wrong = 0
        for command in commands(model):
            wrong += not await _try(command, url, key)
        print(f"\n{len(commands(model)) - wrong} of {len(commands(model))} commands gave what was expected")
        return 1 if wrong else 0
    finally:
        os.kill(os.getpid(), signal.SIGTERM)  # end as usual, with a drain
        await serving


async def _try(command: Command, url: str, key: str) -> bool:
    line = curl(command, url, key)
    print(f"\n# {command.title}\n$ {shlex.join(line)}", flush=True)
    run: Callable[..., object] = _by_curl if shutil.which("curl") else _by_httpx
    status, text = await run(command, line, url, key)  # type: ignore[misc]  # both are coroutines of this shape
    good = status == command.status and command.expect in text.replace('": ', '":')
    print(_short(text), f"[{status}: {'as expected' if good else 'UNEXPECTED'}]", sep="\n", flush=True)
    return good


def _short(text: str) -> str:
    lines = [line for line in text.splitlines() if line]
    left_out = len(lines) - 2 * SHOWN
    if left_out > 1:
        lines[SHOWN:-SHOWN] = [f"... {left_out} more lines ..."]
    return "\n".join(lines)


async def _by_curl(command: Command, line: list[str], url: str, key: str) -> tuple[int, str]:
    """The key is passed on standard input: everybody on the machine can read the arguments of a process."""
    words = ["@-" if word.startswith("Authorization: ") else word for word in line]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*words, "-w", "\n%{http_code}", stdin=pipe, stdout=pipe)
    out, _err = await process.communicate(f"Authorization: Bearer {key}\n".encode())
    text, _, status = out.decode().rpartition("\n")
    return int(status), text


async def _by_httpx(command: Command, line: list[str], url: str, key: str) -> tuple[int, str]:
    headers = {"Authorization": f"Bearer {key}"} if command.key else {}
    async with httpx.AsyncClient(timeout=60, trust_env=False) as http:
        answer = await http.request(command.method, url + command.path, json=command.body, headers=headers)
    return answer.status_code, answer.text
