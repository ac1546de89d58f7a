"""Errors that an engine answers: read for the log, and translated into our words for the client (H8, R7).

Owns the parsing of an error answer and the mapping of its status and text to one of our errors. Whatever the engine
reveals about itself (hosts, paths, stack traces) stays in `cause`.
"""

import re
from typing import Final

from gateway.errors import (
    ContextTooLong,
    EngineBusy,
    GatewayError,
    ModelLoading,
    ModelUnavailable,
    UpstreamBroke,
    UpstreamError,
    UpstreamRejected,
)
from gateway.http1.client import UpstreamConnection
from gateway.http1.eager import Signal

MOST = 64 * 1024
LOADING_RETRY = 5.0  # seconds; about the time in which an engine loads a small model
MOST_DIGITS = 6  # digits of seconds in a Retry-After; its other form, a date, is ignored

_UNABLE = re.compile(
    rb"does not support (tools|thinking|images?|vision|chat|generate|embeddings?|rerank|insert)|no multimodal"
    rb"|(image|audio|video) input is not supported"
)
"""The model or the engine lacks a capability. Some engines say so with a 500 (Ollama for embeddings, llama.cpp for
images)."""
_LARGE = re.compile(rb"too large to process")
"""llama.cpp, with a 500: a text to embed or rerank does not fit into its batch."""
_TEMPLATE = re.compile(
    rb"roles must alternate|only user[^\"]{0,30} roles|system role (is )?not supported"
    rb"|system message must be at the beginning"
)
"""The model's chat template does not accept these messages; llama.cpp and Ollama say so with a 500."""

_CONTEXT: Final = re.compile(
    rb"context (length|window|size)|maximum (context|model length)|exceeds? the (available )?context|too many tokens"
    rb"|must have less than \d+ tokens|`inputs` tokens \+ `max_new_tokens`"
)
_FIGURE: Final = rb"(?<!\d)(\d{1,9})(?!\d)"
"""A number of tokens. Bounded, because what engines quote of a request may contain digits without end."""
_LENGTH: Final = re.compile(
    rb"context length (?:is(?: only)?|of) %b|context (?:length|size) \(%b|maximum model length of %b|must be <= %b"
    rb"|must have less than %b tokens" % ((_FIGURE,) * 5)
)
"""The context length as vLLM, SGLang, llama.cpp, TGI and TEI report it."""
_PROMPT: Final = re.compile(
    rb"%b (?:in the (?:messages|prompt)|input tokens|tokens from the input|`inputs`)"
    rb"|(?:request|input) \(%b tokens\)|prompt \(length %b\)" % ((_FIGURE,) * 3)
)
"""The prompt length as they report it."""
LEAST_ROOM: Final = 256
"""Do not halve the output limit below this many tokens: the prompt practically fills the context."""

_AS_500: Final = (_UNABLE, _LARGE, _TEMPLATE)
"""Errors of the request that engines report as 500. Passed on as a 500, they would only make clients retry."""

_REFUSED: Final = "The engine refused this request as invalid."
NO_SUCH_ROUTE: Final = "The engine of this model has no route for this kind of request."

# What engines say (in lower case) -> what the client is told. The first match wins.
SENTENCES: tuple[tuple[re.Pattern[bytes], str], ...] = (
    (_LARGE, "A text in this request is longer than the engine accepts."),
    (re.compile(rb"maximum allowed batch size"), "The request has more texts than the engine accepts at once."),
    (_TEMPLATE, "The model's chat template does not accept messages with these roles in this order."),
    (_UNABLE, "The model does not support what this request asks for."),
    (re.compile(rb"tool[ _](choice|call|parser)|function call"), "The engine refused the tools of this request."),
    (re.compile(rb"image|base64|audio"), "The engine could not read an image or audio part of this request."),
    (re.compile(rb"grammar|json_schema|response_format|guided"), "The engine refused the output format asked for."),
)  # fmt: skip


