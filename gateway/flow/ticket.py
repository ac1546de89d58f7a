"""What the scheduler gets to know of a request: who pays, the expected cost, how long it may wait. Must not know the
queue."""

from collections.abc import Callable
from typing import Final

from gateway.errors import BadRequest
from gateway.flow.conversation import conversation
from gateway.flow.exchange import Exchange, Runtime
from gateway.flow.quota import GENERATIONS, max_output
from scheduler.model import Ticket
from scheduler.settings import Settings


def ticket(x: Exchange, rt: Runtime, avoid: tuple[str, ...] = ()) -> Ticket:
    """The ticket of a request (scheduler.md 5.3)."""
    principal = x.principal
    return Ticket(
        pool=x.route.pool,
        tenant=principal.tenant,
        user=principal.user,
        share=principal.share,
        tenant_share=principal.tenant_share,
        cost=expected_cost(x, rt),
        class_offset=CLASS_OFFSETS[principal.priority](rt.estimator.settings),
        timeout=max(0.0, queue_timeout(x, rt) - x.waited),
        tag=x.id,
        avoid=avoid,
        conversation=conversation(principal, x.head, x.body) if _has_home(x, rt) else 0,
    )


def _has_home(x: Exchange, rt: Runtime) -> bool:
    """Whether the conversation matters for the choice of a backend: an engine may have the beginning of it in its
    cache."""
    if len(x.route.candidates) < 2:
        return False
    return rt.estimator.settings.affinity > 0.0 and x.endpoint.kind in GENERATIONS


def expected_cost(x: Exchange, rt: Runtime) -> float:
    """Estimated cost units of the whole request."""
    who, found = x.principal, x.route
    return rt.estimator.request_cost(
        found.model, who.tenant, who.user, x.ask.input_bytes, max_output(x), found.terms.cost_factor
    )


CLASS_OFFSETS: Final[dict[str, Callable[[Settings], float]]] = {
    "batch": lambda settings: settings.offset_batch,
    "interactive": lambda settings: settings.offset_interactive,
    "system": lambda settings: settings.offset_system,
}


def queue_timeout(x: Exchange, rt: Runtime) -> float:
    """Seconds: the setting, or less if the key or the request's own `x-queue-timeout` says so."""
    timeout = rt.estimator.settings.queue_timeout
    if x.principal.queue_timeout is not None:
        timeout = min(timeout, x.principal.queue_timeout)
    asked = x.head.headers.get(b"x-queue-timeout")
    if asked is not None:
        if not asked.isdigit() or len(asked) > 6:
            raise BadRequest("x-queue-timeout must be whole seconds.")
        timeout = min(timeout, float(asked))
    return timeout
