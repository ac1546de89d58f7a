"""Tokens of an issuer at the door of a whole gateway: every dialect, the record, a reload, the real SDKs (K9)."""

import asyncio
import json
import logging
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import ollama
import openai
import pytest
import uvloop

from gateway import config as cfg
from gateway.issuer import Jwt
from gateway.services.accounts import create_tenant, create_user
from gateway.services.verdict import Refusal
from gateway.source import ConfigError
from gateway.store.limits import Limits
from tests.flow.engine import Engine, plain
from tests.gateway import Gateway, chat, gateway
from tests.services.engines import running
from tests.services.issuer import EC, RSA, WRITTEN, Issuer, Signer, claims, shown_at
from tests.wire import WAIT

CHAT = "/v1/chat/completions"


@asynccontextmanager
async def door(section: Jwt | None, **settings: Any) -> AsyncIterator[Gateway]:
    """A gateway with the user `ann` of the tenant `acme`."""
    async with Engine(plain) as engine, gateway(engine.url, jwt=section, **settings) as g:
        await g.add_key("acme", "ann")
        yield g


def token(signer: Signer = RSA, **more: Any) -> str:
    return signer.sign(claims(**more)).decode()


def test_a_token_opens_what_a_key_would_and_leaves_the_users_row() -> None:
    """U1: the row names the user and `jwt:` with its id, whatever token came; queue and usage are the user's own."""

    async def main() -> None:
        async with door(shown_at(WRITTEN)) as g:
            tenant = await g.store.tenant("acme")
            assert tenant is not None
            user = await g.store.user(tenant.id, "ann")
            assert user is not None
            for given in (token(), token(EC, jti="2")):
                assert (await g.ask(CHAT, chat(), key=given))[0] == 200
            assert (await g.ask("/api/tags", key=token()))[0] == 200
            for row in await g.records(3):
                assert (row["tenant"], row["user"], row["key"]) == (tenant.id, user.id, f"jwt:{user.id}")
            assert (await g.ask("/api/queue", key=token()))[0] == 200
            status, _, body = await g.ask("/api/usage", key=token())
            used = {row["model"]: row["requests"] for row in json.loads(body)["models"]}
            assert (status, used["m"]) == (200, 2)
            assert (await g.ask("/v1/models", key="", extra=f"X-Api-Key: {token()}\r\n"))[0] == 200

    uvloop.run(main())


def test_a_head_that_comes_again_on_its_connection_ends_with_its_token() -> None:
    """K3: kept connections know who asked; they forget when the token ends or the user is disabled."""

    async def main() -> None:
        async with door(shown_at(WRITTEN, clock_skew=0.0)) as g:
            client = await g.connect()
            wire = g.request("/v1/models", key=token(exp=int(time.time()) + 2))
            statuses = set()
            async with asyncio.timeout(WAIT):
                while 401 not in statuses:
                    await client.send(wire)
                    statuses.add((await client.answer())[0])
            assert statuses == {200, 401}
            assert g.app.keys.stats().refused == 1

    uvloop.run(main())


REFUSALS = {
    "forged": (lambda: token(Signer("rsa-1")), Refusal.FORGED),
    "expired": (lambda: token(exp=int(time.time()) - 60), Refusal.ENDED),
    "nobody": (lambda: token(sub="nobody"), Refusal.STRANGER),
    "elsewhere": (lambda: token(aud="other"), Refusal.FOREIGN),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_is_in_the_callers_dialect(name: str) -> None:
    """A5: as the official clients read it, and with a row."""
    make, why = REFUSALS[name]

    async def main() -> None:
        async with door(shown_at(WRITTEN)) as g:
            given = make()
            async with openai.AsyncOpenAI(base_url=f"{g.url}/v1", api_key=given, max_retries=0) as client:
                with pytest.raises(openai.AuthenticationError) as told:
                    await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "a"}])
                assert (told.value.code, why.value in told.value.message) == ("invalid_api_key", True)
            theirs = ollama.AsyncClient(host=g.url, headers={"Authorization": f"Bearer {given}"})
            with pytest.raises(ollama.ResponseError) as heard:
                await theirs.chat(model="m", messages=[{"role": "user", "content": "a"}])
            await theirs._client.aclose()
            assert heard.value.status_code == 401
            rows = await g.records(2)
            assert [(row["status"], row["error"], row["key"]) for row in rows] == [(401, "invalid_api_key", "")] * 2

    uvloop.run(main())


