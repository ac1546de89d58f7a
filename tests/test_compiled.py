"""The rules that modules on the build's list keep (`hatch_build.py`), read from their source.

mypyc drops the options of a class statement, needs each type that a record names when the record is made, and turns
private names into C identifiers. A module that breaks one of these rules works in Python and fails compiled, so the
rule is checked where every test runs; `tox -e compiled` runs all tests on the compiled wheel.
"""

import ast
import sys

import pytest

from tests.test_layers import ROOT

sys.path.insert(0, str(ROOT))
hatch_build = pytest.importorskip("hatch_build", reason="hatchling is not installed (the group `test` has it)")

HARMLESS = {"frozen", "gc"}
"""Options whose loss changes no result: nobody writes to a frozen record, as the tests in Python show."""
C_WORDS = {"thread", "Bool", "Complex", "Noreturn", "Atomic", "Generic", "asm", "func", "inline", "restrict"}
"""Names that are keywords of C behind an underscore or two."""


def modules() -> list[str]:
    found: list[str] = hatch_build.modules()
    return found


def tree(module: str) -> ast.Module:
    return ast.parse((ROOT / module).read_text(encoding="utf-8"))


@pytest.mark.parametrize("module", modules())
def test_records_lose_nothing(module: str) -> None:
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.ClassDef):
            options = {option.arg for option in node.keywords}
            assert options <= HARMLESS, f"{node.name} needs {options - HARMLESS}: keep it in a module of its own"


@pytest.mark.parametrize("module", modules())
def test_records_name_only_what_is_there(module: str) -> None:
    known = tree(module)
    checked = [
        node for node in ast.walk(known) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    missing = {
        alias.asname or alias.name
        for block in checked
        for node in ast.walk(block)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    for node in ast.walk(known):
        if isinstance(node, ast.ClassDef) and any("Struct" in ast.unparse(base) for base in node.bases):
            named = {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
            assert named.isdisjoint(missing), f"{node.name} names {named & missing}, which is imported for types only"


@pytest.mark.parametrize("module", modules())
def test_attributes_are_no_keywords_of_c(module: str) -> None:
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Attribute):
            assert node.attr.lstrip("_") not in C_WORDS or not node.attr.startswith("_"), node.attr


def test_every_module_of_the_list_exists() -> None:
    assert len(modules()) > 30
    for module in modules():
        assert (ROOT / module).is_file()
