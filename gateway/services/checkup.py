"""Checks a configuration and its environment for what is unsafe or broken: one pure function per check, facts ->
findings.

Owns the judgement and its wording. Must not know how facts are gathered or findings shown. A check that finds nothing
returns an empty list. A `problem` stops the gateway or opens a hole; a `warning` may be intended.
"""

import ipaddress
from collections.abc import Iterator, Sequence
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from gateway.api.model_names import untagged
from gateway.config import Backend, Config, Tracing
from gateway.issuer import Jwt
from gateway.services.discovery import Sighting
from gateway.services.tracing import EXTRA
from gateway.store.facts import PostgreSQLFacts, SqliteFacts
from gateway.urls import loopback, parse_listen

DAY = 86_400.0
SOON_DAYS = 14
"""ACME clients renew 30 days before the end: with 14 days left, renewal has been failing for a while."""
SHOWN = 4
"""Maximum privileges to list; a role that was never granted anything lacks them all."""
ARGON2_KIB = 19 * 1024
ARGON2_PASSES = 2
"""The minimum for Argon2id in OWASP's Password Storage Cheat Sheet."""


class Finding(msgspec.Struct, frozen=True):
    """What is wrong, in one sentence, and what to do about it."""

    level: Literal["problem", "warning"]
    says: str
    do: str


def _problem(says: str, do: str) -> Finding:
    return Finding("problem", says, do)


def _warning(says: str, do: str) -> Finding:
    return Finding("warning", says, do)


