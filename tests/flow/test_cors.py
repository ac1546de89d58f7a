"""Cross-origin access: closed by default, exact origins, preflight answered without a key."""

import pytest
import uvloop

from gateway import config as cfg
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
    assert "authorization" in fields["access-control-allow-headers"]


def test_a_wildcard_with_credentials_does_not_start() -> None:
    """H11"""
    with pytest.raises(cfg.ConfigError, match="credentials"):
        cfg.parse("cors: {origins: ['*'], credentials: true}")
