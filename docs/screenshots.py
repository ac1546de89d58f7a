"""Takes the pictures of the playground for the documentation, in a real Chromium: `python docs/screenshots.py`.

Starts the demo in front of the simulated Ollama, runs one stream as a person would, and looks at the page in light and
dark, wide and narrow. Needs the package playwright and a Chromium on PATH (tox environment `browser` has the first).
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

IMAGES = Path(__file__).resolve().parent / "img"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
LOOKS = {
    "playground-light": ("light", 1280, 860),
    "playground-dark": ("dark", 1280, 860),
    "playground-narrow": ("dark", 420, 860),
}


def shoot(browser: Browser, url: str, key: str, name: str, scheme: str, width: int, height: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    page.goto(f"{url}/playground")
    page.fill("#key", key)
    page.press("#key", "Enter")
    page.wait_for_selector("#keystate.ok")
    page.click("#run")
    page.wait_for_selector("#stop:visible")
    page.wait_for_selector("#stop", state="hidden", timeout=60_000)
    page.evaluate("window.scrollTo(0, 0)")
    page.screenshot(path=IMAGES / f"{name}.png", full_page=width < 600)
    page.close()


def main() -> None:
    command = [sys.executable, "-m", "gateway", "demo", "--json", "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as demo, sync_playwright() as play:  # noqa: S603
        assert demo.stdout is not None  # noqa: S101  # asked for as a pipe
        try:
            facts = json.loads(demo.stdout.readline())
            browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
            for name, (scheme, width, height) in LOOKS.items():
                shoot(browser, facts["url"], facts["key"], name, scheme, width, height)
            browser.close()
        finally:
            demo.terminate()


if __name__ == "__main__":
    main()
