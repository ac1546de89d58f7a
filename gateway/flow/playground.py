"""The playground page. Must not know routes, requests, or whether the page is enabled."""

from gateway.flow.pages import hashed_page

_FILE = "playground.html"


def page() -> tuple[bytes, bytes]:
    """The page and the value of its Content-Security-Policy header."""
    return hashed_page(__package__, _FILE)
