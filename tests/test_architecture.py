"""Who imports whom, who may import which heavy library, and what stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import featx

ROOT = Path(featx.__file__).parent
MODULES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py"))
PACKAGES = ("cli", "stages", "extraction", "training", "reporting", "classifier", "backbones")
PACKAGES += ("features", "heads", "images", "artifact", "isolation")

# A package imports only from packages of a lower level. featx/__init__ leads to the stages.
LEVEL = {
    "cli": 7,
    "featx": 7,
    "stages": 6,
    "extraction": 5,
    "training": 5,
    "reporting": 5,
    "classifier": 4,
    "backbones": 3,
    "features": 3,
    "heads": 3,
    "images": 2,
    "artifact": 1,
    "isolation": 1,
    "errors": 0,
}

# Where each heavy library may be imported: files, or folders ending in "/".
ALLOWED = {
    "h5py": ("features/",),
    "sklearn": (
        "heads/solvers/with_sklearn.py",
        "images/sources/digits.py",
        "reporting/summary.py",
    ),
    "matplotlib": ("reporting/plots.py",),
    "jinja2": ("reporting/templates.py",),
    "markupsafe": ("reporting/templates.py",),
    "onnx": (
        *("backbones/onnx_graph.py", "backbones/int8/"),
        "classifier/precision.py",
        *(f"classifier/{name}.py" for name in ("graph", "geometry", "graph_builder", "trunk")),
    ),
    "onnxscript": (),
    "onnxruntime": (
        *(f"classifier/{name}.py" for name in ("session", "providers", "precision")),
        *("backbones/session_options.py", "backbones/engines/with_onnxruntime.py"),
    ),
    "click": ("cli/",),
    "rich": ("cli/",),
    "torch": ("backbones/",),
    "torchvision": ("backbones/",),
    "safetensors": ("backbones/", "heads/head.py"),
    "pillow_heif": ("images/decode.py",),
    "PIL": ("images/", "stages/predict/"),
    "pickle": ("images/sources/cifar10.py", "backbones/weights.py"),
}
HEAVY = (
    "torch",
    "torchvision",
    "h5py",
    "sklearn",
    "scipy",
    "onnx",
    "onnxscript",
    "safetensors",
    "jinja2",
)


def package_of(module: Path) -> str:
    """Return the package a module is in, or its own name where it is in none."""
    name = module.parts[0] if len(module.parts) > 1 else module.stem
    return "cli" if name == "__main__" else "featx" if name == "__init__" else name


def _is_in(module: Path, importer: str) -> bool:
    """Return whether a module is an allowed importer: a file, or below a folder ending in "/"."""
    return str(module).startswith(importer) if importer.endswith("/") else str(module) == importer


def imports(module: Path) -> Iterator[str]:
    """Yield the dotted name of everything a module imports, at its top or inside functions."""
    for node in ast.walk(ast.parse((ROOT / module).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively; names are whole in featx"
            assert node.module
            # "from featx import errors" names a module, "from featx.errors import X" a thing in one
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(module: Path) -> Iterator[tuple[str, ...]]:
    for name in imports(module):
        package, *parts = name.split(".")
        if package == "featx":
            yield tuple(parts)


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_imports_go_downward_only(module: Path) -> None:
    here = package_of(module)
    for parts in own_imports(module):
        there = parts[0] if parts and parts[0] in LEVEL else "featx"
        if there not in (here, "featx"):
            assert LEVEL[there] < LEVEL[here], f"{module}: {here} imports {there}"
        if there == "featx":  # only the version, and only in the command
            assert here == "cli", f"{module} imports the package itself"


def test_every_module_is_in_a_package() -> None:
    assert {package_of(module) for module in MODULES} == set(LEVEL)


def test_stages_do_not_know_one_another() -> None:
    for module in MODULES:
        if package_of(module) == "stages":
            own = module.parts[:2] if len(module.parts) > 2 else None  # a stage in several files
            for parts in own_imports(module):
                assert parts[0] != "stages" or parts[:2] == own, module


def test_the_entry_point_loads_next_to_nothing() -> None:
    """So that an interrupt meets its handler from the first moments on."""
    for name, most in (("__init__.py", {"os", "sys"}), ("__main__.py", {"os", "signal", "sys"})):
        tree = ast.parse((ROOT / name).read_text())
        top = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
        names = {getattr(node, "module", None) or node.names[0].name for node in top}
        assert names <= most | {"__future__"}


@pytest.mark.parametrize("library", ALLOWED)
def test_heavy_libraries_are_imported_where_they_are_allowed(library: str) -> None:
    importers = ALLOWED[library]
    for module in MODULES:
        if library in {name.partition(".")[0] for name in imports(module)}:
            allowed = any(_is_in(module, importer) for importer in importers)
            assert allowed, f"{module} imports {library}; only {importers} may"


@pytest.mark.parametrize("module", [m for m in MODULES if package_of(m) != "cli"], ids=str)
def test_only_the_command_line_prints_and_exits(module: Path) -> None:
    for node in ast.walk(ast.parse((ROOT / module).read_text())):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("print", "exit", "quit", "sys.exit", "os._exit", "input"), (
                f"{module}:{node.lineno} calls {called}"
            )
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node) not in ("sys.stdout", "sys.stderr", "sys.argv"), module


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_nothing_is_run_or_unpickled_unguarded(module: Path) -> None:
    text = (ROOT / module).read_text()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("eval", "exec", "pickle.load", "pickle.loads", "os.system")
            if called == "torch.load":
                options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert options.get("weights_only") == "True", module
        if isinstance(node, ast.Assert):  # for type checkers only: python -O drops it
            assert "isinstance" in ast.unparse(node.test), f"{module}:{node.lineno}"


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_lists_its_modules(package: str) -> None:
    text = ast.get_docstring(ast.parse((ROOT / package / "__init__.py").read_text()))
    assert text, f"featx/{package}/__init__.py has no text"
    modules = {path.stem for path in (ROOT / package).glob("*.py")} - {"__init__"}
    modules |= {path.parent.name for path in (ROOT / package).glob("*/__init__.py")}
    missing = {name for name in modules if name not in text and name.replace("_", "-") not in text}
    if package != "cli":  # one file per command needs no list
        assert not missing, f"featx/{package}/__init__.py does not mention {missing}"


def test_there_are_no_other_packages() -> None:
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} == set(PACKAGES)
    assert {path.stem for path in ROOT.glob("*.py")} == {"__init__", "__main__", "errors"}


def test_no_module_is_for_everything() -> None:
    assert not {"utils", "helpers", "common", "misc", "core"} & {path.stem for path in MODULES}


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_a_module_says_what_it_is_and_stays_small(module: Path) -> None:
    text = (ROOT / module).read_text()
    if module.name != "__main__.py":
        assert ast.get_docstring(ast.parse(text)), f"{module} has no text at its top"
    assert len(text.splitlines()) <= 400, f"{module} is two concepts by now"


def loaded_by(code: str) -> set[str]:
    """Return the top-level modules that a fresh Python has loaded after some code."""
    tail = "; import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    result = subprocess.run(
        [sys.executable, "-c", code + tail], capture_output=True, text=True, check=True, timeout=60
    )
    return set(result.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "code",
    [
        "import featx",
        "import featx; featx.Predictor, featx.Prediction, featx.errors",
        "import featx.stages.predict",
        "import featx.classifier.session",
        "import featx.images.sources, featx.images.sources.folder, featx.images.sources.manifest",
        "from featx.cli import main; main(['--help'], standalone_mode=False)",
        "from featx.cli import main; main(['predict', '--help'], standalone_mode=False)",
        "from featx.cli import main; main(['extract', '--help'], standalone_mode=False)",
        "from featx.cli import main; main(['train-head', '--help'], standalone_mode=False)",
    ],
)
def test_light_entry_points_stay_light(code: str) -> None:
    assert not loaded_by(code) & set(HEAVY)


def test_an_extraction_loads_torch_only_when_there_is_something_to_extract() -> None:
    assert "torch" not in loaded_by("import featx; featx.extract, featx.ExtractReport, featx.check")


def test_help_and_import_load_next_to_nothing() -> None:
    assert not loaded_by("import featx") & {"numpy", "PIL", "onnxruntime", "click", "rich"}
    shown = loaded_by("from featx.cli import main; main(['--help'], standalone_mode=False)")
    assert not shown & {"numpy", "PIL", "onnxruntime", "rich"}


def test_predicting_on_images_of_a_folder_stays_light(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "ants").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "ants" / "1.png")
    code = (
        "from featx.stages.predict import find_images; from featx.images.decode import "
        f"read_image_file, decode_image; path, = find_images([{str(tmp_path)!r}]); "
        "decode_image(read_image_file(path, sample_id='a'), sample_id='a')"
    )
    assert not loaded_by(code) & set(HEAVY)
