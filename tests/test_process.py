"""What a process sets up for itself, seen from outside, and how its services end."""

import asyncio
import subprocess
import sys

import pytest

from gateway.process import close_all

SCRIPT = """
import threading
import argon2
from gateway.process import give_large_blocks_back

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

give_large_blocks_back()
hasher = argon2.PasswordHasher(time_cost=1, memory_cost=19456, parallelism=1)
known = hasher.hash("x")
before = resident()
threads = [threading.Thread(target=lambda: [hasher.verify(known, "x") for _ in range(4)]) for _ in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_argon2s_memory_goes_back() -> None:
    """K3: two threads that hash with 19 MiB each keep none of it."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=60)
    assert int(done.stdout) < 8 << 20


def test_the_embedded_form_starts_without_drivers() -> None:
    """Redis' is 7 MB and a fifth of the start, of use only where gateways share their limits."""
    script = "import sys, gateway.app; print(sorted({'redis', 'asyncpg'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"


def test_services_close_side_by_side_and_each_to_its_end() -> None:
    """H13: the first waits for the last; one that fails in between keeps neither from its end, and is told."""
    ended: list[str] = []

    async def main() -> None:
        last = asyncio.Event()

        async def first() -> None:
            await last.wait()
            ended.append("first")

        async def failing() -> None:
            raise OSError("no disk")

        async def others() -> None:
            last.set()
            ended.append("others")

        async with asyncio.timeout(10):
            await close_all(first(), failing(), others())

    with pytest.raises(ExceptionGroup) as caught:
        asyncio.run(main())
    assert [str(fault) for fault in caught.value.exceptions] == ["no disk"]
    assert ended == ["others", "first"]
