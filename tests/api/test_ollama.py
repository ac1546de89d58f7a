"""`gateway.api.ollama`: bodies read and edited, lists written."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api.dialect import Ask, Endpoint
from gateway.api.model_info import ModelInfo
from gateway.api.ollama import Ollama, running_list
from gateway.api.routes import Routes
from gateway.errors import BadRequest
from tests.api.json_text import OBJECTS, spans, spliced, texts

ROUTES = Routes()
NUM = "options.num_predict"
DIALECT = ROUTES.dialect_for("/api/chat")


def row(name: str) -> Endpoint:
    return ROUTES.match("POST", f"/api/{name}")


def read(body: bytes, name: str = "chat") -> Ask:
    return DIALECT.read(row(name), body)


def edit(body: bytes, name: str = "chat", model: str = "m") -> bytes:
    return DIALECT.edit(row(name), body, read(body, name), model=model, cap=100, engine="ollama")


def test_the_view_of_a_chat_body() -> None:
    body = b'{"model":"m","messages":[{}],"options":{"num_predict":5},"stream":false}'
    ask = read(body)
    assert ask == Ask(
        model="m",
        max_tokens=5,
        input_bytes=len(body),
        keys=frozenset({"model", "messages", "options", "stream"}),
    )


@pytest.mark.parametrize(("name", "streams"), [("chat", True), ("generate", True), ("embed", False), ("show", False)])
def test_generations_stream_unless_told_not_to(name: str, streams: bool) -> None:
    assert read(b'{"model":"m"}', name).stream is streams
    assert read(b'{"model":"m","stream":null}', name).stream is streams
    assert read(b'{"model":"m","stream":false}', name).stream is False


@pytest.mark.parametrize(
    ("name", "body", "param", "sentence"),
    [
        ("chat", b'{"messages":[]}', "model", "`model` is required: the name of the model to use"),
        ("chat", b'{"model":5}', "model", "`model` must be a string"),
        ("chat", b'{"model":"m","messages":{}}', "messages", "`messages` must be an array of messages"),
        ("chat", b'{"model":"m","options":3}', "options", "`options` must be a JSON object"),
        ("chat", b'{"model":"m","Options":{}}', "options", "`options` must be spelled in lower case"),
        ("chat", b'{"model":"m","options":{"NUM_PREDICT":-1}}', NUM, f"`{NUM}` must be spelled in lower case"),
        ("chat", b'{"model":"m","options":{"num_predict":1,"num_predict":-1}}', NUM, f"`{NUM}` appears more than once"),
        ("chat", b'{"model":"m","options":{"num_predict":"all"}}', NUM, f"`{NUM}` must be a whole number"),
        ("generate", b'{"model":"m","prompt":["a"]}', "prompt", "`prompt` must be a string"),
        ("embed", b'{"model":"m","input":4}', "input", "`input` must be a string or an array"),
        ("show", b"{}", "model", "`model` is required: the name of the model to use"),
    ],
)  # fmt: skip
def test_wrong_bodies_get_a_sentence_that_names_the_field(name: str, body: bytes, param: str, sentence: str) -> None:
    with pytest.raises(BadRequest) as caught:
        read(body, name)
    assert (caught.value.message, caught.value.param) == (sentence, param)


@pytest.mark.parametrize("body", [b'{"name":"old"}', b'{"model":"","name":"old"}', b'{"model":null,"name":"old"}'])
def test_show_takes_the_older_name_as_ollama_does(body: bytes) -> None:
    assert read(body, "show").model == "old"
    assert json.loads(edit(body, "show", model="new"))["model"] == "new"


def test_show_prefers_model_over_name() -> None:
    assert read(b'{"model":"m","name":"other"}', "show").model == "m"


@pytest.mark.parametrize(
    ("options", "after"),
    [
        (None, {"num_predict": 100}),
        (b"null", {"num_predict": 100}),
        (b"{}", {"num_predict": 100}),
        (b'{ "num_ctx" : 9 }', {"num_predict": 100, "num_ctx": 9}),
        (b'{"num_predict":null,"seed":1}', {"num_predict": 100, "seed": 1}),
        (b'{"num_predict":5}', {"num_predict": 5}),
        (b'{"num_predict":100}', {"num_predict": 100}),
        (b'{"num_predict":101}', {"num_predict": 100}),
        (b'{"num_predict":-1}', {"num_predict": 100}),
        (b'{"num_predict":-2}', {"num_predict": 100}),
        (b'{"num_predict":0}', {"num_predict": 100}),
        (b'{"num_predict":1e6}', {"num_predict": 100}),
    ],
)
@pytest.mark.parametrize("name", ["chat", "generate"])
def test_the_output_cap(name: str, options: bytes | None, after: dict[str, int]) -> None:
    """A6: infinite (negative, and zero as Ollama's runners take it) is clamped, absent and null are set."""
    body = b'{"model":"m"%b}' % (b"" if options is None else b',"options":' + options)
    assert json.loads(edit(body, name))["options"] == after


@pytest.mark.parametrize("name", ["chat", "generate", "embed"])
@pytest.mark.parametrize("value", [b"0", b"-1", b'"24h"', b"null"])
def test_no_client_decides_how_long_a_model_stays_loaded(name: str, value: bytes) -> None:
    """H10: an order to unload is a change of the engine; what else the body says stays."""
    body = b'{"model":"m","keep_alive":%b,"input":"a","options":{"num_predict":5,"keep_alive":1}}' % value
    expected = json.loads(body) | {"keep_alive": None}
    assert json.loads(edit(body, name)) == expected
    with pytest.raises(BadRequest, match="keep_alive"):
        read(b'{"model":"m","KEEP_ALIVE":0}', name)


@pytest.mark.parametrize("number", [b"0", b"-1", b"-2"])
def test_what_ollama_takes_as_no_limit_is_none_to_the_phases(number: bytes) -> None:
    assert read(b'{"model":"m","options":{"num_predict":%b}}' % number).max_tokens == -1


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("chat", b'{"model":"m","messages":[],"options":{"num_predict":3}}'),
        ("embed", b'{"model":"m","input":"x","options":{"num_predict":-1}}'),
        ("embeddings", b'{"model":"m","prompt":"x"}'),
        ("show", b'{"model":"m"}'),
    ],
)
def test_a_body_that_needs_no_edit_is_the_same_object(name: str, body: bytes) -> None:
    assert edit(body, name) is body


