"""The console page. Must not know routes, requests, or whether the page is enabled."""

from gateway.flow.pages import hashed_page

_FILE = "console.html"


def page(*, login: bool = False) -> tuple[bytes, str]:
    """The page and the value of its Content-Security-Policy header. `login`: it offers to log in at the identity
    provider."""
    html, policy = hashed_page(__package__, _FILE)
    return html.replace(b"<body>", b'<body data-login="on">', 1) if login else html, policy.decode("ascii")
