"""Slots of engines that refuse to begin, or only fail, rest: they are not granted until the engine may serve again.

Such an engine always has free slots, more than any other. Without the rest it would be given all waiting requests, and
fail them, although other backends serve. Must not know requests.
"""

import asyncio
from typing import Final

from gateway.errors import EngineBusy, ModelLoading
from scheduler.aio import Lease

NOT_BEGUN: Final = (EngineBusy, ModelLoading)
"""Errors of an engine that has not begun a request, but would have with free capacity."""
REST: Final = 1.0
"""Seconds until such a slot is granted again. In each period as many requests meet the engine as it has slots."""


def rest(lease: Lease) -> None:
    """Give the slot back after a while, without charge. Needs no current Task, because requests end without one."""
    asyncio.get_running_loop().call_later(REST, lease.release, 0.0)
