"""H2 through the real server: every case of the corpus over a socket; what is refused closes and is never served."""

import pytest
import uvloop

from gateway.config import Caps, Timeouts
from gateway.http1.connection import Connection
from gateway.http1.server import HttpServer
from gateway.http1.wire import WireError
from tests.http1 import corpus
from tests.wire import Client

CASES = [case for case in corpus.cases("requests") if case.limit is None and case.want]
FILES = sorted({case.id.partition("/")[0] for case in CASES})


class Recorder:
    """Answers 200 to what can be served, and remembers it."""

    def __init__(self) -> None:
        self.served: list[str] = []

    async def request(self, connection: Connection) -> None:
        head = connection.head
        assert head is not None
        try:
            body = await connection.body()
        except WireError as error:
            self.malformed(connection, error)
            return
        self.served.append(str(corpus.Seen(head.method, head.path, head.target, head.headers, body)))
        connection.respond(200, b"", b"ok")

    def malformed(self, connection: Connection, error: WireError) -> None:
        connection.keep = False
        connection.respond(error.status, b"", error.reason.encode())

    def crowded(self, connection: Connection) -> None:
        connection.respond(503, b"", b"crowded")


async def _talk(port: int, case: corpus.Case) -> list[int]:
    """Send the case, read the answers that are due; checks the close where one is due."""
    client = await Client.connect(port)
    client.writer.write(case.send)  # not drained: a refused one is not read to its end
    statuses = []
    fields: dict[str, str] = {}
    due = case.want.split(" | ")
    for part in due:
        if part in ("part", "closed"):
            break
        status, fields, _ = await client.answer(head_only=part.startswith("HEAD "))
        statuses.append(status)
    if due[-1] == "closed" or due[-1].isdigit():
        assert fields["connection"] == "close"
        assert await _ended(client)
    else:
        assert fields.get("connection") != "close"
    client.reset()
    return statuses


async def _ended(client: Client) -> bool:
    try:
        return await client.at_end()
    except ConnectionResetError:  # closed with bytes of ours unread
        return True


@pytest.mark.parametrize("file", FILES)
def test_cases_over_a_socket(file: str) -> None:
    """H2: the status that is due, `Connection: close` and the close itself; served is only what was accepted."""

    async def main() -> None:
        recorder = Recorder()
        server = HttpServer(recorder, Caps(), Timeouts())
        port = await server.listen("127.0.0.1", 0)
        try:
            for case in CASES:
                if not case.id.startswith(file + "/"):
                    continue
                recorder.served.clear()
                statuses = await _talk(port, case)
                due = [part for part in case.want.split(" | ") if part not in ("part", "closed")]
                assert statuses == [int(part) if part.isdigit() else 200 for part in due], case.id
                assert recorder.served == [part for part in due if not part.isdigit()], case.id
        finally:
            await Client.close_all()
            server.close()

    uvloop.run(main())
