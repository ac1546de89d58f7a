"""Who a request of a chat UI is for (K10): found in its head or body, believed of keys that are marked for it only.

Must not know how users are looked up.
"""

from gateway.errors import BadRequest
from gateway.flow.exchange import Exchange, Runtime

HEADER = b"x-openwebui-user-email"


async def represent(x: Exchange, rt: Runtime) -> None:
    """Head, body -> the principal is the named user's from here on: scheduled, limited, billed and recorded.

    The header goes before the body's `user`. Raises BadRequest, Forbidden, AuthUnavailable.
    """
    name = end_user(x)
    if name:
        x.principal = rt.end_users.lookup(x.principal, name) or await rt.end_users.find(x.principal, name)


def end_user(x: Exchange) -> str:
    """The name, or nothing."""
    given = x.head.headers.get(HEADER)
    if not given:
        return x.ask.user.strip()
    try:
        return given.decode().strip()
    except UnicodeDecodeError as err:
        raise BadRequest("X-OpenWebUI-User-Email is not UTF-8.") from err
