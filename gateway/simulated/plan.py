"""From a request to what the simulated model will say: a pure decision, made before a slot is taken.

Owns: prompt and token accounting, caps, stop words, tool calls, JSON output, thinking.
Must not know: pacing, slots, HTTP, which dialect asked.
"""

import json
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from gateway.simulated import text
from gateway.simulated.catalog import Model

# Tokens a chat template spends on the frame and on each message (Llama 3's, rounded).
_TEMPLATE_TOKENS = 10
_MESSAGE_TOKENS = 5
_DEFAULT_CONTEXT = 4096
_TOOL_HINTS = re.compile(r"\b(use|call|tool|function|weather|look up)\b", re.IGNORECASE)

Kind = Literal["thinking", "content", "tool"]


@dataclass(frozen=True)
class Message:
    """One chat message as far as a model cares."""

    role: str
    content: str


@dataclass(frozen=True)
class Ask:
    """What one generation is asked for, whatever the dialect."""

    messages: list[Message]
    options: dict[str, Any] = field(default_factory=dict)
    tools: list[dict[str, Any]] = field(default_factory=list)
    format: str | dict[str, Any] | None = None
    think: bool | None = None
    raw: bool = False


@dataclass(frozen=True)
class Piece:
    """One generated token: its kind and its text, or for a tool call its function object."""

    kind: Kind
    text: str
    tool: dict[str, Any] | None = None


@dataclass(frozen=True)
class Plan:
    """All that will be said: pieces in order, prompt size in tokens, and why it ends (`stop` or `length`)."""

    pieces: list[Piece]
    prompt_tokens: int
    done_reason: str


def plan(model: Model, ask: Ask) -> Plan:
    """Decide the answer of `model` to `ask`; equal requests get equal answers (`options.seed` varies them)."""
    prompt = ask.messages[-1].content if ask.messages else ""
    seed = text.seed_of(model.name, ask.options.get("seed"), *((m.role, m.content) for m in ask.messages))
    pieces: list[Piece] = []
    if model.thinks and ask.think is not False:
        pieces += _pieces("thinking", text.reasoning(prompt, seed))
    called = _tool_for(ask, prompt)
    if called is not None:
        pieces.append(_tool_piece(called, prompt, seed))
    else:
        pieces += _pieces("content", _until_stop(_answer(model, ask, prompt, seed), ask.options.get("stop")))
    cap = _whole(ask.options.get("num_predict"))
    cut = cap is not None and 0 < cap < len(pieces)
    return Plan(
        pieces=pieces[:cap] if cut else pieces,
        prompt_tokens=prompt_tokens(ask),
        done_reason="length" if cut else "stop",
    )


def prompt_tokens(ask: Ask) -> int:
    """The prompt's size in tokens: template, messages and tools, at most the context (`options.num_ctx`)."""
    spent = 0 if ask.raw else _TEMPLATE_TOKENS + _MESSAGE_TOKENS * len(ask.messages)
    spent += sum(len(text.tokens(message.content)) for message in ask.messages)
    if ask.tools:
        spent += len(text.tokens(json.dumps(ask.tools)))
    return min(spent, _whole(ask.options.get("num_ctx")) or _DEFAULT_CONTEXT)


def _answer(model: Model, ask: Ask, prompt: str, seed: int) -> str:
    if isinstance(ask.format, dict) and ask.format:
        return json.dumps(text.value_for(ask.format, prompt, seed), ensure_ascii=False)
    if ask.format == "json":
        said = {"simulated": True, "model": model.name, "answer": text.prose(model.name, prompt, seed)}
        return json.dumps(said, ensure_ascii=False)
    return text.prose(model.name, prompt, seed)


def _until_stop(answer: str, stop: Any) -> str:
    words = [stop] if isinstance(stop, str) else [each for each in stop or () if isinstance(each, str)]
    ends = [answer.find(word) for word in words if word and word in answer]
    return answer[: min(ends)] if ends else answer


def _pieces(kind: Kind, said: str) -> list[Piece]:
    return [Piece(kind, part) for part in text.tokens(said)]


def _tool_for(ask: Ask, prompt: str) -> dict[str, Any] | None:
    """The function to call: only right after a user's message, and only if that message asks for it."""
    if not ask.tools or not ask.messages or ask.messages[-1].role != "user":
        return None
    functions = [tool.get("function") or {} for tool in ask.tools]
    lowered = prompt.lower()
    for function in functions:
        if any(part in lowered for part in str(function.get("name", "")).lower().split("_") if len(part) > 3):
            return function
    return functions[0] if _TOOL_HINTS.search(prompt) else None


def _tool_piece(function: dict[str, Any], prompt: str, seed: int) -> Piece:
    arguments = text.value_for({"type": "object"} | (function.get("parameters") or {}), prompt, seed)
    call = {
        "id": f"call_{seed:016x}"[:13],
        "function": {"index": 0, "name": function.get("name", ""), "arguments": arguments},
    }
    return Piece("tool", json.dumps(arguments, ensure_ascii=False), call)


def _whole(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
