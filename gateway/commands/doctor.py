"""`fairgate doctor`: gathers facts about a configuration and its environment, and reports what is unsafe (O5).

Changes nothing and starts nothing. `services.checkup` judges the facts. Exit codes: 0 no problems (there may be
warnings), 1 problems, 2 wrong usage.
"""

import argparse
import asyncio
import importlib
import resource
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from gateway import config as cfg
from gateway import loading, source
from gateway.commands.common import Commands, config_option, json_option, show_json
from gateway.issuer import Jwt, Oidc
from gateway.plane import tls_context
from gateway.process import FILES_PER_STREAM, FILES_SPARE
from gateway.services import checkup, x509
from gateway.services.catalogue import base_url
from gateway.services.checkup import Finding
from gateway.services.discovery import LookFailed, client, look
from gateway.services.prompts import redaction
from gateway.services.tokens import EXTRA
from gateway.store.base import StoreError
from gateway.store.facts import postgresql_facts, sqlite_facts, sqlite_path
from gateway.urls import beside

REDIS_SECONDS = 2.0


class Check(msgspec.Struct, frozen=True):
    """One thing that was checked."""

    name: str
    level: str
    findings: list[Finding]


def add(commands: Commands) -> None:
    """Declare it."""
    summary = "check a configuration and everything it refers to; report what is unsafe and what to do"
    parser = commands.add_parser(
        "doctor", help=summary, description=f"{summary}. Exit code 1 means there are problems."
    )
    config_option(parser, "the YAML file (default: FAIRGATE_CONFIG, else a gateway without a file)")
    json_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print a line for each check, with its findings and their remedies below."""
    checks = asyncio.run(examine(args.config))
    if args.json:
        show_json(checks)
    else:
        print("\n".join(line for check in checks for line in _lines(check)))
    return 1 if any(check.level == "problem" for check in checks) else 0


def _lines(check: Check) -> list[str]:
    found = [f"{'':9}{finding.says}\n{'':9}-> {finding.do}" for finding in check.findings]
    return [f"{check.level:<8} {check.name}", *found]


async def examine(path: Path | None) -> list[Check]:
    """All checks in the order in which they are shown; if the configuration cannot be read, there are no others."""
    try:
        config, raw = (cfg.Config(), {}) if path is None else _read(path)
    except cfg.ConfigError as err:
        return [
            _check("configuration", [Finding("problem", str(err), "correct it; docs/config.md lists every setting")])
        ]
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = config.caps.connections * FILES_PER_STREAM + FILES_SPARE
    checks = [
        _check("configuration", checkup.settings(config)),
        _check("listeners", checkup.listeners(config)),
        _check("secrets", checkup.secrets(config)),
        _check("file modes", _files(path, raw, config.tls)),
        _check("TLS", _tls(config.tls)),
        _check("open files", checkup.file_limit(wanted, hard if hard != resource.RLIM_INFINITY else -1)),
        _check("store", await _store(config.store)),
    ]
    if config.prompts.redact:
        checks.append(_check("redaction", _redaction(config.prompts.redact)))
    if config.jwt is not None:
        checks.append(_check("tokens", await _tokens(config.jwt)))
    if config.admin.oidc is not None:
        checks.append(_check("console login", await _login(config.admin.oidc)))
    if config.tracing.endpoint:
        checks.append(_check("tracing", checkup.tracing(config.tracing, _otel_installed())))
    if config.shared:
        checks.append(_check("Redis", await _redis(config.shared)))
    looked = await asyncio.gather(*(_backend(backend, config.discovery.timeout) for backend in config.backends))
    named = zip(config.backends, looked, strict=True)
    return checks + [_check(f"backend {backend.name}", findings) for backend, findings in named]


def _read(path: Path) -> tuple[cfg.Config, Any]:
    """The configuration, and the file's data before references are resolved. Raises ConfigError."""
    return loading.load(path), source.read(path.read_text(encoding="utf-8"))


def _check(name: str, findings: list[Finding]) -> Check:
    return Check(name, checkup.worst(findings), findings)


