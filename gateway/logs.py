"""Logs: one JSON object per line, secrets scrubbed, written by a thread so that a slow reader never blocks the loop.

Owns the format, the scrubbing and the bounded queue. Use the standard library: `log.info("backend ejected",
extra={"backend": name, "request_id": id})`; every key of `extra` becomes a field. Must not know what is logged.
"""

import logging
import queue
import re
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final, TextIO

import msgspec

MAX_TEXT: Final = 8 * 1024  # characters of one value; longer ones are cut and marked
# Characters to scrub, more than MAX_TEXT so that the cut never splits a secret that should be hidden
MAX_SCRUBBED: Final = 16 * 1024
MAX_ITEMS: Final = 100
MAX_DEPTH: Final = 6
QUEUE_LINES: Final = 10_000  # about 3 MB
MIN_SECRET: Final = 6  # characters; replacing shorter configured values would hide ordinary words
HIDDEN: Final = "[redacted]"
# Loggers that write a line per call or, at debug level, whole header blocks.
NOISY: Final = ("httpx", "httpcore", "uvicorn.access")

_REST = r"[^\n]*"
_QUOTED_OR_WORD = r"""(?:'[^'\n]*'|"[^"\n]*"|[^\s"'&,;]+)"""
# (words of which the text in lower case must contain one, pattern, replacement). Checking the words first saves nine
# tenths of the time. Each pattern runs in linear time: its repeats are bounded, or anchored to a literal.
_RULES: Final[tuple[tuple[tuple[str, ...], re.Pattern[str], str], ...]] = (
    (
        ("private key-----",),
        re.compile(r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----.*?(?:-----END|\Z)", re.DOTALL),
        HIDDEN,
    ),
    # A header line, or a header in the repr of a dict or a list of pairs. Its value may contain anything, so the whole
    # rest of the line is hidden.
    (
        ("authorization", "api-key", "cookie"),
        re.compile(rf"""(?i)((?:authorization|x-api-key|api-key|cookie)["']?\s{{0,4}}[:=,]){_REST}"""),
        rf"\1 {HIDDEN}",
    ),
    (
        ("bearer", "basic"),
        re.compile(r"(?i)\b(bearer|basic)\s{1,4}[A-Za-z0-9._~+/=-]{6,}"),
        rf"\1 {HIDDEN}",
    ),
    (("fg_",), re.compile(r"fg_[A-Za-z0-9_-]{6,}"), f"fg_{HIDDEN}"),
    (("sk-",), re.compile(r"(?<![A-Za-z0-9])sk-[A-Za-z0-9_-]{6,}"), f"sk-{HIDDEN}"),
    (
        ("eyj",),
        re.compile(r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)?"),
        HIDDEN,
    ),
    # user:password@ of a DSN; a password may contain anything but blanks and quotes.
    (("://",), re.compile(r"""://[^\s"']{0,512}@"""), f"://{HIDDEN}@"),
    (
        ("passw", "passphrase", "secret", "api_key", "apikey", "token", "pwd"),
        re.compile(
            rf"""(?i)((?:password|passwd|passphrase|secret|api_?key|access_?token|refresh_?token|\btoken|\bpwd)"""
            rf"""["']?\s{{0,4}}[:=]\s{{0,4}}){_QUOTED_OR_WORD}"""
        ),
        rf"\1{HIDDEN}",
    ),
)
_SECRET_FIELDS: Final = re.compile(
    r"(?i)^(?:proxy-)?authorization$|cookie|password|passwd|passphrase|secret|^x?-?api[-_]?key$|_token$|^token$|^dsn$"
)


class Scrubber:
    """Hides secrets in text and nested values. `secrets`: known values (backend keys, DSN passwords) to hide."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._secrets: set[str] = set()
        self._known: re.Pattern[str] | None = None
        self.know(secrets)

    def know(self, secrets: Iterable[str]) -> None:
        """Hide these values too, in addition to earlier ones."""
        self._secrets.update(secret for secret in secrets if len(secret) >= MIN_SECRET)
        known = sorted(self._secrets, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, known))) if known else None

    def text(self, text: str) -> str:
        """At most MAX_TEXT characters of `text`, without its secrets."""
        scrubbed = text[:MAX_SCRUBBED]
        if self._known is not None:
            scrubbed = self._known.sub(HIDDEN, scrubbed)
        lower = scrubbed.lower()
        for signs, pattern, replacement in _RULES:
            if any(sign in lower for sign in signs):
                scrubbed = pattern.sub(replacement, scrubbed)
        if len(text) > MAX_TEXT:
            return f"{scrubbed[:MAX_TEXT]}... [{len(text)} characters]"
        return scrubbed

    def complaint(self, text: str) -> str:
        """Scrub `SETTING: reason` in two parts: in `client_secret: reason` the reason would otherwise be taken for the
        secret."""
        setting, colon, why = text.partition(": ")
        return f"{self.text(setting)}{colon}{self.text(why)}"

    def value(self, value: object, depth: int = 0) -> Any:
        """`value` in JSON types, bounded in depth and size. Unknown types become their `str`."""
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, bytes | bytearray | memoryview):
            return self.text(bytes(value[:MAX_SCRUBBED]).decode("utf-8", "replace"))
        if isinstance(value, str) or depth >= MAX_DEPTH:
            return self.text(_text(value))
        if isinstance(value, Mapping):
            some = list(value.items())[:MAX_ITEMS]
            return {self.text(_text(key)): self.field(_text(key), item, depth + 1) for key, item in some}
        if isinstance(value, list | tuple | set | frozenset):
            return [self.value(item, depth + 1) for item in list(value)[:MAX_ITEMS]]
        return self.text(_text(value))

    def field(self, name: str, value: object, depth: int = 0) -> Any:
        """A named value. If its name says that it is secret, the value is hidden, unless it is a number
        (`first_token`)."""
        if _SECRET_FIELDS.search(name) and not (value is None or isinstance(value, bool | int | float)):
            return HIDDEN
        return self.value(value, depth)


def _text(value: object) -> str:
    try:
        return str(value)
    except Exception as err:  # a foreign `__str__` failed; the line must still be written
        return f"<{type(value).__name__}: str() raised {type(err).__name__}>"


_PLAIN: Final = frozenset(vars(logging.LogRecord("", 0, "", 0, "", (), None))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """Formats a record as one line: ts (RFC 3339, UTC), level, logger, event, the common `fields`, request_id if there
    is one, then the record's own fields."""

    def __init__(self, scrubber: Scrubber, fields: Mapping[str, object] = MappingProxyType({})) -> None:
        super().__init__()
        self.scrubber = scrubber
        self._fields = fields

    def format(self, record: logging.LogRecord) -> str:
        """One line without its newline. Never raises, whatever the record contains."""
        scrubber = self.scrubber
        line: dict[str, Any] = {
            "ts": _timestamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": scrubber.text(_message(record)),
            **self._fields,
        }
        extra = {key: value for key, value in vars(record).items() if key not in _PLAIN}
        if "request_id" in extra:
            line["request_id"] = scrubber.value(extra.pop("request_id"))
        for key, value in extra.items():
            line[key if key not in line else f"{key}_"] = scrubber.field(key, value)
        if record.exc_info:
            line["exception"] = scrubber.text(self.formatException(record.exc_info))
        elif record.exc_text:
            line["exception"] = scrubber.text(record.exc_text)
        if record.stack_info:
            line["stack"] = scrubber.text(record.stack_info)
        return _encode(line)


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception as err:  # wrong arguments for the format: log that, and the format
        return f"{record.msg} [arguments do not fit: {type(err).__name__}]"


_LINE_ENDS: Final = {code: f"\\u{code:04x}" for code in (0x85, 0x2028, 0x2029)}


def _encode(line: dict[str, Any]) -> str:
    """JSON. Lone surrogates (file names, broken clients) become `?`, since UTF-8 cannot represent them.

    Unicode line separators, which JSON leaves as they are, are escaped: some readers would split the line there.
    """
    try:
        return msgspec.json.encode(line).decode().translate(_LINE_ENDS)
    except (UnicodeEncodeError, OverflowError):
        plain = {key: str(value).encode("utf-8", "replace").decode() for key, value in line.items()}
        return msgspec.json.encode(plain).decode().translate(_LINE_ENDS)


def _timestamp(created: float) -> str:
    seconds = int(created)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int((created - seconds) * 1000):03d}Z"


