"""The head: the layers from raw features to logits, and its file.

A safetensors file with ``layers.{i}.weight`` (out, in) and ``layers.{i}.bias`` (out,), float32.
Standardisation is folded in, so a head applies to features as they are cached. A head that was
trained together with the network behind a cut has the tensors of that tail as well, as
``tail.NAME`` by the names of the whole model.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from featx.artifact import MAX_HEADER_BYTES, Header, other_kind, publish, require_file
from featx.artifact.schema import brief
from featx.artifact.shown import Shown
from featx.errors import ArtifactInvalid, counted, listed
from featx.heads.describe import describe_head
from featx.heads.samples.folds import HeldOut
from featx.heads.tasks import TaskName, task_of

_METADATA_KEY = "featx"
_MAX_LAYERS = 64

NEVER = np.float32(-1e4)
"""Bias of a class without training samples."""
_MAX_BYTES = 2**31
_TAIL = "tail."
_MAX_TENSORS = 2**14
_MAX_NAME = 255
_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*", re.ASCII)
"""Name of a tensor in a state dict."""
_MAX_JSON_BYTES = 2 * MAX_HEADER_BYTES + 2**16
"""The header stands in the list of tensors as a string, where a quote takes two bytes."""

Layer = tuple[np.ndarray, np.ndarray]
"""Weight ``(out, in)`` and bias ``(out,)``, float32."""


@dataclass(frozen=True, eq=False)
class Fitted:
    """A head as its solver returns it."""

    layers: tuple[Layer, ...]  # for raw features
    choice: dict[str, Any]  # solver, its options and what it has chosen, JSON values
    held_out: HeldOut | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Head(Shown):
    """Linear layers with ReLU between them.

    Attributes:
        header: Spec of its features, classes, solver, metrics.
        layers: First to last; a linear head has one.
        tail: Tensors of the network behind the cut, float32, by the names of the whole model;
            without its integer counters. Empty where that network was not trained.
    """

    header: Header
    layers: tuple[Layer, ...]
    tail: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def cut(self) -> str | None:
        """Where its network was split: the name of a module, or ``"input"``; None for nowhere."""
        cut = self.header.spec.get("cut")
        return None if cut is None else str(cut)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in index order."""
        return self.header.classes

    @property
    def task(self) -> TaskName:
        """Name of the task."""
        return task_of(self.header.details).name

    @property
    def thresholds(self) -> tuple[float, ...]:
        """Threshold of each tag's probability; empty unless the task is multi-label."""
        details = self.header.details
        return task_of(details).thresholds_of(details, len(self.classes))

    @property
    def made_by(self) -> str:
        """The command that makes such a head."""
        return "finetune" if self.tail else "train-head"

    @property
    def sha256(self) -> str:
        """The sha256 of the header, which holds that of the weights: of all that it says."""
        return hashlib.sha256(self.header.to_json().encode()).hexdigest()

    def _lines(self) -> Iterator[str]:
        sizes = [self.layers[0][0].shape[1], *(len(bias) for _, bias in self.layers)]
        yield f"Head: {' → '.join(f'{size:,}' for size in sizes)}, {self.task}"
        yield from lines_of_head(self)

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Return ``(N, num_classes)`` float32 of raw features ``(N, num_features)``.

        For a regression these are the values themselves.
        """
        return apply_layers(self.layers, features)


def lines_of_head(head: Head) -> Iterator[str]:
    """Yield what a head is, what it was trained on and what it answers, a line each."""
    details, spec = head.header.details, head.header.spec
    yield describe_head(details.get("choice", {}), details.get("metrics", {}))
    yield f"{spec['backbone']}, trained on {details.get('features', 'features')}"
    yield f"{counted(len(head.classes), 'output')}: {listed(list(head.classes))}"


def apply_layers(layers: Sequence[Layer], features: np.ndarray) -> np.ndarray:
    """Return the last layer's output ``(N, out)`` float32, with ReLU between layers."""
    values = features.astype(np.float32, copy=False)
    for position, (weight, bias) in enumerate(layers):
        values = values @ weight.T + bias
        if position < len(layers) - 1:
            values = np.maximum(values, 0)
    return values


