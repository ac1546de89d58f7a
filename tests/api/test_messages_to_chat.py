"""`gateway.api.messages_to_chat`: an Anthropic request as a chat completion's, member by member."""

import json
from typing import Any

import pytest

from gateway.api.messages_to_chat import request
from gateway.errors import BadRequest

IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "QUJD"}}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


def made(**members: Any) -> dict[str, Any]:
    body = {"model": "alias", "max_tokens": 50, "messages": [{"role": "user", "content": "hi"}], **members}
    return dict(json.loads(request(json.dumps(body).encode(), "m", 100)))


def switched(*, on: bool) -> dict[str, Any]:
    return {"chat_template_kwargs": {"enable_thinking": on, "thinking": on}}


PLAIN = {"model": "m", "max_tokens": 50, "messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize(
    ("members", "becomes"),
    [
        ({}, {}),
        ({"max_tokens": 101}, {"max_tokens": 100}),
        ({"max_tokens": None}, {"max_tokens": 100}),
        ({"temperature": 0.5, "top_p": 0.9, "top_k": 3}, {"temperature": 0.5, "top_p": 0.9, "top_k": 3}),
        ({"stop_sequences": ["END"]}, {"stop": ["END"]}),
        ({"stop_sequences": []}, {}),
        ({"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}),
        ({"stream": False}, {}),
        ({"metadata": {"user_id": "ann"}, "thinking": {"type": "adaptive"}, "service_tier": "auto"}, {}),
        ({"thinking": {"type": "enabled", "budget_tokens": 9}}, switched(on=True)),
        ({"thinking": {"type": "disabled"}, "output_config": {"effort": None}}, switched(on=False)),
        ({"output_config": {"effort": "low"}}, {"reasoning_effort": "low"}),
        ({"output_config": {"effort": "max"}}, {"reasoning_effort": "high"}),
        ({"tool_choice": {"type": "auto"}}, {}),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
            {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}},
        ),
        (
            {"output_format": {"type": "json_schema", "schema": SCHEMA}},
            {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}},
        ),
    ],
)
def test_members_of_a_messages_request_are_translated(members: dict[str, Any], becomes: dict[str, Any]) -> None:
    """A4, A6: what has a counterpart; the rest is left out."""
    assert made(**members) == PLAIN | becomes


@pytest.mark.parametrize(
    ("system", "becomes"),
    [
        ("Be brief.", "Be brief."),
        ([text("a") | {"cache_control": {"type": "ephemeral"}}, text("b")], "a\nb"),
        ([text("x-anthropic-billing-header: cc_version=2.1.197.d7d;"), text("a")], "a"),
        ("x-anthropic-billing-header: cc_version=2.1.197.d7d;\na\nb", "a\nb"),
    ],
)
def test_the_system_prompt_is_the_first_message(system: Any, becomes: str) -> None:
    assert made(system=system)["messages"] == [{"role": "system", "content": becomes}, *PLAIN["messages"]]  # type: ignore[misc]


def turns(*messages: tuple[str, Any]) -> Any:
    return made(messages=[{"role": role, "content": content} for role, content in messages])["messages"]


def test_system_messages_between_turns_move_to_the_front() -> None:
    """A4: coding agents send them; chat templates refuse them there."""
    said = [
        {"role": "user", "content": "hi"},
        {"role": "system", "content": [text("b")]},
        {"role": "assistant", "content": "ho"},
        {"role": "system", "content": "c"},
        {"role": "system", "content": None},
    ]
    expected = [("user", "hi"), ("assistant", "ho")]
    for system, becomes in (("a", "a\nb\nc"), (None, "b\nc")):
        first, *others = made(system=system, messages=said)["messages"]  # type: ignore[misc]
        assert first == {"role": "system", "content": becomes}
        assert [(turn["role"], turn["content"]) for turn in others] == expected


def test_texts_and_images_are_translated() -> None:
    """A4: texts alone are one string, which every chat template takes."""
    url = {"type": "image", "source": {"type": "url", "url": "https://a/b.png"}}
    assert turns(("user", [text("a"), text("b")])) == [{"role": "user", "content": "a\nb"}]
    (turn,) = turns(("user", [text("a"), IMAGE, url]))
    assert turn["content"] == [text("a"), PICTURE, {"type": "image_url", "image_url": {"url": "https://a/b.png"}}]


