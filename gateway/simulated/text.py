"""The words, token counts and vectors of the simulated Ollama: deterministic, seeded by the request, pure.

Owns: a token estimate, a small prose generator, values that fit a JSON schema, embedding vectors.
Must not know: HTTP, time, which endpoint asked.
"""

import hashlib
import math
import random
import re
from collections.abc import Mapping
from typing import Any

# One CJK character, a run of at most seven letters, three digits or one other sign, each with the blanks before it:
# about 1.3 tokens per English word and 1 per CJK character, which is what byte-pair vocabularies give.
_TOKEN = re.compile(r"\s*(?:[\u2e80-\u9fff\uac00-\ud7af]|[^\W\d_]{1,7}|\d{1,3}|_|[^\w\s])|\s+")
_WORD = re.compile(r"[^\W\d_]{4,}")
_WANTED_WORDS = re.compile(r"\b(\d{1,5})[ -]words?\b", re.IGNORECASE)

_SUBJECTS = (
    "A patient queue",
    "The café on the corner",
    "An honest benchmark",
    "The night train to Zürich",
    "A well-kept log",
    "Every shared machine",
    "The lighthouse keeper",
    "A small fairness rule",
)
_VERBS = (
    "explains",
    "keeps",
    "quietly rewards",
    "measures",
    "remembers",
    "hands over",
    "balances",
    "outlasts",
)
_OBJECTS = (
    "what the loudest guest forgets",
    "one slot at a time",
    "the difference between waiting and being ignored",
    "a promise made in “plain words”",
    "the last byte of the stream",
    "its own naïve estimate",
    "ten thousand small decisions",
    "the weight of a single token",
)
_ENDINGS = (
    ".",
    ", and nobody has to shout.",
    " — even on a Monday.",
    "; 順番を待つのも仕事です。",
    ", give or take 0.5 °C.",
    " 🦙.",
    ", as the proverb says.",
    " ✨",
)


def tokens(text: str) -> list[str]:
    """Split `text` into token-sized pieces; joined they are `text` again."""
    return _TOKEN.findall(text)


def seed_of(*parts: object) -> int:
    """A stable 64-bit seed of the given values (their text form)."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest())


def prose(model: str, prompt: str, seed: int) -> str:
    """An answer to `prompt`: says that it is simulated, names the prompt's words, then a few sentences.

    A prompt that asks for "N words" gets about N of them (at most 99999).
    """
    draw = random.Random(seed)  # noqa: S311 - repeatable text, no secret
    wanted = _WANTED_WORDS.search(prompt)
    parts = [f"Simulated answer of {model}: no model runs here."]
    topic = list(dict.fromkeys(_WORD.findall(prompt)))[:4]
    if topic:
        parts.append(f"You wrote about {', '.join(topic)}.")
    limit = int(wanted.group(1)) if wanted else draw.randint(30, 90)
    words = sum(len(part.split()) for part in parts)
    while words < limit:
        sentence = f"{draw.choice(_SUBJECTS)} {draw.choice(_VERBS)} {draw.choice(_OBJECTS)}{draw.choice(_ENDINGS)}"
        parts.append(sentence)
        words += len(sentence.split())
    return " ".join(parts)


def reasoning(prompt: str, seed: int) -> str:
    """A short chain of thought before the answer of a model that thinks."""
    draw = random.Random(seed)  # noqa: S311 - repeatable text, no secret
    steps = draw.sample(_OBJECTS, 2)
    return f"(simulated thinking) The prompt has {len(prompt.split())} words. First {steps[0]}, then {steps[1]}."


def value_for(schema: Mapping[str, Any], prompt: str, seed: int) -> Any:
    """The smallest value that fits a JSON schema's type, enum, properties and items."""
    if schema.get("enum"):
        return schema["enum"][seed % len(schema["enum"])]
    kind = schema.get("type", "object" if "properties" in schema else "string")
    if isinstance(kind, list):
        kind = next((each for each in kind if each != "null"), "null")
    if kind == "object":
        properties: dict[str, Any] = schema.get("properties") or {}
        return {name: value_for(part, prompt, seed_of(seed, name)) for name, part in properties.items()}
    if kind == "array":
        return [value_for(schema.get("items") or {}, prompt, seed)]
    plain = {"integer": seed % 100, "number": (seed % 1000) / 10, "boolean": seed % 2 == 0, "null": None}
    if kind in plain:
        return plain[kind]
    proper = [word for word in _WORD.findall(prompt) if word[0].isupper()]
    return proper[-1] if proper else "simulated"


def vector(text: str, dimensions: int) -> list[float]:
    """A unit vector of `text`: the sum of one seeded direction per token, so shared words mean nearer vectors."""
    total = [0.0] * dimensions
    for piece in tokens(text) or [""]:
        draw = random.Random(seed_of("embedding", piece.strip().lower()))  # noqa: S311 - repeatable, no secret
        for index in range(dimensions):
            total[index] += draw.uniform(-1.0, 1.0)
    norm = math.sqrt(sum(value * value for value in total)) or 1.0
    return [value / norm for value in total]
