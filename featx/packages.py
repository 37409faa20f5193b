"""What is installed: the version of featx, which of its two packages, and what is missing.

``featx`` and ``featx-core`` hold the same files; ``featx-core`` requires neither torch nor
torchvision. Names of packages here are those that pip takes; of modules, those that Python imports.
"""

from __future__ import annotations

from importlib.util import find_spec

import featx
from featx.errors import BackboneError, FeatxError, first_line

COMPLETE, CORE = "featx", "featx-core"
_WITH_TORCH = ("torch", "torchvision", "onnxscript")
"""What featx-core leaves out; its extra ``torch`` brings them."""
_RUNTIMES = tuple(
    f"onnxruntime{build}" for build in ("", "-gpu", "-openvino", "-directml", "-qnn", "-rocm")
)
_PACKAGES = {
    "sklearn": "scikit-learn",
    "PIL": "pillow",
    "pillow_heif": "pillow-heif",
    "python_multipart": "python-multipart",
    "grpc": "grpcio",
}
"""Packages by their modules, where the names differ."""
_NEEDED = {
    *_WITH_TORCH,
    *("h5py", "jinja2", "numpy", "onnx", "onnxruntime", "pillow", "safetensors"),
    *("scikit-learn", "scipy"),
    *("aiohttp", "fsspec", "huggingface_hub", "matplotlib", "pyarrow", "s3fs", "timm", "uvicorn"),
}
"""Packages that featx or an extra requires, but not every command needs."""


def installed(package: str) -> str | None:
    """Return the version of a package, None where it is not installed; of featx, what runs."""
    return featx.__version__ if package == COMPLETE else _recorded(package)


def _recorded(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def own_package() -> str:
    """Return which of featx's packages is installed; ``"featx"`` where neither or both are."""
    return CORE if _recorded(CORE) and not _recorded(COMPLETE) else COMPLETE


def both_installed() -> str | None:
    """Return a sentence with the repair where featx and featx-core are both installed, else None.

    They write the same files, so the one that pip wrote last is what runs, and removing either
    leaves the other one broken.
    """
    complete, core = _recorded(COMPLETE), _recorded(CORE)
    if not (complete and core):
        return None
    return (
        f"featx {complete} and featx-core {core} are both installed and overwrite each other. "
        "Remove both: pip uninstall -y featx-core featx; then install one: pip install featx."
    )


def several_runtimes() -> str | None:
    """Return a sentence with the repair where several builds of ONNX Runtime are here."""
    found = [name for name in _RUNTIMES if _recorded(name)]
    if len(found) < 2:
        return None
    return (
        f"{' and '.join(found)} are all installed in one folder, and only the one that pip wrote "
        f"last runs. Remove them: pip uninstall -y {' '.join(found)}; then install the one you "
        f"want: pip install {found[-1]}."
    )


def install_command(extra: str) -> str:
    """Return the command that installs an extra of the package that is here.

    >>> install_command("report")
    "pip install 'featx[report]'"
    """
    return f"pip install '{own_package()}[{extra}]'"


def needed(error: ImportError, package: str, command: str) -> str:
    """Return a package that cannot be imported, why, and what installs it, to end a sentence.

    Only an error about that very package means that it is not installed. Where it is installed but
    lacks a package of its own, or a library, that is named.

    Args:
        error: What importing it raised.
        package: As pip knows it.
        command: Installs what is missing, as ``install_command`` gives it.
    """
    name = error.name or ""
    if isinstance(error, ModuleNotFoundError) and _package_of(name) == package:
        return f"{package}, which is not installed: {command}."
    if isinstance(error, ModuleNotFoundError) and name and _root(name) != _root(package):
        return f"{package}, which needs '{name}', which is not installed: pip install {name}."
    return (
        f"{package}, which is installed but cannot be loaded ({first_line(error)}): "
        f"pip install --force-reinstall {package}."
    )


def _root(module: str) -> str:
    return _package_of(module.partition(".")[0]).replace("-", "_")


def _package_of(module: str) -> str:
    return _PACKAGES.get(module, module)


def import_problem(error: ImportError) -> FeatxError | None:
    """Return the error for a user whose installation lacks something; None for what is a bug.

    >>> print(import_problem(ModuleNotFoundError("No module named 'PIL'", name="PIL")))
    This needs pillow, which is not installed: pip install pillow.
    """
    package = _package_of(_importer(error) or (error.name or "").partition(".")[0])
    if package not in _NEEDED and package != COMPLETE:
        return None
    if conflict := both_installed():
        return FeatxError(f"{conflict} What failed: {first_line(error)}.")
    if package == COMPLETE:
        return None
    return FeatxError(f"This needs {needed(error, package, _command(package))}")


def _command(package: str) -> str:
    if package in _WITH_TORCH and own_package() == CORE:
        return install_command("torch")
    return f"pip install {package}"


def require_torch(purpose: str) -> None:
    """Check that torch is installed, without loading it.

    Args:
        purpose: What needs it: the beginning of the error's sentence.

    Raises:
        BackboneError: It is not; the message says how to install it.
    """
    if find_spec("torch") is None:
        raise BackboneError(f"{purpose} needs torch, which is not installed: {_command('torch')}.")


def _importer(error: ImportError) -> str | None:
    """Return the required package in whose code an import failed, None where it was featx's own."""
    step, found = error.__traceback__, None
    while step is not None and found is None:
        module = str(step.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
        found = module if _package_of(module) in _NEEDED else None
        step = step.tb_next
    return found
