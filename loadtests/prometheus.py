"""A real Prometheus that scrapes a gateway every second, and what to ask it: `promtool` on the page, PromQL by HTTP.

Owns the process and its folder. Needs the programs of Debian's package prometheus.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from pathlib import Path
from types import TracebackType

from tests.process import RigError
from tests.servers import free_port

WAIT = 20.0  # seconds
Labels = tuple[tuple[str, str], ...]


class Prometheus:
    """A context manager. `target` is HOST:PORT of an admin listener."""

    def __init__(self, target: str, folder: Path) -> None:
        for program in ("prometheus", "promtool"):
            if shutil.which(program) is None:
                raise RigError(f"{program} is not on PATH (Debian: apt-get install prometheus)")
        self.address = f"127.0.0.1:{free_port()}"
        self._folder = folder
        job = {"job_name": "fairgate", "static_configs": [{"targets": [target]}]}
        config = {"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}, "scrape_configs": [job]}
        (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Prometheus:
        files = [f"--config.file={self._folder}/prometheus.yml", f"--storage.tsdb.path={self._folder}/data"]
        command = ["prometheus", *files, f"--web.listen-address={self.address}", "--log.level=error"]
        self._process = subprocess.Popen(command)
        self.until("up == 1")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()

    def ask(self, query: str) -> dict[Labels, float]:
        """The instant vector of a query: labels without the name, sorted -> value."""
        url = f"http://{self.address}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=10) as answer:
            result = json.load(answer)["data"]["result"]
        return {
            tuple(sorted((k, v) for k, v in row["metric"].items() if k != "__name__")): float(row["value"][1])
            for row in result
        }

    def until(self, query: str) -> None:
        """Wait until a query has an answer. Raises RigError."""
        deadline = time.monotonic() + WAIT
        while True:
            try:
                if self.ask(query):
                    return
            except OSError:  # not up yet
                pass
            if time.monotonic() > deadline:
                raise RigError(f"Prometheus has no answer to {query}")
            time.sleep(0.1)

    def settled(self, query: str) -> dict[Labels, float]:
        """The answer once it did not change over two scrapes."""
        deadline = time.monotonic() + WAIT
        before = self.ask(query)
        while time.monotonic() < deadline:
            time.sleep(2.5)
            now = self.ask(query)
            if now == before:
                return now
            before = now
        raise RigError(f"{query} does not come to rest")


def complaints(page: bytes) -> list[str]:
    """What `promtool check metrics` has to say about a metrics page; nothing is what it should say."""
    done = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True, check=False)
    said = (done.stdout + done.stderr).decode().splitlines()
    return said or ([] if done.returncode == 0 else [f"promtool ended with {done.returncode}"])
