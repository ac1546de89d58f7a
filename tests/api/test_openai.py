"""`gateway.api.openai`: bodies read and edited, lists written."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api import openai
from gateway.api.dialect import Ask, Endpoint
from gateway.api.model_info import ModelInfo
from gateway.api.openai import OpenAI
from gateway.api.routes import Routes
from gateway.errors import BadRequest
from tests.api.json_text import OBJECTS, spans, spliced, texts

ROUTES = Routes()
DIALECT = ROUTES.default
ENGINES = ["vllm", "llamacpp", "openai", "ollama"]
MESSAGES = b'"messages":[{"role":"user","content":"hi"}]'


def row(name: str = "chat/completions") -> Endpoint:
    return ROUTES.match("POST", f"/v1/{name}")


def chat(extra: bytes = b"", model: bytes = b'"m"') -> bytes:
    return b'{"model":%b,%b%b}' % (model, MESSAGES, b"," + extra if extra else b"")


def read(body: bytes, name: str = "chat/completions") -> Ask:
    return DIALECT.read(row(name), body)


def edit(
    body: bytes, *, name: str = "chat/completions", model: str = "m", cap: int = 100, engine: str = "vllm"
) -> bytes:
    return DIALECT.edit(row(name), body, read(body, name), model=model, cap=cap, engine=engine)


def edited(body: bytes, **given: Any) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(edit(body, **given))
    return value


def test_the_view_of_a_chat_body() -> None:
    body = chat(b'"stream":true,"max_tokens":7,"n":2,"user":"ann","stream_options":{"include_usage":true}')
    ask = read(body)
    assert ask == Ask(
        model="m",
        stream=True,
        max_tokens=7,
        usage_asked=True,
        choices=2,
        input_bytes=len(body),
        user="ann",
        keys=frozenset({"model", "messages", "stream", "max_tokens", "n", "user", "stream_options"}),
    )


def test_absent_and_null_members_give_the_defaults() -> None:
    nulls = chat(b'"stream":null,"max_tokens":null,"n":null,"user":null,"stream_options":null')
    for body in (chat(), nulls):
        ask = read(body)
        assert (ask.stream, ask.max_tokens, ask.usage_asked, ask.choices, ask.user) == (False, None, False, 1, "")


NAME = "the name of the model to use"
INCLUDE = "stream_options.include_usage"


@pytest.mark.parametrize(
    ("body", "param", "sentence"),
    [
        (b"{%b}" % MESSAGES, "model", f"`model` is required: {NAME}"),
        (chat(model=b'""'), "model", f"`model` is required: {NAME}"),
        (chat(model=b"null"), "model", f"`model` is required: {NAME}"),
        (chat(model=b"7"), "model", "`model` must be a string"),
        (chat(model=b'"%b"' % (b"x" * 513)), "model", "`model` is longer than 512 characters"),
        (b'{"model":"m"}', "messages", "`messages` is required: an array of messages"),
        (b'{"model":"m","messages":null}', "messages", "`messages` is required: an array of messages"),
        (b'{"model":"m","messages":"hi"}', "messages", "`messages` must be an array of messages"),
        (b'{"model":"m","messages":[ ]}', "messages", "`messages` must not be empty"),
        (chat(b'"stream":"yes"'), "stream", "`stream` must be true or false"),
        (chat(b'"stream":1'), "stream", "`stream` must be true or false"),
        (chat(b'"max_tokens":"9"'), "max_tokens", "`max_tokens` must be a whole number"),
        (chat(b'"max_tokens":1.5'), "max_tokens", "`max_tokens` must be a whole number"),
        (chat(b'"max_tokens":-1'), "max_tokens", "`max_tokens` must not be negative"),
        (chat(b'"n":0'), "n", "`n` must be between 1 and 128"),
        (chat(b'"n":129'), "n", "`n` must be between 1 and 128"),
        (chat(b'"n":-3'), "n", "`n` must be between 1 and 128"),
        (chat(b'"user":{}'), "user", "`user` must be a string"),
        (chat(b'"stream_options":[]'), "stream_options", "`stream_options` must be a JSON object"),
        (chat(b'"stream_options":{"include_usage":1}'), INCLUDE, f"`{INCLUDE}` must be true or false"),
        (
            chat(b'"stream_options":{"include_usage":true,"include_usage":false}'),
            INCLUDE,
            f"`{INCLUDE}` appears more than once",
        ),
    ],
)
def test_wrong_chats_get_a_sentence_that_names_the_field(body: bytes, param: str, sentence: str) -> None:
    with pytest.raises(BadRequest) as caught:
        read(body)
    assert (caught.value.message, caught.value.param) == (sentence, param)


@pytest.mark.parametrize(
    ("name", "body", "param", "sentence"),
    [
        ("completions", b'{"model":"m"}', "prompt", "`prompt` is required: a string or an array"),
        ("completions", b'{"model":"m","prompt":5}', "prompt", "`prompt` must be a string or an array"),
        ("embeddings", b'{"model":"m"}', "input", "`input` is required: a string or an array"),
        ("embeddings", b'{"model":"m","input":{}}', "input", "`input` must be a string or an array"),
        ("responses", b'{"model":"m"}', "input", "`input` is required: a string or an array"),
        (
            "responses",
            b'{"model":"m","input":"x","background":true}',
            "background",
            "`background` is not supported: the answer must be read on the request's own connection",
        ),
        (
            "responses",
            b'{"model":"m","input":"x","background":true,"background":false}',
            "background",
            "`background` appears more than once",
        ),
        ("rerank", b'{"model":"m","documents":[]}', "query", "`query` is required: a string"),
        ("rerank", b'{"model":"m","query":"q"}', "documents", "`documents` is required: an array of documents"),
    ],
)
def test_wrong_bodies_get_a_sentence_that_names_the_field(name: str, body: bytes, param: str, sentence: str) -> None:
    with pytest.raises(BadRequest) as caught:
        read(body, name)
    assert (caught.value.message, caught.value.param) == (sentence, param)


@pytest.mark.parametrize(
    ("name", "body", "choices"),
    [
        ("chat/completions", chat(b'"n":3,"best_of":5'), 5),
        ("chat/completions", chat(b'"n_cmpl":9'), 9),
        ("completions", b'{"model":"m","prompt":"x","n":2}', 2),
        ("completions", b'{"model":"m","prompt":["x","y","z"],"n":2}', 6),
        ("completions", b'{"model":"m","prompt":[ [1,2],[3] ]}', 2),
        ("completions", b'{"model":"m","prompt":[1,2,3]}', 1),
        ("completions", b'{"model":"m","prompt":[%b"x","y","z"]}' % (b" " * 100), 3),
        ("completions", b'{"model":"m","prompt":[{"prompt_string":"x"},{"prompt_string":"y"}]}', 2),
        ("completions", b'{"model":"m","prompt_embeds":["AAAA","AAAA"],"n":2}', 4),
        ("completions", b'{"model":"m","prompt":"x","prompt_embeds":["AAAA","AAAA"]}', 3),
        ("completions", b'{"model":"m","prompt":[]}', 1),
    ],
)
def test_every_answer_the_engine_may_generate_is_counted(name: str, body: bytes, choices: int) -> None:
    assert read(body, name).choices == choices


@pytest.mark.parametrize(
    "part",
    [
        b'{"type":"image_url","image_url":{"url":"data:image/png;base64,%b"}}' % (b"iVB/" * 75_000),
        b'{"type":"image_url","image_url":{"url":"data:image\\/png;base64,%b"}}' % (b"iVB\\/" * 75_000),
        b'{"type":"input_audio","input_audio":{"data":"%b","format":"wav"}}' % (b"UklG" * 75_000),
    ],
)
def test_images_and_sounds_do_not_count_as_text(part: bytes) -> None:
    ask = read(b'{"model":"m","messages":[{"role":"user","content":[%b]}]}' % part)
    assert ask.input_bytes < 5_000


def test_each_image_and_sound_of_a_body_counts_once() -> None:
    image = b'{"type":"image_url","image_url":{"url":"data:image/png;base64,%b"}}' % (b"iVB/" * 25_000)
    sound = b'{"type":"input_audio","input_audio":{"data":"%b","format":"wav"}}' % (b"UklG" * 25_000)
    text = b'{"type":"text","text":"%b"}' % (b"word " * 20_000)
    ask = read(b'{"model":"m","messages":[{"role":"user","content":[%b]}]}' % b",".join((image, text, sound, image)))
    assert 100_000 + 3 * 4096 <= ask.input_bytes < 100_000 + 3 * 4096 + 500


def test_what_only_begins_like_images_counts_as_text() -> None:
    text = b'{"type":"text","text":"%b"}' % (b";base64,A " * 200_000)
    image = b'{"type":"image_url","image_url":{"url":"data:image/png;base64,%b"}}' % (b"iVB/" * 25_000)
    body = b'{"model":"m","messages":[{"role":"user","content":[%b]}]}'
    assert read(body % text).input_bytes > 2_000_000
    assert read(body % (text + b"," + image)).input_bytes > 2_100_000  # behind too many to be looked for


@pytest.mark.parametrize(
    ("given", "engine", "limits"),
    [
        (b"", "vllm", {"max_tokens": 100}),
        (b'"max_tokens":null', "vllm", {"max_tokens": 100}),
        (b'"max_tokens":100', "vllm", {"max_tokens": 100}),
        (b'"max_tokens":101', "vllm", {"max_tokens": 100}),
        (b'"max_tokens":5', "ollama", {"max_tokens": 5}),
        (b'"max_tokens":0', "vllm", {"max_tokens": 0}),
        (b'"max_tokens":0', "ollama", {"max_tokens": 100}),
        (b'"max_completion_tokens":5', "vllm", {"max_completion_tokens": 5}),
        (b'"max_completion_tokens":500', "openai", {"max_completion_tokens": 100}),
        (b'"max_completion_tokens":5', "ollama", {"max_completion_tokens": 5, "max_tokens": 5}),
        (b'"max_completion_tokens":500', "ollama", {"max_completion_tokens": 100, "max_tokens": 100}),
        (b'"max_completion_tokens":5,"max_tokens":null', "ollama", {"max_completion_tokens": 5, "max_tokens": 5}),
        (b'"max_completion_tokens":5,"max_tokens":null', "vllm", {"max_completion_tokens": 5, "max_tokens": None}),
        (b'"max_completion_tokens":null', "vllm", {"max_completion_tokens": None, "max_tokens": 100}),
        (b'"max_completion_tokens":5,"max_tokens":900', "vllm", {"max_completion_tokens": 5, "max_tokens": 100}),
        (b'"max_completion_tokens":900,"max_tokens":5', "ollama", {"max_completion_tokens": 100, "max_tokens": 5}),
        (b'"n_predict":-1', "llamacpp", {"n_predict": 100, "max_tokens": 100}),
        (b'"max_tokens":5,"n_predict":-1', "llamacpp", {"n_predict": 100, "max_tokens": 5}),
        (b'"max_tokens":5,"n_predict":999', "llamacpp", {"n_predict": 100, "max_tokens": 5}),
        (b'"max_tokens":5,"n_predict":6', "llamacpp", {"n_predict": 6, "max_tokens": 5}),
        (b'"max_tokens":50.0', "vllm", {"max_tokens": 50}),
        (b'"max_tokens":%b' % (b"9" * 40), "vllm", {"max_tokens": 100}),
    ],
)
def test_the_output_cap(given: bytes, engine: str, limits: dict[str, int | None]) -> None:
    """A6: above the cap is clamped, absent or null is set, Ollama gets `max_tokens`; llama.cpp's key is no way out."""
    value = edited(chat(given), engine=engine)
    assert {key: value[key] for key in value if key not in ("model", "messages")} == limits


