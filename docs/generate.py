"""Writes the generated parts of the documentation from the code: settings, routes, errors, metrics, commands, alerts...

A page holds its parts between `<!-- generated: NAME -->` and `<!-- end: NAME -->`; everything else is written by hand.
`python docs/generate.py` rewrites the parts, `--check` only says which are stale. Not shipped in the wheel.
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))

from gateway import cli, config, errors  # noqa: E402  (the checkout's own packages, wherever this is called from)
from gateway.admin.table import BASE, ROWS  # noqa: E402
from gateway.api.dialect import Access, Endpoint  # noqa: E402
from gateway.api.routes import Routes  # noqa: E402
from gateway.services import metrics_table, spans  # noqa: E402

PART = re.compile(r"(<!-- generated: ([a-z-]+) -->\n).*?(<!-- end: \2 -->)", re.DOTALL)


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table; a bar inside a cell is escaped. A row of another length ends the program."""
    odd = [row for row in rows if len(row) != len(head)]
    if odd:
        raise SystemExit(f"{odd[0]} does not fit {head}")
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


# ---- settings


def settings() -> str:
    """One table per section, in the order of the structs."""
    schema = config.schema()
    definitions = schema["$defs"]
    root = definitions[_name(schema)]
    parts = ["### Top level\n\n" + _rows(root, "", definitions)]
    for path, section in sections(root, definitions):
        parts.append(f"### {path}\n\n{_sentence(section)}\n\n" + _rows(section, path, definitions))
    return "\n".join(parts)


