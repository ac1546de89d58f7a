"""Direction of imports: which room of the code may know which, and which rooms stay pure.

Owns the row of docs/architecture.md as a list. Reads sources with `ast`, so an import inside a function or under
`TYPE_CHECKING` counts like any other; nothing is imported.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Left to right: each room may import its own modules and every room to its left. Modules are matched by the longest
# prefix; a room is never split by the package its modules happen to live in (http1 has two).
ROW: list[tuple[str, tuple[str, ...]]] = [
    ("scheduler", ("scheduler",)),
    ("version", ("gateway",)),
    ("errors", ("gateway.errors",)),
    (
        "config",
        ("gateway.config", "gateway.issuer", "gateway.loading", "gateway.shape", "gateway.source", "gateway.urls"),
    ),
    ("logs", ("gateway.logs",)),
    (
        "wire",
        (
            "gateway.http1",
            "gateway.http1.message",
            "gateway.http1.head",
            "gateway.http1.repeated",
            "gateway.http1.reply",
            "gateway.http1.chunks",
            "gateway.http1.wire",
        ),
    ),
    ("api", ("gateway.api",)),
    (
        "connections",
        (
            "gateway.http1.eager",
            "gateway.http1.counter",
            "gateway.http1.listener",
            "gateway.http1.connection",
            "gateway.http1.server",
            "gateway.http1.client",
            "gateway.http1.pool",
        ),
    ),
    ("store", ("gateway.store",)),
    ("services", ("gateway.services",)),
    ("flow", ("gateway.flow",)),
    ("admin", ("gateway.admin",)),
    (
        "app",
        (
            "gateway.process",
            "gateway.hub",
            "gateway.plane",
            "gateway.spools",
            "gateway.worker",
            "gateway.crew",
            "gateway.workers",
            "gateway.app",
        ),
    ),
    ("commands", ("gateway.demo", "gateway.commands", "gateway.cli", "gateway.__main__")),
]

# Rooms beside the row: a closed list of what they may import of ours.
APART: dict[str, tuple[str, ...]] = {
    # It plays an engine: whatever it shared with the gateway could not be found wrong by talking to it.
    "gateway.simulated": ("gateway.config",),
}

# Rooms that only a program's entry may name.
ENTRIES: dict[str, tuple[str, ...]] = {"gateway.simulated": ("gateway.demo", "gateway.commands", "gateway.cli")}

PURE = (
    "scheduler",
    "gateway.errors",
    "gateway.config",
    "gateway.issuer",
    "gateway.loading",
    "gateway.shape",
    "gateway.source",
    "gateway.urls",
    "gateway.http1.message",
    "gateway.http1.head",
    "gateway.http1.repeated",
    "gateway.http1.reply",
    "gateway.http1.chunks",
    "gateway.http1.wire",
    "gateway.api",
)
# Shells of a pure package: they turn its decisions into wake-ups, files or text.
SHELLS = ("scheduler.aio", "scheduler.__main__")
LOOPS = {"anyio", "asyncio", "trio", "uvloop", "select", "selectors"}
WORLD = {"asyncpg", "http", "httpx", "redis", "socket", "sqlite3", "ssl", "subprocess", "time"}
IMPURE = LOOPS | WORLD | {"concurrent", "multiprocessing", "threading"}


def module_of(path: Path) -> str:
    """File -> dotted module; a package's `__init__.py` is the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources() -> list[Path]:
    return sorted(path for package in ("gateway", "scheduler") for path in (ROOT / package).rglob("*.py"))