@pytest.mark.parametrize(
    ("given", "limit"),
    [
        (b'"max_tokens":5', 5),
        (b'"max_tokens":5,"max_completion_tokens":7', 7),
        (b'"max_tokens":0', -1),
        (b'"max_tokens":5,"n_predict":-1', -1),
        (b'"max_tokens":5,"n_predict":50', 50),
        (b'"n_predict":5', None),
        (b'"max_output_tokens":5', None),
    ],
)
def test_the_limit_told_to_the_phases_is_an_upper_bound_for_every_engine(given: bytes, limit: int | None) -> None:
    """L2: what is reserved is never less than what some engine may generate."""
    assert read(chat(given)).max_tokens == limit


@pytest.mark.parametrize("value", [b"-9999", b"1", b"null", b'"high"'])
@pytest.mark.parametrize("name", ["chat/completions", "embeddings"])
def test_nobody_names_a_place_in_the_engines_own_order(name: str, value: bytes) -> None:
    """S-F1: vLLM with a priority policy preempts others for the smallest number."""
    body = b'{"model":"m","messages":[{"priority":5}],"input":"x","priority":%b,"max_tokens":9}' % value
    assert edited(body, name=name) == json.loads(body) | {"priority": 0}
    with pytest.raises(BadRequest, match="priority"):
        read(b'{"model":"m","input":"x","priority":0,"priority":-1}', "embeddings")


