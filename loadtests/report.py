"""What the fault runs write: one page of facts each. Owns the form only."""

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def machine() -> str:
    """What stands beside every figure: the machine and how busy it was."""
    load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
    return f"Python {platform.python_version()}, {os.cpu_count()} cores, shared with other work; load average {load}"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def page(path: Path, title: str, command: str, facts: Mapping[str, object], *parts: str) -> None:
    """Write and print it."""
    text = "\n\n".join([f"# {title}", f"`{command}`", table(["", ""], facts.items()), *parts]) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    print(text)
