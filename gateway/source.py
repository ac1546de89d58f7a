"""The text of a configuration: YAML to plain data, then what its references lead to. Must not know any setting.

No complaint shows a piece of the file: that piece may be a secret.
"""

import os
import re
from pathlib import Path
from typing import Any

import yaml


class ConfigError(Exception):
    """The configuration is unusable; the message names the path of the setting."""


class _Loader(yaml.SafeLoader):
    """Of a name that stands twice in a mapping YAML's reader takes the last, without a word."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem="a name appears twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return node


def read(text: str) -> dict[Any, Any]:
    """What stands in the file, references as they are written. Raises ConfigError."""
    try:
        raw = yaml.load(text, _Loader)  # noqa: S506 -- a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as err:
        raise ConfigError(f"not YAML: {_place(err)}") from err
    if raw is not None and not isinstance(raw, dict):
        raise ConfigError("the file must be a mapping of settings")
    return raw or {}


def _place(err: Exception) -> str:
    """What the reader says without the piece of the file it shows: that line may hold a secret."""
    mark = getattr(err, "problem_mark", None)
    at = f", line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
    return f"{getattr(err, 'problem', None) or getattr(err, 'reason', None) or type(err).__name__}{at}"


_REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def follow(raw: Any, folder: Path, path: str = "", depth: int = 0) -> Any:
    """Replace `${NAME}`, `env:NAME` and `file:PATH` in string values; a relative PATH starts in `folder`."""
    if depth > 16:
        raise ConfigError(f"{path}: nested too deeply")
    if isinstance(raw, dict):
        return {k: follow(v, folder, f"{path}.{k}".lstrip("."), depth + 1) for k, v in raw.items()}
    if isinstance(raw, list):
        return [follow(v, folder, f"{path}[{i}]", depth + 1) for i, v in enumerate(raw)]
    return _resolve_text(raw, folder, path) if isinstance(raw, str) else raw


def _resolve_text(text: str, folder: Path, path: str) -> str:
    """A reference to nothing is no way to leave a setting out: without `shared` or `tls.client_ca`, for one, less is
    checked."""
    if text.startswith("file:"):
        value = _secret_file(folder / text.removeprefix("file:"), path)
    elif text.startswith("env:"):
        value = _env(text.removeprefix("env:"), path)
    else:
        value = _REFERENCE.sub(lambda found: _env(found[1], path), text)
    if text and not value:
        raise ConfigError(f"{path}: {text} is empty; to leave the setting unset, remove it")
    return value


def _env(name: str, path: str) -> str:
    value = os.environ.get(name)
    if value is None:
        raise ConfigError(f"{path}: environment variable {name} is not set")
    return value


def _secret_file(name: Path, path: str) -> str:
    try:
        return name.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as err:
        raise ConfigError(f"{path}: cannot read {name}: {getattr(err, 'strerror', None) or 'not text'}") from err
