"""The files under docker/: parsed, and held to the rules that make them safe to use as they are.

No container engine runs here: these are rules of our own on the parsed files. tests/test_kubernetes.py does the same
for the manifests; tests/test_checkers.py asks other people's checkers.
"""

import importlib.util
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from gateway import config, loading
from gateway.http1.server import CUT
from gateway.services import audit
from gateway.services.metrics_table import BY_NAME, METRICS

ROOT = Path(__file__).resolve().parent.parent
DOCKER = ROOT / "docker"
COMPOSE = ["compose.yaml", "compose.demo.yaml"]
PUBLISHES = {"fairgate", "grafana"}


def script(path: Path) -> ModuleType:
    """A script of docker/ as a module, without making docker/ a package."""
    spec = importlib.util.spec_from_file_location(f"docker_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compose(name: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((DOCKER / name).read_text(encoding="utf-8"))
    return document


def test_every_yaml_file_parses() -> None:
    files = [*DOCKER.rglob("*.yaml"), ROOT / "mkdocs.yml"]
    assert len(files) > 10
    for path in files:
        text = path.read_text(encoding="utf-8")
        if path.name != "mkdocs.yml":
            assert list(yaml.safe_load_all(text)), path


# ---- compose


@pytest.mark.parametrize("name", COMPOSE)
def test_no_engine_or_database_publishes_a_port(name: str) -> None:
    """N-1, S-N1: an engine that can be reached directly makes every other control worthless."""
    services = compose(name)["services"]
    for service, definition in services.items():
        assert definition.get("network_mode") != "host", service
        if service not in PUBLISHES:
            assert "ports" not in definition, service
        for port in definition.get("ports", []):
            assert str(port).startswith("127.0.0.1:"), f"{service} publishes beyond loopback"


@pytest.mark.parametrize("name", COMPOSE)
def test_engines_live_on_an_internal_network_that_only_the_gateway_joins(name: str) -> None:
    document = compose(name)
    assert document["networks"]["engines"]["internal"] is True
    members = {service for service, one in document["services"].items() if "engines" in one["networks"]}
    assert "fairgate" in members
    for service in members - {"fairgate"}:
        assert document["services"][service]["networks"] == ["engines"], service


def test_the_volumes_and_images_of_the_page_are_those_of_the_production_file() -> None:
    """A model comes into a volume by a container beside those of the file: the engines' network leads nowhere."""
    text = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    filled = dict(re.findall(r"--volume (\S+):\S+ .*?(\S+/\S+:v?[0-9.]+) ?", text.replace("\\\n", " ")))
    document = compose("compose.yaml")
    engines = [document["services"][name] for name in ("ollama", "vllm")]
    served = {f"{document['name']}_{one['volumes'][0].partition(':')[0]}": one["image"] for one in engines}
    assert {volume: image.partition(":-")[2].rstrip("}") for volume, image in served.items()} == filled


@pytest.mark.parametrize("name", COMPOSE)
def test_services_are_hardened(name: str) -> None:
    for service, definition in compose(name)["services"].items():
        assert "no-new-privileges:true" in definition["security_opt"], service
        assert not definition.get("privileged"), service
        if service not in {"ollama", "vllm"} or name == "compose.demo.yaml":
            assert definition["read_only"] is True, service
            assert definition["cap_drop"] == ["ALL"], service
        for volume in definition.get("volumes", []):
            assert "docker.sock" not in volume, service


@pytest.mark.parametrize("name", COMPOSE)
def test_images_are_pinned_and_secrets_are_files(name: str) -> None:
    document = compose(name)
    for service, definition in document["services"].items():
        image = re.sub(r"\$\{\w+:-(.*)\}", r"\1", definition["image"])
        assert re.search(r":v?\d+\.\d+[\w.-]*$|:local$|@sha256:", image), f"{service} has no version: {image}"
        for key, value in (definition.get("environment") or {}).items():
            secret = re.search(r"(?i)password|secret|token|_key$", key)
            assert not secret or key.endswith(("__FILE", "_FILE")) or str(value).startswith("/run/secrets/"), (
                f"{service}: {key}"
            )
    for secret in document.get("secrets", {}).values():
        assert list(secret) == ["file"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The secret files, as the script makes them."""
    maker = script(DOCKER / "make_secrets.py")
    maker.FOLDER = tmp_path_factory.mktemp("docker") / "docker" / "secrets"
    maker.FOLDER.parent.mkdir()
    maker.main()
    before = {path.name: path.read_text(encoding="utf-8") for path in maker.FOLDER.iterdir()}
    maker.main()
    assert before == {path.name: path.read_text(encoding="utf-8") for path in maker.FOLDER.iterdir()}, (
        "kept, not remade"
    )
    assert maker.FOLDER.stat().st_mode & 0o777 == 0o700
    assert len(set(before.values())) == len(before)
    folder: Path = maker.FOLDER
    return folder


@pytest.mark.parametrize("name", COMPOSE)
def test_every_secret_that_a_service_asks_for_is_made(name: str, made: Path) -> None:
    document = compose(name)
    declared = document.get("secrets", {})
    assert {secret["file"].removeprefix("./secrets/") for secret in declared.values()} <= {
        p.name for p in made.iterdir()
    }
    for service, definition in document["services"].items():
        text = json.dumps(definition)
        assert set(re.findall(r"/run/secrets/(\w+)", text)) <= set(definition.get("secrets", [])) <= set(declared), (
            service
        )


@pytest.mark.parametrize("name", ["demo.yaml", "production.yaml", "migrate.yaml"])
def test_shipped_configurations_are_valid(name: str, made: Path) -> None:
    text = (DOCKER / "config" / name).read_text(encoding="utf-8")
    parsed = loading.parse(text.replace("/run/secrets", str(made)))
    assert bool(parsed.backends) is (name != "migrate.yaml")
    assert parsed.playground is (name == "demo.yaml")


# ---- the image


def dockerfile() -> list[tuple[str, str]]:
    steps: list[tuple[str, str]] = script(DOCKER / "replay.py").instructions(
        (DOCKER / "Dockerfile").read_text(encoding="utf-8")
    )
    return steps


def test_the_image_is_slim_pinned_staged_and_nobody() -> None:
    steps = dockerfile()
    stages = [rest for word, rest in steps if word == "FROM"]
    assert len(stages) >= 3
    base = next(rest for word, rest in steps if word == "ARG")
    assert re.fullmatch(r"PYTHON_IMAGE=python:\d+\.\d+\.\d+-slim-\w+(@sha256:[0-9a-f]{64})?", base)
    users = [rest for word, rest in steps if word == "USER"]
    assert users == ["10001:10001"], "a number, so that runAsNonRoot can be verified"
    after = steps[[word for word, _ in steps].index("USER") :]
    assert not [rest for word, rest in after if word in ("RUN", "ADD", "COPY")], "nothing is installed as the user"
    assert all(rest.startswith("[") for word, rest in steps if word in ("CMD", "ENTRYPOINT")), (
        "exec form: signals arrive"
    )
    assert not [rest for word, rest in steps if word == "ADD"]
    assert [rest for word, rest in steps if word == "HEALTHCHECK"]


def images() -> dict[str, str]:
    """Variable -> image with its version, of docker/images.env; digests are left out."""
    text = (DOCKER / "images.env").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    found = [script(DOCKER / "pin.py").LINE.fullmatch(line) for line in lines]
    assert None not in found, "each line is NAME_IMAGE=image:version, with or without @sha256:digest"
    return {line[1]: line[2] for line in found if line}


def test_one_file_names_every_image_and_says_which_has_no_digest(capsys: pytest.CaptureFixture[str]) -> None:
    """S-S2: what a release pins is all there is to pin."""
    pattern = re.compile(r"\$\{(\w+_IMAGE):-([^}@]+)(?:@\S+)?\}")
    named = dict(pattern.findall("".join((DOCKER / name).read_text(encoding="utf-8") for name in COMPOSE)))
    assert named == images()
    base = next(rest for word, rest in dockerfile() if word == "ARG")
    assert base == f"PYTHON_IMAGE={images()['PYTHON_IMAGE']}"
    engine = (DOCKER / "kubernetes/30-engine.yaml").read_text(encoding="utf-8")
    assert f"image: {images()['VLLM_IMAGE']}" in engine
    unset = len(images()) - len(re.findall(r"(?m)^\w+=.*@sha256:", (DOCKER / "images.env").read_text(encoding="utf-8")))
    assert script(DOCKER / "pin.py").main(["--check"]) == (1 if unset else 0)
    assert capsys.readouterr().out.count("unset") == unset


def test_pinning_writes_what_the_registry_says_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`docker` is a stand-in here: no registry can be asked."""
    pin = script(DOCKER / "pin.py")
    pin.LOCK = tmp_path / "images.env"
    pin.LOCK.write_text("# kept\nA_IMAGE=a/b:1.2\nB_IMAGE=c:3@sha256:" + "0" * 64 + "\n", encoding="utf-8")
    docker = tmp_path / "docker"
    docker.write_text('#!/bin/sh\necho "$ANSWER"\n', encoding="utf-8")
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("ANSWER", "denied")
    before = pin.LOCK.read_text(encoding="utf-8")
    with pytest.raises(SystemExit, match="no digest"):
        pin.main([])
    assert pin.LOCK.read_text(encoding="utf-8") == before
    assert pin.main(["--check"]) == 1
    said = "sha256:" + "5" * 64
    monkeypatch.setenv("ANSWER", said)
    assert pin.main([]) == 0
    assert pin.LOCK.read_text(encoding="utf-8") == f"# kept\nA_IMAGE=a/b:1.2@{said}\nB_IMAGE=c:3@{said}\n"
    assert pin.main(["--check"]) == 0


def test_dependencies_are_installed_by_hash_only() -> None:
    for word, rest in dockerfile():
        if word == "RUN" and "pip install" in rest:
            for install in re.findall(r"pip install ([^&]*)", rest):
                assert "--require-hashes" in install or "--no-index" in install, install
            assert not re.search(r"curl|wget|apt-get", rest)


def test_lock_files_have_a_hash_for_each_version_and_name_no_index() -> None:
    for name in ("requirements.lock", "build.lock"):
        text = (DOCKER / name).read_text(encoding="utf-8")
        entries = re.split(r"\n(?=[a-z])", text.split("\n", 1)[1].strip())
        assert len(entries) > 5
        for entry in entries:
            assert re.match(r"[a-z0-9._-]+(\[\w+\])?==[\w.]+", entry), entry[:80]
            assert "--hash=sha256:" in entry, entry[:80]
        assert not script(DOCKER / "lock.py").ADDRESS.search(text)


def test_lock_file_covers_the_declared_dependencies() -> None:
    declared = script(DOCKER / "lock.py").inputs()["requirements.lock"]
    locked = (DOCKER / "requirements.lock").read_text(encoding="utf-8")
    for requirement in declared:
        name = re.split(r"[\[<>=~; ]", requirement)[0]
        assert re.search(rf"(?m)^{re.escape(name)}(\[\w+\])?==", locked), f"{name}: run python docker/lock.py"


def test_actions_are_pinned_and_may_only_read() -> None:
    """S-S1: a tag can be moved to other code, a commit cannot."""
    for path in (ROOT / ".github/workflows").glob("*.yml"):
        text = path.read_text(encoding="utf-8")
        used = re.findall(r"uses: *(\S+)", text)
        assert used
        assert [action for action in used if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action)] == []
        workflow = yaml.safe_load(text)
        assert workflow["permissions"] == {"contents": "read"}
        asked = [env for job in workflow["jobs"].values() for env in job["strategy"]["matrix"].get("env", [])]
        tox = (ROOT / "tox.ini").read_text(encoding="utf-8")
        assert [env for env in asked if f"[testenv:{env}]" not in tox] == []


# ---- stopping


def test_whoever_stops_the_gateway_waits_longer_than_it_drains() -> None:
    """H13: the drain, what is cut then, and what the audit trail still delivers."""
    drain = config.Timeouts().drain + 2 * CUT + audit.CLOSE_SECONDS
    for name in COMPOSE:
        assert int(compose(name)["services"]["fairgate"]["stop_grace_period"].rstrip("s")) > drain
    unit = (DOCKER / "systemd" / "fairgate.service").read_text(encoding="utf-8")
    assert float(re.search(r"TimeoutStopSec=(\d+)", unit)[1]) > drain  # type: ignore[index]  # absent is a failure too


# ---- systemd


def test_units_that_share_a_state_folder_agree_on_its_mode() -> None:
    """U4: systemd sets it at each start, to 0755 where a unit does not say."""
    modes: dict[str, set[str]] = {}
    for path in (DOCKER / "systemd").glob("*.service"):
        unit = path.read_text(encoding="utf-8")
        for folder in re.findall(r"(?m)^StateDirectory=(.*)$", unit):
            modes.setdefault(folder, set()).update(re.findall(r"(?m)^StateDirectoryMode=(.*)$", unit) or {"0755"})
    assert modes == {"fairgate": {"0750"}}


def test_the_unit_leaves_the_gateway_what_its_metrics_read() -> None:
    """O2: `process_*` needs /proc/stat, which `ProcSubset=pid` hides."""
    unit = (DOCKER / "systemd" / "fairgate.service").read_text(encoding="utf-8")
    assert not re.search(r"(?m)^ProcSubset=", unit)


def test_shipped_configurations_name_the_proxy_that_ends_tls() -> None:
    """H9, K4: else all clients would share one address, its throttle and its caps."""
    kubernetes = next(
        each["data"]["fairgate.yaml"]
        for each in yaml.safe_load_all((DOCKER / "kubernetes" / "10-config.yaml").read_text(encoding="utf-8"))
        if each["kind"] == "ConfigMap"
    )
    texts = [path.read_text(encoding="utf-8") for path in (DOCKER / "config").glob("*.yaml")] + [kubernetes]
    behind = [made for text in texts if (made := yaml.safe_load(text)).get("hsts") and not made.get("tls")]
    assert len(behind) == 2
    assert all(made["trusted_proxies"] for made in behind)


def test_the_unit_says_the_essentials() -> None:
    unit = (DOCKER / "systemd" / "fairgate.service").read_text(encoding="utf-8")
    for line in (
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "LimitCORE=0",
        "CapabilityBoundingSet=",
        "User=fairgate",
        "RestartForceExitStatus=SIGHUP",
    ):
        assert f"\n{line}\n" in unit, line


# ---- watching


def alerts() -> list[dict[str, Any]]:
    document = yaml.safe_load((DOCKER / "prometheus" / "alerts.yaml").read_text(encoding="utf-8"))
    return [rule for group in document["groups"] for rule in group["rules"]]


def test_alerts_ask_only_for_metrics_that_exist() -> None:
    watch = re.findall(r"# TYPE (\w+)", script(DOCKER / "watch" / "unusual.py").exposition(0, 0, 0.0))
    known = set(BY_NAME) | {f"{name}_bucket" for name, one in BY_NAME.items() if one.kind == "histogram"} | set(watch)
    for rule in alerts():
        names = set(re.findall(r"\bfairgate_\w+", rule["expr"]))
        assert names <= known, f"{rule['alert']}: {names - known}"


def test_alerts_name_label_values_that_exist() -> None:
    from gateway.services.metrics_table import LABELS

    for rule in alerts():
        for label, _, values in re.findall(r'(\w+)(=~|=)"([^"]+)"', rule["expr"]):
            if label in LABELS:
                assert any(re.fullmatch(values, known) for known in LABELS[label]), f"{rule['alert']}: {label}={values}"


def test_every_alert_has_a_unit_test_that_fires_and_one_that_does_not() -> None:
    tests = yaml.safe_load((DOCKER / "prometheus" / "alerts.test.yaml").read_text(encoding="utf-8"))["tests"]
    cases = [case for one in tests for case in one["alert_rule_test"]]
    names = {rule["alert"] for rule in alerts()}
    assert names == {case["alertname"] for case in cases if case.get("exp_alerts")}
    assert names == {case["alertname"] for case in cases if not case.get("exp_alerts")}


@pytest.mark.parametrize("arguments", [["check", "rules", "alerts.yaml"], ["test", "rules", "alerts.test.yaml"]])
def test_promtool_agrees(arguments: list[str]) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not on this machine (Debian package prometheus); tox -e alerts asks for it")
    done = subprocess.run([promtool, *arguments], cwd=DOCKER / "prometheus", capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_dashboard_is_current_and_shows_every_metric() -> None:
    dashboard = script(DOCKER / "grafana" / "dashboard.py")
    text = (DOCKER / "grafana" / "dashboard.json").read_text(encoding="utf-8")
    assert text == dashboard.text(), "run: python docker/grafana/dashboard.py"
    queries = " ".join(one["expr"] for panel in json.loads(text)["panels"] for one in panel.get("targets", []))
    assert [metric.name for metric in METRICS if metric.name not in queries] == []


NOW = 1_800_000_000.0


def row(key: str, hours_ago: float, tokens: int = 1000, ip: str = "192.0.2.7", status: int = 200) -> dict[str, Any]:
    started = int((NOW - hours_ago * 3600) * 1e6)
    return {
        "key": key, "started_at": started, "prompt_tokens": tokens, "completion_tokens": 0, "ip": ip, "status": status,
    }  # fmt: skip


def test_the_watch_finds_a_key_far_above_itself() -> None:
    watch = script(DOCKER / "watch" / "unusual.py")
    usual = [row(key, hours, 30_000) for key in ("steady", "stolen") for hours in (1.5, 2.5, 26.5)]
    rows = [*usual, row("steady", 0.5, 90_000), row("stolen", 0.5, 900_000), row("new", 0.5, 900_000), row("", 0.5, 1)]
    assert watch.unusual(rows, NOW) == [("stolen", 900_000, 30_000)]


def test_the_watch_finds_a_network_a_key_never_came_from() -> None:
    watch = script(DOCKER / "watch" / "unusual.py")
    rows = [
        row("a", 30), row("a", 0.5), row("a", 0.4, ip="192.0.2.200"), row("a", 0.3, ip="198.51.100.1"),
        row("b", 0.2, ip="203.0.113.5"), row("c", 30), row("c", 0.2, ip="203.0.113.5", status=401),
    ]  # fmt: skip
    assert watch.new_networks(rows, NOW) == [("a", "198.51.100.0/24")]
    assert watch.network("2001:db8:1:2::3") == "2001:db8:1::/48"


def test_the_watch_writes_counts_and_never_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    watch = script(DOCKER / "watch" / "unusual.py")
    shift = time.time() - NOW
    rows = [row("leaked", 30), row("leaked", 0.5, ip="198.51.100.1")]
    for one in rows:
        one["started_at"] += int(shift * 1e6)
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(rows)))
    out = tmp_path / "fairgate.prom"
    assert watch.main(["--textfile", str(out)]) == watch.FOUND
    assert "leaked" in capsys.readouterr().out
    text = out.read_text(encoding="utf-8")
    assert "fairgate_new_networks 1\n" in text
    assert "fairgate_watch_short 0\n" in text
    assert "leaked" not in text


