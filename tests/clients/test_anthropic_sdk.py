"""The unmodified `anthropic` client through a real gateway: what it reads, raises, retries and cancels."""

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import anthropic
import pydantic
import pytest
import uvloop

from gateway.store.limits import Limits
from tests.clients.conftest import ASK_WEATHER, ENDLESS, QUESTION, WEATHER, Site
from tests.flow.engine import DONE, SSE_HEAD, START, USAGE, WORD, Engine, answering, chunk, cut, json_answer, streamed
from tests.gateway import Gateway, gateway

TOOL: dict[str, Any] = {
    "name": WEATHER["function"]["name"],
    "description": WEATHER["function"]["description"],
    "input_schema": WEATHER["function"]["parameters"],
}


class Animal(pydantic.BaseModel):
    """What a structured answer must parse into."""

    name: str
    legs: int


def of(url: str, key: str, **options: Any) -> dict[str, Any]:
    """Arguments of a client that takes nothing from the environment."""
    return {"base_url": url, "api_key": key, "auth_token": None, **options}


@pytest.fixture(params=["own", "compatible"])
def site(request: pytest.FixtureRequest) -> Site:
    """Engines that speak this API, and those that are asked in OpenAI's words (A4)."""
    made: Site = request.getfixturevalue(request.param)
    return made


@pytest.fixture
def claude(site: Site) -> Iterator[anthropic.Anthropic]:
    """The anthropic client, unmodified, with the site's key as `x-api-key`."""
    with anthropic.Anthropic(**of(site.url, site.key)) as client:
        yield client


def asynchronous(g: Gateway, key: str = "", **options: Any) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(**of(g.url, key or g.key, **options))


def text_of(message: Any) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


# ---- what it reads


def test_a_message(site: Site, claude: anthropic.Anthropic) -> None:
    """A3"""
    answer = claude.messages.create(model=site.model, max_tokens=500, messages=QUESTION, system="Be brief.")
    assert (answer.type, answer.role, answer.stop_reason, answer.model) == (
        "message",
        "assistant",
        "end_turn",
        site.model,
    )
    assert "lighthouses" in text_of(answer)
    assert answer.usage.input_tokens > 10
    assert answer.usage.output_tokens > 10


def test_a_stream(site: Site, claude: anthropic.Anthropic) -> None:
    """A3: the same words as the whole answer, and the same usage."""
    whole = claude.messages.create(model=site.model, max_tokens=500, messages=QUESTION)
    with claude.messages.stream(model=site.model, max_tokens=500, messages=QUESTION) as stream:
        said = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert said == text_of(final) == text_of(whole)
    assert (final.usage.input_tokens, final.usage.output_tokens) == (
        whole.usage.input_tokens,
        whole.usage.output_tokens,
    )
    kinds = [
        each.type for each in claude.messages.create(model=site.model, max_tokens=5, messages=QUESTION, stream=True)
    ]
    assert kinds[0] == "message_start"
    assert kinds[-2:] == ["message_delta", "message_stop"]


def test_output_limits_reach_the_engine(site: Site, claude: anthropic.Anthropic) -> None:
    """A6"""
    answer = claude.messages.create(model=site.model, max_tokens=5, messages=ENDLESS)
    assert (answer.stop_reason, answer.usage.output_tokens) == ("max_tokens", 5)


def test_tools(site: Site, claude: anthropic.Anthropic) -> None:
    """A3: calls and results pass as they are."""
    ask: Any = {"model": site.model, "max_tokens": 500, "tools": [TOOL]}
    whole = claude.messages.create(messages=ASK_WEATHER, **ask)
    (call,) = whole.content
    assert (whole.stop_reason, call.type) == ("tool_use", "tool_use")
    assert isinstance(call.input["city"], str)
    with claude.messages.stream(messages=ASK_WEATHER, **ask) as stream:
        (streamed,) = stream.get_final_message().content
    assert (streamed.name, streamed.input) == (call.name, call.input)
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "rain"}]}
    turn: list[Any] = [*ASK_WEATHER, {"role": "assistant", "content": [call.model_dump()]}, result]
    assert text_of(claude.messages.create(messages=turn, **ask))


