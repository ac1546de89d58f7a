"""How much a model should think, and what it thought, as members of a chat completion for self-hosted engines.

Pure. Must not know the API in which the client asked for it.
"""

from typing import Any, Final

_SWITCHES: Final = ("enable_thinking", "thinking")
"""Variables of chat templates. Those of Qwen, GLM and Nemotron read the first, those of DeepSeek, Kimi and Granite the
second; unknown variables are ignored."""
_NEAREST: Final = {"xhigh": "high", "max": "high"}
"""Levels that not every engine has -> the nearest level that all have."""


def switched(on: bool) -> dict[str, Any]:
    """Variables that vLLM, SGLang and llama.cpp pass to the model's template."""
    return {"chat_template_kwargs": dict.fromkeys(_SWITCHES, on)}


def with_effort(level: str) -> dict[str, Any]:
    """OpenAI's own member, for models that have levels."""
    return {"reasoning_effort": _NEAREST.get(level, level)}


def remembered(thoughts: str) -> dict[str, Any]:
    """Members of an assistant's message: what it thought before it spoke, which models need between calls of tools and
    their templates leave out elsewhere. vLLM and Ollama read the first name, SGLang and llama.cpp the second."""
    return {"reasoning": thoughts, "reasoning_content": thoughts} if thoughts else {}
