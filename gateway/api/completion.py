"""An engine's chat completion, whole or streamed, as the translations read it.

Owns the records that are decoded, and the splitting of a stream into chunks. Must not know the API they are translated
to. Not compiled (`hatch_build.py`): it has records that need msgspec's options.
"""

from typing import Final, TypeVar

import msgspec

from gateway.api.dialect import Framing
from gateway.api.frames import FRAME_END, FrameFilter
from gateway.api.stream import LONGEST_FRAME, event_data, lines_of

_NOTHING: Final = msgspec.Raw(b"")


class Function(msgspec.Struct, gc=False):
    """The function of a tool call. Some engines send the arguments as an object instead of its text (TGI)."""

    name: str | None = None
    arguments: str | dict[str, msgspec.Raw] | None = None

    @property
    def text(self) -> str:
        """The arguments as text, or a fragment of them."""
        if isinstance(self.arguments, dict):
            return msgspec.json.encode(self.arguments).decode()
        return self.arguments or ""


class Call(msgspec.Struct, gc=False):
    """A tool call, or a fragment of one. Some engines send a number instead of a string as the id (TGI)."""

    index: int | None = None
    given: str | int | None = msgspec.field(default=None, name="id")
    function: Function | None = None

    @property
    def id(self) -> str:
        return "" if self.given is None else str(self.given)

    @property
    def name(self) -> str:
        return (self.function.name or "") if self.function is not None else ""

    @property
    def arguments(self) -> str:
        return self.function.text if self.function is not None else ""

    @property
    def input(self) -> msgspec.Raw:
        """The arguments as a JSON object on one line, in the model's own text; its numbers and its depth are not
        checked here. Empty if the arguments are not an object, for example because a limit cut the output."""
        try:
            text = self.arguments or "{}"
            _ARGUMENTS.decode(text)
        except (msgspec.DecodeError, RecursionError):
            return msgspec.Raw(b"{}")
        return msgspec.Raw(text.translate(_ONE_LINE))


