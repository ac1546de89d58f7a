"""The text of a configuration file: YAML to plain data, with references resolved. Must not know any setting.

No error message contains a piece of the file: it may be a secret.
"""

import os
import re
from pathlib import Path
from typing import Any

import yaml


class ConfigError(Exception):
    """The configuration is unusable; the message begins with the path of the setting."""


class _Loader(yaml.SafeLoader):
    """Refuses duplicate keys in a mapping, of which YAML's own loader would silently take the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem="a name appears twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return node


def read(text: str) -> dict[Any, Any]:
    """The data in the file, with references still unresolved. Raises ConfigError."""
    try:
        raw = yaml.load(text, _Loader)  # noqa: S506 -- a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as err:
        raise ConfigError(f"not YAML: {_place(err)}") from err
    if raw is not None and not isinstance(raw, dict):
        raise ConfigError("the file must be a mapping of settings")
    return raw or {}


def _place(err: Exception) -> str:
    """The YAML error without the piece of the file it quotes, which may be a secret."""
    mark = getattr(err, "problem_mark", None)
    at = f", line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
    return f"{getattr(err, 'problem', None) or getattr(err, 'reason', None) or type(err).__name__}{at}"


_REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def follow(raw: Any, folder: Path, path: str = "", depth: int = 0) -> Any:
    """Resolve `${NAME}`, `env:NAME` and `file:PATH` in string values; a relative PATH starts in `folder`."""
    if depth > 16:
        raise ConfigError(f"{path}: nested too deeply")
    if isinstance(raw, dict):
        return {k: follow(v, folder, f"{path}.{k}".lstrip("."), depth + 1) for k, v in raw.items()}
    if isinstance(raw, list):
        return [follow(v, folder, f"{path}[{i}]", depth + 1) for i, v in enumerate(raw)]
    return _resolve_text(raw, folder, path) if isinstance(raw, str) else raw


def _resolve_text(text: str, folder: Path, path: str) -> str:
    """Resolve the references in one string. An empty result is an error and does not unset the setting: without
    `shared` or `tls.client_ca`, for example, less would be checked."""
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
