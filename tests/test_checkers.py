"""What other people's checkers say of the files under docker/ and of the workflow.

Each runs where its program is installed and says why it is skipped elsewhere; `tox -e deploy` installs those that a
package index has and fails where one is missing (CHECKERS=required).
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCKER = ROOT / "docker"
UNITS = sorted((DOCKER / "systemd").glob("*.*"))
# Debian's; no package index has them.
OF_THE_SYSTEM = {"systemd-analyze", "strace"}
# The oldest Kubernetes that its own makers still mend is newer than this one.
KUBERNETES = ["1.29", "1.33", ""]


def tool(name: str) -> str:
    """The path of a program, beside this interpreter or on PATH; the test is skipped without it."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if found is None and os.environ.get("CHECKERS") == "required" and name not in OF_THE_SYSTEM:
        pytest.fail(f"{name} is not installed")
    if found is None:
        pytest.skip(f"{name} is not on this machine; tox -e deploy asks for it")
    return found


def run(*command: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True, timeout=100)


def says_nothing(*command: str | Path) -> None:
    done = run(*command)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_hadolint_accepts_the_dockerfile() -> None:
    says_nothing(tool("hadolint"), "docker/Dockerfile")


def test_shellcheck_accepts_the_scripts() -> None:
    says_nothing(tool("shellcheck"), "docker/postgres/app_role.sh", ".ci/run")


@pytest.mark.parametrize("version", KUBERNETES)
def test_the_manifests_fit_kubernetes_own_schemas(version: str) -> None:
    files = sorted((DOCKER / "kubernetes").glob("*.yaml"))
    chosen = ["--kubernetes-version", version] if version else []
    done = run(tool("kubernetes-validate"), "--strict", *chosen, *files)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (done.stdout + done.stderr).count(" passed ") == sum(
        path.read_text(encoding="utf-8").count("\nkind: ") for path in files
    )


def test_the_workflow_has_no_known_weakness() -> None:
    done = run(tool("zizmor"), "--offline", ".github/workflows")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("name", "published"), [("compose.yaml", {"fairgate", "grafana"}), ("compose.demo.yaml", {"fairgate"})]
)
def test_compose_itself_reads_the_files_as_they_are_meant(name: str, published: set[str]) -> None:
    """N-1: the rules that matter hold on what Compose makes of the file: anchors, profiles and variables resolved."""
    command = [tool("docker-compose"), "--env-file", "docker/images.env", "--file", f"docker/{name}", "--profile", "*"]
    done = run(*command, "config", "--format", "json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    resolved = json.loads(done.stdout)
    services = resolved["services"]
    ports = {service: definition.get("ports", []) for service, definition in services.items()}
    assert {service for service, listed in ports.items() if listed} == published
    assert {port["host_ip"] for listed in ports.values() for port in listed} == {"127.0.0.1"}
    assert resolved["networks"]["engines"]["internal"] is True
    reach = {service for service, definition in services.items() if "engines" in definition["networks"]}
    assert reach & {"ollama", "vllm"} == reach - {"fairgate"}
    for service, definition in services.items():
        mounted = [volume["source"] for volume in definition.get("volumes", []) if volume["type"] == "bind"]
        assert [source for source in mounted if not Path(source).exists()] == [], service


# ---- systemd


def test_systemd_knows_every_line_of_the_units(tmp_path: Path) -> None:
    analyze = tool("systemd-analyze")
    for unit in UNITS:
        text = unit.read_text(encoding="utf-8")
        # The programs are not installed here; everything else is as shipped.
        (tmp_path / unit.name).write_text(re.sub(r"/opt/fairgate/bin/\w+", "/bin/true", text), encoding="utf-8")
    says_nothing(analyze, "verify", *(tmp_path / unit.name for unit in UNITS))
    broken = tmp_path / "broken.service"
    broken.write_text("[Service]\nExecStart=/bin/true\nNoNewPrivilege=yes\n", encoding="utf-8")
    assert "NoNewPrivilege" in run(analyze, "verify", broken).stderr


@pytest.mark.parametrize(("unit", "worst"), [("fairgate.service", 20), ("fairgate-watch.service", 35)])
def test_systemd_rates_the_units_as_hardened(unit: str, worst: int) -> None:
    """Exposure in tenths, 0 to 100; a unit without any hardening has 96."""
    done = run(tool("systemd-analyze"), "security", "--offline=true", f"--threshold={worst}", DOCKER / "systemd" / unit)
    if "Overall exposure" not in done.stdout:
        pytest.skip(f"this systemd-analyze cannot rate a unit offline: {done.stderr.strip()[:100]}")
    assert done.returncode == 0, done.stdout.splitlines()[-1]


def calls_of(analyze: str, name: str) -> Iterator[str]:
    """The system calls of one of systemd's groups; a name without @ is a call itself."""
    if not name.startswith("@"):
        yield name
        return
    for line in run(analyze, "syscall-filter", "--no-pager", name).stdout.splitlines()[1:]:
        if line.strip() and not line.strip().startswith("#"):
            yield from calls_of(analyze, line.strip())


def allowed(analyze: str, unit: str) -> set[str]:
    """What the unit's filter lets through: its lines in order, @default always."""
    calls = set(calls_of(analyze, "@default"))
    for line in re.findall(r"(?m)^SystemCallFilter=(.*)$", unit):
        named = {call for name in line.lstrip("~").split() for call in calls_of(analyze, name)}
        calls = calls - named if line.startswith("~") else calls | named
    return calls


def test_the_units_filter_lets_the_gateway_run(tmp_path: Path) -> None:
    """All system calls of a whole demo: store, hashing threads, streams, drain."""
    analyze, strace = tool("systemd-analyze"), tool("strace")
    counted = tmp_path / "calls"
    command = [strace, "-f", "-qq", "-c", "-o", counted, sys.executable, "-m", "gateway", "demo", "--once"]
    done = run(*command, "--listen", "127.0.0.1:0")
    if not counted.exists() or not counted.stat().st_size:
        pytest.skip(f"strace may not trace here: {done.stderr.strip()[:100]}")
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in counted.read_text(encoding="utf-8").splitlines()]
    used = {row[-1] for row in rows if row and row[0][0].isdigit()} - {"total"}
    assert len(used) > 40
    # SQLite gives its files to their owner when it runs as root, which the unit's user is not.
    used -= {"fchown"} if os.geteuid() == 0 else set()
    assert used - allowed(analyze, (DOCKER / "systemd/fairgate.service").read_text(encoding="utf-8")) == set()
