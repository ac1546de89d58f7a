"""Addresses of databases, engines and listeners: are they any? Pure; no complaint repeats a piece of one, as it may
hold a password."""

import re
from urllib.parse import urlsplit

_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.%]+\]|[^\[\]:]*)(?::\d+)?")


def database_fault(url: str) -> str:
    """Why no driver can read the URL of a database, or nothing. Drivers' own complaints repeat pieces of a password."""
    _, _, rest = url.partition("://")
    who, at, hosts = re.split("[/?#]", rest, maxsplit=1)[0].rpartition("@")
    whole = (at or rest.startswith("/") or "@" not in rest) and not set("[]") & set(who)
    if whole and all(map(_HOST.fullmatch, hosts.split(","))):
        return ""
    return "not a URL; a password's own / ? # [ ] @ : % are written as %2F %3F %23 %5B %5D %40 %3A %25"


def http_fault(url: str) -> str:
    """Why it is not http(s)://HOST[:PORT][/PATH], or nothing."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if usable and parts.username:
        return "name and password do not belong here; an engine's key goes into `key`"
    if not usable or parts.query or parts.fragment or not url.isascii() or not url.isprintable():
        return "not http(s)://HOST[:PORT][/PATH]"
    return ""


def parse_listen(text: str) -> tuple[str, int]:
    """`HOST:PORT` or `[V6]:PORT` -> (host, port). Raises ValueError."""
    host, sep, port = text.rpartition(":")
    if not sep or not host or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise ValueError("not HOST:PORT")
    return host.strip("[]"), int(port)
