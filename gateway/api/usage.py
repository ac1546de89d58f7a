"""Token usage of one request, as reported by its engine or counted here. Plain data."""

from dataclasses import dataclass
from typing import Final

MOST: Final = 2**31 - 1
"""Maximum of a count. An engine may report anything; larger or negative counts would spoil sums, budgets and rows."""


@dataclass(init=False)
class Usage:
    """Tokens of one request, 0 to MOST each. `cached_tokens` are part of `prompt_tokens`. Not `reported` means that
    they were counted or estimated here."""

    prompt_tokens: Final[int]
    completion_tokens: Final[int]
    cached_tokens: Final[int]
    reported: Final[bool]

    def __init__(
        self, prompt_tokens: int = 0, completion_tokens: int = 0, cached_tokens: int = 0, reported: bool = True
    ) -> None:
        self.prompt_tokens = min(max(prompt_tokens, 0), MOST)
        self.completion_tokens = min(max(completion_tokens, 0), MOST)
        self.cached_tokens = min(max(cached_tokens, 0), self.prompt_tokens)
        self.reported = reported
