"""Translates an Ollama request to OpenAI's API, for engines that speak only that.

Pure. Left out: `keep_alive`, options without a counterpart, and unknown members. Refused: what would change the meaning
(raw prompts without a template, requests without a prompt). Must not know the answer, who is asking, or where the
request goes.
"""

from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Any, Final

from gateway.api import thinking
from gateway.api.whole_body import Object, a_string, an_array, an_object, decoded, encoded
from gateway.errors import BadRequest

CHAT: Final = b"/v1/chat/completions"
EMBED: Final = b"/v1/embeddings"

_OPTIONS: Final = ("temperature", "top_p", "top_k", "min_p", "seed", "presence_penalty", "frequency_penalty", "stop")
"""The members of `options` that have the same name there. `top_k` and `min_p` are known to vLLM, SGLang and
llama.cpp."""
_IMAGES: Final = {"/9j/": "jpeg", "R0lGOD": "gif", "UklGR": "webp"}
"""How the base64 of an image begins -> its type; otherwise it is a PNG."""


def chat(body: bytes, model: str, cap: int) -> bytes:
    """The body of a chat completion for a request to `/api/chat`. Raises BadRequest for what OpenAI's API cannot
    express."""
    asked = decoded(body)
    messages = asked.get("messages")
    if not messages:
        raise BadRequest("`messages` is required: the engine of this model loads it by itself", param="messages")
    return _completion(asked, _turns(an_array(messages, "messages")), model, cap)


def generate(body: bytes, model: str, cap: int) -> bytes:
    """The same for `/api/generate`: the prompt becomes a user message, as in the model's template."""
    asked = decoded(body)
    for member in ("raw", "suffix", "template", "context"):
        if asked.get(member):
            raise BadRequest(f"The engine of this model does not take `{member}`", param=member)
    if not asked.get("prompt"):
        raise BadRequest("`prompt` is required: the engine of this model loads it by itself", param="prompt")
    system = [{"role": "system", "content": asked["system"]}] if asked.get("system") else []
    user = {"role": "user", "content": _content(asked["prompt"], asked.get("images"))}
    return _completion(asked, [*system, user], model, cap)


def embed(body: bytes, model: str, cap: int) -> bytes:
    """The body of an embedding request for `/api/embed` or `/api/embeddings`."""
    asked = decoded(body)
    given = asked.get("input") if asked.get("input") is not None else asked.get("prompt")
    made = {"model": model, "input": given if given is not None else ""}
    return encoded(made | ({"dimensions": asked["dimensions"]} if asked.get("dimensions") else {}))


def _completion(asked: Object, messages: Sequence[Object], model: str, cap: int) -> bytes:
    options = an_object(asked.get("options") or {}, "options")
    limit = options.get("num_predict")
    made: dict[str, Any] = {
        "model": model,
        "messages": messages,
        "max_tokens": min(int(limit), cap) if limit is not None and limit > 0 else cap,
    }
    made |= {key: options[key] for key in _OPTIONS if options.get(key) is not None}
    if asked.get("tools"):
        made["tools"] = asked["tools"]
    if asked.get("format"):
        made["response_format"] = _format(asked["format"])
    if asked.get("logprobs"):
        made["logprobs"] = True
        made |= {"top_logprobs": asked["top_logprobs"]} if asked.get("top_logprobs") else {}
    think = asked.get("think")
    if think is not None:
        made |= thinking.with_effort(think) if isinstance(think, str) else thinking.switched(bool(think))
    if asked.get("stream") is not False:
        made |= {"stream": True, "stream_options": {"include_usage": True}}
    return encoded(made)


def _format(given: Any) -> Object:
    if given == "json":
        return {"type": "json_object"}
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": an_object(given, "format")}}


def _turns(messages: Sequence[Any]) -> list[Object]:
    """The messages. Ollama's tool calls need no ids: a result belongs to the first call of that tool without a
    result."""
    made: list[Object] = []
    calls = _OpenCalls()
    for number, given in enumerate(messages):
        message = an_object(given, f"messages.{number}")
        turn: dict[str, Any] = {"role": message.get("role")}
        turn["content"] = _content(message.get("content") or "", message.get("images"))
        turn |= thinking.remembered(a_string(message.get("thinking") or "", "thinking"))
        if message.get("tool_calls"):
            asked = an_array(message["tool_calls"], "tool_calls")
            turn["tool_calls"] = [
                _call(an_object(call, "tool_calls"), f"call_{number}_{n}") for n, call in enumerate(asked)
            ]
            calls.add(turn["tool_calls"])
        if message.get("role") == "tool":
            turn["tool_call_id"] = calls.answered(message.get("tool_call_id"), message.get("tool_name"))
        made.append(turn)
    return made


def _call(call: Object, otherwise: str) -> Object:
    function = an_object(call.get("function") or {}, "tool_calls")
    arguments = function.get("arguments") or {}
    text = arguments if isinstance(arguments, str) else encoded(arguments).decode()
    made = {"name": function.get("name"), "arguments": text}
    return {"id": str(call.get("id") or otherwise), "type": "function", "function": made}


class _OpenCalls:
    """Tool calls without a result so far. Each operation takes constant time, however many there are."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, None] = OrderedDict()  # ids, oldest first
        self._of_tool: dict[str, deque[str]] = {}  # name of a tool -> ids of its calls, including answered ones

    def add(self, calls: Sequence[Object]) -> None:
        for call in calls:
            self._open[call["id"]] = None
            self._of_tool.setdefault(str(call["function"]["name"]), deque()).append(call["id"])

    def answered(self, number: Any, tool: Any) -> str:
        """The id of the call that this result answers: the given one, else the oldest of that tool, else the oldest of
        all."""
        found = str(number) if number else self._oldest(str(tool))
        self._open.pop(found, None)
        return found

    def _oldest(self, tool: str) -> str:
        calls = self._of_tool.get(tool, ())
        while calls:
            if (call := calls.popleft()) in self._open:
                return call
        if not self._open:
            raise BadRequest("A tool result appears before any tool call", param="messages")
        return next(iter(self._open))


def _content(text: Any, images: Any) -> str | Sequence[Object]:
    if not isinstance(text, str):
        raise BadRequest("`content` must be a string", param="messages")
    if not images:
        return text
    parts = [{"type": "image_url", "image_url": {"url": _url(image)}} for image in an_array(images, "images")]
    return [{"type": "text", "text": text}, *parts]


def _url(image: Any) -> str:
    if not isinstance(image, str):
        raise BadRequest("`images` must be base64 strings", param="images")
    kind = next((kind for begin, kind in _IMAGES.items() if image.startswith(begin)), "png")
    return f"data:image/{kind};base64,{image}"
