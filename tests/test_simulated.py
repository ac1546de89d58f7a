"""The simulated Ollama on a real socket, judged by the real `ollama` and `openai` SDKs and by exact bytes."""

import asyncio
import contextlib
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import ollama
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.simulated import Engine, Settings, app, text
from gateway.simulated.__main__ import main
from gateway.simulated.engine import Tally

CHAT = "llama3.2:3b"
EMBED = "nomic-embed-text"
QUESTION = [{"role": "user", "content": "Tell me about lighthouses and queues"}]
LONG = [{"role": "user", "content": "Write 5000 words about patience"}]


@contextlib.contextmanager
def simulated(*arguments: str) -> Iterator[str]:
    """A simulated Ollama in its own process; its URL."""
    command = [sys.executable, "-m", "gateway.simulated", "--listen", "127.0.0.1:0", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            ready = json.loads(process.stdout.readline())
            assert ready["pid"] == process.pid
            yield ready["url"]
        finally:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--listen", "nowhere"], "'nowhere' is not HOST:PORT"),
        (["--listen", "127.0.0.1:99999"], "'127.0.0.1:99999' is not HOST:PORT"),
        (["--listen", "192.0.2.1:0"], "192.0.2.1:0"),
        (["--slots", "-1"], "'-1' is not a whole number of at least 1"),
    ],
)
def test_what_it_cannot_do_is_said_in_a_sentence(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert says in capsys.readouterr().err.splitlines()[-1]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A fast one: no pace, no waits, many slots."""
    with simulated("--tokens-per-second", "0", "--ttft", "0", "--load-seconds", "0.001", "--slots", "8") as base:
        yield base


@pytest.fixture
def slow() -> Iterator[str]:
    """One slot, a queue of two, a token each 20 ms."""
    with simulated("--tokens-per-second", "50", "--ttft", "0.05", "--load-seconds", "0", "--max-queue", "2") as base:
        yield base


@pytest.fixture
def sdk(url: str) -> Iterator[ollama.Client]:
    """The ollama SDK."""
    client = ollama.Client(host=url)
    yield client
    client._client.close()


@pytest.fixture
def oai(url: str) -> Iterator[openai.OpenAI]:
    """The openai SDK."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key="ignored", max_retries=0) as client:
        yield client


def stats(base: str) -> dict[str, Any]:
    """What the backend saw so far."""
    return httpx.get(f"{base}/simulated/stats").json()


def wait(base: str, event: str, count: int = 1) -> dict[str, Any]:
    """Wait for an event at the backend; fails if it does not come."""
    answer = httpx.get(f"{base}/simulated/wait", params={"event": event, "count": count, "timeout": 5}, timeout=10)
    assert answer.status_code == 200, answer.text
    return answer.json()


# The ollama SDK


def test_ollama_lists_and_shows(sdk: ollama.Client) -> None:
    """list and show parse into the SDK's types and say that the models are simulated."""
    listed = sdk.list().models
    assert {model.model for model in listed} >= {CHAT, "nomic-embed-text:latest"}
    assert all(model.details is not None and model.details.family == "simulated" for model in listed)
    shown = sdk.show(CHAT)
    assert shown.capabilities == ["completion", "tools"]
    assert shown.modelinfo is not None
    assert shown.modelinfo["general.architecture"] == "simulated"


def test_ollama_chat_whole_and_streamed_agree(sdk: ollama.Client) -> None:
    """The same request gives the same text, streamed or not; counts are those of the tokens."""
    whole = sdk.chat(CHAT, QUESTION)
    parts = list(sdk.chat(CHAT, QUESTION, stream=True))
    assert "".join(part.message.content or "" for part in parts) == whole.message.content
    assert whole.message.content is not None
    assert "simulated" in whole.message.content.lower()
    last = parts[-1]
    assert (last.done, last.done_reason) == (True, "stop")
    assert last.eval_count == whole.eval_count == len(parts) - 1
    assert last.prompt_eval_count == whole.prompt_eval_count
    assert all(part.done is False for part in parts[:-1])
    assert min(last.total_duration or 0, last.prompt_eval_duration or 0, last.eval_duration or 0) > 0


def test_ollama_generate_caps_at_num_predict(sdk: ollama.Client) -> None:
    """num_predict cuts with done_reason length; the final frame carries context."""
    parts = list(sdk.generate(CHAT, "Write 200 words", stream=True, options={"num_predict": 7}))
    assert (parts[-1].done_reason, parts[-1].eval_count, len(parts)) == ("length", 7, 8)
    assert len(parts[-1].context or []) == 7


def test_ollama_stop_word_and_seed(sdk: ollama.Client) -> None:
    """A stop word ends the text before it; another seed gives another text."""
    plain = sdk.generate(CHAT, "Write 80 words").response
    assert sdk.generate(CHAT, "Write 80 words", options={"stop": [plain[20:25]]}).response == plain[:20]
    assert sdk.generate(CHAT, "Write 80 words", options={"seed": 7}).response != plain


def test_ollama_json_format_and_schema(sdk: ollama.Client) -> None:
    """format json gives an object; a schema gives a value that fits it."""
    said = sdk.chat(CHAT, QUESTION, format="json").message.content
    assert json.loads(said or "")["simulated"] is True
    schema = {
        "type": "object",
        "properties": {"age": {"type": "integer"}, "tags": {"type": "array", "items": {"enum": ["a", "b"]}}},
    }
    value = json.loads(sdk.chat(CHAT, QUESTION, format=schema).message.content or "")
    assert isinstance(value["age"], int)
    assert value["tags"][0] in ("a", "b")


def test_ollama_thinks(sdk: ollama.Client) -> None:
    """A thinking model thinks first unless told not to; another refuses."""
    thought = sdk.chat("qwen3:4b", QUESTION)
    assert "simulated thinking" in (thought.message.thinking or "")
    assert sdk.chat("qwen3:4b", QUESTION, think=False).message.thinking is None
    with pytest.raises(ollama.ResponseError, match=r'"llama3\.2:3b" does not support thinking') as refused:
        sdk.chat(CHAT, QUESTION, think=True)
    assert refused.value.status_code == 400


def tool() -> dict[str, Any]:
    """A function both SDKs accept."""
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    return {"type": "function", "function": {"name": "get_weather", "description": "now", "parameters": parameters}}


def test_ollama_calls_a_tool_and_then_answers(sdk: ollama.Client) -> None:
    """A tool is called when the prompt asks for it; after its result the model answers in words."""
    asked = [{"role": "user", "content": "What is the weather in Lisbon?"}]
    calls = sdk.chat(CHAT, asked, tools=[tool()]).message.tool_calls or []
    assert [(call.function.name, call.function.arguments) for call in calls] == [("get_weather", {"city": "Lisbon"})]
    answered = sdk.chat(CHAT, [*asked, {"role": "tool", "content": "21 °C"}], tools=[tool()])
    assert answered.message.tool_calls is None
    assert answered.message.content
    assert sdk.chat(CHAT, QUESTION, tools=[tool()]).message.tool_calls is None


def test_ollama_embeds(sdk: ollama.Client) -> None:
    """Vectors are unit length, repeatable, nearer for shared words; a list gives a list."""
    made = sdk.embed(EMBED, ["the quiet queue", "the quiet café", "順番"])
    first, second, third = made.embeddings
    assert all(math.isclose(sum(x * x for x in vector), 1.0, rel_tol=1e-6) for vector in made.embeddings)
    assert sum(a * b for a, b in zip(first, second, strict=True)) > sum(
        a * b for a, b in zip(first, third, strict=True)
    )
    again = sdk.embed(EMBED, "the quiet queue", dimensions=32)
    assert len(again.embeddings[0]) == 32
    assert made.prompt_eval_count == sum(
        len(text.tokens(each)) for each in ("the quiet queue", "the quiet café", "順番")
    )
    assert sdk.embeddings(EMBED, "the quiet queue").embedding == first


def test_ollama_loads_lists_and_unloads(sdk: ollama.Client) -> None:
    """Empty messages load, keep_alive 0 unloads; ps lists what is loaded."""
    assert sdk.generate("qwen2.5-coder:7b", "", keep_alive="10m").done_reason == "load"
    assert "qwen2.5-coder:7b" in [model.model for model in sdk.ps().models]
    assert sdk.chat("qwen2.5-coder:7b", [], keep_alive=0).done_reason == "unload"
    assert "qwen2.5-coder:7b" not in [model.model for model in sdk.ps().models]


@pytest.mark.parametrize(
    ("model", "status", "message"),
    [
        ("nope", 404, 'model "nope" not found, try pulling it first'),
        (EMBED, 400, '"nomic-embed-text" does not support chat'),
    ],
)
def test_ollama_errors(sdk: ollama.Client, model: str, status: int, message: str) -> None:
    """Errors reach the SDK as ResponseError with Ollama's sentence."""
    with pytest.raises(ollama.ResponseError) as refused:
        sdk.chat(model, QUESTION)
    assert (refused.value.status_code, refused.value.error) == (status, message)


# The openai SDK


def test_openai_models(oai: openai.OpenAI) -> None:
    """list and retrieve."""
    assert CHAT in [model.id for model in oai.models.list()]
    assert oai.models.retrieve(CHAT).owned_by == "library"
    with pytest.raises(openai.NotFoundError):
        oai.models.retrieve("nope")


def test_openai_chat_whole_and_streamed_agree(oai: openai.OpenAI) -> None:
    """Role on the first chunk only, a separate finish chunk, no usage unless asked."""
    whole = oai.chat.completions.create(model=CHAT, messages=QUESTION)
    chunks = list(oai.chat.completions.create(model=CHAT, messages=QUESTION, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert [chunk.choices[0].delta.role for chunk in chunks] == ["assistant"] + [None] * (len(chunks) - 1)
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert chunks[-1].choices[0].delta.content == ""
    assert all(chunk.usage is None for chunk in chunks)
    assert len({(chunk.id, chunk.created) for chunk in chunks}) == 1


def test_openai_include_usage_adds_one_chunk(oai: openai.OpenAI) -> None:
    """With include_usage the last chunk has no choices and the counts of the whole answer."""
    options = {"include_usage": True}
    chunks = list(oai.chat.completions.create(model=CHAT, messages=QUESTION, stream=True, stream_options=options))
    whole = oai.chat.completions.create(model=CHAT, messages=QUESTION)
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len(chunks) - 2


def test_openai_max_tokens_counts_and_max_completion_tokens_is_ignored(oai: openai.OpenAI) -> None:
    """As the real one: only max_tokens caps (protocols 10)."""
    capped = oai.chat.completions.create(model=CHAT, messages=QUESTION, max_tokens=5)
    assert (capped.choices[0].finish_reason, capped.usage.completion_tokens) == ("length", 5)
    ignored = oai.chat.completions.create(model=CHAT, messages=QUESTION, max_completion_tokens=5)
    assert ignored.choices[0].finish_reason == "stop"


def test_openai_tools_stream(oai: openai.OpenAI) -> None:
    """A streamed tool call has its fragments and finish_reason tool_calls."""
    asked = [{"role": "user", "content": "Use the weather tool for Lisbon"}]
    chunks = list(oai.chat.completions.create(model=CHAT, messages=asked, tools=[tool()], stream=True))
    call = (chunks[0].choices[0].delta.tool_calls or [])[0]
    assert (call.index, call.type, call.function.name) == (0, "function", "get_weather")
    assert json.loads(call.function.arguments) == {"city": "Lisbon"}
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_openai_completions(oai: openai.OpenAI) -> None:
    """The text route; with include_usage Ollama puts a zero usage on each chunk and the counts on the last."""
    options = {"include_usage": True}
    chunks = list(oai.completions.create(model=CHAT, prompt="Hello there", stream=True, stream_options=options))
    whole = oai.completions.create(model=CHAT, prompt="Hello there")
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == whole.choices[0].text
    assert {chunk.usage.total_tokens for chunk in chunks[:-1]} == {0}
    assert (chunks[-1].choices, chunks[-1].usage) == ([], whole.usage)


def test_openai_embeddings(oai: openai.OpenAI, sdk: ollama.Client) -> None:
    """The SDK's default base64 and floats are the same vectors as the native route's."""
    packed = oai.embeddings.create(model=EMBED, input=["a queue", "b"])
    floats = oai.embeddings.create(model=EMBED, input="a queue", encoding_format="float")
    native = sdk.embed(EMBED, "a queue").embeddings[0]
    assert floats.data[0].embedding == pytest.approx(list(native))
    assert packed.data[0].embedding == pytest.approx(list(native), abs=1e-6)
    assert packed.usage.prompt_tokens == len(text.tokens("a queue")) + 1


def test_openai_typed_errors(oai: openai.OpenAI) -> None:
    """404 and 400 are the SDK's typed errors with Ollama's sentence."""
    with pytest.raises(openai.NotFoundError, match='model "nope" not found, try pulling it first') as missing:
        oai.chat.completions.create(model="nope", messages=QUESTION)
    assert missing.value.type == "not_found_error"
    with pytest.raises(openai.BadRequestError, match="too short - 'messages'"):
        oai.chat.completions.create(model=CHAT, messages=[])


# Exact bytes


def test_native_stream_bytes(url: str) -> None:
    """NDJSON without blanks, field order of ollama's ChatResponse, stream on by default, each line ended."""
    answer = httpx.post(f"{url}/api/chat", json={"model": CHAT, "messages": QUESTION, "options": {"num_predict": 1}})
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert answer.headers["transfer-encoding"] == "chunked"
    first, last, rest = answer.content.split(b"\n")
    assert rest == b""
    assert list(json.loads(first)) == ["model", "created_at", "message", "done"]
    assert first.startswith(b'{"model":"llama3.2:3b","created_at":"')
    assert first.endswith(b'"message":{"role":"assistant","content":"Simulat"},"done":false}')
    assert list(json.loads(last)) == [
        *("model", "created_at", "message", "done", "done_reason", "total_duration", "load_duration"),
        *("prompt_eval_count", "prompt_eval_duration", "eval_count", "eval_duration"),
    ]


def test_openai_stream_bytes(url: str) -> None:
    """Frames end in a blank line, the stream in [DONE]; Go's escaping of angle brackets shows."""
    body = {"model": "a<b>:latest", "messages": QUESTION, "stream": True}
    assert b"\\u003cb\\u003e" in httpx.post(f"{url}/v1/chat/completions", json=body).content
    answer = httpx.post(f"{url}/v1/chat/completions", json=body | {"model": CHAT})
    assert answer.headers["content-type"] == "text/event-stream"
    frames = answer.content.split(b"\n\n")
    assert frames[-2:] == [b"data: [DONE]", b""]
    assert all(frame.startswith(b'data: {"id":"chatcmpl-') for frame in frames[:-2])


def test_root_version_and_router_texts(url: str) -> None:
    """GET and HEAD of the simple routes; unknown path and wrong method in the router's words."""
    assert httpx.get(url).text == "Ollama is running"
    assert httpx.head(f"{url}/").status_code == httpx.head(f"{url}/api/tags").status_code == 200
    assert httpx.get(f"{url}/api/version").json() == {"version": "0.0.0-simulated"}
    assert (httpx.get(f"{url}/no").status_code, httpx.get(f"{url}/no").text) == (404, "404 page not found")
    assert httpx.get(f"{url}/api/chat").status_code == 405


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:99", 200),
        ("[::1]:99", 200),
        ("127.0.0.1", 200),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("[::2]", 403),
    ],
)
def test_host_check(url: str, host: str, status: int) -> None:
    """An unknown Host gets 403 with an empty body (protocols 10)."""
    answer = httpx.get(f"{url}/api/version", headers={"host": host})
    assert answer.status_code == status
    assert (answer.content == b"") == (status == 403)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", "missing request body"),
        (b"{", "truncated"),
        (b'{"model": 7}', "str"),
        (b'{"keep_alive": "soon"}', "model is required"),
    ],
)
def test_bad_bodies_are_400_in_the_dialect(url: str, body: bytes, sentence: str) -> None:
    """A string error on the native surface, an object on the other."""
    native = httpx.post(f"{url}/api/generate", content=body)
    assert native.status_code == 400
    assert sentence in native.json()["error"]
    surface = httpx.post(f"{url}/v1/completions", content=body)
    assert (surface.status_code, surface.json()["error"]["type"]) == (400, "invalid_request_error")


