"""The playground page: one HTML file and the content security policy that fits exactly it.

Owns: reading the file once, the hashes of its one inline script and one inline style.
Must not know: routes, requests, whether the page is enabled.
"""

import base64
import functools
import hashlib
import re
from importlib import resources

_FILE = "playground.html"


@functools.cache
def page() -> tuple[bytes, bytes]:
    """The page (UTF-8) and the value of its Content-Security-Policy header (CSP3, hash sources of section 8.3).

    Raises ValueError if the file has not exactly one script and one style element.
    """
    html = resources.files(__package__).joinpath(_FILE).read_bytes()
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src {_hash_source(html, b'script')}",
            f"style-src {_hash_source(html, b'style')}",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )
    return html, policy.encode("ascii")


def _hash_source(html: bytes, element: bytes) -> str:
    """The hash source of the text inside the file's only `element`, byte for byte as the browser hashes it."""
    found = re.findall(rb"<%b\b[^>]*>(.*?)</%b>" % (element, element), html, re.DOTALL)
    if len(found) != 1:
        raise ValueError(f"{_FILE} must have exactly one {element.decode()} element, found {len(found)}")
    digest = base64.b64encode(hashlib.sha256(found[0]).digest()).decode("ascii")
    return f"'sha256-{digest}'"