def test_a_bearer_token_does_as_well(site: Site) -> None:
    """K2"""
    with anthropic.Anthropic(base_url=site.url, auth_token=site.key, api_key=None) as client:
        assert client.messages.create(model=site.model, max_tokens=5, messages=QUESTION).content


def test_lists_and_retrieves_models(site: Site, claude: anthropic.Anthropic) -> None:
    """A8: in the shape of the client that asks."""
    listed = list(claude.models.list())
    assert {site.model, site.embed_model} <= {model.id for model in listed}
    assert all(model.type == "model" and model.display_name == model.id for model in listed)
    assert claude.models.retrieve(site.model).id == site.model


def test_counts_tokens(site: Site) -> None:
    """A3: asked of the engine; the record has no tokens, since none were read or written."""

    async def main() -> None:
        async with gateway(site.backend, "ollama") as g, asynchronous(g) as client:
            counted = await client.messages.count_tokens(model=site.model, messages=QUESTION)
            answer = await client.messages.create(model=site.model, max_tokens=5, messages=QUESTION)
            assert counted.input_tokens == answer.usage.input_tokens
            first, second = await g.records(2)
            assert (first["route"], first["dialect"]) == ("/v1/messages/count_tokens", "anthropic")
            assert (first["status"], first["prompt_tokens"], first["completion_tokens"]) == (200, 0, 0)
            assert second["prompt_tokens"] == counted.input_tokens

    uvloop.run(main())


# ---- what it raises


def code_of(error: anthropic.APIStatusError, kind: str) -> str:
    """Our error code; every error has the API's type and names the request (A5)."""
    body: Any = error.body
    assert (body["type"], body["error"]["type"]) == ("error", kind)
    assert body["request_id"] == error.response.headers["x-request-id"] == error.request_id
    return str(body["error"]["code"])


def test_a_bad_key(site: Site, claude: anthropic.Anthropic) -> None:
    """K2"""
    with pytest.raises(anthropic.AuthenticationError) as caught:
        claude.with_options(api_key="wrong").messages.create(model=site.model, max_tokens=5, messages=QUESTION)
    assert code_of(caught.value, "authentication_error") == "invalid_api_key"


def test_a_model_that_is_not_there(site: Site, claude: anthropic.Anthropic) -> None:
    """K8"""
    with pytest.raises(anthropic.PermissionDeniedError) as caught:
        claude.messages.create(model="claude-opus", max_tokens=5, messages=QUESTION)
    assert code_of(caught.value, "permission_error") == "model_not_available"
    with pytest.raises(anthropic.PermissionDeniedError) as caught:
        claude.models.retrieve("claude-opus")
    assert code_of(caught.value, "permission_error") == "model_not_available"


BAD: list[dict[str, Any]] = [
    {"messages": "hello"},
    {"messages": []},
    {"max_tokens": 2.5},
    {"max_tokens": 0},
    {"max_tokens": -1},
    {"model": None},
    {"stream": "yes"},
    {"metadata": {"user_id": 7}},
]


@pytest.mark.parametrize("body", BAD, ids=json.dumps)
def test_a_bad_request(site: Site, claude: anthropic.Anthropic, body: dict[str, Any]) -> None:
    """A5: said by the gateway; no engine is asked."""
    asked = site.stats()["started"]
    with pytest.raises(anthropic.BadRequestError) as caught:
        claude.messages.create(**{"model": site.model, "max_tokens": 5, "messages": QUESTION, **body})
    assert code_of(caught.value, "invalid_request_error") == "invalid_request"
    assert site.stats()["started"] == asked


