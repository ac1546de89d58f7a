"""The client's address (H9). Pure."""

import ipaddress
from collections.abc import Callable, Sequence

from gateway.http1.message import RequestHead
from gateway.services.principal import Network
from gateway.services.rights import inside

HOPS = 16
"""Entries of `X-Forwarded-For` to look at: real chains have a few proxies, while a client can forge thousands of
entries."""


def client_ip_of(trusted: Sequence[str]) -> Callable[[str, RequestHead], str]:
    """A function (peer, head) -> client address.

    The address is the peer itself, unless that is in `trusted` (CIDRs); then it is the right-most entry of
    `X-Forwarded-For` that is not in `trusted`. The search ends after HOPS entries, and at a malformed entry, since no
    trusted proxy vouches for anything to the left of it.
    """
    if not trusted:
        return lambda peer, head: peer
    believed = forwarded_by(trusted)
    return lambda peer, head: believed(peer, head.headers.get(b"x-forwarded-for"))


def forwarded_by(trusted: Sequence[str]) -> Callable[[str, bytes | None], str]:
    """The same as a function (peer, `X-Forwarded-For` or None) -> client address."""
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
    """A function peer -> whether it is one of the trusted proxies, which stand for many clients."""
    lists = _lists(trusted)
    return lambda peer: inside(peer, lists)


def _lists(trusted: Sequence[str]) -> tuple[tuple[Network, ...]]:
    """The networks as one allowlist, in the form that `inside` takes."""
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
