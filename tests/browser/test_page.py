"""The pages themselves, playground and console: what a strict policy needs, without a browser."""

import base64
import hashlib
import re

import pytest

from gateway.admin.console import page as console
from gateway.admin.table import find
from gateway.api.dialect import Access
from gateway.api.routes import Routes
from gateway.flow.playground import page

PAGES = {"playground": page, "console": lambda: (console()[0], console()[1].encode())}


def text(name: str = "playground") -> str:
    return PAGES[name]()[0].decode()


@pytest.mark.parametrize("name", PAGES)
def test_policy_names_the_hashes_of_the_one_script_and_style(name: str) -> None:
    """The browser hashes what stands between the tags, byte for byte; nothing else may load or run."""
    html, policy = PAGES[name]()
    for element in ("script", "style"):
        start = html.index(f"<{element}>".encode()) + len(element) + 2
        inside = html[start : html.index(f"</{element}>".encode())]
        digest = base64.b64encode(hashlib.sha256(inside).digest()).decode()
        assert f"{element}-src 'sha256-{digest}';" in policy.decode()
    assert policy.startswith(b"default-src 'none'; ")
    assert b"unsafe" not in policy
    assert policy.endswith(b"frame-ancestors 'none'")


@pytest.mark.parametrize("name", PAGES)
def test_nothing_in_the_page_that_the_policy_would_block(name: str) -> None:
    """No style attribute, no inline handler, no address but our own, no CR that a browser would drop from the hash."""
    html = text(name)
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


@pytest.mark.parametrize("name", PAGES)
def test_the_key_is_never_stored(name: str) -> None:
    """No storage, no cookie: memory only."""
    assert re.findall(r"localStorage|sessionStorage|indexedDB|document\.cookie", text(name)) == []


@pytest.mark.parametrize("name", PAGES)
def test_every_field_has_a_label(name: str) -> None:
    """Each input, select and textarea is labelled for those who cannot see the page."""
    html = text(name)
    wrapped = re.findall(r"<label\b.*?</label>", html, re.DOTALL)
    for identity in re.findall(r"<(?:input|select|textarea)\b[^>]*\bid=\"(\w+)\"", html):
        inside = any(f'id="{identity}"' in label for label in wrapped)
        assert inside or f'<label for="{identity}"' in html or f'for="{identity}"' in html, identity


def test_the_console_calls_routes_that_exist() -> None:
    """Every path its script names, with the method it names there."""
    asked = re.findall(r'(?:api\("(\w+)"|(listed)\(?), (?:`|")(/[\w/]+)', text("console"))
    calls = {("GET" if listed else method, path) for method, listed, path in asked}
    assert len(calls) > 6
    for method, path in calls:
        assert find(method, path)[0].path == path


def test_the_console_is_small_and_makes_no_markup_of_what_it_is_told() -> None:
    """S-I2: names are clients' own; the page sets text, never markup."""
    html = text("console")
    assert len(html.splitlines()) <= 400
    assert re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", html) == []
    assert "prefers-color-scheme: dark" in html
