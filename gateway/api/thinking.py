"""What a model is to think and what it thought, in the words of OpenAI's chat completions as hosted engines take them.

Pure. Must not know in which API's words it was asked.
"""

from typing import Any, Final

_SWITCHES: Final = ("enable_thinking", "thinking")
"""Variables of chat templates. Those of Qwen, GLM and Nemotron read the first, those of DeepSeek, Kimi and Granite the
second; none minds the other."""
_NEAREST: Final = {"xhigh": "high", "max": "high"}
"""Levels that not every engine has -> the nearest that each takes."""


def switched(on: bool) -> dict[str, Any]:
    """What vLLM, SGLang and llama.cpp hand to the model's template."""
    return {"chat_template_kwargs": dict.fromkeys(_SWITCHES, on)}


def with_effort(level: str) -> dict[str, Any]:
    """OpenAI's own word, of models that have levels."""
    return {"reasoning_effort": _NEAREST.get(level, level)}


def remembered(thoughts: str) -> dict[str, Any]:
    """Members of an assistant's message: what it thought before it spoke, which models need between calls of tools and
    their templates leave out elsewhere. vLLM and Ollama read the first name, SGLang and llama.cpp the second."""
    return {"reasoning": thoughts, "reasoning_content": thoughts} if thoughts else {}
