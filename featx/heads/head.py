"""The head: what maps raw features to logits, and its file.

A safetensors file with ``layers.{i}.weight`` (out, in) and ``layers.{i}.bias`` (out,), float32.
Standardisation is folded in, so a head applies to features as they are cached.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from featx.artifact import Header, publishing, require_file
from featx.errors import ArtifactInvalid

_METADATA_KEY = "featx"
_MAX_LAYERS = 64
_BLOCK_ROWS = 1024

NEVER = np.float32(-1e4)
"""Bias of a class without training samples."""

Layer = tuple[np.ndarray, np.ndarray]
"""Weight ``(out, in)`` and bias ``(out,)``, float32."""


@dataclass(frozen=True, eq=False)
class Head:
    """Linear layers with ReLU between them.

    Attributes:
        header: Spec of its features, classes, solver, metrics.
        layers: First to last; a linear head has one.
    """

    header: Header
    layers: tuple[Layer, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in index order."""
        return self.header.classes

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Return ``(N, num_classes)`` float32 of raw features ``(N, num_features)``."""
        return apply_layers(self.layers, features)


def apply_layers(layers: Sequence[Layer], features: np.ndarray) -> np.ndarray:
    """Return the last layer's output ``(N, out)`` float32, with ReLU between layers."""
    values = features.astype(np.float32, copy=False)
    for position, (weight, bias) in enumerate(layers):
        values = values @ weight.T + bias
        if position < len(layers) - 1:
            values = np.maximum(values, 0)
    return values


def standardisation(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and scale per feature, ``(num_features,)`` float64 each.

    The scale is the standard deviation, 1 where a feature is constant.
    """
    mean, squares = np.zeros((2, features.shape[1]))  # squares: of the differences to the mean
    for start in range(0, len(features), _BLOCK_ROWS):
        block = features[start : start + _BLOCK_ROWS].astype(np.float64)
        here = block.mean(axis=0)
        block -= here
        share = len(block) / (start + len(block))
        squares += np.einsum("nd,nd->d", block, block) + (here - mean) ** 2 * start * share
        mean += (here - mean) * share
    scale = np.sqrt(squares / len(features))
    constant = scale <= 1e-7 * np.abs(mean) + 1e-30  # rounding of its own value, or nothing
    return mean, np.where(constant, 1.0, scale)


def fold_standardisation(layer: Layer, mean: np.ndarray, scale: np.ndarray) -> Layer:
    """Return the layer that gives on raw features what ``layer`` gives on standardised ones.

    Args:
        layer: Weight ``(out, in)`` and bias ``(out,)`` for ``(features - mean) / scale``.
        mean: ``(in,)``.
        scale: ``(in,)``, above 0.
    """
    weight, bias = (part.astype(np.float64) for part in layer)
    folded = weight / scale
    return folded.astype(np.float32), (bias - folded @ mean).astype(np.float32)


def silence_absent(layer: Layer, labels: np.ndarray) -> Layer:
    """Return the layer with classes that have no samples given a probability of 0 in float32.

    Args:
        layer: Weight ``(num_classes, in)`` and bias ``(num_classes,)``.
        labels: Class indices of the training samples, ``(N,)``.
    """
    weight, bias = layer
    absent = np.bincount(labels, minlength=len(bias)) == 0
    return np.where(absent[:, None], np.float32(0), weight), np.where(absent, NEVER, bias)


def save_head(path: Path, head: Head, *, overwrite: bool = False) -> Head:
    """Write a head file; return the head with its header completed by a checksum.

    Raises:
        ArtifactExists: Something is there and ``overwrite`` is false.
        ArtifactError: The disk refused; nothing is left behind.
    """
    details = dict(head.header.details) | {"sha256": _checksum(head.layers)}
    head = replace(head, header=replace(head.header, details=details))
    tensors = {}
    for i, (weight, bias) in enumerate(head.layers):
        tensors[f"layers.{i}.weight"] = np.ascontiguousarray(weight, dtype=np.float32)
        tensors[f"layers.{i}.bias"] = np.ascontiguousarray(bias, dtype=np.float32)
    with publishing(path, overwrite=overwrite) as temporary:
        content = safetensors.numpy.save(tensors, {_METADATA_KEY: head.header.to_json()})
        temporary.write_bytes(content)
    return head


def open_head(path: str | Path) -> Head:
    """Open a head file and check all of it.

    Raises:
        ArtifactMissing: The file is not there.
        ArtifactInvalid: It is not a head, damaged, altered, or of another schema.
    """
    path = Path(path)
    require_file(path, made_by="featx train-head")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get(_METADATA_KEY)
            if text is None:
                raise ArtifactInvalid(
                    path, f"'{path}' is a safetensors file, but not a head of featx's."
                )
            header = Header.from_json(text, path=path, kind="head")
            names = set(file.keys())
            count = len(names) // 2
            expected = {f"layers.{i}.{part}" for i in range(count) for part in ("weight", "bias")}
            if names != expected or not 1 <= count <= _MAX_LAYERS:
                raise ArtifactInvalid(path, f"'{path}' holds other tensors than a head's layers.")
            for name in sorted(names):  # numpy lacks some of the types that may stand here
                if (dtype := file.get_slice(name).get_dtype()) != "F32":
                    raise ArtifactInvalid(path, f"'{path}': '{name}' is {dtype}, expected F32.")
            layers = tuple(
                (file.get_tensor(f"layers.{i}.weight"), file.get_tensor(f"layers.{i}.bias"))
                for i in range(count)
            )
    except (OSError, safetensors.SafetensorError, ValueError) as err:
        if isinstance(err, ArtifactInvalid):
            raise
        raise ArtifactInvalid(path, f"'{path}' is not a head, or is damaged ({err}).") from err
    _require_shapes(path, header, layers)
    if _checksum(layers) != header.details.get("sha256"):
        raise ArtifactInvalid(
            path,
            f"'{path}': its weights do not have the sha256 they were written with; the file is "
            "damaged or was altered. Run featx train-head again.",
        )
    return Head(header, layers)


def _require_shapes(path: Path, header: Header, layers: Sequence[Layer]) -> None:
    width = header.spec.get("num_features")
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


def _checksum(layers: Sequence[Layer]) -> str:
    digest = hashlib.sha256()
    for weight, bias in layers:
        digest.update(np.ascontiguousarray(weight, dtype="<f4").tobytes())
        digest.update(np.ascontiguousarray(bias, dtype="<f4").tobytes())
    return digest.hexdigest()
