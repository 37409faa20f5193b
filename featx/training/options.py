"""Options and report of training, and the memory that it may take."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from numbers import Real
from pathlib import Path
from typing import Any, Literal, TypedDict

from featx import system
from featx.artifact.keywords import names_of, record_of, require_names, require_types
from featx.errors import ConfigError
from featx.heads.samples.selection import ClassWeight, FewShot
from featx.heads.solvers.linear import STRENGTHS
from featx.heads.solvers.mlp import MLPOptions
from featx.heads.solvers.sgd import SGDOptions
from featx.heads.tasks import Task, TaskName
from featx.heads.tasks.scores import Scores
from featx.heads.tasks.task import Solver

HeadKind = Literal["linear", "mlp"]
TaskChoice = Literal["auto"] | TaskName

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY_UNITS = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


@dataclass(frozen=True)
class TrainOptions:
    """Which head to fit, and how.

    Attributes:
        task: How labels are read: one class each, tags separated by ``|``, or numbers; ``"auto"``
            reads tags where any label has a ``|``, else classes.
        head: ``"linear"`` or ``"mlp"``.
        solver: Of a linear head: logistic regression by featx's own L-BFGS or by scikit-learn,
            ridge on one-hot targets, nearest centroid by cosine, or the tutorials' SGD. None takes
            the first, for numbers ridge; tags and numbers know no other.
        strengths: Values of ``C`` (inverse L2 strength, as scikit-learn's) to choose from; for
            ``lbfgs``, ``sklearn`` and ``ridge``.
        mlp: Shape and training of an MLP head.
        sgd: The recipe of ``sgd``.
        class_weight: What a sample counts, by the name of its class, 1 where there is none;
            ``"balanced"`` lets every class count the same; None counts each sample once.
        few_shot: Train on a few samples of each class, on several draws; the head of the first is
            written.
        use_views: Train on the views of a feature file that has some, too.
        calibrate: Fit a temperature on held-out samples and fold it into the head; numbers need
            none.
        exclude: Sample ids of training images to leave out.
        memory: What features and their copies may take, in bytes or like ``"2GB"``; more are read
            from the file in blocks, pass after pass. None is half of what is free.
        seed: Decides folds, and everything random about an MLP.
        overwrite: Has no effect: a head is replaced anyway, another file never.
    """

    task: TaskChoice = "auto"
    head: HeadKind = "linear"
    solver: Solver | None = None
    strengths: tuple[float, ...] = STRENGTHS
    mlp: MLPOptions = field(default_factory=MLPOptions)
    sgd: SGDOptions = field(default_factory=SGDOptions)
    class_weight: ClassWeight = None
    few_shot: FewShot | None = None
    use_views: bool = True
    calibrate: bool = True
    exclude: tuple[str, ...] = ()
    memory: str | float | None = None
    seed: int = 0
    overwrite: bool = False

    def __post_init__(self) -> None:
        strengths: Any = self.strengths
        if isinstance(strengths, Real):
            object.__setattr__(self, "strengths", (strengths,))
        require_types(self)
        if not self.strengths or not all(0 < c < float("inf") for c in self.strengths):
            raise ConfigError(f"strengths C must be above 0; got {list(self.strengths)}.")
        if self.memory is not None:
            parse_memory(self.memory)

    def solver_for(self, task: Task) -> Solver:
        """Return the solver of a linear head.

        Raises:
            ConfigError: An option has no meaning for the task.
        """
        name, default = task.name, task.solvers[0]
        if self.head == "linear" and self.solver not in (None, *task.solvers):
            raise ConfigError(
                f"solver '{self.solver}' has no meaning for {name}; use {default}, or an MLP."
            )
        if not task.has_classes:
            if self.class_weight is not None:
                raise ConfigError(f"class weights have no meaning for {name}: leave them out.")
            if self.few_shot is not None:
                raise ConfigError(f"few-shot draws have no meaning for {name}: leave shots out.")
        return self.solver or default


class TrainKeywords(TypedDict, total=False):
    """Options of ``TrainOptions`` and of its parts by keyword."""

    task: TaskChoice
    head: HeadKind
    solver: Solver | None
    strengths: float | Sequence[float]
    mlp: MLPOptions
    sgd: SGDOptions
    class_weight: ClassWeight
    few_shot: FewShot | None
    use_views: bool
    calibrate: bool
    exclude: Sequence[str] | str | Path
    memory: str | float | None
    seed: int
    overwrite: bool
    hidden: int | Sequence[int]
    dropout: float | Sequence[float]
    learning_rate: float | Sequence[float]
    weight_decay: float | Sequence[float]
    num_seeds: int
    batch_size: int
    max_epochs: int
    patience: int
    momentum: float
    step_size: int
    gamma: float
    epochs: int
    shots: int
    repeats: int


_PARTS: dict[str, type[MLPOptions | SGDOptions | FewShot]] = {
    **{"mlp": MLPOptions, "sgd": SGDOptions, "few_shot": FewShot}
}
_PART_OF = {"mlp": "head='mlp'", "sgd": "solver='sgd'"}


def parts_of(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of ``TrainOptions`` that a head was trained with, as its header holds them.

    Raises:
        TypeError: They are not those of this version.
        ConfigError: A value does not fit.
    """
    given = {part: recorded.get(part) for part in _PARTS}
    return {part: _PARTS[part](**values) for part, values in given.items() if values is not None}


def train_options(given: TrainOptions | None, keywords: Mapping[str, Any]) -> TrainOptions:
    """Return the options of training; keywords count before what a given record says.

    Options of an MLP count with ``head="mlp"``, those of SGD with ``solver="sgd"``, and those of
    ``FewShot`` with ``shots``.

    Raises:
        ConfigError: There is no such option, it has no meaning here, or a value does not fit.
    """
    own = names_of(TrainOptions)
    parts = {part: names_of(record) for part, record in _PARTS.items()}
    require_names(keywords, chain(own, *parts.values()))
    options = record_of(TrainOptions, given, {n: v for n, v in keywords.items() if n in own})
    used = ["mlp"] if options.head == "mlp" else ["sgd"] if options.solver == "sgd" else []
    if options.few_shot or "shots" in keywords:
        used.append("few_shot")
    for name in (name for name in keywords if name not in own):
        fitting = [part for part, names in parts.items() if name in names]
        if not set(fitting) & set(used):
            needed = " or ".join(_PART_OF.get(part, "shots=…") for part in fitting)
            raise ConfigError(f"{name}=… has no meaning here; it needs {needed}.")
    for part in used:
        chosen = {n: v for n, v in keywords.items() if n in parts[part] and n not in own}
        if chosen:
            options = replace(
                options, **{part: record_of(_PARTS[part], getattr(options, part), chosen)}
            )
    return options


@dataclass(frozen=True)
class CrossValidated:
    """Scores of training samples, each by a head that was not trained on it.

    They chose strength, temperature and thresholds, so they are a little optimistic.
    """

    scores: Scores
    num_folds: int  # 0 for leave-one-out

    def to_dict(self) -> dict[str, Any]:
        """Return the scores as JSON values."""
        return {"num_folds": self.num_folds, "metrics": self.scores.to_dict()}


def parse_memory(memory: str | float) -> int:
    """Return bytes from a number of them, or from text like ``"500MB"`` or ``"1.5GiB"``.

    >>> parse_memory("2GB"), parse_memory("1.5GiB")
    (2000000000, 1610612736)
    """
    found = re.fullmatch(r"(\d{1,99}(?:\.\d+)?)\s*([kmgt]i?|)b?", str(memory).strip().lower())
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
    resource = system.resource
    limited = resource.getrlimit(resource.RLIMIT_AS)[0] if resource else None
    if resource and limited != resource.RLIM_INFINITY and _STATM.exists():
        pages = int(_STATM.read_text().split()[0])
        free.append(limited - pages * resource.getpagesize())
    return max(0, min(free))


_STATM, _MEMINFO = Path("/proc/self/statm"), Path("/proc/meminfo")
_UNKNOWN_MEMORY = 8 * 2**30
"""Bytes that a machine is taken to have where the system does not say."""
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
    lines = _MEMINFO.read_text().splitlines() if _MEMINFO.exists() else []
    for line in lines:
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return (system.installed_memory() or _UNKNOWN_MEMORY) // 2


def memory_for(memory: str | float | None) -> int:
    """Return the bytes that features and their copies may take; by default half of what is free."""
    return free_memory() // 2 if memory is None else parse_memory(memory)
