"""One embedding job of the simulated Ollama, and the response that runs it.

Owns: vectors of a request's texts, made in a slot like any other work.
Must not know: which dialect asked.
"""

from collections.abc import Callable

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.simulated import text
from gateway.simulated.catalog import Model
from gateway.simulated.engine import Busy, End, Engine
from gateway.simulated.plan import Plan
from gateway.simulated.wire import JSON, Refusal, until_gone


class Embedding:
    """One embedding job: `run` takes a slot and fills `vectors`, `prompt_tokens` and the durations (nanoseconds)."""

    def __init__(
        self, engine: Engine, model: Model, inputs: list[str], dimensions: int | None, keep_alive: float | None
    ) -> None:
        self._engine = engine
        self._model = model
        self._inputs = inputs
        self._length = min(dimensions or model.embedding_length, model.embedding_length)
        self._keep_alive = keep_alive
        self.prompt_tokens = sum(len(text.tokens(each)) for each in inputs)
        self.vectors: list[list[float]] = []
        self.total = self.load = 0

    async def run(self) -> None:
        """Compute; raises Busy when the queue is full."""
        job = Plan(pieces=[], prompt_tokens=self.prompt_tokens, done_reason="stop")
        async for event in self._engine.generate(self._model, job, self._keep_alive):
            if isinstance(event, End):
                self.total, self.load = event.timing.total, event.timing.load
        self.vectors = [text.vector(each, self._length) for each in self._inputs]


class Computed(Response):
    """Runs an Embedding and writes `body()`; a client that leaves cancels it."""

    def __init__(self, job: Embedding, body: Callable[[], bytes], error: Callable[[Refusal], Response]) -> None:
        super().__init__()
        self._job = job
        self._make = body
        self._error = error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve; see the class."""

        async def serve() -> None:
            try:
                await self._job.run()
                answer = Response(self._make(), media_type=JSON)
            except Busy as busy:
                answer = self._error(Refusal(503, str(busy)))
            await answer(scope, receive, send)

        await until_gone(receive, serve())
