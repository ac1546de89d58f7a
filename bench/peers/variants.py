"""fairgate with one feature switched off (by `bench.launch`), with its loop watched, and on a live PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from typing import Any

from bench.peers.fairgate import PROJECT, Fairgate, FairgateCompiled
from bench.tools import BenchError
from gateway import config as cfg
from gateway.store.postgresql import migrate
from tests import servers
from tests.databases import DATABASE, statement


class _Launched(Fairgate):
    """Started by `bench.launch`, which can leave features out and watch the loop."""

    without: tuple[str, ...] = ()
    stalls = False

    def command(self) -> list[str]:
        words = [self.interpreter(), "-m", "bench.launch", str(self.folder / "fairgate.yaml")]
        words += ["--without", ",".join(self.without)] if self.without else []
        return words + (["--watch", str(self.folder / "stalls")] if self.stalls else [])


class Watched(_Launched):
    """All on, and a timer every millisecond that notes the longest stall."""

    name = "fairgate-watched"
    note = "all features on, longest stall noted"
    stalls = True

    def watched(self) -> dict[str, float]:
        file = self.folder / "stalls"
        file.unlink(missing_ok=True)
        os.kill(self.pids()[0], signal.SIGUSR2)
        deadline = time.monotonic() + 5
        while not file.exists():
            if time.monotonic() > deadline:
                raise BenchError(f"{self.name} does not tell its stalls")
            time.sleep(0.005)
        return dict(json.loads(file.read_text()))


class CompiledWatched(FairgateCompiled, Watched):
    """The same of the compiled wheel, whose packages have to be found before the source tree's."""

    name = "fairgate-compiled-watched"
    note = "all features on, compiled wheel, longest stall noted"

    def command(self) -> list[str]:
        interpreter, _, _, *given = Watched.command(self)
        code = f"import sys; sys.path.append({str(PROJECT)!r}); from bench.launch import main; main()"
        return [interpreter, "-P", "-c", code, *given]


class WithoutAuth(_Launched):
    name = "fairgate-no-auth"
    note = "any key is taken for the first"
    without = ("auth",)


class WithoutLimits(Fairgate):
    name = "fairgate-no-limits"
    note = "keys without limits"
    limited = False


class WithoutScheduler(_Launched):
    name = "fairgate-no-scheduler"
    note = "every request is granted at once"
    without = ("scheduler",)


class WithoutAudit(_Launched):
    name = "fairgate-no-audit"
    note = "records are dropped"
    without = ("audit",)


class WithoutMetrics(_Launched):
    name = "fairgate-no-metrics"
    note = "nothing is counted"
    without = ("metrics",)


class Bare(_Launched):
    name = "fairgate-bare"
    note = "none of auth, limits, scheduler, audit, metrics"
    limited = False
    without = ("auth", "scheduler", "audit", "metrics")


class OnPostgreSQL(Fairgate):
    """Records go to a live PostgreSQL, which works on the load side's core."""

    name = "fairgate-postgresql"
    note = "all features on, records to PostgreSQL"

    def __init__(self, core: int, backend_port: int) -> None:
        super().__init__(core, backend_port)
        self._server: servers.PostgreSQL | None = None

    def prepare(self) -> None:
        try:
            self._server = servers.PostgreSQL()
        except servers.Unavailable as error:
            raise BenchError(str(error)) from error
        mine = os.sched_getaffinity(0)
        os.sched_setaffinity(0, (mine - {self.core}) or mine)  # inherited
        self._server.start()
        os.sched_setaffinity(0, mine)
        asyncio.run(statement(self._server.url("postgres"), f"CREATE DATABASE {DATABASE}"))
        asyncio.run(migrate(self._server.url(DATABASE)))
        super().prepare()

    def store(self) -> str:
        assert self._server is not None  # prepared
        return self._server.url(DATABASE)

    def stop(self) -> None:
        super().stop()
        server, self._server = self._server, None
        if server is not None:
            server.close()


class CompiledOnPostgreSQL(FairgateCompiled, OnPostgreSQL):
    """What the goals call full work."""

    name = "fairgate-compiled-postgresql"
    note = "all features on, compiled wheel, records to PostgreSQL"


class TwoWorkers(Fairgate):
    """Two serving processes, on the proxy's core and on another, which the load side may need too."""

    name = "fairgate-2-workers"
    note = "all features on, two worker processes"

    def missing(self) -> str | None:
        if "workers" not in cfg.Config.__struct_fields__:
            return "this fairgate has no `workers`"
        return super().missing()

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "workers": 2}

    def cores(self) -> str:
        others = sorted(os.sched_getaffinity(0) - {self.core})
        return ",".join(map(str, [self.core, *others[:1]]))


class CompiledTwoWorkers(FairgateCompiled, TwoWorkers):
    name = "fairgate-compiled-2-workers"
    note = "all features on, compiled wheel, two worker processes"
