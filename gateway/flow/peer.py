"""Who the client is, by address (H9). Pure."""

import ipaddress
from collections.abc import Callable, Sequence

from gateway.http1.message import RequestHead
from gateway.services.principal import Network
from gateway.services.rights import inside

HOPS = 16
"""Entries looked at: proxies stand in rows of a few, while a client can write thousands that look like theirs."""


def client_ip_of(trusted: Sequence[str]) -> Callable[[str, RequestHead], str]:
    """A function (peer, head) -> client address.

    The peer itself, unless it is inside `trusted` (CIDRs); then the right-most entry of `X-Forwarded-For` that is not.
    A malformed entry ends the search: what stands left of it was written by somebody nobody vouches for. So do HOPS
    entries.
    """
    if not trusted:
        return lambda peer, head: peer
    believed = forwarded_by(trusted)
    return lambda peer, head: believed(peer, head.headers.get(b"x-forwarded-for"))


def forwarded_by(trusted: Sequence[str]) -> Callable[[str, bytes | None], str]:
    """The same of (peer, `X-Forwarded-For` or None)."""
    lists = _lists(trusted)

    def client_ip(peer: str, forwarded: bytes | None) -> str:
        if forwarded is None or not inside(peer, lists):
            return peer
        address = peer
        for entry in reversed(forwarded.rsplit(b",", HOPS)[-HOPS:]):
            known = _address(entry)
            if known is None:
                return address
            address = known
            if not inside(address, lists):
                return address
        return address

    return client_ip


def vouched_by(trusted: Sequence[str]) -> Callable[[str], bool]:
    """A function peer -> whether it is one of these proxies, behind which stand many clients."""
    lists = _lists(trusted)
    return lambda peer: inside(peer, lists)


def _lists(trusted: Sequence[str]) -> tuple[tuple[Network, ...]]:
    """As one allowlist (`inside`)."""
    return (tuple(ipaddress.ip_network(cidr) for cidr in trusted),)


def _address(entry: bytes) -> str | None:
    """`1.2.3.4`, `1.2.3.4:80`, `2001:db8::1` or `[2001:db8::1]:80`, as proxies write them."""
    text = entry.strip().decode("ascii", "replace")
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return None
