"""Every route of the admin API: method, path, required scope, and the function that answers. The only list of them.

`docs/admin-api.md` is generated from this table.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from gateway.admin import people, running
from gateway.admin.call import Call
from gateway.errors import MethodNotAllowed, NotFound
from gateway.services.accounts import ADMIN_SCOPES

BASE = "/admin/v1"
READ, WRITE = ADMIN_SCOPES


@dataclass(frozen=True)
class Row:
    """`path` is relative to BASE; each of its `{names}` matches one segment. `asks`: whether it takes a query."""

    method: str
    path: str
    answer: Callable[[Call], Awaitable[object]]
    says: str
    status: int = 200
    asks: bool = False

    @property
    def scope(self) -> str:
        """The scope required: one for reading, the other one for changing."""
        return READ if self.method == "GET" else WRITE

    def match(self, segments: list[str]) -> dict[str, str] | None:
        """The segments for the names, or None if the path does not match."""
        own = self.path.split("/")[1:]
        if len(own) != len(segments):
            return None
        pairs = list(zip(own, segments, strict=True))
        if any(name != given for name, given in pairs if not name.startswith("{")):
            return None
        return {name[1:-1]: given for name, given in pairs if name.startswith("{")}


TENANT, USER, KEY = "/tenants/{tenant}", "/tenants/{tenant}/users/{user}", "/keys/{key}"

ROWS = (
    Row("GET", "/self", running.myself, "whose key this is, and its scopes"),
    Row("GET", "/stats", running.stats, "queues, slots, shares, connections; the same as `/stats`"),
    Row("GET", "/backends", running.backends, "the current state of the engines"),
    Row(
        "GET", "/models", running.models, "models, their backends and aliases; the same as `fairgate models`", asks=True
    ),
    Row("GET", "/tenants", people.tenants, "tenants by name", asks=True),
    Row("POST", "/tenants", people.new_tenant, "create a tenant", 201),
    Row("GET", TENANT, people.tenant, "one tenant"),
    Row("POST", f"{TENANT}/disable", people.disable_tenant, "refuse all keys of a tenant"),
    Row("POST", f"{TENANT}/enable", people.enable_tenant, "enable a tenant again"),
    Row("PUT", f"{TENANT}/share", people.share_tenant, "change a tenant's share"),
    Row("GET", f"{TENANT}/limits", people.limits, "limits of a tenant, and how much of the budgets is spent"),
    Row("PATCH", f"{TENANT}/limits", people.change_limits, "change the named limits; null removes one"),
    Row("DELETE", f"{TENANT}/limits", people.clear_limits, "remove all limits"),
    Row("GET", "/users", people.users, "users, of all tenants or of `tenant`", asks=True),
    Row("GET", f"{TENANT}/users", people.users_of_tenant, "users of a tenant by name", asks=True),
    Row("POST", f"{TENANT}/users", people.new_user, "create a user", 201),
    Row("GET", USER, people.user, "one user"),
    Row("POST", f"{USER}/disable", people.disable_user, "refuse all keys of a user"),
    Row("POST", f"{USER}/enable", people.enable_user, "enable a user again"),
    Row("PUT", f"{USER}/share", people.share_user, "change a user's share"),
    Row("GET", f"{USER}/limits", people.limits, "limits of a user, and how much of the budgets is spent"),
    Row("PATCH", f"{USER}/limits", people.change_limits, "change the named limits; null removes one"),
    Row("DELETE", f"{USER}/limits", people.clear_limits, "remove all limits"),
    Row("GET", "/keys", people.keys, "keys by age, of all tenants or of `tenant` and its `user`", asks=True),
    Row("POST", "/keys", people.new_key, "create a key; `token` is shown only here", 201),
    Row("GET", KEY, people.key, "one key, by its public id"),
    Row("POST", f"{KEY}/rotate", people.rotate_key, "create a key with the same terms; the old one expires", 201),
    Row("POST", f"{KEY}/disable", people.disable_key, "refuse a key until it is enabled"),
    Row("POST", f"{KEY}/enable", people.enable_key, "enable a key again"),
    Row("POST", f"{KEY}/revoke", people.revoke_key, "refuse a key permanently"),
    Row("GET", f"{KEY}/limits", people.limits, "limits of a key, and how much of the budgets is spent"),
    Row("PATCH", f"{KEY}/limits", people.change_limits, "change the named limits; null removes one"),
    Row("DELETE", f"{KEY}/limits", people.clear_limits, "remove all limits"),
    Row("GET", "/usage", running.usage, "requests, tokens, times and cost; the same as `fairgate usage`", asks=True),
    Row("GET", "/settings", running.settings, "the fair-use settings in force, and where each comes from"),
    Row("GET", "/settings/{setting}", running.setting, "one setting"),
    Row("PUT", "/settings/{setting}", running.set_setting, "change one setting"),
    Row("DELETE", "/settings/{setting}", running.clear_setting, "go back to the configuration's value"),
    Row("GET", "/reservations", running.reservations, "windows that have not ended", asks=True),
    Row("POST", "/reservations", running.new_reservation, "request a window, or create it already approved", 201),
    Row("POST", "/reservations/{reservation}/approve", running.approve, "approve a requested window"),
    Row("POST", "/reservations/{reservation}/cancel", running.cancel, "end a window or withdraw a request"),
    Row("GET", "/audit", running.audit, "the latest rows of the audit trail that match", asks=True),
    Row("GET", "/actions", running.actions, "actions of admins, latest last", asks=True),
)


def find(method: str, path: str) -> tuple[Row, dict[str, str]]:
    """The row of a path below BASE, and the segments for its names. Raises NotFound, MethodNotAllowed."""
    segments = path.split("/")[1:]
    there = [(row, named) for row in ROWS if (named := row.match(segments)) is not None and all(named.values())]
    if not there or "\0" in path:  # the store cannot hold NUL in a text
        raise NotFound("There is no such route.")
    for row, named in there:
        if row.method == method:
            return row, named
    allow = ", ".join(row.method for row, _ in there)
    raise MethodNotAllowed(f"This route takes {allow}.", allow)
