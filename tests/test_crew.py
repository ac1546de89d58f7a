"""The life of one worker as its parent keeps it: what hangs is killed, what cannot be started is tried again."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import uvloop

from gateway import crew as crews
from gateway.crew import WorkerProcess
from gateway.services.channel import Channel
from gateway.services.messages import Alive, QuestionsToParent, QuestionsToWorker, ToParent, ToWorker
from tests.flow.engine import Engine
from tests.test_handover import START, Held, asked, ended
from tests.test_workers import Crew, keys, worker_of

pytestmark = pytest.mark.timeout(400)


class Brisk(Crew):
    """A gateway that is quick to call a worker hung, and that once cannot start one."""

    command = (
        sys.executable,
        "-c",
        "import errno, os, gateway.crew as c; c.HUNG_SECONDS = 1.0; real = c.interpreter; calls = []\n"
        "def some():\n"
        "    calls.append(0)\n"
        "    return ('/nowhere/python',) if len(calls) == 3 else real()\n"
        "c.interpreter = some\n"
        "from gateway.cli import main\n"
        "raise SystemExit(main())",
    )


@pytest.mark.parametrize("blow", [signal.SIGSTOP, signal.SIGKILL])
def test_a_worker_that_hangs_or_dies_is_replaced_though_one_start_fails(tmp_path: Path, blow: signal.Signals) -> None:
    """Its slots are another's again; and a gateway with one that hangs ends when it is told to."""
    held = Held()

    async def main() -> None:
        async with Engine(held.answer) as engine:
            (key,) = await keys(tmp_path, "u")
            gate = Brisk(tmp_path, engine.url, slots=2, scheduling={"queue_timeout": 60})
            async with ended(gate):
                await gate.ready()
                one, two = await gate.by_worker(2)
                for client in one:
                    await client.send(asked(key, stream=True))
                    assert (await client.head())[0] == 200
                victim = worker_of(one[0], gate.pids(await gate.stats()))
                os.kill(victim, blow)
                await two[0].send(asked(key, stream=True))
                async with asyncio.timeout(START):
                    assert (await two[0].head())[0] == 200
                held.gate.set()
                stats = await gate.until(lambda stats: [worker["up"] for worker in stats["workers"]] == [True, True])
                assert victim not in gate.pids(stats)
                assert sum(worker["restarts"] for worker in stats["workers"]) == 2
                assert "No such file" in gate.log.read_text()
                os.kill(gate.pids(stats)[0], signal.SIGSTOP)
                gate.terminate()
                assert await gate.exit_code() == 0

    uvloop.run(main())


class Line:
    """A worker's channel as both ends have it, and a process that does nothing in its place."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()
        self.theirs = Channel(ToWorker, QuestionsToWorker, lambda: None)
        self.ours = Channel(ToParent, QuestionsToParent, self.gone.set)


@contextlib.asynccontextmanager
async def line() -> AsyncIterator[tuple[Line, asyncio.subprocess.Process, "asyncio.Task[None]"]]:
    made = Line()
    ours, theirs = socket.socketpair()
    await made.ours.connect(ours)
    await made.theirs.connect(theirs)
    process = await asyncio.create_subprocess_exec("sleep", "300")
    worker = WorkerProcess(0, None)  # type: ignore[arg-type]  # nobody owns it
    worker.listening = True
    watch = asyncio.ensure_future(worker._watch(made.ours, process))
    try:
        async with asyncio.timeout(30):
            yield made, process, watch
    finally:
        watch.cancel()
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        made.theirs.close()
        await made.gone.wait()


def test_one_late_answer_kills_nobody_and_two_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crews, "HUNG_SECONDS", 0.05)

    async def main() -> None:
        async with line() as (made, process, watch):
            heard: asyncio.Queue[int] = asyncio.Queue()
            total = 0

            async def alive(_: Alive) -> bool:
                nonlocal total
                total += 1
                heard.put_nowait(total)
                if total in (1, 3) or total > 4:
                    await asyncio.Event().wait()
                return True

            made.theirs.answers({Alive: alive})
            while await heard.get() < 5:
                assert process.returncode is None
                assert not watch.done()
            assert await process.wait() == -signal.SIGKILL
            assert total == 6

    uvloop.run(main())


def test_one_that_closes_its_channel_is_left_to_write_its_last_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when it owes an answer."""
    monkeypatch.setattr(crews, "HUNG_SECONDS", 0.05)

    async def main() -> None:
        async with line() as (made, process, watch):

            async def alive(_: Alive) -> bool:
                made.theirs.close()
                await asyncio.Event().wait()
                return True

            made.theirs.answers({Alive: alive})
            await watch
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == -signal.SIGTERM

    uvloop.run(main())
