"""Checks of URLs and addresses of databases, engines and listeners, and of values for header fields. Pure. No message
repeats a piece of a URL, since it may contain a password."""

import ipaddress
import re
from pathlib import Path
from urllib.parse import urlsplit

_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.%]+\]|[^\[\]:]*)(?::\d+)?")
_NAME = re.compile(
    r"(?:[a-z0-9_-]+\.)*(?![0-9]+\Z)[a-z0-9_-]+"
)  # a host whose last part is a number must be an IPv4 address (WHATWG)
_ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://[^/?#@\sA-Z]+")


def database_fault(url: str) -> str:
    """Why no driver could use this database URL; empty if it is valid. The drivers' own messages repeat pieces of a
    password."""
    _, _, rest = url.partition("://")
    who, at, hosts = re.split("[/?#]", rest, maxsplit=1)[0].rpartition("@")
    whole = (at or rest.startswith("/") or "@" not in rest) and not set("[]") & set(who)
    if whole and all(map(_HOST.fullmatch, hosts.split(","))):
        return ""
    return "not a URL; a password's own / ? # [ ] @ : % are written as %2F %3F %23 %5B %5D %40 %3A %25"


def store_fault(url: str) -> str:
    """Why this URL is not a store; empty if it is one."""
    scheme, sep, rest = url.partition("://")
    if sep and scheme in ("postgresql", "postgres"):
        return database_fault(url)
    path = url if not sep else rest if scheme == "sqlite" else ""
    return "" if path.strip("/") else "neither a path nor sqlite:// nor postgresql://"


def beside(folder: Path, path: str) -> str:
    """A relative path, joined to `folder`; an empty one stays empty."""
    return str(folder / path) if path else ""


def store_beside(folder: Path, url: str) -> str:
    """The same for the URL of a store: of SQLite's URLs, `sqlite:///PATH` is relative and `sqlite:////PATH` is not."""
    scheme, sep, rest = url.partition("://")
    if not sep:
        return beside(folder, url)
    return f"sqlite:///{folder / rest.removeprefix('/')}" if scheme == "sqlite" else url


def http_fault(url: str) -> str:
    """Why it is not http(s)://HOST[:PORT][/PATH]; empty if it is."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        (parts.hostname or "").encode("idna")  # raises for names that no resolver accepts: empty or too long labels
    except ValueError:
        usable = False
    if usable and parts.username:
        return "name and password do not belong here; an engine's key goes into `key`"
    if not usable or parts.query or parts.fragment or not url.isascii() or not url.isprintable():
        return "not http(s)://HOST[:PORT][/PATH]"
    return ""


def fetch_fault(url: str) -> str:
    """Why nothing fetched from there could be trusted; empty if it could. Plain http is accepted only without a network
    between."""
    address, _, query = url.partition("?")
    if http_fault(address) or not query.isascii() or not query.isprintable() or set(query) & set(" #"):
        return "not https://HOST[:PORT][/PATH]"
    parts = urlsplit(address)
    return "" if parts.scheme == "https" or loopback(parts.hostname or "") else "http only on loopback; use https"


def loopback(host: str) -> bool:
    """Whether this host is surely the local one. Names other than localhost may resolve to anything."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def parse_listen(text: str) -> tuple[str, int]:
    """`HOST:PORT` or `[V6]:PORT` -> (host, port). Raises ValueError."""
    host, sep, port = text.rpartition(":")
    if not sep or not host or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise ValueError("not HOST:PORT")
    try:
        host.encode("idna")
    except UnicodeError as err:
        raise ValueError("not HOST:PORT") from err
    return host.strip("[]"), int(port)


def bracketed(host: str) -> str:
    """The host as it stands in a URL: an IPv6 address in brackets (RFC 3986, 3.2.2)."""
    return f"[{host}]" if ":" in host else host


def host_fault(text: str) -> str:
    """Why no request could be addressed to this host name; empty if it is valid (RFC 9110, 7.2; without a port)."""
    try:
        sent = str(ipaddress.ip_address(text)) == text  # in its canonical short form, as browsers send it
    except ValueError:
        sent = bool(_NAME.fullmatch(text))
    return "" if sent else "not a name or an address in lower case and without a port"


def origin_fault(text: str) -> str:
    """Why no browser sends this as an Origin; empty if it is one (RFC 6454, 6.2). `null` is what every sandboxed page
    sends."""
    return "" if _ORIGIN.fullmatch(text) else "not SCHEME://HOST[:PORT] in lower case and without a path"


def field_fault(text: str) -> str:
    """Why this cannot be sent in a header field; empty if it can (RFC 9110, 5.5)."""
    return "" if text.isascii() and text.isprintable() else "only visible ASCII goes into a header field"
