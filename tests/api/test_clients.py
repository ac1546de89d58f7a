"""The official clients, unmodified, read our errors and lists (A5, A8): bytes of the dialects behind a plain server."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import ollama
import openai
import pytest
from openai.types.responses import ResponseFailedEvent

from gateway.api.model_info import ModelInfo
from gateway.api.ollama import Ollama, running_list
from gateway.api.openai import OpenAI
from gateway.errors import (
    BadRequest,
    BudgetSpent,
    Forbidden,
    GatewayError,
    ModelUnavailable,
    NotFound,
    QueueTimeout,
    Unauthenticated,
    UpstreamBroke,
    UpstreamTimeout,
)

MODELS = [ModelInfo(name="org/m:8b", created=1_700_000_000, size=5, digest="d", running={"size_vram": 4})]
CHAT: list[dict[str, Any]] = [{"role": "user", "content": "hi"}]


class Server(ThreadingHTTPServer):
    """Answers every request with what the test put here."""

    status = 200
    media_type = "application/json"
    body = b""
    daemon_threads = True

    def give(self, body: bytes, status: int = 200, media_type: str = "application/json") -> None:
        self.body, self.status, self.media_type = body, status, media_type


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version: ClassVar[str] = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.do_GET()

    def do_GET(self) -> None:
        self.send_response(self.server.status)
        self.send_header("Content-Type", self.server.media_type)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(self.server.body)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Tests print what they need."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def sdk(server: Server) -> Iterator[openai.OpenAI]:
    url = f"http://127.0.0.1:{server.server_port}/v1"
    with openai.OpenAI(base_url=url, api_key="k", max_retries=0) as client:
        yield client


@pytest.fixture
def native(server: Server) -> Iterator[ollama.Client]:
    client = ollama.Client(host=f"http://127.0.0.1:{server.server_port}")
    yield client
    client._client.close()  # the client offers no way to close its connections


@pytest.mark.parametrize(
    ("err", "raised"),
    [
        (BadRequest("wrong", param="model"), openai.BadRequestError),
        (Unauthenticated("key?"), openai.AuthenticationError),
        (Forbidden("no"), openai.PermissionDeniedError),
        (ModelUnavailable(), openai.PermissionDeniedError),
        (NotFound("no such"), openai.NotFoundError),
        (QueueTimeout("busy", retry_after=1.0, ahead=3, estimate=9.0), openai.RateLimitError),
        (BudgetSpent("spent"), openai.RateLimitError),
        (UpstreamTimeout("late"), openai.InternalServerError),
    ],
)
def test_the_openai_client_raises_its_typed_errors(
    server: Server, sdk: openai.OpenAI, err: GatewayError, raised: type[openai.APIStatusError]
) -> None:
    server.give(OpenAI().error(err, "id-1"), err.status)
    with pytest.raises(raised) as caught:
        sdk.chat.completions.create(model="m", messages=CHAT)  # type: ignore[arg-type]
    assert caught.value.code == err.code
    assert isinstance(caught.value.type, str)
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["request_id"] == "id-1"


def test_the_openai_client_raises_mid_stream(server: Server, sdk: openai.OpenAI) -> None:
    frame = b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[]}\n\n'
    server.give(frame + OpenAI().stream_error(UpstreamBroke("It broke."), "id-1"), media_type="text/event-stream")
    stream = sdk.chat.completions.create(model="m", messages=CHAT, stream=True)  # type: ignore[arg-type]
    with stream, pytest.raises(openai.APIError, match=r"It broke\.") as caught:
        list(stream)
    assert caught.value.code == "upstream_broke"


def test_the_openai_client_raises_amid_the_events_of_a_response(server: Server, sdk: openai.OpenAI) -> None:
    """A5: and a client that knows events only, as Codex does, finds the error in `response.failed`."""
    (row,) = [row for row in OpenAI().routes() if row.path == "/v1/responses"]
    frame = row.dialect.stream_error(UpstreamBroke("It broke."), "id-1")
    server.give(frame, media_type="text/event-stream")
    stream = sdk.responses.create(model="m", input="hi", stream=True)
    with stream, pytest.raises(openai.APIError, match=r"It broke\.") as caught:
        list(stream)
    assert caught.value.code == "upstream_broke"
    name, _, data = frame.decode().partition("\n")
    event = ResponseFailedEvent.construct(**json.loads(data.removeprefix("data: ")))
    assert (name, event.type) == ("event: response.failed", "response.failed")
    assert event.response.error is not None
    assert (event.response.error.code, event.response.error.message) == ("upstream_broke", "502 It broke.")


def test_the_openai_client_lists_models(server: Server, sdk: openai.OpenAI) -> None:
    server.give(OpenAI().models(MODELS))
    assert [(m.id, m.object, m.owned_by) for m in sdk.models.list()] == [("org/m:8b", "model", "fairgate")]
    server.give(OpenAI().model(MODELS[0]))
    assert sdk.models.retrieve("org/m:8b").created == 1_700_000_000


def test_the_ollama_client_raises_with_our_sentence(server: Server, native: ollama.Client) -> None:
    server.give(Ollama().error(QueueTimeout("The queue is long.", ahead=3), "id-1"), 429)
    with pytest.raises(ollama.ResponseError, match="The queue is long") as caught:
        native.chat("m", CHAT)
    assert (caught.value.error, caught.value.status_code) == ("The queue is long.", 429)


def test_the_ollama_client_raises_mid_stream(server: Server, native: ollama.Client) -> None:
    line = b'{"model":"m","message":{"role":"assistant","content":"a"},"done":false}\n'
    body = line + Ollama().stream_error(UpstreamBroke("It broke."), "id-1")
    server.give(body, media_type="application/x-ndjson")
    with pytest.raises(ollama.ResponseError, match=r"It broke\."):
        list(native.chat("m", CHAT, stream=True))


def test_the_ollama_client_lists_models(server: Server, native: ollama.Client) -> None:
    server.give(Ollama().models(MODELS))
    (tag,) = native.list().models
    assert (tag.model, tag.size, tag.digest) == ("org/m:8b", 5, "d")
    assert tag.modified_at is not None
    assert tag.modified_at.timestamp() == 1_700_000_000
    server.give(running_list(MODELS))
    (loaded,) = native.ps().models
    assert (loaded.model, loaded.size_vram) == ("org/m:8b", 4)
