"""What one caller can see of another, or make the gateway reach: nothing. Rows of the threat model, end to end."""

import asyncio
import json
from pathlib import Path

import pytest

from gateway import config as cfg
from gateway.services.accounts import create_tenant
from tests.flow.engine import PLAIN, Engine, hang, json_answer, plain
from tests.flow.run import run
from tests.gateway import Gateway, chat
from tests.wire import WAIT

CHAT = "/v1/chat/completions"


async def narrow(g: Gateway, tenant: str, models: tuple[str, ...]) -> str:
    """A key of a new tenant that may use these models only."""
    await create_tenant(g.store, tenant, models=models)
    return await g.add_key(tenant=tenant, user=f"user of {tenant}".replace(" ", "-"))


def without_id(answer: tuple[int, dict[str, str], bytes]) -> tuple[int, dict[str, str], bytes]:
    """An answer less what differs in all answers: the request id and the clock."""
    status, fields, body = answer
    fields = fields | {"date": ""}
    return (
        status,
        {name: value for name, value in fields.items() if name != "x-request-id"},
        body.replace(fields["x-request-id"].encode(), b"ID"),
    )


def test_forbidden_and_unknown_models_get_one_answer_and_lists_show_neither() -> None:
    """N-6, K8, A8: byte for byte, in both APIs, for a model that exists and for one that never did."""

    async def test(g: Gateway, engine: Engine) -> None:
        key = await narrow(g, "lab", ("m",))
        for path in (CHAT, "/api/chat"):
            answers = [without_id(await g.ask(path, chat(model), key=key)) for model in ("rare", "nosuch")]
            assert answers[0] == answers[1]
            assert answers[0][0] == 403
            assert b"rare" not in answers[0][2]
        assert engine.chats.empty()
        for path in ("/v1/models", "/api/tags", "/api/ps"):
            assert b"rare" not in (await g.ask(path, key=key))[2]
        assert (await g.ask("/v1/models/rare", key=key))[0] == (await g.ask("/v1/models/nosuch", key=key))[0]

    backends = {"engine": "ollama"}
    run(plain, test, ("m", "rare"), **backends)


def test_a_list_of_models_goes_by_ollamas_names() -> None:
    """K8: `name` stands for `name:latest` in the lists of tenant and key, and for no other tag."""

    async def test(g: Gateway, engine: Engine) -> None:
        await create_tenant(g.store, "lab", models=("m", "x/n:latest"))
        for models, seen in (((), {"m:latest", "x/n:latest"}), (("m:latest", "x/n"), {"m:latest", "x/n:latest"}),
                             (("m",), {"m:latest"}), (("m:7b", "n"), set())):  # fmt: skip
            key = await g.add_key(tenant="lab", user="lea", models=models)
            listed = json.loads((await g.ask("/v1/models", key=key))[2])["data"]
            assert {model["id"] for model in listed} == seen
            for name in ("m", "m:latest"):
                assert (await g.ask(CHAT, chat(name), key=key))[0] == (200 if "m:latest" in seen else 403)
            assert (await g.ask(CHAT, chat("m:7b"), key=key))[0] == 403

    run(plain, test, ("m:latest", "m:7b", "x/n:latest"), engine="ollama")


def test_a_tenant_sees_nothing_of_another() -> None:
    """P-E1, C-T4: neither its waiting requests nor its usage, whatever the request says about who is asking."""

    async def test(g: Gateway, engine: Engine) -> None:
        other = await g.add_key(tenant="other", user="spy")
        await g.ask(CHAT, chat("nosuch"))
        await g.records(1)
        running, waiting = await g.connect(), await g.connect()
        await running.send(g.request(CHAT, chat()))
        async with asyncio.timeout(WAIT):
            await engine.chats.get()
        await waiting.send(g.request(CHAT, chat()))
        async with asyncio.timeout(WAIT):
            while not json.loads((await g.ask("/api/queue"))[2])["waiting"]:
                await asyncio.sleep(0.01)
        said = "X-Fairgate-Tenant: t\r\nX-Forwarded-User: u\r\nX-OpenWebUI-User-Email: u\r\n"
        for key, sees in ((g.key, True), (other, False)):
            waits = (await g.ask("/api/queue", key=key, extra=said))[2]
            used = (await g.ask("/api/usage", key=key, extra=said))[2]
            assert bool(json.loads(waits)["waiting"]) == sees
            assert any(day["errors"] for day in json.loads(used)["days"]) == sees
        running.close()
        waiting.close()

    run(hang, test, slots=1)


