"""`gateway.api.ollama_to_chat`: what an engine is asked that speaks OpenAI's API only."""

import json
from typing import Any

import pytest

from gateway.api.ollama_to_chat import chat, embed, generate
from gateway.errors import BadRequest

HELLO = [{"role": "user", "content": "hello"}]
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
SCHEMA = {"name": "answer", "schema": {"type": "object"}}
STREAM = {"stream": True, "stream_options": {"include_usage": True}}
PNG, JPEG = "iVBORw0KGgo=", "/9j/4AAQSkZJRg=="


def chatted(**more: Any) -> dict[str, Any]:
    body = {"model": "asked", "stream": False, "messages": HELLO} | more
    return dict(json.loads(chat(json.dumps(body).encode(), "served", 100)))


def generated(**more: Any) -> dict[str, Any]:
    body = {"model": "asked", "stream": False, "prompt": "hello"} | more
    return dict(json.loads(generate(json.dumps(body).encode(), "served", 100)))


PLAIN = {"model": "served", "messages": HELLO, "max_tokens": 100}


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ({}, {}),
        ({"stream": True}, STREAM),
        ({"stream": None}, STREAM),  # Ollama streams unless told not to
        ({"keep_alive": 0, "truncate": True, "unknown": 1, "options": None}, {}),
        ({"options": {"num_predict": 7}}, {"max_tokens": 7}),
        ({"options": {"num_predict": 101}}, {}),
        ({"options": {"num_predict": -1}}, {}),
        ({"options": {"num_predict": 0}}, {}),
        (
            {"options": {"temperature": 0, "top_k": 3, "seed": 1, "stop": ["x"], "num_ctx": 9, "repeat_penalty": 2}},
            {"temperature": 0, "top_k": 3, "seed": 1, "stop": ["x"]},
        ),
        ({"format": "json"}, {"response_format": {"type": "json_object"}}),
        (
            {"format": {"type": "object"}},
            {"response_format": {"type": "json_schema", "json_schema": SCHEMA}},
        ),
        ({"format": ""}, {}),
        ({"tools": [WEATHER]}, {"tools": [WEATHER]}),
        ({"logprobs": True, "top_logprobs": 2}, {"logprobs": True, "top_logprobs": 2}),
        ({"logprobs": True}, {"logprobs": True}),
        ({"logprobs": False, "top_logprobs": 2}, {}),
        ({"think": "high"}, {"reasoning_effort": "high"}),
        ({"think": "max"}, {"reasoning_effort": "high"}),
        ({"think": False}, {"chat_template_kwargs": {"enable_thinking": False, "thinking": False}}),
        ({"think": True}, {"chat_template_kwargs": {"enable_thinking": True, "thinking": True}}),
        ({"think": None}, {}),
    ],
)  # fmt: skip
def test_what_a_request_says(given: dict[str, Any], made: dict[str, Any]) -> None:
    """A4, A6"""
    assert chatted(**given) == PLAIN | made
    assert generated(**{key: value for key, value in given.items() if key != "tools"}) == PLAIN | {
        key: value for key, value in made.items() if key != "tools"
    }


def test_images_become_parts_of_the_message() -> None:
    """A4"""
    parts = [
        {"type": "text", "text": "what?"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
        {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{JPEG}"}},
    ]
    said = [{"role": "user", "content": parts}]
    assert chatted(messages=[{"role": "user", "content": "what?", "images": [PNG, JPEG]}])["messages"] == said
    assert generated(prompt="what?", images=[PNG, JPEG])["messages"] == said


def test_results_belong_to_the_calls_of_their_tool() -> None:
    """A4: Ollama's own clients name the tool, not the call."""

    def called(*names: str) -> dict[str, Any]:
        return {
            "role": "assistant",
            "content": "",
            "thinking": "hm",
            "tool_calls": [{"function": {"name": name, "arguments": {"at": name}}} for name in names],
        }

    turns = [
        *HELLO,
        called("a", "b", "a"),
        {"role": "tool", "tool_name": "b", "content": "1"},
        {"role": "tool", "tool_name": "a", "content": "2"},
        {"role": "tool", "content": "3"},
        {"role": "assistant", "content": "so"},
        {"role": "assistant", "tool_calls": [{"id": "own", "function": {"name": "a", "arguments": {}}}]},
        {"role": "tool", "tool_call_id": "own", "content": "4"},
        {"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": {}}}]},
        {"role": "tool", "tool_name": "a", "content": "5"},
    ]
    made = chatted(messages=turns)["messages"]
    calls = made[1]["tool_calls"]
    assert [call["id"] for call in calls] == ["call_1_0", "call_1_1", "call_1_2"]
    assert json.loads(calls[0]["function"]["arguments"]) == {"at": "a"}
    assert (made[1]["reasoning"], made[1]["reasoning_content"]) == ("hm", "hm"), "vLLM's name, llama.cpp's"
    assert "reasoning" not in made[5]
    answered = [turn["tool_call_id"] for turn in made if turn["role"] == "tool"]
    assert answered == ["call_1_1", "call_1_0", "call_1_2", "own", "call_8_0"]


def test_a_system_prompt_of_generate_stands_before_the_prompt() -> None:
    assert generated(system="Be brief.")["messages"] == [{"role": "system", "content": "Be brief."}, *HELLO]


@pytest.mark.parametrize(
    ("body", "made"),
    [
        ({"input": "x"}, {"input": "x"}),
        ({"input": ["x", "y"], "truncate": True, "dimensions": 8}, {"input": ["x", "y"], "dimensions": 8}),
        ({"prompt": "x", "options": {"num_ctx": 4}}, {"input": "x"}),
        ({}, {"input": ""}),
    ],
)
def test_embeddings(body: dict[str, Any], made: dict[str, Any]) -> None:
    """A4: both of Ollama's routes."""
    assert json.loads(embed(json.dumps({"model": "asked"} | body).encode(), "served", 0)) == {"model": "served"} | made


@pytest.mark.parametrize(
    ("make", "body", "param"),
    [
        (chat, {"messages": []}, "messages"),
        (chat, {}, "messages"),
        (chat, {"messages": [3]}, "messages.0"),
        (chat, {"messages": [{"role": "user", "content": 3}]}, "messages"),
        (chat, {"messages": [{"role": "user", "content": "x", "images": "y"}]}, "images"),
        (chat, {"messages": [{"role": "user", "content": "x", "images": [3]}]}, "images"),
        (chat, {"messages": [{"role": "tool", "content": "x"}]}, "messages"),
        (chat, {"messages": [{"role": "assistant", "tool_calls": "f"}]}, "tool_calls"),
        (chat, {"messages": HELLO, "format": 3}, "format"),
        (generate, {"prompt": ""}, "prompt"),
        (generate, {"prompt": "x", "raw": True}, "raw"),
        (generate, {"prompt": "x", "suffix": "y"}, "suffix"),
        (generate, {"prompt": "x", "context": [1]}, "context"),
    ],
)
def test_what_has_no_counterpart_is_refused(make: Any, body: dict[str, Any], param: str) -> None:
    """A4"""
    with pytest.raises(BadRequest) as raised:
        make(json.dumps(body).encode(), "m", 1)
    assert raised.value.param == param