def test_the_official_client_is_served() -> None:
    async def main() -> None:
        async with (
            door(shown_at(WRITTEN)) as g,
            openai.AsyncOpenAI(base_url=f"{g.url}/v1", api_key=token()) as client,
        ):
            assert [model.id async for model in client.models.list()] == ["m"]

    uvloop.run(main())


def test_an_issuer_that_is_away_is_503_and_keys_go_on() -> None:
    """K5, A10"""

    async def main() -> None:
        async with running(issuer := Issuer(RSA)):
            await issuer.stop()
            async with door(issuer.section(retry=0.05, refresh=0.05)) as g:
                status, fields, body = await g.ask(CHAT, chat(), key=token())
                assert (status, json.loads(body)["error"]["code"]) == (503, "auth_unavailable")
                assert int(fields["retry-after"]) >= 1
                assert (await g.ask(CHAT, chat()))[0] == 200
                await issuer.start()
                async with asyncio.timeout(WAIT):
                    while (await g.ask(CHAT, chat(), key=token()))[0] != 200:
                        await asyncio.sleep(0.02)

    uvloop.run(main())


def test_limits_networks_and_scopes_hold_for_tokens() -> None:
    """L1, K6, K7"""

    async def main() -> None:
        async with door(shown_at(WRITTEN, scopes=("chat",))) as g:
            tight = await create_tenant(g.store, "tight", allow_all_models=True)
            await create_user(g.store, tight, "ann", limits=Limits(requests_per_minute=1, burst=1))
            given = [token(org="tight", jti=str(number)) for number in range(2)]
            assert [(await g.ask(CHAT, chat(), key=one))[0] for one in given] == [200, 429]
            far = await create_tenant(g.store, "far", allow_all_models=True, cidrs=("10.0.0.0/8",))
            await create_user(g.store, far, "ann")
            assert (await g.ask(CHAT, chat(), key=token(org="far")))[0] == 403
            bare = await create_tenant(g.store, "bare")
            await create_user(g.store, bare, "ann")
            assert (await g.ask(CHAT, chat(), key=token(org="bare")))[0] == 403
            status, _, body = await g.ask("/api/chat", chat(), key=token())
            assert (status, b"scope" in body) == (403, True)

    uvloop.run(main())


def test_nobody_is_named_on_behalf_by_a_token() -> None:
    """K10: the body's user and the header of chat UIs are words like any other."""

    async def main() -> None:
        async with door(shown_at(WRITTEN)) as g:
            await g.add_key("acme", "bob")
            extra = "X-OpenWebUI-User-Email: bob\r\n"
            assert (await g.ask(CHAT, chat(user="bob"), key=token(), extra=extra))[0] == 200
            (row,) = await g.records(1)
            assert row["key"] == f"jwt:{row['user']}"
            tenant = await g.store.tenant("acme")
            assert tenant is not None
            ann = await g.store.user(tenant.id, "ann")
            assert ann is not None
            assert row["user"] == ann.id

    uvloop.run(main())


