"""The operator's page says what the code does: every setting with its default and range, the worked example."""

from __future__ import annotations

from pathlib import Path

import pytest

from scheduler.explain import EXAMPLE, rank
from scheduler.settings import Field, describe

GUIDE = (Path(__file__).parents[2] / "docs" / "scheduler.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("field", describe(), ids=lambda field: field.name)
def test_every_setting_is_in_the_guide(field: Field) -> None:
    default = "null" if field.default is None else f"{field.default:g}"
    assert f"| `{field.name}` | {default} | {field.span} | {field.text} |" in GUIDE


def test_the_worked_example_is_what_the_code_computes() -> None:
    points = {line.party.name: line.priority for line in rank(EXAMPLE)}
    assert f"**{points['ann']:.1f}**" in GUIDE
    assert f"**{points['bob']:.0f}**" in GUIDE
