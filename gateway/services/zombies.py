"""Slots of requests that are over here while their engine works on (R8).

llama.cpp goes on with an answer that is not a stream after whoever asked for it has left. Such a request is settled
like any other; only its slot stays taken, as a *zombie*, until the engine's `/slots` shows no more busy slots than
requests live there. Owns who is a zombie and when it is over; must not know requests. Not compiled: off every path.

Engine and gateway are read at different moments, and a request on its way between a grant and a slot of the engine is
in the one count only. So a zombie is over when two looks in a row say so, the first a pause after its request ended.
What is at work at its first two looks may be the zombie's; what the engine began later is not: where several gateways
have one engine, none waits for what another has there from then on.
An engine that has not told for UNTOLD seconds is believed to be done, so that no slot is lost.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

import anyio
import httpx
import msgspec

from gateway import config
from gateway.services import discovery
from gateway.services.discovery import LookFailed
from scheduler.aio import Lease, Scheduler

log = logging.getLogger("fairgate.zombies")

WORKS_ON: Final = frozenset({"llamacpp"})
"""Kinds of engines that go on with a plain answer; Ollama and vLLM end it with its connection."""
PAUSE: Final = 0.25  # seconds between two looks
LOOK: Final = 2.0  # seconds for one
SURE: Final = 2  # looks: a task that runs at neither is not the zombie's
UNTOLD: Final = 10.0  # seconds: "goes on for seconds" is what was seen of llama.cpp with answers of a usual length


class Zombies(Protocol):
    """Where a request leaves its slot: a `ZombieService`, or what stands for one in another process."""

    def keep(self, lease: Lease, cost: float, most: float) -> None:
        """See `ZombieService.keep`."""
        ...


class ZombieStats(msgspec.Struct, frozen=True):
    """Zombies of one backend: those of the moment, and all since the start."""

    backend: str
    held: int
    seen: int


class Zombie:
    """A lease that outlives its request. `most` and `since` in seconds, the latter of the service's clock. `last`: the
    engine's newest task that may be its work, known after so many `looks`."""

    __slots__ = ("cost", "last", "lease", "looks", "most", "since")

    def __init__(self, lease: Lease, cost: float, most: float, since: float) -> None:
        self.lease = lease
        self.cost = cost
        self.most = most
        self.since = since
        self.last = -1
        self.looks = 0

    def see(self, tasks: Sequence[int]) -> None:
        """The engine works on these, ascending."""
        if self.looks < SURE:
            self.looks += 1
            self.last = max([self.last, *tasks])


class Haunted:
    """One backend with zombies. `doubted`: how many of them no look has said to be over yet, newcomers included.
    `told_at`: when its engine told its busy slots last."""

    def __init__(self, gate: str) -> None:
        self.gate = gate
        self.zombies: list[Zombie] = []
        self.doubted = 0
        self.told_at = float("-inf")

    def __repr__(self) -> str:
        return f"<Haunted {self.gate} zombies={len(self.zombies)} doubted={self.doubted}>"


