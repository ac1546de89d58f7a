"""Where a request meets its limits: the estimate that it reserves, the actual use that settles it, and the header
fields that report it (A10).

Owns what is charged for which ending; must not know how anything is counted.
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
    """Maximum output tokens: what the request asked for, within the model's cap. Negative means unlimited."""
    return cap if asked is None or asked < 0 else min(asked, cap)


def max_output(x: Exchange) -> int:
    """Maximum output tokens of the whole request: its cap times the number of its answers."""
    if x.endpoint.kind not in GENERATIONS:
        return 0
    return output_cap(x.ask.max_tokens, x.route.terms.max_output_tokens) * x.ask.choices


async def reserve(x: Exchange, rt: Runtime) -> None:
    """Reserve an estimate of what the request will use (L2). Raises RateLimited, BudgetSpent, LimitsUnavailable.

    Waits only if a lender (a shared store or the parent process) has to be asked. An interruption leaves nothing
    reserved.
    """
    model, most = x.route.model, max_output(x)
    prompt = rt.estimator.input_tokens(model, x.ask.input_bytes)
    tokens = math.ceil(prompt) + most
    seconds = rt.limits.pace.seconds(model, prompt, most)
    try:
        x.reservation = await rt.limits.acquire(x.principal, tokens, seconds)
    finally:
        x.extra += limit_fields(rt.limits, x.principal, rt.now())


def worked(x: Exchange, usage: Usage) -> bool:
    """Whether an engine did work that is charged: it answered, or was at work when the request was given up."""
    answered = usage.reported or usage.completion_tokens > 0
    return x.sent_at > 0.0 and (answered or x.outcome is Outcome.DONE or x.outcome in GIVEN_UP)


def settle(x: Exchange, rt: Runtime, ended: float) -> None:
    """Replace the estimate by the actual use, or by nothing if no engine worked (`worked`, L2)."""
    reservation = x.reservation
    usage = x.usage
    if reservation is None:
        return
    if not worked(x, usage):
        rt.limits.forget(reservation)
        return
    seconds = ended - x.granted_at if x.granted_at else 0.0
    rt.limits.settle(reservation, usage.prompt_tokens + usage.completion_tokens, seconds)


def limit_fields(limits: Quota, principal: Principal, now: float) -> bytes:
    """OpenAI's six rate-limit fields, for the limit with the least left. For tokens that is the rate limit if there is
    one, else the budget."""
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
    if reset == math.inf:  # a budget without a window never resets
        return b"x-ratelimit-limit-%b: %d\r\nx-ratelimit-remaining-%b: %d\r\n" % (noun, tightest.most, noun, left)
    return b"x-ratelimit-limit-%b: %d\r\nx-ratelimit-remaining-%b: %d\r\nx-ratelimit-reset-%b: %b\r\n" % (
        noun,
        tightest.most,
        noun,
        left,
        noun,
        duration(reset).encode(),
    )
