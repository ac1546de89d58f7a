"""Writing heads, and what a head must not carry."""

import pytest

from gateway.http1.message import HOP_BY_HOP, REASONS, render_head
from gateway.http1.reply import parse_response_head


def test_render_and_read_back() -> None:
    """What we write, our own strict reader takes."""
    fields = [(b"content-type", b"application/json"), (b"content-length", b"0")]
    for status in (*REASONS, 299, 599):
        head = render_head(status, fields if status not in (101, 204) and status >= 200 else [])
        if status != 101:
            parsed = parse_response_head(head, "POST")
            assert parsed is not None
            assert parsed[0].status == status
    assert render_head(200, fields) == b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 0\r\n\r\n"


@pytest.mark.parametrize("bad", [b"a\r\nx: y", b"a\nb", b"a\rb", b"a\0b", b"\r\n"])
def test_render_refuses_to_split(bad: bytes) -> None:
    """H8: no field can begin another line, in a value or in a name."""
    with pytest.raises(ValueError, match="CR, LF or NUL"):
        render_head(200, [(b"x", bad)])
    with pytest.raises(ValueError, match="CR, LF or NUL"):
        render_head(200, [(bad, b"x")])


def test_hop_by_hop_is_lower_case() -> None:
    """H8: names compare with those of parsed heads."""
    assert all(name == name.lower() for name in HOP_BY_HOP)
