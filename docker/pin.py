"""Pins the images of docker/images.env: asks their registry for each digest and writes NAME=image:tag@sha256:...

Runs where a registry and `docker buildx` can be reached. `--check` asks nobody, changes nothing, and fails while an
image has no digest. A digest is only ever written as the registry said it.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

LOCK = Path(__file__).resolve().parent / "images.env"
LINE = re.compile(r"(?m)^(\w+_IMAGE)=([\w./-]+:[\w.-]+)(@sha256:[0-9a-f]{64})?$")


def digest(image: str) -> str:
    """What the registry holds under a tag now; an answer that is no digest ends the program."""
    command = ["docker", "buildx", "imagetools", "inspect", image, "--format", "{{.Manifest.Digest}}"]
    said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.strip()  # noqa: S603
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", said):
        raise SystemExit(f"{image}: the registry's answer is no digest: {said[:80]!r}")
    return said


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="ask nobody, change nothing; fail while a digest is unset")
    text = LOCK.read_text(encoding="utf-8")
    if not parser.parse_args(arguments).check:
        text = LINE.sub(lambda found: f"{found[1]}={found[2]}@{digest(found[2])}", text)
        LOCK.write_text(text, encoding="utf-8")
    unset = [found[1] for found in LINE.finditer(text) if not found[3]]
    for name in unset:
        print(f"{name} has no digest: unset, run python docker/pin.py")
    return 1 if unset else 0


if __name__ == "__main__":
    sys.exit(main())
