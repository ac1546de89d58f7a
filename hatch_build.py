"""Builds the wheel. With FAIRGATE_COMPILE=1 its hot modules become machine code (mypyc), from the same source.

`FAIRGATE_COMPILE=1 pip install .` needs a C compiler and takes two minutes of CPU; without the variable the wheel is
pure Python and needs neither. An editable install is never compiled. `tests/test_compiled.py` holds the rules that the
list below has to keep, `tox -e compiled` runs the tests on the compiled wheel.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

VARIABLE = "FAIRGATE_COMPILE"

COMPILED = {
    "scheduler": "aio averages charging commons core crowd deadlines estimate fleet gates party pool position ranking"
    " refusals request statistics usage",
    "gateway/http1": "chunks client connection eager head message pool reply server wire",
    "gateway/api": "anthropic body dialect frames ollama openai prompt_size stream usage",
    "gateway/flow": "exchange fields forward ids ledger names phases quota relay settle silence ticket",
    "gateway/services": "audit backends breaker budget exposition keys limits meters metrics pace principal rights"
    " route spool tally",
}
"""What a request or a frame passes through. A module is left out where it runs once (start, reload, administration),
or where it defines msgspec records: a compiled class statement loses their options and the types in their unions."""

COMPILERS = ("mypy[mypyc]>=1.14", "setuptools>=75", "types-PyYAML>=6.0", "asyncpg-stubs>=0.30")
"""What compiling needs beside the product's own dependencies, whose types mypy has to see."""

OPTIONS = {"opt_level": "3", "debug_level": "0", "separate": False, "group_name": "fairgate"}
"""One library for all modules: calls between them are calls of C, a quarter less for a whole exchange."""


def modules() -> list[str]:
    """Paths of the modules to compile, from the project's folder."""
    return [f"{folder}/{name}.py" for folder, names in COMPILED.items() for name in names.split()]


def wanted() -> bool:
    """Whether this build compiles."""
    return os.environ.get(VARIABLE, "0") not in ("", "0")


class Compile(BuildHookInterface[Any]):
    """Hatch's custom build hook."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """What the build environment needs beside hatchling."""
        if self.target_name != "wheel" or not wanted():
            return []
        return [*COMPILERS, *self.metadata.core.dependencies]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile into a folder of its own and add what came out to the wheel."""
        if version == "editable" or not wanted():
            return
        output = Path(tempfile.mkdtemp(prefix="fairgate-compiled-"))
        compile_to(Path(self.root), output)
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        library = output / "lib"
        for path in library.rglob("*.so"):
            build_data["force_include"][str(path)] = str(path.relative_to(library))


def compile_to(root: Path, output: Path) -> None:
    """Extension modules of `modules()` below `output/lib`. Raises what setuptools or the compiler complain about."""
    from mypyc.build import mypycify
    from setuptools import Distribution
    from setuptools.command.build_ext import build_ext

    before = Path.cwd()
    os.chdir(root)
    try:
        extensions = mypycify(["--config-file=pyproject.toml", *modules()], target_dir=str(output / "c"), **OPTIONS)
        command = build_ext(Distribution({"name": "fairgate", "ext_modules": extensions}))
        command.build_lib, command.build_temp = str(output / "lib"), str(output / "temp")
        command.parallel = os.cpu_count()
        command.ensure_finalized()
        command.run()
    finally:
        os.chdir(before)
