"""`gateway.api.chat_to_messages`: a chat completion as a message, whole and streamed, however the bytes are cut."""

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api.chat_to_messages import MessageStream, answer
from tests.api.streams import TEXTS, cuts

USAGE = {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}
COUNTS = {
    "input_tokens": 5, "cache_read_input_tokens": 4, "cache_creation_input_tokens": 0, "output_tokens": 2,
}  # fmt: skip
DONE = b"data: [DONE]\n\n"


def frame(delta: dict[str, Any], **choice: Any) -> bytes:
    body = {"id": "c1", "model": "m", "choices": [{"index": 0, "delta": delta, **choice}]}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def call(index: int | None, arguments: str, name: str = "", **members: Any) -> dict[str, Any]:
    function = {"arguments": arguments} | ({"name": name} if name else {})
    place = {} if index is None else {"index": index}
    return {"tool_calls": [{**place, "function": function, **members}]}


CALLED = [{"function": {"name": "f", "arguments": '{"a":1}'}}, {"function": {"name": "g", "arguments": "{}"}}]
TGI: list[tuple[int, str, Any]] = [(0, "f", {"a": 1}), (1, "g", {})]
"""Ids that are numbers, arguments that are no text."""
FRAGMENTS = pytest.mark.parametrize(
    "deltas",
    [
        [call(0, "", "f", id="x"), call(0, '{"a"'), call(0, ":1}"), call(1, "{}", "g", id="y")],
        [call(0, '{"a"', "f", id="x"), call(0, ":1}", "f", id="x"), call(1, "{}", "g", id="y")],
        [call(0, '{"a"', "f", id="x"), call(0, ":1}", "f"), call(1, "{}", "g", id="y")],
        [call(0, '{"a":1}', "f", id="x"), call(0, "{}", "g", id="y")],
        [call(None, '{"a"', "f", id="x"), call(None, ":1}"), call(None, "{}", "g", id="y")],
        [call(None, '{"a":1}', "f"), call(None, "{", "g"), call(None, "}")],
        [{"tool_calls": [{"index": 0, **CALLED[0]}, {"index": 1, **CALLED[1]}]}],
        [{"tool_calls": CALLED}],
        [
            {"tool_calls": [{"index": n, "id": n, "function": {"name": name, "arguments": made}}]}
            for n, name, made in TGI
        ],
        [call(0, '{"a"', "f", id="x"), call(1, "{", "g", id="y"), call(0, ":1}"), call(1, "}")],
        [call(0, "", "f", id="x"), call(1, "{}", "g", id="y"), call(0, '{"a":1}')],
    ],
)
"""Ways in which engines tell two calls: with or without indices, with names and ids once or in each fragment, one after
the other or both at once."""


def events(payload: bytes) -> list[Any]:
    values = []
    for event in payload.decode().split("\n\n")[:-1]:
        name, data = event.split("\n")
        values.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {values[-1]['type']}"
    return values


def streamed(*frames: bytes) -> tuple[list[Any], str]:
    stream = MessageStream()
    out = b"".join([*map(stream.feed, frames), stream.flush()])
    return events(out), stream.failed


def message_of(values: list[Any]) -> dict[str, Any]:
    """What a client makes of the events; checks their order."""
    assert [value["type"] for value in (values[0], *values[-2:])] == ["message_start", "message_delta", "message_stop"]
    message: dict[str, Any] = dict(values[0]["message"])
    open_block = None
    for value in values[1:-2]:
        if value["type"] == "content_block_start":
            assert open_block is None
            assert value["index"] == len(message["content"])
            open_block = value["index"]
            message["content"].append(value["content_block"] | {"parts": ""})
        elif value["type"] == "content_block_stop":
            assert value["index"] == open_block
            open_block = None
        else:
            assert value["index"] == open_block
            block, delta = message["content"][value["index"]], value["delta"]
            kind = {"text": "text", "thinking": "thinking", "tool_use": "input_json"}[block["type"]]
            assert delta["type"] == f"{kind}_delta"
            block["parts"] += delta.get("text") or delta.get("thinking") or delta.get("partial_json")
    assert open_block is None
    for block in message["content"]:
        parts = block.pop("parts")
        value = json.loads(parts or "{}") if block["type"] == "tool_use" else parts
        block[{"text": "text", "thinking": "thinking", "tool_use": "input"}[block["type"]]] = value
    return message | values[-2]["delta"] | {"usage": values[-2]["usage"]}


def whole(message: dict[str, Any], **choice: Any) -> Any:
    choices = [{"index": 0, "message": message, **choice}]
    return json.loads(answer(json.dumps({"id": "c1", "model": "m", "choices": choices, "usage": USAGE}).encode()))