def test_a_key_in_an_address_opens_nothing() -> None:
    """C-T8, K2: addresses are logged and sent on by everything on the way."""

    async def test(g: Gateway, engine: Engine) -> None:
        for name in ("key", "api_key", "api-key", "token", "authorization", "x-api-key"):
            status, _, body = await g.ask(f"/v1/models?{name}={g.key}", key="")
            assert status == 401
            assert g.key.encode() not in body

    run(plain, test)


def test_no_address_of_a_caller_is_ever_connected_to() -> None:
    """C-G, H1: what a target, a Host or a body names is not where the request goes; that is the configured engine."""

    async def test(g: Gateway, engine: Engine) -> None:
        async with Engine(plain) as elsewhere:
            named = f"127.0.0.1:{elsewhere.port}"
            body = chat(base_url=f"http://{named}", api_base=f"http://{named}", backend=named)
            extra = f"X-Forwarded-Host: {named}\r\nForwarded: host={named}\r\nX-Original-URL: http://{named}/\r\n"
            client = await g.connect()
            await client.send(
                g.request(f"http://{named}{CHAT}", body, extra=extra).replace(b"gateway", named.encode(), 1)
            )
            status, _, answer = await client.answer()
            assert (status, answer) == (200, PLAIN)
            head, _ = engine.chats.get_nowait()
            assert head.startswith(f"POST {CHAT} HTTP/1.1\r\n".encode())
            assert f"Host: 127.0.0.1:{engine.port}\r\n".encode() in head
            status, _, _ = await g.ask(named, method="CONNECT")
            assert status in (400, 404, 405, 501)
            assert elsewhere.chats.empty()

    run(plain, test)


def test_an_engine_meets_no_id_twice() -> None:
    """S-Z3: vLLM refuses a request whose id runs already, and clients can guess the ids that others get."""

    async def test(g: Gateway, engine: Engine) -> None:
        _, fields, _ = await g.ask(CHAT, chat())
        prefix, _, number = fields["x-request-id"].rpartition("-")
        guess = f"{prefix}-{int(number) + 2}"
        for given in (guess, guess, "", "not harmless!", "mine"):
            _, fields, _ = await g.ask(CHAT, chat(), extra=f"X-Request-ID: {given}\r\n" if given else "")
            assert not given.isalnum() or fields["x-request-id"] == given
        heads = [engine.chats.get_nowait()[0].decode() for _ in range(6)]
        ids = [head.partition("X-Request-ID: ")[2].partition("\r\n")[0] for head in heads]
        assert len(set(ids)) == 6, ids
        assert ids[-1].startswith("mine."), "its log can be searched for the request all the same"

    run(plain, test)


def test_equal_questions_are_asked_twice() -> None:
    """P-I2, P-D4: nothing is answered from memory, not to the same caller and not to another."""

    async def test(g: Gateway, engine: Engine) -> None:
        other = await g.add_key(tenant="other", user="v")
        for key in (g.key, g.key, other):
            assert (await g.ask(CHAT, chat(temperature=0, seed=1), key=key))[2] == PLAIN
        assert engine.chats.qsize() == 3

    run(plain, test)


