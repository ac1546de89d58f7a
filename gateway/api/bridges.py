"""The table of bridges: how routes reach engines that do not speak their API (A4)."""

from collections.abc import Callable, Mapping
from typing import Final

from gateway.api import chat_to_messages, chat_to_ollama, messages_to_chat, ollama_to_chat
from gateway.api.bridge import Bridge, Translation
from gateway.api.dialect import Endpoint

_NDJSON: Final = b"application/x-ndjson"


def _no_stream(clock: Callable[[], float], sent: float) -> Translation:
    raise ValueError("embeddings are no stream")


BRIDGES: Final[Mapping[bytes, Bridge]] = {
    b"/v1/messages": Bridge(
        upstream=messages_to_chat.PATH,
        request=messages_to_chat.request,
        answer=lambda body, seconds: chat_to_messages.answer(body),
        stream=lambda clock, sent: chat_to_messages.MessageStream(),
        media=b"text/event-stream",
    ),
    b"/api/chat": Bridge(
        upstream=ollama_to_chat.CHAT,
        request=ollama_to_chat.chat,
        answer=chat_to_ollama.chat,
        stream=chat_to_ollama.chat_stream,
        media=_NDJSON,
    ),
    b"/api/generate": Bridge(
        upstream=ollama_to_chat.CHAT,
        request=ollama_to_chat.generate,
        answer=chat_to_ollama.generate,
        stream=chat_to_ollama.generate_stream,
        media=_NDJSON,
    ),
    b"/api/embed": Bridge(
        upstream=ollama_to_chat.EMBED,
        request=ollama_to_chat.embed,
        answer=chat_to_ollama.embed,
        stream=_no_stream,
        media=_NDJSON,
    ),
    b"/api/embeddings": Bridge(
        upstream=ollama_to_chat.EMBED,
        request=ollama_to_chat.embed,
        answer=chat_to_ollama.embedding,
        stream=_no_stream,
        media=_NDJSON,
    ),
}
"""Bridges by the path that the route has at engines that do speak its API."""


def bridge_to(engine: str, endpoint: Endpoint) -> Bridge | None:
    """The bridge from a route to an engine of that kind; None if they speak the same API."""
    return None if engine in endpoint.engines else BRIDGES.get(endpoint.upstream)
