"""Looks for secrets in every tracked file with detect-secrets; harmless findings are listed here with a reason."""

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Path prefix -> why a finding there is not a secret.
HARMLESS = {
    "docker/requirements.lock": "hashes of packages",
    "docker/build.lock": "hashes of packages",
    "docker/kubernetes/": "names of Secrets, which the operator makes",
    "gateway/flow/playground.html": "ids in its sample answers; the next rule still applies",
    "tests/": "keys made for tests; the next rule still applies",
    "bench/": "keys made for benchmarks; the next rule still applies",
}
# Never harmless, in any file: a private key, or a text in the form of a cloud credential.
NEVER = re.compile(
    r"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----\n[A-Za-z0-9+/=\n]{200,}|AKIA[0-9A-Z]{16}|ghp_[A-Za-z0-9]{36}"
)


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S607
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def findings(names: list[str]) -> list[str]:
    command = [sys.executable, "-m", "detect_secrets", "scan", *names]
    scanned = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S603
    results = json.loads(scanned.stdout)["results"]
    return [
        f"{name}:{one['line_number']}: {one['type']}"
        for name, found in results.items()
        for one in found
        if not name.startswith(tuple(HARMLESS))
    ]


def main() -> None:
    names = tracked()
    bad = findings(names)
    for name in names:
        text = (ROOT / name).read_bytes().decode("utf-8", "replace")
        bad += [f"{name}: {found[0][:30]!r}" for found in NEVER.finditer(text)]
    print("\n".join(bad) or f"{len(names)} files, nothing found")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
