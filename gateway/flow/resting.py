"""Slots of engines that would not begin, or only fail: no slots until the engine may serve again.

An engine that refuses or fails at once has its slots free all the time, so most free ones: it would be given, and fail,
all who wait for it or for another that serves. Must not know requests.
"""

import asyncio
from typing import Final

from gateway.errors import EngineBusy, ModelLoading
from scheduler.aio import Lease

WOULD_NOT: Final = (EngineBusy, ModelLoading)
"""What says that an engine has not begun, and would have if it had room."""
REST: Final = 1.0
"""Seconds until such a slot is tried again: so often as many requests find out as the engine has slots."""


def rest(lease: Lease) -> None:
    """Give the slot back after a while, unused. Needs no current Task: requests end without one."""
    asyncio.get_running_loop().call_later(REST, lease.release, 0.0)
