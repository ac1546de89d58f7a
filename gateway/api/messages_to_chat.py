"""Translates an Anthropic request to OpenAI's chat completions, for engines that speak only those.

Pure. Left out: redacted thinking, the token budget for thinking, billing headers, `metadata` and unknown members.
Refused: what would change the meaning (documents, server tools). Must not know the answer, who is asking, or where the
request goes.
"""

from collections.abc import Sequence
from typing import Any, Final

from gateway.api import thinking
from gateway.api.whole_body import Object, a_string, an_array, an_object, decoded, encoded
from gateway.errors import BadRequest

PATH: Final = b"/v1/chat/completions"

_SAME: Final = ("temperature", "top_p", "top_k")
_CHOICES: Final = {"auto": "auto", "any": "required", "none": "none"}
_SWITCH: Final = {"enabled": True, "disabled": False}  # "adaptive" leaves it to the model, as its template does
_THOUGHTS: Final = ("thinking", "redacted_thinking")  # a tuple: not every value that clients send as a type is hashable

_BILLING: Final = "x-anthropic-billing-header:"
"""Start of a line that Claude Code puts in front of the system prompt, as a block of its own. It differs between
sessions, which would keep engines from reusing their prefix cache for the prompt behind it."""


def request(body: bytes, model: str, cap: int) -> bytes:
    """The body of a chat completion of at most `cap` tokens. Raises BadRequest for what chat completions cannot
    express."""
    asked = decoded(body)
    limit = asked.get("max_tokens")
    made: dict[str, Any] = {
        "model": model,
        "messages": _messages(asked),
        "max_tokens": cap if limit is None else min(int(limit), cap),
    }
    made |= {key: asked[key] for key in _SAME if asked.get(key) is not None}
    if asked.get("stop_sequences"):
        made["stop"] = asked["stop_sequences"]
    if asked.get("stream"):
        made |= {"stream": True, "stream_options": {"include_usage": True}}
    return encoded(made | _tools(asked) | _thought(asked) | _output(asked))


def _messages(asked: Object) -> list[Object]:
    """The turns behind one system message: many chat templates take no second one, and none between turns."""
    texts = [_system(asked.get("system"), "system")]
    turns: list[Object] = []
    for number, given in enumerate(an_array(asked.get("messages"), "messages")):
        name = f"messages.{number}"
        message = an_object(given, name)
        if message.get("role") == "system":
            texts.append(_system(message.get("content"), name))
        else:
            turns += _turn(message, name)
    text = "\n".join(text for text in texts if text)
    return [{"role": "system", "content": text}, *turns] if text else turns


def _system(given: Any, name: str) -> str:
    parts = _parts(given, name) if given else []
    if any(part["type"] != "text" for part in parts):
        raise BadRequest("`system` must contain text only", param=name)
    texts = [_without_billing(part["text"]) for part in parts]
    return "\n".join(text for text in texts if text)


def _without_billing(text: str) -> str:
    """Nothing but that line: a proxy in between may have joined the blocks."""
    return text.partition("\n")[2] if text.startswith(_BILLING) else text


def _turn(message: Object, name: str) -> list[Object]:
    content = message.get("content")
    if message.get("role") == "assistant":
        return [_assistant(content, name)]
    if isinstance(content, str):
        return [{"role": message.get("role"), "content": content}]
    return _user(message.get("role"), an_array(content, f"{name}.content"), name)


def _user(role: Any, blocks: Sequence[Any], name: str) -> list[Object]:
    """The messages for a user's turn. Tool results become messages of their own, before the user's other content,
    because they belong to the calls in the turn before."""
    results: list[Object] = []
    parts: list[Object] = []
    for given in blocks:
        block = an_object(given, name)
        if block.get("type") == "tool_result":
            said = _parts(block.get("content") or "", name)
            text = "\n".join(part["text"] for part in said if part["type"] == "text")
            results.append({"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": text})
            parts += [part for part in said if part["type"] != "text"]  # a tool message can hold text only
        else:
            parts += _parts([block], name)
    return [*results, {"role": role, "content": _content(parts)}] if parts else results


