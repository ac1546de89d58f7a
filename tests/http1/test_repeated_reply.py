"""H2 towards backends: taking a repeated response head over without parsing changes no verdict."""

import pytest

from gateway.http1.message import ResponseHead, UpstreamWireError
from gateway.http1.reply import ResponseHeads, parse_response_head
from tests.http1 import corpus

RESPONSES = corpus.cases("responses")
BEFORE = b"HTTP/1.1 200 OK\r\nServer: a\r\nContent-Length: "
AFTER = b"\r\nContent-Type: application/json\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nServer: a\r\nTransfer-Encoding: chunked\r\n\r\n"
EMPTY = b"HTTP/1.1 204 No Content\r\nContent-Length: "
Verdict = tuple[ResponseHead, int] | None | str


def _verdict(heads: ResponseHeads | None, data: bytes, method: str) -> Verdict:
    try:
        return parse_response_head(data, method) if heads is None else heads.read(data, method)
    except UpstreamWireError as error:
        return error.reason


def _agrees(data: bytes, method: str, *earlier: tuple[bytes, str]) -> None:
    heads = ResponseHeads()
    for known, its_method in earlier:
        _verdict(heads, known, its_method)
    assert _verdict(heads, data, method) == _verdict(None, data, method)


@pytest.mark.parametrize("case", RESPONSES, ids=lambda case: case.id)
def test_corpus_behind_other_answers(case: corpus.Case) -> None:
    """Every case, whole and cut short, behind a valid head and behind itself, for its method and for another."""
    for end in {len(case.send), *range(0, min(len(case.send), 400), 3)}:
        data = case.send[:end]
        for known in (BEFORE + b"5" + AFTER, CHUNKED, case.send):
            _agrees(data, case.method, (known, "POST"))
            _agrees(data, case.method, (known, "HEAD"))


@pytest.mark.parametrize("before", [BEFORE, EMPTY])
@pytest.mark.parametrize(
    "length",
    [b"", b"0", b"00", b"7", b"05", b"+5", b"-5", b" 5", b"5 ", b"5,5", b"5;", b"5\n", b"5\x00", b"\xb2", b"0x5"]
    + [b"1" * digits for digits in (8, 9, 10, 18, 19, 40)]
    + [b"5\r\nContent-Length: 5", b"5\r\nTransfer-Encoding: chunked"],
    ids=repr,
)
def test_any_text_in_the_place_of_the_length(before: bytes, length: bytes) -> None:
    """Only digits are taken over; where no body is allowed, the length still decides."""
    for known in (b"0", b"5", b"12345"):
        _agrees(before + length + AFTER + b"abc", "POST", (before + known + AFTER, "POST"))


def test_any_byte_of_a_known_head() -> None:
    """Each byte of the head replaced by ones that matter, dropped or doubled."""
    head = BEFORE + b"12" + AFTER
    for at in range(len(head)):
        for byte in (0x00, 0x0A, 0x0D, 0x20, 0x30, 0x3A):
            _agrees(head[:at] + bytes([byte]) + head[at + 1 :], "POST", (head, "POST"))
        _agrees(head[:at] + head[at + 1 :], "POST", (head, "POST"))
        _agrees(head[:at] + head[at : at + 1] + head[at:], "POST", (head, "POST"))


def test_a_known_head_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The point of it; and a large head is not kept."""
    heads = ResponseHeads()
    heads.read(BEFORE + b"5" + AFTER, "POST")
    heads.read(BEFORE.replace(b"Server: a", b"Server: " + b"a" * 5000) + b"6" + AFTER, "POST")
    monkeypatch.setattr("gateway.http1.reply.parse_response_head", lambda *_: pytest.fail("parsed"))
    read = heads.read(BEFORE + b"123" + AFTER + b"{", "POST")
    assert read is not None
    assert (read[0].content_length, read[0].get(b"content-length"), read[1]) == (123, b"123", len(BEFORE + AFTER) + 3)
