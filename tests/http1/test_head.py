"""H2: our own rules refuse by themselves, without llhttp beside them; and what they make of single fields."""

import pytest

from gateway.http1 import head as rules
from gateway.http1.wire import WireError, WireLimits
from tests.http1 import corpus

LIMITS = WireLimits()
# Refused for what is behind the head, or for its size: not the business of these rules.
ELSEWHERE = ("chunks/", "length/length-over-limit", "length/length-huge", "length/length-18-digits")
REFUSED = [
    case
    for case in corpus.cases("requests")
    if case.want.isdigit()
    and b"\r\n\r\n" in case.send
    and len(case.send) < LIMITS.head_bytes
    and not case.id.startswith(ELSEWHERE)
    and case.id not in ("connection/expect-too-large", "connection/fields-too-many")
]


def _judge(head: bytes) -> None:
    """One head by our rules alone."""
    method, target, version = rules.match(head, LIMITS.target_bytes)
    fields = rules.fields(head, {}, -1)
    host = rules.host(fields, version)
    rules.target(method, target, host)
    rules.framing(fields, version)
    rules.keep_alive(fields, version)
    rules.expects(fields, version)


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.id)
def test_our_own_rules_refuse_without_llhttp(case: corpus.Case) -> None:
    """H2: were llhttp lax, the verdict would be the same."""
    end = case.send.index(b"\r\n\r\n") + 4
    with pytest.raises(WireError) as caught:
        _judge(case.send[:end])
    assert str(caught.value.status) == case.want


def test_the_filter_leaves_most_of_the_corpus() -> None:
    """The filter above leaves most of the corpus."""
    assert len(REFUSED) > 180


@pytest.mark.parametrize(
    ("value", "version", "kept"),
    [
        (None, 11, True),
        (None, 10, False),
        (b"keep-alive", 10, True),
        (b"Keep-Alive", 10, True),
        (b"close", 11, False),
        (b"x, CLOSE", 11, False),
        (b"keep-alive, close", 10, False),
        (b"", 11, True),
        (b"", 10, False),
    ],
)
def test_close_wins_over_keep_alive(value: bytes | None, version: int, kept: bool) -> None:
    """H1: RFC 9112 section 9.3."""
    assert rules.keep_alive({} if value is None else {b"connection": value}, version) is kept


def test_error_says_status_and_reason() -> None:
    """For logs."""
    assert str(WireError(400, "malformed host")) == "400: malformed host"
