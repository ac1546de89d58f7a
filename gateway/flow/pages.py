"""Single-file HTML pages, each with the content security policy that fits exactly this page.

Reads each file once and hashes its one inline script and one inline style. Must not know what a page is for.
"""

import base64
import functools
import hashlib
import re
from importlib import resources


@functools.cache
def hashed_page(package: str, file: str) -> tuple[bytes, bytes]:
    """The page (UTF-8) and the value of its Content-Security-Policy header (CSP3, hash sources of section 8.3).

    Raises ValueError if the file has not exactly one script and one style element.
    """
    html = resources.files(package).joinpath(file).read_bytes()
    try:
        script, style = _hash_source(html, b"script"), _hash_source(html, b"style")
    except ValueError as err:
        raise ValueError(f"{file}: {err}") from err
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src {script}",
            f"style-src {style}",
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
        raise ValueError(f"exactly one {element.decode()} element is needed, found {len(found)}")
    digest = base64.b64encode(hashlib.sha256(found[0]).digest()).decode("ascii")
    return f"'sha256-{digest}'"
