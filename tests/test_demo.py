"""`fairgate demo` as a process: what it prints is true, and nothing of it outlives it."""

import contextlib
import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

DEMO = (sys.executable, "-m", "gateway", "demo", "--listen", "127.0.0.1:0")
DEADLINE = 30.0  # seconds, for what takes one on an idle machine
GONE = ("Z", "X", "")  # states of a process that runs no more


def real_ollama() -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("localhost", 11434), timeout=1):
        return True
    return False


pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc, which is missing"),
    pytest.mark.skipif(real_ollama(), reason="a real Ollama answers here: the demo would not start a simulated one"),
]


def state(pid: int) -> str:
    """The state letter of a process, empty when there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def children(pid: int) -> list[int]:
    """The processes it started."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_gone(pid: int) -> None:
    deadline = time.monotonic() + DEADLINE
    while state(pid) not in GONE:
        assert time.monotonic() < deadline, f"process {pid} still runs"
        time.sleep(0.02)


@contextlib.contextmanager
def started(folder: Path, *arguments: str, stderr: int | None = None) -> Iterator["subprocess.Popen[str]"]:
    """A demo in a session of its own, as a terminal would run it; its temporary files go to `folder`."""
    environment = os.environ | {"TMPDIR": str(folder)}
    command = [*DEMO, *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=stderr, text=True, start_new_session=True, env=environment
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def ready(folder: Path, *arguments: str) -> Iterator[tuple["subprocess.Popen[str]", dict[str, Any]]]:
    """A demo that has printed its JSON line: the process and the facts."""
    with started(folder, "--json", *arguments) as process:
        assert process.stdout is not None
        yield process, json.loads(process.stdout.readline())


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*DEMO, *arguments], capture_output=True, text=True, timeout=100, check=False)


def test_once_shows_five_commands_that_give_what_they_should() -> None:
    done = run("--once")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert "SIMULATED" in done.stdout
    assert done.stdout.count("as expected]") == 5
    assert "5 of 5 commands" in done.stdout
    assert done.stdout.count(" more lines ...") == 2, "the two streams are shown by their ends"


class Liar(http.server.BaseHTTPRequestHandler):
    """An engine that lists a model and fails at everything else."""

    def do_GET(self) -> None:
        body = json.dumps({"object": "list", "data": [{"id": "m", "object": "model"}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_error(500)

    def log_message(self, *_: object) -> None:
        """Tests print what they need."""


def test_once_fails_when_a_command_fails() -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Liar) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        done = run(
            "--once", "--backend", f"http://127.0.0.1:{server.server_port}", "--engine", "openai", "--model", "mine"
        )
        server.shutdown()
        thread.join()
    assert done.returncode == 1
    assert "UNEXPECTED" in done.stdout
    assert '"model": "mine"' in done.stdout, "the model that was named is the one that is tried"


@pytest.mark.parametrize("mode", ["--once", "--json"])
def test_a_backend_that_is_not_there_is_said_in_a_sentence(mode: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        done = run(mode, "--backend", f"http://127.0.0.1:{unused.getsockname()[1]}")
    assert done.returncode not in (0, None)
    assert "shows no models" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_taken_address_is_said_in_a_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = run("--once", "--listen", f"127.0.0.1:{taken.getsockname()[1]}")
    assert done.returncode not in (0, None)
    assert "in use; end what listens there, or listen elsewhere" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_json_line_tells_all_that_scripts_need(tmp_path: Path) -> None:
    with ready(tmp_path) as (process, facts):
        assert set(facts) == {"url", "admin_url", "key", "model", "embed_model", "pid"}
        assert facts["pid"] == process.pid
        assert facts["key"].startswith("fg_")
        own = {"Authorization": f"Bearer {facts['key']}"}
        names = {model["id"] for model in httpx.get(f"{facts['url']}/v1/models", headers=own).json()["data"]}
        assert {facts["model"], facts["embed_model"]} <= names
        assert "embed" in facts["embed_model"]
        assert "fairgate_" in httpx.get(f"{facts['admin_url']}/metrics").text
        assert httpx.get(f"{facts['url']}/playground").status_code == 200
        process.terminate()
        assert process.wait(DEADLINE) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_signal_ends_all_of_it(tmp_path: Path, number: signal.Signals) -> None:
    """H13: the whole foreground group gets it, as from a terminal; no process and no file stays."""
    with ready(tmp_path) as (process, facts):
        (engine,) = children(process.pid)
        assert list(tmp_path.iterdir())
        os.killpg(process.pid, number)
        assert process.wait(DEADLINE) == 0
        assert process.stdout is not None
        assert process.stdout.read() == ""
        wait_gone(engine)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(httpx.ConnectError):
        httpx.get(facts["url"])


def test_an_early_ctrl_c_ends_it_without_a_trace(tmp_path: Path) -> None:
    """Before the gateway listens: while the simulated Ollama starts."""
    with started(tmp_path, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + DEADLINE
        while not (engines := children(process.pid)):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=DEADLINE)
        assert (process.returncode, out, err) == (130, "", "")
        wait_gone(engines[0])
    assert list(tmp_path.iterdir()) == []


def test_sigkill_leaves_no_simulated_ollama(tmp_path: Path) -> None:
    with ready(tmp_path) as (process, _):
        (engine,) = children(process.pid)
        process.kill()
        wait_gone(engine)


def endless(facts: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    body = {"model": facts["model"], "messages": [{"role": "user", "content": "Write 90000 words"}], "stream": True}
    return f"{facts['url']}/v1/chat/completions", {"json": body, "headers": {"Authorization": f"Bearer {facts['key']}"}}


def test_the_second_ctrl_c_cuts_what_still_runs(tmp_path: Path) -> None:
    """H13: the first one lets a stream go on; the second one ends it at once, with all the rest."""
    with ready(tmp_path) as (process, facts):
        (engine,) = children(process.pid)
        url, request = endless(facts)
        with httpx.Client() as http, http.stream("POST", url, **request) as stream:
            lines = stream.iter_lines()
            next(lines)
            process.send_signal(signal.SIGINT)
            while _accepts(facts["url"]):
                time.sleep(0.02)
            for _ in range(10):
                next(lines)
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(httpx.RemoteProtocolError):
                assert not any(line == "data: [DONE]" for line in lines)
        assert process.wait(DEADLINE) == 0
        wait_gone(engine)
    assert list(tmp_path.iterdir()) == []


def _accepts(url: str) -> bool:
    try:
        httpx.get(f"{url}/healthz", timeout=1)
    except httpx.TransportError:
        return False
    return True


def test_what_is_printed_can_be_pasted(tmp_path: Path) -> None:
    """The five commands run in a shell, and the SDK snippet in Python, each as printed."""
    with started(tmp_path) as process:
        assert process.stdout is not None
        text = ""
        while "Ctrl-C" not in text:
            line = process.stdout.readline()
            assert line, text
            text += line
        assert "SIMULATED" in text.splitlines()[0]
        commands = [line for line in text.splitlines() if line.startswith("curl ")]
        assert len(commands) == 5
        if shutil.which("curl"):
            said = [
                subprocess.run(["/bin/sh", "-c", line], capture_output=True, text=True, check=True).stdout
                for line in commands
            ]
            expected = ["data: [DONE]", '"done":true', '"object":"list"', "invalid_api_key", "operation_blocked"]
            assert [want for want, got in zip(expected, said, strict=True) if want not in got] == [], said
        snippet = text[text.index("from openai import") : text.index("Ctrl-C")]
        answer = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True, check=True)
        assert "simulated" in answer.stdout.lower()
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE) == 0
