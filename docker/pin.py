"""Pins the images of docker/images.env: gets each digest from the registry and writes NAME=image:tag@sha256:...

Needs `docker buildx` and access to the registry. `--check` makes no request, changes nothing, and fails if an image has
no digest. Digests are written exactly as the registry returns them.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

LOCK = Path(__file__).resolve().parent / "images.env"
LINE = re.compile(r"(?m)^(\w+_IMAGE)=([\w./-]+:[\w.-]+)(@sha256:[0-9a-f]{64})?$")


def digest(image: str) -> str:
    """The digest that the registry has for a tag now; any other answer ends the program."""
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
