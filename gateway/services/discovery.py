"""One look at one backend: is it healthy, which models has it, which of them are loaded, how many slots.

Owns what each engine is asked and how its answers are read. Answers are untrusted: bounded in size and count, decoded
through view structs, and only the fields named here are used (not an engine's own hosts and URLs). Must not know
breakers, schedules, routes or who asks for what. Sources: `/api/tags`, `/api/ps`, `/api/version` of Ollama's api.md;
`/health`, `/props`, `/v1/models`, `/slots` of llama.cpp's server README; OpenAI's list of models.
"""

import ssl
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Annotated, Any, Final, TypeVar

import anyio
import httpx
import msgspec
from msgspec import UNSET, UnsetType

from gateway import __version__
from gateway.api.model_info import ModelInfo
from gateway.api.model_names import untagged
from gateway.http1.pool import trusting

MAX_ANSWER: Final = 8 * 1024 * 1024  # bytes; 2 000 models with long details need less than 2 MiB
MAX_MODELS: Final = 10_000
MAX_NAME: Final = 256  # characters; Ollama's longest part is 80, a llama.cpp id may be a path
MAX_SLOTS: Final = 1_000_000


Whole = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
"""The range that MessagePack can represent, since sightings are sent to other processes; JSON has no limit."""


class LookFailed(Exception):
    """The backend did not answer as its engine should. The message says what was seen, and goes to the log only."""


class Sighting(msgspec.Struct, frozen=True):
    """The result of one look. `slots` is None if the engine does not report them."""

    models: tuple[ModelInfo, ...] = ()
    slots: int | None = None
    version: str = ""


class _Details(msgspec.Struct, frozen=True):
    parent_model: str | UnsetType = UNSET
    format: str | UnsetType = UNSET
    family: str | UnsetType = UNSET
    families: list[str] | UnsetType | None = UNSET
    parameter_size: str | UnsetType = UNSET
    quantization_level: str | UnsetType = UNSET
    context_length: Whole | UnsetType = UNSET
    embedding_length: Whole | UnsetType = UNSET


class _Tag(msgspec.Struct, frozen=True):
    name: str
    model: str | UnsetType = UNSET
    modified_at: str | UnsetType = UNSET
    size: Whole | UnsetType = UNSET
    digest: str | UnsetType = UNSET
    details: _Details | UnsetType = UNSET
    capabilities: list[str] | UnsetType | None = UNSET


class _Tags(msgspec.Struct, frozen=True):
    models: list[_Tag] | None


class _Running(msgspec.Struct, frozen=True):
    name: str
    model: str | UnsetType = UNSET
    size: Whole | UnsetType = UNSET
    digest: str | UnsetType = UNSET
    details: _Details | UnsetType = UNSET
    expires_at: str | UnsetType = UNSET
    size_vram: Whole | UnsetType = UNSET
    context_length: Whole | UnsetType = UNSET


class _Ps(msgspec.Struct, frozen=True):
    models: list[_Running] | None


class _Version(msgspec.Struct, frozen=True):
    version: str


class _Listed(msgspec.Struct, frozen=True):
    id: str
    created: int | float | None = None
    owned_by: str | None = None
    max_model_len: object = None  # vLLM, SGLang


class _List(msgspec.Struct, frozen=True):
    data: list[_Listed]


class _Props(msgspec.Struct, frozen=True):
    total_slots: int | None = None
    build_info: str | None = None
    default_generation_settings: object = None


class _Slot(msgspec.Struct, frozen=True):
    is_processing: bool
    id_task: int | None = None


_View = TypeVar("_View")
_tags = msgspec.json.Decoder(_Tags)
_ps = msgspec.json.Decoder(_Ps)
_version = msgspec.json.Decoder(_Version)
_list = msgspec.json.Decoder(_List)
_props = msgspec.json.Decoder(_Props)
_slots = msgspec.json.Decoder(list[_Slot])


def client(url: str, *, key: str, ca: str, timeout: float) -> httpx.AsyncClient:
    """An HTTP client for one backend. No proxy from the environment, no redirects, no cookies, no kept-alive
    connections.

    Looks are further apart than the engines' idle timeouts (llama.cpp: 5 s). For a backend without TLS it gets an empty
    TLS context, which trusts nobody and costs nothing to build.
    """
    secure = url.startswith("https:")
    context = trusting(ca) if secure else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    headers = {"user-agent": f"fairgate/{__version__}", "accept": "application/json", "accept-encoding": "identity"}
    if key:
        headers["authorization"] = f"Bearer {key}"
    return httpx.AsyncClient(
        base_url=url,
        headers=headers,
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
        verify=context,
        timeout=timeout,
        trust_env=False,
        limits=httpx.Limits(max_keepalive_connections=0),
    )


