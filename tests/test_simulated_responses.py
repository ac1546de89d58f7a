"""The Responses API of the simulated engine, judged by the real `openai` SDK and by exact bytes."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.test_simulated import CHAT, LONG, QUESTION, simulated, tool

THINKS = "qwen3:4b"
TOOL = {"type": "function", "strict": False, **tool()["function"]}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A fast one: no pace, no waits."""
    with simulated("--tokens-per-second", "0", "--ttft", "0", "--load-seconds", "0.001", "--slots", "8") as base:
        yield base


@pytest.fixture
def sdk(url: str) -> Iterator[openai.OpenAI]:
    """The openai SDK."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key="ignored", max_retries=0) as client:
        yield client


def streamed(sdk: openai.OpenAI, **asked: Any) -> Any:
    """The final response as the SDK puts it together from the events."""
    with sdk.responses.stream(**asked) as stream:
        return stream.get_final_response()


def test_whole_and_streamed_agree(sdk: openai.OpenAI) -> None:
    """Text, status and counts; a text alone is a user's message, and instructions count as the system's."""
    asked: Any = {"model": CHAT, "input": QUESTION}
    whole, final = sdk.responses.create(**asked), streamed(sdk, **asked)
    assert whole.output_text == final.output_text
    assert "lighthouses" in whole.output_text
    assert whole.status == final.status == "completed"
    assert whole.usage == final.usage
    assert whole.usage is not None
    assert whole.usage.total_tokens == whole.usage.input_tokens + whole.usage.output_tokens > 20
    alone = sdk.responses.create(model=CHAT, input=QUESTION[0]["content"])
    assert alone.output_text == whole.output_text
    told = sdk.responses.create(model=CHAT, input=QUESTION[0]["content"], instructions="Be brief.")
    assert told.usage is not None
    assert told.usage.input_tokens > whole.usage.input_tokens


def test_thoughts_then_words(sdk: openai.OpenAI) -> None:
    asked: Any = {"model": THINKS, "input": "Why?", "reasoning": {"effort": "low"}}
    whole, final = sdk.responses.create(**asked), streamed(sdk, **asked)
    assert [item.type for item in whole.output] == [item.type for item in final.output] == ["reasoning", "message"]
    assert whole.output[0].model_dump()["summary"] == final.output[0].model_dump()["summary"]
    silent = sdk.responses.create(**{**asked, "reasoning": {"effort": "none"}})
    assert [item.type for item in silent.output] == ["message"]


def test_a_tool_is_called_and_answered(sdk: openai.OpenAI) -> None:
    asked: Any = {"model": CHAT, "input": "Use the tool to get the weather of Oslo", "tools": [TOOL]}
    whole, final = sdk.responses.create(**asked), streamed(sdk, **asked)
    (call,) = whole.output
    assert call.type == final.output[0].type == "function_call"
    assert isinstance(json.loads(call.arguments)["city"], str)
    assert (call.arguments, call.name, call.call_id) == (
        final.output[0].arguments,
        final.output[0].name,
        final.output[0].call_id,
    )
    result = {
        "type": "function_call_output",
        "call_id": call.call_id,
        "output": [{"type": "input_text", "text": "rain"}],
    }
    turns = [{"role": "user", "content": asked["input"]}, {"type": "reasoning", "summary": []}, call, result]
    assert sdk.responses.create(**{**asked, "input": turns}).output[0].type == "message"


def test_a_schema_shapes_the_answer(sdk: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"legs": {"type": "integer"}}, "required": ["legs"]}
    shape: Any = {"format": {"type": "json_schema", "name": "animal", "schema": schema}}
    answer = sdk.responses.create(model=CHAT, input="An animal", text=shape)
    assert isinstance(json.loads(answer.output_text)["legs"], int)


def test_limits_stop_it(sdk: openai.OpenAI) -> None:
    asked: Any = {"model": CHAT, "input": LONG, "max_output_tokens": 7}
    *_, last = sdk.responses.create(**asked, stream=True)
    for short in (sdk.responses.create(**asked), last.response):
        assert (short.status, short.incomplete_details.reason) == ("incomplete", "max_output_tokens")
        assert short.usage.output_tokens == 7


def test_stream_bytes(url: str) -> None:
    """The events of a response in their order and numbered, each named as its type; nothing follows the last one."""
    answer = httpx.post(
        f"{url}/v1/responses", json={"model": CHAT, "input": "Hello", "stream": True, "max_output_tokens": 2}
    )
    assert answer.headers["content-type"] == "text/event-stream"
    events = [event.split("\n") for event in answer.text.split("\n\n")]
    assert events.pop() == [""]
    values = [json.loads(data.removeprefix("data: ")) for _, data in events]
    assert [name for name, _ in events] == [f"event: {value['type']}" for value in values]
    assert [value["sequence_number"] for value in values] == list(range(10))
    assert [value["type"].removeprefix("response.") for value in values] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "incomplete",
    ]
    assert values[2]["item"]["content"] == values[0]["response"]["output"] == []
    assert values[9]["response"]["output"] == [values[8]["item"]]
    assert values[8]["item"]["content"][0]["text"] == values[4]["delta"] + values[5]["delta"] == values[6]["text"]


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"model": "nope"}, 404, "nope"),
        ({"input": [{"type": "web_search_call"}]}, 400, "unknown input item type"),
        ({"input": [{"role": "user", "content": [{"type": "video"}]}]}, 400, "unknown content type"),
        ({"input": 3}, 400, ""),
        ({"model": "nomic-embed-text"}, 400, "does not support chat"),
    ],
)
def test_errors(url: str, body: dict[str, Any], status: int, says: str) -> None:
    answer = httpx.post(f"{url}/v1/responses", json={"model": CHAT, "input": "Hello"} | body)
    assert answer.status_code == status
    assert says in answer.json()["error"]["message"]
