"""Errors as clients see them: golden bytes for every class, all dialects, before and amid a stream.

`python -m tests.api.test_errors` writes the golden file anew; read the difference before it is committed.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from gateway import errors
from gateway.api.anthropic import Anthropic
from gateway.api.dialect import Dialect
from gateway.api.ollama import Ollama
from gateway.api.openai import OpenAI
from gateway.errors import Bug, Busy, ContextTooLong, GatewayError, MethodNotAllowed, ModelUnavailable, UpstreamRejected

GOLDEN = Path(__file__).parent / "golden" / "errors.json"
DIALECTS: tuple[Dialect, ...] = (OpenAI(), Ollama(), Anthropic())
ID = "0f-9"


def classes() -> list[type[GatewayError]]:
    """Every class of `gateway.errors` that can be raised, by name."""
    found = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, GatewayError)]
    return sorted(found, key=lambda c: c.__name__)


def sample(kind: type[GatewayError]) -> GatewayError:
    """One error of the class, with a sentence that has characters JSON escapes."""
    sentence = 'A sentence about "it" \\ é.'
    if issubclass(kind, ModelUnavailable):
        return kind(cause="secret")
    if issubclass(kind, MethodNotAllowed):
        return kind(sentence, allow="GET")
    if kind is UpstreamRejected:
        return kind(sentence, 422, cause="secret")
    if issubclass(kind, ContextTooLong):
        return kind(sentence, cause="secret")
    if issubclass(kind, Busy):
        return kind(sentence, retry_after=3.0, ahead=4, estimate=2.5)
    return kind(sentence, cause="secret", param="field")


def rendered() -> dict[str, dict[str, str]]:
    """Class -> dialect and moment -> the bytes, as text."""
    table: dict[str, dict[str, str]] = {}
    for kind in classes():
        err = sample(kind)
        row = table[kind.__name__] = {"status": str(err.status)}
        for dialect in DIALECTS:
            row[dialect.name] = dialect.error(err, ID).decode()
            row[f"{dialect.name} stream"] = dialect.stream_error(err, ID).decode()
    return table


@pytest.mark.parametrize("name", [kind.__name__ for kind in classes()])
def test_errors_equal_the_golden_file(name: str) -> None:
    """A5."""
    assert rendered()[name] == json.loads(GOLDEN.read_text())[name]


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
@pytest.mark.parametrize("kind", classes())
def test_errors_have_the_shapes_the_clients_parse(kind: type[GatewayError], dialect: Dialect) -> None:
    """A5: OpenAI an object, Ollama a string, Anthropic an envelope; one frame or line mid-stream; the request id in
    each; no cause in any. Amid a stream OpenAI's sentence begins with the status, as the SDKs write it before one:
    agents look there for whether to try again."""
    err = sample(kind)
    body = dialect.error(err, ID)
    frame = dialect.stream_error(err, ID)
    value: dict[str, Any] = json.loads(body)
    if dialect.name == "openai":
        inner = value["error"]
        assert inner.keys() >= {"message", "type", "param", "code", "request_id"}
        assert all(isinstance(inner[key], str) for key in ("message", "type", "code"))
        assert inner["request_id"] == ID
        late = json.loads(frame.removeprefix(b"data: "))["error"]
        assert late == inner | {"message": f"{err.status} {inner['message']}"}
    elif dialect.name == "anthropic":
        assert (value["type"], value["request_id"]) == ("error", ID)
        assert all(isinstance(value["error"][key], str) for key in ("type", "message", "code"))
        assert frame == b"event: error\ndata: %b\n\n" % body
    else:
        assert isinstance(value["error"], str)
        assert value["request_id"] == ID
        assert "done" not in value
        assert frame == body + b"\n"
    assert b"\n" not in body
    assert b"secret" not in body


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_an_unavailable_model_is_one_answer(dialect: Dialect) -> None:
    """K8: whatever was asked and whyever it is not available."""
    asked = [ModelUnavailable(), ModelUnavailable(cause="key may not use b"), ModelUnavailable(cause="gone")]
    assert len({dialect.error(err, ID) for err in asked}) == 1


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_a_bug_tells_nothing(dialect: Dialect) -> None:
    for err in (Bug("KeyError: 'password'"), GatewayError("KeyError: 'password'")):
        assert b"password" not in dialect.error(err, ID) + dialect.stream_error(err, ID)


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(rendered(), indent=1, ensure_ascii=False) + "\n")