def within(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(prefix + ".")


def longest(module: str, prefixes: dict[str, str]) -> str | None:
    """The value of the longest prefix that holds `module`; the bare package `gateway` only holds itself."""
    held = [prefix for prefix in prefixes if within(module, prefix) and (prefix != "gateway" or module == "gateway")]
    return prefixes[max(held, key=len)] if held else None


def room_of(module: str) -> str | None:
    """The room's name; None for a module that has no place yet."""
    apart = {name: name for name in APART}
    return longest(module, {prefix: room for room, prefixes in ROW for prefix in prefixes} | apart)


def imported(tree: ast.Module, module: str, is_package: bool) -> set[str]:
    """Dotted names a module imports; `from a import b` gives `a.b` when that is a module of ours, else `a`."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, module, is_package)
            found.update(_member(base, alias.name) for alias in node.names)
    return found


def _absolute(node: ast.ImportFrom, module: str, is_package: bool) -> str:
    if node.level == 0:
        return node.module or ""
    parts = module.split(".")
    parts = parts[: len(parts) - node.level + (1 if is_package else 0)]
    return ".".join([*parts, node.module] if node.module else parts)


def _member(base: str, name: str) -> str:
    path = ROOT.joinpath(*base.split("."), name)
    return f"{base}.{name}" if path.with_suffix(".py").exists() or path.is_dir() else base


def faults(module: str, source: str, is_package: bool = False) -> list[str]:
    """What a module imports and must not, one sentence each."""
    names = imported(ast.parse(source), module, is_package)
    ours = sorted(name for name in names if name.split(".")[0] in ("gateway", "scheduler"))
    return [*_direction(module, ours), *_purity(module, names)]


def _direction(module: str, ours: list[str]) -> list[str]:
    room = room_of(module)
    if room is None:
        return [f"{module} has no room: place it in ROW"]
    if room in APART:
        allowed = (room, *APART[room])
        return [f"{module} imports {name}" for name in ours if not any(within(name, prefix) for prefix in allowed)]
    order = [name for name, _ in ROW]
    out = []
    for name in ours:
        target = room_of(name)
        if target in APART:
            if not any(within(module, entry) for entry in ENTRIES[target]):
                out.append(f"{module} imports {name}")
        elif target is None or order.index(target) > order.index(room):
            out.append(f"{module} ({room}) imports {name} ({target})")
    return out


def _purity(module: str, names: set[str]) -> list[str]:
    if any(within(module, shell) for shell in SHELLS) or not any(within(module, prefix) for prefix in PURE):
        return []
    return [f"{module} is pure and imports {name}" for name in sorted(names) if name.split(".")[0] in IMPURE]


def test_imports_point_left() -> None:
    found = []
    for path in sources():
        found += faults(module_of(path), path.read_text(encoding="utf-8"), path.name == "__init__.py")
    assert found == []


def test_the_row_names_no_ghosts() -> None:
    """Every prefix of the row is a module or package that exists, so that a rename cannot hollow the rule out."""
    prefixes = [prefix for _, prefixes in ROW for prefix in prefixes] + [*APART, *PURE]
    ghosts = [p for p in prefixes if not _exists(p)]
    assert [ghost for ghost in ghosts if ghost not in OPTIONAL] == []


OPTIONAL = {"gateway.logs", "gateway.commands", "gateway.cli", "gateway.__main__", "gateway.http1"}


def _exists(module: str) -> bool:
    path = ROOT.joinpath(*module.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


WRONG = [
    ("scheduler.core", "from gateway.errors import QueueFull"),
    ("scheduler.core", "import time"),
    ("scheduler.usage", "from asyncio import Future"),
    ("gateway.errors", "from gateway import config"),
    ("gateway.config", "import gateway.services.keys"),
    ("gateway.http1.wire", "from gateway.http1.server import Connection"),
    ("gateway.http1.wire", "from . import server"),
    ("gateway.http1.wire", "import socket as s"),
    ("gateway.http1.message", "def late():\n    import asyncio"),
    ("gateway.api.openai", "from gateway.services.keys import Principal"),
    ("gateway.api.openai", "if TYPE_CHECKING:\n    from ..flow.exchange import Exchange"),
    ("gateway.api.stream", "from redis.asyncio import Redis"),
    ("gateway.http1.client", "from gateway.services.backends import Backend"),
    ("gateway.store.sqlite", "from gateway.services import audit"),
    ("gateway.services.keys", "from gateway.flow.exchange import Exchange"),
    ("gateway.services.backends", "from gateway.simulated.engine import Engine"),
    ("gateway.flow.phases", "from gateway.app import App"),
    ("gateway.admin.app", "from gateway.cli import main"),
    ("gateway.simulated.engine", "from gateway.api.openai import ChatBody"),
    ("gateway.unplaced", "x = 1"),
]

RIGHT = [
    ("scheduler.aio", "import asyncio\nimport time\nfrom scheduler.core import Core"),
    ("scheduler.core", "from scheduler.model import Ticket\nimport heapq"),
    ("gateway.http1.wire", "from gateway.http1.message import RequestHead\nimport httptools"),
    ("gateway.http1.server", "import asyncio\nfrom gateway.http1 import wire\nfrom gateway.config import Caps"),
    ("gateway.api.dialect", "from gateway.errors import Bug\nfrom gateway import __version__"),
    ("gateway.flow.phases", "from scheduler.aio import Lease\nfrom . import fields"),
    ("gateway.demo", "from gateway.simulated import app"),
    ("gateway.simulated.engine", "import time\nfrom gateway.simulated.plan import Plan"),
]


@pytest.mark.parametrize(("module", "source"), WRONG, ids=[f"{m}: {s.splitlines()[-1].strip()}" for m, s in WRONG])
def test_a_wrong_import_is_seen(module: str, source: str) -> None:
    assert faults(module, source) != []


@pytest.mark.parametrize(("module", "source"), RIGHT, ids=[module for module, _ in RIGHT])
def test_a_right_import_passes(module: str, source: str) -> None:
    assert faults(module, source) == []