async def look(http: httpx.AsyncClient, engine: str, listed: frozenset[str], limit: float) -> Sighting:
    """Look once. `listed` is the configured list of models (empty: all); `limit` is in seconds, for the whole look.

    Raises only LookFailed, whatever the backend does wrong.
    """
    try:
        with anyio.fail_after(limit):
            sighting = await _LOOKS[engine](http, listed)
    except TimeoutError as err:
        raise LookFailed(f"no complete answer within {limit:g} s") from err
    except httpx.HTTPError as err:
        raise LookFailed(f"{type(err).__name__}: {err}") from err
    return narrowed(sighting, listed)


async def busy_slots(http: httpx.AsyncClient, limit: float) -> list[int]:
    """The ids of the tasks that the busy slots of a llama.cpp server work on, ascending: newer tasks have higher ids,
    and slots without an id give -1. Empty if nothing listens. `limit` is in seconds. Raises LookFailed, also if the
    server was started with `--no-slots`."""
    try:
        with anyio.fail_after(limit):
            slots = _read(_slots, await get(http, "/slots"), "/slots")
            return sorted(-1 if slot.id_task is None else slot.id_task for slot in slots if slot.is_processing)
    except httpx.ConnectError:
        return []
    except TimeoutError as err:
        raise LookFailed(f"no complete answer within {limit:g} s") from err
    except httpx.HTTPError as err:
        raise LookFailed(f"{type(err).__name__}: {err}") from err


def narrowed(sighting: Sighting, listed: frozenset[str]) -> Sighting:
    """The sighting without models that are not in a configured list (empty: all models stay)."""
    if not listed:
        return sighting
    kept = tuple(model for model in sighting.models if model.name in listed or untagged(model.name) in listed)
    return msgspec.structs.replace(sighting, models=kept)


async def _look_ollama(http: httpx.AsyncClient, listed: frozenset[str]) -> Sighting:
    answers = await _ask_all(http, {"/api/tags": _tags, "/api/ps": _ps, "/api/version": _version})
    tags, running, version = answers["/api/tags"], answers["/api/ps"], answers["/api/version"]
    loaded = {one.name: one for one in running.models or ()}
    models = tuple(_of_tag(tag, loaded.get(tag.name)) for tag in _checked(tags.models or []))
    return Sighting(models=models, version=_short(version.version))


async def _look_vllm(http: httpx.AsyncClient, listed: frozenset[str]) -> Sighting:
    await get(http, "/health")
    return Sighting(models=_of_list(_read(_list, await get(http, "/v1/models"), "/v1/models")))


async def _look_llamacpp(http: httpx.AsyncClient, listed: frozenset[str]) -> Sighting:
    await get(http, "/health")  # 503 while the model is loading
    answers = await _ask_all(http, {"/props": _props, "/v1/models": _list})
    props: _Props = answers["/props"]
    slots = props.total_slots
    if slots is not None and not 1 <= slots <= MAX_SLOTS:
        raise LookFailed(f"/props: total_slots is {slots}")
    settings = props.default_generation_settings
    context = _tokens(settings.get("n_ctx")) if isinstance(settings, dict) else 0  # of one slot
    models = tuple(msgspec.structs.replace(model, context=context) for model in _of_list(answers["/v1/models"]))
    return Sighting(models=models, slots=slots, version=_short(props.build_info or ""))


# Statuses of a healthy server that cannot list its models (transformers serve answers 500).
_NO_LIST: Final = frozenset({404, 405, 500, 501})


async def _look_openai(http: httpx.AsyncClient, listed: frozenset[str]) -> Sighting:
    """A compatible server need not list its models: then the configured list applies, if there is one."""
    try:
        body = await get(http, "/v1/models")
    except _Status as err:
        if not listed or err.status not in _NO_LIST:
            raise
        return Sighting(models=tuple(ModelInfo(name=name, loaded=True) for name in sorted(listed)))
    return Sighting(models=_of_list(_read(_list, body, "/v1/models")))


