"""Aliases and categories: what they lead to, what they never lead to, and how they are listed (A9)."""

import json
import re

import pytest
import uvloop

from gateway import config as cfg
from gateway import loading
from tests.flow.engine import Engine, plain
from tests.gateway import chat, gateway

CHAT = "/v1/chat/completions"
NAMES = {
    "aliases": {"gpt-4o": "big", "any": "small-ones"},
    "categories": {
        "small-ones": cfg.Category(models=["s1", "s2"], preferred="s2"),
        "spare": cfg.Category(models=["gone", "s1"]),
    },
}


@pytest.mark.parametrize(
    ("asked", "allowed", "served"),
    [
        ("gpt-4o", (), "big"),
        ("gpt-4o", ("s1",), None),
        ("small-ones", (), "s2"),
        ("small-ones", ("s1", "big"), "s1"),
        ("small-ones", ("big",), None),
        ("any", (), "s2"),
        ("spare", (), "s1"),
        ("gone", (), None),
    ],
)
def test_a_name_leads_to_a_usable_model_of_its_group_or_nowhere(
    asked: str, allowed: tuple[str, ...], served: str | None
) -> None:
    """A9, K8"""

    async def main() -> None:
        async with Engine(plain, ("big", "s1", "s2")) as engine, gateway(engine.url, **NAMES) as g:
            key = await g.add_key(user="narrow", models=allowed) if allowed else g.key
            status, _, _ = await g.ask(CHAT, chat(model=asked), key=key)
            assert status == (403 if served is None else 200)
            if served is not None:
                _, body = engine.chats.get_nowait()
                assert json.loads(body)["model"] == served
            (record,) = await g.records(1)
            assert (record["model_asked"], record["model_served"]) == (asked, served or "")

    uvloop.run(main())


def test_lists_show_the_names_that_lead_somewhere() -> None:
    """A8, A9"""

    async def main() -> None:
        async with Engine(plain, ("big", "s1", "s2")) as engine, gateway(engine.url, **NAMES) as g:
            key = await g.add_key(user="narrow", models=("s1",))
            for who, names in (
                (g.key, {"big", "s1", "s2", "gpt-4o", "any", "small-ones", "spare"}),
                (key, {"s1", "any", "small-ones", "spare"}),
            ):
                _, _, body = await g.ask("/v1/models", key=who)
                assert {row["id"] for row in json.loads(body)["data"]} == names

    uvloop.run(main())


def test_a_key_may_force_a_category() -> None:
    """A9"""

    async def main() -> None:
        async with Engine(plain, ("big", "s1", "s2")) as engine, gateway(engine.url, **NAMES) as g:
            key = await g.add_key(user="forced", force_model="small-ones")
            assert (await g.ask(CHAT, chat(model="big"), key=key))[0] == 200
            assert json.loads(engine.chats.get_nowait()[1])["model"] == "s2"

    uvloop.run(main())


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("categories: {c: {models: [a], preferred: b}}", "categories.c.preferred"),
        ("categories: {c: {models: []}}", ".models"),
        ("categories: {c: {models: [d]}, d: {models: [a]}}", "categories.c.models"),
        ("aliases: {a: b, b: c}", "aliases.a"),
    ],
)
def test_names_that_lead_in_circles_do_not_start(text: str, path: str) -> None:
    """O7"""
    with pytest.raises(cfg.ConfigError, match=re.escape(path)):
        loading.parse(text)