def watches() -> list[str]:
    """What the unit of the watch runs, and what its runbook has it run where it is blind."""
    unit = (DOCKER / "systemd" / "fairgate-watch.service").read_text(encoding="utf-8")
    runbook = (ROOT / "docs" / "runbooks.md").read_text(encoding="utf-8")
    return re.findall(r"(?m)^ExecStart=(/bin/.+)$", unit) + re.findall(r"(?m)^ExecStart=(/bin/.+)$", runbook)


@pytest.mark.parametrize("at", [0, 1], ids=["unit", "runbook"])
def test_the_units_watch_reads_a_store_and_fails_without_one(at: int, tmp_path: Path) -> None:
    """P-S1: a watch that cannot read is no watch that found nothing."""
    line, out, store = watches()[at], tmp_path / "watch.prom", tmp_path / "fairgate.db"
    assert not re.search(r"(?<!%)%(?!%)", line), "systemd reads a single % as a specifier"
    for there, here in (
        ("%%", "%"),
        ("/opt/fairgate/bin/python", sys.executable),
        ("/opt/fairgate/bin/fairgate", f"{sys.executable} -m gateway"),
        ("/opt/fairgate/share", str(DOCKER / "watch")),
        ("/var/lib/fairgate/watch.prom", str(out)),
        ("/tmp/rows", str(tmp_path / "rows")),  # noqa: S108 -- the unit's own
    ):
        line = line.replace(there, here)
    (tmp_path / "rows").touch()  # what an export that failed at once leaves
    environment = {**os.environ, "STORE": str(store)}
    for made in (False, True):
        if made:
            tenant = [sys.executable, "-m", "gateway", "tenants", "create", "research", "--store", str(store)]
            subprocess.run(tenant, check=True, capture_output=True, env=environment)
        done = subprocess.run(shlex.split(line), env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert (done.returncode == 0) == made, done.stderr
        assert done.returncode != script(DOCKER / "watch" / "unusual.py").FOUND
        assert out.exists() == made


def test_no_page_and_no_unit_puts_a_password_into_a_commands_arguments() -> None:
    """S-A4: whoever may list processes sees them."""
    unit = (DOCKER / "systemd" / "fairgate-watch.service").read_text(encoding="utf-8")
    texts = [unit, *(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md"))]
    for text in texts:
        assert not re.search(r"(--store |STORE=)postgres(ql)?://(\.\.\.|[^\s@/]+:)", text)


def test_the_watch_says_where_it_sees_too_little_to_find_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """P-S1: a busy gateway's newest rows are all of the last hours; rows that did not come are no good news."""
    watch = script(DOCKER / "watch" / "unusual.py")
    monkeypatch.setattr(watch, "MOST_ROWS", 2)
    now, out = time.time(), tmp_path / "fairgate.prom"
    for hours, blind in ((1.0, 1), (30.0, 0)):
        rows = [row("busy", hours), row("busy", 0.5)]
        for one in rows:
            one["started_at"] += int((now - NOW) * 1e6)
        monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(map(json.dumps, rows)) + "\n"))
        assert watch.main(["--textfile", str(out)]) == 0
        assert f"fairgate_watch_short {blind}\n" in out.read_text(encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    out.unlink()
    assert watch.main(["--textfile", str(out)]) == 1
    assert "did `fairgate audit` fail" in capsys.readouterr().err
    assert not out.exists()