def _assistant(content: Any, name: str) -> Object:
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else an_array(content, f"{name}.content")
    thinks = [block for block in blocks if _kind(block, name) == "thinking"]
    calls = [_call(an_object(block, name)) for block in blocks if _kind(block, name) == "tool_use"]
    said = [block for block in blocks if _kind(block, name) not in ("tool_use", *_THOUGHTS)]
    made: dict[str, Any] = {"role": "assistant", "content": None}
    if said or not calls:
        made["content"] = _content(_parts(said, name))
    thoughts = [a_string(block.get("thinking") or "", "thinking") for block in thinks]
    made |= thinking.remembered("\n".join(thought for thought in thoughts if thought))
    return made | ({"tool_calls": calls} if calls else {})


def _kind(block: Any, name: str) -> Any:
    return an_object(block, name).get("type")


def _call(block: Object) -> Object:
    arguments = encoded(block.get("input") or {}).decode()
    return {
        "id": block.get("id"),
        "type": "function",
        "function": {"name": block.get("name"), "arguments": arguments},
    }


def _parts(content: Any, name: str) -> list[dict[str, Any]]:
    """Content as OpenAI's parts: texts and images."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    parts = []
    for given in an_array(content, name):
        block = an_object(given, name)
        kind = block.get("type")
        if kind == "text" and isinstance(block.get("text"), str):
            parts.append({"type": "text", "text": block["text"]})
        elif kind == "image":
            parts.append({"type": "image_url", "image_url": {"url": _url(an_object(block.get("source"), name), name)}})
        elif kind not in _THOUGHTS:
            raise BadRequest(f"The engine of this model does not accept content of type {str(kind)[:40]!r}", param=name)
    return parts


def _url(source: Object, name: str) -> str:
    kind, media, data, url = (source.get(member) for member in ("type", "media_type", "data", "url"))
    if kind == "base64" and isinstance(media, str) and isinstance(data, str):
        return f"data:{media};base64,{data}"
    if kind == "url" and isinstance(url, str):
        return url
    raise BadRequest(f"The engine of this model does not accept an image of source {str(kind)[:40]!r}", param=name)


def _content(parts: Sequence[Object]) -> str | Sequence[Object]:
    """One string if there is only text, which every chat template accepts; parts if there are images."""
    if all(part["type"] == "text" for part in parts):
        return "\n".join(part["text"] for part in parts)
    return parts


def _tools(asked: Object) -> dict[str, Any]:
    if not asked.get("tools"):
        return {}
    made: dict[str, Any] = {"tools": [_tool(an_object(tool, "tools")) for tool in an_array(asked["tools"], "tools")]}
    choice = asked.get("tool_choice")
    if choice is None:
        return made
    choice = an_object(choice, "tool_choice")
    made["tool_choice"] = _CHOICES.get(str(choice.get("type"))) or {
        "type": "function",
        "function": {"name": choice.get("name")},
    }
    return made | ({"parallel_tool_calls": False} if choice.get("disable_parallel_tool_use") else {})


def _tool(tool: Object) -> Object:
    if tool.get("type") not in (None, "custom"):
        raise BadRequest(
            f"The engine of this model does not support tools of type {str(tool['type'])[:40]!r}", param="tools"
        )
    function = {"name": tool.get("name"), "parameters": tool.get("input_schema") or {"type": "object"}}
    function |= {key: tool[key] for key in ("description", "strict") if tool.get(key)}
    return {"type": "function", "function": function}


def _thought(asked: Object) -> dict[str, Any]:
    switch = _SWITCH.get(str(an_object(asked.get("thinking") or {}, "thinking").get("type")))
    return {} if switch is None else thinking.switched(switch)


def _output(asked: Object) -> dict[str, Any]:
    """Output format and effort. Clients of the beta send the format as a top-level member."""
    config = an_object(asked.get("output_config") or {}, "output_config")
    form, effort = config.get("format") or asked.get("output_format"), config.get("effort")
    made = thinking.with_effort(effort) if isinstance(effort, str) else {}
    if form is None:
        return made
    schema = {"name": "answer", "schema": an_object(form, "output_config.format").get("schema")}
    return made | {"response_format": {"type": "json_schema", "json_schema": schema}}
