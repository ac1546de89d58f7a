"""Anthropic's API of the simulated engine, judged by the real `anthropic` SDK and by exact bytes."""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest

from tests.test_simulated import CHAT, LONG, QUESTION, simulated, tool

THINKS = "qwen3:4b"
TOOL = {"name": "get_weather", "input_schema": tool()["function"]["parameters"]}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A fast one: no pace, no waits."""
    with simulated("--tokens-per-second", "0", "--ttft", "0", "--load-seconds", "0.001", "--slots", "8") as base:
        yield base


@pytest.fixture
def claude(url: str) -> Iterator[anthropic.Anthropic]:
    """The anthropic SDK."""
    with anthropic.Anthropic(base_url=url, api_key="ignored", auth_token=None, max_retries=0) as client:
        yield client


def ask(content: Any, **more: Any) -> dict[str, Any]:
    return {"model": CHAT, "max_tokens": 900, "messages": [{"role": "user", "content": content}], **more}


def test_whole_and_streamed_agree(claude: anthropic.Anthropic) -> None:
    """Blocks, their text, why it ended and the counts; the counted prompt is the one that was used."""
    asked: Any = {"model": CHAT, "max_tokens": 900, "messages": QUESTION, "system": [{"type": "text", "text": "Hm."}]}
    whole = claude.messages.create(**asked)
    with claude.messages.stream(**asked) as stream:
        final = stream.get_final_message()
    assert [block.model_dump() for block in final.content] == [block.model_dump() for block in whole.content]
    assert (final.stop_reason, final.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)
    counted = claude.messages.count_tokens(**{key: asked[key] for key in ("model", "messages", "system")})
    assert counted.input_tokens == whole.usage.input_tokens == final.usage.input_tokens > 10


def test_thoughts_then_words(claude: anthropic.Anthropic) -> None:
    """A thinking model thinks where it is asked to, in a block of its own; another refuses."""
    thinking: Any = {"type": "enabled", "budget_tokens": 1024}
    asked = ask("Why?", max_tokens=2000, thinking=thinking)
    whole = claude.messages.create(**(asked | {"model": THINKS}))
    with claude.messages.stream(**(asked | {"model": THINKS})) as stream:
        final = stream.get_final_message()
    assert [block.type for block in whole.content] == [block.type for block in final.content] == ["thinking", "text"]
    assert [block.type for block in claude.messages.create(**ask("Why?", model=THINKS)).content] == ["text"]
    with pytest.raises(anthropic.BadRequestError, match="does not support thinking"):
        claude.messages.create(**asked)


def test_a_tool_is_called_and_answered(claude: anthropic.Anthropic) -> None:
    """Streamed too: its arguments are JSON in a delta."""
    asked = ask("Use the tool to get the weather of Oslo", tools=[TOOL])
    (call,) = claude.messages.create(**asked).content
    with claude.messages.stream(**asked) as stream:
        final = stream.get_final_message()
    assert (final.stop_reason, final.content[0].type) == ("tool_use", "tool_use")
    assert final.content[0].model_dump() == call.model_dump()
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "rain"}]}
    turns = [*asked["messages"], {"role": "assistant", "content": [call.model_dump()]}]
    asked["messages"] = [*turns, {"role": "user", "content": [result]}]
    assert claude.messages.create(**asked).content[0].type == "text"


def test_limits_stop_it(claude: anthropic.Anthropic) -> None:
    short = claude.messages.create(model=CHAT, max_tokens=7, messages=LONG)  # type: ignore[arg-type]
    assert (short.stop_reason, short.usage.output_tokens) == ("max_tokens", 7)


def test_stream_bytes(url: str) -> None:
    """The events of a message in their order, each named as its type."""
    answer = httpx.post(f"{url}/v1/messages", json=ask("Hello", stream=True, max_tokens=2))
    assert answer.headers["content-type"] == "text/event-stream"
    events = [event.split("\n") for event in answer.text.split("\n\n")]
    assert events.pop() == [""]
    values = [json.loads(data.removeprefix("data: ")) for _, data in events]
    assert [name for name, _ in events] == [f"event: {value['type']}" for value in values]
    assert [value["type"] for value in values] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert values[0]["message"]["usage"] == {"input_tokens": 1, "output_tokens": 0}
    assert values[5]["delta"] == {"stop_reason": "max_tokens"}


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        ({"model": "nope"}, 404, "not_found_error"),
        ({"max_tokens": 0}, 400, "invalid_request_error"),
        ({"messages": []}, 400, "invalid_request_error"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, 400, "invalid_request_error"),
        ({"messages": 3}, 400, "invalid_request_error"),
        ({"model": "nomic-embed-text"}, 400, "invalid_request_error"),
    ],
)
def test_errors(url: str, body: dict[str, Any], status: int, kind: str) -> None:
    answer = httpx.post(f"{url}/v1/messages", json=ask("Hello") | body)
    assert (answer.status_code, answer.json()["type"], answer.json()["error"]["type"]) == (status, "error", kind)
