"""The fields that an answer has of the gateway itself."""

import re

import pytest

from gateway.errors import AuthUnavailable, BudgetSpent, GatewayError, QueueTimeout, RateLimited, Reserved
from gateway.flow.fields import retry_fields


@pytest.mark.parametrize(
    ("error", "least"),
    [
        (RateLimited("", retry_after=0.2), 1000),
        (AuthUnavailable("", retry_after=1.0), 1000),
        (QueueTimeout(""), 1000),
        (RateLimited("", retry_after=20.0), 20_000),
        (QueueTimeout("", retry_after=600.0), 50_000),
        (Reserved("", retry_after=3600.0), 50_000),
        (BudgetSpent("", retry_after=86_400.0), 50_000),
        (BudgetSpent(""), 50_000),  # one that never comes back
    ],
    ids=repr,
)
def test_those_who_are_refused_together_do_not_come_back_together(error: GatewayError, least: int) -> None:
    """A10: whatever the wait is, also where it is longer than 60 s."""
    told = [re.findall(rb": (\d+)\r\n", retry_fields(error)) for _ in range(200)]
    waits = [int(milliseconds) for _, milliseconds in told]
    assert least <= min(waits) < max(waits) <= min(1.2 * least, 60_000)
    assert len(set(waits)) > 20
    assert all((int(seconds) - 1) * 1000 <= int(milliseconds) <= int(seconds) * 1000 for seconds, milliseconds in told)
