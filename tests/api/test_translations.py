"""Translations of anything: a body or an answer with one or more parts that are not what they should be is an error
that names itself, never another; and what is too much for the loop is refused."""

import contextlib
import copy
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api import chat_to_messages, chat_to_ollama, messages_to_chat, ollama_to_chat
from gateway.api.completion import ChunkStream
from gateway.errors import BadRequest

IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aa"}}
TOOL = {"name": "f", "description": "d", "input_schema": {"type": "object"}}
USED = {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}}
RESULT = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "r"}, IMAGE]}
MESSAGES: dict[str, Any] = {
    "model": "m",
    "system": [{"type": "text", "text": "s"}],
    "stream": True,
    "stop_sequences": ["x"],
    "tools": [TOOL],
    "tool_choice": {"type": "tool", "name": "f"},
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": {}}},
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "a"}, IMAGE]},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "t"}, USED]},
        {"role": "user", "content": [RESULT, {"type": "text", "text": "b"}]},
    ],
}
CHAT: dict[str, Any] = {
    "model": "m",
    "format": {"type": "object"},
    "think": True,
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "messages": [
        {"role": "user", "content": "a", "images": ["iVBOR"]},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]},
        {"role": "tool", "tool_name": "f", "content": "r"},
    ],
}
GENERATE: dict[str, Any] = {"model": "m", "prompt": "p", "system": "s", "images": ["aa"], "format": "json"}
CALL = {"id": "t", "index": 0, "function": {"name": "f", "arguments": "{}"}}
SAID = {"content": "x", "reasoning_content": "r", "tool_calls": [CALL]}
COMPLETION: dict[str, Any] = {
    "id": "c",
    "model": "m",
    "created": 1,
    "choices": [{"index": 0, "message": SAID, "delta": SAID, "finish_reason": "stop", "stop_reason": None}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}},
}
VECTORS: dict[str, Any] = {"model": "m", "data": [{"index": 0, "embedding": [0.1]}], "usage": {"prompt_tokens": 3}}
ODD: tuple[Any, ...] = (
    None, True, 0, -1, 1.5, 10**30, "", "x", [], {}, [[]], [{}], ["a"], [1], IMAGE, USED, RESULT, {"type": {}},
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a document but its root."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield (*path, key)
        yield from places(inner, (*path, key))


@st.composite
def spoiled(draw: st.DrawFn, *documents: Any) -> tuple[Any, bytes]:
    """One of the documents, and the text of it with a few places that are something else or are gone."""
    document = draw(st.sampled_from(documents))
    made = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        if not (paths := list(places(made))):
            break
        *way, last = draw(st.sampled_from(paths))
        at = made
        for step in way:
            at = at[step]
        if draw(st.booleans()):
            at[last] = copy.deepcopy(draw(st.sampled_from(ODD)))
        else:
            del at[last]
    return document, json.dumps(made).encode()


REQUESTS = {
    id(MESSAGES): messages_to_chat.request,
    id(CHAT): ollama_to_chat.chat,
    id(GENERATE): ollama_to_chat.generate,
}
ANSWERS: tuple[Any, ...] = (
    chat_to_ollama.chat,
    chat_to_ollama.generate,
    chat_to_ollama.embed,
    chat_to_ollama.embedding,
    lambda body, seconds: chat_to_messages.answer(body),
)


@given(spoiled(MESSAGES, CHAT, GENERATE))
def test_a_request_that_is_odd_is_translated_or_refused(case: tuple[Any, bytes]) -> None:
    document, body = case
    with contextlib.suppress(BadRequest):
        made = json.loads(REQUESTS[id(document)](body, "served", 10))
        assert made["model"] == "served"
        assert made["max_tokens"] <= 10


@given(spoiled(COMPLETION, VECTORS), st.sampled_from(ANSWERS))
def test_an_answer_that_is_odd_is_translated_or_none(case: tuple[Any, bytes], make: Any) -> None:
    with contextlib.suppress(ValueError):
        json.loads(make(case[1], 1.0))


@given(st.lists(spoiled(COMPLETION), min_size=1, max_size=4))
def test_a_stream_that_is_odd_is_translated_or_has_failed(chunks: list[tuple[Any, bytes]]) -> None:
    streams: list[ChunkStream] = [
        chat_to_messages.MessageStream(),
        chat_to_ollama.chat_stream(lambda: 1.0, 0.0),
        chat_to_ollama.generate_stream(lambda: 1.0, 0.0),
    ]
    for stream in streams:
        out = b"".join([stream.feed(b"data: %b\n\n" % body) for _, body in chunks])
        out += stream.feed(b"data: [DONE]\n\n") + stream.flush()
        ended = b"message_stop" in out or b'"done":true' in out
        assert ended != bool(stream.failed)


@pytest.mark.parametrize(
    ("make", "item", "around"),
    [
        (messages_to_chat.request, b"{}", b'{"messages":[%b]}'),
        (ollama_to_chat.chat, b"{}", b'{"messages":[%b]}'),
        (ollama_to_chat.chat, b'""', b'{"messages":[{"role":"user","content":"x","images":[%b]}]}'),
        (messages_to_chat.request, b'{"type":"text","text":""}', b'{"messages":[{"role":"user","content":[%b]}]}'),
        (ollama_to_chat.generate, b"[]", b'{"prompt":"x","options":{"stop":[%b]}}'),
    ],
)
def test_a_body_of_millions_of_parts_does_not_hold_up_the_loop(make: Any, item: bytes, around: bytes) -> None:
    body = around % b",".join([item] * (10_000_000 // (len(item) + 1)))
    began = time.process_time()
    with pytest.raises(BadRequest, match="100000"):
        make(body, "m", 1)
    assert time.process_time() - began < 1.0


@pytest.mark.parametrize("result", [b'"tool_call_id":"x"', b'"tool_name":"x"', b'"tool_name":"f"'])
def test_finding_the_calls_of_results_takes_the_same_time_for_each(result: bytes) -> None:
    calls = b",".join([b'{"function":{"name":"f"}}'] * 20_000)
    results = b",".join([b'{"role":"tool",%b}' % result] * 20_000)
    began = time.process_time()
    ollama_to_chat.chat(b'{"messages":[{"role":"assistant","tool_calls":[%b]},%b]}' % (calls, results), "m", 1)
    assert time.process_time() - began < 1.0


@pytest.mark.parametrize("document", [MESSAGES, CHAT, GENERATE])
def test_a_number_that_none_can_hold_is_refused(document: dict[str, Any]) -> None:
    body = json.dumps(document | {"temperature": 7}).encode().replace(b'"temperature": 7', b'"temperature": 1e999')
    with pytest.raises(BadRequest, match="out of range"):
        REQUESTS[id(document)](body, "served", 10)


DEEP_IN = {
    "input": (
        messages_to_chat.request,
        b'{"messages":[{"role":"assistant","content":[{"type":"tool_use","input":%b}]}]}',
    ),
    "input_schema": (messages_to_chat.request, b'{"messages":[],"tools":[{"input_schema":%b}]}'),
    "stop_sequences": (messages_to_chat.request, b'{"messages":[],"stop_sequences":%b}'),
    "format": (ollama_to_chat.chat, b'{"messages":[{}],"format":%b}'),
    "arguments": (ollama_to_chat.chat, b'{"messages":[{"tool_calls":[{"function":{"arguments":%b}}]}]}'),
    "embed": (ollama_to_chat.embed, b'{"input":%b}'),
}


@pytest.mark.parametrize("case", DEEP_IN)
def test_a_body_as_deep_as_can_be_read_is_translated_or_refused(case: str) -> None:
    """What is written may be deeper than what was read."""
    make, around = DEEP_IN[case]
    for depth in range(800, 1001):
        with contextlib.suppress(BadRequest):
            make(around % (b'{"a":' * depth + b"1" + b"}" * depth), "m", 1)
