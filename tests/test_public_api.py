"""The public names: complete, importable, documented; and the examples in the texts run."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

import featx

ROOT = Path(featx.__file__).parent
MODULES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py"))
TREES = {module: ast.parse((ROOT / module).read_text()) for module in MODULES}
PACKAGES = {"errors"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def test_all_is_sorted_and_without_repeats():
    assert featx.__all__ == sorted(set(featx.__all__))


def test_all_is_what_is_loaded_on_demand():
    lazy = [name for names in featx._LOADED_FROM.values() for name in names]
    assert len(lazy) == len(set(lazy))
    assert {*lazy, *PACKAGES} == set(featx.__all__)


def test_type_checkers_see_what_is_loaded_on_demand():
    tree = ast.parse((ROOT / "__init__.py").read_text())
    (block,) = (
        node
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    seen = {
        node.module: tuple(alias.name for alias in node.names)
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module not in ("typing", "featx")
    }
    assert seen == featx._LOADED_FROM


def test_each_name_is_there_and_documented():
    homes = {name: path for path, names in featx._LOADED_FROM.items() for name in names}
    for name in featx.__all__:
        thing = getattr(featx, name)
        assert (thing.__doc__ or "").strip(), name
        if name not in PACKAGES:
            assert thing is getattr(importlib.import_module(homes[name]), name), name


def test_dir_shows_the_public_names_and_nothing_private():
    assert set(dir(featx)) == {*featx.__all__, "__version__"}


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'featx' has no attribute 'exctract'"):
        _ = featx.exctract  # type: ignore[attr-defined]
    assert not hasattr(featx, "open_source")


def test_a_star_import_gives_all():
    names: dict[str, object] = {}
    exec("from featx import *", names)
    assert set(featx.__all__) <= names.keys()


def test_the_version_is_that_of_the_package():
    assert featx.__version__ == metadata.version("featx")


def test_types_are_shipped():
    assert (ROOT / "py.typed").is_file()


def definitions(module: Path) -> dict[str, Function | ast.ClassDef]:
    """Return the functions and classes at a module's top."""
    body = TREES[module].body
    return {node.name: node for node in body if isinstance(node, (Function, ast.ClassDef))}


def imported_names(module: Path) -> Iterator[tuple[Path, str]]:
    """Yield what a module imports from featx: the module or package, and a name in it."""
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("featx."):
            path = Path(*(node.module or "").split(".")[1:])
            package = path / "__init__.py"  # a folder alone may be left over from before
            path = package if package in TREES else path.with_suffix(".py")
            yield from ((path, alias.name) for alias in node.names)


def what_others_import() -> Iterator[tuple[Path, str, Function | ast.ClassDef]]:
    """Yield module, name and definition of all that a module of another package imports."""
    handed_on = {
        (module, name): path
        for module in MODULES
        if module.name == "__init__.py"
        for path, name in imported_names(module)
    }
    found = {
        (handed_on.get((path, name), path), name)
        for module in MODULES
        for path, name in imported_names(module)
        if path.parts[0] != module.parts[0]
    }
    for path, name in sorted(found):
        if node := definitions(path).get(name):  # else a module, or a value
            yield path, name, node


def arrays(node: Function) -> list[str]:
    """Return the parameters of a function that are arrays or tensors."""
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    kinds = re.compile(r"(np\.ndarray|Tensor)( \| None)?")
    return [a.arg for a in arguments if a.annotation and kinds.fullmatch(ast.unparse(a.annotation))]


def test_what_other_packages_import_is_documented_with_shapes():
    wrong, found = [], list(what_others_import())
    assert len(found) > 100
    for module, name, node in found:
        text = ast.get_docstring(node) or ""
        if not text.partition("\n")[0].endswith((".", ":")):
            wrong.append(f"{module}: {name} has no sentence in its first line")
        taken = arrays(node) if isinstance(node, Function) else []
        if taken and not re.search(r"\([\w*., ]+,[\w ,]*\)", text):
            wrong.append(f"{module}: {name} says no shape of {taken}")
    assert not wrong


def test_no_option_is_passed_through_unseen():
    wrong = [
        f"{module}: {node.name} takes any option"
        for module, tree in TREES.items()
        if module.parts[0] != "cli"
        for node in ast.walk(tree)
        if isinstance(node, Function)
        and node.args.kwarg
        and not node.name.startswith("_")
        # a record of keywords lists their names, and a decorator hands on what it is given
        and not ast.unparse(node.args.kwarg.annotation or ast.Constant(None)).startswith(
            ("Unpack[", "P.kwargs")
        )
    ]
    assert not wrong


def test_options_and_reports_are_frozen():
    for name in featx.__all__:
        thing = getattr(featx, name)
        if inspect.isclass(thing) and name.endswith(("Options", "Report", "Prediction")):
            assert thing.__dataclass_params__.frozen, name


def test_examples_in_the_texts_run():
    attempted = {}
    for module in MODULES:
        if ">>> " in (ROOT / module).read_text():
            name = "featx." + ".".join(module.with_suffix("").parts)
            result = doctest.testmod(
                importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE
            )
            assert not result.failed, name
            attempted[name] = result.attempted
    assert len(attempted) >= 3
    assert all(attempted.values())
