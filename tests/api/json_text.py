"""JSON texts as strangers write them, and an independent reader of their top-level members. For tests only."""

import json
from typing import Any

from hypothesis import strategies as st

KEYS = st.one_of(
    st.sampled_from(["temperature", "top_p", "stop", "seed", "tools", "metadata", "é", 'a"b', "", "x\n", "options2"]),
    st.text(max_size=6).filter(lambda key: not _awkward(key)),
)

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**53), 2**53),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=12),
    st.sampled_from(['"model":"evil"', "}{][", 'a\\"b', "\\", "data: [DONE]\n\n", "𝄞"]),
)

VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=8,
)

OBJECTS = st.dictionaries(KEYS, VALUES, max_size=5)

STYLES = st.sampled_from(
    [
        {"separators": (",", ":")},
        {"separators": (",", ":"), "ensure_ascii": False},
        {},
        {"indent": 2},
        {"indent": "\t", "ensure_ascii": False},
        {"separators": (" ,\r\n", " : ")},
    ]
)

MARGINS = st.sampled_from(["", " ", "\n", "\r\n\t "])


GUARDED = {"n", "user", "name", "input", "model", "stream", "prompt", "n_cmpl"}
"""Guarded keys short enough to be drawn: hypothesis also draws words that stand in the source."""


def _awkward(key: str) -> bool:
    """Keys the gateway refuses or cannot encode: look-alikes of guarded ones, lone surrogates."""
    return any(0xD800 <= ord(c) <= 0xDFFF for c in key) or key.casefold() in GUARDED


@st.composite
def texts(draw: st.DrawFn, objects: st.SearchStrategy[dict[str, Any]]) -> tuple[dict[str, Any], bytes]:
    """An object and one of the ways to write it."""
    value = draw(objects)
    text = draw(MARGINS) + json.dumps(value, **draw(STYLES)) + draw(MARGINS)
    return value, text.encode()


def spans(body: bytes) -> dict[str, tuple[int, int]]:
    """Byte spans of the top-level values, found with the standard library's decoder."""
    text = body.decode()
    decoder = json.JSONDecoder()
    found = {}
    at = text.index("{") + 1
    while True:
        at = _skip(text, at, ",")
        if text[at] == "}":
            return found
        key, at = decoder.raw_decode(text, at)
        start = _skip(text, _skip(text, at, ":"), "")
        _, at = decoder.raw_decode(text, start)
        found[key] = (len(text[:start].encode()), len(text[:at].encode()))


def _skip(text: str, at: int, more: str) -> int:
    while text[at] in " \t\r\n" + more:
        at += 1
    return at


def spliced(body: bytes, replaced: dict[str, bytes], inserted: bytes) -> bytes:
    """`body` with the spans of present keys replaced and `inserted` after the opening brace: what an edit must give."""
    at = body.index(b"{") + 1
    out = body[:at] + inserted
    where = spans(body)
    for key in sorted(replaced, key=lambda key: where[key]):
        start, end = where[key]
        out += body[at:start] + replaced[key]
        at = end
    return out + body[at:]