class Said(msgspec.Struct, gc=False):
    """A message, or a delta of one. Engines use two names for the thinking."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[Call] | None = None

    @property
    def thoughts(self) -> str:
        return self.reasoning_content or self.reasoning or ""


class Logprobs(msgspec.Struct, gc=False):
    content: list[msgspec.Raw] | None = None


class Choice(msgspec.Struct, gc=False):
    message: Said | None = None
    delta: Said | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None  # vLLM: the stop sequence that was met, or the token
    matched_stop: int | str | None = None  # the same in SGLang
    logprobs: msgspec.Raw = _NOTHING

    @property
    def given_up(self) -> bool:
        """The engine gave the answer up: vLLM and SGLang say so when they are shut down. An API without such a reason
        must not report this as a normal end."""
        return self.finish_reason == "abort"

    @property
    def stopped_at(self) -> str | None:
        """The stop sequence that was met, if the engine reports it."""
        met = self.stop_reason if self.matched_stop is None else self.matched_stop
        return met if isinstance(met, str) else None

    @property
    def tokens(self) -> msgspec.Raw | None:
        """The log probabilities of the tokens, an array as the engine wrote it; None if it has another form."""
        try:
            listed = _LOGPROBS.decode(self.logprobs) if self.logprobs else None
        except (msgspec.DecodeError, RecursionError):
            return None
        if listed is None or not listed.content:
            return None
        return msgspec.Raw(b"[%b]" % b",".join(map(bytes, listed.content)).translate(_ON_ONE_LINE))


class Details(msgspec.Struct, gc=False):
    cached_tokens: float | None = 0


class Counts(msgspec.Struct, gc=False):
    """Token counts. Integers, but some JSON writers give them a fraction of zero."""

    prompt_tokens: float | None = 0
    completion_tokens: float | None = 0
    prompt_tokens_details: Details | None = None

    @property
    def prompt(self) -> int:
        return int(self.prompt_tokens or 0)

    @property
    def completion(self) -> int:
        return int(self.completion_tokens or 0)

    @property
    def cached(self) -> int:
        return int(self.prompt_tokens_details.cached_tokens or 0) if self.prompt_tokens_details else 0


class Completion(msgspec.Struct, gc=False):
    """A chat completion, or a chunk of one. `created` is Unix seconds."""

    id: str | None = None
    model: str | None = None
    created: float | None = None
    choices: list[Choice] | None = None
    usage: Counts | None = None

    @property
    def choice(self) -> Choice:
        """The first choice; the target APIs have only one."""
        return self.choices[0] if self.choices else Choice()


class CallNumbers:
    """Assigns each fragment in a stream to its tool call; calls are numbered from 0.

    A fragment belongs to the newest call with its `index`, or to the newest of all if the engine sends no index. A
    fragment with a name and a new id begins a call whatever its index, because some engines send 0 for all.
    """

    def __init__(self) -> None:
        self._newest: dict[int | None, int] = {}  # index -> its newest call
        self._ids: list[str] = []

    def of(self, call: Call) -> int:
        """The number of the call that this fragment belongs to."""
        known = self._newest.get(call.index)
        if known is not None and not self._begins(call, self._ids[known]):
            return known
        self._newest[call.index] = len(self._ids)
        self._ids.append(call.id)
        return len(self._ids) - 1

    def _begins(self, call: Call, known: str) -> bool:
        if not call.name:
            return False
        return known not in ("", call.id) if call.id else call.index is None


Record = TypeVar("Record")
_COMPLETION: Final = msgspec.json.Decoder(Completion)
_ARGUMENTS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_LOGPROBS: Final = msgspec.json.Decoder(Logprobs | None)
_ON_ONE_LINE: Final = bytes.maketrans(b"\r\n", b"  ")
_ONE_LINE: Final = {ord("\n"): " ", ord("\r"): " "}


def read(decoder: msgspec.json.Decoder[Record], body: bytes) -> Record:
    """Decode what an engine answered. Raises ValueError if it has not the expected form or is nested too deeply."""
    try:
        return decoder.decode(body)
    except RecursionError as err:
        raise ValueError(str(err)) from err


def whole(body: bytes) -> Completion:
    """A whole chat completion. Raises ValueError if it is invalid, or if the engine gave it up."""
    made = read(_COMPLETION, body)
    if not made.choices or made.choice.given_up:
        raise ValueError(f"no answer in {body[:500]!r}")
    return made


class ChunkStream:
    """Takes the payload of a stream of chunks and returns its translation; implements `bridge.Translation`.

    The output always ends where a frame of the client's API ends. `failed` has the text of a frame in which the engine
    reports a failure, or of one that is not a chunk; nothing after it passes.
    """

    at_boundary = True

    def __init__(self) -> None:
        self.failed = ""
        self.garbled = False
        self._sieve = FrameFilter(Framing.SSE)
        self._held = bytearray()  # an incomplete frame, preceded by at most two bytes that were looked at
        self._over = False  # the engine's own end marker was seen

    def chunk(self, chunk: Completion) -> bytes:
        """The output for one chunk."""
        raise NotImplementedError

    def end(self) -> bytes:
        """The output at the stream's own end."""
        raise NotImplementedError

    def feed(self, data: bytes) -> bytes:
        """The output for this payload."""
        if self.failed:
            return b""
        seen = max(0, len(self._held) - 2)  # a frame end has three bytes, at most two of which were held
        self._held += self._sieve.feed(data)
        end = max((found.end() for found in FRAME_END.finditer(self._held, seen)), default=0)
        frames = lines_of(bytes(self._held[:end])).split(b"\n\n") if end else ()
        del self._held[:end]
        out = [self._translated(event_data(frame)) for frame in frames]
        self.failed = self.failed or self._sieve.failed
        if len(self._held) > LONGEST_FRAME and not self.failed:
            self.failed, self.garbled = "a frame without an end", True
        return b"".join(out)

    def flush(self) -> bytes:
        """The output for a last frame whose end was cut off."""
        rest = lines_of(bytes(self._held + self._sieve.flush()))
        self._held.clear()
        return self._translated(event_data(rest)) if not self.failed and rest.strip() else b""

    def _translated(self, data: bytes) -> bytes:
        if self.failed or self._over or not data.strip():
            return b""
        if data.startswith(b"[DONE]"):
            self._over = True
            return self.end()
        try:
            chunk = read(_COMPLETION, data)
        except ValueError:
            self.failed, self.garbled = data[:500].decode("utf-8", "replace"), True
            return b""
        if chunk.choice.given_up:
            self.failed = data[:500].decode("utf-8", "replace")
            return b""
        return self.chunk(chunk)
