"""What a dialect is: rows of the route table, a view and an edit of the body, and renderers of errors and lists.

Pure: no transport, no services. A dialect never sees who is asking or where the request goes. In compiled code
(`hatch_build.py`) the attributes of these classes are C fields. Classes instantiated for every request write out their
`__init__`, because the one that `dataclass` generates is not compiled. In plain Python only mypy enforces `Final`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final, Protocol

from gateway.api.model_info import ModelInfo
from gateway.errors import Bug, Busy, GatewayError


class Access(StrEnum):
    """Who may use a route. Every row of the table has one (H10)."""

    PUBLIC = "public"
    KEY = "key"
    NEVER = "never"  # refused for every key: changes of the engine (A2)


class Kind(StrEnum):
    """What a route does; phases branch on this, never on paths."""

    CHAT = "chat"
    COMPLETION = "completion"
    EMBEDDING = "embedding"
    RESPONSES = "responses"
    RERANK = "rerank"
    SHOW = "show"
    COUNT = "count"
    MODELS = "models"
    MODEL = "model"
    RUNNING = "running"
    LOCAL = "local"
    BLOCKED = "blocked"


class Framing(StrEnum):
    """How a streamed answer is framed."""

    SSE = "sse"
    NDJSON = "ndjson"


METERED = frozenset({Kind.CHAT, Kind.COMPLETION, Kind.EMBEDDING, Kind.RESPONSES, Kind.RERANK, Kind.SHOW, Kind.COUNT})
"""Kinds that go through limits, queue and backend."""

ANY_METHOD = "*"
"""Stands for every method of a path (A2: blocked for all of them)."""


@dataclass(init=False)
class Ask:
    """What the phases need to know about a body. `None` means that the client did not say."""

    model: Final[str]
    stream: Final[bool]
    max_tokens: Final[int | None]  # effective output limit; negative = unlimited
    usage_asked: Final[bool]  # the client itself asked for the usage frame
    choices: Final[int]  # answers the engine may generate: `n` or its aliases, times the prompts
    input_bytes: Final[int]  # size of the prompt part, for the estimate
    user: Final[str]  # end user named in the body (K10)
    keys: Final[frozenset[str]]  # the guarded top-level keys present in the body, for edits

    def __init__(
        self,
        model: str,
        stream: bool = False,
        max_tokens: int | None = None,
        usage_asked: bool = False,
        choices: int = 1,
        input_bytes: int = 0,
        user: str = "",
        keys: frozenset[str] = frozenset(),
    ) -> None:
        self.model = model
        self.stream = stream
        self.max_tokens = max_tokens
        self.usage_asked = usage_asked
        self.choices = choices
        self.input_bytes = input_bytes
        self.user = user
        self.keys = keys


class Dialect(Protocol):
    """One client-facing API. `id_field`: the field in which its clients expect the request id, if not in
    `X-Request-ID`."""

    name: str
    framing: Framing
    id_field: bytes

    def routes(self) -> "Sequence[Endpoint]": ...

    def read(self, endpoint: "Endpoint", body: bytes) -> Ask:
        """The view of a body. Raises BadRequest with a sentence that names the field."""
        ...

    def edit(self, endpoint: "Endpoint", body: bytes, ask: Ask, *, model: str, cap: int, engine: str) -> bytes:
        """The body for the engine: served model name, output cap (tokens), usage request. All other bytes stay
        unchanged."""
        ...

    def error(self, err: GatewayError, request_id: str) -> bytes:
        """The body of an error answer (application/json)."""
        ...

    def stream_error(self, err: GatewayError, request_id: str) -> bytes:
        """A frame that reports an error in the middle of a stream."""
        ...

    def models(self, models: Sequence[ModelInfo]) -> bytes: ...

    def model(self, model: ModelInfo) -> bytes: ...


@dataclass(frozen=True)
class Endpoint:
    """One row of the route table. `path` is exact, or ends in `/*` (prefix). `upstream` is the engine's path.

    `engines` lists the engine kinds that speak this API on the route; empty means all kinds (or that no engine is
    involved). `passed` are the client's fields, in lower case, that are passed to the engine. `opens_with_usage`: the
    first event of a stream has the prompt's tokens.
    """

    method: str
    path: str
    kind: Kind
    access: Access
    dialect: Dialect
    scope: str = ""
    upstream: bytes = b""
    framing: Framing = Framing.SSE
    local: str = ""  # name of the local answer, for Kind.LOCAL
    engines: frozenset[str] = frozenset()
    passed: tuple[bytes, ...] = ()
    opens_with_usage: bool = False

    @property
    def metered(self) -> bool:
        """Whether the route goes through limits, queue and backend."""
        return bool(self.upstream)


_LAST: Final = 253_402_300_799  # Unix seconds of the last moment that a datetime can represent


def rfc3339(seconds: float) -> str:
    """These Unix seconds as a time in UTC, clamped to what a datetime can represent."""
    return datetime.fromtimestamp(min(max(seconds, 0), _LAST), UTC).isoformat().replace("+00:00", "Z")


INTERNAL: Final = "Something went wrong inside the gateway. The request id leads its operator to the cause."


def public_message(err: GatewayError) -> str:
    """The sentence for the client. It is fixed for errors whose own message might reveal too much (bugs)."""
    if isinstance(err, Bug) or type(err) is GatewayError:
        return INTERNAL
    return err.message


def standing(err: GatewayError) -> dict[str, object]:
    """Members of an error that tell the position in the queue; none if the error is not about the queue."""
    return {"ahead": err.ahead, "estimate": err.estimate} if isinstance(err, Busy) else {}
