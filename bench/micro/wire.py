"""Pieces of `gateway.http1`'s parsing: request, response head, chunk walk and decode, head writing.

Names and calls only; `bench/micro/__main__.py` times them.
"""

from collections.abc import Callable, Iterator

from gateway.http1.chunks import LAST_CHUNK, ChunkDecoder, ChunkWalker, encode_chunk
from gateway.http1.reply import parse_response_head
from gateway.http1.wire import RequestReader

Named = tuple[str, Callable[[], object]]

SDK_FIELDS = (
    b"Host: fairgate.example.org:8080\r\nAccept: application/json\r\nAccept-Encoding: gzip, deflate\r\n"
    b"Connection: keep-alive\r\nContent-Type: application/json\r\nUser-Agent: OpenAI/Python 1.60.0\r\n"
    b"X-Stainless-Lang: python\r\nX-Stainless-Package-Version: 1.60.0\r\nX-Stainless-OS: Linux\r\n"
    b"X-Stainless-Arch: x64\r\nX-Stainless-Runtime: CPython\r\nX-Stainless-Runtime-Version: 3.11.7\r\n"
    b"Authorization: Bearer fg-0123456789abcdef0123456789abcdef\r\nX-Stainless-Async: false\r\n"
    b"x-stainless-retry-count: 0\r\n"
)
CURL_FIELDS = (
    b"Host: localhost:8080\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\nAuthorization: Bearer fg-0123456789\r\n"
)
RESPONSE = (
    b"HTTP/1.1 200 OK\r\ndate: Sat, 21 Nov 2026 08:29:01 GMT\r\nserver: uvicorn\r\n"
    b"content-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\nx-request-id: abcdef\r\n"
    b"connection: keep-alive\r\nx-accel-buffering: no\r\ntransfer-encoding: chunked\r\n\r\n"
)
FRAME = encode_chunk(b"data: " + b"y" * 242 + b"\n\n")


def requests() -> Iterator[Named]:
    """Whole requests on one kept connection: feed, take the body, advance."""
    post = b"POST /v1/chat/completions HTTP/1.1\r\n" + SDK_FIELDS
    shapes = [
        ("GET, 4 fields", b"GET /v1/models HTTP/1.1\r\n" + CURL_FIELDS + b"\r\n"),
        ("SDK chat, 16 fields, 300 B", post + b"Content-Length: 300\r\n\r\n" + b"x" * 300),
        ("SDK chat, 16 fields, 32 KB", post + b"Content-Length: 32768\r\n\r\n" + b"x" * 32768),
        ("SDK chat, 16 fields, 300 B chunked", post + b"Transfer-Encoding: chunked\r\n\r\n" + _chunked(b"x" * 300)),
    ]
    for name, wire in shapes:
        yield f"request {name}", _one_request(RequestReader(), wire)


def _chunked(payload: bytes) -> bytes:
    return encode_chunk(payload) + LAST_CHUNK


def _one_request(reader: RequestReader, wire: bytes) -> Callable[[], None]:
    def call() -> None:
        reader.feed(wire)
        reader.take_body()
        reader.advance()

    return call


def responses() -> Iterator[Named]:
    """Heads of backends."""
    yield "response head, 8 fields", lambda: parse_response_head(RESPONSE, "POST")


def frames() -> Iterator[Named]:
    """One SSE frame of 250 bytes a read, and many."""
    walker = ChunkWalker()
    yield "walk one frame", lambda: walker.walk(FRAME)
    many = FRAME * 20
    yield "walk 20 frames", lambda: walker.walk(many)
    half = len(FRAME) // 2
    first, second = FRAME[:half], FRAME[half:]
    yield "walk one frame in two reads", lambda: (walker.walk(first), walker.walk(second))
    large = encode_chunk(b"x" * 100_000)
    yield "walk one chunk of 100 KB", lambda: walker.walk(large)
    decoder = ChunkDecoder()
    yield "decode one frame", lambda: decoder.decode(FRAME)
    yield "encode one frame", lambda: encode_chunk(FRAME)


def parts() -> Iterator[Named]:
    """All of them."""
    yield from requests()
    yield from responses()
    yield from frames()