@given(st.data(), st.lists(TEXTS), st.lists(TEXTS), st.lists(st.dictionaries(st.text(max_size=3), TEXTS), max_size=3))
def test_streamed_and_whole_are_the_same_message(
    data: st.DataObject, thoughts: list[str], words: list[str], inputs: list[dict[str, str]]
) -> None:
    """A4: thoughts, then words, then calls in fragments; whatever the cuts and the line ends."""
    frames = [frame({"role": "assistant", "content": ""})]
    frames += [frame({"reasoning_content": part, "content": None}) for part in thoughts]
    frames += [frame({"content": part}) for part in words]
    for index, value in enumerate(inputs):
        text = json.dumps(value)
        frames.append(frame(call(index, text[:3], f"f{index}", id=f"t{index}")))
        frames.append(frame(call(index, text[3:])))
    frames.append(frame({}, finish_reason="tool_calls" if inputs else "stop"))
    frames.append(b'data: {"choices":[],"usage":%b}\n\n' % json.dumps(USAGE).encode())
    payload = b"".join([b": hello\n\n", *frames, DONE])
    if data.draw(st.booleans()):
        payload = payload.replace(b"\n", b"\r\n")
    got, failed = streamed(*data.draw(cuts(payload)))
    assert (got, failed) == streamed(payload)
    assert not failed
    calls = [
        {"id": f"t{index}", "function": {"name": f"f{index}", "arguments": json.dumps(value)}}
        for index, value in enumerate(inputs)
    ]
    said = {"reasoning_content": "".join(thoughts), "content": "".join(words), "tool_calls": calls}
    assert message_of(got) == whole(said, finish_reason="tool_calls" if inputs else "stop")


def test_a_whole_message() -> None:
    """A4: blocks, and the cached tokens apart from the input."""
    calls = [{"id": "t", "function": {"name": "f", "arguments": '{"a":1}'}}, {"function": {"name": "g"}}]
    assert whole({"content": "x", "reasoning": "hm", "tool_calls": calls}, finish_reason="stop") == {
        "id": "c1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": ""},
            {"type": "text", "text": "x"},
            {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}},
            {"type": "tool_use", "id": "toolu_c1_1", "name": "g", "input": {}},
        ],
        "stop_reason": "tool_use",
        "stop_sequence": None,
        "usage": COUNTS,
    }


@pytest.mark.parametrize(
    ("choice", "reason", "sequence"),
    [
        ({"finish_reason": "stop"}, "end_turn", None),
        ({"finish_reason": "length"}, "max_tokens", None),
        ({"finish_reason": "tool_calls"}, "tool_use", None),
        ({"finish_reason": "content_filter"}, "refusal", None),
        ({"finish_reason": None}, "end_turn", None),
        ({"finish_reason": "eos_token"}, "end_turn", None),
        ({"finish_reason": "stop", "stop_reason": "END"}, "stop_sequence", "END"),
        ({"finish_reason": "stop", "stop_reason": 128001}, "end_turn", None),
        ({"finish_reason": "stop", "matched_stop": "END"}, "stop_sequence", "END"),
        ({"finish_reason": "stop", "matched_stop": 128001}, "end_turn", None),
        ({"finish_reason": "length", "matched_stop": None}, "max_tokens", None),
    ],
)
def test_why_it_ended(choice: dict[str, Any], reason: str, sequence: str | None) -> None:
    """A4"""
    message = whole({"content": "x"}, **choice)
    assert (message["stop_reason"], message["stop_sequence"]) == (reason, sequence)
    got = message_of(streamed(frame({"content": "x"}), frame({}, **choice), DONE)[0])
    assert (got["stop_reason"], got["stop_sequence"]) == (reason, sequence)


@FRAGMENTS
def test_fragments_of_calls_are_told_apart(deltas: list[dict[str, Any]]) -> None:
    content = message_of(streamed(*map(frame, deltas), DONE)[0])["content"]
    assert [(block["name"], block["input"]) for block in content] == [("f", {"a": 1}), ("g", {})]
    assert content[0]["id"] != content[1]["id"]


def test_what_comes_behind_an_unfinished_call_keeps_its_order() -> None:
    """Words and a third call wait for the first call's end, and no longer; what is behind an end does not count."""
    first, rest = call(0, '{"a"', "f", id="x"), call(0, ":1}")
    behind = [{"content": "perhaps"}, call(1, '{"b":', "g", id="y"), {"content": "then"}]
    stream = MessageStream()
    held = b"".join(map(stream.feed, map(frame, [first, *behind])))
    assert b"perhaps" not in held
    assert b'"name":"g"' not in held
    freed = stream.feed(frame(rest))
    assert b"perhaps" in freed
    assert b'"name":"g"' in freed
    assert b"then" not in freed
    late = b"".join(
        map(stream.feed, [frame(call(0, "{}")), frame(call(1, "2}")), frame(call(2, "{", "h", id="z")), DONE])
    )
    message = events(held + freed + late)
    assert [value["content_block"]["type"] for value in message if value["type"] == "content_block_start"] == [
        "tool_use",
        "text",
        "tool_use",
        "text",
        "tool_use",
    ]
    inputs = [value["delta"]["partial_json"] for value in message if "partial_json" in value.get("delta", {})]
    assert "".join(inputs) == '{"a":1}{"b":2}{'
    assert [value["index"] for value in message if value["type"] == "content_block_stop"] == [0, 1, 2, 3, 4]


