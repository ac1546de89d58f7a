"""How large a prompt is, for the estimate of its tokens: bytes of text, and a flat amount for each image or sound.

Pure, and bounded in time: large bodies hold the loop for as long as this takes. Must not know what a token costs.
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
"""How images and audio in base64 begin and go on (`data`: those of Anthropic's API). Some JSON writers (PHP's) escape
its slashes. Looked for one by one: one expression for all of them takes 15 ms for a megabyte, these 3."""
_STEP: Final = 2048
_RUN: Final = re.compile(rb"[A-Za-z0-9+/=_\\-]{%d}" % _STEP)
"""What has no such run at a multiple of _STEP has no image of 4096 bytes. Of text a few bytes a step tell that."""
_MOST_BLOBS: Final = 1000
"""Of each kind in one text: a body made of their beginnings must not hold the loop. What is beyond counts as text."""
_BLOB_FROM: Final = 64 * 1024
"""A body up to this size counts as text whatever it holds: searching it would cost as much as decoding it."""
_BLOB_AS_BYTES: Final = 4096
"""What one image or sound counts for in place of its base64: about a thousand tokens."""


def prompt_bytes(body: bytes, members: Members, keys: tuple[str, ...]) -> int:
    """Size of the prompt in bytes, for an estimate: of a small body all of it, of a large one the members `keys`.

    In large ones an image or a sound counts as a flat amount, not as text.
    """
    if len(body) <= _BLOB_FROM:
        return len(body)
    total = 0
    for text in (bytes(members[key]) for key in keys if key in members):
        total += len(text) - _uncounted(text)
    return total


def _uncounted(text: bytes) -> int:
    """Bytes of images and sounds beyond their flat amount; of what stands inside another, the outer one's."""
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
