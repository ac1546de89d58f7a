"""What a process sets up for itself, seen from outside."""

import subprocess
import sys

import pytest

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
