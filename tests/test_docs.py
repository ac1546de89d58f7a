"""The documentation, held to the code: generated parts are current, links lead somewhere, named tests exist."""

import ast
import configparser
import importlib.util
import json
import re
import statistics
import sys
import tomllib
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from gateway import cli, config, errors, loading
from gateway.admin import asks
from gateway.admin.table import BASE, ROWS
from gateway.api.routes import Routes
from gateway.services.metrics_table import METRICS
from scheduler.settings import describe

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"


@cache
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def test_generated_parts_are_current() -> None:
    """What the code says now is what the pages say: run `make docs` after a change and commit the result."""
    assert [path.name for path in generator().stale()] == [], "run: python docs/generate.py"


def test_every_part_is_used_and_every_marker_has_a_part() -> None:
    used = re.findall(r"<!-- generated: ([a-z-]+) -->", "".join(path.read_text() for path in DOCS.rglob("*.md")))
    assert sorted(used) == sorted(generator().PARTS)


def documented() -> dict[str, tuple[str, list[str]]]:
    """What must be described -> the page that does it, and how each entry begins there."""
    root, definitions = config.schema()["$defs"]["Config"], config.schema()["$defs"]
    settings = [name for name, field in root["properties"].items() if not generator()._is_section(field)]
    for path, section in generator().sections(root, definitions):
        settings += [f"{path}.{name}" for name, f in section["properties"].items() if not generator()._is_section(f)]
    codes = {kind.code for kind in generator().leaves(errors.GatewayError)}
    commands = [name for name, _ in generator().helps(cli.parser())]
    admin = re.findall(r'Route\("([^"]+)"', (ROOT / "gateway/admin/app.py").read_text(encoding="utf-8"))
    return {
        "setting": ("config.md", [f"| `{name}` | " for name in settings]),
        "fair-use setting": ("scheduler.md", [f"| `{field.name}` | " for field in describe()]),
        "route": ("api.md", [f"| {generator().method(row)} | `{row.path}` | " for row in Routes().rows]),
        "admin route": ("api.md", [f"| `GET` | `{path}` | the admin" for path in admin]),
        "admin API route": ("admin-api.md", [f"| `{row.method}` | `{BASE}{row.path}` | `{row.scope}`" for row in ROWS]),
        "metric": ("metrics.md", [f"| `{metric.name}` | " for metric in METRICS]),
        "error code": ("errors.md", [f"| `{code}` | " for code in codes]),
        "command": ("cli.md", [f"### `{name}`\n" for name in commands]),
    }


def test_every_setting_route_metric_error_and_command_is_documented() -> None:
    """O7 and the house rules: whoever adds one adds its description, or this names what lacks it."""
    for kind, (name, entries) in documented().items():
        assert len(entries) > 3, kind
        assert [entry for entry in entries if entry not in page(name)] == [], kind


@pytest.mark.parametrize(
    "kind",
    ["setting", "fair-use setting", "route", "admin route", "admin API route", "metric", "error code", "command"],
)
def test_an_entry_that_is_taken_away_is_missed(kind: str) -> None:
    """The check itself: each entry stands once, so that its line alone keeps the test above quiet."""
    name, entries = documented()[kind]
    for entry in entries:
        lines = [line for line in page(name).splitlines(keepends=True) if not line.startswith(entry)]
        assert entry not in "".join(lines), entry


def test_the_members_of_every_body_and_query_are_documented() -> None:
    """Each ask of the admin API, member by member, in the row of its route."""
    text = page("admin-api.md")
    kinds = (asks.NewTenant, asks.NewUser, asks.NewKey, asks.Rotation, asks.LimitChanges, asks.NewReservation)
    for kind in (*kinds, asks.UsageAsk, asks.AuditAsk, asks.ActionsAsk):
        members = [name for name in kind.__struct_fields__ if name not in ("limit", "offset")]
        rows = [line for line in text.splitlines() if all(f"`{name}`" in line for name in members)]
        assert rows, kind.__name__


def test_a_stale_part_is_seen() -> None:
    """The check itself: an edit inside a generated part does not survive."""
    text = page("metrics.md")
    broken = text.replace("`fairgate_requests_total` | counter", "`fairgate_requests_total` | gauge")
    assert broken != text
    assert generator().renew(broken) == text


