"""`fairgate serve` and `fairgate demo`: the commands that run the gateway."""

import argparse
import asyncio
import contextlib
import errno
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

import uvloop

from gateway import config, loading, logs
from gateway.app import serve
from gateway.commands.common import CommandError, config_option, whole
from gateway.demo import DemoError, Options, demo
from gateway.process import cause_of

T = TypeVar("T")


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the commands to the tree."""
    server = commands.add_parser("serve", help="run the gateway")
    config_option(server, "the YAML file (default: FAIRGATE_CONFIG)")
    server.set_defaults(run=_serve)
    trial = commands.add_parser("demo", help="try the gateway in front of a local or simulated Ollama")
    trial.add_argument("--listen", default="127.0.0.1:8080", metavar="HOST:PORT", help="port 0 chooses a free port")
    trial.add_argument(
        "--backend", default="", metavar="URL", help="URL of an engine (default: local Ollama, else simulated)"
    )
    trial.add_argument("--engine", default="ollama", choices=("ollama", "vllm", "llamacpp", "openai"))
    trial.add_argument("--model", default="", metavar="NAME", help="the model to show (default: the first)")
    trial.add_argument(
        "--slots", type=whole(1, 1_000_000), metavar="N", help="concurrent requests (default: discovered, else 4)"
    )
    trial.add_argument("--json", action="store_true", help="print one JSON line when ready")
    trial.add_argument("--once", action="store_true", help="run the five commands, show them and exit")
    trial.set_defaults(run=_demo)


def _serve(args: argparse.Namespace) -> int:
    if args.config is None:
        raise CommandError("serve needs a configuration: --config FILE (`fairgate demo` needs none)")
    settings = loading.load(args.config)
    with _logging(settings):

        def load() -> config.Config:
            fresh = loading.load(args.config)
            logs.know(loading.secrets(fresh))
            return fresh

        _run(serve(settings, load=load))
    return 0


def _demo(args: argparse.Namespace) -> int:
    options = Options(
        listen=args.listen,
        backend=args.backend,
        engine=args.engine,
        model=args.model,
        slots=args.slots,
        json=args.json,
        once=args.once,
    )
    with _logging(config.Config(log=config.Log(level="warning"))):
        return _run(demo(options))


@contextlib.contextmanager
def _logging(settings: config.Config) -> Iterator[None]:
    """JSON lines on standard error, in which configured secrets are hidden."""
    logging = logs.setup(settings.log.level, secrets=loading.secrets(settings))
    try:
        yield
    finally:
        logging.stop()


def _run(main: Coroutine[Any, Any, T]) -> T:
    """Run on uvloop; a failed start gives one sentence instead of a traceback."""
    try:
        with contextlib.closing(asyncio.Runner(loop_factory=uvloop.new_event_loop)) as runner:
            return runner.run(main)
    except Exception as err:
        cause = cause_of(err)
        if isinstance(cause, OSError) and cause.errno == errno.EADDRINUSE:
            raise CommandError(f"{cause.strerror}; end what listens there, or listen elsewhere") from err
        if isinstance(cause, (DemoError, OSError)):
            raise CommandError(str(cause)) from err
        raise cause from err