def _public(host: str) -> bool:
    """Whether the host means all interfaces or an address on the internet."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_unspecified or address.is_global


def listeners(config: Config) -> list[Finding]:
    """Is the control plane kept off the open network (O8), and are keys encrypted in transit?"""
    found = []
    host = parse_listen(config.admin.listen)[0] if config.admin.listen else "localhost"
    do = "set admin.listen to 127.0.0.1:PORT, or to an address that only operators and Prometheus reach"
    if _public(host):
        found.append(_problem(f"the admin listener is open to everyone at {config.admin.listen}", do))
    elif not loopback(host):
        found.append(_warning(f"the admin listener is reachable from other machines at {config.admin.listen}", do))
    if config.admin.api and not loopback(host):
        says = f"the admin API takes keys without TLS at {config.admin.listen}"
        do = "set admin.listen to 127.0.0.1:PORT and reach it through a proxy with TLS or an SSH tunnel"
        found.append(_warning(says, do))
    ended_elsewhere = config.hsts or config.trusted_proxies
    if not loopback(parse_listen(config.listen)[0]) and config.tls is None and not ended_elsewhere:
        says = f"{config.listen} takes keys without TLS"
        found.append(_warning(says, "set tls, or end TLS in a proxy and name it in trusted_proxies"))
    if config.hsts and config.tls is None and not config.trusted_proxies:
        says = "TLS ends in front (hsts), but no proxy is trusted: all clients count as one address"
        found.append(_warning(says, "name the proxy in trusted_proxies"))
    return found


def settings(config: Config) -> list[Finding]:
    """Settings that weaken a default protection."""
    found = []
    if not config.backends:
        found.append(_problem("no backends: there is nothing to serve", "name an engine under backends"))
    if any(ipaddress.ip_network(cidr).prefixlen == 0 for cidr in config.trusted_proxies):
        says = "trusted_proxies covers every address: clients choose the address they are throttled and allowed by"
        found.append(_problem(says, "name the proxies' own networks"))
    identity = config.identity
    if identity.argon2_memory_kib < ARGON2_KIB or identity.argon2_time_cost < ARGON2_PASSES:
        says = "Argon2id is weaker than OWASP's minimum: stolen hashes can be guessed faster"
        found.append(_warning(says, f"keep {ARGON2_PASSES} passes over {ARGON2_KIB} KiB or more"))
    if config.audit.when_full == "drop":
        says = "a full audit spool drops rows: requests may go unrecorded"
        found.append(_warning(says, "set audit.when_full to deny, unless availability comes first"))
    if "*" in config.cors.origins:
        says = "every web site may call this gateway from its visitors' browsers"
        found.append(_warning(says, "name exact origins in cors.origins"))
    return found


def secrets(config: Config) -> list[Finding]:
    """Databases without a password. Known placeholders are refused when the configuration is read (K11)."""
    redis = urlsplit(config.shared)
    if not config.shared or redis.password or loopback(redis.hostname or "localhost"):
        return []
    says = f"Redis at {redis.hostname} takes commands from everyone who reaches it"
    return [_warning(says, "set requirepass and put the password into the URL")]


def tracing(config: Tracing, installed: bool) -> list[Finding]:
    """Traces that cannot be exported, and secrets sent unencrypted."""
    found = []
    if config.endpoint and not installed:
        says = "tracing.endpoint is set, but OpenTelemetry is not installed: the gateway does not start"
        found.append(_problem(says, EXTRA))
    parts = urlsplit(config.endpoint)
    if config.headers and parts.scheme == "http" and not loopback(parts.hostname or ""):
        says = "tracing.headers cross the network in clear"
        found.append(_warning(says, "use https, or a collector beside the gateway"))
    return found


def tokens(section: Jwt, fault: str) -> list[Finding]:
    """Tokens of an issuer (K9) that cannot be verified, and an issuer that creates users. `fault`: why its keys cannot
    be fetched, or empty."""
    found = []
    if fault:
        says = f"the keys of {section.issuer} cannot be fetched: {fault}"
        found.append(_problem(says, "correct jwt.jwks, jwt.ca or jwt.algorithms, or start the issuer"))
    if section.create_users and section.tenant_claim and not section.tenants:
        says = "the issuer's tokens make users in every tenant that they name"
        found.append(_warning(says, "name the tenants that are meant in jwt.tenants"))
    return found


def config_file(path: str, mode: int, raw: Any) -> list[Finding]:
    """Who can change the file, and who can read secrets written in it."""
    found = []
    if mode & 0o022:
        found.append(_problem(f"{path} may be changed by others (mode {mode:04o})", f"chmod go-w {path}"))
    if mode & 0o044 and (written := sorted(literal_secrets(raw))):
        says = f"{path} holds {', '.join(written)} in clear and others may read it (mode {mode:04o})"
        found.append(_problem(says, f"chmod go-r {path}, or refer to it by env: or file:"))
    return found


def literal_secrets(raw: Any) -> Iterator[str]:
    """Paths of the settings whose secret is written in the file itself."""
    for index, backend in enumerate(_at(raw, "backends") or ()):
        if _literal(_at(backend, "key")):
            yield f"backends[{index}].key"
    if _literal(_at(raw, "admin", "oidc", "client_secret")):
        yield "admin.oidc.client_secret"
    for name, value in (_at(raw, "tracing", "headers") or {}).items():
        if _literal(value):
            yield f"tracing.headers.{name}"
    for name in ("store", "shared"):
        url = _at(raw, name)
        if isinstance(url, str) and "${" not in url and "://" in url and urlsplit(url).password:
            yield name


def _at(raw: Any, *names: str) -> Any:
    """The value at this place in the file, or None: sections may be empty."""
    for name in names:
        raw = raw.get(name) if isinstance(raw, dict) else None
    return raw


def _literal(value: Any) -> bool:
    return isinstance(value, str) and bool(value) and not value.startswith(("env:", "file:")) and "${" not in value


def secret_files(raw: Any) -> list[str]:
    """The files that `file:` references name, except those whose content is public."""
    if isinstance(raw, dict):
        return [path for name, value in raw.items() if name != "jwks" for path in secret_files(value)]
    if isinstance(raw, list):
        return [path for value in raw for path in secret_files(value)]
    return [raw.removeprefix("file:")] if isinstance(raw, str) and raw.startswith("file:") else []


def secret_file(path: str, mode: int) -> list[Finding]:
    """The mode of a secret file. Group-readable is normal: orchestrators mount secrets so."""
    if mode & 0o007:
        return [_problem(f"the secret in {path} is open to everyone (mode {mode:04o})", f"chmod 0600 {path}")]
    if mode & 0o020:
        return [_problem(f"the secret in {path} may be changed by its group (mode {mode:04o})", f"chmod g-w {path}")]
    return []


def public_file(path: str, mode: int) -> list[Finding]:
    """The mode of a file with an issuer's keys: whoever can change it can sign tokens for everybody."""
    if mode & 0o022:
        return [_problem(f"{path} may be changed by others (mode {mode:04o})", f"chmod go-w {path}")]
    return []


