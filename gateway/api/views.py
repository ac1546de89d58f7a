"""The views of frames and answers in which engines report token usage and failures. Pure facts.

Not compiled (`hatch_build.py`): records keep their options and types. What counts is read in any form of a number: some
writers of JSON give whole ones a fraction of zero, and a count that cannot be read would make the answer free.
"""

import msgspec


class Details(msgspec.Struct, gc=False):
    cached_tokens: int | None = 0


class Block(msgspec.Struct, gc=False):
    """`usage`: OpenAI's of chat (`prompt_tokens`), of responses (`input_tokens`) and of rerank (some: the total), and
    Anthropic's, whose `input_tokens` leave out what was read from a cache or written to it."""

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
    """llama.cpp's own counts; `prompt_n` leaves the cached part out."""

    prompt_n: int = 0
    cache_n: int = 0
    predicted_n: int = 0


class Response(msgspec.Struct, gc=False):
    usage: Block | None = None


class Frame(msgspec.Struct, gc=False):
    """What matters of one JSON frame or whole answer, in any dialect."""

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
    """What decides whether a client may see a frame. Raw: a member of another type than the APIs' own must not hide an
    error."""

    choices: msgspec.Raw = _NULL
    usage: msgspec.Raw = _NULL
    error: msgspec.Raw = _NULL
    type: msgspec.Raw = _NULL


FRAME = msgspec.json.Decoder(Frame, strict=False)
STARTED = msgspec.json.Decoder(Started, strict=False)
BLOCK = msgspec.json.Decoder(Block, strict=False)
OUTLINE = msgspec.json.Decoder(Outline)
