"""Who imports whom, who may import which heavy library, and what stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import featx

ROOT = Path(featx.__file__).parent
MODULES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py"))
PACKAGES = (
    "cli",
    "estimators",
    "stages",
    "serving",
    "extraction",
    "training",
    "reporting",
    "classifier",
    "backbones",
)
PACKAGES += ("features", "heads", "images", "artifact", "isolation")

# A package imports only from packages of a lower level. featx/__init__ leads to the stages.
LEVEL = {
    "cli": 8,
    "featx": 8,
    "estimators": 7,
    "stages": 6,
    "serving": 6,
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
    "packages": 0.5,
    "system": 0,
    "errors": 0,
}

# Where each heavy library may be imported: files, or folders ending in "/".
ALLOWED = {
    "h5py": ("features/",),
    "sklearn": (
        "estimators/",
        "heads/solvers/with_sklearn.py",
        "images/sources/arrays.py",
        "reporting/summary.py",
    ),
    "matplotlib": ("reporting/plots.py",),
    "jinja2": ("reporting/templates.py",),
    "markupsafe": ("reporting/templates.py",),
    "onnx": (
        *("backbones/onnx_graph.py", "backbones/graph_builder.py", "backbones/int8.py"),
        *("classifier/graph.py", "classifier/image_nodes.py", "classifier/fixed_resize.py"),
    ),
    "onnxscript": (),
    "onnxruntime": (*("classifier/session.py", "classifier/graph.py", "backbones/engines.py"),),
    "pandas": ("artifact/frames.py", "artifact/shown.py"),
    "click": ("cli/",),
    **dict.fromkeys(("h11", "python_multipart", "uvicorn"), ("serving/",)),
    "torch": ("backbones/", "training/finetune/"),
    "torchvision": ("backbones/",),
    "timm": ("backbones/with_timm.py",),
    "safetensors": ("backbones/", "heads/head.py", "training/finetune/checkpoint.py"),
    "pillow_heif": ("images/decode.py",),
    "ray": ("extraction/nodes.py", "extraction/tokens.py", "extraction/workers.py"),
    "PIL": ("images/", "classifier/session.py", "stages/predict.py"),
    "pickle": ("images/sources/arrays.py", "backbones/weights.py"),
}
HEAVY = (
    "torch",
    "torchvision",
    "timm",
    "h5py",
    "sklearn",
    "scipy",
    "onnx",
    "onnxscript",
    "safetensors",
    "jinja2",
    "uvicorn",
)


def package_of(module: Path) -> str:
    """Return the package a module is in, or its own name where it is in none."""
    name = module.parts[0] if len(module.parts) > 1 else module.stem
    return "cli" if name == "__main__" else "featx" if name == "__init__" else name


TEXTS = {module: (ROOT / module).read_text() for module in MODULES}
TREES = {module: ast.parse(text) for module, text in TEXTS.items()}


def imports(module: Path) -> Iterator[str]:
    """Yield the dotted name of everything a module imports, at its top or inside functions."""
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # "from featx import errors" names a module, "from featx.errors import X" a thing in one
            yield from (f"{'.' * node.level}{node.module}.{alias.name}" for alias in node.names)


def own_imports() -> Iterator[tuple[Path, list[str]]]:
    """Yield each module with the parts of each name it imports from featx, ``featx`` left out."""
    for module in MODULES:
        for package, *parts in (name.split(".") for name in imports(module)):
            if package == "featx":
                yield module, parts


def test_imports_are_absolute_and_go_downward_only():
    wrong = [
        f"{module}: {name}" for module in MODULES for name in imports(module) if name[0] == "."
    ]
    for module, parts in own_imports():
        here = package_of(module)
        there = parts[0] if parts and parts[0] in LEVEL else "featx"
        if there == "featx":  # only the version
            wrong += (
                [f"{module} imports the package itself"] if here not in ("cli", "packages") else []
            )
        elif there != here and LEVEL[there] >= LEVEL[here]:
            wrong.append(f"{module}: {here} imports {there}")
    assert not wrong


def test_no_modules_import_each_other_in_a_circle():
    def module_of(name: str) -> Path | None:
        while name.startswith("featx."):
            path = Path(*name.split(".")[1:])
            for found in (path.with_suffix(".py"), path / "__init__.py"):
                if found in TREES:
                    return found
            name = name.rpartition(".")[0]
        return None

    graph = {
        module: {module_of(name) for name in imports(module)} - {module, None}
        for module in TREES
        if module.name != "__init__.py"  # hands on what is in its modules
    }
    tuple(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def test_every_module_is_in_a_package():
    assert {package_of(module) for module in MODULES} == set(LEVEL)
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} == set(PACKAGES)
    assert {path.stem for path in ROOT.glob("*.py")} == {
        "__init__",
        "__main__",
        "errors",
        "packages",
        "system",
    }
    assert not {"utils", "helpers", "common", "misc", "core"} & {path.stem for path in MODULES}


def test_stages_do_not_know_one_another():
    wrong = []
    for module, parts in own_imports():
        if package_of(module) == "stages" and parts[0] == "stages":
            own = module.parts[:2] if len(module.parts) > 2 else None  # a stage in several files
            wrong += [f"{module} imports {parts}"] if tuple(parts[:2]) != own else []
    assert not wrong


def test_the_entry_point_loads_next_to_nothing():
    """So that an interrupt meets its handler from the first moments on."""
    for name, most in (("__init__.py", {"os", "sys"}), ("__main__.py", {"os", "signal", "sys"})):
        tree = TREES[Path(name)]
        top = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
        names = {getattr(node, "module", None) or node.names[0].name for node in top}
        assert names <= most | {"__future__"}


def test_heavy_libraries_are_imported_where_they_are_allowed():
    imported = {m: {name.partition(".")[0] for name in imports(m)} for m in MODULES}
    wrong = [
        f"{module} imports {library}; only {importers} may"
        for library, importers in ALLOWED.items()
        for module, roots in imported.items()
        if library in roots
        # an importer is a file, or a folder that ends in "/"
        if not any(
            str(module).startswith(one) if one.endswith("/") else str(module) == one
            for one in importers
        )
    ]
    assert not wrong


def test_nothing_prints_exits_runs_or_unpickles_unguarded():
    output = {"print", "exit", "quit", "sys.exit", "os._exit", "input"}
    output |= {"sys.stdout", "sys.stderr", "sys.argv"}
    never = {"eval", "exec", "pickle.load", "pickle.loads", "os.system"}
    # a forked process lacks the threads of its parent, on which stores and sessions wait
    never |= {"os.fork", "multiprocessing.Process", "multiprocessing.Pool", "get_context"}
    never |= {"ProcessPoolExecutor", "multiprocessing.get_context"}
    wrong = []
    for module in MODULES:
        draws = package_of(module) == "cli" or str(module) == "artifact/bars.py"
        banned = never if draws else never | output
        for node in ast.walk(TREES[module]):
            name = ""
            if isinstance(node, ast.Attribute):
                name = ast.unparse(node)
            elif isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                if name == "torch.load" and options.get("weights_only") != "True":
                    wrong.append(f"{module}:{node.lineno}: torch.load without weights_only=True")
            elif isinstance(node, ast.Assert) and "isinstance" not in ast.unparse(node.test):
                name = "assert"  # for type checkers only: python -O drops it
            if name in banned | {"assert"}:
                wrong.append(f"{module}:{node.lineno}: {name}")
    assert not wrong


def test_modules_say_what_they_are_and_stay_small():
    wrong = []
    for module in MODULES:
        if module.name != "__main__.py" and not ast.get_docstring(TREES[module]):
            wrong.append(f"{module} has no text at its top")
        if len(TEXTS[module].splitlines()) > 400:
            wrong.append(f"{module} is two concepts by now")
    for package in set(PACKAGES) - {"cli"}:  # commands need no list
        text = ast.get_docstring(TREES[Path(package) / "__init__.py"]) or ""
        modules = {path.stem for path in (ROOT / package).glob("*.py")} - {"__init__"}
        modules |= {path.parent.name for path in (ROOT / package).glob("*/__init__.py")}
        missing = {name for name in modules if name not in text.replace("-", "_")}
        if missing:
            wrong.append(f"featx/{package}/__init__.py does not mention {missing}")
    assert not wrong


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
        "import featx.stages.predict, featx.classifier.session",
        "import featx.images.sources, featx.images.sources.folder, featx.images.sources.manifest",
        "from featx.cli import main; main(['--help'], standalone_mode=False)",
        "from featx.cli import main; main(['predict', '--help'], standalone_mode=False)",
        "from featx.cli import main; main(['extract', '--help'], standalone_mode=False)",
        "from featx.cli import main; main(['train-head', '--help'], standalone_mode=False)",
    ],
)
def test_light_entry_points_stay_light(code):
    assert not loaded_by(code) & set(HEAVY)


def test_an_extraction_loads_torch_only_when_there_is_something_to_extract():
    assert "torch" not in loaded_by("import featx; featx.extract, featx.ExtractReport, featx.check")


def test_help_and_import_load_next_to_nothing():
    assert not loaded_by("import featx") & {"numpy", "PIL", "onnxruntime", "click"}
    code = "import featx.cli, sys; print('featx.artifact' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
    shown = loaded_by("from featx.cli import main; main(['--help'], standalone_mode=False)")
    assert not shown & {"numpy", "PIL", "onnxruntime"}


def test_predicting_on_images_of_a_folder_stays_light(tmp_path):
    from PIL import Image

    (tmp_path / "ants").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "ants" / "1.png")
    code = (
        "from featx.images.sources.folder import find_images; from featx.images.decode import "
        f"read_image_file, decode_image; path, = find_images([{str(tmp_path)!r}]); "
        "decode_image(read_image_file(path, sample_id='a'), sample_id='a')"
    )
    assert not loaded_by(code) & set(HEAVY)
