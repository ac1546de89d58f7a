"""Cross-origin access: closed by default, exact origins, preflight answered without a key."""

import pytest
import uvloop

from gateway import config as cfg
from gateway import loading
from tests.flow.engine import Engine, plain
from tests.gateway import gateway

ORIGIN = "Origin: https://chat.example\r\n"
ASKS = "Access-Control-Request-Method: POST\r\n"


def answers(origins: list[str], extra: str, method: str = "GET", **more: object) -> tuple[int, dict[str, str]]:
    async def main() -> tuple[int, dict[str, str]]:
        settings = cfg.Cors(origins=origins, **more)  # type: ignore[arg-type]
        async with Engine(plain) as engine, gateway(engine.url, cors=settings, hsts=True) as g:
            status, fields, _ = await g.ask(
                "/v1/models", method=method, key="" if method == "OPTIONS" else None, extra=extra
            )
            assert "max-age" in fields["strict-transport-security"]
            return status, fields

    return uvloop.run(main())


def test_no_origin_is_allowed_by_default() -> None:
    """H11"""
    status, fields = answers([], ORIGIN)
    assert status == 200
    assert not [name for name in fields if name.startswith("access-control")]
    assert answers([], ORIGIN + ASKS, "OPTIONS")[0] == 405


@pytest.mark.parametrize("origin", ["https://chat.example.evil", "http://chat.example", "null"])
def test_only_exact_origins_are_allowed(origin: str) -> None:
    """H11"""
    _, fields = answers(["https://chat.example"], f"Origin: {origin}\r\n")
    assert "access-control-allow-origin" not in fields
    assert fields["vary"] == "Origin"


def test_an_allowed_origin_and_its_preflight() -> None:
    """H11"""
    _, fields = answers(["https://chat.example"], ORIGIN, credentials=True)
    assert fields["access-control-allow-origin"] == "https://chat.example"
    assert fields["access-control-allow-credentials"] == "true"
    status, fields = answers(["https://chat.example"], ORIGIN + ASKS, "OPTIONS")
    assert status == 200
    assert "access-control-allow-headers" not in fields


def test_an_allowed_page_may_use_the_official_clients() -> None:
    """H11, A10: what they send is theirs to choose, and what they obey they may read."""
    names = "authorization,content-type,x-stainless-os,x-stainless-retry-count,x-stainless-timeout,x-queue-timeout"
    wants = f"Access-Control-Request-Headers: {names}\r\n"
    for origins in (["https://chat.example"], ["*"]):
        _, fields = answers(origins, ORIGIN + ASKS + wants, "OPTIONS")
        assert fields["access-control-allow-headers"] == names
    _, fields = answers(["https://chat.example"], ORIGIN)
    exposed = set(fields["access-control-expose-headers"].split(", "))
    assert {"retry-after", "retry-after-ms", "x-should-retry", "x-request-id", "request-id"} < exposed
    assert {"x-ratelimit-remaining-requests", "x-ratelimit-reset-tokens"} < exposed


def test_what_names_no_fields_is_not_repeated() -> None:
    """H11: nor anything for an origin that is not allowed."""
    strange = "Access-Control-Request-Headers: a\x80(b)\r\n"
    _, fields = answers(["https://chat.example"], ORIGIN + ASKS + strange, "OPTIONS")
    assert "access-control-allow-headers" not in fields
    wants = "Access-Control-Request-Headers: authorization\r\n"
    status, fields = answers(["https://other.example"], ORIGIN + ASKS + wants, "OPTIONS")
    assert status == 405
    assert "access-control-allow-headers" not in fields


def test_a_wildcard_with_credentials_does_not_start() -> None:
    """H11"""
    with pytest.raises(cfg.ConfigError, match="credentials"):
        loading.parse("cors: {origins: ['*'], credentials: true}")
