"""A remembered request head, for clients that send the same one again. Plain data.

Not compiled (`hatch_build.py`): compiled classes cannot be weakly referenced.
"""

import msgspec

from gateway.http1.message import RequestHead, WireLimits


class Repeated(msgspec.Struct, frozen=True, weakref=True):
    """A head that both parsers accepted under `limits`: its bytes `before` and `after` the digits of Content-Length.

    If it has no Content-Length, `before` is the whole head. The digits cannot change the verdict, so a head with the
    same bytes around other digits need not be parsed again.
    """

    before: bytes
    after: bytes
    head: RequestHead
    limits: WireLimits