_LOOKS: Final[Mapping[str, Callable[[httpx.AsyncClient, frozenset[str]], Awaitable[Sighting]]]] = {
    "ollama": _look_ollama,
    "vllm": _look_vllm,
    "llamacpp": _look_llamacpp,
    "openai": _look_openai,
}


class _Status(LookFailed):
    def __init__(self, path: str, status: int) -> None:
        super().__init__(f"{path}: status {status}")
        self.status = status


async def _ask_all(http: httpx.AsyncClient, views: Mapping[str, msgspec.json.Decoder[Any]]) -> dict[str, Any]:
    """Get several paths at once. If several fail, the first one in the order of `views` is reported."""
    answers: dict[str, Any] = {}
    failures: dict[str, Exception] = {}

    async def ask(path: str, view: msgspec.json.Decoder[Any]) -> None:
        try:
            answers[path] = _read(view, await get(http, path), path)
        # Kept out of an exception group, because the caller handles single exceptions
        except (LookFailed, httpx.HTTPError) as err:
            failures[path] = err

    async with anyio.create_task_group() as group:
        for path, view in views.items():
            group.start_soon(ask, path, view)
    for path in views:
        if path in failures:
            raise failures[path]
    return answers


async def get(http: httpx.AsyncClient, path: str, most: int = MAX_ANSWER) -> bytes:
    """The body of a 200 answer, read up to `most` bytes. Raises LookFailed, httpx.HTTPError."""
    async with http.stream("GET", path) as answer:
        return await read(answer, path, most)


async def read(answer: httpx.Response, path: str, most: int, *, good: tuple[int, ...] = (200,)) -> bytes:
    """Like `get`, for an answer whose head has been read."""
    if answer.status_code not in good:
        raise _Status(path, answer.status_code)
    body = bytearray()
    async for piece in answer.aiter_raw():  # raw: a compressed answer, which was not asked for, is not decompressed
        body += piece
        if len(body) > most:
            raise LookFailed(f"{path}: more than {most} bytes")
    return bytes(body)


def _read(view: "msgspec.json.Decoder[_View]", body: bytes, path: str) -> _View:
    try:
        return view.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as err:
        raise LookFailed(f"{path}: {err}") from err


def _checked(tags: list[_Tag]) -> list[_Tag]:
    _check_names([tag.name for tag in tags])
    return tags


def _check_names(names: list[str]) -> None:
    if len(names) > MAX_MODELS:
        raise LookFailed(f"{len(names)} models; at most {MAX_MODELS} are believed")
    for name in names:
        if not 0 < len(name) <= MAX_NAME or not name.isprintable():
            raise LookFailed(f"a model name of {len(name)} characters that cannot be used: {name[:64]!r}")


def _of_tag(tag: _Tag, running: _Running | None) -> ModelInfo:
    namespace, slash, _ = tag.name.rpartition("/")
    return ModelInfo(
        name=tag.name,
        created=_unix(tag.modified_at or ""),
        owned_by=namespace if slash else "library",
        context=_tokens(running.context_length) if running is not None else 0,
        size=tag.size or 0,
        digest=tag.digest or "",
        loaded=running is not None,
        detail=msgspec.to_builtins(tag),
        running=msgspec.to_builtins(running) if running is not None else {},
    )


def _of_list(answer: _List) -> tuple[ModelInfo, ...]:
    """Engines that have only OpenAI's list hold all listed models in memory."""
    _check_names([one.id for one in answer.data])
    return tuple(
        ModelInfo(
            name=one.id,
            created=_whole(one.created),
            owned_by=_short(one.owned_by or "fairgate"),
            context=_tokens(one.max_model_len),
            loaded=True,
        )
        for one in answer.data
    )


def _tokens(length: object) -> int:
    """A context length, which engines may leave out: 0 for everything that is none."""
    return length if type(length) is int and 0 < length < 1 << 53 else 0


def _whole(created: float | None) -> int:
    return int(created) if created is not None and 0 <= created < 1 << 53 else 0


def _unix(stamp: str) -> int:
    """RFC 3339 to Unix seconds, without Ollama's nanoseconds, which `datetime` cannot parse. 0 for an invalid time."""
    try:
        return max(0, int(datetime.fromisoformat(stamp).timestamp()))
    except (ValueError, OverflowError):
        return 0


def _short(text: str) -> str:
    return "".join(char for char in text[:64] if char.isprintable())
