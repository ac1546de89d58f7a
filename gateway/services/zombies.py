"""Slots of requests that have ended here while their engine still works on them (R8).

llama.cpp finishes a non-streaming answer even if its client has left. Such a request is settled like any other; only
its slot stays taken, as a *zombie*, until the engine's `/slots` shows no more busy slots than live requests at that
engine. Owns which slots are zombies and when they end; must not know requests. Not compiled: not on the path of
requests.

Engine and gateway are read at different moments, and a request between its grant and its slot at the engine is included
in one of the counts only. So a zombie ends when two looks in a row say so, the first of them a pause after its request
ended. A task that runs at a zombie's first two looks may be its work; a task that the engine began later is not. So if
several gateways share an engine, none waits for the others' later requests. If an engine has not reported its slots for
UNTOLD seconds its zombies end, so that no slot is lost.
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
"""Engines that finish a plain answer without its client; Ollama and vLLM stop when the connection closes."""
PAUSE: Final = 0.25  # seconds between two looks
LOOK: Final = 2.0  # timeout of a look in seconds
SURE: Final = 2  # looks after which a task that did not run at either is known not to be the zombie's
UNTOLD: Final = 10.0  # seconds; llama.cpp takes some seconds to finish answers of usual length


class Zombies(Protocol):
    """Takes over the slot of a request: a `ZombieService`, or its proxy in a worker."""

    def keep(self, lease: Lease, cost: float, most: float) -> None:
        """See `ZombieService.keep`."""
        ...


class ZombieStats(msgspec.Struct, frozen=True):
    """Zombies of one backend: present ones, and all since the start."""

    backend: str
    held: int
    seen: int


class Zombie:
    """A lease that outlives its request. `most` and `since` are in seconds, `since` by the service's clock. `last`: the
    engine's newest task that may be its work, known after `looks` looks."""

    __slots__ = ("cost", "last", "lease", "looks", "most", "since")

    def __init__(self, lease: Lease, cost: float, most: float, since: float) -> None:
        self.lease = lease
        self.cost = cost
        self.most = most
        self.since = since
        self.last = -1
        self.looks = 0

    def see(self, tasks: Sequence[int]) -> None:
        """The engine works on these tasks, in ascending order."""
        if self.looks < SURE:
            self.looks += 1
            self.last = max([self.last, *tasks])


class Haunted:
    """One backend with zombies. `doubted`: how many of them no look has found ended yet, including new ones. `told_at`:
    when the engine last reported its busy slots."""

    def __init__(self, gate: str) -> None:
        self.gate = gate
        self.zombies: list[Zombie] = []
        self.doubted = 0
        self.told_at = float("-inf")

    def __repr__(self) -> str:
        return f"<Haunted {self.gate} zombies={len(self.zombies)} doubted={self.doubted}>"


class ZombieService:
    """The zombies of all backends. `client` gives an HTTP client for discovery at a backend, or raises OSError.

    `clock` is in monotonic seconds; `pause` sleeps for so many.
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
        """Look after zombies until cancelled; then give all slots back."""
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
        """Give all slots back, and later ones at once: during shutdown nobody waits for an engine."""
        self._open = False
        for gate in list(self._haunted):
            self._end(gate)

    def follow(self, backends: Sequence[config.Backend]) -> None:
        """A new configuration is in force. Zombies of backends that were removed, or whose address changed, end."""
        addresses = {section.name: section.url for section in backends if section.engine in WORKS_ON}
        for gate in list(self._haunted):
            if addresses.get(gate) != self._addresses.get(gate):
                self._end(gate)
        self._addresses = addresses
        self._seen = {name: self._seen.get(name, 0) for name in addresses}

    def keep(self, lease: Lease, cost: float, most: float) -> None:
        """Release `lease` at `cost` when its engine is done, after `most` seconds at the latest. Never raises, and
        needs no current Task, because requests end without one."""
        haunted = self._haunted.get(lease.gate) or self._haunt(lease.gate)
        if haunted is None:
            lease.release(cost)
            return
        haunted.zombies.append(Zombie(lease, cost, most, self._clock()))
        haunted.doubted += 1
        self._seen[lease.gate] += 1

    def _haunt(self, gate: str) -> Haunted | None:
        """Start watching a backend. None if that is impossible: it was removed, or the service is closed."""
        if not self._open or gate not in self._addresses:
            return None
        try:
            http = self._client(gate)
        except OSError:  # its certificate authority cannot be read
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
            # Here and not after closing the client, which waits: a zombie that comes meanwhile needs a new watch.
            if self._haunted.get(haunted.gate) is haunted:
                del self._haunted[haunted.gate]

    async def look(self, haunted: Haunted, http: httpx.AsyncClient) -> None:
        """Ask the engine once and end the zombies that are over."""
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
        """Requests that the gateway has at this engine now."""
        return self._scheduler.running(haunted.gate) - len(haunted.zombies)

    def _expire(self, haunted: Haunted) -> None:
        now, told_at = self._clock(), haunted.told_at
        late = [each for each in haunted.zombies if now - each.since >= each.most]
        untold = [each for each in haunted.zombies if now - max(each.since, told_at) >= UNTOLD]
        self._over(haunted, late + untold)

    def _over(self, haunted: Haunted, zombies: list[Zombie]) -> None:
        """Remove all of them first and release their slots afterwards: a new holder of a slot may look at the count."""
        haunted.zombies = [each for each in haunted.zombies if each not in zombies]
        for each in zombies:
            each.lease.release(each.cost)

    def stats(self) -> tuple[ZombieStats, ...]:
        """The statistics of every backend that can have zombies."""
        held = {gate: len(haunted.zombies) for gate, haunted in self._haunted.items()}
        return tuple(ZombieStats(gate, held.get(gate, 0), seen) for gate, seen in self._seen.items())


def _may_be_theirs(tasks: Sequence[int], zombies: Sequence[Zombie]) -> int:
    """How many of an engine's tasks, in ascending order, may be the work of these zombies, one task each."""
    found = 0
    for last in sorted(each.last for each in zombies):
        found += found < len(tasks) and tasks[found] <= last
    return found