def test_model_management_is_refused_and_counted(url: str) -> None:
    """Each mutating route is there, changes nothing, and is seen in the stats."""
    before = stats(url)["mutations"]
    for verb in ("pull", "push", "create", "copy"):
        assert httpx.post(f"{url}/api/{verb}", json={"model": "x"}).status_code == 501
    assert httpx.request("DELETE", f"{url}/api/delete", json={"model": CHAT}).status_code == 501
    assert httpx.post(f"{url}/api/blobs/sha256:00", content=b"x").status_code == 501
    assert stats(url)["mutations"] == before + 6


def test_requests_show_what_the_backend_saw(url: str) -> None:
    """Tests of a gateway can look at the very head and body that arrived."""
    httpx.post(f"{url}/api/show", content=b'{"model": "llama3.2:3b" }', headers={"x-odd": "1"})
    seen = httpx.get(f"{url}/simulated/requests").json()["requests"][-1]
    assert (seen["method"], seen["target"], seen["body"]) == ("POST", "/api/show", '{"model": "llama3.2:3b" }')
    assert ["x-odd", "1"] in seen["headers"]


# Slots, pace, cancellation


def test_one_slot_queue_and_busy(slow: str) -> None:
    """One runs, two wait, the fourth gets the 503 in each dialect; leaving the queue is an abort."""
    body = {"model": CHAT, "messages": LONG}

    async def scene() -> None:
        async with httpx.AsyncClient(base_url=slow) as client:
            held = [asyncio.create_task(client.post("/api/chat", json=body)) for _ in range(3)]
            await asyncio.to_thread(wait, slow, "queue", 2)
            busy = await client.post("/api/chat", json=body)
            text_ = "server busy, please try again.  maximum pending requests exceeded"
            assert (busy.status_code, busy.json()) == (503, {"error": text_})
            surface = await client.post("/v1/chat/completions", json=body)
            assert (surface.status_code, surface.json()["error"]["message"]) == (503, text_)
            assert (stats(slow)["running"], stats(slow)["queued"], stats(slow)["refused"]) == (1, 2, 2)
            for task in held:
                task.cancel()
            await asyncio.gather(*held, return_exceptions=True)
            after = await asyncio.to_thread(wait, slow, "abort", 3)
            assert (after["running"], after["queued"], after["completed"]) == (0, 0, 0)

    asyncio.run(scene())


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions"])
def test_leaving_cancels_at_once(slow: str, path: str, stream: bool) -> None:
    """A client that closes, streaming or not, frees the slot long before the answer would have ended."""
    with httpx.Client(base_url=slow) as client:
        request = client.build_request("POST", path, json={"model": CHAT, "messages": LONG, "stream": stream})
        if stream:
            response = client.send(request, stream=True)
            next(response.iter_raw())
            response.close()
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post(path, json={"model": CHAT, "messages": LONG, "stream": False}, timeout=0.2)
    assert wait(slow, "abort")["running"] == 0
    assert wait(slow, "idle")["started"] == 1


