"""Zombies on the tests' own clock, at real little engines: when a slot goes back, and that it always does."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable

import anyio
import httpx
import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from gateway import config
from gateway.services import discovery, zombies
from gateway.services.zombies import PAUSE, UNTOLD, ZombieService, ZombieStats
from scheduler.aio import Lease, Scheduler
from scheduler.model import Ticket
from tests.services.engines import HANG, Engine, answer, llamacpp, running

MOST = 600.0
SLOTS = 3


def backend(kind: config.EngineKind, url: str = "http://a") -> config.Backend:
    return config.Backend(name="a", url=url, engine=kind)


class World:
    """A scheduler with one gate `a`, its zombies, and time that passes in pauses only."""

    def __init__(self, client: Callable[[str], httpx.AsyncClient]) -> None:
        self.now = 0.0
        self.scheduler = Scheduler(clock=lambda: self.now)
        self.scheduler.set_gate("a", SLOTS)
        self.scheduler.set_pool("m", (("a", 0),))
        self.service = ZombieService(self.scheduler, client, clock=lambda: self.now, pause=self._pause)
        self.service.follow([backend("llamacpp")])
        self._paused: asyncio.Queue[None] = asyncio.Queue()
        self._go: asyncio.Queue[None] = asyncio.Queue()

    async def _pause(self, seconds: float) -> None:
        self._paused.put_nowait(None)
        await self._go.get()
        self.now += seconds

    async def look(self, times: int = 1) -> int:
        """Let so many looks happen -> slots taken afterwards."""
        for _ in range(times):
            await asyncio.wait_for(self._paused.get(), 5)
            self._go.put_nowait(None)
            async with asyncio.timeout(5):
                while not self._paused.qsize() and self.service._haunted:
                    await asyncio.sleep(0)
        return self.scheduler.leases

    def lease(self) -> Lease:
        got = self.scheduler.submit(Ticket("m", "t", "u"))
        assert isinstance(got, Lease)
        return got

    def zombie(self, most: float = MOST) -> None:
        self.service.keep(self.lease(), 7.0, most)

    @property
    def held(self) -> int:
        return sum(one.held for one in self.service.stats())


@contextlib.asynccontextmanager
async def world(engine: Engine) -> AsyncIterator[World]:
    def client(name: str) -> httpx.AsyncClient:
        return discovery.client(engine.url, key="", ca="", timeout=5.0)

    async with running(engine), anyio.create_task_group() as group:
        made = World(client)
        group.start_soon(made.service.run)
        await anyio.wait_all_tasks_blocked()
        yield made
        group.cancel_scope.cancel()
    assert (made.scheduler.leases, made.held) == (0, 0)


def busy(engine: Engine, count: int) -> None:
    """`/slots` as llama.cpp gives it, with so many at work."""
    at_work(engine, *range(count))


def at_work(engine: Engine, *tasks: int | None) -> None:
    """`/slots` with these tasks at work; None: one that has no number."""
    slots = [{"id": n, "id_task": -1, "n_ctx": 64, "is_processing": False, "params": {}} for n in range(SLOTS)]
    for slot, task in zip(slots, tasks, strict=False):
        slot["is_processing"] = True
        slot["id_task"] = task
    engine.says("/slots", [{k: v for k, v in slot.items() if v is not None} for slot in slots])


def run(test: Callable[[World, Engine], Awaitable[None]]) -> None:
    async def main() -> None:
        engine = llamacpp("m", SLOTS)
        async with world(engine) as made:
            await test(made, engine)

    uvloop.run(main())


def test_a_zombie_holds_its_slot_until_two_looks_in_a_row_see_the_engine_idle() -> None:
    """R8"""

    async def test(w: World, engine: Engine) -> None:
        busy(engine, 1)
        w.zombie()
        assert await w.look(20) == 1
        busy(engine, 0)
        assert await w.look() == 1
        busy(engine, 1)  # it had only not begun yet
        assert await w.look() == 1
        busy(engine, 0)
        assert await w.look() == 1
        assert await w.look() == 0
        assert w.service.stats() == (ZombieStats("a", 0, 1),)
        assert engine.asked["/slots"] == 24

    run(test)


def test_nobody_asks_where_there_are_no_zombies() -> None:
    async def test(w: World, engine: Engine) -> None:
        busy(engine, 0)
        w.zombie()
        await w.look(2)
        assert w.service._haunted == {}
        w.lease().release(1.0)
        assert engine.asked["/slots"] == 2
        w.zombie()  # and the watch begins anew
        assert await w.look(2) == 0
        assert engine.asked["/slots"] == 4

    run(test)


def test_a_look_that_failed_says_nothing() -> None:
    async def test(w: World, engine: Engine) -> None:
        w.zombie()
        assert await w.look() == 1  # 404
        busy(engine, 0)
        assert await w.look() == 1
        assert await w.look() == 0

    run(test)


def test_requests_that_live_account_for_busy_slots() -> None:
    """Only what is more than they need is a zombie's work."""

    async def test(w: World, engine: Engine) -> None:
        live = w.lease()
        w.zombie()
        busy(engine, 2)
        assert await w.look(5) == 2
        busy(engine, 1)
        assert await w.look(2) == 1
        assert w.held == 0
        live.release(1.0)

    run(test)