def fold_standardisation(layer: Layer, mean: np.ndarray, scale: np.ndarray) -> Layer:
    """Return the layer for raw features of one ``(out, in)`` for ``(features - mean) / scale``."""
    weight, bias = (part.astype(np.float64) for part in layer)
    folded = weight / scale
    return folded.astype(np.float32), (bias - folded @ mean).astype(np.float32)


def silence_absent(layer: Layer, labels: np.ndarray) -> Layer:
    """Return the layer whose classes without labels ``(N,)`` have a probability of 0 in float32."""
    weight, bias = layer
    absent = np.bincount(labels, minlength=len(bias)) == 0
    return np.where(absent[:, None], np.float32(0), weight), np.where(absent, NEVER, bias)


def save_head(path: Path, head: Head, *, overwrite: bool = False) -> Head:
    """Write a head file; return the head with its header completed by a checksum.

    Raises:
        ArtifactExists: Something is there and ``overwrite`` is false.
        ArtifactInvalid: A weight is NaN or infinite; no reader would take the file.
        ArtifactError: The disk refused; nothing is left behind.
    """
    head = _in_float32(head)
    if (part := _first_not_finite(head)) is not None:
        raise ArtifactInvalid(
            path,
            f"'{path}' was not written: {part} has weights that are not finite. The training "
            "diverged.",
        )
    if (problem := _tail_problem(head.tail, head.header)) is not None:
        raise ArtifactInvalid(path, f"'{path}' was not written: {problem}.")
    details = dict(head.header.details) | {"sha256": _checksum(head)}
    head = replace(head, header=replace(head.header, details=details))
    tensors = {_TAIL + name: value for name, value in head.tail.items()}
    for i, (weight, bias) in enumerate(head.layers):
        tensors |= {f"layers.{i}.weight": weight, f"layers.{i}.bias": bias}
    if (size := sum(value.nbytes for value in tensors.values())) > _MAX_BYTES - _MAX_JSON_BYTES:
        raise ArtifactInvalid(
            path, f"'{path}' was not written: its tensors have {size} bytes; 2 GB are the most."
        )
    content = safetensors.numpy.save(tensors, {_METADATA_KEY: head.header.to_json()})
    publish(path, content, overwrite=overwrite)
    return head


def _in_float32(head: Head) -> Head:
    """Return the head with arrays of its own, each contiguous."""

    def own(value: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):  # what is infinite then is refused
            return np.array(value, np.float32, order="C")

    layers = tuple((own(weight), own(bias)) for weight, bias in head.layers)
    return replace(head, layers=layers, tail={name: own(v) for name, v in head.tail.items()})


def open_head(path: str | Path, *, verify: bool = True) -> Head:
    """Open a head file and check all of it.

    Args:
        path: The safetensors file.
        verify: Compare the weights with their sha256; leave out only for a file you have verified.

    Raises:
        ArtifactMissing: The file is not there.
        ArtifactInvalid: It is not a head, damaged, altered, of another schema, or has weights that
            are not finite.
    """
    path = Path(path)
    require_file(path, made_by="featx train-head")
    if path.stat().st_size > _MAX_BYTES:
        raise ArtifactInvalid(path, f"'{path}' is larger than a head can be (2 GiB).")
    try:
        head = _parse(path.read_bytes(), path)
    except (OSError, safetensors.SafetensorError, ValueError, RecursionError) as err:
        if isinstance(err, ArtifactInvalid):
            raise
        what = f"'{path}' is not a head, or is damaged ({err}).{other_kind(path, 'head')}"
        raise ArtifactInvalid(path, what) from err
    _require_shapes(path, head.header, head.layers)
    if verify and _checksum(head) != head.header.details["sha256"]:
        raise ArtifactInvalid(
            path,
            f"'{path}': its weights do not have the sha256 they were written with; the file is "
            f"damaged or was altered. Run featx {head.made_by} again.",
        )
    if (part := _first_not_finite(head)) is not None:
        raise ArtifactInvalid(path, f"'{path}': {part} has weights that are not finite.")
    return head


