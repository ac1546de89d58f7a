"""Takes the pictures of the playground for the documentation, in a real Chromium: `python docs/screenshots.py`.

Starts the demo in front of the simulated Ollama, runs a stream as a person would, waits in a queue and is refused, and
looks at the page in light and dark, wide and narrow. Needs the package playwright, a Chromium on PATH (tox environment
`browser` has the first) and a font that has Japanese (Debian: fonts-noto-cjk), which the simulated answer speaks.
"""

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import Browser, sync_playwright

IMAGES = Path(__file__).resolve().parent / "img"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
# Name -> colours, width, height, and what is seen.
LOOKS = {
    "playground-light": ("light", 1280, 860, "answer"),
    "playground-dark": ("dark", 1280, 860, "answer"),
    "playground-narrow": ("dark", 420, 860, "answer"),
    "playground-queue": ("light", 1280, 640, "queue"),
    "playground-error": ("dark", 1280, 640, "error"),
}
SLOTS = 1


def shoot(browser: Browser, facts: dict[str, Any], name: str, look: tuple[str, int, int, str]) -> None:
    scheme, width, height, seen = look
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    page.goto(f"{facts['url']}/playground")
    page.fill("#key", facts["key"])
    page.press("#key", "Enter")
    page.wait_for_selector("#keystate.ok")
    if seen == "error":
        page.fill("#body", page.input_value("#body").replace(facts["model"], "somebody-elses-model"))
    page.click("#run")
    page.wait_for_selector({"answer": "#run:visible", "queue": ".queue .place", "error": ".notice.bad"}[seen])
    page.evaluate("window.scrollTo(0, 0)")
    page.screenshot(path=IMAGES / f"{name}.png", full_page=width < 600)
    page.close()


@contextmanager
def crowd(facts: dict[str, Any], size: int) -> Iterator[None]:
    """Others who hold the slot and wait for it, while the block runs."""
    done, first = threading.Event(), threading.Event()

    def one() -> None:
        body = {"model": facts["model"], "prompt": "Write 5000 words about patience"}
        headers = {"Authorization": f"Bearer {facts['key']}"}
        with httpx.stream("POST", f"{facts['url']}/api/generate", json=body, headers=headers, timeout=60) as answer:
            for _ in answer.iter_raw():
                first.set()
                if done.is_set():
                    return

    with ThreadPoolExecutor(size) as pool:
        for _ in range(size):
            pool.submit(one)
        first.wait(30)
        try:
            yield
        finally:
            done.set()


def main() -> None:
    command = [sys.executable, "-m", "gateway", "demo", "--json", "--slots", str(SLOTS), "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as demo, sync_playwright() as play:  # noqa: S603
        assert demo.stdout is not None  # noqa: S101  # asked for as a pipe
        try:
            facts = json.loads(demo.stdout.readline())
            browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
            for name, look in LOOKS.items():
                with crowd(facts, 4) if look[-1] == "queue" else nullcontext():
                    shoot(browser, facts, name, look)
            browser.close()
        finally:
            demo.terminate()


if __name__ == "__main__":
    main()
