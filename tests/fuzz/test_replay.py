"""H2: every seed, every input that once broke a target, and a short run of random damage to them, on every machine."""

import os
import random

import pytest

from tests.fuzz.seeds import LONGEST, crashes, seeds
from tests.fuzz.targets import TARGETS

SEED = int(os.environ.get("FAIRGATE_TEST_SEED") or random.SystemRandom().randrange(2**32))
DAMAGED = 500


@pytest.mark.parametrize("target", TARGETS)
def test_seeds(target: str) -> None:
    """The inputs that fuzzing starts from hold."""
    for seed in seeds(target):
        TARGETS[target](seed)


@pytest.mark.parametrize("target", TARGETS)
def test_crashes(target: str) -> None:
    """What was mended stays mended."""
    for path in crashes(target):
        TARGETS[target](path.read_bytes())


@pytest.mark.parametrize("target", TARGETS)
def test_damaged_seeds(target: str) -> None:
    """Seeds with bytes flipped, cut out, doubled and crossed with other seeds."""
    print(f"FAIRGATE_TEST_SEED={SEED}")
    draw = random.Random(SEED)
    known = list(seeds(target))
    for _ in range(DAMAGED):
        data = _damage(draw, draw.choice(known), draw.choice(known))
        try:
            TARGETS[target](data)
        except Exception:
            print(f"input: {data!r}")
            raise


def _damage(draw: random.Random, data: bytes, other: bytes) -> bytes:
    text = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        at, size = draw.randint(0, len(text)), draw.randint(0, 8)
        kind = draw.randrange(4)
        if kind == 0:
            text[at : at + 1] = bytes((draw.choice((0, 9, 10, 13, 32, 48, 58, 59, 127, 255, draw.randrange(256))),))
        elif kind == 1:
            del text[at : at + size]
        elif kind == 2:
            text[at:at] = text[at : at + size]
        else:
            start = draw.randint(0, len(other))
            text[at:at] = other[start : start + draw.randint(0, 60)]
    return bytes(text[:LONGEST])
