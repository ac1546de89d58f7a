"""Ollama's naming rule: `name` means `name:latest`. Applied wherever people write a model's name. Pure."""

from collections.abc import Iterable


def untagged(name: str) -> str:
    """The shorter spelling of a model's name."""
    return name.removesuffix(":latest")


def meant(names: Iterable[str]) -> frozenset[str]:
    """All models that a list of names may refer to."""
    given = frozenset(names)
    return given.union(f"{name}:latest" for name in given if ":" not in name.rpartition("/")[2])
