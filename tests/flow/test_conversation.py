"""Which requests belong to one conversation, and that they meet one engine (R3)."""

import json
from pathlib import Path
from typing import Any

import pytest
import uvloop

from gateway import config as cfg
from gateway.flow.conversation import conversation
from gateway.http1.message import RequestHead
from gateway.services.principal import Principal
from scheduler.settings import Settings
from tests.flow.engine import Engine, plain
from tests.gateway import gateway
from tests.test_workers import crew, keys

CHAT = "/v1/chat/completions"
SYSTEM = {"role": "system", "content": "Be brief."}


def number(body: object, key: str = "k1", user: str = "u1", session: str = "") -> int:
    fields = {b"x-session-id": session.encode()} if session else {}
    head = RequestHead("POST", b"", "", 11, fields, None, False, False, False)
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return conversation(Principal("t", user, key), head, text)


def said(*texts: str, system: bool = True, **more: Any) -> dict[str, Any]:
    """A chat in which user and assistant took turns."""
    turns = [{"role": "user" if n % 2 == 0 else "assistant", "content": text} for n, text in enumerate(texts)]
    return {"model": "m", "messages": [SYSTEM] * system + turns, **more}


GROWING: dict[str, tuple[Any, Any]] = {
    "chat": (said("hi"), said("hi", "hello", "and now?")),
    "chat without instructions": (said("hi", system=False), said("hi", "hello", "what?", system=False)),
    "other options": (said("hi", temperature=0), said("hi", "a", "b", temperature=1, stream=True)),
    "content before role": (
        b'{"model":"m","messages":[{"content":"{[\\"x","role":"user"}]}',
        b'{"model":"m","messages":[ {"content":"{[\\"x","role":"user"} , {"content":"y","role":"assistant"}]}',
    ),
    "responses": (
        {"model": "m", "instructions": "Be brief.", "input": [{"role": "user", "content": "hi"}]},
        {"model": "m", "instructions": "Be brief.", "input": [{"role": "user", "content": "hi"}, {"type": "message"}]},
    ),
    "a long first turn": (said("x" * 10_000), said("x" * 10_000, "a", "b")),
    "a turn beyond what is read": (said("x" * 300_000), said("x" * 300_000, "a", "b")),
    "a prompt that grows": (
        {"model": "m", "prompt": "once upon a time " * 30},
        {"model": "m", "prompt": "once upon a time " * 30 + "there was"},
    ),
}


@pytest.mark.parametrize("name", GROWING)
def test_a_conversation_stays_the_same_from_turn_to_turn(name: str) -> None:
    first, later = (number(body) for body in GROWING[name])
    assert first == later
    assert 0 < first < 1 << 63


DIFFERENT: dict[str, Any] = {
    "another beginning": number(said("ho")),
    "no instructions": number(said("hi", system=False)),
    "another user": number(said("hi"), user="u2"),
    "another key": number(said("hi"), key="k2"),
    "a session": number(said("hi"), session="s"),
}  # fmt: skip


@pytest.mark.parametrize("name", DIFFERENT)
def test_another_conversation_is_another(name: str) -> None:
    assert DIFFERENT[name] != number(said("hi"))


def test_a_session_that_the_client_names_goes_before_what_is_said() -> None:
    assert number(said("a"), session="s") == number(said("b"), session="s") != number(said("b"), session="t")
    assert number(said("a"), session="s") != number(said("a"), session="s", key="k2")


@pytest.mark.parametrize("body", [{"model": "m"}, {"model": "m", "messages": None}])
def test_what_says_nothing_is_in_none_or_in_that_one(body: dict[str, Any]) -> None:
    assert number(body) == number(body)


@pytest.mark.parametrize("turns", [b"[]", b"[1,2,3]", b'"text"', b"[[1],[2]]", b'[{"role":7}]', b'[{"role":"tool"}]'])
def test_strange_turns_are_no_error(turns: bytes) -> None:
    assert number(b'{"model":"m","messages":%b}' % turns)


@pytest.mark.parametrize("piece", [b"[]", b'""', b"{}"])
def test_however_much_a_body_holds_a_bounded_part_of_it_is_looked_through(piece: bytes) -> None:
    """What stands behind thousands of brackets and strings tells nothing: it would hold up all streams."""
    turn = b'{"role":"tool","content":[%b]}' % b",".join([piece] * 50_000)
    assert number(b'{"model":"m","messages":[%b,%b]}' % (turn, turn.replace(b"tool", b"user"))) == number(
        b'{"model":"m","messages":[%b]}' % turn
    )
    texts = [b'{"role":"system","content":"%b"}' % (b"x" * 100_000)] * 3
    told = [
        b'{"model":"m","messages":[%b,{"role":"user","content":"%b"}]}' % (b",".join(texts), b) for b in (b"a", b"b")
    ]
    assert number(told[0]) == number(told[1])


def two(one: Engine, other: Engine) -> list[dict[str, Any]]:
    return [{"name": n, "url": e.url, "engine": "openai", "slots": 8} for n, e in (("a", one), ("b", other))]


def test_a_body_as_deep_as_can_be_read_tells_of_a_conversation_or_of_none() -> None:
    for depth in range(800, 1001):
        number(b'{"model":"m","messages":[{"role":"user","content":%b%b}]}' % (b"[" * depth, b"]" * depth))


@pytest.mark.parametrize("affinity", [0.0, 1.25])
def test_with_the_setting_the_turns_of_a_conversation_meet_one_engine(affinity: float) -> None:
    async def main() -> None:
        async with Engine(plain) as one, Engine(plain) as other:
            backends = [cfg.Backend(**section) for section in two(one, other)]
            settings = Settings(affinity=affinity)
            async with gateway("", backends=backends, scheduling=settings) as g:
                for talk in range(12):
                    for turn in range(3):
                        assert (await g.ask(CHAT, said(f"talk {talk}", *(["x"] * 2 * turn))))[0] == 200
                rows = await g.records(36)
        met = [{row["backend"] for row in rows[3 * talk : 3 * talk + 3]} for talk in range(12)]
        if affinity:
            assert all(len(each) == 1 for each in met)
            assert set.union(*met) == {"a", "b"}
        else:
            assert set.union(*met) == {"a"}, "an idle gateway takes the first of equals"

    uvloop.run(main())


def test_several_workers_agree_on_homes(tmp_path: Path) -> None:
    async def main() -> None:
        async with Engine(plain) as one, Engine(plain) as other:
            (token,) = await keys(tmp_path, "u")
            async with crew(tmp_path, one, backends=two(one, other), scheduling={"affinity": 1.25}) as gate:
                for clients in await gate.by_worker(1):
                    for talk in range(8):
                        body = json.dumps(said(f"talk {talk}")).encode()
                        head = f"POST {CHAT} HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {token}\r\n"
                        await clients[0].send(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
                        assert (await clients[0].answer())[0] == 200
        met: dict[bytes, set[str]] = {}
        for name, engine in (("a", one), ("b", other)):
            while not engine.chats.empty():
                asked = json.loads(engine.chats.get_nowait()[1])["messages"][1]["content"]
                met.setdefault(asked, set()).add(name)
        assert len(met) == 8
        assert all(len(each) == 1 for each in met.values())
        assert set.union(*met.values()) == {"a", "b"}

    uvloop.run(main())
