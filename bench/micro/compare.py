"""Figures beside those kept in a file: which became more than 10 % worse. Knows nothing of what they count."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path

WORSE = 1.10
Figures = dict[str, float]


def options(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--save", type=Path, help="keep the figures here (JSON)")
    parser.add_argument("--against", type=Path, help="compare with figures kept before; exit 1 if one is 10 %% worse")
    return parser


def conclude(figures: Figures, unit: str, given: argparse.Namespace) -> int:
    """Print the figures, beside the earlier ones if asked; keep them if asked. 1 if one is worse, else 0."""
    before: Figures = json.loads(given.against.read_text())["figures"] if given.against else {}
    worse = {name for name, figure in figures.items() if name in before and figure > WORSE * before[name]}
    print(f"{unit}, CPython {platform.python_version()}")
    for name, figure in figures.items():
        known = f"  {figure / before[name]:6.3f} x before" if name in before else ""
        print(f"{figure:12,.0f}  {name}{known}{' WORSE' if name in worse else ''}")
    for name in before.keys() - figures.keys():
        print(f"{'-':>12}  {name}  was not measured", file=sys.stderr)
    if given.save:
        kept = {"unit": unit, "python": platform.python_version(), "figures": {k: round(v) for k, v in figures.items()}}
        given.save.write_text(json.dumps(kept, indent=1) + "\n")
    return 1 if worse else 0
