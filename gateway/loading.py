"""From a file to a configuration: parses YAML, refuses unknown keys, resolves references to secrets, checks the whole.

Owns the rules that span several settings; the range of each setting is in `config`. Nothing reads the environment after
`load`.
"""

import ipaddress
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import msgspec

from gateway.config import Backend, Config, Model, Upstream
from gateway.issuer import jwt_fault, oidc_fault
from gateway.shape import fitting, refuse_unknown
from gateway.source import ConfigError, follow, read
from gateway.urls import (
    beside,
    database_fault,
    field_fault,
    host_fault,
    http_fault,
    origin_fault,
    parse_listen,
    store_beside,
    store_fault,
)


def load(path: Path) -> Config:
    """Read, resolve and check a configuration file. Raises ConfigError with the path of the faulty setting.

    Relative paths in it are relative to its folder, so their meaning does not depend on where a command is called.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigError(f"{path}: {getattr(err, 'strerror', None) or err}") from err
    if path.stat().st_mode & stat.S_IWOTH:
        raise ConfigError(f"{path}: the file is writable by everyone and is not trusted (chmod o-w)")
    return parse(text, path.parent)


def parse(text: str, folder: Path = Path()) -> Config:
    """YAML text -> checked Config. Relative paths start in `folder`."""
    raw = follow(read(text), folder)
    refuse_unknown(raw, Config, "")
    config: Config = fitting(raw, Config)
    check(config)
    return _placed(config, folder)


def _placed(config: Config, folder: Path) -> Config:
    """Make every path in the configuration relative to the current folder."""
    change, tls, audit, tracing = msgspec.structs.replace, config.tls, config.audit, config.tracing
    jwt, oidc = config.jwt, config.admin.oidc
    if tls is not None:
        paths = {name: beside(folder, getattr(tls, name)) for name in ("cert", "key", "client_ca")}
        tls = change(tls, **paths)
    return change(
        config,
        store=store_beside(folder, config.store),
        tls=tls,
        audit=change(audit, spool=beside(folder, audit.spool), anchors=beside(folder, audit.anchors)),
        tracing=change(tracing, ca=beside(folder, tracing.ca)),
        jwt=None if jwt is None else change(jwt, ca=beside(folder, jwt.ca)),
        admin=change(config.admin, oidc=None if oidc is None else change(oidc, ca=beside(folder, oidc.ca))),
        backends=[change(backend, ca=beside(folder, backend.ca)) for backend in config.backends],
    )


PLACEHOLDERS = frozenset(
    {"changeme", "change-me", "secret", "password", "your-key", "your-api-key", "sk-xxx", "example"}
)


_FIELD_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""A token (RFC 9110, 5.1)."""


def check(config: Config) -> None:
    """Check the rules that span several settings. Raises ConfigError."""
    _check_addresses(config)
    _check_backends(config.backends)
    if config.tracing.endpoint:
        _refuse("tracing.endpoint", http_fault(config.tracing.endpoint))
    for name, value in config.tracing.headers.items():
        if not _FIELD_NAME.fullmatch(name):
            raise ConfigError("tracing.headers: not a valid header field name")
        _refuse(f"tracing.headers.{name}", field_fault(value))
    _refuse("store", store_fault(config.store))
    _refuse("shared", database_fault(config.shared))
    if config.shared and urlsplit(config.shared).scheme not in ("redis", "rediss"):
        raise ConfigError("shared: only redis:// and rediss:// are known")
    _check_names(config)
    if config.jwt is not None and (at := jwt_fault(config.jwt)):
        raise ConfigError(f"jwt.{at}")
    if config.admin.oidc is not None and (at := oidc_fault(config.admin.oidc)):
        raise ConfigError(f"admin.oidc.{at}")
    _check_secrets(config)
    if config.discovery.forget < config.discovery.interval + config.discovery.timeout:
        raise ConfigError("discovery.forget: less than interval + timeout: models would vanish between two looks")
    _refuse("limits.expire", expire_fault(config))
    if config.caps.bodies_bytes < config.caps.body_bytes:
        raise ConfigError("caps.bodies_bytes: less than body_bytes: the largest body would not fit")
    for index, origin in enumerate(config.cors.origins):
        _refuse(f"cors.origins[{index}]", origin_fault(origin))
    if "*" in config.cors.origins and config.cors.credentials:
        raise ConfigError("cors.credentials: refused together with the origin '*'")


