"""Other names for models (A9): aliases, and categories that stand for the best usable model of a group. Pure."""

from collections.abc import Callable, Mapping

from gateway.api.model_info import ModelInfo
from gateway.config import Category
from gateway.services.route import Route


class Names:
    """The names of one generation of the configuration.

    A category selects its preferred model if the key may use it, else a loaded model of the group, else the first one
    that the key may use; never a model outside the group.
    """

    __slots__ = ("_aliases", "_categories", "some")

    def __init__(self, aliases: Mapping[str, str], categories: Mapping[str, Category]) -> None:
        self._aliases = aliases
        self._categories = categories
        self.some = bool(aliases or categories)
        """Whether any name is configured. Most gateways have none, and their requests should not pay for it."""

    def find(
        self, asked: str, usable: Callable[[str], Route | None], loaded: Callable[[], frozenset[str]]
    ) -> Route | None:
        """The route for a name. `usable`: model -> its route if this key may use it; `loaded`: the models in memory."""
        name = self._aliases.get(asked, asked)
        group = self._categories.get(name)
        if group is None:
            return usable(name)
        preferred = usable(group.preferred) if group.preferred else None
        if preferred is not None:
            return preferred
        routes = [route for model in group.models if (route := usable(model)) is not None]
        ready = loaded() if len(routes) > 1 else frozenset()
        return min(routes, key=lambda route: route.model not in ready, default=None)

    def listed(self, exists: Callable[[str], bool]) -> list[ModelInfo]:
        """The names that lead to at least one model for which `exists` is true."""
        names = [name for name, model in self._aliases.items() if self._leads_somewhere(model, exists)]
        names += [name for name in self._categories if self._leads_somewhere(name, exists)]
        return [ModelInfo(name=name) for name in names]

    def _leads_somewhere(self, name: str, exists: Callable[[str], bool]) -> bool:
        group = self._categories.get(name)
        return exists(name) if group is None else any(exists(model) for model in group.models)
