"""`gateway.api.routes`: what exists, for whom, and what does not."""

from dataclasses import replace
from typing import Any

import pytest

from gateway.api.dialect import Access, Endpoint, Kind
from gateway.api.routes import Routes, check, tail
from gateway.errors import MethodNotAllowed, NotFound

ROUTES = Routes()
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]
SCOPES = {"chat", "completions", "embeddings", "responses", "rerank", "messages", "ollama"}
PUBLIC = {"/", "/healthz", "/readyz", "/playground"}


@pytest.mark.parametrize("row", ROUTES.rows, ids=lambda row: f"{row.method} {row.path}")
def test_every_row_declares_who_may_use_it(row: Endpoint) -> None:
    """H10, K7: no row without an access policy; public ones are named here; metered ones have a scope of the table."""
    check(row)
    assert (row.access is Access.PUBLIC) == (row.path in PUBLIC)
    assert row.scope in (SCOPES if row.metered else SCOPES | {""})
    path = row.path.replace("*", "a/b:c")
    method = "GET" if row.method == "*" else row.method
    assert ROUTES.match(method, path) is row


@pytest.mark.parametrize(
    ("method", "path", "kind", "scope"),
    [
        ("POST", "/v1/chat/completions", Kind.CHAT, "chat"),
        ("POST", "/v1/completions", Kind.COMPLETION, "completions"),
        ("POST", "/v1/embeddings", Kind.EMBEDDING, "embeddings"),
        ("POST", "/v1/responses", Kind.RESPONSES, "responses"),
        ("POST", "/v1/rerank", Kind.RERANK, "rerank"),
        ("POST", "/api/chat", Kind.CHAT, "ollama"),
        ("POST", "/api/generate", Kind.COMPLETION, "ollama"),
        ("POST", "/api/embed", Kind.EMBEDDING, "ollama"),
        ("POST", "/api/embeddings", Kind.EMBEDDING, "ollama"),
        ("POST", "/api/show", Kind.SHOW, "ollama"),
        ("POST", "/v1/messages", Kind.CHAT, "messages"),
        ("POST", "/v1/messages/count_tokens", Kind.COUNT, "messages"),
    ],
)
def test_routes_of_engines_are_metered_and_need_a_scope(method: str, path: str, kind: Kind, scope: str) -> None:
    """A1, A2, K7."""
    row = ROUTES.match(method, path)
    assert (row.kind, row.scope, row.metered, row.access) == (kind, scope, True, Access.KEY)
    assert row.upstream == path.encode()


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    ("path", "kind", "local"),
    [
        ("/v1/models", Kind.MODELS, ""),
        ("/v1/models/m", Kind.MODEL, ""),
        ("/v1/models/org/name:8b-q4", Kind.MODEL, ""),
        ("/api/tags", Kind.MODELS, ""),
        ("/api/ps", Kind.RUNNING, ""),
        ("/api/version", Kind.LOCAL, "version"),
        ("/", Kind.LOCAL, "root"),
        ("/healthz", Kind.LOCAL, "healthz"),
    ],
)
def test_local_routes_take_head_where_they_take_get(method: str, path: str, kind: Kind, local: str) -> None:
    """A1, A2."""
    row = ROUTES.match(method, path)
    assert (row.kind, row.local, row.metered) == (kind, local, False)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "path",
    [
        "/api/pull", "/api/push", "/api/create", "/api/copy", "/api/delete", "/api/blobs/sha256:0a", "/api/me",
        "/api/signout", "/api/user/keys", "/api/user/keys/x", "/api/experimental/web_search",
    ],
)  # fmt: skip
def test_engine_mutations_are_closed_to_every_method(method: str, path: str) -> None:
    """A2."""
    row = ROUTES.match(method, path)
    assert (row.kind, row.access, row.upstream) == (Kind.BLOCKED, Access.NEVER, b"")


@pytest.mark.parametrize(
    "path",
    [
        "/v1", "/v1/", "/v1/chat", "/v1/chat/completions/", "//v1/chat/completions", "/V1/chat/completions",
        "/v1/models/", "/api", "/api/", "/api/chat/", "/api/pulling", "/api/blobs/", "/api/../api/chat", "*", "",
        "/metrics", "/slots", "/v1/audio/speech",
    ],
)  # fmt: skip
def test_what_is_not_in_the_table_does_not_exist(path: str) -> None:
    """H10."""
    for method in METHODS:
        with pytest.raises(NotFound):
            ROUTES.match(method, path)


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/v1/chat/completions", "POST"),
        ("DELETE", "/v1/models/m", "GET, HEAD"),
        ("POST", "/api/tags", "GET, HEAD"),
        ("post", "/api/chat", "POST"),
        ("*", "/api/chat", "POST"),
    ],
)
def test_wrong_methods_are_told_the_right_ones(method: str, path: str, allow: str) -> None:
    """H10: 405 + Allow."""
    with pytest.raises(MethodNotAllowed) as caught:
        ROUTES.match(method, path)
    assert caught.value.allow == allow


@pytest.mark.parametrize(
    ("path", "dialect"),
    [
        ("/v1/x", "openai"),
        ("/v1/messages/batches", "anthropic"),
        ("/api/x", "ollama"),
        ("/x", "openai"),
        ("", "openai"),
        ("/v1", "openai"),
        ("/apis", "openai"),
    ],
)
def test_unknown_paths_fail_in_the_dialect_of_their_neighbours(path: str, dialect: str) -> None:
    assert ROUTES.dialect_for(path).name == dialect


def test_a_list_has_the_shape_of_the_api_that_its_client_speaks() -> None:
    """A8: OpenAI's and Anthropic's lists have one path."""
    version = {b"anthropic-version": b"2023-06-01"}
    for path, name in {"/v1/models": "anthropic", "/v1/models/m": "anthropic", "/api/tags": "ollama"}.items():
        row = ROUTES.match("GET", path)
        assert ROUTES.listing(row, version).name == name
        assert ROUTES.listing(row, {}) is row.dialect


def test_the_rest_of_a_prefix_row() -> None:
    path = "/v1/models/org/name:8b"
    assert tail(ROUTES.match("GET", path), path) == "org/name:8b"


def _row(**changes: Any) -> Endpoint:
    return replace(ROUTES.match("POST", "/v1/chat/completions"), **{"path": "/new", **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"access": Access.PUBLIC}, {"access": Access.NEVER}, {"scope": ""},
        {"upstream": b""}, {"path": "new"}, {"path": "/a*b"}, {"local": "x"}, {"kind": Kind.LOCAL},
        {"kind": Kind.BLOCKED},
    ],
)  # fmt: skip
def test_a_row_that_is_not_fit_to_serve_does_not_start(changes: dict[str, object]) -> None:
    """H10."""
    row = _row(**changes)
    with pytest.raises(ValueError, match=r"POST"):
        Routes(extra=[row])


@pytest.mark.parametrize("access", [None, "key"])
def test_a_row_without_a_rule_of_access_does_not_start(access: object) -> None:
    """H10; compiled, such a row cannot even be made."""
    with pytest.raises((ValueError, TypeError), match=r"POST|Access"):
        Routes(extra=[_row(access=access)])


def test_two_rows_for_one_request_do_not_start() -> None:
    Routes(extra=[_row()])
    with pytest.raises(ValueError, match="two rows"):
        Routes(extra=[_row(), _row()])
