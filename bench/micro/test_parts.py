"""Every watched part under pytest-benchmark: `python -m bench.micro` runs this file and compares the medians."""

import asyncio
import gc
from collections.abc import Iterator

import pytest
import uvloop
from pytest_benchmark.fixture import BenchmarkFixture

from bench.micro.parts import Part, parts
from bench.micro.rig import ANSWER, BODY, QUIET, rig

ROUNDS = 2000
WARM_UP = 200
SLOW = {"render the metrics": 50}
NAMES = (
    "parse a repeated request",
    "parse an answer's head",
    "walk a chunk",
    "read a body",
    "edit a body",
    "tap a frame",
    "parse a new request",
    "one exchange",
    "look a key up",
    "submit and release",
    "render the metrics",
    "settle",
    "relay a chunk",
)


@pytest.fixture(autouse=True)
def _no_collection() -> Iterator[None]:
    """A collection in the middle of a round would be billed to whatever part runs."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize("name", NAMES)
def test_part(benchmark: BenchmarkFixture, name: str) -> None:
    uvloop.run(_measure(benchmark, name))


async def _measure(benchmark: BenchmarkFixture, name: str) -> None:
    async with rig(1, audit=QUIET) as made:
        request = made.request(900)
        for _ in range(WARM_UP):
            made.ask(request)
            made.answer(ANSWER)
            await asyncio.sleep(0)
            made.check(BODY)
        part = next(part for part in parts(made) if part.name == name)
        benchmark.pedantic(  # type: ignore[no-untyped-call]
            part.call, setup=part.prepare, rounds=SLOW.get(name, ROUNDS), warmup_rounds=20
        )


def test_all_parts_are_measured() -> None:
    async def names() -> list[Part]:
        async with rig(1, audit=QUIET) as made:
            return list(parts(made))

    assert [part.name for part in uvloop.run(names())] == list(NAMES)