class ZombieService:
    """The zombies of all backends. `client` gives the control plane's client of a backend, or raises OSError.

    `clock` in seconds, monotonic; `pause` waits so many.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        client: Callable[[str], httpx.AsyncClient],
        *,
        clock: Callable[[], float],
        pause: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        self._scheduler = scheduler
        self._client = client
        self._clock = clock
        self._pause = pause
        self._open = False
        self._addresses: dict[str, str] = {}
        self._haunted: dict[str, Haunted] = {}
        self._unwatched: list[tuple[Haunted, httpx.AsyncClient]] = []
        self._wake = anyio.Event()
        self._seen: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"<ZombieService {list(self._haunted.values())}>"

    async def run(self) -> None:
        """Look after zombies until cancelled; then all slots are given back."""
        self._open = True
        try:
            async with anyio.create_task_group() as group:
                while True:
                    self._wake = anyio.Event()
                    begun, self._unwatched = self._unwatched, []
                    for haunted, http in begun:
                        group.start_soon(self._watch, haunted, http)
                    await self._wake.wait()
        finally:
            self.close()

    def close(self) -> None:
        """Give all slots back, and from now on each at once. Nobody waits for an engine at the end."""
        self._open = False
        for gate in list(self._haunted):
            self._end(gate)

    def follow(self, backends: Sequence[config.Backend]) -> None:
        """These are in force from now on. Zombies of one that was taken away, or is at another address, are over."""
        addresses = {section.name: section.url for section in backends if section.engine in WORKS_ON}
        for gate in list(self._haunted):
            if addresses.get(gate) != self._addresses.get(gate):
                self._end(gate)
        self._addresses = addresses
        self._seen = {name: self._seen.get(name, 0) for name in addresses}

    def keep(self, lease: Lease, cost: float, most: float) -> None:
        """Release `lease` at `cost` when its engine is done, after `most` seconds at the latest. Never raises, and
        needs no current Task: requests end without one."""
        haunted = self._haunted.get(lease.gate) or self._haunt(lease.gate)
        if haunted is None:
            lease.release(cost)
            return
        haunted.zombies.append(Zombie(lease, cost, most, self._clock()))
        haunted.doubted += 1
        self._seen[lease.gate] += 1

    def _haunt(self, gate: str) -> Haunted | None:
        """Have a backend watched. None where nobody can: it was taken away, or the end has come."""
        if not self._open or gate not in self._addresses:
            return None
        try:
            http = self._client(gate)
        except OSError:  # its authority cannot be read
            return None
        haunted = self._haunted[gate] = Haunted(gate)
        self._unwatched.append((haunted, http))
        self._wake.set()
        return haunted

    def _end(self, gate: str) -> None:
        haunted = self._haunted.pop(gate, None)
        if haunted is not None:
            self._over(haunted, haunted.zombies)

    async def _watch(self, haunted: Haunted, http: httpx.AsyncClient) -> None:
        async with http:
            while haunted.zombies:
                await self._pause(PAUSE)
                await self.look(haunted, http)
            # Here and not after the client's own end, which waits: a newcomer meanwhile needs a watch of its own.
            if self._haunted.get(haunted.gate) is haunted:
                del self._haunted[haunted.gate]

    async def look(self, haunted: Haunted, http: httpx.AsyncClient) -> None:
        """Ask the engine once and let go what is over."""
        asked, doubted, haunted.doubted = list(haunted.zombies), haunted.doubted, 0
        live = self._live(haunted)
        try:
            tasks = await discovery.busy_slots(http, LOOK)
        except LookFailed as err:
            log.debug("an engine does not tell its busy slots", extra={"backend": haunted.gate, "reason": str(err)})
            haunted.doubted += doubted
            self._expire(haunted)
            return
        haunted.told_at = self._clock()
        for each in asked:
            each.see(tasks)
        live = min(live, self._live(haunted))
        works_on = min(max(0, len(tasks) - live), _may_be_theirs(tasks, asked))
        haunted.doubted += works_on
        self._over(haunted, asked[: max(0, len(asked) - max(works_on, doubted))])
        self._expire(haunted)

    def _live(self, haunted: Haunted) -> int:
        """Requests that the gateway has there now."""
        return self._scheduler.running(haunted.gate) - len(haunted.zombies)

    def _expire(self, haunted: Haunted) -> None:
        now, told_at = self._clock(), haunted.told_at
        late = [each for each in haunted.zombies if now - each.since >= each.most]
        untold = [each for each in haunted.zombies if now - max(each.since, told_at) >= UNTOLD]
        self._over(haunted, late + untold)

    def _over(self, haunted: Haunted, zombies: list[Zombie]) -> None:
        """First all are no zombies any more, then their slots go: a slot's next holder may look at the count."""
        haunted.zombies = [each for each in haunted.zombies if each not in zombies]
        for each in zombies:
            each.lease.release(each.cost)

    def stats(self) -> tuple[ZombieStats, ...]:
        """Of every backend that may have some."""
        held = {gate: len(haunted.zombies) for gate, haunted in self._haunted.items()}
        return tuple(ZombieStats(gate, held.get(gate, 0), seen) for gate, seen in self._seen.items())


def _may_be_theirs(tasks: Sequence[int], zombies: Sequence[Zombie]) -> int:
    """How many of an engine's tasks, ascending, may be work of so many zombies, one of each."""
    found = 0
    for last in sorted(each.last for each in zombies):
        found += found < len(tasks) and tasks[found] <= last
    return found
