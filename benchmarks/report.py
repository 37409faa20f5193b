"""Putting measured tables into the documents, between their two marks."""

import os
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
START, END = "<!-- measured -->\n", "<!-- end -->\n"


TOLD = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
"""What a processor can, where it says so, and speeds depend on."""


def machine(*libraries: str) -> str:
    """Return cores, processor, GPU, Python and versions of libraries, as a part of a sentence."""
    import torch

    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text(encoding="utf-8").split() if cpuinfo.exists() else []
    able = ", ".join(name for name in TOLD if name in flags)
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in libraries)
    processor = f"{platform.machine()} ({able})" if able else platform.machine()
    if torch.cuda.is_available():
        processor += f", {torch.cuda.get_device_name()}"
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores, {processor}, Python {platform.python_version()}, {versions}"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def write_measured(document: str, text: str, *, name: str = "") -> None:
    """Replace what stands between the marks of a document of the project.

    Args:
        document: Path from the project's folder.
        text: To stand there.
        name: Of the marks, where the document has several: ``<!-- measured: name -->``.
    """
    path = ROOT / document
    start = START.replace("measured", f"measured: {name}") if name else START
    before, mark, rest = path.read_text(encoding="utf-8").partition(start)
    if not mark:
        raise SystemExit(f"'{document}' has no line {start.strip()}")
    after = rest.partition(END)[2]
    path.write_text(before + start + text + END + after, encoding="utf-8")
