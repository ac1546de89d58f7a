"""Where a request meets its limits: the estimate it reserves, the truth it settles, and the fields that tell (A10).

Owns what is charged to whom in which ending; must not know how anything is counted.
"""

import math
from typing import Final

from gateway.api.dialect import Kind
from gateway.api.usage import Usage
from gateway.flow.exchange import GIVEN_UP, Exchange, Outcome, Runtime
from gateway.services.limits import Quota, Shown
from gateway.services.meters import duration
from gateway.services.principal import Principal

GENERATIONS: Final = frozenset({Kind.CHAT, Kind.COMPLETION, Kind.RESPONSES})


def output_cap(asked: int | None, cap: int) -> int:
    """Output tokens the request may produce: what it asked for within the model's cap; negative means unlimited."""
    return cap if asked is None or asked < 0 else min(asked, cap)


def produces(x: Exchange) -> int:
    """The most output tokens this request may cost: its cap for each of its answers."""
    if x.endpoint.kind not in GENERATIONS:
        return 0
    return output_cap(x.ask.max_tokens, x.route.terms.max_output_tokens) * x.ask.choices


async def reserve(x: Exchange, rt: Runtime) -> None:
    """Hold an estimate of what the request will use (L2). Raises RateLimited, BudgetSpent, LimitsUnavailable.

    Waits only for a lender's round. An interruption leaves nothing held.
    """
    model, most = x.route.model, produces(x)
    prompt = rt.estimator.input_tokens(model, x.ask.input_bytes)
    tokens = math.ceil(prompt) + most
    seconds = rt.limits.pace.seconds(model, prompt, most)
    try:
        x.reservation = await rt.limits.acquire(x.principal, tokens, seconds)
    finally:
        x.extra += limit_fields(rt.limits, x.principal, rt.now())


def worked(x: Exchange, usage: Usage) -> bool:
    """Whether an engine did what is to be paid for: it answered, or was left at its work."""
    answered = usage.reported or usage.completion_tokens > 0
    return x.sent_at > 0.0 and (answered or x.outcome is Outcome.DONE or x.outcome in GIVEN_UP)


def settle(x: Exchange, rt: Runtime, ended: float) -> None:
    """The truth in place of the estimate; nothing where no engine did the work (`worked`, L2)."""
    reservation = x.reservation
    usage = x.usage
    if reservation is None:
        return
    if not worked(x, usage):
        rt.limits.forget(reservation)
        return
    seconds = ended - x.granted_at if x.granted_at else 0.0
    rt.limits.settle(reservation, usage.prompt_tokens + usage.completion_tokens, seconds)
    if usage.reported and x.outcome is Outcome.DONE:
        rt.limits.pace.observe(x.route.model, usage.prompt_tokens, usage.completion_tokens, seconds)


def limit_fields(limits: Quota, principal: Principal, now: float) -> bytes:
    """OpenAI's six fields, of the limit with the least left; of tokens the rate, else the budget."""
    requests, tokens = limits.shown(principal)
    return _fields(b"requests", requests, now) + _fields(b"tokens", tokens, now)


def _fields(noun: bytes, meters: Shown, now: float) -> bytes:
    if not meters:
        return b""
    tightest, left = meters[0], meters[0].remaining(now)
    for meter in meters[1:]:
        if (mine := meter.remaining(now)) < left:
            tightest, left = meter, mine
    reset = tightest.reset(now)
    if reset == math.inf:  # a budget without a window does not come back
        return b"x-ratelimit-limit-%b: %d\r\nx-ratelimit-remaining-%b: %d\r\n" % (noun, tightest.most, noun, left)
    return b"x-ratelimit-limit-%b: %d\r\nx-ratelimit-remaining-%b: %d\r\nx-ratelimit-reset-%b: %b\r\n" % (
        noun,
        tightest.most,
        noun,
        left,
        noun,
        duration(reset).encode(),
    )
