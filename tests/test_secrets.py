"""No command and no bug tells a secret: keys, passwords and DSNs through every fault of a file or an argument (O3)."""

import asyncio
import io
from pathlib import Path

import pytest

from gateway import logs
from gateway.cli import main
from gateway.flow import phases
from gateway.urls import database_fault
from tests.gateway import chat, gateway
from tests.secret_engine import Echo, leaked
from tests.source import NEEDS_SOURCE

WORD = "h7nter2Kestrel"
"""In every password and key of the first test: no line may hold it."""


# ---- the command line

BACKEND = "backends: [{name: e, url: 'http://127.0.0.1:1', engine: vllm}]"
FAULTY = {
    "a backend's password in its URL": f"backends: [{{name: e, url: 'http://u:{WORD}@h', engine: vllm}}]",
    "a URL of nothing": f"backends: [{{name: e, url: 'http://u:{WORD}[@h', engine: vllm}}]",
    "not YAML": f'backends:\n- {{name: e, key: sk-{WORD}"x: y, url: [}}',
    "not YAML, a block": f"backends:\n- name: e\n  key: '{WORD}\n",
    "no blank after a colon": f"backends: [{{name: e, key:{WORD}, url: 'http://h', engine: vllm}}]",
    "only a value": f"backends: [{{name: e, sk-{WORD}/{WORD}: 1}}]",
    "a key in another place": f"backends: [{{name: e, url: 'http://h', engine: {WORD}}}]",
    "a key as a name": f"backends: [{{name: '{WORD} x', url: 'http://h', engine: vllm}}]",
    "a key as a number": f"backends: [{{name: e, url: 'http://h', engine: vllm, slots: {WORD}}}]",
    "a slash in the store's password": f"store: postgresql://app:{WORD}/x@127.0.0.1:1/db",
    "a bracket in it": f"store: 'postgresql://app:{WORD}[x@127.0.0.1:1/db'",
    "a number and a slash": f"store: 'postgresql://app:12/{WORD}@127.0.0.1:1/db'",
    "no such database program": f"store: mysql://app:{WORD}@127.0.0.1:1/db",
    "a store away": f"store: postgresql://app:{WORD}@127.0.0.1:1/db",
    "a store that is a folder": f"store: /proc/{WORD}/x.db".replace(WORD, "self"),
    "a slash in the shared password": f"shared: redis://app:{WORD}/x@127.0.0.1:1/0\nadmin: {{listen: ''}}",
    "an option of the shared URL": f"shared: 'redis://app:{WORD}@127.0.0.1:1/0?socket_timeout={WORD}'",
    "another shared program": f"shared: memcached://app:{WORD}@127.0.0.1:1",
    "a DSN to listen on": f"listen: postgresql://app:{WORD}@h",
}
COMMANDS: dict[str, list[str]] = {
    "check-config": ["check-config", "FILE"],
    "check-config --json": ["check-config", "FILE", "--json"],
    "doctor": ["doctor", "--config", "FILE"],
    "doctor --json": ["doctor", "--config", "FILE", "--json"],
    "serve": ["serve", "--config", "FILE"],
    "migrate": ["migrate", "--config", "FILE"],
    "keys": ["keys", "list", "--config", "FILE"],
    "audit": ["audit", "verify", "--config", "FILE"],
    "prune": ["audit", "prune", "--before", "2026-01-01", "--config", "FILE"],
}
VALID_FILE = {"a store away", "no such database program", "a store that is a folder", "an option of the shared URL"}
"""What no reading of the file can find."""
LOCAL = {"check-config", "check-config --json", "keys", "audit"}
"""Commands that do not meet everything a file names."""


@pytest.mark.parametrize("words", COMMANDS)
@pytest.mark.parametrize("fault", FAULTY)
def test_no_command_tells_a_secret_of_its_file(
    fault: str, words: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """O3, O7: each fault is found, and said without the value."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "fairgate.yaml"
    file.write_text(FAULTY[fault] + "\n" + ("" if "backends" in FAULTY[fault] else BACKEND))
    file.chmod(0o600)
    code = main([str(file) if word == "FILE" else word for word in COMMANDS[words]])
    told = "".join(capfd.readouterr())
    assert leaked(told, WORD) == []
    assert code == 1 or (fault in VALID_FILE and words in LOCAL), told


@pytest.mark.parametrize("url", [value.partition(" ")[2].strip("'") for key, value in FAULTY.items() if "tore" in key])
@pytest.mark.parametrize("words", ["keys list", "migrate", "audit tail", "usage tenant"])
def test_no_command_tells_a_secret_of_its_arguments(
    url: str, words: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """O3"""
    monkeypatch.chdir(tmp_path)
    assert main([*words.split(), "--store", url]) == 1
    assert leaked("".join(capfd.readouterr()), WORD) == []


@pytest.mark.parametrize(
    "url",
    [
        "fairgate.db",
        "a@b/fair[1].db",
        "sqlite:////a@b/fairgate.db",
        "postgresql:///db?host=/run/postgresql",
        "postgresql://app:p%2Fq@one:5432,[::1]:5433/db",
        "redis://:p%40q@[::1]:6379/0",
        "redis://cache",
    ],
)
def test_a_sound_address_of_a_database_has_no_fault(url: str) -> None:
    assert database_fault(url) == ""


def test_the_trace_of_a_bug_is_scrubbed(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """O3: of commands; the gateway's own go through its log."""

    def broken(*_: object) -> None:
        raise RuntimeError(f"cannot read postgresql://app:{WORD}@h with Bearer {WORD}")

    monkeypatch.setattr("gateway.loading.load", broken)
    assert main(["check-config", "any"]) == 1
    told = capfd.readouterr().err
    assert "RuntimeError" in told
    assert leaked(told, WORD) == []


# ---- a bug in any phase


@NEEDS_SOURCE
@pytest.mark.parametrize("phase", ["classify", "authenticate", "read", "route", "admit", "queue", "forward", "relay"])
def test_a_bug_in_a_phase_tells_no_secret(phase: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """O3: neither the answer nor the log, whose trace holds what the exception said."""
    out = io.StringIO()
    running = logs.setup("debug", stream=out)

    async def body() -> None:
        async with Echo().listening() as port, gateway(f"http://127.0.0.1:{port}") as it:

            def broken(*_: object) -> None:
                raise RuntimeError(f"{it.key} postgresql://app:{WORD}@h") from KeyError(f"password={WORD}")

            monkeypatch.setattr(phases, phase, broken)
            status, fields, answer = await it.ask("/v1/chat/completions", chat(seed=8))
            (row,) = await it.records(1)
            assert (status, row["outcome"]) == (500, "bug")
            assert "RuntimeError" in out.getvalue()
            assert leaked(f"{fields} {answer!r} {row} {out.getvalue()}", WORD, it.key) == []

    try:
        asyncio.run(body())
    finally:
        running.stop()
