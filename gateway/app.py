"""The gateway in one process, and its life: start, reload, drain and stop by signals. Must not know requests.

`App` is a data plane together with its hub and the admin listener. With `workers` above 1 these parts run in several
processes (`workers.py`).
"""

import logging
import os
from collections.abc import Callable

from gateway.admin.api import AdminApi
from gateway.admin.app import AdminServer, admin_app, serve_admin
from gateway.admin.state import AWAY, WorkerStats
from gateway.config import Config
from gateway.hub import HasHub, LocalHub
from gateway.plane import Plane, tls_context
from gateway.process import (
    early_hangup,
    in_force,
    on_signals,
    raise_file_limit,
    reload_on_hangup,
    settle_garbage,
    unless_second_signal,
)
from gateway.services.backend_facts import Topology
from gateway.spools import deliver_left_over
from gateway.store import Store, open_store
from gateway.workers import serve_workers

log = logging.getLogger("fairgate.app")


class App(HasHub, Plane):
    """The running gateway."""

    hub: LocalHub

    def __init__(self, config: Config, store: Store) -> None:
        super().__init__(config, store, LocalHub(config, store, self._know))
        self.admin: AdminServer | None = None

    def _know(self, topology: Topology) -> None:
        self.metrics.know(models=topology.pools, backends=topology.gates)

    def ready(self) -> bool:
        return super().ready() and self.limits.silence < AWAY

    def workers(self) -> list[WorkerStats]:
        return [WorkerStats(worker=0, pid=os.getpid(), up=True, restarts=0)]

    async def refresh(self) -> None:
        """Nothing to fetch: all figures belong to this process."""

    def reload(self, config: Config) -> list[str]:
        """Switch to a new configuration; returns the names of changed settings that need a restart. If it raises,
        nothing has changed.

        Everything that can fail is built first. Then, without an await, the runtime is swapped and the scheduler and
        the server are adjusted.
        """
        tls_context(config.tls)  # checked even if only a restart applies it
        config, differs = in_force(self.config, config)
        self.prepare(config)()
        return differs

    async def _listen(self) -> None:
        await self.backends.looked()  # otherwise clients would briefly see no models after a restart
        await super()._listen()
        if self.config.admin.listen:
            routes = AdminApi(self, self.keys).routes() if self.config.admin.api else []
            self.admin = await serve_admin(self.config.admin.listen, admin_app(self, routes))

    async def _stop(self) -> None:
        self.server.close()
        if self.admin is not None:
            await self.admin.close()
        await super()._stop()


async def serve(
    config: Config,
    ready: Callable[[App], None] | None = None,
    load: Callable[[], Config] | None = None,
) -> None:
    """Run until SIGTERM or SIGINT: the first one drains, the second one stops at once (H13). SIGHUP reloads with
    `load`.

    `ready` is called once every backend has been checked; not with `workers` above 1. Raises ConfigError, StoreError,
    OSError.
    """
    if config.workers > 1:
        await serve_workers(config, load)
        return
    early = early_hangup() if load is not None else None
    raise_file_limit(config.caps.connections)
    store = await open_store(config.store)
    try:
        await deliver_left_over(config, store)
        app = App(config, store)
        async with app.running():
            settle_garbage()
            stop = on_signals()
            if load is not None and early is not None:
                reload_on_hangup(app.reload, load, early)
            log.info("listening", extra={"port": app.port})
            if ready is not None:
                await app.backends.looked()
                ready(app)
            await stop.wait()
            await unless_second_signal(app.drain)
    finally:
        await store.close()