def test_all_waiting_bodies_together_are_bounded() -> None:
    """N-5, P-D2, H3: 503 once they would pass `caps.bodies_bytes`; who waits goes on, and the room comes back."""

    async def test(g: Gateway, engine: Engine) -> None:
        big = chat(padding="x" * 3000)
        client = await g.connect()
        await client.send(g.request(CHAT, big))
        async with asyncio.timeout(WAIT):
            await engine.chats.get()
        waiting = await g.connect()
        await waiting.send(g.request(CHAT, big))
        async with asyncio.timeout(WAIT):
            while g.app.scheduler.stats().queued < 1:
                await asyncio.sleep(0.01)
        status, _, body = await g.ask(CHAT, big)
        assert (status, json.loads(body)["error"]["code"]) == (503, "overloaded")
        client.close()
        waiting.close()
        await g.idle()
        assert g.app.ledger.stats().body_bytes == 0

    run(hang, test, slots=1, caps=cfg.Caps(body_bytes=4096, bodies_bytes=7000))


def test_the_large_bodies_of_one_key_leave_room_for_others() -> None:
    """N-5, H3: an agent's prompts wait for their turns, and may fill three quarters of the room; what it gives back is
    counted to the byte, on behalf of whomever it was."""

    async def test(g: Gateway, engine: Engine) -> None:
        agent, person = await g.add_key(user="agent", on_behalf=True), await g.add_key(user="person")
        large = chat(padding="x" * 199_000)
        for turn in range(2):
            kept = [await g.connect() for _ in range(7)]
            for number, client in enumerate(kept):
                await client.send(g.request(CHAT, large | {"user": f"u{number}"}, key=agent))
            async with asyncio.timeout(WAIT):
                while len(g.busy()) < 7 or g.app.scheduler.stats().queued < 6:
                    await asyncio.sleep(0.01)
            status, _, body = await g.ask(CHAT, large, key=agent)
            assert (status, json.loads(body)["error"]["code"]) == (503, "overloaded")
            other = await g.connect()
            await other.send(g.request(CHAT, large, key=person))
            async with asyncio.timeout(WAIT):
                while g.app.scheduler.stats().queued < 7:
                    await asyncio.sleep(0.01)
            for client in (*kept, other):
                client.close()
            await g.idle()
            assert g.app.ledger.stats().body_bytes == 0, turn

    run(hang, test, slots=1, caps=cfg.Caps(body_bytes=200_000, bodies_bytes=2_000_000))


