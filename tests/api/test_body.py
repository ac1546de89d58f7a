"""`gateway.api.body`: reading top-level members, refusing ambiguous ones, splicing edits."""

import gzip
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api.body import MEMBERS, REPEATED_BYTES, insert_members, read_count, read_object, scan, with_members
from gateway.errors import BadRequest
from tests.api.json_text import OBJECTS, VALUES, spans, spliced, texts

GUARDED = frozenset({"model", "stream", "max_tokens", "stream_options", "n"})


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", "The body is empty; a JSON object is expected"),
        (b" \n", "The body is empty; a JSON object is expected"),
        (b"[1]", "The body must be a JSON object"),
        (b'"x"', "The body must be a JSON object"),
        (b"null", "The body must be a JSON object"),
        (b'{"model": tru}', "The body is not valid JSON: invalid character (byte 11)"),
        (b'{"a":1}{"a":2}', "The body is not valid JSON: trailing characters (byte 8)"),
        (b'{"a":1', "The body is not valid JSON: it ends too early, or an escaped surrogate stands alone"),
        (b'{"a":"\\ud800"}', "The body is not valid JSON: it ends too early, or an escaped surrogate stands alone"),
        (b'{"a":"\xff"}', "The body is not valid UTF-8 (byte 6)"),
        (b'{"\xc3\x28":1}', "The body is not valid UTF-8 (byte 2)"),
        (b"\xef\xbb\xbf{}", "The body begins with a byte order mark, which JSON does not allow; send it without"),
        (gzip.compress(b"{}", mtime=0), "The body is compressed by gzip; send it as it is"),
        (b"\x28\xb5\x2f\xfd\x04\x00", "The body is compressed by zstd; send it as it is"),
        ("{}".encode("utf-16"), "The body is UTF-16; JSON is UTF-8"),
        (b'{"a":NaN}', "The body is not valid JSON: invalid character (byte 5)"),
        (b'{"a":' + b"[" * 200_000, "The body is nested too deeply"),
        (b'{"a":' + b'{"a":' * 200_000, "The body is nested too deeply"),
    ],
)
def test_what_is_not_an_object_is_refused_in_plain_words(body: bytes, sentence: str) -> None:
    with pytest.raises(BadRequest) as caught:
        read_object(body, GUARDED)
    assert caught.value.message == sentence


@pytest.mark.parametrize(
    ("body", "key", "reason"),
    [
        (b'{"model":"a","model":"b"}', "model", "more than once"),
        (b'{"model":"a","x":{"model":1},"model":"a"}', "model", "more than once"),
        (b'{"stream":false, "stream":true, "model":"m"}', "stream", "more than once"),
        (b'{"x":12,"model":"a","model":"b","x":1}', "model", "more than once"),
        (b'{"model":"a","Stream":true}', "stream", "lower case"),
        (b'{"MODEL":"a"}', "model", "lower case"),
        ('{"model":"a","\u017ftream":true}'.encode(), "stream", "lower case"),
        ('{"model":"a","max_to\u212aens":9}'.encode(), "max_tokens", "lower case"),
        (b'{"model":"a","max_to\\u212aens":9}', "max_tokens", "lower case"),
        (b'{"mode\\u006c":"a"}', "model", "escapes"),
        (b'{"model":"a","\\u006e":5}', "n", "escapes"),
        (b'{"model":"a","\\u004e":5}', "n", "lower case"),
        (b'{"model":"a","max_tokens":1,"max_\\u0074okens":2}', "max_tokens", "escapes"),
    ],
)
def test_guarded_keys_that_two_engines_could_read_two_ways_are_refused(body: bytes, key: str, reason: str) -> None:
    with pytest.raises(BadRequest) as caught:
        read_object(body, GUARDED)
    assert caught.value.param == key
    assert f"`{key}`" in caught.value.message
    assert reason in caught.value.message


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","temperature":1,"temperature":2}',
        b'{"model":"m","Temperature":1}',
        b'{"model":"m","x":{"model":"a","model":"b","Stream":1}}',
        b'{"model":"m","x":"\\"model\\":1,\\"model\\":2"}',
        b'{"model":"m","\\u0061":1}',
        b'{"model":"\\u006d"}',
        b'{"model":"m","tools":[{"n":1},{"n":2},"model","stream"]}',
    ],
)
def test_other_keys_and_inner_values_may_be_anything(body: bytes) -> None:
    assert bytes(read_object(body, GUARDED)["model"]) in (b'"m"', b'"\\u006d"')


def test_a_repeat_cannot_hide_behind_the_white_space_of_others() -> None:
    """The quick test compares lengths: a repeated key must fail it whatever else the body holds."""
    for pad in range(40):
        body = b'{"model":"m",%b"stream":0,"x":1,"stream":0}' % (b" " * pad)
        with pytest.raises(BadRequest, match="more than once"):
            read_object(body, GUARDED)