def test_what_the_engine_refuses(site: Site, claude: anthropic.Anthropic) -> None:
    """H8"""
    with pytest.raises(anthropic.BadRequestError) as caught:
        claude.messages.create(model=site.embed_model, max_tokens=5, messages=QUESTION)
    assert code_of(caught.value, "invalid_request_error") == "upstream_rejected"


def test_unknown_routes(claude: anthropic.Anthropic) -> None:
    """H10"""
    with pytest.raises(anthropic.NotFoundError) as caught:
        claude.messages.batches.list()
    assert code_of(caught.value, "not_found_error") == "not_found"


def test_a_key_without_the_scope(site: Site) -> None:
    """K7"""

    async def main() -> None:
        async with gateway(site.backend, "ollama") as g:
            async with asynchronous(g, await g.add_key(scopes=("chat",))) as client:
                with pytest.raises(anthropic.PermissionDeniedError) as caught:
                    await client.messages.create(model=site.model, max_tokens=5, messages=QUESTION)
            assert code_of(caught.value, "permission_error") == "permission_denied"

    uvloop.run(main())


# ---- what it retries


def test_a_refusal_after_its_retries(site: Site) -> None:
    """A10: the client waits what Retry-After says, tries again, and raises in the end."""

    async def main() -> None:
        async with gateway(site.backend, "ollama", slots=1) as g, asynchronous(g, max_retries=1) as client:
            stream = await client.messages.create(model=site.model, max_tokens=4000, messages=ENDLESS, stream=True)
            await anext(stream)
            begun = time.monotonic()
            with pytest.raises(anthropic.RateLimitError) as caught:
                await client.messages.create(
                    model=site.model, max_tokens=5, messages=QUESTION, extra_headers={"x-queue-timeout": "0"}
                )
            took = time.monotonic() - begun
            await stream.close()
            assert code_of(caught.value, "rate_limit_error") == "queue_timeout"
            assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60
            assert took >= 1, "it did not wait before its retry"
            assert sorted(r["status"] for r in await g.records(3)) == [429, 429, 499]

    uvloop.run(main())


def test_a_spent_budget_is_not_tried_again(site: Site) -> None:
    """A10, L1"""

    async def main() -> None:
        async with gateway(site.backend, "ollama") as g:
            key = await g.add_key(limits=Limits(tokens_per_day=1))
            async with asynchronous(g, key, max_retries=5) as client:
                with pytest.raises(anthropic.RateLimitError) as caught:
                    await client.messages.create(model=site.model, max_tokens=5, messages=QUESTION)
            assert code_of(caught.value, "rate_limit_error") == "budget_exceeded"
            assert [r["status"] for r in await g.records(1)] == [429]

    uvloop.run(main())


def test_an_engine_that_breaks_amid_a_stream() -> None:
    """A5: the client raises our error, behind what it had read."""

    async def main() -> None:
        async with Engine(cut(SSE_HEAD + chunk(START), chunk(WORD))) as engine, gateway(engine.url, "ollama") as g:
            async with asynchronous(g) as client:
                stream = await client.messages.create(model="m", max_tokens=5, messages=QUESTION, stream=True)
                assert [(await anext(stream)).type for _ in range(2)] == ["message_start", "content_block_delta"]
                with pytest.raises(anthropic.APIStatusError) as caught:
                    await anext(stream)
            assert code_of(caught.value, "api_error") == "upstream_broke"

    uvloop.run(main())


# ---- what it cancels


def test_a_stream_closed_midway(site: Site) -> None:
    """H6, A7: the engine's work ends at once; the record has the prompt as told and the tokens that came."""

    async def main() -> None:
        async with gateway(site.backend, "ollama") as g, asynchronous(g) as client:
            stream = await client.messages.create(model=site.model, max_tokens=4000, messages=ENDLESS, stream=True)
            start = await anext(stream)
            for _ in range(4):
                await anext(stream)
            await stream.close()
            (record,) = await g.records(1)
            assert (record["outcome"], record["status"], record["usage_estimated"]) == ("client_gone", 499, 1)
            assert start.type == "message_start"
            assert record["prompt_tokens"] == start.message.usage.input_tokens
            assert record["completion_tokens"] >= 3
            await g.idle()

    with site.abort_seen():
        uvloop.run(main())


