"""Reads the end of a certificate's validity from X.509's DER (RFC 5280 section 4.1). Must not know TLS or files.

The standard library reports it only for certificates that it has verified in a handshake.
"""

import datetime
import ssl

_SEQUENCE, _UTC_TIME, _VERSION = 0x30, 0x17, 0xA0


def not_after(pem: str) -> float:
    """The end of the first certificate's validity, in Unix seconds. Raises ValueError."""
    begin = pem.find(ssl.PEM_HEADER)
    end = pem.find(ssl.PEM_FOOTER, begin)
    if begin < 0 or end < 0:
        raise ValueError("no certificate in PEM form")
    der = ssl.PEM_cert_to_DER_cert(pem[begin : end + len(ssl.PEM_FOOTER)])
    try:
        return _validity(der)
    except IndexError as err:
        raise ValueError("the certificate is cut short") from err


def _validity(der: bytes) -> float:
    """Certificate > TBSCertificate > [version], serial, signature, issuer, validity > not before, not after."""
    _, at, _ = _element(der, 0)
    _, at, _ = _element(der, at)
    tag, _, end = _element(der, at)
    if tag == _VERSION:
        at = end
    for _ in range(3):
        _, _, at = _element(der, at)
    tag, at, _ = _element(der, at)
    if tag != _SEQUENCE:
        raise ValueError("not a certificate")
    _, _, at = _element(der, at)
    tag, begin, end = _element(der, at)
    text = der[begin:end].decode("ascii")
    if tag == _UTC_TIME:  # RFC 5280 4.1.2.5.1: below 50 is this century
        text = ("20" if int(text[:2]) < 50 else "19") + text
    return datetime.datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=datetime.UTC).timestamp()


def _element(der: bytes, at: int) -> tuple[int, int, int]:
    """The element at `at` -> (tag, begin of its content, its end)."""
    length, begin = der[at + 1], at + 2
    if length & 0x80:
        size = length & 0x7F
        length, begin = int.from_bytes(der[begin : begin + size], "big"), begin + size
    return der[at], begin, begin + length