def test_yaml_examples_are_valid_configurations() -> None:
    """Every YAML block that names a backend is a whole configuration: it loads."""
    blocks = re.findall(
        r"```yaml\n(.*?)```", "".join(p.read_text() for p in [*DOCS.glob("*.md"), ROOT / "README.md"]), re.S
    )
    whole = [block for block in blocks if re.search(r"(?m)^backends:", block)]
    assert whole
    for block in whole:
        assert loading.parse(re.sub(r"file:\S+", "a-real-looking-value", block)).backends


COMMANDS = (
    "serve", "demo", "tenants", "users", "keys", "audit", "check-config", "doctor", "schema", "limits", "settings",
    "reservations", "models", "migrate", "top", "usage", "prompts",
)  # fmt: skip


def test_commands_in_the_pages_parse() -> None:
    """A `fairgate ...` line of a shell block is one that the command line takes."""
    pages = [*DOCS.glob("*.md"), ROOT / "README.md"]
    blocks = re.findall(r"```sh\n(.*?)```", "".join(path.read_text() for path in pages), re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    found = re.findall(rf"(?:^|exec fairgate |/)fairgate ((?:{'|'.join(COMMANDS)})\b[^|#;\n]*)", "\n".join(lines), re.M)
    assert len(found) > 5
    for arguments in found:
        cli.parser().parse_args(arguments.split())


def test_every_tox_environment_says_its_question_and_runs_what_exists() -> None:
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini", encoding="utf-8")
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]
    for name in (name for name in tox.sections() if name.startswith("testenv:")):
        section = tox[name]
        assert section["description"].endswith("?"), name
        assert set(section.get("dependency_groups", "").split()) <= groups.keys(), name
        for file in re.findall(r"[\w/.]+\.(?:py|yaml)\b", section["commands"]):
            assert (ROOT / file).exists(), f"{name}: {file}"
        for module in re.findall(r"python -m (\S+)", section["commands"]):
            path = ROOT / module.replace(".", "/")
            assert (path / "__main__.py").exists() or path.with_suffix(".py").exists(), f"{name}: {module}"


