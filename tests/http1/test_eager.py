"""The Task-less call: signals resume at once, futures one turn later, and an interruption lands at the await."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from gateway.http1.eager import Call, Signal


class Stop(Exception):
    pass


def started(coro: Coroutine[Any, Any, None]) -> tuple[Call, list[str]]:
    ends: list[str] = []
    call = Call(coro, lambda: ends.append("done"))
    call.resume()
    return call, ends


def test_a_coroutine_that_never_waits_is_over_when_resume_returns() -> None:
    async def nothing() -> None:
        return

    call, ends = started(nothing())
    assert call.done
    assert ends == ["done"]


@pytest.mark.parametrize("error", [ValueError("the end failed"), StopIteration()])
def test_an_end_that_fails_is_told_once_and_to_the_caller(error: Exception) -> None:
    ends: list[str] = []

    async def nothing() -> None:
        return

    def failing() -> None:
        ends.append("done")
        raise error

    call = Call(nothing(), failing)
    with pytest.raises(type(error)):
        call.resume()
    assert call.done
    assert ends == ["done"]


def test_a_signal_resumes_in_the_callers_stack() -> None:
    signal: Signal[int] = Signal()
    got: list[int] = []

    async def wait() -> None:
        got.append(await signal)
        got.append(await signal)  # a set signal does not wait

    call, _ = started(wait())
    assert not call.done
    signal.set(7)
    signal.set(8)
    assert got == [7, 7]
    assert call.done


def test_a_failed_signal_raises_at_the_await() -> None:
    signal: Signal[None] = Signal()
    caught: list[BaseException] = []

    async def wait() -> None:
        try:
            await signal
        except Stop as stop:
            caught.append(stop)

    started(wait())
    signal.fail(Stop())
    assert len(caught) == 1


def test_throw_interrupts_a_signal_and_a_later_set_is_harmless() -> None:
    signal: Signal[None] = Signal()
    steps: list[str] = []

    async def wait() -> None:
        try:
            await signal
        except Stop:
            steps.append("stopped")
        finally:
            steps.append("cleaned")

    call, ends = started(wait())
    call.throw(Stop())
    signal.set(None)
    call.throw(Stop())  # after the end: nothing
    assert steps == ["stopped", "cleaned"]
    assert ends == ["done"]


def test_throw_from_inside_lands_at_the_next_await() -> None:
    signal: Signal[None] = Signal()
    steps: list[str] = []
    holder: list[Call] = []

    async def wait() -> None:
        await signal
        holder[0].throw(Stop())
        steps.append("still running")
        try:
            await Signal()
        except Stop:
            steps.append("stopped")

    call, _ = started(wait())
    holder.append(call)
    signal.set(None)
    assert steps == ["still running", "stopped"]
    assert call.done


def test_futures_tasks_and_bare_yields_are_awaited_as_usual() -> None:
    async def main() -> list[object]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[str] = loop.create_future()
        over = asyncio.Event()
        got: list[object] = []

        async def child() -> str:
            await asyncio.sleep(0)
            return "task"

        async def wait() -> None:
            await asyncio.sleep(0)
            got.append(await future)
            got.append(await loop.create_task(child()))
            try:
                await loop.create_task(fail())
            except Stop:
                got.append("failed")

        async def fail() -> None:
            raise Stop

        call = Call(wait(), over.set)
        call.resume()
        loop.call_soon(future.set_result, "future")
        await over.wait()
        assert call.done
        return got

    assert asyncio.run(main()) == ["future", "task", "failed"]


def test_throw_detaches_from_a_future_and_leaves_it_alone() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[str] = loop.create_future()
        caught: list[str] = []

        async def wait() -> None:
            try:
                await future
            except Stop:
                caught.append("stopped")

        call = Call(wait(), lambda: None)
        call.resume()
        call.throw(Stop())
        assert caught == ["stopped"]
        future.set_result("late")
        await asyncio.sleep(0)
        assert call.done

    asyncio.run(main())


def test_an_exception_that_escapes_reaches_the_loops_handler() -> None:
    async def main() -> list[dict[str, Any]]:
        seen: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: seen.append(context))

        async def broken() -> None:
            raise Stop("oops")

        _, ends = started(broken())
        assert ends == ["done"]
        return seen

    seen = asyncio.run(main())
    assert isinstance(seen[0]["exception"], Stop)


@pytest.mark.parametrize("depth", [1, 5])
def test_signals_through_nested_coroutines(depth: int) -> None:
    signal: Signal[int] = Signal()
    got: list[int] = []

    async def level(n: int) -> int:
        return await signal if n == 0 else await level(n - 1)

    async def top() -> None:
        got.append(await level(depth))

    started(top())
    signal.set(3)
    assert got == [3]


def test_throw_after_the_future_is_done_but_before_it_resumed() -> None:
    """A client that leaves in the loop turn in which its wait ended: the coroutine ends once, and says so once."""

    async def main() -> tuple[list[str], list[dict[str, Any]]]:
        seen: list[dict[str, Any]] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: seen.append(context))
        future: asyncio.Future[str] = loop.create_future()

        async def wait() -> None:
            try:
                await future
            except Stop:
                return

        call, ends = started(wait())
        loop.call_soon(future.set_result, "granted")  # the wake-up is due one turn later
        loop.call_soon(call.throw, Stop())
        for _ in range(3):
            await asyncio.sleep(0)
        return ends, seen

    assert asyncio.run(main()) == (["done"], [])
