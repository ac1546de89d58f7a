"""Logs are JSON lines without secrets, and a reader that takes nothing blocks nobody."""

import asyncio
import contextlib
import io
import json
import logging
import os
import threading
import time
from datetime import datetime
from typing import Any

import pytest

from gateway import logs

KEY = "fg_Ab3dEf7hIj" + "kLmNoPqRsTuVwXyZ0123456789_-"
ENGINE = "sk-proj-abcdEFGH1234"
PASSWORD = "hunter2!:/#x"
TOKEN = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ1c2VyIn0.c2lnbmF0dXJlLXBhcnQ"
COOKIE = "session=c0ffee-c0ffee"
KNOWN = "plain-looking-backend-key"
FRAGMENTS = (
    "Ab3dEf7hIj",
    "kLmNoPqRs",
    "abcdEFGH",
    "hunter2",
    "c2lnbmF0",
    "eyJzdWI",
    "c0ffee",
    "plain-looking",
    "Zm9vOmJhcg",
)

FORMS = {
    "a header line": f"Authorization: Bearer {KEY}",
    "a lower-case header": f"authorization:{KEY}\r\nhost: x",
    "the repr of a dict": str({"Authorization": f"Bearer {KEY}", "host": "h", "cookie": COOKIE}),
    "the repr of pairs": str([(b"x-api-key", KEY.encode()), (b"cookie", COOKIE.encode())]),
    "basic": "proxy-authorization: Basic Zm9vOmJhcg==",
    "a scheme by itself": f"got Bearer {TOKEN}!",
    "a key by itself": f"key={KEY}, x{KEY}x",
    "an engine's key": f"header was {ENGINE}.",
    "a token": f"jwt {TOKEN}",
    "a DSN": f"postgresql://app:{PASSWORD}@db.internal:5432/fairgate?sslmode=require",
    "a redis DSN": f"redis://:{PASSWORD}@cache",
    "a keyword DSN": f"host=db password={PASSWORD} dbname=x",
    "a quoted keyword": f"host=db PGPASSWORD='{PASSWORD} and more' dbname=x",
    "JSON": json.dumps({"api_key": ENGINE, "client_secret": PASSWORD, "access_token": "c0ffee-c0ffee"}),
    "a query": f"GET /x?access_token={ENGINE}&token=c0ffee-c0ffee&y=1",
    "a known value": f"the engine said {KNOWN} is wrong",
    "a private key": "-----BEGIN PRIVATE KEY-----\nc0ffee\nhunter2\n-----END PRIVATE KEY-----",
    "a private key cut off": "-----BEGIN EC PRIVATE KEY-----\nc0ffee\nhunter2",
    "late in a long text": "x" * 7000 + " " + KEY,
    "on the cut": "x" * (logs.MAX_TEXT - 10) + f" {KEY} " + "y" * 9000,
    "on the far cut": "x" * (logs.MAX_SCRUBBED - 10) + f" {KEY}",
}


class Odd:
    def __str__(self) -> str:
        return f"odd {KEY}"


class Broken:
    def __str__(self) -> str:
        raise ValueError(KEY)


def fail(text: str) -> None:
    try:
        raise RuntimeError(text) from KeyError(text)
    except RuntimeError:
        logging.getLogger("t").exception("failed: %s", text, extra={"cause": text})


WAYS: dict[str, Any] = {
    "message": lambda text: logging.getLogger("t").info(text.replace("%", "%%")),
    "argument": lambda text: logging.getLogger("t").info("got %s", text),
    "bytes argument": lambda text: logging.getLogger("t").info("got %r", text.encode()),
    "field": lambda text: logging.getLogger("t").info("x", extra={"detail": text}),
    "bytes field": lambda text: logging.getLogger("t").info("x", extra={"detail": text.encode()}),
    "request id": lambda text: logging.getLogger("t").info("x", extra={"request_id": text}),
    "nested": lambda text: logging.getLogger("t").info("x", extra={"d": {"a": [{"b": (text,)}], text: 1}}),
    "deep": lambda text: logging.getLogger("t").info("x", extra={"d": [[[[[[[[text]]]]]]]]}),
    "exception": fail,
    "another library": lambda text: logging.getLogger("uvicorn.error").error("refused %s", text),
    "asyncio": lambda text: logging.getLogger("asyncio").error("Task exception\n%s", text),
    "arguments that do not fit": lambda text: logging.getLogger("t").info("%s %s " + text.replace("%", "%%"), 1),
}


@pytest.fixture
def out() -> io.StringIO:
    return io.StringIO()