class Collector:
    """A sink that keeps the first bytes of an answer and waits for its end."""

    __slots__ = ("_parts", "_size", "done", "upstream")

    def __init__(self, upstream: UpstreamConnection) -> None:
        self.done: Signal[None] = Signal()
        self.upstream = upstream
        self._parts: list[bytes] = []
        self._size = 0

    def data(self, data: bytes) -> None:
        self._parts.append(data[: MOST - self._size])
        self._size += len(data)
        if self._size >= MOST:
            self.upstream.abort()
            self.done.set(None)

    def last(self, data: bytes) -> None:
        self._parts.append(data[: max(0, MOST - self._size)])
        self.done.set(None)

    def broke(self, error: UpstreamError) -> None:
        self.done.set(None)

    def over(self) -> bool:
        """An error answer ends by its HTTP framing only."""
        return False

    def body(self) -> bytes:
        """The bytes kept. They may still contain chunk framing, which does not matter for a log."""
        return b"".join(self._parts)


def engine_refused(status: int, body: bytes, later: bytes | None, added: int = 0) -> GatewayError:
    """The error to raise for an engine's answer that is not a 2xx. `later` is its Retry-After. `added` is the output
    limit that the gateway added to a request without one, or 0."""
    seconds = float(later) if later is not None and later.isdigit() and len(later) <= MOST_DIGITS else None
    cause = f"status {status}: {body[:2048]!r}"
    text = body.lower()
    if status == 404 and b"model" not in text:
        return UpstreamRejected(NO_SUCH_ROUTE, 404, cause=cause)
    if status == 404:  # the model has gone since discovery saw it: the same answer as if it had never existed (K8)
        return ModelUnavailable(cause=cause)
    if status == 503 and b"loading" in text:
        return ModelLoading("The engine is loading the model.", retry_after=seconds or LOADING_RETRY, cause=cause)
    if status in (429, 503):
        return EngineBusy("The engine is too busy.", retry_after=seconds, cause=cause)
    if status in (400, 413, 422, 501) or (status == 500 and any(said.search(text) for said in _AS_500)):
        return _rejected(text, cause, added)
    return UpstreamBroke("The engine failed to answer this request.", cause=cause)


def _rejected(text: bytes, cause: str, added: int) -> UpstreamRejected:
    """The error for what an engine says (in lower case) of a request that it does not take."""
    if (error := too_long(text, cause, added)) is not None:
        return error
    sentence = next((sentence for pattern, sentence in SENTENCES if pattern.search(text)), _REFUSED)
    return UpstreamRejected(sentence, 400, cause=cause)


def too_long(text: bytes, cause: str, added: int = 0) -> ContextTooLong | None:
    """The error if an engine says (in lower case) that prompt and output exceed the context.

    Agents of all three APIs react to fixed phrases: "prompt is too long" is Anthropic's, "this model's maximum context
    length is" OpenAI's. Only the figures are taken from the engine's text.
    """
    if not _CONTEXT.search(text):
        return None
    length, prompt = _figure(_LENGTH, text), _figure(_PROMPT, text)
    said = f"{length} tokens" if length else "exceeded"
    sentences = [f"The prompt is too long: this model's maximum context length is {said}."]
    if prompt:
        sentences.append(f"The prompt has {prompt} tokens.")
    if added:
        sentences.append(f"The request sets no output limit, so the gateway asked for up to {added} tokens:")
        sentences.append("a lower limit may fit.")
    return ContextTooLong(" ".join(sentences), cause=cause)


def _figure(pattern: re.Pattern[bytes], text: bytes) -> int | None:
    found = pattern.search(text)
    return int(found[found.lastindex or 0]) if found else None


def room_left(status: int, body: bytes, added: int) -> int:
    """A lower output limit to try if the engine says that the prompt and the `added` output tokens exceed its context:
    the remaining room by the engine's own numbers, else half of `added`. 0 if the engine says something else or if the
    prompt alone is too long."""
    text = body.lower()
    if status not in (400, 413, 422) or not _CONTEXT.search(text) or b"%d" % added not in text:
        return 0
    length, prompt = _figure(_LENGTH, text), _figure(_PROMPT, text)
    if length is None or prompt is None:
        return added // 2 if added // 2 >= LEAST_ROOM else 0
    return length - prompt if 0 < length - prompt < added else 0