def _parse(content: bytes, path: Path) -> Head:
    """Return the head in a file's content, its names and sizes checked first."""
    listing = _listing(content)
    metadata = listing.get("__metadata__")
    text = metadata.get(_METADATA_KEY) if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise ArtifactInvalid(path, f"'{path}' is a safetensors file, but not a head of featx's.")
    header = Header.from_json(text, path=path, kind="head")
    names = listing.keys() - {"__metadata__"}
    tail = {name for name in names if name.startswith(_TAIL)}
    count = (len(names) - len(tail)) // 2
    expected = {f"layers.{i}.{part}" for i in range(count) for part in ("weight", "bias")}
    if names - tail != expected or not 1 <= count <= _MAX_LAYERS:
        raise ArtifactInvalid(path, f"'{path}' holds other tensors than a head's layers.")
    tail_names = [name.removeprefix(_TAIL) for name in sorted(tail)]
    if (problem := _tail_problem(tail_names, header)) is not None:
        raise ArtifactInvalid(path, f"'{path}': {problem}.")
    for name in sorted(names):  # numpy lacks some of the types that may stand here
        entry = listing[name]
        dtype = entry.get("dtype") if isinstance(entry, dict) else None
        if dtype != "F32":
            raise ArtifactInvalid(path, f"'{path}': '{name}' is {dtype}, expected F32.")
    tensors = safetensors.numpy.load(content)
    layers = ((tensors[f"layers.{i}.weight"], tensors[f"layers.{i}.bias"]) for i in range(count))
    return Head(header, tuple(layers), {name: tensors[_TAIL + name] for name in tail_names})


def _tail_problem(names: Collection[str], header: Header) -> str | None:
    """Return why a head cannot have a tail of these tensors; None where it can."""
    if names and "cut" not in header.spec:
        return "it has tensors of a network behind a cut, but its header names no cut"
    if len(names) > _MAX_TENSORS:
        return f"it has {len(names)} tensors behind the cut; {_MAX_TENSORS} are the most"
    odd = [n for n in names if len(n) > _MAX_NAME or not _NAME.fullmatch(n)]
    return f"{brief(odd[0])} is not a name of a tensor" if odd else None


def _listing(content: bytes) -> dict[str, Any]:
    """Return the JSON at the start of a safetensors file: name → type, shape and place.

    The library takes the last of two equal names; here they are refused, so that no part of the
    file is without a meaning.
    """
    length = int.from_bytes(content[:8], "little")
    if length > _MAX_JSON_BYTES:
        raise ValueError(f"its list of tensors has {length} bytes, over {_MAX_JSON_BYTES}")
    if 8 + length > len(content):
        raise ValueError(f"its list of tensors has {length} bytes, the file {len(content)}")
    listing = json.loads(content[8 : 8 + length], object_pairs_hook=_without_repeats)
    if not isinstance(listing, dict):
        raise ValueError("it has no list of tensors")
    return listing


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a name occurs twice in its list of tensors")
    return values


def _require_shapes(path: Path, header: Header, layers: Sequence[Layer]) -> None:
    width = header.spec["num_features"]
    for i, (weight, bias) in enumerate(layers):
        fits = weight.ndim == 2 and weight.shape[1] == width and bias.shape == weight.shape[:1]
        if not fits:
            raise ArtifactInvalid(
                path,
                f"'{path}': layer {i} is {weight.shape} and {bias.shape}, expected {width} inputs "
                "and a bias for each output.",
            )
        width = weight.shape[0]
    if width != len(header.classes):
        raise ArtifactInvalid(
            path, f"'{path}' has {width} outputs, but {len(header.classes)} classes."
        )


def _first_not_finite(head: Head) -> str | None:
    """Return the first layer or tensor with a NaN or infinity in it, in words."""
    for i, layer in enumerate(head.layers):
        if not all(np.isfinite(part).all() for part in layer):
            return f"layer {i}"
    odd = (name for name, value in head.tail.items() if not np.isfinite(value).all())
    return next((f"'{_TAIL}{name}'" for name in odd), None)


def _checksum(head: Head) -> str:
    digest = hashlib.sha256()
    for part in (part for layer in head.layers for part in layer):
        digest.update(np.ascontiguousarray(part, dtype="<f4").tobytes())
    for name, value in sorted(head.tail.items()):
        digest.update(f"\0{name}{list(value.shape)}\0".encode())
        digest.update(np.ascontiguousarray(value, dtype="<f4").tobytes())
    return digest.hexdigest()
