"""The size of a prompt, for the estimate of its tokens: bytes of text, and a flat amount for each image or sound.

Pure, and bounded in time, because it blocks the loop for large bodies. Must not know what a token costs.
"""

import re
from typing import Final

from gateway.api.body import Members

_COLON: Final = rb"[ \t\r\n]*+:[ \t\r\n]*+"
_BLOBS: Final = (
    (b";base64,", re.compile(rb"[A-Za-z0-9+/=_\\-]*+")),
    (b'"images"', re.compile(rb"%b\[[^]]*+" % _COLON)),
    (b'"input_audio"', re.compile(rb"%b\{[^}]*+" % _COLON)),
    (b'"data"', re.compile(rb'%b"[A-Za-z0-9+/=_\\-]*+' % _COLON)),
)
"""How images and audio in base64 begin and continue (`data` is Anthropic's key). Some JSON writers (PHP's) escape
slashes. Searched one by one: a single expression for all of them takes 15 ms per megabyte, these take 3."""
_STEP: Final = 2048
_RUN: Final = re.compile(rb"[A-Za-z0-9+/=_\\-]{%d}" % _STEP)
"""A text that has no such run at a multiple of _STEP contains no image of 4096 bytes; for plain text, a few bytes per
step show that."""
_MOST_BLOBS: Final = 1000
"""Maximum blobs of each kind in one text, so that a body made of their beginnings cannot block the loop. Further ones
count as text."""
_BLOB_FROM: Final = 64 * 1024
"""A body up to this size counts as text whatever it contains: searching it would cost as much as decoding it."""
_BLOB_AS_BYTES: Final = 4096
"""Bytes that one image or sound counts for, instead of its base64: about a thousand tokens."""


def prompt_bytes(body: bytes, members: Members, keys: tuple[str, ...]) -> int:
    """Size of the prompt in bytes, for an estimate: the whole body if it is small, the members `keys` if it is large.

    In large bodies an image or a sound counts as a flat amount and not as text.
    """
    if len(body) <= _BLOB_FROM:
        return len(body)
    total = 0
    for text in (bytes(members[key]) for key in keys if key in members):
        total += len(text) - _uncounted(text)
    return total


def _uncounted(text: bytes) -> int:
    """Bytes of images and sounds beyond their flat amount; of nested matches only the outer one counts."""
    spans = []
    if not any(_RUN.match(text, at) for at in range(0, len(text), _STEP)):
        return 0
    for opening, rest in _BLOBS:
        at = text.find(opening)
        for _ in range(_MOST_BLOBS):
            if at < 0:
                break
            found = rest.match(text, at + len(opening))
            end = found.end() if found is not None else at + len(opening)
            if end - at > _BLOB_AS_BYTES:
                spans.append((at, end))
            at = text.find(opening, end)
    uncounted = reached = 0
    for start, end in sorted(spans):
        if start >= reached:
            uncounted += end - start - _BLOB_AS_BYTES
            reached = end
    return uncounted
