"""The route table: which paths exist, for which methods, and who may use them. Nothing else is served (H10).

Built once. Must not know what a route does, nor who asks.
"""

from collections.abc import Iterable, Mapping

from gateway.api.anthropic import VERSION_FIELD, Anthropic
from gateway.api.dialect import ANY_METHOD, METERED, Access, Dialect, Endpoint, Kind
from gateway.api.ollama import Ollama
from gateway.api.openai import OpenAI
from gateway.errors import MethodNotAllowed, NotFound

_PREFIX = "*"
_LOCALS = (
    ("/healthz", "healthz", Access.PUBLIC),
    ("/readyz", "readyz", Access.PUBLIC),
    ("/playground", "playground", Access.PUBLIC),
    ("/api/queue", "queue", Access.KEY),
    ("/api/usage", "usage", Access.KEY),
)


class Routes:
    """All rows, looked up by path, then by method. `default` renders errors of unknown paths.

    Raises ValueError at construction for an invalid row: the gateway must not start with one.
    """

    __slots__ = ("_anthropic", "_exact", "_owners", "_prefixes", "default", "preflight", "rows")

    def __init__(self, extra: Iterable[Endpoint] = ()) -> None:
        openai, ollama, anthropic = OpenAI(), Ollama(), Anthropic()
        self.default: Dialect = openai
        self.rows: tuple[Endpoint, ...] = (
            *openai.routes(),
            *ollama.routes(),
            *anthropic.routes(),
            *local_rows(self.default),
            *extra,
        )
        self._exact: dict[str, dict[str, Endpoint]] = {}
        self._prefixes: dict[str, dict[str, Endpoint]] = {}
        for row in self.rows:
            self._add(row)
        self.preflight = Endpoint(
            method="OPTIONS",
            path="*",
            kind=Kind.LOCAL,
            access=Access.PUBLIC,
            dialect=self.default,
            local="preflight",
        )
        """The row for CORS preflights, which are allowed on any path (Fetch standard); not in the table."""
        self._anthropic: Dialect = anthropic
        self._owners: dict[str, Dialect] = {"/v1/messages": anthropic, "/v1/": openai, "/api/": ollama}

    def _add(self, row: Endpoint) -> None:
        check(row)
        prefix = row.path.endswith(_PREFIX)
        methods = (self._prefixes if prefix else self._exact).setdefault(row.path.removesuffix(_PREFIX), {})
        for method in ("GET", "HEAD") if row.method == "GET" else (row.method,):
            if method in methods or ANY_METHOD in methods:
                raise ValueError(f"two rows for {method} {row.path}")
            methods[method] = row

    def match(self, method: str, path: str) -> Endpoint:
        """The row of a request. `path` is percent-decoded and without query.

        Raises NotFound, or MethodNotAllowed with the methods the path has.
        """
        methods = self._exact.get(path) or self._by_prefix(path)
        if methods is None:
            raise NotFound("There is no such route.")
        row = methods.get(method) or methods.get(ANY_METHOD)
        if row is None:
            raise MethodNotAllowed("The route does not take this method.", ", ".join(sorted(methods)))
        return row

    def _by_prefix(self, path: str) -> dict[str, Endpoint] | None:
        for prefix, methods in self._prefixes.items():
            if path.startswith(prefix) and len(path) > len(prefix):
                return methods
        return None

    def dialect_for(self, path: str) -> Dialect:
        """The dialect that renders errors for this path, which may not exist."""
        for prefix, dialect in self._owners.items():
            if path.startswith(prefix):
                return dialect
        return self.default

    def listing(self, row: Endpoint, headers: Mapping[bytes, bytes]) -> Dialect:
        """The dialect that renders a model list. OpenAI and Anthropic share the path; Anthropic's clients send a
        version field."""
        return self._anthropic if VERSION_FIELD in headers and row.path.startswith("/v1/") else row.dialect


NO_ENDPOINT = Endpoint(method="", path="", kind=Kind.LOCAL, access=Access.NEVER, dialect=OpenAI())
"""The row of a request that has none (yet); not in the table."""


def local_rows(dialect: Dialect) -> list[Endpoint]:
    """Routes that the gateway answers itself and that belong to no API. Their errors are rendered by `dialect`."""
    return [
        Endpoint(method="GET", path=path, kind=Kind.LOCAL, access=access, dialect=dialect, local=local)
        for path, local, access in _LOCALS
    ]


def tail(endpoint: Endpoint, path: str) -> str:
    """The part of `path` after a prefix row's prefix: the model id in `/v1/models/{id}`."""
    return path[len(endpoint.path) - len(_PREFIX) :]


def check(row: Endpoint) -> None:
    """Raise ValueError unless the row says who may use it and what it does."""
    name = f"{row.method} {row.path}"
    if not isinstance(row.access, Access) or not isinstance(row.kind, Kind):
        raise ValueError(f"{name}: no access policy or kind")
    if not row.path.startswith("/") or _PREFIX in row.path[:-1]:
        raise ValueError(f"{name}: a path starts with / and may only end in {_PREFIX}")
    if (row.kind is Kind.BLOCKED) != (row.access is Access.NEVER):
        raise ValueError(f"{name}: blocked rows, and only they, are open to nobody")
    if row.metered != (row.kind in METERED) or (row.metered and not (row.access is Access.KEY and row.scope)):
        raise ValueError(f"{name}: a metered row needs a key, a scope and the engine's path")
    if (row.kind is Kind.LOCAL) != bool(row.local):
        raise ValueError(f"{name}: local rows, and only they, name their answer")