def test_responses_have_a_cap_of_their_own_name() -> None:
    body = b'{"model":"m","input":"hi","stream":true}'
    assert edited(body, name="responses") == {"max_output_tokens": 100, "model": "m", "input": "hi", "stream": True}
    assert edited(body.replace(b"true", b'true,"max_output_tokens":7'), name="responses")["max_output_tokens"] == 7


@pytest.mark.parametrize(
    ("given", "options"),
    [
        (b'"stream":true', {"include_usage": True}),
        (b'"stream":true,"stream_options":null', {"include_usage": True}),
        (b'"stream":true,"stream_options":{}', {"include_usage": True}),
        (b'"stream":true,"stream_options":{"include_usage":false}', {"include_usage": True}),
        (b'"stream":true,"stream_options":{"x":[1]}', {"include_usage": True, "x": [1]}),
        (b'"stream":true,"stream_options":{"x":1,"include_usage":null}', {"x": 1, "include_usage": True}),
        (b'"stream":false', None),
        (b'"stream":false,"stream_options":{"x":1}', {"x": 1}),
    ],
)
def test_streams_are_asked_for_their_usage(given: bytes, options: dict[str, Any] | None) -> None:
    """A7: include_usage is added upstream, what else the client set there stays."""
    assert edited(chat(given)).get("stream_options") == options


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("chat/completions", chat(b'"max_tokens":9')),
        ("chat/completions", chat(b'"max_tokens":9,"stream":true,"stream_options":{"include_usage":true}')),
        ("embeddings", b'{"model":"m","input":["a","b"]}'),
        ("rerank", b'{"model":"m","query":"q","documents":["a"]}'),
    ],
)
def test_a_body_that_needs_no_edit_is_the_same_object(name: str, body: bytes, engine: str) -> None:
    assert edit(body, name=name, engine=engine) is body