def certificate(path: str, not_after: float, now: float) -> list[Finding]:
    """The end of a certificate; both times in Unix seconds."""
    days = (not_after - now) / DAY
    if days < 0:
        return [_problem(f"the certificate in {path} ended {-days:.0f} days ago", "renew it, then send SIGHUP")]
    if days < SOON_DAYS:
        return [_warning(f"the certificate in {path} ends in {days:.0f} days", "see why it was not renewed")]
    return []


def sqlite(path: str, facts: SqliteFacts) -> list[Finding]:
    """An older schema is no finding, since the gateway migrates it at start (O6). A missing file is also created, which
    is right only before the first start."""
    if not facts.exists:
        says = f"there is no store {path} yet"
        return [_warning(says, "`fairgate serve` makes it; if yours is elsewhere, correct store")]
    found = []
    if facts.schema > facts.known:
        says = f"{path} was written by a newer program (schema {facts.schema}, known {facts.known})"
        found.append(_problem(says, "run that program's version, or restore a backup"))
    if facts.mode & 0o077:
        says = f"{path} is open to other users (mode {facts.mode:04o}): it holds hashes and who asked what"
        found.append(_problem(says, f"chmod 0600 {path}"))
    return found


def postgresql(facts: PostgreSQLFacts) -> list[Finding]:
    """Schema and role (O6, U4)."""
    found = []
    if facts.schema < facts.known:
        says = f"the schema is {facts.schema}, this program needs {facts.known}"
        found.append(_problem(says, "run `fairgate migrate` as the owner of the database"))
    if facts.schema > facts.known:
        says = f"the schema is {facts.schema}, newer than this program knows ({facts.known})"
        found.append(_problem(says, "upgrade this program"))
    if facts.lacks:
        more = f" and {len(facts.lacks) - SHOWN} more" if len(facts.lacks) > SHOWN else ""
        says = f"the role {facts.role} may not {', '.join(facts.lacks[:SHOWN])}{more}"
        found.append(_problem(says, f"run `fairgate migrate --app-role {facts.role}` as the owner of the database"))
    if facts.may:
        may = ", ".join(facts.may)
        says = f"the role {facts.role} may {may} on the audit trail or `operations`: history can be rewritten"
        found.append(_problem(says, "connect as a role of its own, made by `fairgate migrate --app-role ROLE`"))
    return found


def exposure(backend: Backend) -> list[Finding]:
    """An engine that others can reach too is used past the gateway's limits."""
    parts = urlsplit(backend.url)
    if loopback(parts.hostname or ""):
        return []
    if not backend.key:
        says = f"{backend.name}: whoever reaches {parts.hostname} uses the engine without the gateway"
        return [_warning(says, "give the engine a key (backends[].key), or let only the gateway reach it")]
    if parts.scheme == "http":
        says = f"{backend.name}: its key crosses the network in clear"
        return [_warning(says, "use https, or a network that only the gateway and the engine share")]
    return []


def models(backend: Backend, sighting: Sighting) -> list[Finding]:
    """The models of an engine that answers."""
    if not sighting.models:
        says = f"{backend.name} answers and has no model" + (" of those listed" if backend.models else "")
        return [_warning(says, "load one, or correct backends[].models")]
    seen = {untagged(model.name) for model in sighting.models}
    if missing := sorted(name for name in backend.models if untagged(name) not in seen):
        return [_warning(f"{backend.name} does not have {', '.join(missing)}", "load it, or correct backends[].models")]
    return []


def unreachable(what: str, why: str) -> list[Finding]:
    """Something that the gateway needs does not answer, or its certificate does not verify."""
    do = "start it, or correct its address; see that no firewall is between"
    if "CERTIFICATE_VERIFY_FAILED" in why:
        do = "renew its certificate, or name in `ca` the authority that signed it"
    return [_problem(f"{what}: {why}", do)]


def unreadable(path: str, why: str) -> list[Finding]:
    return [_problem(f"{path}: {why}", "correct the path, the file or its permissions for the gateway's user")]


def file_limit(wanted: int, hard: int) -> list[Finding]:
    """`hard` is the limit that the gateway cannot raise; below 0 = none."""
    if hard < 0 or hard >= wanted:
        return []
    says = f"caps.connections needs {wanted} open files, the system allows {hard}"
    return [_warning(says, "raise LimitNOFILE (systemd) or ulimit -Hn, or lower caps.connections")]


def worst(findings: Sequence[Finding]) -> str:
    """`problem`, `warning` or `ok`."""
    levels = {finding.level for finding in findings}
    return "problem" if "problem" in levels else "warning" if levels else "ok"
