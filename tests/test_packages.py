"""What is installed, what is missing, and the sentence that says what to install."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from PIL import Image

import featx
from featx import packages
from featx.packages import (
    both_installed,
    import_problem,
    install_command,
    installed,
    needed,
    several_runtimes,
)

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture
def record(monkeypatch):
    """Have these versions installed, and no others."""

    def with_versions(**versions):
        def version(package):
            if package not in versions:
                raise metadata.PackageNotFoundError(package)
            return versions[package]

        versions = {name.replace("_", "-"): value for name, value in versions.items()}
        monkeypatch.setattr(metadata, "version", version)

    return with_versions


def absent(module):
    return ModuleNotFoundError(f"No module named '{module}'", name=module)


@pytest.mark.parametrize("name", ["torchaudio", "featx.gone", "", None])
def test_a_module_that_is_not_a_missing_package_is_a_bug(name):
    assert import_problem(ModuleNotFoundError("No module", name=name)) is None


def test_every_package_that_a_command_may_lack_is_told_by_its_name():
    required = {re.split(r"[^\w-]", text)[0] for text in PROJECT["dependencies"]}
    modules = {"scikit-learn": "sklearn", "pillow": "PIL"}
    for package in required - {"click"}:  # without it there is no command
        told = import_problem(absent(modules.get(package, package)))
        assert str(told).endswith(
            f"needs {package}, which is not installed: pip install {package}."
        )


def test_a_package_that_is_installed_but_broken_shows_the_real_cause():
    library = ImportError("libcudart.so.13: cannot open shared object file", name="torch._C")
    told = str(import_problem(library))
    assert "installed but cannot be loaded (libcudart.so.13: cannot open shared" in told
    assert "which is not installed" not in told
    assert "cannot be loaded (No module named 'torch._C')" in str(
        import_problem(absent("torch._C"))
    )
    assert "cannot be loaded" in needed(library, "torch", "pip install torch")


def test_a_missing_package_of_a_package_is_the_one_that_is_named():
    told = needed(absent("cycler"), "matplotlib", install_command("report"))
    assert told == "matplotlib, which needs 'cycler', which is not installed: pip install cycler."


def test_a_missing_package_is_named_where_another_one_imports_it(tmp_path, monkeypatch):
    """scipy is imported by scikit-learn alone, whose code then stands in the traceback."""
    source = compile("import scipy_gone", "sklearn/base.py", "exec")
    with pytest.raises(ModuleNotFoundError) as caught:
        exec(source, {"__name__": "sklearn.base"})
    told = "This needs scikit-learn, which needs 'scipy_gone', which is not installed"
    assert str(import_problem(caught.value)).startswith(told)


def test_commands_name_the_package_that_is_installed(record):
    record(featx="0.1.0")
    assert install_command("report") == "pip install 'featx[report]'"
    assert str(import_problem(absent("torch"))).endswith("pip install torch.")
    record(featx_core="0.1.0")
    assert install_command("report") == "pip install 'featx-core[report]'"
    assert str(import_problem(absent("torch"))).endswith("pip install 'featx-core[torch]'.")
    record()  # a copied tree
    assert install_command("report") == "pip install 'featx[report]'"
    assert installed("featx") == featx.__version__


def test_both_packages_at_once_are_told_with_the_repair(record):
    record(featx="0.1.0")
    assert both_installed() is None
    record(featx_core="0.1.0")
    assert both_installed() is None
    record(featx="0.2.0", featx_core="0.1.0")
    told = both_installed()
    assert "featx 0.2.0 and featx-core 0.1.0 are both installed" in told
    assert "pip uninstall -y featx-core featx" in told
    failed = ImportError("cannot import name 'x' from 'featx.errors'", name="featx.errors")
    assert str(import_problem(failed)) == f"{told} What failed: {failed}."
    assert str(import_problem(absent("torch"))).startswith(told)


def test_several_builds_of_onnx_runtime_are_named(record):
    record(onnxruntime_gpu="1.23.0", featx="0.1.0")
    assert several_runtimes() is None
    record(onnxruntime="1.23.0", onnxruntime_gpu="1.23.0")
    told = several_runtimes()
    assert "onnxruntime and onnxruntime-gpu are all installed" in told
    assert told.endswith("pip install onnxruntime-gpu.")


def test_the_version_is_that_of_the_code_and_not_of_metadata(monkeypatch, record):
    record(featx="0.0.1")
    monkeypatch.setattr(featx, "__version__", "9.9.9")
    assert packages.installed("featx") == "9.9.9"


def test_a_command_that_cannot_be_imported_tells_of_two_packages(record, monkeypatch):
    from featx import __main__ as process

    monkeypatch.setitem(sys.modules, "featx.cli", None)
    record(featx="0.2.0")
    with pytest.raises(ImportError):
        process._command()
    record(featx="0.2.0", featx_core="0.1.0")
    with pytest.raises(SystemExit, match=r"and featx-core [0-9.]+ are both"):
        process._command()


def test_a_name_of_featx_that_needs_a_missing_package_says_so(monkeypatch):
    error = absent("sklearn")
    monkeypatch.setattr(importlib, "import_module", lambda _: (_ for _ in ()).throw(error))
    with pytest.raises(ModuleNotFoundError) as caught:
        _ = featx.train_head
    assert caught.value.__notes__ == [
        "This needs scikit-learn, which is not installed: pip install scikit-learn."
    ]


@pytest.fixture(scope="module")
def core():
    spec = importlib.util.spec_from_file_location("backend", ROOT / "core" / "backend.py")
    backend = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(backend)
    return tomllib.loads(backend.as_toml(backend.configuration()))["project"]


def test_featx_core_is_featx_without_torch(core):
    assert core["name"] == "featx-core"
    left_out = set(PROJECT["dependencies"]) - set(core["dependencies"])
    assert left_out == set(core["optional-dependencies"]["torch"])
    assert {re.split(r"[^\w-]", each)[0] for each in left_out} == set(packages._WITH_TORCH)
    same = {"classifiers", "dynamic", "keywords", "license", "readme", "requires-python", "scripts"}
    assert {key: core[key] for key in same} == {key: PROJECT[key] for key in same}


def test_no_extra_of_featx_core_brings_featx(core):
    extras = core["optional-dependencies"]
    assert set(extras) == set(PROJECT["optional-dependencies"]) - {"dev", "docs"} | {"torch"}
    assert not [each for needs in extras.values() for each in needs if each.startswith("featx[")]
    assert "featx-core[torch]" in extras["timm"]


def test_all_names_every_extra_but_those_for_work_on_featx():
    extras = PROJECT["optional-dependencies"]
    (named,) = re.findall(r"featx\[(.*)\]", *extras["all"])
    assert set(named.split(",")) == set(extras) - {"all", "dev", "docs"}


def test_the_page_on_installing_names_every_extra():
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
    assert set(rows) == set(PROJECT["optional-dependencies"]) - {"dev", "docs"} | {"featx"}


# What the documents say


def documented():
    """Return the arguments of each documented ``pip install``, by its line."""
    text = "".join(
        (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/install.md")
    )
    lines = re.findall(r"(?:^|`)(pip install [^`\n]*)", text, re.MULTILINE)
    return {line: shlex.split(line, comments=True)[2:] for line in lines}


def test_documented_torch_for_the_cpu_names_its_index():
    (arguments,) = [each for each in documented().values() if "torchvision" in each]
    assert arguments[-2:] == ["--index-url", "https://download.pytorch.org/whl/cpu"]


@pytest.mark.slow
@pytest.mark.parametrize("line", [*documented(), "pip install 'featx[Report,ALL]'"])
def test_a_documented_command_resolves(line):
    """Names of featx lead to this tree; torch is never downloaded, as it is installed here."""
    here = {"featx": str(ROOT), "featx-core": str(ROOT / "core"), ".": str(ROOT)}
    arguments = [
        here.get(name := each.partition("[")[0], name) + each.removeprefix(name)
        for each in shlex.split(line, comments=True)[2:]
    ]
    is_light = ("featx-core" in line and "[" not in line) or "/whl/cpu" in line
    options = ["--ignore-installed"] if is_light else []
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-build-isolation"]
    result = subprocess.run(
        [*pip, *options, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if re.search("Connection|HTTPSConnectionPool|Temporary failure|No matching", result.stderr):
        pytest.skip(f"no registry: {result.stderr[-200:]}")
    assert result.returncode == 0, result.stderr
    would = [each for each in result.stdout.splitlines() if each.startswith("Would install")]
    if is_light:
        assert would
        assert "nvidia-" not in would[0]
        assert "torch" not in would[0] or "whl/cpu" in line


def test_an_extra_that_is_installed_but_broken_shows_the_real_cause(monkeypatch, tmp_path):
    (tmp_path / "timm").mkdir()
    (tmp_path / "timm" / "__init__.py").write_text("import torch_that_is_not_there\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.partition(".")[0] == "timm"]:
        monkeypatch.delitem(sys.modules, name)
    from featx.backbones.with_timm import full_name

    full_name.cache_clear()
    with pytest.raises(ModuleNotFoundError) as caught:
        full_name("timm/resnet18")
    told = "This needs timm, which needs 'torch_that_is_not_there', which is not installed"
    assert str(import_problem(caught.value)).startswith(told)


def test_a_backbone_that_must_be_built_says_what_that_needs(record, monkeypatch, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    monkeypatch.setattr(packages, "find_spec", lambda _: None)
    record(featx_core="0.1.0")
    told = r"Building resnet18, of which no graph is cached, needs torch.*'featx-core\[torch\]'"
    with pytest.raises(featx.FeatxError, match=told):
        featx.extract(tmp_path, tmp_path / "f.h5", featx.ExtractOptions(weights="none"))
    assert not (tmp_path / "f.h5").exists()
