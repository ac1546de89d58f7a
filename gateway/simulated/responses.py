"""Ollama's Responses surface, simulated: `/v1/responses`, made from native frames.

Owns: Responses API bodies as Ollama reads them (nothing is stored, so nothing is continued), items, events and usage.
Must not know: slots and pace.
"""

import time
from typing import Any

import msgspec
import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.simulated.engine import Engine
from gateway.simulated.native import chat_frames, completing, find, merge_chat, read, thinking
from gateway.simulated.plan import Ask, Message, plan
from gateway.simulated.text import seed_of
from gateway.simulated.wire import SSE, Answer, Frame, Refusal, encode, openai_error

Items = str | list[dict[str, Any]] | None

_TEXTS = ("input_text", "output_text", "input_image")
_PART: Frame = {"type": "output_text", "text": "", "annotations": []}


class ResponsesBody(msgspec.Struct, kw_only=True):
    """Body of the route; null means absent, unknown fields are skipped."""

    model: str | None = None
    input: Items = None
    instructions: str | None = None
    stream: bool | None = None
    max_output_tokens: int | None = None
    tools: list[dict[str, Any]] | None = None
    text: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None


class ResponsesWriter:
    """Native chat frames as events of a response, or one response."""

    def __init__(self, name: str, seed: int) -> None:
        self._name = name
        self._seed = seed
        self._created = int(time.time())
        self._events = 0
        self._output: list[Frame] = []  # items; the last one is open while `_open`
        self._open = False

    def stream_type(self) -> str:
        """Server-sent events."""
        return SSE

    def error(self, refusal: Refusal) -> Response:
        """Error as an object."""
        return openai_error(refusal)

    def frame(self, frame: Frame) -> bytes:
        """The frame's events; before the first those that open the response, after the final one those that end it."""
        out = b"" if self._events else self._start()
        for item in self._items(frame["message"]):
            out += self._said(item)
        return out + self._end(frame) if frame["done"] else out

    def whole(self, frame: Frame) -> bytes:
        """The response, ended by a newline."""
        self._output = self._items(frame["message"])
        return encode(self._ended(frame)) + b"\n"

    def _response(self, status: str, **more: Any) -> Frame:
        head = {"id": f"resp_{self._seed:016x}", "object": "response", "created_at": self._created, "status": status}
        fixed = {"model": self._name, "parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "error": None}
        return {**head, **fixed, "output": self._output, "incomplete_details": None, **more}

    def _ended(self, frame: Frame) -> Frame:
        if frame["done_reason"] == "length":
            why = {"reason": "max_output_tokens"}
            return self._response("incomplete", incomplete_details=why, usage=_usage(frame))
        return self._response("completed", usage=_usage(frame))

    def _items(self, message: Frame) -> list[Frame]:
        """What a native message says, each as a finished item; their ids tell only the kind apart."""
        items: list[Frame] = []
        if message.get("thinking"):
            said = [{"type": "summary_text", "text": message["thinking"]}]
            items.append({"id": f"rs_{self._seed:016x}", "type": "reasoning", "summary": said})
        if message["content"]:
            part = {**_PART, "text": message["content"]}
            head = {"id": f"msg_{self._seed:016x}", "type": "message", "role": "assistant", "status": "completed"}
            items.append({**head, "content": [part]})
        for call in message.get("tool_calls", []):
            function = {key: call["function"][key] for key in ("name", "arguments")}
            function["arguments"] = orjson.dumps(function["arguments"]).decode()
            head = {"id": f"fc_{call['id']}", "type": "function_call", "status": "completed", "call_id": call["id"]}
            items.append({**head, **function})
        return items

    def _start(self) -> bytes:
        response = self._response("in_progress", usage=None)
        return self._event("response.created", response=response) + self._event(
            "response.in_progress", response=response
        )

    def _said(self, item: Frame) -> bytes:
        """An item's events: text and thoughts go on in the open item, each call is an item of its own."""
        out = b""
        if not self._open or self._output[-1]["type"] != item["type"] or item["type"] == "function_call":
            out = self._close() + self._begin(item)
        last = self._output[-1]
        place = {"item_id": last["id"], "output_index": len(self._output) - 1}
        match item["type"]:
            case "reasoning":
                text = item["summary"][0]["text"]
                last["summary"][0]["text"] += text
                return out + self._event("response.reasoning_summary_text.delta", **place, summary_index=0, delta=text)
            case "message":
                text = item["content"][0]["text"]
                last["content"][0]["text"] += text
                return out + self._event(
                    "response.output_text.delta", **place, content_index=0, delta=text, logprobs=[]
                )
            case _:
                last["arguments"] = item["arguments"]
                return out + self._event("response.function_call_arguments.delta", **place, delta=item["arguments"])

    def _begin(self, item: Frame) -> bytes:
        """The events before an item's first delta."""
        empty: dict[str, Frame] = {"reasoning": {"summary": []}, "message": {"content": []}}
        running = {**item, **empty.get(item["type"], {"arguments": ""})}
        if "status" in running:
            running["status"] = "in_progress"
        index = len(self._output)
        out = self._event("response.output_item.added", output_index=index, item=running)
        place = {"item_id": item["id"], "output_index": index}
        if item["type"] == "message":
            running["content"] = [{**_PART}]
            out += self._event("response.content_part.added", **place, content_index=0, part=_PART)
        elif item["type"] == "reasoning":
            running["summary"] = [{"type": "summary_text", "text": ""}]
            part = running["summary"][0]
            out += self._event("response.reasoning_summary_part.added", **place, summary_index=0, part=part)
        self._output.append(running)
        self._open = True
        return out

    def _close(self) -> bytes:
        """The events after the open item's last delta."""
        if not self._open:
            return b""
        self._open = False
        item, index = self._output[-1], len(self._output) - 1
        if "status" in item:
            item["status"] = "completed"
        return self._full(item, {"item_id": item["id"], "output_index": index}) + self._event(
            "response.output_item.done", output_index=index, item=item
        )

    def _full(self, item: Frame, place: Frame) -> bytes:
        """The item's text once more, whole."""
        match item["type"]:
            case "message":
                part = item["content"][0]
                place = {**place, "content_index": 0}
                done = self._event("response.output_text.done", **place, text=part["text"], logprobs=[])
                return done + self._event("response.content_part.done", **place, part=part)
            case "reasoning":
                part = item["summary"][0]
                place = {**place, "summary_index": 0}
                done = self._event("response.reasoning_summary_text.done", **place, text=part["text"])
                return done + self._event("response.reasoning_summary_part.done", **place, part=part)
            case _:
                given = {"arguments": item["arguments"], "name": item["name"]}
                return self._event("response.function_call_arguments.done", **place, **given)

    def _end(self, frame: Frame) -> bytes:
        out, ended = self._close(), self._ended(frame)
        return out + self._event(f"response.{ended['status']}", response=ended)

    def _event(self, kind: str, **members: Any) -> bytes:
        data = encode({"type": kind, "sequence_number": self._events, **members})
        self._events += 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)


