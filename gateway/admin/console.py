"""The console page. Must not know: routes, requests, whether the page is enabled."""

from gateway.flow.pages import hashed_page

_FILE = "console.html"


def page() -> tuple[bytes, str]:
    """The page and the value of its Content-Security-Policy header."""
    html, policy = hashed_page(__package__, _FILE)
    return html, policy.decode("ascii")
