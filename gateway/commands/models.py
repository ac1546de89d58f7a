"""`fairgate models`: which models the configured engines have now, and by which other names they can be requested (O5).

Looks at each engine once, as discovery does; needs neither a gateway nor a store. Must not know keys: `GET /v1/models`
with a key lists what that key may use. Exit code 1: an engine did not answer, so models may be missing.
"""

import argparse
import asyncio

from gateway import config as cfg
from gateway.commands.common import (
    CommandError,
    Commands,
    config_option,
    configuration,
    json_option,
    say,
    show_json,
    table,
)
from gateway.services.catalogue import base_url
from gateway.services.discovery import LookFailed, Sighting, client, look
from gateway.services.model_list import gathered


def add(commands: Commands) -> None:
    """Declare it."""
    summary = "list the models that the configured engines have now"
    parser = commands.add_parser(
        "models", help=summary, description=f"{summary}. Exit code 1 means that an engine does not answer."
    )
    config_option(parser, "the YAML file that names the engines")
    json_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print a line for each model, and name engines that do not answer."""
    config = configuration(args)
    if not config.backends:
        raise CommandError("no backends are configured: name a file with --config or FAIRGATE_CONFIG")
    seen = asyncio.run(_look_at_all(config))
    silent = {name: sighting for name, sighting in seen.items() if isinstance(sighting, str)}
    answered = {name: sighting.models for name, sighting in seen.items() if isinstance(sighting, Sighting)}
    found = gathered(config, answered)
    if args.json:
        show_json(found)
    else:
        lists = ((row.model, row.backends, row.loaded, row.names) for row in found)
        rows = [(model, *map(", ".join, parts)) for model, *parts in lists]
        print(table(("MODEL", "BACKENDS", "LOADED", "OTHER NAMES"), rows))
    for name, why in silent.items():
        say(f"{name} does not answer: {why}")
    return 1 if silent else 0


async def _look_at_all(config: cfg.Config) -> dict[str, Sighting | str]:
    """Backend -> its models, or why they are not known."""
    sightings = await asyncio.gather(*(_look_at(backend, config.discovery.timeout) for backend in config.backends))
    return {backend.name: sighting for backend, sighting in zip(config.backends, sightings, strict=True)}


async def _look_at(backend: cfg.Backend, limit: float) -> Sighting | str:
    try:
        async with client(base_url(backend.url), key=backend.key, ca=backend.ca, timeout=limit) as http:
            return await look(http, backend.engine, frozenset(backend.models), limit)
    except (LookFailed, OSError) as err:
        return str(err)
