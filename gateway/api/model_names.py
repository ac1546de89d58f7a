"""Ollama's rule of names: `name` means `name:latest`. It holds wherever people write a model's name. Pure."""

from collections.abc import Iterable


def untagged(name: str) -> str:
    """The shorter spelling of a model's name."""
    return name.removesuffix(":latest")


def meant(names: Iterable[str]) -> frozenset[str]:
    """The models that a list of names may mean."""
    given = frozenset(names)
    return given.union(f"{name}:latest" for name in given if ":" not in name.rpartition("/")[2])
