"""`fairgate models` against real loopback servers (O5)."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from gateway import cli
from tests.services.engines import Engine, ollama, running, vllm

NAMES = "aliases: {gpt: small}\ncategories: {small: {models: [a, c]}}\n"


def ask(file: Path, engines: dict[str, Engine], *words: str) -> int:
    """The command's exit code, while those engines run, but for one that is `away`."""

    def command() -> int:
        kinds = {name: "vllm" if name == "v" else "ollama" for name in engines}
        lines = [f"  - {{name: {name}, url: '{engines[name].url}', engine: {kind}}}\n" for name, kind in kinds.items()]
        file.touch(0o600)
        file.write_text("backends:\n" + "".join(lines) + NAMES)
        return cli.main(["models", "--config", str(file), *words])

    async def main() -> int:
        async with running(*engines.values()):
            if "away" in engines:
                await engines["away"].stop()
            return await asyncio.to_thread(command)

    return asyncio.run(main())


def test_models_of_all_engines_with_their_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(tmp_path / "f.yaml", {"o": ollama("a:latest", "b:1"), "v": vllm("c", "b:1")}, "--json") == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    assert found == [
        {"model": "a:latest", "backends": ["o"], "loaded": [], "names": ["small", "gpt"]},
        {"model": "b:1", "backends": ["o", "v"], "loaded": ["v"], "names": []},
        {"model": "c", "backends": ["v"], "loaded": ["v"], "names": ["small", "gpt"]},
    ]


def test_an_engine_that_does_not_answer_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(tmp_path / "f.yaml", {"v": vllm("c"), "away": ollama("a")}) == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[1].split() == ["c", "v", "v", "small,", "gpt"]
    assert err.startswith("away does not answer: ConnectError")
    assert cli.main(["models"]) == 1
    assert "no backends are configured" in capsys.readouterr().err