def test_neither_keys_nor_prompts_nor_answers_reach_the_disk() -> None:
    """N-11, S-D1, C-T4, U5: every byte of store and spool, with a request that was served and one that was refused."""

    async def test(g: Gateway, engine: Engine) -> None:
        asked = chat(messages=[{"role": "user", "content": "a-prompt-nobody-else-writes"}], user="u")
        assert (await g.ask(CHAT, asked))[2] == PLAIN.replace(b"[]", b'["an-answer-nobody-else-gets"]')
        assert (await g.ask(CHAT, asked | {"model": "nosuch"}))[0] == 403
        await g.records(2)
        folder = Path(g.app.config.store).parent
        files = [path for path in folder.rglob("*") if path.is_file()]
        kept = b"".join(path.read_bytes() for path in files)
        assert b"$argon2id$" in kept
        assert b"/v1/chat/completions" in kept
        for secret in (g.key[16:], "a-prompt-nobody", "an-answer-nobody"):
            assert secret.encode() not in kept

    async def answer(head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(json_answer(PLAIN.replace(b"[]", b'["an-answer-nobody-else-gets"]')))

    run(answer, test)


def test_announced_bodies_take_no_room_before_they_come() -> None:
    """N-5, H3: connections that announce much and send nothing keep nobody else from being served."""

    async def test(g: Gateway, engine: Engine) -> None:
        silent = [await g.connect() for _ in range(3)]
        for client in silent:
            await client.send(
                g.request(CHAT, b"", extra="Content-Length: 4000\r\n").replace(b"Content-Length: 0\r\n", b"")
            )
        async with asyncio.timeout(WAIT):
            while len(g.busy()) < len(silent):
                await asyncio.sleep(0)
        assert g.app.ledger.stats().body_bytes == 0
        assert (await g.ask(CHAT, chat(padding="x" * 3000)))[0] == 200
        for client in silent:
            client.close()

    run(plain, test, caps=cfg.Caps(body_bytes=4096, bodies_bytes=7000))


def test_a_body_that_outgrows_the_room_is_refused_while_it_comes() -> None:
    """N-5, H3, H2: what is here of it counts; the rest is not waited for."""

    async def test(g: Gateway, engine: Engine) -> None:
        assert (await g.ask(CHAT, chat()))[0] == 200  # a key that is known has all of the room
        half, whole = await g.connect(), await g.connect()
        request = g.request(CHAT, chat(padding="x" * 3900))
        await half.send(request[:-100])
        async with asyncio.timeout(WAIT):
            while g.app.ledger.stats().body_bytes < 3000:
                await asyncio.sleep(0)
        await whole.send(request[:-3500])
        async with asyncio.timeout(WAIT):
            while len(g.busy()) < 2:
                await asyncio.sleep(0)
        await whole.send(request[-3500:-100])
        status, _, body = await whole.answer()
        assert (status, json.loads(body)["error"]["code"]) == (503, "overloaded")
        await half.send(request[-100:])
        assert (await half.answer())[0] == 200

    run(plain, test, caps=cfg.Caps(body_bytes=4096, bodies_bytes=7000))


def test_a_trusted_proxy_stands_for_many_clients() -> None:
    """H3, H9: the cap of one address does not hold for it; it holds for all others."""

    async def test(g: Gateway, engine: Engine) -> None:
        trusted = bool(g.app.config.trusted_proxies)
        kept = [await g.connect() for _ in range(4)]
        for client in kept:
            await client.send(g.request("/healthz", key=""))
        statuses = [(await client.answer())[0] for client in kept]
        assert statuses == [200, 200, 200, 200 if trusted else 503]
        for client in kept:
            client.close()

    for trusted in ([], ["127.0.0.0/8"]):
        run(plain, test, trusted_proxies=trusted, caps=cfg.Caps(connections_per_ip=3))


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\r\n\r\n", b"GET / HT"], ids=["without a host", "in no time"])
def test_a_malformed_request_is_answered_with_all_usual_fields(sent: bytes) -> None:
    """H7, H11"""

    async def test(g: Gateway, engine: Engine) -> None:
        client = await g.connect()
        await client.send(sent)
        _, fields, body = await client.answer()
        assert json.loads(body)["error"]["request_id"] == fields["x-request-id"]
        assert fields["x-content-type-options"] == "nosniff"
        assert "strict-transport-security" in fields
        assert fields["vary"] == "Origin"

    run(plain, test, hsts=True, cors=cfg.Cors(origins=["https://a.example"]), timeouts=cfg.Timeouts(head=0.1))


def test_a_connection_too_many_is_told_so_like_everything_else() -> None:
    """H3, H7, H11, A10, A11: with a request id, the security fields and when to come again."""

    async def test(g: Gateway, engine: Engine) -> None:
        first, second = await g.connect(), await g.connect()
        status, fields, body = await second.answer()
        error = json.loads(body)["error"]
        assert (status, error["code"], error["request_id"]) == (503, "overloaded", fields["x-request-id"])
        assert fields["x-content-type-options"] == "nosniff"
        assert "strict-transport-security" in fields
        assert (fields["connection"], fields["x-fairgate-error"]) == ("close", "gateway")
        assert 1000 <= int(fields["retry-after-ms"]) <= 1200
        assert await second.at_end()
        first.close()

    run(plain, test, hsts=True, caps=cfg.Caps(connections=1))
