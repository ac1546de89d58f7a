"""Runs one coroutine without a Task: it starts on the caller's stack and resumes on the stack of whatever wakes it.

A Task costs 2 us and one turn of the loop per request (docs/architecture.md); a request that never waits pays neither.
The coroutine may await `Signal`s (resumed immediately) and asyncio futures and tasks (resumed one turn of the loop
later). It must not use anything that needs a current Task: `asyncio.timeout`, anyio, `asyncio.sleep` with a delay.
"""

import asyncio
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Final, Generic, TypeVar

T = TypeVar("T")
_OVER: Final = object()


class Signal(Generic[T]):
    """A one-shot result. `set` and `fail` resume the waiting coroutine before they return; later calls have no
    effect."""

    __slots__ = ("_error", "_value", "_waiter", "is_set")

    def __init__(self) -> None:
        self.is_set = False
        self._value: T | None = None
        self._error: BaseException | None = None
        self._waiter: Call | None = None

    def set(self, value: T) -> None:
        if not self.is_set:
            self.is_set = True
            self._value = value
            self._wake()

    def fail(self, error: BaseException) -> None:
        if not self.is_set:
            self.is_set = True
            self._error = error
            self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            waiter.resume()

    def attach(self, waiter: "Call | None") -> None:
        """Register the call to resume; None detaches it (its wait was interrupted)."""
        self._waiter = waiter

    def __await__(self) -> Generator["Signal[T]", None, T]:
        if not self.is_set:
            yield self
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]  # stored by set()

    def __repr__(self) -> str:
        return f"<Signal {'set' if self.is_set else 'waiting'}>"


class Call:
    """One running coroutine. `throw` interrupts it at its current await; `on_done` is called once, when it has
    finished."""

    __slots__ = ("_pending", "_running", "_steps", "_waiting", "done", "on_done")

    def __init__(self, coro: Coroutine[Any, Any, None], on_done: Callable[[], None]) -> None:
        self._steps = coro.__await__()
        self._waiting: Any = None
        self._pending: BaseException | None = None
        self._running = False
        self.done = False
        self.on_done = on_done

    def resume(self) -> None:
        """Run to the next await. Also starts the coroutine."""
        self._waiting = None
        self._step(None)

    def throw(self, error: BaseException) -> None:
        """Raise `error` at the current await, or at the next one if the coroutine is running right now."""
        if self.done:
            return
        if self._running:
            self._pending = error
            return
        waiting, self._waiting = self._waiting, None
        if isinstance(waiting, Signal):
            waiting.attach(None)
        elif waiting is not None:
            waiting.remove_done_callback(self._future_done)
        self._step(error)

    def _future_done(self, future: "asyncio.Future[Any]") -> None:
        # If the future was already done when `throw` detached from it, this callback is still scheduled: ignore it.
        if self._waiting is future:
            self.resume()

    def _step(self, error: BaseException | None) -> None:
        self._running = True
        try:
            waits = self._run(error)
        except StopIteration:  # the coroutine caught `error` and returned
            waits = False
        except BaseException as err:
            self._finish(err)
            if not isinstance(err, Exception):
                raise
            return
        finally:
            self._running = False
        if not waits:
            self._finish(None)

    def _run(self, error: BaseException | None) -> bool:
        """Run the coroutine to its next await; False: it has finished."""
        while True:
            # `next` with a default: in compiled code, a StopIteration costs half a microsecond.
            waiting = next(self._steps, _OVER) if error is None else self._steps.throw(error)
            if waiting is _OVER:
                return False
            error, self._pending = self._pending, None
            if error is None:
                self._wait_for(waiting)
                return True
            if asyncio.isfuture(waiting):
                waiting._asyncio_future_blocking = False

    def _wait_for(self, waiting: Any) -> None:
        self._waiting = waiting
        if type(waiting) is Signal:
            waiting.attach(self)
        elif waiting is None:  # a bare yield, as asyncio.sleep(0) does
            asyncio.get_running_loop().call_soon(self._after_yield)
        else:
            waiting._asyncio_future_blocking = False
            waiting.add_done_callback(self._future_done)

    def _after_yield(self) -> None:
        if not self.done and self._waiting is None:
            self._step(None)

    def _finish(self, error: BaseException | None) -> None:
        self.done = True
        if error is not None:
            context = {"message": "a request ended with an unexpected exception", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)
        self.on_done()

    def __repr__(self) -> str:
        state = "done" if self.done else "running" if self._running else f"waiting for {self._waiting!r}"
        return f"<Call {state}>"