def test_a_call_and_its_result() -> None:
    """A4: the result comes right behind the call, before what the user says to it; what was thought stays with it."""
    thought = {"type": "thinking", "thinking": "hm", "signature": "x"}
    hidden = {"type": "redacted_thinking", "data": "x"}
    call = {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Oslo"}}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": [text("rain"), IMAGE]}
    assert turns(("assistant", [thought, hidden, text("let me see"), call]), ("user", [text("and?"), result])) == [
        {
            "role": "assistant",
            "content": "let me see",
            "reasoning": "hm",
            "reasoning_content": "hm",
            "tool_calls": [
                {"id": "t1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Oslo"}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "t1", "content": "rain"},
        {"role": "user", "content": [text("and?"), PICTURE]},
    ]
    first, second = turns(("assistant", [call]), ("user", [{"type": "tool_result", "tool_use_id": "t1"}]))
    assert first["content"] is None
    assert second == {"role": "tool", "tool_call_id": "t1", "content": ""}
    assert turns(("assistant", [hidden])) == [{"role": "assistant", "content": ""}]
    (turn,) = turns(("assistant", [thought, {"type": "thinking", "thinking": "so"}, {"type": "thinking"}]))
    assert turn["reasoning"] == "hm\nso"


@pytest.mark.parametrize(
    ("choice", "becomes"),
    [
        (None, {}),
        ({"type": "auto"}, {"tool_choice": "auto"}),
        ({"type": "any"}, {"tool_choice": "required"}),
        ({"type": "none"}, {"tool_choice": "none"}),
        ({"type": "tool", "name": "w"}, {"tool_choice": {"type": "function", "function": {"name": "w"}}}),
        (
            {"type": "auto", "disable_parallel_tool_use": True},
            {"tool_choice": "auto", "parallel_tool_calls": False},
        ),
    ],
)
def test_tools(choice: Any, becomes: dict[str, Any]) -> None:
    """A4"""
    tools = [
        {"name": "w", "description": "d", "input_schema": SCHEMA, "strict": True},
        {"type": "custom", "name": "bare", "strict": False},
    ]
    function = {"name": "w", "parameters": SCHEMA, "description": "d", "strict": True}
    bare = {"name": "bare", "parameters": {"type": "object"}}
    members = {"tools": tools} | ({"tool_choice": choice} if choice else {})
    expected = [{"type": "function", "function": each} for each in (function, bare)]
    assert made(**members) == PLAIN | {"tools": expected} | becomes


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ({"messages": [3]}, "`messages.0` must be an object"),
        ({"messages": [{"role": "user", "content": 3}]}, "`messages.0.content` must be an array"),
        ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, "not accept content of type 'document'"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "`messages.0` must be an object"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
            "not accept an image of source 'None'",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image", "source": {"type": "file", "file_id": "f"}}]}
                ]
            },
            "not accept an image of source 'file'",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "base64", "data": "a"}}]}]},
            "not accept an image of source 'base64'",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "not accept content of type 'text'"),
        ({"messages": [{"role": "user", "content": [{"type": {}}]}]}, "not accept content of type"),
        ({"messages": [{"role": "assistant", "content": [{"type": []}]}]}, "not accept content of type"),
        ({"system": 3}, "`system` must be an array"),
        ({"system": [{"type": "image", "source": {"type": "url", "url": "x"}}]}, "`system` must contain text only"),
        ({"tools": 3}, "`tools` must be an array"),
        ({"tools": [{"type": "web_search_20250305", "name": "w"}]}, "not support tools of type 'web_search_20250305'"),
        ({"tools": [{"name": "w"}], "tool_choice": 3}, "`tool_choice` must be an object"),
        ({"output_config": 3}, "`output_config` must be an object"),
        ({"thinking": 3}, "`thinking` must be an object"),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "thinking", "thinking": 3}]}]},
            "`thinking` must be a string",
        ),
    ],
)
def test_what_has_no_counterpart_is_refused(members: dict[str, Any], sentence: str) -> None:
    """A4, A5: in a sentence that names it."""
    with pytest.raises(BadRequest, match=sentence):
        made(**members)


def test_a_body_that_is_nested_too_deeply_is_refused() -> None:
    body = b'{"messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    with pytest.raises(BadRequest):
        request(body, "m", 1)
