"""H2 against an independent reader: h11 reads the whole corpus too, and every difference is listed with its reason.

A difference that `corpus/h11.toml` does not list fails, and so does a listed one that is none any more.
"""

import tomllib

import h11
import pytest

from tests.http1 import corpus

REQUESTS = corpus.cases("requests")
RESPONSES = corpus.cases("responses")
_TABLE = tomllib.loads((corpus.FOLDER / "h11.toml").read_text(encoding="utf-8"))
LISTED = {
    kind: {name: entry["reason"] for entry in _TABLE[kind] for name in entry["cases"]}
    for kind in ("requests", "responses")
}


def _h11_requests(data: bytes) -> str:
    """h11's verdict as a server, in the corpus's notation, any refusal as `error`."""
    peer = h11.Connection(h11.SERVER, max_incomplete_event_size=32 * 1024)
    if data:  # to h11, no bytes are the end of the stream
        peer.receive_data(data)
    said: list[str] = []
    body = b""
    request: h11.Request | None = None
    while True:
        try:
            event = peer.next_event()
        except h11.RemoteProtocolError:
            return " | ".join([*said, "error"])
        if event is h11.NEED_DATA or event is h11.PAUSED:
            begun = request is not None or bool(peer.trailing_data[0])
            return " | ".join([*said, "part"] if begun else said)
        if isinstance(event, h11.Request):
            request, body = event, b""
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            assert request is not None
            said.append(_request_text(request.method, request.target, body))
            peer.send(h11.Response(status_code=404, headers=[("content-length", "0")]))
            peer.send(h11.EndOfMessage())
            if peer.our_state is not h11.DONE or peer.their_state is not h11.DONE:
                return " | ".join([*said, "closed"])
            peer.start_next_cycle()
            request = None


def _request_text(method: bytes, target: bytes, body: bytes) -> str:
    text = f"{method.decode()} {target.decode('latin-1')}"
    return text + (f" ={body.decode('latin-1')}" if body else "")


def _our_requests(case: corpus.Case) -> str:
    seen, end = corpus.read_requests([case.send], case.limits)
    texts = [_request_text(each.method.encode(), each.target, each.body) for each in seen]
    return " | ".join([*texts, *(["error" if end.isdigit() else end] if end else [])])


def _differs(kind: str, case: corpus.Case, ours: str, theirs: str) -> None:
    if case.id in LISTED[kind]:
        assert ours != theirs, f"no difference any more: {LISTED[kind][case.id]}"
    else:
        assert ours == theirs


@pytest.mark.parametrize("case", REQUESTS, ids=lambda case: case.id)
def test_request(case: corpus.Case) -> None:
    """H2: same requests, same bodies, same refusals as h11, or a listed reason."""
    _differs("requests", case, _our_requests(case), _h11_requests(case.send))


@pytest.mark.parametrize("case", RESPONSES, ids=lambda case: case.id)
def test_response(case: corpus.Case) -> None:
    """H2 towards backends: the same, for responses."""
    ours = corpus.read_response([case.send], case.method, case.eof)
    _differs("responses", case, ours, corpus.h11_response(case.send, case.method, case.eof))


@pytest.mark.parametrize("kind", ["requests", "responses"])
def test_table_is_sound(kind: str) -> None:
    """Every listed case exists and is listed once, with a reason."""
    known = {case.id for case in (REQUESTS if kind == "requests" else RESPONSES)}
    listed = [name for entry in _TABLE[kind] for name in entry["cases"]]
    assert set(listed) <= known
    assert len(listed) == len(set(listed))
    assert all(entry["reason"] for entry in _TABLE[kind])
