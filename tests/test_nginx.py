"""The nginx of docs/deployment.md, as written there, in front of a gateway: streams are not held back."""

import asyncio
import re
import shutil
from pathlib import Path

import pytest
import uvloop

from gateway.config import Caps
from tests.flow.engine import SSE_HEAD, Engine, chunk, frame, hang
from tests.gateway import chat, gateway
from tests.servers import free_port, until
from tests.wire import WAIT, Client

PAGE = Path(__file__).resolve().parent.parent / "docs" / "deployment.md"
STEPS = 5
AROUND = """
daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;
events {{}}
http {{
    access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    {upstream}
    server {{ listen 127.0.0.1:{port}; {location} }}
}}
"""


def _page() -> str:
    """Without comments."""
    return re.sub(r"(?m)^ *#.*\n", "", PAGE.read_text(encoding="utf-8"))


def test_each_frame_passes_at_once_and_the_clients_address_is_the_proxys_word(tmp_path: Path) -> None:
    """H9: each frame arrives before the engine writes the next; what the client says of its address is not believed."""
    program = shutil.which("nginx")
    if program is None:
        pytest.skip("nginx is not on this machine (Debian package nginx-light)")
    found = re.search(r"```nginx\n(upstream .*?\n)\n(location .*?)```", _page(), re.DOTALL)
    assert found is not None
    assert f"client_max_body_size {Caps().body_bytes >> 20}m;" in found[2]

    async def steps(head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(SSE_HEAD + chunk(frame("0")))
        for number in range(1, STEPS):
            await engine.go.wait()
            engine.go.clear()
            writer.write(chunk(frame(str(number))))
        await hang(head, body, reader, writer)

    async def main() -> None:
        async with engine, gateway(engine.url, trusted_proxies=["127.0.0.1/32"]) as g:
            port, conf = free_port(), tmp_path / "nginx.conf"
            upstream = found[1].replace("127.0.0.1:8080", g.url.removeprefix("http://"))
            text = AROUND.format(folder=tmp_path, port=port, upstream=upstream, location=found[2])
            conf.write_text(text, encoding="utf-8")
            process = await asyncio.create_subprocess_exec(program, "-c", str(conf), "-p", str(tmp_path))
            try:
                await asyncio.to_thread(until, lambda: (tmp_path / "pid").exists(), WAIT, lambda: "nginx did not start")
                client = await Client.connect(port)
                forged = "X-Forwarded-For: 203.0.113.9\r\n"
                await client.send(g.request("/v1/chat/completions", chat(stream=True), extra=forged))
                async with asyncio.timeout(WAIT):
                    for number in range(STEPS):  # the engine says the next only after this one has arrived
                        assert frame(str(number)) in await client.reader.readuntil(frame(str(number)))
                        engine.go.set()
                client.close()
                (record,) = await g.records(1)
                assert (record["ip"], record["outcome"]) == ("127.0.0.1", "client_gone")
            finally:
                process.terminate()
                await process.wait()

    engine = Engine(steps)
    uvloop.run(main())
