"""The parts of frames and answers in which engines report token usage and failures. Plain data.

Not compiled (`hatch_build.py`): these are records that need msgspec's options. Counts are accepted in any form of a
number: some JSON writers give integers a fraction of zero, and a count that cannot be read would make the answer free.
"""

import msgspec


class Details(msgspec.Struct, gc=False):
    cached_tokens: int | None = 0


class Block(msgspec.Struct, gc=False):
    """A `usage` object: OpenAI's for chat (`prompt_tokens`), for responses (`input_tokens`) and for rerank (sometimes
    only the total), or Anthropic's, whose `input_tokens` do not include those read from or written to a cache."""

    prompt_tokens: int | None = 0
    completion_tokens: int | None = 0
    prompt_tokens_details: Details | None = None
    input_tokens: int | None = 0
    output_tokens: int | None = 0
    input_tokens_details: Details | None = None
    total_tokens: int | None = 0
    cache_read_input_tokens: int | None = 0
    cache_creation_input_tokens: int | None = 0


class Timings(msgspec.Struct, gc=False):
    """llama.cpp's own counts; `prompt_n` does not include the cached part."""

    prompt_n: int = 0
    cache_n: int = 0
    predicted_n: int = 0


class Response(msgspec.Struct, gc=False):
    usage: Block | None = None


class Frame(msgspec.Struct, gc=False):
    """The relevant members of one JSON frame or whole answer, in any dialect."""

    usage: Block | None = None
    timings: Timings | None = None
    response: Response | str | None = None
    type: str | None = None
    done: bool | None = False
    prompt_eval_count: int | None = None
    eval_count: int | None = None


class Started(msgspec.Struct, tag="message_start", tag_field="type", gc=False):
    """The first event of an Anthropic stream."""

    message: Response | None = None


_NULL = msgspec.Raw(b"null")


class Outline(msgspec.Struct, gc=False):
    """The members that decide whether a client may see a frame. Raw, so that a member of an unexpected type cannot hide
    an error."""

    choices: msgspec.Raw = _NULL
    usage: msgspec.Raw = _NULL
    error: msgspec.Raw = _NULL
    type: msgspec.Raw = _NULL


FRAME = msgspec.json.Decoder(Frame, strict=False)
STARTED = msgspec.json.Decoder(Started, strict=False)
BLOCK = msgspec.json.Decoder(Block, strict=False)
OUTLINE = msgspec.json.Decoder(Outline)
