"""The rules that modules on the build's list keep (`hatch_build.py`), read from their source.

mypyc drops the options of a class statement and the types of unions in a record, and turns private names into C
identifiers. A module that breaks one of these rules works in Python and fails compiled, so the rule is checked where
every test runs; `tox -e compiled` runs all tests on the compiled wheel.
"""

import ast
import sys

import pytest

from tests.test_layers import ROOT

sys.path.insert(0, str(ROOT))
hatch_build = pytest.importorskip("hatch_build", reason="hatchling is not installed (the group `test` has it)")

C_WORDS = {"thread", "Bool", "Complex", "Noreturn", "Atomic", "Generic", "asm", "func", "inline", "restrict"}
"""Names that are keywords of C behind an underscore or two."""


def modules() -> list[str]:
    found: list[str] = hatch_build.modules()
    return found


def tree(module: str) -> ast.Module:
    return ast.parse((ROOT / module).read_text(encoding="utf-8"))


@pytest.mark.parametrize("module", modules())
def test_compiled_modules_have_no_msgspec_records(module: str) -> None:
    classes = [node for node in ast.walk(tree(module)) if isinstance(node, ast.ClassDef)]
    records = [node.name for node in classes if any("Struct" in ast.unparse(base) for base in node.bases)]
    assert not records, "keep them in a module of their own"
    assert not [node.name for node in classes if node.keywords], "the options of these classes would be lost"


@pytest.mark.parametrize("module", modules())
def test_attributes_are_no_keywords_of_c(module: str) -> None:
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Attribute):
            assert node.attr.lstrip("_") not in C_WORDS or not node.attr.startswith("_"), node.attr


@pytest.mark.parametrize("module", modules())
def test_no_handler_waits_and_raises_again(module: str) -> None:
    """Compiled, the exception is gone after the wait and the process with it."""
    for handler in (node for node in ast.walk(tree(module)) if isinstance(node, ast.ExceptHandler)):
        inside = list(ast.walk(handler))
        waits = [node.lineno for node in inside if isinstance(node, ast.Await | ast.AsyncFor | ast.AsyncWith)]
        raises = [node.lineno for node in inside if isinstance(node, ast.Raise) and node.exc is None]
        assert not waits or max(raises, default=0) < min(waits), f"line {handler.lineno}"


@pytest.mark.parametrize("module", modules())
def test_a_caught_exception_has_one_type_a_name(module: str) -> None:
    """Compiled, a name has the type it has first in its function: another exception under it is a TypeError."""
    functions = ast.FunctionDef | ast.AsyncFunctionDef
    for function in (node for node in ast.walk(tree(module)) if isinstance(node, functions)):
        handlers = [node for node in ast.walk(function) if isinstance(node, ast.ExceptHandler) and node.name]
        caught = {(node.name, ast.unparse(node.type)) for node in handlers if node.type is not None}
        assert len(caught) == len({name for name, _ in caught}), f"{function.name}: {sorted(caught)}"


def test_every_module_of_the_list_exists() -> None:
    assert len(modules()) > 30
    for module in modules():
        assert (ROOT / module).is_file()
