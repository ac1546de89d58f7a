"""Lists the models: where they are, and by which other names they can be requested. Pure."""

from collections.abc import Mapping, Sequence

import msgspec

from gateway.api.model_info import ModelInfo
from gateway.api.model_names import untagged
from gateway.config import Config


class Found(msgspec.Struct):
    """One model: the backends that have it, those that have it loaded, and its aliases and categories."""

    model: str
    backends: list[str]
    loaded: list[str]
    names: list[str]


def gathered(config: Config, seen: Mapping[str, Sequence[ModelInfo]]) -> list[Found]:
    """Backend -> what it has, by model, in order of name."""
    found: dict[str, Found] = {}
    for backend, models in seen.items():
        for model in models:
            row = found.setdefault(model.name, Found(model.name, [], [], _names(config, model.name)))
            row.backends.append(backend)
            if model.loaded:
                row.loaded.append(backend)
    return [found[name] for name in sorted(found)]


def _names(config: Config, model: str) -> list[str]:
    """Categories that contain the model, and aliases of the model and of these (A9)."""
    own = {model, untagged(model)}
    groups = [name for name, group in config.categories.items() if own.intersection(group.models)]
    return groups + [alias for alias, target in config.aliases.items() if target in own.union(groups)]