def test_a_token_in_the_wrong_place_is_in_no_record_and_no_log(caplog: pytest.LogCaptureFixture) -> None:
    """U1, O3: as a model, a user, a path; a good one beside it opens the way."""
    caplog.set_level(logging.DEBUG)

    async def main() -> tuple[str, bytes]:
        async with door(shown_at(WRITTEN)) as g:
            good, stray = token(), token(EC, jti="stray")
            for place in (f"/v1/models/{stray}", f"/{stray}", f"/v1/models?key={stray}"):
                await g.ask(place, key=good)
            await g.ask(CHAT, chat(model=stray), key=good)
            await g.ask(CHAT, chat(user=stray), key=await g.add_key(user="ui", on_behalf=True))
            rows = await g.records(5)
            assert [row["model_asked"] for row in rows].count("eyJ[redacted]") == 1
            files = b"".join(path.read_bytes() for path in Path(g.app.config.store).parent.rglob("*") if path.is_file())
            return stray, files + repr(rows).encode()

    stray, kept = uvloop.run(main())
    for piece in stray.split(".")[1:]:
        assert piece[-40:].encode() not in kept
        assert piece[:40].encode() not in kept
        assert piece[:40] not in caplog.text


def reloaded(g: Gateway, section: Jwt | None) -> list[str]:
    return g.app.reload(msgspec.structs.replace(g.app.config, jwt=section))


def test_a_reload_takes_the_section_over() -> None:
    """O7: begun, changed and ended without a restart; what was granted before holds no longer; keys do not notice."""

    async def main() -> None:
        async with running(issuer := Issuer(RSA)), door(None) as g:
            given = token()
            client = await g.connect()

            async def status(key: str = given) -> int:
                await client.send(g.request("/v1/models", key=key))
                return (await client.answer())[0]

            assert await status() == 401
            assert reloaded(g, issuer.section()) == []
            async with asyncio.timeout(WAIT):
                while not issuer.fetches:  # before any token asks for it
                    await asyncio.sleep(0)
            assert (await status(), await status()) == (200, 200)
            first = g.app.tokens
            assert reloaded(g, issuer.section()) == []
            assert g.app.tokens is first, "unchanged, it goes on"
            await issuer.stop()
            reloaded(g, issuer.section(scopes=("chat",)))
            assert await status() == 200, "the keys were taken over"
            reloaded(g, issuer.section(audience="other"))
            assert (await status(), await status(g.key)) == (401, 200)
            reloaded(g, None)
            assert (await status(), await status(g.key)) == (401, 200)

    uvloop.run(main())


@pytest.mark.parametrize(
    "broken", [{"jwks": '{"keys": []}'}, {"ca": "/nowhere/ca.pem", "jwks": "https://127.0.0.1:9/"}]
)
def test_a_reload_that_cannot_be_changes_nothing(broken: dict[str, str]) -> None:
    async def main() -> None:
        async with door(shown_at(WRITTEN)) as g:
            given = token()
            with pytest.raises(ConfigError, match=r"jwt\."):
                reloaded(g, msgspec.structs.replace(shown_at(WRITTEN), **broken))
            assert (await g.ask("/v1/models", key=given))[0] == 200

    uvloop.run(main())


def test_without_the_extra_the_gateway_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gateway.services.jwks", None)

    async def main() -> None:
        async with door(shown_at(WRITTEN)):
            pass

    with pytest.raises(ConfigError, match=r"fairgate\[jwt\]"):
        uvloop.run(main())


def test_a_gateway_that_ends_fetches_no_more() -> None:
    async def main() -> None:
        async with running(issuer := Issuer(RSA)):
            async with door(issuer.section()) as g:
                assert g.app.tokens is not None
                signers = g.app.tokens.signers
            assert signers._keeper is not None
            assert (signers._keeper.done(), signers._http.is_closed) == (True, True)

    uvloop.run(main())


def test_statistics_count_signatures_and_fetches_of_keys() -> None:
    """O2: bounded labels, and the age of the issuer's keys."""

    async def main() -> None:
        async with running(issuer := Issuer(RSA)), door(issuer.section()) as g:
            for given in (token(), token(jti="2"), token(Signer("x"))):
                await g.ask("/v1/models", key=given)
            stats = g.app.stats().tokens
            assert stats is not None
            assert (stats.checked, stats.fetched, stats.failed, stats.signers) == (2, 1, 0, 1)
            assert 0 <= stats.age < 60

    uvloop.run(main())


def test_a_gateway_without_the_section_has_none() -> None:
    assert cfg.Config().jwt is None
