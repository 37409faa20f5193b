"""How much memory training may take, and whether the features fit into it."""

from __future__ import annotations

import logging
import re
import resource
from pathlib import Path

import numpy as np

from featx.errors import ConfigError
from featx.features.file import FeatureFile

log = logging.getLogger(__name__)

COPIES = {"lbfgs": 4, "sklearn": 8, "ridge": 7, "centroid": 5, "sgd": 3, "mlp": 5}
"""Copies of all features in float32 that training in memory holds at once."""

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY_UNITS = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def parse_memory(memory: str | int) -> int:
    """Return bytes from a number of them, or from text like ``"500MB"`` or ``"1.5GiB"``.

    Raises:
        ConfigError: It is no size, or not above 0.

    >>> parse_memory("2GB"), parse_memory("1.5GiB")
    (2000000000, 1610612736)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]i?|)b?", str(memory).strip().lower())
    size = 0
    if found:
        number, unit = found.groups()
        size = int(float(number) * (_UNITS | _BINARY_UNITS)[unit])
    if size < 1:
        raise ConfigError(f"memory must be a size like 500MB, 2GB or 1.5GiB; got {memory!r}.")
    return size


def free_memory() -> int:
    """Return the bytes that this process may still take: of the machine, its group, its limit."""
    free = [_available()]
    for group in _GROUPS:
        try:
            free.append(_left_in(*group))
        except (OSError, ValueError):  # no such group, or no limit ("max")
            continue
    limited, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limited != resource.RLIM_INFINITY:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        free.append(limited - pages * resource.getpagesize())
    return max(0, min(free))


_CGROUPS = Path("/sys/fs/cgroup")
_GROUPS = (
    (_CGROUPS, "memory.max", "memory.current", "inactive_file"),
    (
        *(_CGROUPS / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
        "total_inactive_file",
    ),
)
"""Folder, files of limit and use, and the entry of cached files that the kernel can drop."""


def _left_in(folder: Path, limit: str, used: str, dropped: str) -> int:
    statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    taken = int((folder / used).read_text()) - int(statistics.get(dropped, 0))
    return int((folder / limit).read_text()) - taken


def _available() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    raise ConfigError("this machine does not say how much memory is free; give it by memory=….")


def memory_for(memory: str | int | None) -> int:
    """Return the bytes that features and their copies may take; by default half of what is free."""
    return free_memory() // 2 if memory is None else parse_memory(memory)


def fits_into_memory(
    cache: FeatureFile, rows: np.ndarray, *, memory: int, solver: str, few_shot: bool
) -> bool:
    """Return whether training holds all features in memory, with the copies that it makes.

    Args:
        cache: The features.
        rows: Those that train.
        memory: Bytes that training may take.
        solver: A key of ``COPIES``.
        few_shot: Whether few of the rows are drawn.

    Raises:
        ConfigError: They do not fit, and the solver does not read them in blocks.
    """
    size = 4 * len(cache) * cache.num_features
    copies = COPIES["sgd" if few_shot else solver]
    if copies * size <= memory:
        return True
    if not few_shot:
        if solver == "sklearn":
            raise ConfigError(
                f"scikit-learn trains in memory: it needs about {_show(copies * size)} for these "
                f"features, and may take {_show(memory)}. Use solver='lbfgs', which has the same "
                "optimum and reads them in blocks, or allow more by memory=…."
            )
        if len(rows) <= cache.num_features:
            raise ConfigError(
                f"these features need about {_show(copies * size)} of memory, and {_show(memory)} "
                f"may be taken; {len(rows):,} samples of {cache.num_features:,} features are too "
                "few to be read in blocks. Allow more by memory=…."
            )
    log.info("The features take %s: they are read in blocks, pass after pass.", _show(size))
    return False


def _show(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