def expire_fault(config: Config) -> str:
    """How a reservation could expire while its request still waits or runs; empty if it cannot."""
    longest = _longest_request(config)
    return f"less than the {longest:g} s that a request may wait and run" if config.limits.expire < longest else ""


def _longest_request(config: Config) -> float:
    """Seconds: all waits for slots, a connection for each attempt, and the exchange of the last attempt."""
    terms: list[Upstream | Model] = [config.upstream, *config.models.values()]
    connects = (1 + config.upstream.retries) * max(one.connect or 0.0 for one in terms)
    return config.scheduling.queue_timeout + connects + max(one.total or 0.0 for one in terms)


def secrets(config: Config) -> set[str]:
    """Every secret in the configuration, written directly or by reference, in each form in which it may appear in a
    text."""
    found = {secret for _, secret in _named_secrets(config) if secret}
    return found | {unquote(secret) for secret in found}


def _named_secrets(config: Config) -> Iterator[tuple[str, str]]:
    """The path and the value of each secret; the value is empty if it is not set."""
    for name, url in (("store", config.store), ("shared", config.shared)):
        if "://" in url:
            yield f"{name}: its password", urlsplit(url).password or ""
    for index, backend in enumerate(config.backends):
        yield f"backends[{index}].key", backend.key
    if config.admin.oidc is not None:
        yield "admin.oidc.client_secret", config.admin.oidc.client_secret
    for name, value in config.tracing.headers.items():
        yield f"tracing.headers.{name}", value


def _check_secrets(config: Config) -> None:
    """Refuse well-known placeholders (K11)."""
    for where, secret in _named_secrets(config):
        if unquote(secret).lower() in PLACEHOLDERS:
            raise ConfigError(f"{where}: this is a well-known placeholder, not a secret")


def _refuse(path: str, fault: str) -> None:
    if fault:
        raise ConfigError(f"{path}: {fault}")


def _check_names(config: Config) -> None:
    for name, group in config.categories.items():
        if group.preferred and group.preferred not in group.models:
            raise ConfigError(f"categories.{name}.preferred: {group.preferred!r} is not in the group")
        if nested := set(group.models) & (config.categories.keys() | config.aliases.keys()):
            raise ConfigError(f"categories.{name}.models: {min(nested)!r} is a category or alias itself")
    for alias, target in config.aliases.items():
        if alias in config.categories:
            raise ConfigError(f"aliases.{alias}: a category has that name")
        if target in config.aliases:
            raise ConfigError(f"aliases.{alias}: {target!r} is an alias itself")


def _check_addresses(config: Config) -> None:
    for path, text in (("listen", config.listen), ("admin.listen", config.admin.listen)):
        if text or path == "listen":
            try:
                parse_listen(text)
            except ValueError as err:
                raise ConfigError(f"{path}: {err}") from err
    if config.admin.listen == config.listen and parse_listen(config.listen)[1]:
        raise ConfigError("admin.listen: the same address as `listen`")
    if config.admin.api and not config.admin.listen:
        raise ConfigError("admin.api: it needs admin.listen, the address to serve it on")
    if config.admin.oidc is not None and not config.admin.api:
        raise ConfigError("admin.oidc: it needs admin.api: without it there is nothing to log in to")
    for index, name in enumerate(config.admin.hosts):
        if fault := host_fault(name):
            raise ConfigError(f"admin.hosts[{index}]: {fault}")
    for index, cidr in enumerate(config.trusted_proxies):
        try:
            ipaddress.ip_network(cidr)
        except ValueError as err:
            raise ConfigError(f"trusted_proxies[{index}]: {err}") from err


def _check_backends(backends: list[Backend]) -> None:
    names = set()
    for index, backend in enumerate(backends):
        at = f"backends[{index}]"
        if backend.name in names:
            raise ConfigError(f"{at}.name: {backend.name!r} is used twice")
        names.add(backend.name)
        _refuse(f"{at}.url", http_fault(backend.url))
        if backend.adaptive is not None and backend.slots is not None:
            raise ConfigError(f"{at}.adaptive: not together with slots")
        if backend.adaptive is not None and backend.adaptive.low > backend.adaptive.high:
            raise ConfigError(f"{at}.adaptive.low: above high")
        _refuse(f"{at}.key", field_fault(backend.key))
