"""Token usage of one request, as reported by its engine or counted here. A pure fact."""

from dataclasses import dataclass
from typing import Final


@dataclass(init=False)
class Usage:
    """Tokens of one request. `cached_tokens` are part of `prompt_tokens`. Not `reported`: counted here, an estimate."""

    prompt_tokens: Final[int]
    completion_tokens: Final[int]
    cached_tokens: Final[int]
    reported: Final[bool]

    def __init__(
        self, prompt_tokens: int = 0, completion_tokens: int = 0, cached_tokens: int = 0, reported: bool = True
    ) -> None:
        self.prompt_tokens = prompt_tokens
        self.completion_tokens = completion_tokens
        self.cached_tokens = cached_tokens
        self.reported = reported
