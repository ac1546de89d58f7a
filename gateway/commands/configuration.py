"""`fairgate check-config` and `fairgate schema`."""

import argparse
from pathlib import Path

from gateway import config as cfg
from gateway import loading
from gateway.commands.common import Commands, config_named, json_option, show_json


def add(commands: Commands) -> None:
    """Declare both."""
    check = commands.add_parser("check-config", help="check a configuration file")
    named = config_named()
    many = "?" if named else None  # argparse says itself that it is missing
    check.add_argument("file", type=Path, nargs=many, default=named, help="the YAML file (default: FAIRGATE_CONFIG)")
    json_option(check)
    check.set_defaults(run=check_config)
    schema = commands.add_parser("schema", help="print the JSON Schema of the configuration")
    json_option(schema)
    schema.set_defaults(run=print_schema)


def check_config(args: argparse.Namespace) -> int:
    """Print a summary of the file; the first fault ends it with exit code 1."""
    try:
        config = loading.load(args.file)
    except cfg.ConfigError as err:
        if not args.json:
            raise
        show_json({"valid": False, "error": str(err)})
        return 1
    backends = [backend.name for backend in config.backends]
    if args.json:
        show_json({"valid": True, "listen": config.listen, "backends": backends})
    else:
        print(f"{args.file}: valid; listens on {config.listen}, backends: {', '.join(backends) or 'none'}")
    return 0


def print_schema(_: argparse.Namespace) -> int:
    """Prints JSON with and without `--json`, since a schema has no other form."""
    show_json(cfg.schema())
    return 0
