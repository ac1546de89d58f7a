"""The playground file itself: what a strict policy needs, without a browser."""

import base64
import hashlib
import re

from gateway.api.dialect import Access
from gateway.api.routes import Routes
from gateway.flow.playground import page


def text() -> str:
    return page()[0].decode()


def test_policy_names_the_hashes_of_the_one_script_and_style() -> None:
    """The browser hashes what stands between the tags, byte for byte; nothing else may load or run."""
    html, policy = page()
    for element in ("script", "style"):
        start = html.index(f"<{element}>".encode()) + len(element) + 2
        inside = html[start : html.index(f"</{element}>".encode())]
        digest = base64.b64encode(hashlib.sha256(inside).digest()).decode()
        assert f"{element}-src 'sha256-{digest}';" in policy.decode()
    assert policy.startswith(b"default-src 'none'; ")
    assert b"unsafe" not in policy
    assert policy.endswith(b"frame-ancestors 'none'")


def test_nothing_in_the_page_that_the_policy_would_block() -> None:
    """No style attribute, no inline handler, no address but our own, no CR that a browser would drop from the hash."""
    html = text()
    markup = re.sub(r"<(script|style)>.*?</\1>", "", html, flags=re.DOTALL)
    assert re.findall(r"\s(?:style|on[a-z]+)\s*=", markup) == []
    assert re.findall(r"(?:src|href)=\"(?!#|data:)", markup) == []
    assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)", html) == []
    assert "\r" not in html
    assert "innerHTML" not in html


OLDER = {"/v1/models/*", "/api/embeddings"}
"""Routes for keys without a card: one model of the list, and what /api/embed took the place of."""
CARD = re.compile(r'method: "(\w+)", path: "([^"]+)",(?: scope: "(\w+)",)? kind: \S+, streams: (?:"(\w+)"|null)')


def test_every_route_for_keys_has_its_card() -> None:
    """Method, scope and framing as in the route table; a new route must get a card or a reason."""
    cards = {(method, path): (scope, streams) for method, path, scope, streams in CARD.findall(text())}
    rows = {(row.method, row.path): row for row in Routes().rows if row.access is Access.KEY and row.path not in OLDER}
    assert cards.keys() == rows.keys()
    for place, (scope, streams) in cards.items():
        assert scope == rows[place].scope, place
        assert not streams or streams.lower() == rows[place].framing, place


def test_the_key_is_never_stored() -> None:
    """No storage, no cookie: memory only."""
    assert re.findall(r"localStorage|sessionStorage|indexedDB|document\.cookie", text()) == []


def test_every_field_has_a_label() -> None:
    """Each input, select and textarea is labelled for those who cannot see the page."""
    html = text()
    wrapped = re.findall(r"<label\b.*?</label>", html, re.DOTALL)
    for identity in re.findall(r"<(?:input|select|textarea)\b[^>]*\bid=\"(\w+)\"", html):
        inside = any(f'id="{identity}"' in label for label in wrapped)
        assert inside or f'<label for="{identity}"' in html or f'for="{identity}"' in html, identity
