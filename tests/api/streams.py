"""Random streams with what is true of them: payload, the payload a client should get, usage. For tests only."""

import json
from itertools import pairwise
from typing import Any, NamedTuple

from hypothesis import strategies as st

from gateway.api.usage import Usage

TEXTS = st.one_of(
    st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=20),
    st.sampled_from(
        [
            "data: [DONE]\n\n", '"usage":{"prompt_tokens":999}', '{"choices":[],"usage":{"prompt_tokens":9}}', "}\n",
            '"done":true}\n', "0\r\n\r\n", "\r\n1f\r\n", "日本語𝄞", "x" * 3000, '"choices":[{', "\\", '\\"',
        ]
    ),
)  # fmt: skip

COUNTS = st.integers(0, 10**6)

USAGES = st.builds(
    lambda p, c, cached, details: Usage(p + cached, c, cached if details else 0), COUNTS, COUNTS, COUNTS, st.booleans()
)


class Stream(NamedTuple):
    """`payload` as the engine sends it, `passed` without the extra frame, `frames` with data, the reported usage."""

    payload: bytes
    passed: bytes
    frames: int
    usage: Usage | None
    terminated: bool
    extra: bool


def block(usage: Usage) -> dict[str, Any]:
    """OpenAI's usage object."""
    value: dict[str, Any] = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
    if usage.cached_tokens:
        value["prompt_tokens_details"] = {"cached_tokens": usage.cached_tokens}
    return value


def content(text: str) -> dict[str, Any]:
    """One content frame."""
    return {"id": "c", "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}], "usage": None}


@st.composite
def events(draw: st.DrawFn) -> Stream:
    """An SSE stream of OpenAI's shape with a usage in an extra frame, on the last frame, or nowhere."""
    end = draw(st.sampled_from(["\n", "\n", "\r\n", "\r"]))
    style: dict[str, Any] = draw(
        st.sampled_from([{"separators": (",", ":")}, {}, {"separators": (",", ":"), "ensure_ascii": False}])
    )
    colon = draw(st.sampled_from(["data: ", "data:"]))
    values = [content(text) for text in draw(st.lists(TEXTS, max_size=6))]
    where = draw(st.sampled_from(["extra", "extra", "riding", "nowhere"]))
    usage = draw(USAGES) if where != "nowhere" else None
    if where == "riding":
        values.append(content("last") | {"usage": block(usage)})  # type: ignore[arg-type]
    frames = [colon + json.dumps(value, **style) + end * 2 for value in values]
    if draw(st.booleans()) and frames:
        frames.insert(draw(st.integers(0, len(frames) - 1)), ": keep-alive" + end * 2)
    hidden = ""
    if where == "extra":
        hidden = colon + json.dumps({"id": "c", "choices": [], "usage": block(usage)}, **style) + end * 2  # type: ignore[arg-type]
    terminated = draw(st.booleans())
    last = f"{colon}[DONE]{end * 2}" if terminated else ""
    text = "".join(frames)
    return Stream(
        payload=(text + hidden + last).encode(),
        passed=(text + last).encode(),
        frames=len(frames) + bool(hidden) + terminated,
        usage=usage if usage and (usage.prompt_tokens or usage.completion_tokens) else None,  # of nothing it is none
        terminated=terminated,
        extra=where == "extra",
    )


@st.composite
def messages(draw: st.DrawFn) -> Stream:
    """An SSE stream of Anthropic's shape. The prompt's tokens stand in the first event, the last one, or both (engines
    differ); input tokens leave out the cached ones."""
    end = draw(st.sampled_from(["\n", "\n", "\r\n", "\r"]))
    style: dict[str, Any] = draw(st.sampled_from([{"separators": (",", ":")}, {}]))
    read, written, fresh, told, output = (draw(COUNTS) for _ in range(5))
    counts = {"input_tokens": fresh}
    if draw(st.booleans()):
        counts |= {"cache_read_input_tokens": read, "cache_creation_input_tokens": written}
    else:
        read = written = 0
    where = draw(st.sampled_from(["first", "last", "both"]))
    first = {"last": {"input_tokens": told if fresh else 0}}.get(where, counts) | {"output_tokens": 1}
    last = ({} if where == "first" else counts) | {"output_tokens": output}
    values: list[dict[str, Any]] = [
        {"type": "message_start", "message": {"id": "msg_1", "content": [], "usage": first, "stop_reason": None}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *({"type": "content_block_delta", "index": 0, "delta": {"text": text}} for text in draw(st.lists(TEXTS))),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": last},
    ]
    terminated = draw(st.booleans())
    if terminated:
        values.append({"type": "message_stop"})
    before = draw(st.sampled_from(["", f": hello{end * 2}", f'event: ping{end}data: {{"type": "ping"}}{end * 2}']))
    frames = [f"event: {value['type']}{end}data: {json.dumps(value, **style)}{end * 2}" for value in values]
    text = (before + "".join(frames)).encode()
    prompt = fresh + read + written
    usage = Usage(prompt, output, read) if prompt else Usage(0, output, reported=False)
    return Stream(text, text, len(frames) + bool(before), usage, terminated, extra=False)


@st.composite
def lines(draw: st.DrawFn) -> Stream:
    """An NDJSON stream of Ollama's shape; zero counts are left out as Ollama does."""
    style: dict[str, Any] = draw(st.sampled_from([{"separators": (",", ":")}, {}]))
    end = draw(st.sampled_from(["\n", "\n", "\r\n"]))
    frames = [
        json.dumps({"model": "m", "message": {"role": "assistant", "content": text}, "done": False}, **style) + end
        for text in draw(st.lists(TEXTS, max_size=6))
    ]
    usage = None
    terminated = draw(st.booleans())
    if terminated:
        usage = Usage(draw(COUNTS), draw(COUNTS))
        counts = {"prompt_eval_count": usage.prompt_tokens, "eval_count": usage.completion_tokens}
        context = {"context": list(range(draw(st.sampled_from([0, 10, 20_000]))))}
        last = {"model": "m", "done": True, "done_reason": "stop", **context, "total_duration": 5}
        frames.append(json.dumps(last | {key: n for key, n in counts.items() if n}, **style) + end)
    text = "".join(frames).encode()
    return Stream(text, text, len(frames), usage, terminated, extra=False)


@st.composite
def framed(draw: st.DrawFn, payload: bytes) -> bytes:
    """`payload` in random HTTP chunks, the last chunk included."""
    out = b""
    for part in draw(cuts(payload)):
        out += b"%x%b\r\n%b\r\n" % (len(part), draw(st.sampled_from([b"", b";ext=1"])), part)
    return out + b"0\r\n\r\n"


@st.composite
def cuts(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """`data` in consecutive pieces: whole, small ones, or at a few random places."""
    size = draw(st.sampled_from([0, 0, 1, 2, 7, 64, 1000]))
    if size and len(data) < 4000 * size:
        return [data[at : at + size] for at in range(0, len(data), size)]
    places = sorted(draw(st.lists(st.integers(0, len(data)), max_size=8)))
    bounds = [0, *places, len(data)]
    return [data[a:b] for a, b in pairwise(bounds) if b > a]
