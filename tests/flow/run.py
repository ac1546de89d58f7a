"""A test between a gateway and the scripted engine behind it; at its end nothing is left open."""

from collections.abc import Callable, Coroutine
from typing import Any

import uvloop

from tests.flow.engine import Answer, Engine
from tests.gateway import Gateway, gateway

Test = Callable[[Gateway, Engine], Coroutine[Any, Any, None]]


def run(answer: Answer, test: Test, models: tuple[str, ...] = ("m",), **settings: Any) -> None:
    """`settings` as `gateway` takes them. The engine lists `models` and gives each chat `answer`."""

    async def main() -> None:
        async with Engine(answer, models) as engine, gateway(engine.url, **settings) as g:
            await test(g, engine)
            await g.idle()
            assert g.app.limits.stats().open == 0

    uvloop.run(main())
