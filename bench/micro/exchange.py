"""One whole exchange through the gateway without a socket: what its own code costs the loop, from bytes to bytes.

`python -m bench.micro.exchange` runs the real application with everything on, against transports that only collect,
and prints two figures in microseconds, each a low percentile of many single exchanges: from the request's bytes to the
engine's request, and from the engine's answer to the record. The kernel's part and the audit's threads are not in it.
"""

import asyncio
import os
import sys
import time

import uvloop

from bench.micro.rig import ANSWER, BODY, Rig, rig

EXCHANGES = 10_000
WARM_UP = 500
TURN = 50  # exchanges between two turns of the loop
PERCENTILE = 5  # low: the machine's neighbours only ever add


async def measure() -> tuple[float, float]:
    """(request, answer) in microseconds."""
    async with rig(1) as made:
        asked, answered = await _run(made, made.request(900))
    at = len(asked) * PERCENTILE // 100
    return sorted(asked)[at] / 1000, sorted(answered)[at] / 1000


async def _run(made: Rig, request: bytes) -> tuple[list[int], list[int]]:
    """Nanoseconds of each exchange's two halves. Raises RuntimeError if one was not answered."""
    asked, answered = [], []
    for number in range(WARM_UP + EXCHANGES):
        began = time.perf_counter_ns()
        made.ask(request)
        between = time.perf_counter_ns()
        made.answer(ANSWER)
        ended = time.perf_counter_ns()
        made.check(BODY)
        if number >= WARM_UP:
            asked.append(between - began)
            answered.append(ended - between)
        if number % TURN == 0:
            await asyncio.sleep(0.001)
    return asked, answered


def main() -> None:
    """Print the two figures and their sum."""
    asked, answered = uvloop.run(measure())
    version = ".".join(map(str, sys.version_info[:3]))
    print(f"request {asked:.1f}, answer {answered:.1f}, exchange {asked + answered:.1f} us")
    print(f"CPython {version}, load {os.getloadavg()[0]:.1f}, percentile {PERCENTILE} of {EXCHANGES}")


if __name__ == "__main__":
    main()
