"""What is remembered of a request head that a client repeats. A pure fact.

Not compiled (`hatch_build.py`): it can be referred to weakly.
"""

import msgspec

from gateway.http1.message import RequestHead, WireLimits


class Repeated(msgspec.Struct, frozen=True, weakref=True):
    """A head both parsers have accepted under `limits`, as its bytes `before` and `after` the digits of Content-Length.

    Without that field `before` is the whole head. Digits cannot change a verdict, so a head of the same bytes around
    other digits needs no second reading.
    """

    before: bytes
    after: bytes
    head: RequestHead
    limits: WireLimits
