"""The text of a key and the fields that carry it."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import Unauthenticated
from gateway.services.keyfmt import LENGTH, SECRET_LENGTH, credential, mint, parse


def test_a_minted_key_parses_and_holds_160_random_bits() -> None:
    """K2"""
    minted = mint()
    assert minted.token.startswith(f"fg_{minted.id}_")
    assert len(minted.token) == LENGTH
    assert parse(minted.token.encode()) == (minted.id, minted.secret)
    assert SECRET_LENGTH * math.log2(62) >= 160


def test_the_repr_of_a_minted_key_hides_it() -> None:
    """O3: secrets reach no log by accident."""
    minted = mint()
    assert minted.secret.decode() not in repr(minted)


@given(st.integers(0, LENGTH - 1), st.integers(0, 255))
def test_any_changed_byte_is_refused_by_the_text_alone(at: int, byte: int) -> None:
    """K2: the checksum finds every single error."""
    token = mint().token.encode()
    changed = token[:at] + bytes([byte]) + token[at + 1 :]
    assert (parse(changed) is None) == (changed != token)


@given(st.binary(max_size=80))
def test_foreign_text_is_refused(token: bytes) -> None:
    assert parse(token) is None


@pytest.mark.parametrize("scheme", [b"Bearer ", b"bearer ", b"BEARER ", b"bEaReR   "])
def test_the_scheme_is_case_insensitive(scheme: bytes) -> None:
    """K2"""
    assert credential({b"authorization": scheme + b"fg_x"}) == b"fg_x"


def test_x_api_key_serves_as_well_and_may_repeat_the_same() -> None:
    """K2"""
    assert credential({b"x-api-key": b"fg_x"}) == b"fg_x"
    assert credential({b"x-api-key": b"fg_x", b"authorization": b"Bearer fg_x"}) == b"fg_x"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {b"x-api-key": b""},
        {b"authorization": b""},
        {b"authorization": b"Basic Zm9vOmJhcg=="},
        {b"authorization": b"Bearer"},
        {b"authorization": b"Bearer  "},
        {b"authorization": b"Bearerfg_x"},
        {b"authorization": b"Bearer fg_x", b"x-api-key": b"fg_y"},
    ],
)
def test_no_single_credential_is_unauthenticated(headers: dict[bytes, bytes]) -> None:
    """K2"""
    with pytest.raises(Unauthenticated):
        credential(headers)
