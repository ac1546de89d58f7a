"""Two gateways, one budget, and everything that can go wrong at once (L2): the race itself, for the short form in
`test_race.py` and the long one in `loadtests`.

What is claimed of a round stands in `Race.faults`.
"""

import asyncio
import contextlib
import itertools
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from gateway.services import accounts
from gateway.services.accounts import KeyTerms
from gateway.store.limits import Limits
from tests.load import COST, Engine, Load, account, answer, engine_section, request
from tests.process import CHEAP_IDENTITY, GatewayProcess
from tests.servers import Redis
from tests.services.keyring import CHEAP, connection

REQUESTS = 200
ADMITS = 100
"""As many requests the budget pays for."""
OPEN = 8
"""As many may be open at once, of both gateways together."""
LEASE = 1.0
RACE_SECONDS = 30.0
SETTLED_SECONDS = 30.0


class Race:
    """One budget on two gateways. `seen` is what clients saw, `said` how attempts ended."""

    def __init__(self, folder: Path, store: str, redis: Redis, rng: random.Random) -> None:
        self.folder, self.store, self.redis, self.rng = folder, store, redis, rng
        self.engine = Engine(rng, delay=0.4, failures=0.15)
        self.gateways: list[GatewayProcess] = []
        self.seen = Load([], "", 0)
        self.said: Counter[str] = Counter()
        self.racer = self.free = self.user = ""
        self.over = 0.0

    # ---- making one

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Race"]:
        await self._provide()
        async with self.engine.listening():
            for name in ("one", "two"):
                folder = self.folder / name
                folder.mkdir()
                self.gateways.append(GatewayProcess(folder, self._settings()))
            try:
                await asyncio.gather(*(asyncio.to_thread(each.started) for each in self.gateways))
                yield self
            finally:
                await asyncio.gather(*(asyncio.to_thread(each.stop) for each in self.gateways))

    async def _provide(self) -> None:
        """A tenant whose open requests are limited, a user with a budget, and one without."""
        async with connection(self.store) as opened:
            tenant = await accounts.create_tenant(opened, "acme", allow_all_models=True)
            await opened.set_limits("tenant", tenant.id, Limits(concurrent=OPEN))
            paying = Limits(tokens_total=ADMITS * COST, requests_per_minute=100_000)
            racer = await accounts.create_user(opened, tenant, "racer", limits=paying)
            free = await accounts.create_user(opened, tenant, "free")
            self.user = racer.id
            self.racer = (await accounts.create_key(opened, racer, KeyTerms(), CHEAP))[1]
            self.free = (await accounts.create_key(opened, free, KeyTerms(), CHEAP))[1]

    def _settings(self) -> dict[str, Any]:
        return {
            "store": self.store,
            "shared": self.redis.url(4),
            "identity": CHEAP_IDENTITY,
            "limits": {"lease": LEASE, "deadline": 0.5, "store_deadline": 2.0},
            "discovery": {"eject_after": 10_000},
            "backends": engine_section(self.engine),
        }

    # ---- the race

    async def run(self) -> None:
        """All requests, each until it has an answer for good or the time is over; faults among them."""
        self.over = time.monotonic() + RACE_SECONDS
        async with asyncio.TaskGroup() as group:
            for number in range(REQUESTS):
                group.create_task(self._request(number))
            group.create_task(self._kill_a_gateway())
            group.create_task(self._kill_redis())

    async def _request(self, number: int) -> None:
        """Again and again while the refusal is one that passes, or the connection was lost."""
        await asyncio.sleep(self.rng.random())
        for attempt in itertools.count():
            if time.monotonic() > self.over:
                return
            said = await self._once(f"r{number}-{attempt}", self.rng.choice(self.gateways).port)
            self.said[said] += 1
            if said in ("200", "429 budget_exceeded"):
                return
            await asyncio.sleep(0.05 + self.rng.random() * 0.2)

    async def _once(self, name: str, port: int) -> str:
        """One attempt -> its status and code; or that the connection was lost, or left on purpose."""
        patience = self.rng.random() * 0.3 if self.rng.random() < 0.04 else 30.0
        try:
            async with asyncio.timeout(patience):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                try:
                    writer.write(request(name, self.racer))
                    status, body = await answer(reader)
                finally:
                    writer.transport.abort()
        except (ConnectionError, asyncio.IncompleteReadError):
            return "lost"
        except TimeoutError:
            if patience == 30.0:
                self.seen.late.append(name)
            return "left"
        self.seen.finished[name] = status
        return "200" if status == 200 else f"{status} {json.loads(body)['error']['code']}"

    async def _kill_a_gateway(self) -> None:
        for victim in self.rng.sample(self.gateways, 2):
            await asyncio.sleep(0.3 + self.rng.random() * 0.7)
            await asyncio.to_thread(victim.kill)
            await asyncio.to_thread(victim.started)

    async def _kill_redis(self) -> None:
        for _ in range(2):
            await asyncio.sleep(self.rng.random() * 2.0)
            await asyncio.to_thread(self.redis.kill)
            await asyncio.sleep(self.rng.random() * 0.3)
            await asyncio.to_thread(self.redis.start)

    # ---- what must hold

    def paid(self) -> int:
        """Requests of the budget that clients saw answered."""
        return sum(status == 200 for status in self.seen.finished.values())

    def finished(self) -> int:
        """Requests of the budget that the engine finished."""
        return sum(not name.startswith("free") for name in self.engine.done)

    async def faults(self) -> list[str]:
        """After `run`: never more than admitted, nothing leaked once the leases are over, one row for each."""
        leaks = await self._leaks()
        found = [f"{self.paid()} requests were answered, of {ADMITS}"] if self.paid() > ADMITS else []
        if self.finished() > ADMITS:
            found.append(f"the engine finished {self.finished()} requests, the budget pays {ADMITS}")
        # What a killed gateway had open runs on until the engine notices, beside what its successor may open.
        if self.engine.most > 2 * OPEN:
            found.append(f"{self.engine.most} requests ran at once, {OPEN} may, and as many of a killed gateway")
        return found + leaks + await self._slots() + await self._rows()

    async def _leaks(self) -> list[str]:
        """Of the budget: what is not spent is to be had again. A dead gateway's lease ends when somebody asks; a living
        one gives back what nobody asks for."""
        await asyncio.sleep(LEASE)
        await self._once("late", self.gateways[0].port)
        spent = held = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLED_SECONDS):
                while True:
                    async with connection(self.store) as opened:
                        (row,) = await opened.budgets(f"user:{self.user}")
                    spent, held = row.spent, row.held
                    if not held and not any(map(self._holds, self.gateways)):
                        break
                    await asyncio.sleep(0.1)
                paid = self.paid() * COST
                return [] if paid <= spent <= ADMITS * COST else [f"{spent} tokens are noted as spent of {paid} used"]
        return [f"{held} tokens are held after the leases are over, {spent} spent"]

    def _holds(self, gateway: GatewayProcess) -> bool:
        figures = gateway.figures()
        return bool(figures["limits"]["open"] or figures["ledger"]["open"] or figures["scheduler"]["running"])

    async def _slots(self) -> list[str]:
        """Of open requests: as many as may be open can be opened at once again."""
        got: list[int] = []
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLED_SECONDS):
                while got.count(200) + got.count(502) < OPEN:
                    got = await asyncio.gather(*(self._free(number) for number in range(OPEN)))
                return []
        return [f"of {OPEN} requests at once, after all was over: {Counter(got)}"]

    async def _free(self, number: int) -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.gateways[number % 2].port)
        try:
            writer.write(request(f"free-{self.rng.random()}", self.free))
            return (await answer(reader))[0]
        finally:
            writer.transport.abort()

    async def _rows(self) -> list[str]:
        async with asyncio.timeout(SETTLED_SECONDS):
            while any(each.figures()["audit"]["pending"] for each in self.gateways):
                await asyncio.sleep(0.1)
        return (await account(self.store)).faults(self.seen, self.engine)

    def __repr__(self) -> str:
        figures = f"{self.paid()} answered, {self.finished()} finished of {ADMITS}, {self.engine.most} at once"
        return f"<Race {figures}; {dict(self.said)}>"