def _usage(frame: Frame) -> Frame:
    prompt, completion = frame.get("prompt_eval_count", 0), frame.get("eval_count", 0)
    return {
        "input_tokens": prompt,
        "output_tokens": completion,
        "total_tokens": prompt + completion,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    }


def _text(content: Items) -> str:
    """All text of an item's content; Refusal 400 for parts that are none of Ollama's."""
    if content is None or isinstance(content, str):
        return content or ""
    for part in content:
        if part.get("type") not in _TEXTS:
            raise Refusal(400, f"unknown content type: {part.get('type')}")
    return "".join(str(part.get("text", "")) for part in content)


def _flat(item: dict[str, Any]) -> Message | None:
    """The native message of one item; None for thoughts. Raises Refusal 400 for items that are none of Ollama's."""
    match item.get("type") or ("message" if item.get("role") else ""):
        case "message":
            return Message(str(item.get("role")), _text(item.get("content")))
        case "function_call":
            return Message("assistant", "")
        case "function_call_output":
            return Message("tool", _text(item.get("output")))
        case "reasoning":
            return None
        case other:
            raise Refusal(400, f'unknown input item type: "{other}"')


def _ask(body: ResponsesBody, think: bool | None) -> Ask:
    given = [{"role": "user", "content": body.input}] if isinstance(body.input, str) else body.input or []
    system = [Message("system", body.instructions)] if body.instructions else []
    shape = (body.text or {}).get("format") or {}
    return Ask(
        messages=system + [message for item in given if (message := _flat(item)) is not None],
        options={"num_predict": body.max_output_tokens},
        tools=[{"function": tool} for tool in body.tools or [] if tool.get("type") == "function"],
        format=shape.get("schema") if shape.get("type") == "json_schema" else None,
        think=think,
    )


class ResponsesRoutes:
    """The handler of `/v1/responses` over one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def routes(self) -> list[Route]:
        """The route table."""
        return [Route("/v1/responses", self.responses, methods=["POST"])]

    async def responses(self, request: Request) -> Response:
        """One response; streams only when asked."""
        body = await read(request, ResponsesBody)
        model, name = find(self._engine, body.model), body.model or ""
        completing(model, name, "chat")
        effort = (body.reasoning or {}).get("effort")
        ask = _ask(body, thinking(model, name, effort) if model.thinks else False)
        frames = chat_frames(self._engine, model, name, plan(model, ask), None)
        return Answer(frames, merge_chat, ResponsesWriter(name, seed_of(time.time_ns(), name)), bool(body.stream))
