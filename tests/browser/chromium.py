"""Headless Chromium for the tests of pages: found, started once, and watched while a page is open.

Tests are skipped where Chromium or playwright is missing; the tox environment `browser` installs the latter.
"""

import contextlib
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (tox -e browser)")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MARKS = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH (Debian: apt-get install chromium)"),
    pytest.mark.xdist_group("browser"),
]
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]


@contextlib.contextmanager
def launched() -> Iterator[Any]:
    """One Chromium."""
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@contextlib.contextmanager
def watched(browser: Any, home: str, path: str, *elsewhere: str) -> Iterator[Any]:
    """A page just opened. At the end: no script error, no policy violation, no request to elsewhere than `home` and
    `elsewhere`, where pages may ask for what they like and do not get it."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    opened = context.new_page()
    opened.set_default_timeout(15_000)
    faults: list[str] = []
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.on("console", lambda line: faults.append(line.text) if "Security Policy" in line.text else None)

    def ask(route: Any) -> None:
        asked = route.request
        if at_home(asked.url, home, *elsewhere):
            route.continue_()
            return
        route.abort()
        if not at_home(asked.frame.url, *elsewhere):
            faults.append(asked.url)

    opened.route("**/*", ask)
    opened.goto(home + path)
    yield opened
    context.close()
    assert faults == []


def at_home(url: str, *homes: str) -> bool:
    """Whether an address is the gateway's own, or inline data."""
    return url.startswith((*(home + "/" for home in homes), "data:"))