@given(texts(OBJECTS))
def test_the_scanner_agrees_with_the_standard_library(case: tuple[dict[str, Any], bytes]) -> None:
    value, body = case
    members = read_object(body, GUARDED)
    found = scan(body, members)
    assert {key: (start, end) for key, _, start, end in found} == spans(body)
    assert {key: json.loads(body[start:end]) for key, _, start, end in found} == value
    assert scan(body, {}) == found, "knowing the values only saves time"


@given(texts(OBJECTS), st.dictionaries(st.sampled_from(["model", "stop", "seed", "zz"]), VALUES, max_size=4))
def test_edits_change_their_keys_and_no_other_byte(case: tuple[dict[str, Any], bytes], edits: dict[str, Any]) -> None:
    """A6: everything else keeps its bytes."""
    value, body = case
    changes = {key: json.dumps(new).encode() for key, new in edits.items()}
    edited = with_members(body, changes)
    assert json.loads(edited) == value | edits
    replaced = {key: text for key, text in changes.items() if key in value}
    head = b",".join(b'"%b":%b' % (key.encode(), text) for key, text in changes.items() if key not in value)
    assert edited == spliced(body, replaced, head + b"," if head and value else head)
    if value and value.keys().isdisjoint(edits) and edits:
        assert insert_members(body, changes) == edited


def test_an_edit_finds_its_span_wherever_one_space_stands() -> None:
    """Compact bodies are measured, not scanned: one byte more must not shift the measure."""
    tokens = [b"{", b'"a"', b":", b"12", b",", b'"model"', b":", b'"m"', b",", b'"b"', b":", b"[1, 2]", b"}"]
    for place in range(len(tokens) + 2):
        body = b"".join(tokens[:place]) + b" " * (place <= len(tokens)) + b"".join(tokens[place:])
        assert with_members(body, {"model": b"9", "b": b"{}"}) == body.replace(b'"m"', b"9").replace(b"[1, 2]", b"{}")


def test_ten_megabytes_of_escapes_are_stepped_over_without_a_pile_of_memory() -> None:
    text = b'"' + b"\\n" * 5_000_000 + b'"'
    body = b'{"x":%b, "model":"m"}' % text
    assert [member[0] for member in scan(body, {})] == ["x", "model"]


@pytest.mark.parametrize("key", ['"k%d":1,', '"k":1,', '"\\u006b":1,', '"k": 1, '])
def test_an_object_has_a_thousand_members_at_most(key: str) -> None:
    """C-T5: each costs time of the loop, and ten megabytes hold two million."""
    rows = [(key % number if "%" in key else key).encode() for number in range(MEMBERS)]
    body = b'{%b"model":"m"}' % b"".join(rows[1:])
    assert len(scan(body, read_object(body, GUARDED))) == MEMBERS
    with pytest.raises(BadRequest, match=f"The body has more than {MEMBERS} members"):
        read_object(b'{%b"model":"m"}' % b"".join(rows), GUARDED)
    with pytest.raises(BadRequest, match=f"`options` has more than {MEMBERS} members"):
        read_object(b'{%b"model":"m"}' % b"".join(rows), GUARDED, "options")


def test_keys_that_stand_again_are_read_up_to_a_bound() -> None:
    """C-T5: what stands once may be of any size, and is not read bracket by bracket."""
    large = b"[%b[]]" % (b"[]," * REPEATED_BYTES)
    assert len(read_object(b'{ "model":"m","x":1,"x":%b}' % large, GUARDED)) == 2
    assert len(read_object(b'{"x":[[],{"y":"]"}],"x":2,"model":"m"}', GUARDED)) == 2
    half = b"[%b[]]" % (b"[]," * (REPEATED_BYTES // 6))
    text = b'["%b],\\"model\\":2"]' % (b"a" * (REPEATED_BYTES - 4))  # a bracket inside of it at the bound
    for before in (b'"x":%b' % large, b'"x":%b,"x":%b,"x":%b' % (half, half, half), b'"x":%b' % text):
        with pytest.raises(BadRequest, match="Repeated keys"):
            read_object(b'{"model":"m",%b,"x":1}' % before, GUARDED)


@pytest.mark.parametrize(
    ("text", "number"),
    [(b"5", 5), (b"-2", -2), (b"10.0", 10), (b"1e3", 1000), (b"null", None), (b"9" * 30, int("9" * 30))],
)
def test_counts_may_have_a_fraction_of_zero(text: bytes, number: int | None) -> None:
    assert read_count(read_object(b'{"k":%b}' % text, GUARDED), "k") == number


@pytest.mark.parametrize("text", [b"1.5", b'"5"', b"true", b"[]", b"1e400", b"9" * 5000])
def test_what_is_no_count(text: bytes) -> None:
    with pytest.raises(BadRequest, match="`k` must be a whole number"):
        read_count(read_object(b'{"k":%b}' % text, GUARDED), "k")
