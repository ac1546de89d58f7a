"""Replays the Dockerfile's build stage without a container engine: its own COPY and RUN lines, in a temporary folder.

The image's absolute paths (/src, /build, /opt/fairgate, /dist) become folders under it, and `python` is
this interpreter. Then the installed product runs its demo once. This does not cover the base image, `.dockerignore`,
and the users and file modes of the run stage.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PLACES = ("/src", "/build", "/opt/fairgate", "/dist")


def instructions(text: str) -> list[tuple[str, str]]:
    """(instruction, argument) of a Dockerfile: continuation lines joined, comments dropped."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def stage(text: str, name: str) -> list[tuple[str, str]]:
    """The instructions of one named stage."""
    found: list[tuple[str, str]] = []
    inside = False
    for word, rest in instructions(text):
        if word == "FROM":
            inside = rest.lower().endswith(f" as {name}")
        elif inside:
            found.append((word, rest))
    return found


def moved(command: str, root: Path) -> str:
    """Absolute paths of the image -> paths under `root`."""
    pattern = "|".join(map(re.escape, PLACES))
    return re.sub(rf"(?<![\w./])({pattern})(?![\w-])", lambda found: f"{root}{found[1]}", command)


def copy(argument: str, root: Path) -> None:
    """COPY files or folders from the context, as Docker does it."""
    *sources, target = argument.split()
    place = root / "src" / target
    for source in sources:
        path = ROOT / source
        if path.is_dir():
            shutil.copytree(path, place, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__", "*.db*"))
        else:
            destination = place / path.name if target.endswith("/") else place
            destination.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, destination)


def replay(root: Path) -> None:
    environment = dict(os.environ)
    (root / "bin").mkdir()
    (root / "bin/python").symlink_to(sys.executable)
    environment["PATH"] = f"{root}/bin:{environment['PATH']}"
    for word, rest in stage((HERE / "Dockerfile").read_text(encoding="utf-8"), "build"):
        if word == "ENV":
            environment.update(pair.split("=", 1) for pair in rest.split())
        elif word == "WORKDIR":
            Path(moved(rest, root)).mkdir(parents=True)
        elif word == "COPY":
            copy(rest, root)
        elif word == "RUN":
            print(f"RUN {rest}", flush=True)
            subprocess.run(["/bin/sh", "-ec", moved(rest, root)], cwd=root / "src", env=environment, check=True)  # noqa: S603
        else:
            raise SystemExit(f"{word} in the build stage is not replayed")


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        replay(root)
        product = root / "opt/fairgate/bin"
        subprocess.run([product / "fairgate", "--version"], cwd=root, check=True)  # noqa: S603
        command = [product / "fairgate", "demo", "--once", "--listen", "127.0.0.1:0"]
        subprocess.run(command, cwd=root, check=True, timeout=120)  # noqa: S603


if __name__ == "__main__":
    main()
