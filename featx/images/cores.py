"""How many cores there are to work with: those of the machine, or the share a container has."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def num_cores(cgroups: Path = _CGROUPS, own: Path = _OWN) -> int:
    """Return how many cores this process may use, at least 1.

    A container's CPU quota counts, rounded up: more threads than that are only put to sleep.

    Args:
        cgroups: Where control groups are mounted.
        own: The kernel's list of the groups of this process.
    """
    cores = len(os.sched_getaffinity(0))
    return max(1, min([cores, *(math.ceil(quota) for quota in _quotas(cgroups, own))]))


def _quotas(cgroups: Path, own: Path) -> Iterator[float]:
    """Yield the quota of each group that this process is in, in cores, outer groups included.

    A container may see its own group at the root of the mount, whatever path the kernel lists.
    """
    for line in (_read(own) or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:  # version 2
            mounts = [cgroups, cgroups / "unified"]
        elif "cpu" in controllers.split(","):
            mounts = [cgroups / controllers, cgroups / "cpu"]
        else:
            continue
        for mount in mounts:
            group = mount / path.lstrip("/")
            for folder in (group, *group.parents):
                if (quota := _quota_in(folder)) is not None:
                    yield quota
                if folder == mount:
                    break


def _quota_in(folder: Path) -> float | None:
    """Return the quota of one group in cores; None where it has none."""
    limits = (_read(folder / "cpu.max") or "").split()
    if not limits:
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        limits = [(_read(folder / name) or "").strip() for name in names]
    try:
        quota, period = map(int, limits)
    except ValueError:  # "max", or not there
        return None
    return quota / period if quota > 0 and period > 0 else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