def test_every_environment_and_target_that_a_page_names_exists() -> None:
    pages = [*DOCS.glob("*.md"), *ROOT.glob("*.md"), ROOT / "docker/RELEASE.md", ROOT / "bench/README.md"]
    text = "".join(path.read_text(encoding="utf-8") for path in pages)
    tox = (ROOT / "tox.ini").read_text(encoding="utf-8")
    environments = set(re.findall(r"tox -e ([\w-]+)", text))
    assert len(environments) > 5
    assert [name for name in sorted(environments) if f"[testenv:{name}]" not in tox] == []
    targets = re.findall(r"(?m)^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert set(re.findall(r"(?:`|\n)make ([a-z]+)\b", text)) - set(targets) == set()


def test_the_readmes_figures_are_the_measured_ones() -> None:
    measured = json.loads((DOCS / "img/abuser.json").read_text(encoding="utf-8"))
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    direct, through = (f"{statistics.median(wait for _, wait in measured[way]):.2g}" for way in ("direct", "fairgate"))
    assert f"First token after {direct} s (median) straight at the engine, after {through} s through fairgate" in readme
    assert f"{measured['agent_streams']} streams going on {measured['slots']} slots" in readme


def test_settings_that_the_prose_names_exist() -> None:
    """`section.setting` in any page; what is renamed is renamed everywhere."""
    table = page("config.md")
    known = set(re.findall(r"(?m)^\| `([^`]+)` \|", table)) | set(re.findall(r"(?m)^### (\S+)$", table))
    sections = {name.split(".")[0] for name in known if "." in name}
    files = [*DOCS.glob("*.md"), *DOCS.glob("*.yaml"), *ROOT.glob("*.md")]
    named = {
        name
        for path in files
        for name in re.findall(r"`([a-z_]+(?:\[\])?\.[a-z_.]+)(?:: ?[^`]*)?`", path.read_text(encoding="utf-8"))
        if name.split(".")[0] in sections
    }
    assert len(named) > 15
    assert sorted(named - known) == []


# ---- links


def anchors(text: str) -> set[str]:
    """Anchors of a page's headings, as mkdocs makes them."""
    heads = re.findall(r"(?m)^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.S))
    plain = [re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads]
    return {re.sub(r"-+", "-", head) for head in plain}


def test_links_between_pages_lead_somewhere() -> None:
    broken = []
    for path in [*DOCS.glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]:
        text = path.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            name, _, anchor = target.partition("#")
            if "://" in target:
                continue
            there = (path.parent / name) if name else path
            if not there.exists():
                broken.append(f"{path.name}: {target}")
            elif anchor and there.suffix == ".md" and anchor not in anchors(there.read_text(encoding="utf-8")):
                broken.append(f"{path.name}: {target} has no such heading")
    assert broken == []


def test_every_page_is_in_the_navigation_and_exists() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r": ([\w-]+\.md)$", text, re.M))
    present = {path.name for path in DOCS.glob("*.md")}
    assert named == present


def test_every_alert_has_a_runbook() -> None:
    rules = yaml.safe_load((ROOT / "docker/prometheus/alerts.yaml").read_text(encoding="utf-8"))
    named = [rule["alert"].lower() for group in rules["groups"] for rule in group["rules"]]
    assert [name for name in named if name not in anchors(page("runbooks.md"))] == []
    for group in rules["groups"]:
        for rule in group["rules"]:
            assert rule["annotations"]["runbook"] == f"docs/runbooks.md#{rule['alert'].lower()}"


# ---- the threat model

# One line per threat of the four earlier systems; the wire's own rows (H) come on top.
ANSWERED = """
C-T1 C-T2 C-T3 C-T4 C-T5 C-T6 C-T7 C-T8 C-G N-1 N-2 N-3 N-4 N-5 N-6 N-7 N-8 N-9 N-10 N-11 N-12 N-13 N-14 N-15
S-N1 S-N2 S-N3 S-N4 S-N5 S-A1 S-A2 S-A3 S-A4 S-A5 S-A6 S-Z1 S-Z2 S-Z3 S-D1 S-D2 S-D3 S-D4 S-D5 S-I1 S-I2 S-I3 S-I4
S-H1 S-H2 S-H3 S-H4 S-H5 S-H6 S-F1 S-F2 S-F3 S-S1 S-S2 P-S1 P-S2 P-S3 P-S4 P-T1 P-T2 P-T3 P-T4 P-R1 P-R2 P-R3
P-I1 P-I2 P-I3 P-I4 P-D1 P-D2 P-D3 P-D4 P-E1 P-E2 P-E3 P-E4 P-5.1 P-5.2 H-1 H-2 H-3
"""


def threats() -> list[dict[str, Any]]:
    groups = yaml.safe_load((DOCS / "threats.yaml").read_text(encoding="utf-8"))
    return [row for group in groups for row in group["rows"]]


@cache
def functions(path: str) -> frozenset[str]:
    file = ROOT / path
    if not file.exists():
        return frozenset()
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return frozenset(n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))


def test_every_threat_is_answered_once() -> None:
    assert sorted(row["id"] for row in threats()) == sorted(ANSWERED.split())


def test_no_cell_of_the_threat_table_is_empty() -> None:
    for row in threats():
        assert row.keys() <= {"id", "threat", "control", "tests", "outside"}, row["id"]
        assert row["threat"].strip(), row["id"]
        assert ("control" in row) == ("tests" in row), f"{row['id']}: a control needs its test"
        assert row.get("control", "").strip() or row.get("outside", "").strip(), row["id"]
        assert row.get("tests", ["x"]), row["id"]


def failures() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = yaml.safe_load((DOCS / "failures.yaml").read_text(encoding="utf-8"))
    return rows


def test_each_failure_says_what_happens_and_names_its_test() -> None:
    for row in failures():
        assert row.keys() == {"down", "notices", "happens", "recovers", "tests"}, row["down"]
        assert all(row.values()), row["down"]


def missing(named: list[str]) -> list[str]:
    """Of `path::test` names, those that lead to no test."""
    parts = [(test, *test.partition("::")[::2]) for test in named]
    return [test for test, path, name in parts if not name.startswith("test_") or name not in functions(path)]


def test_every_test_that_the_threat_model_or_the_failures_name_exists() -> None:
    assert missing([test for row in [*threats(), *failures()] for test in row.get("tests", [])]) == []
    absent = ["tests/test_docs.py::test_that_never_was", "tests/none.py::test_x", "tests/test_docs.py::missing"]
    assert missing(absent) == absent
