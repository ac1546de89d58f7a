"""Builds sdist and wheel from the tree, checks what is inside, and runs the wheel in an empty environment.

Exit code 0 only if the built product makes its demo's five requests by itself, away from the checkout.
"""

import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "docker" / "requirements.lock"
# Data files that the code opens at run time: a wheel without them starts and then fails.
NEEDED = ("gateway/py.typed", "gateway/flow/playground.html", "gateway/store/migrations/")


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, timeout=600)  # noqa: S603
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stdout}\n{done.stderr}")
    return done.stdout


def build(folder: Path) -> tuple[Path, Path]:
    """(wheel, sdist); the wheel is built from the sdist, as an installer would do it."""
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT, cwd=folder)
    return next(folder.glob("*.whl")), next(folder.glob("*.tar.gz"))


def check_wheel(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    strangers = {name.split("/")[0] for name in names} - {"gateway", "scheduler"}
    strangers = {name for name in strangers if not name.endswith(".dist-info")}
    if strangers:
        raise SystemExit(f"the wheel holds more than the product: {sorted(strangers)}")
    present = [need for need in NEEDED if (ROOT / need).exists()]
    missing = [need for need in present if not any(name.startswith(need) for name in names)]
    if missing:
        raise SystemExit(f"the wheel lacks {missing}")
    if not any(name.endswith("licenses/LICENSE") for name in names):
        raise SystemExit("the wheel lacks its licence")


def check_sdist(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = [member.name.partition("/")[2] for member in archive.getmembers()]
    needed = ("LICENSE", "README.md", "SECURITY.md", "tests/test_layers.py", "bench/run.py")
    missing = [need for need in needed if need not in names]
    caches = [name for name in names if "__pycache__" in name or name.endswith((".db", ".pyc"))]
    if missing or caches:
        raise SystemExit(f"the sdist lacks {missing} and holds {caches}")


def check_run(wheel: Path, folder: Path) -> str:
    """Install by hash in an empty environment, run the command from an empty folder -> the demo's last line."""
    venv.create(folder / "env", with_pip=True)
    python, fairgate = folder / "env/bin/python", folder / "env/bin/fairgate"
    run(python, "-m", "pip", "install", "--quiet", "--require-hashes", "--requirement", LOCK, cwd=folder)
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", wheel, cwd=folder)
    run(python, "-m", "pip", "check", cwd=folder)
    empty = folder / "empty"
    empty.mkdir()
    run(fairgate, "--version", cwd=empty)
    run(fairgate, "schema", cwd=empty)
    lines = run(fairgate, "demo", "--once", "--listen", "127.0.0.1:0", cwd=empty).strip().splitlines()
    if list(empty.iterdir()):
        raise SystemExit(f"the demo left {list(empty.iterdir())} behind")
    return lines[-1]


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel, sdist = build(folder)
        check_wheel(wheel)
        check_sdist(sdist)
        print(f"{wheel.name} and {sdist.name} are clean; run from the wheel: {check_run(wheel, folder)}")


if __name__ == "__main__":
    main()