def test_zombies_go_one_by_one_and_a_newcomer_is_doubted_anew() -> None:
    async def test(w: World, engine: Engine) -> None:
        busy(engine, 2)
        w.zombie()
        w.zombie()
        assert await w.look(3) == 2
        busy(engine, 1)
        assert await w.look() == 2
        assert await w.look() == 1
        w.zombie()  # on its way to the engine, which shows one still
        assert await w.look() == 2
        busy(engine, 2)
        assert await w.look(3) == 2
        busy(engine, 0)
        assert await w.look(2) == 0

    run(test)


@pytest.mark.parametrize(
    "raw",
    [
        answer(b'{"error":{"code":501,"message":"This server does not support slots endpoint."}}', 501),
        answer(b"{}", 404),
        answer(b"{}", 403),
        answer(b"{}"),
        answer(b"\xff\x00["),
        answer(b'[{"id":0}]'),
        answer(b'[{"is_processing":"no"}]'),
        answer(b"[]")[:20],
        HANG,
    ],
    ids=["501", "404", "403", "object", "garbage", "no flag", "wrong flag", "cut", "silent"],
)
def test_an_engine_that_does_not_tell_gets_a_bounded_time(raw: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zombies, "LOOK", 0.02)

    async def test(w: World, engine: Engine) -> None:
        engine.answers["/slots"] = raw
        w.zombie()
        w.zombie(most=1.0)
        assert await w.look(int(1.0 / PAUSE) - 1) == 2
        assert await w.look() == 1
        rest = int((UNTOLD - 1.0) / PAUSE)
        assert await w.look(rest - 1) == 1
        assert await w.look() == 0

    run(test)


def test_an_engine_that_once_does_not_tell_is_believed_what_it_told_before() -> None:
    """One look that was too slow, of an engine that has much to do, ends nobody."""

    async def test(w: World, engine: Engine) -> None:
        busy(engine, 1)
        w.zombie()
        assert await w.look(int(2 * UNTOLD / PAUSE)) == 1
        engine.answers["/slots"] = answer(b"{}", 503)
        assert await w.look(int(UNTOLD / PAUSE) - 1) == 1
        busy(engine, 1)
        assert await w.look() == 1
        engine.answers["/slots"] = answer(b"{}", 503)
        assert await w.look(int(UNTOLD / PAUSE) - 1) == 1
        assert await w.look() == 0

    run(test)


def test_a_zombie_ends_with_its_time_even_if_the_engine_stays_busy() -> None:
    """Somebody else may use the engine beside the gateway."""

    async def test(w: World, engine: Engine) -> None:
        busy(engine, SLOTS)
        w.zombie(most=5.0)
        assert await w.look(int(5.0 / PAUSE) - 1) == 1
        assert await w.look() == 0

    run(test)


def test_work_that_others_began_since_is_no_zombies() -> None:
    """Several gateways at one engine, or people: a zombie waits for what they had there when it became one, at most."""

    async def test(w: World, engine: Engine) -> None:
        at_work(engine, 5, 9)  # one of them is the zombie's
        w.zombie()
        assert await w.look(3) == 1
        at_work(engine, 9, 14)
        assert await w.look(3) == 1
        at_work(engine, 14, 15)
        assert await w.look() == 1
        assert await w.look() == 0

    run(test)


def test_a_zombie_that_the_engine_begins_late_is_known_by_the_second_look() -> None:
    async def test(w: World, engine: Engine) -> None:
        at_work(engine, 5)
        w.zombie()
        assert await w.look() == 1
        at_work(engine, 5, 8)
        assert await w.look() == 1
        at_work(engine, 8)
        assert await w.look(10) == 1
        at_work(engine, 30)
        assert await w.look(2) == 0

    run(test)


def test_each_task_is_work_of_one_zombie() -> None:
    async def test(w: World, engine: Engine) -> None:
        at_work(engine, 1, 2)
        w.zombie()
        w.zombie()
        assert await w.look(2) == 2
        at_work(engine, 2, 3, 4)
        assert await w.look(2) == 1
        at_work(engine, 3, 4)
        assert await w.look(2) == 0

    run(test)


