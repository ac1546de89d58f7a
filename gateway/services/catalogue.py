"""The catalogue: which model is on which backends, on what terms, and the scheduler's queues for them.

Pure: turns configuration and sightings of backends into the tables that requests read. Must not know breakers, looks,
principals or time.
"""

from collections.abc import Mapping, Sequence
from typing import Final, get_args
from urllib.parse import urlsplit

import msgspec

from gateway import config
from gateway.api.bridges import BRIDGES
from gateway.api.model_info import ModelInfo
from gateway.api.model_names import untagged
from gateway.api.routes import Routes
from gateway.services.route import Backend, Route, Terms
from gateway.urls import bracketed

_ALL: Final = frozenset(get_args(config.EngineKind))

SERVED_BY: Final[Mapping[tuple[str, str], frozenset[str]]] = {
    (row.dialect.name, row.kind): _ALL if row.upstream in BRIDGES or not row.engines else row.engines
    for row in Routes().rows
    if row.metered
}
"""(dialect, kind) -> the engines that can serve it, directly or over a bridge. Other combinations are not served."""

Held = tuple[config.Backend, ModelInfo]
Pools = dict[str, tuple[tuple[str, int], ...]]


class Catalogue(msgspec.Struct, frozen=True):
    """`models` by name; `pools` as in `Topology`; `routes`: (dialect, kind) -> model as asked -> route."""

    models: tuple[ModelInfo, ...] = ()
    pools: Pools = {}
    routes: dict[tuple[str, str], dict[str, Route]] = {}


def build(
    seen: Sequence[tuple[config.Backend, Sequence[ModelInfo]]],
    upstream: config.Upstream,
    overrides: Mapping[str, config.Model],
) -> Catalogue:
    """`seen`: every backend with its present models, in the order of the configuration."""
    holders = _holders(seen)
    own = {untagged(name): override for name, override in overrides.items()}
    terms = {name: _terms(upstream, own.get(untagged(name), config.Model())) for name in holders}
    pools: Pools = {}
    indexes = {engines: _index(holders, engines, terms, pools) for engines in set(SERVED_BY.values())}
    return Catalogue(
        models=tuple(_best([info for _, info in holders[name]]) for name in sorted(holders)),
        pools=pools,
        routes={what: indexes[engines] for what, engines in SERVED_BY.items()},
    )


def _holders(seen: Sequence[tuple[config.Backend, Sequence[ModelInfo]]]) -> dict[str, list[Held]]:
    """Model -> its backends: those that have it loaded first, then by weight, then in configured order."""
    holders: dict[str, list[Held]] = {}
    for section, infos in seen:
        for info in {info.name: info for info in infos}.values():
            holders.setdefault(info.name, []).append((section, info))
    for held in holders.values():
        held.sort(key=lambda pair: (not pair[1].loaded, -pair[0].weight))
    return holders


def _index(
    holders: Mapping[str, Sequence[Held]], engines: frozenset[str], terms: Mapping[str, Terms], pools: Pools
) -> dict[str, Route]:
    """Routes over the backends with one of these `engines`; their pools are added to `pools`."""
    index: dict[str, Route] = {}
    for name, held in holders.items():
        able = [(section, info) for section, info in held if section.engine in engines]
        if not able:
            continue
        pool = name if len(able) == len(held) else _part(name, able)
        pools[pool] = tuple((section.name, int(not info.loaded)) for section, info in able)
        candidates = tuple(section.name for section, _ in able)
        index[name] = Route(pool=pool, model=name, candidates=candidates, terms=terms[name])
    # Ollama's `name` means `name:latest`, unless there is a model called exactly `name`.
    short = {untagged(name): route for name, route in index.items() if untagged(name) not in holders}
    return index | short


def _terms(base: config.Upstream, own: config.Model) -> Terms:
    return Terms(
        connect=own.connect or base.connect,
        first_byte=own.first_byte or base.first_byte,
        between=own.between or base.between,
        total=own.total or base.total,
        retries=base.retries,
        max_output_tokens=own.max_output_tokens or base.max_output_tokens,
        cost_factor=own.cost_factor,
    )


def _best(infos: Sequence[ModelInfo]) -> ModelInfo:
    """The record to show in lists. Backends with the model loaded come first; among equals, an engine's own record is
    better than a bare name. Its context is the smallest of all backends', since any of them may get the request."""
    best = next((info for info in infos if info.detail and info.loaded == infos[0].loaded), infos[0])
    context = min((info.context for info in infos if info.context), default=0)
    return best if best.context == context else msgspec.structs.replace(best, context=context)


def _part(name: str, able: Sequence[Held]) -> str:
    return name + "\t" + "+".join(sorted({section.engine for section, _ in able}))


def base_url(url: str) -> str:
    """The base URL without a final slash and without the `/v1` that people copy from SDK settings."""
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def snapshot(section: config.Backend) -> Backend:
    """The backend in the form that requests need."""
    parts = urlsplit(base_url(section.url))
    host = bracketed(parts.hostname or "")
    return Backend(
        name=section.name,
        engine=section.engine,
        host_header=(f"{host}:{parts.port}" if parts.port else host).encode(),
        base_path=parts.path.rstrip("/").encode(),
        auth=f"Bearer {section.key}".encode() if section.key else b"",
    )
