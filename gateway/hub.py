"""The parts that exist once, however many processes serve: the queue and its slots, limits, the health checks of
backends, the roll-up of usage.

Owns the order in which changes found by discovery and breakers reach the scheduler. Must not know requests or sockets.
A gateway of one process has its hub beside its data plane. With several workers the hub lives in their parent, and each
worker has a `services.remote.RemoteHub` instead.
"""

import asyncio
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import anyio
from anyio.abc import TaskGroup

from gateway.config import Config
from gateway.services.backend_facts import Topology
from gateway.services.backends import BackendService
from gateway.services.limits import LimitService
from gateway.services.operations import Operations
from gateway.services.usage import keep_rolled_up
from gateway.services.zombies import ZombieService
from gateway.store import Store
from scheduler.aio import Scheduler
from scheduler.estimate import Estimator
from scheduler.settings import Settings

if TYPE_CHECKING:
    from gateway.services.shared import SharedCounts


class HasHub:
    """Properties of a process that has the hub."""

    hub: "LocalHub"

    @property
    def scheduler(self) -> Scheduler:
        return self.hub.scheduler

    @property
    def estimator(self) -> Estimator:
        return self.hub.estimator

    @property
    def zombies(self) -> ZombieService:
        return self.hub.zombies

    @property
    def limits(self) -> LimitService:
        return self.hub.limits

    @property
    def operations(self) -> Operations:
        return self.hub.operations

    @property
    def backends(self) -> BackendService:
        return self.hub.backends


class LocalHub:
    """`on_change` is called after the scheduler has been told of a new topology, `on_settings` after it has taken new
    settings, `on_look` after each check of a backend; none of them before `start`."""

    def __init__(
        self,
        config: Config,
        store: Store,
        on_change: Callable[[Topology], None],
        on_settings: Callable[[Settings], None] = lambda settings: None,
        on_look: Callable[[str], None] = lambda name: None,
    ) -> None:
        self._store = store
        self._on_change = on_change
        self._on_look = on_look
        self.shared: SharedCounts | None = None
        self.limits = self._make_limits(config, store)
        self.scheduler = Scheduler(config.scheduling)
        self.estimator = Estimator(config.scheduling)
        self.operations = Operations(
            store,
            self.scheduler,
            self.estimator,
            config.scheduling,
            writer=f"{socket.gethostname()} {config.listen}",  # stays the same across restarts
            clock=asyncio.get_running_loop().time,
            on_settings=on_settings,
        )
        self.backends = self._make_backends(config, None)
        self.zombies = ZombieService(self.scheduler, lambda name: self.backends.client(name), clock=time.monotonic)
        self.zombies.follow(config.backends)
        self._watching = anyio.CancelScope()
        self._services: TaskGroup
        self._queues: set[str] = set()
        self._gates: dict[str, int] = {}  # gate -> slots, as last told to the scheduler

    def _make_limits(self, config: Config, store: Store) -> LimitService:
        if not config.shared:
            return LimitService(store, config.limits)
        # A gateway without Redis must not need its driver
        from gateway.services.shared import SharedCounts, shared_lender

        self.shared = SharedCounts(config.shared, config.limits, clock=time.monotonic)
        return LimitService(store, config.limits, shared=shared_lender(self.shared, config.limits, time.monotonic))

    def _make_backends(self, config: Config, previous: BackendService | None) -> BackendService:
        return BackendService(
            config.backends,
            config.discovery,
            config.upstream,
            config.models,
            clock=time.monotonic,
            on_change=self._changed,
            on_look=self._on_look,
            previous=previous,
        )

    def _changed(self, _: Topology) -> None:
        """The topology of some generation changed. Requests from before a reload report to their own generation, but
        the scheduler is only told about the current one."""
        self._rewire(self.backends.current())

    def _rewire(self, topology: Topology) -> None:
        """Tell the scheduler about changes found by discovery or a breaker, in one turn of the loop. Slots are raised
        only after all pools are right: if an engine comes back with another model, its slots must not go to requests
        that wait for the old one."""
        scheduler = self.scheduler
        for gate, slots in topology.gates.items():
            scheduler.set_gate(gate, min(slots, self._gates.get(gate, 0)), trial=gate in topology.trials)
        for pool, gates in topology.pools.items():
            scheduler.set_pool(pool, gates)
        for pool in self._queues - topology.pools.keys():
            scheduler.remove_pool(pool)
        for gate, slots in topology.gates.items():
            scheduler.set_gate(gate, slots, trial=gate in topology.trials)
        for gate in self._gates.keys() - topology.gates.keys():
            scheduler.remove_gate(gate)
        self._queues, self._gates = set(topology.pools), dict(topology.gates)
        self._on_change(topology)

    def prepare(self, config: Config) -> tuple[BackendService, Callable[[], None]]:
        """Build the backends of a new configuration; returns them and a function that puts them in force. Raises for
        invalid sections."""
        backends = self._make_backends(config, self.backends)

        def adopt() -> None:
            backends.follow(self.backends)
            self.backends = backends
            self.operations.rebase(config.scheduling)
            self._watch()
            backends.enforce()
            self._rewire(backends.current())
            self.zombies.follow(config.backends)  # after the queue knows how many slots they have now

        return backends, adopt

    def _watch(self) -> None:
        """Start the health checks of this generation of backends, and end those of the previous one."""
        self._watching.cancel()
        self._watching = scope = anyio.CancelScope()
        backends = self.backends

        async def watch() -> None:
            with scope:
                await backends.run()

        self._services.start_soon(watch)

    async def start(self) -> None:
        """Start the limits, and restore what the previous run learned. Raises StoreError."""
        self.limits.start()
        await self.operations.start()

    def run(self, group: TaskGroup) -> None:
        """Check backends, follow settings, roll up usage and delete old budgets, until the group is cancelled."""
        group.start_soon(self.operations.run)
        group.start_soon(self.zombies.run)
        group.start_soon(keep_rolled_up, self._store)
        group.start_soon(self.limits.forget_windows)
        self._services = group
        self._watch()

    async def close(self) -> None:
        """Save fair use and return leased budgets. All requests have ended."""
        self.zombies.close()
        await self.operations.close()
        await self.limits.close()
        if self.shared is not None:
            await self.shared.close()