def test_tasks_without_numbers_may_be_anybodys() -> None:
    async def test(w: World, engine: Engine) -> None:
        at_work(engine, None, None)
        w.zombie()
        assert await w.look(20) == 1
        at_work(engine)
        assert await w.look(2) == 0

    run(test)


def test_where_nobody_listens_nothing_works() -> None:
    async def test(w: World, engine: Engine) -> None:
        busy(engine, SLOTS)
        w.zombie()
        assert await w.look(2) == 1
        await engine.stop()
        assert await w.look(2) == 0
        await engine.start()

    run(test)


def test_zombies_end_with_their_backend_and_with_the_service() -> None:
    async def test(w: World, engine: Engine) -> None:
        busy(engine, SLOTS)
        w.zombie()
        w.service.follow([backend("llamacpp")])
        assert w.held == 1
        for others in ([], [backend("llamacpp")], [backend("llamacpp", "http://b")], [backend("vllm")]):
            w.service.follow(others)
            assert (w.scheduler.leases, w.held) == (0, 0)
            w.zombie()
            assert w.held == (1 if others and others[0].engine == "llamacpp" else 0)
        w.service.follow([backend("llamacpp")])
        w.zombie()
        assert w.held == 1
        w.service.close()
        assert w.scheduler.leases == 0
        w.zombie()
        assert (w.scheduler.leases, w.held) == (0, 0)

    run(test)


def test_a_backend_that_is_not_there_any_more_has_no_zombies() -> None:
    async def test(w: World, engine: Engine) -> None:
        w.scheduler.set_gate("b", 1)
        w.scheduler.set_pool("n", (("b", 0),))
        got = w.scheduler.submit(Ticket("n", "t", "u"))
        assert isinstance(got, Lease)
        w.service.keep(got, 1.0, MOST)
        assert (w.scheduler.leases, w.service.stats()) == (0, (ZombieStats("a", 0, 0),))

    run(test)


# ---- every interleaving

STEP = st.one_of(
    st.tuples(st.sampled_from(["grant", "leave", "finish", "end", "pass_"]), st.integers(0, SLOTS)),
    st.tuples(st.just("look"), st.integers(-1, SLOTS)),
)


class Engines:
    """Answers `/slots` with what the test wants; while it does, the next steps of the test may happen."""

    def __init__(self) -> None:
        self.busy = 0
        self.meanwhile: Callable[[], None] = lambda: None

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.meanwhile()
        return httpx.Response(500 if self.busy < 0 else 200, content=self._body())

    async def _body(self) -> AsyncIterator[bytes]:
        yield json.dumps([{"is_processing": n < self.busy} for n in range(SLOTS)]).encode()


class Steps:
    """What a test does to a world in between, and what must hold after each of it."""

    def __init__(self, w: World) -> None:
        self.w = w
        self.live: list[Lease] = []

    def grant(self, number: int) -> None:
        if self.w.scheduler.leases < SLOTS:
            self.live.append(self.w.lease())

    def leave(self, number: int) -> None:
        if self.live:
            self.w.service.keep(self.live.pop(number % len(self.live)), 1.0, float(number))

    def finish(self, number: int) -> None:
        if self.live:
            self.live.pop(number % len(self.live)).release(1.0)

    def end(self, number: int) -> None:
        self.w.service._end("a")

    def pass_(self, number: int) -> None:
        self.w.now += number

    def happen(self, what: str, number: int) -> None:
        getattr(self, what)(number)
        assert self.w.scheduler.leases == len(self.live) + self.w.held == self.w.scheduler.core.running


@given(st.lists(STEP, max_size=40))
def test_no_interleaving_leaks_a_slot(steps: list[tuple[str, int]]) -> None:
    """Slots taken are those of live requests and of zombies, whatever comes while a look is under way."""

    async def main() -> None:
        engines, todo = Engines(), iter(steps)
        http = httpx.AsyncClient(base_url="http://a", transport=httpx.MockTransport(engines))
        w = World(lambda name: http)
        w.service._open = True  # nobody watches: the test looks by itself
        does = Steps(w)

        async def look(busy: int) -> None:
            engines.busy = busy
            for haunted in list(w.service._haunted.values()):
                await w.service.look(haunted, http)

        def meanwhile() -> None:
            if (step := next(todo, None)) is not None and step[0] != "look":
                does.happen(*step)

        engines.meanwhile = meanwhile
        for what, number in todo:
            await look(number) if what == "look" else does.happen(what, number)
        await look(0)
        await look(0)
        assert (w.held, w.scheduler.leases) == (0, len(does.live))

    asyncio.run(main())
