"""Makes the lock files from pyproject.toml with uv: exact versions, hashes, no index address. `--check` only compares.

`docker/requirements.lock` lists what the image runs, including the extra `jwt` for tokens; `docker/build.lock` lists
what builds and compiles its wheel. Each file covers every supported Python and platform (uv's universal resolution).
Run it where the package index is reachable.
"""

import argparse
import ast
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
ADDRESS = re.compile(r"https?://|--(extra-)?index-url|--find-links")
HEAD = "# Made by `python docker/lock.py`. Install with: pip install --require-hashes --requirement {name}\n"


def inputs() -> dict[str, list[str]]:
    """Lock file -> the requirements it resolves."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    ours = project["project"]["dependencies"]
    image = [*ours, *project["project"]["optional-dependencies"]["jwt"]]
    return {
        "requirements.lock": image,
        "build.lock": [*project["build-system"]["requires"], "build>=1.2", *compilers(), *ours],
    }


def compilers() -> list[str]:
    """What the build hook needs to compile: the literal value of its COMPILERS (hatchling is not installed here)."""
    tree = ast.parse((ROOT / "hatch_build.py").read_text(encoding="utf-8"))
    values = [
        node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "COMPILERS"
    ]
    return list(ast.literal_eval(values[0]))


def resolve(requirements: list[str], known: Path) -> str:
    """The text of the lock file. Versions already in `known` are kept if they still fit, so that a check is stable."""
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "in.txt", Path(folder) / "out.txt"
        source.write_text("\n".join(requirements), encoding="utf-8")
        if known.exists():
            out.write_text(known.read_text(encoding="utf-8"), encoding="utf-8")
        options = ["--universal", "--python-version", "3.11", "--generate-hashes", "--no-header", "--no-annotate"]
        command = ["uv", "pip", "compile", *options, "--no-emit-index-url", "--output-file", str(out), str(source)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603  # a fixed command
        return out.read_text(encoding="utf-8")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--check", action="store_true", help="change nothing; fail when a lock file is stale")
    check = arguments.parse_args().check
    stale = []
    for name, requirements in inputs().items():
        path = HERE / name
        text = HEAD.format(name=f"docker/{name}") + resolve(requirements, path)
        if ADDRESS.search(text):
            raise SystemExit(f"{name} would name an index: {ADDRESS.search(text)}")
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
            if not check:
                path.write_text(text, encoding="utf-8")
    print(", ".join(stale) or "up to date")
    sys.exit("run: python docker/lock.py" if stale and check else 0)


if __name__ == "__main__":
    main()