class Sink(logging.Handler):
    """Formats in the caller's thread and writes in its own. If the queue is full, a line is dropped and counted."""

    def __init__(self, stream: TextIO, formatter: logging.Formatter, lines: int = QUEUE_LINES) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.dropped = 0
        self._stream = stream
        self._lines: queue.Queue[str | None] = queue.Queue(lines)
        self._told = 0
        self._thread = threading.Thread(target=self._write, name="log-writer", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Never blocks and never raises: about 20 us, most of it scrubbing."""
        try:
            self._lines.put_nowait(self.format(record))
        except queue.Full:
            self.dropped += 1

    def stop(self, patience: float = 2.0) -> None:
        """Write what is queued, for at most `patience` seconds: a stalled reader must not block the exit."""
        deadline = time.monotonic() + patience
        try:
            self._lines.put(None, timeout=patience)
        except queue.Full:
            return
        self._thread.join(max(0.0, deadline - time.monotonic()))

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            self._put(line)
            if self.dropped > self._told:
                self._told, count = self.dropped, self.dropped - self._told
                self._put(
                    _encode(
                        {
                            "ts": _timestamp(time.time()),
                            "level": "warning",
                            "event": "log lines dropped",
                            "count": count,
                        }
                    )
                )

    def _put(self, line: str) -> None:
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except (OSError, ValueError):  # the reader is gone or the stream is closed: counted as dropped
            self.dropped += 1


class Logging:
    """The process's logging while it is set up; `stop()` restores what was before."""

    def __init__(self, sink: Sink, root: logging.Logger) -> None:
        self.sink = sink
        self._root = root
        self._before = (root.level, root.handlers[:])

    def stop(self) -> None:
        level, handlers = self._before
        self._root.handlers[:] = handlers
        self._root.setLevel(level)
        self.sink.stop()


def dropped() -> int:
    """Lines that the process's log has dropped because its reader was too slow."""
    return sum(handler.dropped for handler in logging.getLogger().handlers if isinstance(handler, Sink))


def know(secrets: Iterable[str]) -> None:
    """Hide these values too in the process's log: secrets of a later configuration."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, Sink) and isinstance(handler.formatter, JsonFormatter):
            handler.formatter.scrubber.know(secrets)


def setup(
    level: str = "info",
    *,
    secrets: Iterable[str] = (),
    stream: TextIO | None = None,
    fields: Mapping[str, object] = MappingProxyType({}),
) -> Logging:
    """Send everything the process logs through one sink, by default to standard error.

    `level`: as in the configuration (`log.level`). `secrets`: values to hide. `fields`: added to every line.
    """
    sink = Sink(stream or sys.stderr, JsonFormatter(Scrubber(secrets), fields))
    root = logging.getLogger()
    running = Logging(sink, root)
    root.handlers[:] = [sink]
    root.setLevel(level.upper())
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)
    return running