def test_images_do_not_count_as_text() -> None:
    image = b"iVBOR" * 50_000
    body = b'{"model":"m","messages":[{"role":"user","content":"hi","images":["%b"]}]}' % image
    assert read(body).input_bytes < 5_000


@st.composite
def bodies(draw: st.DrawFn) -> dict[str, Any]:
    """A chat body with strange neighbours."""
    value = draw(OBJECTS) | {"model": draw(st.sampled_from(["m", "other"]))}
    inner = st.fixed_dictionaries({}, optional={"num_predict": st.sampled_from([None, -2, -1, 0, 5, 100, 5000])})
    options = draw(st.one_of(st.none(), st.just("absent"), st.builds(dict.__or__, OBJECTS, inner)))
    if options != "absent":
        value["options"] = options
    return {key: value[key] for key in draw(st.permutations(sorted(value)))}


@given(texts(bodies()))
def test_only_the_edited_keys_change_and_no_other_byte(case: tuple[dict[str, Any], bytes]) -> None:
    """A6: inside `options` too."""
    value, body = case
    result = edit(body)
    after = json.loads(result)
    before = value.get("options") or {}
    asked = before.get("num_predict")
    cap = asked if asked is not None and 0 < asked <= 100 else 100
    assert after == value | {"model": "m", "options": before | {"num_predict": cap}}
    where = spans(result)
    changed = [key for key in after if key not in value or after[key] != value[key]]
    replaced = {key: result[slice(*where[key])] for key in changed if key in value}
    head = b'"options":{"num_predict":100},' if "options" not in value else b""
    assert result == spliced(body, replaced, head)
    if "options" in replaced and before:
        start, end = spans(body)["options"]
        inner = body[start:end]
        edits = {"num_predict": b"100"} if "num_predict" in before else {}
        assert replaced["options"] == spliced(inner, edits, b"" if edits else b'"num_predict":100,')


RECORD: dict[str, object] = {
    "name": "engine-name:latest",
    "model": "engine-name:latest",
    "modified_at": "2026-01-02T03:04:05.678+01:00",
    "size": 5,
    "digest": "abc",
    "details": {"family": "llama", "parameter_size": "8B"},
    "capabilities": ["completion"],
    "remote_host": "https://10.0.0.1:443",
}


def test_tags_pass_the_engines_record_on_under_our_name() -> None:
    """A8: no URLs."""
    (entry,) = json.loads(Ollama().models([ModelInfo(name="alias", detail=RECORD)]))["models"]
    assert entry == {k: v for k, v in RECORD.items() if k != "remote_host"} | {"name": "alias", "model": "alias"}


def test_tags_of_a_model_that_another_engine_serves() -> None:
    (entry,) = json.loads(Ollama().models([ModelInfo(name="q", created=86400, size=3, digest="d")]))["models"]
    assert entry == {
        "name": "q", "model": "q", "modified_at": "1970-01-02T00:00:00Z", "size": 3, "digest": "d", "details": {},
    }  # fmt: skip


def test_every_entry_has_a_digest_to_cut() -> None:
    """A2, A8: Ollama's own `list` and `ps` print its first twelve characters, and fail where there are fewer."""
    models = [ModelInfo(name="of-a-vllm", loaded=True), ModelInfo(name="alias")]
    for entries in (Ollama().models(models), running_list(models)):
        digests = [entry["digest"] for entry in json.loads(entries)["models"]]
        assert len(set(digests)) == len(models)
        assert {len(digest) for digest in digests} == {64}


def test_running_models_are_listed_with_the_engines_own_facts() -> None:
    running: dict[str, object] = {
        "size_vram": 9,
        "expires_at": "2026-01-02T03:04:05Z",
        "context_length": 4096,
        "size": 6,
    }
    (entry,) = json.loads(running_list([ModelInfo(name="alias", detail=RECORD, running=running)]))["models"]
    assert entry == {"name": "alias", "model": "alias", "digest": "abc", "details": RECORD["details"], **running}
    assert json.loads(running_list([])) == {"models": []}