def _files(path: Path | None, raw: Any, tls: cfg.Tls | None) -> list[Finding]:
    found = [] if path is None else _mode(str(path), lambda mode: checkup.config_file(str(path), mode, raw))
    keys = [] if tls is None else [tls.key]
    named = [] if path is None else [beside(path.parent, name) for name in checkup.secret_files(raw)]
    for name in dict.fromkeys(named + keys):
        found += _mode(name, lambda mode, name=name: checkup.secret_file(name, mode))  # type: ignore[misc]
    jwks = (raw.get("jwt") or {}).get("jwks", "")
    if path is not None and jwks.startswith("file:"):
        public = beside(path.parent, jwks.removeprefix("file:"))
        found += _mode(public, lambda mode: checkup.public_file(public, mode))
    return found


def _mode(path: str, judge: Callable[[int], list[Finding]]) -> list[Finding]:
    try:
        return judge(stat.S_IMODE(Path(path).stat().st_mode))
    except OSError as err:
        return checkup.unreadable(path, str(err.strerror))


def _tls(tls: cfg.Tls | None) -> list[Finding]:
    """Loads the certificate and the key as the gateway would; also checks when the certificate ends."""
    if tls is None:
        return []
    try:
        tls_context(tls)
        end = x509.not_after(Path(tls.cert).read_text(encoding="ascii", errors="replace"))
    except cfg.ConfigError as err:
        return checkup.unreadable(*str(err).split(": ", 1))
    except (OSError, ValueError) as err:
        return checkup.unreadable(tls.cert, str(err))
    return checkup.certificate(tls.cert, end, time.time())


async def _store(url: str) -> list[Finding]:
    path = sqlite_path(url)
    try:
        if path is None:
            return checkup.postgresql(await postgresql_facts(url))
        return checkup.sqlite(str(path.absolute()), sqlite_facts(path))
    except StoreError as err:
        if path is not None:
            return checkup.unreadable(str(path), str(err).removeprefix(f"{path}: "))
        return checkup.unreachable("the store does not answer", str(err))


def _redaction(name: str) -> list[Finding]:
    """Imports the redaction function as the gateway would."""
    try:
        redaction(name)
    except cfg.ConfigError as err:
        return [
            Finding("problem", str(err), "install it for this Python, or set PYTHONPATH; the gateway will not start")
        ]
    return []


async def _tokens(section: Jwt) -> list[Finding]:
    """Fetches the issuer's keys as the gateway would."""
    try:
        from gateway.services.jwks import fault_of
    except ImportError:
        return [Finding("problem", "jwt is set, but PyJWT is not installed: the gateway does not start", EXTRA)]
    return checkup.tokens(section, await fault_of(section))


async def _login(section: Oidc) -> list[Finding]:
    """Asks the provider as for a login."""
    try:
        from gateway.admin.oidc import fault_of
    except ImportError:
        return [Finding("problem", "admin.oidc is set, but PyJWT is not installed: the gateway does not start", EXTRA)]
    fault = await fault_of(section)
    says = f"nobody can log in at {section.issuer}: {fault}"
    return [Finding("problem", says, "correct admin.oidc.issuer or admin.oidc.ca, or start it")] if fault else []


def _otel_installed() -> bool:
    try:
        importlib.import_module("gateway.services.spans")
    except ImportError:
        return False
    return True


async def _redis(url: str) -> list[Finding]:
    import redis.asyncio as aioredis
    from redis.exceptions import RedisError

    try:
        link: Any = aioredis.Redis.from_url(url, socket_connect_timeout=REDIS_SECONDS, socket_timeout=REDIS_SECONDS)
        try:
            await link.ping()
        finally:
            await link.aclose()
    except (RedisError, OSError, ValueError) as err:
        return checkup.unreachable("Redis does not answer", f"{type(err).__name__}: {err}")
    return []


async def _backend(backend: cfg.Backend, limit: float) -> list[Finding]:
    found, url = checkup.exposure(backend), base_url(backend.url)
    try:
        async with client(url, key=backend.key, ca=backend.ca, timeout=limit) as http:
            sighting = await look(http, backend.engine, frozenset(backend.models), limit)
    except (LookFailed, OSError) as err:
        return found + checkup.unreachable(f"{url} does not answer as {backend.engine}", str(err))
    return found + checkup.models(backend, sighting)