def test_many_streams_at_once(site: Site) -> None:
    """Each is whole, and its record has what the client was told."""

    async def one(client: anthropic.AsyncAnthropic, number: int) -> Any:
        ask: list[Any] = [{"role": "user", "content": f"Lighthouse number {number}"}]
        async with client.messages.stream(model=site.model, max_tokens=300, messages=ask) as stream:
            return (await stream.get_final_message()).usage

    async def main() -> None:
        async with gateway(site.backend, "ollama", slots=8) as g, asynchronous(g) as client:
            told = await asyncio.gather(*(one(client, number) for number in range(40)))
            records = await g.records(40)
            assert {(r["outcome"], r["usage_estimated"]) for r in records} == {("done", 0)}
            assert sum(r["completion_tokens"] for r in records) == sum(usage.output_tokens for usage in told)
            assert sum(r["prompt_tokens"] for r in records) == sum(usage.input_tokens for usage in told)

    uvloop.run(main())


def test_how_to_think_and_answer_reaches_an_engine_of_another_api() -> None:
    """A4: what the client says of thoughts, effort, form and tools."""
    said = {"message": {"content": '{"name":"newt","legs":4}'}, "finish_reason": "stop", "matched_stop": "END"}
    answer = json_answer(json.dumps({"id": "c", "model": "m", "choices": [said], "usage": USAGE}).encode())

    async def main() -> None:
        async with Engine(answering(answer)) as engine, gateway(engine.url) as g, asynchronous(g) as client:
            message = await client.messages.parse(
                model="m",
                max_tokens=9,
                messages=QUESTION,
                tools=[{**TOOL, "strict": True}],
                thinking={"type": "disabled"},
                output_config={"effort": "xhigh"},
                output_format=Animal,
            )
            assert message.parsed_output == Animal(name="newt", legs=4)
            assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "END")
            sent = json.loads((await engine.chats.get())[1])
            assert sent["reasoning_effort"] == "high"
            assert sent["chat_template_kwargs"] == {"enable_thinking": False, "thinking": False}
            assert sent["tools"][0]["function"]["strict"] is True
            assert sent["response_format"]["json_schema"]["schema"]["required"] == ["name", "legs"]

    uvloop.run(main())


def test_calls_that_an_engine_writes_at_once_are_whole() -> None:
    """A4: engines may interleave the arguments of parallel calls; this API has one block after the other."""

    def part(index: int, arguments: str, **more: Any) -> bytes:
        told = {"index": index, "function": {"arguments": arguments} | more.pop("function", {}), **more}
        return b"data: %b\n\n" % json.dumps({"id": "c", "choices": [{"delta": {"tool_calls": [told]}}]}).encode()

    parts = [
        part(0, '{"city":', id="a", function={"name": "get_weather"}),
        part(1, '{"city"', id="b", function={"name": "get_weather"}),
        part(0, '"Oslo"}'),
        part(1, ':"Rome"}'),
    ]

    async def main() -> None:
        async with Engine(streamed(*parts, DONE)) as engine, gateway(engine.url) as g, asynchronous(g) as client:
            async with client.messages.stream(model="m", max_tokens=9, messages=QUESTION, tools=[TOOL]) as stream:
                message = await stream.get_final_message()
            called = [(block.id, block.input) for block in message.content if block.type == "tool_use"]
            assert called == [("a", {"city": "Oslo"}), ("b", {"city": "Rome"})]
            assert message.stop_reason == "tool_use"

    uvloop.run(main())