def test_arguments_may_be_as_deep_as_they_like() -> None:
    """Around the deepest that JSON is read here, too."""
    for depth in range(800, 1001):
        deep = '{"a":' * depth + "{}" + "}" * depth
        message = {"tool_calls": [{"id": "t", "function": {"name": "f", "arguments": deep}}]}
        made = answer(json.dumps({"choices": [{"message": message}]}).encode())
        assert deep.encode() in made or b'"input":{}' in made


def test_a_byte_order_mark_hides_no_first_frame() -> None:
    """WHATWG, event streams: one may stand before the first line, in bytes of any cut."""
    payload = b"\xef\xbb\xbf" + frame({"content": "hi"}) + DONE
    for cut in range(len(payload)):
        assert message_of(streamed(payload[:cut], payload[cut:])[0])["content"] == [{"type": "text", "text": "hi"}]


def test_counts_may_be_written_with_a_fraction() -> None:
    """As some writers of JSON do, which know one kind of number."""
    body = (
        b'{"created":1.5,"choices":[{"message":{"content":"x"}}],"usage":{"prompt_tokens":9.0,"completion_tokens":2.0}}'
    )
    usage = json.loads(answer(body))["usage"]
    assert (usage["input_tokens"], usage["output_tokens"]) == (9, 2)
    assert not any(isinstance(count, float) for count in usage.values())


def test_arguments_that_a_limit_cut_are_none() -> None:
    assert (
        whole({"tool_calls": [{"id": "t", "function": {"name": "f", "arguments": '{"a":'}}]})["content"][0]["input"]
        == {}
    )


@pytest.mark.parametrize("payload", [b"data: {\n\n", b"data: 3\n\n", b'data: {"choices":3}\n\n'])
def test_a_frame_that_is_no_chunk_ends_the_stream(payload: bytes) -> None:
    """A5, H8: what came before stays, nothing passes behind it."""
    got, failed = streamed(frame({"content": "a"}), payload + frame({"content": "b"}), DONE)
    assert failed
    assert [value["type"] for value in got] == ["message_start", "content_block_start", "content_block_delta"]


def test_an_engines_error_stays_inside() -> None:
    """H8"""
    got, failed = streamed(frame({"content": "a"}), b'data: {"error":{"message":"at 10.0.0.5"}}\n\n' + DONE)
    assert "10.0.0.5" in failed
    assert "10.0.0.5" not in json.dumps(got)
    assert got[-1]["type"] == "content_block_delta"


def test_a_stream_without_its_end_has_none_here_either() -> None:
    """A5: the relay says so in its place."""
    got, failed = streamed(frame({"content": "a"}), frame({}, finish_reason="stop"))
    assert not failed
    assert got[-1]["type"] == "content_block_delta"
    assert message_of(streamed(frame({"content": "a"}), b"data: [DONE]\n")[0])["content"][0]["text"] == "a"
    assert message_of(streamed(DONE)[0])["content"] == []


def test_only_the_first_choice_of_a_chunk_is_told() -> None:
    """As of a whole answer: the API has one."""
    both = [{"index": n, "delta": {"content": text}} for n, text in enumerate("ab")]
    got, _ = streamed(b"data: " + json.dumps({"choices": both}).encode() + b"\n\n", DONE)
    assert message_of(got)["content"][0]["text"] == "a"


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r"])
def test_a_frame_in_many_pieces_costs_what_a_whole_one_does(end: bytes) -> None:
    stream = MessageStream()
    text = frame({"content": "x" * 900_000}).strip() + end + frame({"content": "y"})
    began = time.process_time()
    out = b"".join([stream.feed(text[at : at + 200]) for at in range(0, len(text), 200)]) + stream.feed(DONE)
    assert time.process_time() - began < 1.0
    assert message_of(events(out))["content"][0]["text"] == "x" * 900_000 + "y"


def test_a_frame_without_an_end_takes_no_more_room() -> None:
    stream = MessageStream()
    for _ in range(20):
        assert stream.feed(b"x" * 100_000) == b""
    assert stream.failed
