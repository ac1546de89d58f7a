"""A model as the dialects' lists show it. Plain data.

Not compiled (`hatch_build.py`): workers send it to each other.
"""

import msgspec


class ModelInfo(msgspec.Struct, frozen=True):
    """A usable model as lists show it. `created` is in Unix seconds; `context` is in tokens, 0 if no engine reports it;
    `detail` is the engine's own `/api/tags` record."""

    name: str
    created: int = 0
    owned_by: str = "fairgate"
    context: int = 0
    size: int = 0
    digest: str = ""
    loaded: bool = False
    detail: dict[str, object] = {}
    running: dict[str, object] = {}  # the engine's own `/api/ps` record while loaded