def test_openai_sdk_cancel_mid_stream(slow: str) -> None:
    """Closing the SDK's stream is an abort; the next request runs to its end at the set pace."""
    with openai.OpenAI(base_url=f"{slow}/v1", api_key="ignored", max_retries=0) as client:
        stream = client.chat.completions.create(model=CHAT, messages=LONG, stream=True)
        assert next(iter(stream)).choices[0].delta.role == "assistant"
        stream.close()
        wait(slow, "abort")
    final = httpx.post(f"{slow}/api/generate", json={"model": CHAT, "prompt": "x", "options": {"num_predict": 20}})
    timing = json.loads(final.content.splitlines()[-1])
    assert 0.3e9 < timing["eval_duration"] < 3e9  # 20 tokens at 50/s, with room for a busy machine
    assert timing["prompt_eval_duration"] >= 0.05e9
    assert stats(slow)["completed"] == 1


# In-process


def test_models_expire_by_keep_alive() -> None:
    """A model leaves memory when its keep_alive is over; a negative one never ends."""
    time = [1000.0]
    engine = Engine(Settings(tokens_per_second=0, ttft=0, load_seconds=0), clock=lambda: time[0])
    transport = httpx.ASGITransport(app(engine=engine))

    async def scene() -> None:
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            await client.post("/api/generate", json={"model": CHAT, "prompt": "hi", "keep_alive": "1m30s"})
            await client.post("/api/embed", json={"model": EMBED, "input": "hi", "keep_alive": -1})
            time[0] += 89
            assert len((await client.get("/api/ps")).json()["models"]) == 2
            time[0] += 2
            (left,) = (await client.get("/api/ps")).json()["models"]
            assert left["name"] == "nomic-embed-text:latest"

    asyncio.run(scene())


def test_a_wait_that_is_too_long_says_so() -> None:
    """The tally answers False at the time limit and forgets the waiter."""
    tally = Tally()
    assert asyncio.run(tally.wait("abort", 1, 0.01)) is False
    assert tally._waiters == []


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_tokens_join_to_the_text(said: str) -> None:
    """No character is lost or changed by splitting into tokens."""
    assert "".join(text.tokens(said)) == said
