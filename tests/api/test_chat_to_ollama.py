"""`gateway.api.chat_to_ollama`: a chat completion as Ollama answers, whole and streamed, however the bytes are cut."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api.chat_to_ollama import chat, chat_stream, embed, embedding, generate, generate_stream
from tests.api.streams import TEXTS, cuts
from tests.api.test_chat_to_messages import CALLED, DONE, FRAGMENTS, call, frame

USAGE = {"prompt_tokens": 9, "completion_tokens": 2}
COUNTED = b'data: {"choices":[],"model":"m","usage":{"prompt_tokens":9,"completion_tokens":2}}\n\n'
SENT = 100.0


class Clock:
    """Two seconds to the first look, one more for each other."""

    def __init__(self) -> None:
        self.now = SENT + 1.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def lines(*payload: bytes, make: Any = chat_stream) -> tuple[list[Any], str]:
    stream = make(Clock(), SENT)
    out = b"".join(map(stream.feed, payload)) + stream.flush()
    assert out.endswith(b"\n") or not out
    return [json.loads(line) for line in out.splitlines()], stream.failed


def whole(make: Any, message: dict[str, Any], **choice: Any) -> dict[str, Any]:
    made = {"model": "m", "created": 0, "choices": [{"message": message, **choice}], "usage": USAGE}
    return dict(json.loads(make(json.dumps(made).encode(), 2.0)))


LAST = {
    "model": "m", "created_at": "1970-01-01T00:00:00Z", "done": True, "done_reason": "stop",
    "prompt_eval_count": 9, "eval_count": 2,
}  # fmt: skip
WHOLE = {"total_duration": 2_000_000_000, "prompt_eval_duration": 2_000_000_000, "eval_duration": 0}
STREAMED = {"total_duration": 3_000_000_000, "prompt_eval_duration": 2_000_000_000, "eval_duration": 1_000_000_000}


def test_a_whole_completion_becomes_an_ollama_answer() -> None:
    """A4"""
    said = {"content": "hi", "reasoning": "hm"}
    message = {"role": "assistant", "content": "hi", "thinking": "hm"}
    assert whole(chat, said, finish_reason="stop") == LAST | WHOLE | {"message": message}
    assert whole(generate, said) == LAST | WHOLE | {"response": "hi", "thinking": "hm"}
    assert whole(chat, {"content": None}, finish_reason="length")["done_reason"] == "length"


def test_calls_of_tools_come_whole() -> None:
    """A4: with the arguments as an object."""
    calls = [{"id": "c", "function": {"name": "f", "arguments": '{"a":1}'}}]
    made = [{"id": "c", "function": {"index": 0, "name": "f", "arguments": {"a": 1}}}]
    assert whole(chat, {"content": None, "tool_calls": calls})["message"]["tool_calls"] == made
    got, failed = lines(
        frame(call(0, '{"a"', "f", id="c")), frame(call(1, "{", "g")), frame(call(0, ":1}")), frame(call(1, "}")), DONE
    )
    assert not failed
    assert [line["done"] for line in got] == [False, True]
    second = {"id": "", "function": {"index": 1, "name": "g", "arguments": {}}}
    assert got[0]["message"]["tool_calls"] == [*made, second]


@FRAGMENTS
def test_fragments_of_calls_are_told_apart(deltas: list[dict[str, Any]]) -> None:
    got, _ = lines(*map(frame, deltas), DONE)
    functions = [call["function"] for call in got[0]["message"]["tool_calls"]]
    assert functions == [{"index": 0, "name": "f", "arguments": {"a": 1}}, {"index": 1, "name": "g", "arguments": {}}]
    message = whole(chat, {"tool_calls": CALLED})["message"]
    assert [call["function"] for call in message["tool_calls"]] == functions


def test_arguments_keep_their_text_on_one_line() -> None:
    """A4: nothing is rounded, and a line of the stream is one."""
    arguments = '{"a":\n[123456789012345678901234567890,\r\n1e999,0.30000000000000004]}'
    stream = chat_stream(Clock(), SENT)
    out = stream.feed(frame(call(0, arguments, "f")) + DONE)
    assert [json.loads(line)["done"] for line in out.splitlines()] == [False, True]
    assert b"123456789012345678901234567890," in out
    assert b"1e999,0.30000000000000004" in out


@pytest.mark.parametrize(("make", "part"), [(chat_stream, "message"), (generate_stream, "response")])
def test_a_stream(make: Any, part: str) -> None:
    """A4: a line for what is said, one for the end, with the engine's counts and our clock's durations."""
    frames = [frame({"role": "assistant"}), frame({"reasoning_content": "hm"}), frame({"content": "a"})]
    got, failed = lines(*frames, frame({}, finish_reason="stop"), COUNTED, DONE, make=make)
    assert not failed
    inner = [line.get("message", {"content": line.get("response"), "thinking": line.get("thinking")}) for line in got]
    assert [(each["content"], each.get("thinking")) for each in inner] == [("", "hm"), ("a", None), ("", None)]
    last = got[-1]
    del last[part]
    assert last == LAST | STREAMED


def test_log_probabilities_are_translated() -> None:
    """A4: in the same words, whole and streamed, on one line; forms that are none are left out."""
    tokens = [{"token": "a", "logprob": -0.1, "bytes": [97], "top_logprobs": [{"token": "b", "logprob": -2.0}]}]
    said = {"content": tokens, "refusal": None}
    assert whole(chat, {"content": "a"}, logprobs=said)["logprobs"] == tokens
    got, _ = lines(frame({"content": "a"}, logprobs=said), frame({"content": ""}, logprobs=said), frame({}), DONE)
    assert [line.get("logprobs") for line in got] == [tokens, tokens, None]
    for other in (None, {"content": None}, {"tokens": ["a"]}, [1]):
        got, failed = lines(frame({"content": "a"}, logprobs=other), DONE)
        assert not failed
        assert ["logprobs" in line for line in got] == [False, False]


@given(TEXTS, st.data())
def test_however_the_bytes_are_cut(texts: list[str], data: st.DataObject) -> None:
    """A4: the words of a stream are those of the whole, and its cuts change nothing."""
    payload = b"".join(frame({"content": text}) for text in texts) + frame({}, finish_reason="length") + COUNTED + DONE
    got, failed = lines(*data.draw(cuts(payload)))
    assert not failed
    assert "".join(line["message"]["content"] for line in got) == "".join(texts)
    assert [line["done"] for line in got] == [False] * (len(got) - 1) + [True]
    assert (got[-1]["done_reason"], got[-1]["eval_count"]) == ("length", 2)


def test_a_stream_without_its_end_has_none_here_either() -> None:
    """A5: the relay says so in its place."""
    got, failed = lines(frame({"content": "a"}), frame({}, finish_reason="stop"), COUNTED)
    assert not failed
    assert [line["done"] for line in got] == [False]


def test_an_engines_error_stays_inside() -> None:
    """H8"""
    got, failed = lines(frame({"content": "a"}), b'data: {"error":{"message":"at 10.0.0.5"}}\n\n' + DONE)
    assert "10.0.0.5" in failed
    assert "10.0.0.5" not in json.dumps(got)


def test_nothing_passes_behind_the_end() -> None:
    got, _ = lines(frame({"content": "a"}), DONE, frame({"content": "b"}), DONE)
    assert [line["done"] for line in got] == [False, True]


def test_embeddings_keep_the_engines_numbers() -> None:
    """A4: in their order, as text: nothing is rounded."""
    body = b'{"model":"e","data":[{"index":1,"embedding":[0.30000000000000004,1e-9]},{"index":0,"embedding":[-0]}],'
    body += b'"usage":{"prompt_tokens":4,"total_tokens":4}}'
    made = embed(body, 0.5)
    assert b'"embeddings":[[-0],[0.30000000000000004,1e-9]]' in made
    assert json.loads(made)["prompt_eval_count"] == 4
    assert json.loads(made)["total_duration"] == 500_000_000
    assert embedding(body[:-1] + b"}", 0.5) == b'{"embedding":[0.30000000000000004,1e-9]}'


DEEP = b'{"choices":[],"data":[{"embedding":%b%b}]}' % (b"[" * 9999, b"]" * 9999)


@pytest.mark.parametrize("make", [chat, generate, embed, embedding])
@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"choices":3}', b'{"choices":[],"data":3}', b"\xff", b"[" * 9999, DEEP]
)
def test_what_is_no_answer_is_an_error(make: Any, body: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        make(body, 1.0)


@pytest.mark.parametrize("created", [-1, 10**30, None])
def test_a_time_that_is_none_is_no_error(created: int | None) -> None:
    made = {"created": created, "choices": [{"message": {"content": "x"}}]}
    assert json.loads(chat(json.dumps(made).encode(), 1.0))["created_at"].endswith("Z")
