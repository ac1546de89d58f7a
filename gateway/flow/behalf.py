"""The end user on whose behalf a chat UI sends a request (K10). The name comes from the request's head or body, and
only keys marked for this are trusted with it.

Must not know how users are looked up.
"""

from gateway.errors import BadRequest
from gateway.flow.exchange import Exchange, Runtime

HEADER = b"x-openwebui-user-email"


async def represent(x: Exchange, rt: Runtime) -> None:
    """Head, body -> the named user becomes the principal: from here on it is scheduled, limited, billed and recorded.

    The header takes precedence over the body's `user`. Raises BadRequest, Forbidden, AuthUnavailable.
    """
    name = end_user(x)
    if name:
        x.principal = rt.end_users.lookup(x.principal, name) or await rt.end_users.find(x.principal, name)


def end_user(x: Exchange) -> str:
    """The end user's name, or an empty string."""
    given = x.head.headers.get(HEADER)
    if not given:
        return x.ask.user.strip()
    try:
        return given.decode().strip()
    except UnicodeDecodeError as err:
        raise BadRequest("X-OpenWebUI-User-Email is not UTF-8.") from err
