"""`fairgate tenants|users|keys`: manages who may use the gateway. Must not know how a key is verified."""

import argparse
import time
from typing import Any

from gateway.commands.common import (
    CommandError,
    Commands,
    names,
    say,
    show_json,
    table,
    verb,
    when,
    with_store,
)
from gateway.commands.limits import limit_options, limits_of
from gateway.config import Config
from gateway.services import accounts
from gateway.services.accounts import KeyTerms
from gateway.services.rights import SCOPES
from gateway.store.base import Key, Store, Tenant, User


def add(commands: Commands) -> None:
    """Declare the three families."""
    _add_tenants(commands.add_parser("tenants", help="create, list and disable tenants"))
    _add_users(commands.add_parser("users", help="create, list and disable users"))
    _add_keys(commands.add_parser("keys", help="create, list, rotate, disable and revoke keys"))


def _add_tenants(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    create = verb(
        verbs, "create", create_tenant, "Create a tenant. Without --models or --all-models its keys may use no model."
    )
    create.add_argument("name")
    create.add_argument("--models", type=names, default=(), metavar="A,B", help="models its keys may use")
    create.add_argument("--all-models", action="store_true", help="let its keys use every model")
    create.add_argument("--share", type=float, default=1.0, help="weight of fair use among tenants (default: 1)")
    create.add_argument("--cidrs", type=names, default=(), metavar="NET,NET", help="networks its keys may be used from")
    limit_options(create)
    verb(verbs, "list", list_tenants, "List tenants.")
    disable = verb(verbs, "disable", disable_tenant, "Refuse all keys of a tenant.")
    disable.add_argument("name")
    enable = verb(verbs, "enable", enable_tenant, "Enable a disabled tenant again.")
    enable.add_argument("name")
    share = verb(verbs, "share", share_tenant, "Change the share of a tenant. Takes effect within a second.")
    share.add_argument("name")
    share.add_argument("share", type=float, help="weight of fair use among tenants")


def _add_users(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    create = verb(verbs, "create", create_user, "Create a user of a tenant.")
    create.add_argument("name")
    create.add_argument("--share", type=float, default=1.0, help="weight of fair use within the tenant (default: 1)")
    limit_options(create)
    disable = verb(verbs, "disable", disable_user, "Refuse all keys of a user.")
    disable.add_argument("name")
    enable = verb(verbs, "enable", enable_user, "Enable a disabled user again.")
    enable.add_argument("name")
    share = verb(verbs, "share", share_user, "Change the share of a user. Takes effect within a second.")
    share.add_argument("name")
    share.add_argument("share", type=float, help="weight of fair use within the tenant")
    for each in (create, disable, enable, share):
        each.add_argument("--tenant", required=True, help="name or id")
    listing = verb(verbs, "list", list_users, "List users.")
    listing.add_argument("--tenant", help="only of this tenant")


def _add_keys(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    create = verb(verbs, "create", create_key, "Create a key for a user and print it, once.")
    create.add_argument("--tenant", required=True, help="name or id")
    create.add_argument("--user", required=True, help="name or id")
    create.add_argument("--name", default="", help="what the key is for")
    _add_terms(create)
    listing = verb(verbs, "list", list_keys, "List keys, without the secrets, which are not stored.")
    listing.add_argument("--tenant", help="only of this tenant")
    listing.add_argument("--user", help="only of this user of the tenant")
    rotate = verb(verbs, "rotate", rotate_key, "Replace a key with a new one on the same terms and print it, once.")
    rotate.add_argument("id", help="the key's public id")
    rotate.add_argument(
        "--overlap",
        type=float,
        default=accounts.DEFAULT_OVERLAP,
        metavar="HOURS",
        help=f"how long the old key keeps working, 0-{accounts.LONGEST_OVERLAP:.0f} (default: %(default).0f)",
    )
    disable = verb(verbs, "disable", disable_key, "Refuse a key until it is enabled again.")
    disable.add_argument("id", help="the key's public id")
    enable = verb(verbs, "enable", enable_key, "Enable a disabled key again.")
    enable.add_argument("id", help="the key's public id")
    revoke = verb(verbs, "revoke", revoke_key, "Revoke a key permanently; running gateways refuse it within a second.")
    revoke.add_argument("id", help="the key's public id")


def _add_terms(create: argparse.ArgumentParser) -> None:
    create.add_argument("--models", type=names, default=(), metavar="A,B", help="restrict the tenant's models to these")
    create.add_argument(
        "--all-models",
        action=argparse.BooleanOptionalAction,
        help="allow all models of the tenant, or (--no-all-models) only --models; default: --models if given, else all",
    )
    create.add_argument(
        "--scopes",
        type=names,
        default=SCOPES,
        metavar="A,B",
        help=f"default: {','.join(SCOPES)}; for the admin API only: {','.join(accounts.ADMIN_SCOPES)}",
    )
    create.add_argument("--cidrs", type=names, default=(), metavar="NET,NET", help="networks it may be used from")
    create.add_argument(
        "--expires-days", type=_days, default=accounts.DEFAULT_DAYS, metavar="N", help="1-365, or never (default: 90)"
    )
    create.add_argument("--queue-timeout", type=float, metavar="SECONDS", help="maximum wait for a slot")
    create.add_argument("--priority", choices=accounts.PRIORITIES, default="interactive")
    create.add_argument("--on-behalf", action="store_true", help="let the key name the end user it acts for (chat UIs)")
    create.add_argument(
        "--force-model", default="", metavar="MODEL", help="serve this model, whatever the request names"
    )
    limit_options(create)


def _days(text: str) -> int | None:
    try:
        return None if text == "never" else int(text)
    except ValueError as err:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of days nor `never`") from err


# -- tenants


def create_tenant(args: argparse.Namespace) -> int:
    async def work(store: Store, _: Config) -> Tenant:
        return await accounts.create_tenant(
            store,
            args.name,
            models=args.models,
            allow_all_models=args.all_models,
            share=args.share,
            cidrs=args.cidrs,
            limits=limits_of(args),
        )

    tenant = with_store(args, work, begins=True)
    _show_tenants([tenant], args.json, one=True)
    if not tenant.models and not tenant.allow_all_models:
        say("It may use no model yet: nothing is allowed by default.")
    return 0


def list_tenants(args: argparse.Namespace) -> int:
    _show_tenants(with_store(args, lambda store, _: store.tenants()), args.json)
    return 0


def _show_tenants(tenants: list[Tenant], as_json: bool, *, one: bool = False) -> None:
    if as_json:
        show_json(tenants[0] if one else tenants)
        return
    rows = [(t.name, t.id, _models(t), t.share, t.cidrs, when(t.disabled_at)) for t in tenants]
    print(table(("TENANT", "ID", "MODELS", "SHARE", "NETWORKS", "DISABLED"), rows))


def _models(tenant: Tenant) -> str:
    return "all" if tenant.allow_all_models else ",".join(tenant.models) or "none"


def disable_tenant(args: argparse.Namespace) -> int:
    return _set_tenant(args, disabled=True)


def enable_tenant(args: argparse.Namespace) -> int:
    return _set_tenant(args, disabled=False)


def _set_tenant(args: argparse.Namespace, *, disabled: bool) -> int:
    tenant = with_store(args, lambda store, _: accounts.able_tenant(store, args.name, disabled=disabled))
    _show_done(args, tenant.id, "disabled" if disabled else "enabled")
    return 0


def share_tenant(args: argparse.Namespace) -> int:
    tenant = with_store(args, lambda store, _: accounts.share_tenant(store, args.name, args.share))
    _show_done(args, tenant.id, f"share {tenant.share:g}")
    return 0


# -- users


def create_user(args: argparse.Namespace) -> int:
    async def work(store: Store, _: Config) -> User:
        tenant = await accounts.find_tenant(store, args.tenant)
        return await accounts.create_user(store, tenant, args.name, share=args.share, limits=limits_of(args))

    user = with_store(args, work)
    if args.json:
        show_json(user)
    else:
        print(table(("USER", "ID", "SHARE"), [(user.name, user.id, user.share)]))
    return 0


def list_users(args: argparse.Namespace) -> int:
    async def work(store: Store, _: Config) -> tuple[dict[str, str], list[User]]:
        tenant = await accounts.find_tenant(store, args.tenant) if args.tenant else None
        users = await store.users(tenant.id if tenant else None)
        # Read last, so that the tenant of no user is missing
        return {t.id: t.name for t in await store.tenants()}, users

    tenants, users = with_store(args, work)
    if args.json:
        show_json(users)
    else:
        rows = [(tenants[u.tenant], u.name, u.id, u.share, when(u.disabled_at)) for u in users]
        print(table(("TENANT", "USER", "ID", "SHARE", "DISABLED"), rows))
    return 0


def disable_user(args: argparse.Namespace) -> int:
    return _set_user(args, disabled=True)


def enable_user(args: argparse.Namespace) -> int:
    return _set_user(args, disabled=False)


def _set_user(args: argparse.Namespace, *, disabled: bool) -> int:
    async def work(store: Store, _: Config) -> User:
        tenant = await accounts.find_tenant(store, args.tenant)
        return await accounts.able_user(store, tenant, args.name, disabled=disabled)

    _show_done(args, with_store(args, work).id, "disabled" if disabled else "enabled")
    return 0


def share_user(args: argparse.Namespace) -> int:
    async def work(store: Store, _: Config) -> User:
        tenant = await accounts.find_tenant(store, args.tenant)
        return await accounts.share_user(store, tenant, args.name, args.share)

    user = with_store(args, work)
    _show_done(args, user.id, f"share {user.share:g}")
    return 0


# -- keys


def create_key(args: argparse.Namespace) -> int:
    terms = KeyTerms(
        name=args.name,
        days=args.expires_days,
        models=args.models,
        allow_all_models=args.all_models,
        scopes=args.scopes,
        cidrs=args.cidrs,
        priority=args.priority,
        queue_timeout=args.queue_timeout,
        on_behalf=args.on_behalf,
        force_model=args.force_model,
        limits=limits_of(args),
    )

    async def work(store: Store, config: Config) -> tuple[Key, str]:
        user = await accounts.find_user(store, await accounts.find_tenant(store, args.tenant), args.user)
        return await accounts.create_key(store, user, terms, config.identity)

    _show_token(args, *with_store(args, work))
    return 0


def _show_token(args: argparse.Namespace, key: Key, token: str, **more: Any) -> None:
    """Print only the key to standard output, so that it can be redirected to a file."""
    if args.json:
        show_json({"token": token, **accounts.public(key), **more})
    else:
        say("This is the only time the key is shown:")
        print(token)
        say(f"id {key.id}, expires {_end(key)}")


def rotate_key(args: argparse.Namespace) -> int:
    """Print the new key; the old one expires after the overlap."""
    old, key, token = with_store(
        args, lambda store, config: accounts.rotate_key(store, args.id, args.overlap, config.identity)
    )
    _show_token(args, key, token, replaces={"id": old.id, "expires_at": old.expires_at})
    if not args.json:
        say(f"the old key {old.id} works until {when(old.expires_at)}")
    return 0


def list_keys(args: argparse.Namespace) -> int:
    if args.user and not args.tenant:
        raise CommandError("--user needs --tenant")

    async def work(store: Store, _: Config) -> tuple[dict[str, tuple[str, str]], list[Key]]:
        tenant = await accounts.find_tenant(store, args.tenant) if args.tenant else None
        user = await accounts.find_user(store, tenant, args.user) if tenant and args.user else None
        # In this order no key's user and no user's tenant is missing, whoever is created meanwhile.
        keys = await store.keys(user.id if user else None, tenant.id if tenant else None)
        users = await store.users(tenant.id if tenant else None)
        tenants = {t.id: t.name for t in await store.tenants()}
        return {u.id: (tenants[u.tenant], u.name) for u in users}, keys

    owners, keys = with_store(args, work)
    if args.json:
        show_json([accounts.public(key) for key in keys])
    else:
        rows = [(k.id, *owners[k.user], k.name, _state(k), _end(k), when(k.last_used_at)) for k in keys]
        print(table(("KEY", "TENANT", "USER", "NAME", "STATE", "EXPIRES", "LAST USED"), rows))
    return 0


def _end(key: Key) -> str:
    """When a key ends. Not `-`, which would read as unknown."""
    return "never" if key.expires_at is None else when(key.expires_at)


def _state(key: Key) -> str:
    if key.revoked_at is not None:
        return "revoked"
    if key.disabled_at is not None:
        return "disabled"
    return "expired" if key.expires_at is not None and key.expires_at <= time.time() * 1e6 else "active"


def disable_key(args: argparse.Namespace) -> int:
    return _set_key(args, disabled=True)


def enable_key(args: argparse.Namespace) -> int:
    return _set_key(args, disabled=False)


def _set_key(args: argparse.Namespace, *, disabled: bool) -> int:
    with_store(args, lambda store, _: accounts.able_key(store, args.id, disabled=disabled))
    _show_done(args, args.id, "disabled" if disabled else "enabled")
    return 0


def revoke_key(args: argparse.Namespace) -> int:
    with_store(args, lambda store, _: accounts.revoke_key(store, args.id))
    _show_done(args, args.id, "revoked")
    return 0


def _show_done(args: argparse.Namespace, row_id: str, done: str) -> None:
    if args.json:
        show_json({"id": row_id, "status": done})
    else:
        print(f"{row_id} {done}")
