"""The gateways compared, by name, in the order tables show them."""

from __future__ import annotations

from bench.peers.base import Peer
from bench.peers.fairgate import Fairgate, FairgateCompiled, FairgateOllama
from bench.peers.gateways import LiteLlm, Portkey, SglangRouter, VllmRouter
from bench.peers.plain import Direct, Haproxy, Nginx
from bench.peers.python import Aiohttp, FastApi
from bench.peers.variants import (
    Bare,
    CompiledOnPostgreSQL,
    CompiledTwoWorkers,
    CompiledWatched,
    OnPostgreSQL,
    TwoWorkers,
    Watched,
    WithoutAudit,
    WithoutAuth,
    WithoutLimits,
    WithoutMetrics,
    WithoutScheduler,
)

PEERS: dict[str, type[Peer]] = {
    kind.name: kind
    for kind in (
        Direct,
        Nginx,
        Haproxy,
        Fairgate,
        FairgateCompiled,
        FairgateOllama,
        VllmRouter,
        SglangRouter,
        Aiohttp,
        FastApi,
        Portkey,
        LiteLlm,
        Watched,
        CompiledWatched,
        WithoutAuth,
        WithoutLimits,
        WithoutScheduler,
        WithoutAudit,
        WithoutMetrics,
        Bare,
        OnPostgreSQL,
        CompiledOnPostgreSQL,
        TwoWorkers,
        CompiledTwoWorkers,
    )
}

__all__ = ["PEERS", "Peer"]