SETTINGS = st.fixed_dictionaries(
    {"model": st.sampled_from(["m", "other"]), "messages": st.just([{"role": "user", "content": '"max_tokens": 9}'}])},
    optional={
        "stream": st.sampled_from([True, False, None]),
        "max_tokens": st.sampled_from([None, 0, 5, 100, 101, 10**9]),
        "max_completion_tokens": st.sampled_from([None, 0, 5, 100, 101]),
        "n_predict": st.sampled_from([None, -1, 0, 5, 500]),
        "stream_options": st.sampled_from([None, {}, {"include_usage": True}, {"a": "b", "include_usage": False}]),
    },
)


@st.composite
def bodies(draw: st.DrawFn) -> dict[str, Any]:
    """A chat body with strange neighbours, its keys in any order."""
    value = draw(OBJECTS) | draw(SETTINGS)
    return {key: value[key] for key in draw(st.permutations(sorted(value)))}


@given(texts(bodies()), st.sampled_from(ENGINES))
def test_only_the_edited_keys_change_and_no_other_byte(case: tuple[dict[str, Any], bytes], engine: str) -> None:
    """A6, A7: the third rule, no surprise on the wire."""
    value, body = case
    result = edit(body, engine=engine)
    after = json.loads(result)
    touched = {"model", "max_tokens", "max_completion_tokens", "n_predict", "stream_options"}
    assert {k: v for k, v in after.items() if k not in touched} == {k: v for k, v in value.items() if k not in touched}
    assert after["model"] == "m"
    where = spans(result)
    changed = [key for key in after if after[key] != value.get(key) or key not in value]
    fresh = [key for key in changed if key not in value]
    head = b",".join(b'"%b":%b' % (key.encode(), result[slice(*where[key])]) for key in fresh)
    replaced = {key: result[slice(*where[key])] for key in changed if key in value}
    assert result == spliced(body, replaced, head + b"," if head else b"")
    least = 1 if engine == "ollama" else 0
    assert all(after.get(key) is None or least <= after[key] <= 100 for key in ("max_tokens", "max_completion_tokens"))
    assert after.get("n_predict") is None or least <= after["n_predict"] <= 100
    assert after.get("max_tokens") is not None or (
        after.get("max_completion_tokens") is not None and engine in ("vllm", "openai")
    )
    if value.get("stream"):
        assert after["stream_options"]["include_usage"] is True


def test_lists() -> None:
    """A8: ids, no URLs."""
    models = [ModelInfo(name="a/b:c", created=7, owned_by="me", detail={"remote_host": "http://10.0.0.1"})]
    entry = {"id": "a/b:c", "object": "model", "created": 7, "owned_by": "me"}
    assert json.loads(OpenAI().models(models)) == {"object": "list", "data": [entry]}
    assert json.loads(OpenAI().model(models[0])) == entry
    assert json.loads(OpenAI().models([])) == {"object": "list", "data": []}


def test_bodies_of_the_same_keys_share_the_set_of_them() -> None:
    """Memory per stream; and what odd clients send is not kept without end."""
    kept, most = openai._KEY_SETS, openai._MOST_KEY_SETS
    kept.clear()
    assert read(chat()).keys is read(chat()).keys
    assert read(chat(b'"user":"a"')).keys == {"model", "messages", "user"}
    assert len(kept) == 2
    for number in range(most):
        openai._shared(frozenset({str(number)}))
    assert read(chat(b'"n":1')).keys == {"model", "messages", "n"}
    assert len(kept) == most
    kept.clear()
