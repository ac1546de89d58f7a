"""`gateway.api.anthropic`: bodies read and edited, lists written."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api.dialect import Ask, Endpoint
from gateway.api.model_info import ModelInfo
from gateway.api.routes import Routes
from gateway.errors import BadRequest
from tests.api.json_text import OBJECTS, spliced, texts

ROUTES = Routes()
DIALECT = ROUTES.dialect_for("/v1/messages")
MESSAGES = ROUTES.match("POST", "/v1/messages")
COUNT = ROUTES.match("POST", "/v1/messages/count_tokens")
HELLO = b'"messages":[{"role":"user","content":"hello"}]'


def edit(body: bytes, row: Endpoint = MESSAGES, model: str = "m") -> bytes:
    return DIALECT.edit(row, body, DIALECT.read(row, body), model=model, cap=100, engine="vllm")


def test_the_view_of_a_body() -> None:
    body = b'{"model":"m","max_tokens":5,"stream":true,"metadata":{"user_id":"ann"},%b}' % HELLO
    assert DIALECT.read(MESSAGES, body) == Ask(
        model="m",
        stream=True,
        max_tokens=5,
        usage_asked=True,
        input_bytes=len(body),
        user="ann",
        keys=frozenset({"model", "messages", "max_tokens", "stream", "metadata"}),
    )


def test_counting_costs_no_prompt_and_has_no_limit() -> None:
    """A3: nothing is generated, so nothing is estimated, streamed or capped."""
    body = b'{"model":"m","stream":true,"max_tokens":900,%b}' % HELLO
    ask = DIALECT.read(COUNT, body)
    assert (ask.stream, ask.max_tokens, ask.input_bytes) == (False, None, 0)
    assert edit(body, COUNT) == body


def test_the_prompt_is_all_that_the_engine_reads() -> None:
    """L2: of a large body the system prompt and the tools count too; an image counts as a flat amount."""
    image = '{"type":"image","source":{"type":"base64","media_type":"image/png","data":"%s"}}' % ("A" * 200_000)
    system, tools = json.dumps("s" * 50_000), json.dumps([{"name": "t", "description": "d" * 40_000}])
    body = f'{{"model":"m","system":{system},"tools":{tools},"messages":[{{"role":"user","content":[{image}]}}]}}'
    assert 90_000 < DIALECT.read(MESSAGES, body.encode()).input_bytes < 96_000


@pytest.mark.parametrize(
    ("body", "param", "sentence"),
    [
        (b"{%b}" % HELLO, "model", "`model` is required: the name of the model to use"),
        (b'{"model":"m"}', "messages", "`messages` is required: an array of messages"),
        (b'{"model":"m","messages":"hi"}', "messages", "`messages` must be an array of messages"),
        (b'{"model":"m","messages":[ ]}', "messages", "`messages` must not be empty"),
        (b'{"model":"m","max_tokens":0,%b}' % HELLO, "max_tokens", "`max_tokens` must be 1 or more"),
        (b'{"model":"m","max_tokens":-1,%b}' % HELLO, "max_tokens", "`max_tokens` must be 1 or more"),
        (b'{"model":"m","max_tokens":1.5,%b}' % HELLO, "max_tokens", "`max_tokens` must be a whole number"),
        (b'{"model":"m","Max_Tokens":9,%b}' % HELLO, "max_tokens", "`max_tokens` must be spelled in lower case"),
        (
            b'{"model":"m","max_tokens":1,"max_tokens":9,%b}' % HELLO,
            "max_tokens",
            "`max_tokens` appears more than once",
        ),
        (b'{"model":"m","stream":1,%b}' % HELLO, "stream", "`stream` must be true or false"),
        (b'{"model":"m","metadata":3,%b}' % HELLO, "metadata", "`metadata` must be a JSON object"),
        (b'{"model":"m","metadata":{"user_id":3},%b}' % HELLO, "user_id", "`user_id` must be a string"),
    ],
)
def test_wrong_bodies_get_a_sentence_that_names_the_field(body: bytes, param: str, sentence: str) -> None:
    with pytest.raises(BadRequest) as caught:
        DIALECT.read(MESSAGES, body)
    assert (caught.value.message, caught.value.param) == (sentence, param)


@pytest.mark.parametrize(
    ("asked", "after"), [(b"", 100), (b'"max_tokens":null,', 100), (b'"max_tokens":101,', 100), (b'"max_tokens":7,', 7)]
)
def test_the_output_cap(asked: bytes, after: int) -> None:
    """A6"""
    body = b'{"model":"m",%b%b}' % (asked, HELLO)
    assert json.loads(edit(body)) == json.loads(body) | {"max_tokens": after}
    assert after == 100 or edit(body) == body


@st.composite
def bodies(draw: st.DrawFn) -> dict[str, Any]:
    body = draw(OBJECTS.filter(lambda found: "metadata" not in found)) | {"model": "alias"}
    body["messages"] = [{"role": "user", "content": "hi"}]
    limit = draw(st.sampled_from([..., None, 7, 900]))
    return body if limit is ... else body | {"max_tokens": limit}


@given(texts(bodies()))
def test_edits_touch_what_they_must_and_no_other_byte(case: tuple[dict[str, Any], bytes]) -> None:
    """A6: whatever else the body holds, however it is written."""
    body, text = case
    capped = {} if body.get("max_tokens") == 7 else {"max_tokens": b"100"}
    replaced = {"model": b'"served"'} | (capped if "max_tokens" in body else {})
    inserted = b'"max_tokens":100,' if capped and "max_tokens" not in body else b""
    assert edit(text, model="served") == spliced(text, replaced, inserted)


def test_lists() -> None:
    """A8: the API's page of models, and an empty one."""
    models = [ModelInfo("a", created=0), ModelInfo("b:1", created=1_700_000_000)]
    assert json.loads(DIALECT.models(models)) == {
        "data": [
            {"type": "model", "id": "a", "display_name": "a", "created_at": "1970-01-01T00:00:00Z"},
            {"type": "model", "id": "b:1", "display_name": "b:1", "created_at": "2023-11-14T22:13:20Z"},
        ],
        "has_more": False,
        "first_id": "a",
        "last_id": "b:1",
    }
    assert json.loads(DIALECT.models([])) == {"data": [], "has_more": False, "first_id": None, "last_id": None}
    assert json.loads(DIALECT.model(models[0]))["id"] == "a"
