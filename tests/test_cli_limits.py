"""`fairgate limits` and the limit flags of tenants, users and keys, as a person and a script use them (L1, O5)."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway import cli
from gateway.commands.limits import FLAGS
from gateway.services.keyfmt import parse
from gateway.store.limits import Limits

Run = Callable[..., Any]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command on one store -> its JSON; with `fails=True` the sentence it fails with."""

    def command(line: str, *, fails: bool = False, text: bool = False) -> Any:
        words = [*line.split(), "--store", str(tmp_path / "fairgate.db")]
        code = cli.main(words if text or fails else [*words, "--json"])
        out, err = capsys.readouterr()
        assert (code != 0) == fails, err
        return err if fails else out if text else json.loads(out)

    return command


def test_limits_are_set_shown_changed_and_cleared(run: Run) -> None:
    made = run("tenants create lab --all-models --tokens-per-month 5000 --gpu-seconds-total 60")
    assert made["limits"] == {"tokens_per_month": 5000, "gpu_seconds_total": 60}
    assert run("users create max --tenant lab --concurrency 4")["limits"] == {"concurrent": 4}
    key = run("keys create --tenant lab --user max --rpm 60 --burst 5")
    assert key["limits"] == {"requests_per_minute": 60, "burst": 5}
    parsed = parse(key["token"].encode())
    assert parsed is not None
    assert run(f"limits set --key {parsed[0]} --tpm 1000 --burst none")["limits"] == {
        "requests_per_minute": 60,
        "tokens_per_minute": 1000,
    }
    shown = run("limits show --tenant lab")
    assert shown["budgets"]["tokens_per_month"]["spent"] == 0
    assert shown["budgets"]["gpu_seconds_total"] == {"spent": 0.0, "held": 0.0, "resets_at": None}
    text = run("limits show --tenant lab", text=True)
    assert "tokens_per_month" in text
    assert "5000" in text
    assert run("limits clear --tenant lab --user max")["limits"] == {}
    assert "not limited here" in run("limits show --tenant lab --user max", text=True)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("limits show", "name a --tenant"),
        ("limits set --tenant lab", "which limits"),
        ("limits set --tenant lab --burst 5", "needs a rate"),
        ("limits show --key nokey", "no key"),
        ("limits show --tenant nobody", "no tenant"),
    ],
)
def test_what_cannot_be_is_said(run: Run, line: str, says: str) -> None:
    run("tenants create lab --all-models")
    assert says in run(line, fails=True)


@pytest.mark.parametrize("number", ["0", "-3", "many", "1.5"])
def test_a_limit_is_a_whole_number(run: Run, number: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(f"tenants create lab --rpm {number}")
    assert ended.value.code == 2
    capsys.readouterr()


def test_every_limit_has_a_flag() -> None:
    assert tuple(FLAGS) == Limits.__struct_fields__