def sections(root: dict[str, Any], definitions: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(path, definition) of every section below the top level; lists are `name[]`, mappings `name.NAME`."""
    for name, field in root["properties"].items():
        for path, target in _targets(name, field):
            yield path, definitions[target]
            for deeper, section in sections(definitions[target], definitions):
                yield f"{path}.{deeper}", section


def _targets(name: str, field: dict[str, Any]) -> Iterator[tuple[str, str]]:
    options = [field, *field.get("anyOf", []), *field.get("allOf", [])]
    for option in options:
        if "$ref" in option:
            yield name, _name(option)
        if "$ref" in option.get("items", {}):
            yield f"{name}[]", _name(option["items"])
        inner = option.get("additionalProperties")
        if isinstance(inner, dict) and "$ref" in inner:
            yield f"{name}.NAME", _name(inner)


def _name(ref: dict[str, Any]) -> str:
    return str(ref["$ref"]).rsplit("/", 1)[-1]


def _sentence(section: dict[str, Any]) -> str:
    return " ".join(str(section.get("description", "")).split("\n\n")[0].split())


def _rows(section: dict[str, Any], path: str, definitions: dict[str, Any]) -> str:
    inherited = definitions["Upstream"]["properties"]
    required = section.get("required", [])
    rows = []
    for name, field in section["properties"].items():
        if _is_section(field):
            continue
        meaning = _find(field, "description")
        if meaning is None and name in inherited:
            meaning = f"overrides `upstream.{name}`"
        if meaning is None:
            raise SystemExit(f"{path}.{name} has no description in gateway/config.py")
        full = f"{path}.{name}" if path else name
        default = "required" if name in required else _default(field)
        rows.append((f"`{full}`", _kind(field), default, meaning))
    return table(("setting", "values", "default", "meaning"), rows)


def _is_section(field: dict[str, Any]) -> bool:
    """A section has a table of its own; so have the members of a list or mapping of sections."""
    return next(_targets("", field), None) is not None


def _find(field: dict[str, Any], key: str) -> Any:
    for option in (field, *field.get("anyOf", [])):
        if key in option:
            return option[key]
    return None


def _default(field: dict[str, Any]) -> str:
    value = field.get("default")
    value = list(value) if isinstance(value, tuple) else value
    if value is None:
        return "absent"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return "empty" if value in ("", [], {}) else f"`{value}`"


def _kind(field: dict[str, Any]) -> str:
    options = [option for option in field.get("anyOf", [field]) if option.get("type") != "null"]
    return " or ".join(map(_one_kind, options)) + (" or null" if {"type": "null"} in field.get("anyOf", []) else "")


def _one_kind(option: dict[str, Any]) -> str:
    if "enum" in option:
        return ", ".join(f"`{value}`" for value in option["enum"])
    kind = {"integer": "integer", "number": "number", "string": "text", "boolean": "`true`, `false`"}
    name = kind.get(option.get("type", ""), "list of text" if option.get("type") == "array" else "mapping")
    return f"{name}{_range(option)}"


def _range(option: dict[str, Any]) -> str:
    low = option.get("minimum", option.get("exclusiveMinimum"))
    high = option.get("maximum", option.get("exclusiveMaximum"))
    if "pattern" in option:
        return f" like `{option['pattern']}`"
    if low is None and high is None:
        return ""
    above = "above " if "exclusiveMinimum" in option else ""
    if high is None:
        return f", {above}{low:,} or more" if not above else f", {above}{low:,}"
    return f", {above}{low or 0:,} to {high:,}"


# ---- routes, errors, metrics


def routes() -> str:
    """Every row of the route table, by dialect."""
    who = {Access.PUBLIC: "everyone", Access.KEY: "a key", Access.NEVER: "nobody (403)"}
    rows = []
    for row in Routes().rows:
        flow = "queue, slot, engine" if row.metered else ("refused" if row.access is Access.NEVER else "answered here")
        rows.append((method(row), f"`{row.path}`", who[row.access], f"`{row.scope}`" if row.scope else "", flow))
    return table(("method", "path", "open to", "scope", "path of the request"), rows)


def method(row: Endpoint) -> str:
    return "every method" if row.method == "*" else f"`{row.method}`"


def admin_routes() -> str:
    """Every row of the admin API's table."""
    rows = [(f"`{row.method}`", f"`{BASE}{row.path}`", f"`{row.scope}`", row.says) for row in ROWS]
    return table(("method", "path", "scope", "what"), rows)


def error_codes() -> str:
    """Every code a client can meet; meaning and remedy are written by hand in errors.yaml."""
    known = yaml.safe_load((DOCS / "errors.yaml").read_text(encoding="utf-8"))
    kinds = {kind.code: kind for kind in leaves(errors.GatewayError)}
    if kinds.keys() != known.keys():
        raise SystemExit(f"docs/errors.yaml lacks or overflows: {sorted(kinds.keys() ^ known.keys())}")
    rows = []
    for kind in sorted(kinds.values(), key=lambda kind: (kind.status, kind.code)):
        status = "the engine's" if kind is errors.UpstreamRejected else str(kind.status)
        retry = "yes" if kind.retry else "no"
        rows.append((f"`{kind.code}`", status, kind.source, retry, *known[kind.code]))
    return table(("code", "status", "whose", "retry helps", "meaning", "what to do"), rows)


def leaves(kind: type[errors.GatewayError]) -> Iterator[type[errors.GatewayError]]:
    """Classes that are raised: those without subclasses, and parents with a code of their own."""
    children = kind.__subclasses__()
    if not children or "code" in vars(kind):
        yield kind
    for child in children:
        yield from leaves(child)


def metrics() -> str:
    return metrics_table.reference()


def attributes() -> str:
    """Every attribute that a span may carry."""
    return table(("attribute", "holds"), [(f"`{name}`", meaning) for name, meaning in spans.ATTRIBUTES.items()])


# ---- commands


def commands() -> str:
    """`--help` of every command, from the parsers."""
    return "\n".join(f"### `{name}`\n\n```text\n{text}```\n" for name, text in helps(cli.parser()))


def helps(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    yield parser.prog, parser.format_help()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in dict.fromkeys(action.choices.values()):
                yield from helps(child)


# ---- alerts


def alerts() -> str:
    """The alert rules with their runbook anchors."""
    rules = yaml.safe_load((ROOT / "docker/prometheus/alerts.yaml").read_text(encoding="utf-8"))
    rows = []
    for rule in (rule for group in rules["groups"] for rule in group["rules"] if "alert" in rule):
        name = rule["alert"]
        summary = rule["annotations"]["summary"]
        rows.append((f"[{name}](#{name.lower()})", rule["labels"]["severity"], rule.get("for", "at once"), summary))
    return table(("alert", "severity", "after", "says"), rows)


# ---- threats


def threats() -> str:
    """One table per group; a test is linked by its name, what is out of reach says so."""
    groups = yaml.safe_load((DOCS / "threats.yaml").read_text(encoding="utf-8"))
    parts = []
    for group in groups:
        rows = [(one["id"], one["threat"], _answer(one), _proofs(one)) for one in group["rows"]]
        parts.append(f"### {group['group']}\n\n" + table(("id", "threat", "answer", "proved by"), rows))
    return "\n".join(parts)


def _answer(row: dict[str, Any]) -> str:
    control, outside = row.get("control", ""), row.get("outside", "")
    return " ".join(part for part in (control, f"**Out of reach or not built:** {outside}" if outside else "") if part)


def _proofs(row: dict[str, Any]) -> str:
    """The tests of a row as sentences, those of one file together."""
    files: dict[str, list[str]] = {}
    for test in row.get("tests", []):
        path, _, name = test.partition("::")
        files.setdefault(path.removeprefix("tests/"), []).append(name.removeprefix("test_").replace("_", " "))
    said = [f"{'; '.join(names)} (`{path}`)" for path, names in files.items()]
    return "; ".join(said) or "nothing of ours to prove"


# ---- failures


def failures() -> str:
    """What happens when a part is down; the proofs stand below, folded, for who reads this at night."""
    known = yaml.safe_load((DOCS / "failures.yaml").read_text(encoding="utf-8"))
    head = ("what is down", "who notices", "what happens", "recovers")
    rows = [(one["down"], one["notices"], one["happens"], one["recovers"]) for one in known]
    proofs = "".join(f"- **{one['down']}**: {_proofs(one)}\n" for one in known)
    summary = "<summary>The tests that show each row</summary>"
    return f"{table(head, rows)}\n<details markdown>\n{summary}\n\n{proofs}\n</details>"


PARTS: dict[str, Callable[[], str]] = {
    "settings": settings,
    "routes": routes,
    "admin-routes": admin_routes,
    "errors": error_codes,
    "metrics": metrics,
    "attributes": attributes,
    "commands": commands,
    "alerts": alerts,
    "threats": threats,
    "failures": failures,
}


def renew(text: str) -> str:
    """A page with its generated parts made anew; commands stay on Python 3.13, whose help has other words."""
    kept = {"commands"} if sys.version_info >= (3, 13) else set()

    def part(found: re.Match[str]) -> str:
        return found[0] if found[2] in kept else f"{found[1]}\n{PARTS[found[2]]().strip()}\n\n{found[3]}"

    return PART.sub(part, text)


def pages() -> list[Path]:
    return sorted(path for path in DOCS.rglob("*.md") if "<!-- generated: " in path.read_text(encoding="utf-8"))


def stale() -> list[Path]:
    return [path for path in pages() if renew(path.read_text(encoding="utf-8")) != path.read_text(encoding="utf-8")]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--check", action="store_true", help="change nothing; fail when a page is stale")
    given = arguments.parse_args()
    found = stale()
    for path in found:
        print(f"{'stale' if given.check else 'renewed'}: {path.relative_to(ROOT)}")
        if not given.check:
            path.write_text(renew(path.read_text(encoding="utf-8")), encoding="utf-8")
    sys.exit("run: python docs/generate.py" if found and given.check else 0)


if __name__ == "__main__":
    main()