def lines(out: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("form", FORMS)
def test_no_secret_comes_out(form: str, way: str, out: io.StringIO) -> None:
    """O3, K2: every form of a secret through every way into the log."""
    running = logs.setup("debug", secrets=[KNOWN, "tiny"], stream=out)
    try:
        WAYS[way](FORMS[form])
    finally:
        running.stop()
    assert len(lines(out)) == 1
    leaked = [fragment for fragment in FRAGMENTS if fragment in out.getvalue()]
    assert leaked == []


@pytest.mark.parametrize(
    "name", ["authorization", "Cookie", "api_key", "x-api-key", "password", "client_secret", "token"]
)
def test_fields_named_after_secrets_are_hidden(name: str, out: io.StringIO) -> None:
    """O3"""
    running = logs.setup(stream=out)
    logging.getLogger("t").info("x", extra={name: "any words", "d": {name: b"any words"}})
    running.stop()
    assert "any words" not in out.getvalue()


def test_scrubbing_leaves_ordinary_text_alone(out: io.StringIO) -> None:
    """O3: a log that hides what an operator needs is none."""
    texts = [
        "tokens=12 prompt_tokens: 7",
        "authorization failed for tenant t1",
        "task-scheduler-restarted",
        "http://10.0.0.5:11434/api/tags: status 500",
        "the bearer of bad news",
        "password is wrong",
        "モデル読込中",
    ]
    running = logs.setup(stream=out)
    for text in texts:
        logging.getLogger("t").info(text, extra={"first_token": 0.25})
    running.stop()
    assert [(line["event"], line["first_token"]) for line in lines(out)] == [(text, 0.25) for text in texts]


def test_one_line_of_json_with_its_fields(out: io.StringIO) -> None:
    """O3"""
    running = logs.setup("info", stream=out)
    log = logging.getLogger("gateway.test")
    log.debug("not wanted")
    log.warning("a\nb", extra={"request_id": "r1", "backend": "x", "level": "own", "n": 3, "ok": None})
    running.stop()
    (line,) = lines(out)
    moment = datetime.fromisoformat(line.pop("ts"))
    assert abs(moment.timestamp() - time.time()) < 60
    assert line == {
        "level": "warning",
        "logger": "gateway.test",
        "event": "a\nb",
        "request_id": "r1",
        "backend": "x",
        "level_": "own",
        "n": 3,
        "ok": None,
    }


@pytest.mark.parametrize(
    "value", ["\ud800", {"\udfff": "\ud800"}, 10**40, float("nan"), Broken(), Odd(), {1: {2}}, "\x00\x1b[31m\u2028"]
)
def test_whatever_a_field_holds_a_line_is_written(value: object, out: io.StringIO) -> None:
    """O3"""
    running = logs.setup(stream=out)
    logging.getLogger("t").info("x", extra={"value": value})
    running.stop()
    assert out.getvalue().count("\n") == 1
    assert lines(out)[0]["event"] == "x"
    assert "Ab3dEf7hIj" not in out.getvalue()


def test_long_values_are_cut(out: io.StringIO) -> None:
    """O3"""
    running = logs.setup(stream=out)
    cycle: list[Any] = []
    cycle.append(cycle)
    logging.getLogger("t").info("x" * 10**6, extra={"many": list(range(10**5)), "cycle": cycle})
    running.stop()
    assert len(out.getvalue()) < 2 * logs.MAX_TEXT
    assert "[1000000 characters]" in lines(out)[0]["event"]


@pytest.mark.parametrize(
    "text", ["a" * 16384, "://" * 6000, "sk-" * 6000, "eyJ" * 6000, "authorization: " * 1000, "'" * 16384]
)
def test_scrubbing_takes_no_time_to_speak_of(text: str) -> None:
    """O3: log lines hold what strangers sent; no pattern may be quadratic in it."""
    scrubber = logs.Scrubber([KNOWN])
    started = time.thread_time()
    scrubber.text(text)
    assert time.thread_time() - started < 0.1


def test_a_reader_that_takes_nothing_blocks_nobody() -> None:
    """O3: the loop goes on, memory is bounded, what is lost is counted and told when there is room."""
    read, write = os.pipe()
    stream = os.fdopen(write, "w")
    sink = logs.Sink(stream, logs.JsonFormatter(logs.Scrubber()), lines=50)
    log = logging.Logger("blocked")
    log.addHandler(sink)

    async def body() -> float:
        started = time.monotonic()
        for n in range(2000):
            log.info("line %d", n, extra={"pad": "x" * 1000})
        await asyncio.sleep(0)
        return time.monotonic() - started

    assert asyncio.run(body()) < 5.0
    assert sink.dropped > 1500
    taken: list[bytes] = []

    def drain() -> None:
        while piece := os.read(read, 65536):
            taken.append(piece)

    reader = threading.Thread(target=drain)
    reader.start()
    while not sink._lines.empty():
        time.sleep(0.001)
    log.info("after")
    sink.stop(10.0)
    stream.close()
    reader.join()
    os.close(read)
    written = [json.loads(line) for line in b"".join(taken).splitlines()]
    told = sum(line["count"] for line in written if line["event"] == "log lines dropped")
    assert told == sink.dropped
    assert sum(line["event"].startswith("line ") for line in written) + told == 2000
    assert "after" in {line["event"] for line in written}


def test_stop_does_not_wait_for_ever() -> None:
    """H13: an exit with a blocked standard error."""
    read, write = os.pipe()
    stream = os.fdopen(write, "w")
    sink = logs.Sink(stream, logs.JsonFormatter(logs.Scrubber()), lines=5)
    log = logging.Logger("blocked")
    log.addHandler(sink)
    for _ in range(500):
        log.info("x", extra={"pad": "x" * 1000})
    started = time.monotonic()
    sink.stop(0.2)
    assert time.monotonic() - started < 2.0
    os.close(read)  # the writer gets EPIPE and goes on to its end
    sink.stop(10.0)
    assert not sink._thread.is_alive()
    with contextlib.suppress(BrokenPipeError):  # what the stream still buffers has no reader
        stream.close()


def test_stop_puts_back_what_was_before(out: io.StringIO) -> None:
    root = logging.getLogger()
    before = (root.level, root.handlers[:])
    logs.setup("debug", stream=out).stop()
    assert (root.level, root.handlers[:]) == before
