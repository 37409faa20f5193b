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
PACKAGES = {"errors"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def test_all_is_sorted_and_without_repeats() -> None:
    assert featx.__all__ == sorted(set(featx.__all__))


def test_all_is_what_is_loaded_on_demand() -> None:
    lazy = [name for names in featx._LOADED_FROM.values() for name in names]
    assert len(lazy) == len(set(lazy))
    assert {*lazy, *PACKAGES} == set(featx.__all__)


def test_type_checkers_see_what_is_loaded_on_demand() -> None:
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


@pytest.mark.parametrize("name", featx.__all__)
def test_each_name_is_there_and_documented(name: str) -> None:
    thing = getattr(featx, name)
    assert thing.__doc__
    assert thing.__doc__.strip()
    if name not in PACKAGES:
        (module,) = (path for path, names in featx._LOADED_FROM.items() if name in names)
        assert thing is getattr(importlib.import_module(module), name)


def test_dir_shows_the_public_names_and_nothing_private() -> None:
    assert set(dir(featx)) == {*featx.__all__, "__version__"}


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'featx' has no attribute 'exctract'"):
        _ = featx.exctract  # type: ignore[attr-defined]
    assert not hasattr(featx, "open_source")


def test_a_star_import_gives_all() -> None:
    names: dict[str, object] = {}
    exec("from featx import *", names)
    assert set(featx.__all__) <= names.keys()


def test_the_version_is_that_of_the_package() -> None:
    assert featx.__version__ == metadata.version("featx")


def test_types_are_shipped() -> None:
    assert (ROOT / "py.typed").is_file()


def definitions(
    body: list[ast.stmt], prefix: str = ""
) -> Iterator[tuple[str, Function | ast.ClassDef]]:
    """Yield the public functions, classes and methods of a module with their dotted names."""
    for node in body:
        if isinstance(node, (Function, ast.ClassDef)) and not node.name.startswith("_"):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from definitions(node.body, f"{prefix}{node.name}.")


PUBLIC = [
    pytest.param(node, id=f"{module}:{name}")
    for module in MODULES
    for name, node in definitions(ast.parse((ROOT / module).read_text()).body)
]


@pytest.mark.parametrize("node", PUBLIC)
def test_everything_public_says_its_result_in_its_first_line(node: Function | ast.ClassDef) -> None:
    text = ast.get_docstring(node)
    assert text, f"{node.name} has no text"
    assert text.splitlines()[0].endswith((".", ":")), f"{node.name}: no sentence in its first line"


def arrays(node: Function) -> list[str]:
    """Return the parameters of a function that are arrays or tensors."""
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return [
        argument.arg
        for argument in arguments
        if argument.annotation
        and re.fullmatch(r"(np\.ndarray|Tensor)( \| None)?", ast.unparse(argument.annotation))
    ]


WITH_ARRAYS = [
    param for param in PUBLIC if isinstance(param.values[0], Function) and arrays(param.values[0])
]


def test_there_are_functions_of_arrays() -> None:
    assert len(WITH_ARRAYS) > 15


@pytest.mark.parametrize("node", WITH_ARRAYS)
def test_functions_of_arrays_say_shapes(node: Function) -> None:
    text = ast.get_docstring(node) or ""
    assert re.search(r"\([\w*., ]+,[\w ,]*\)", text), f"{node.name}: no shape for {arrays(node)}"


@pytest.mark.parametrize("node", [p for p in PUBLIC if not str(p.id).startswith("cli/")])
def test_no_option_is_passed_through_unseen(node: Function | ast.ClassDef) -> None:
    if isinstance(node, Function):
        assert node.args.kwarg is None, f"{node.name} takes any option"


def test_options_and_reports_are_frozen() -> None:
    for name in featx.__all__:
        thing = getattr(featx, name)
        if inspect.isclass(thing) and name.endswith(("Options", "Report", "Prediction")):
            assert thing.__dataclass_params__.frozen, name


DOCTESTS = sorted(
    "featx." + ".".join(module.with_suffix("").parts)
    for module in MODULES
    if ">>> " in (ROOT / module).read_text()
)


def test_the_usual_modules_have_examples() -> None:
    assert {
        "featx.heads.metrics.single_label",
        "featx.heads.solvers.mlp_options",
        "featx.images.preprocess",
    } <= set(DOCTESTS)


@pytest.mark.parametrize("name", DOCTESTS)
def test_examples_in_the_texts_run(name: str) -> None:
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.attempted
    assert not result.failed
