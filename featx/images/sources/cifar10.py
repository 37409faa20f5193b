"""CIFAR-10 as its authors ship it: python pickles of uint8 arrays, complete or not.

A pickle can run code when it is read. This reader admits arrays, lists, dicts, strings and numbers
and nothing else.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featx.errors import SourceError
from featx.images.sources.sample import Sample

_BATCHES = {**{f"data_batch_{i}": "train" for i in range(1, 6)}, "test_batch": "test"}
_ADMITTED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),  # bytes in the pickles of old Pythons
}


@dataclass(frozen=True, eq=False)
class Cifar10Source:
    """Images of CIFAR-10's batches, in their order; ids are ``data_batch_1/00042``."""

    root: Path
    classes: tuple[str, ...]
    samples: tuple[Sample, ...]
    images: np.ndarray
    num_ignored: int = 0

    @property
    def uri(self) -> str:
        """``cifar10:`` and the folder's absolute path."""
        return f"cifar10:{self.root}"

    def read(self, index: int) -> np.ndarray:
        """Return a sample's pixels, ``(32, 32, 3)`` uint8."""
        planes: np.ndarray = self.images[index].reshape(3, 32, 32)
        return np.ascontiguousarray(planes.transpose(1, 2, 0))


def open_cifar10(folder: Path) -> Cifar10Source:
    """Return the samples of the batches in ``folder`` or its ``cifar-10-batches-py``.

    Raises:
        SourceError: There are no batches, or one is damaged or holds anything but plain data.
    """
    root = folder.resolve()
    if (root / "cifar-10-batches-py").is_dir():
        root = root / "cifar-10-batches-py"
    if not (root / "batches.meta").is_file():
        raise SourceError(
            f"'{root}' holds no CIFAR-10: no file 'batches.meta'. Unpack cifar-10-python.tar.gz "
            "and give its folder."
        )
    classes = _load(root / "batches.meta").get("label_names")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise SourceError(f"'{root / 'batches.meta'}' has no list of label names.")
    images: list[np.ndarray] = []
    samples: list[Sample] = []
    for batch, split in _BATCHES.items():
        if (root / batch).is_file():
            pixels, labels = _read_batch(root / batch, len(classes))
            images.append(pixels)
            samples += [
                Sample(f"{batch}/{row:05d}", label, split) for row, label in enumerate(labels)
            ]
    if not samples:
        raise SourceError(f"'{root}' has no batches: none of {', '.join(_BATCHES)}.")
    return Cifar10Source(root, tuple(classes), tuple(samples), np.concatenate(images))


def _read_batch(path: Path, num_classes: int) -> tuple[np.ndarray, list[int]]:
    batch = _load(path)
    pixels, labels = batch.get("data"), batch.get("labels")
    if (
        not isinstance(pixels, np.ndarray)
        or not isinstance(labels, list)
        or pixels.dtype != np.uint8
        or pixels.shape != (len(labels), 3072)
        or not all(isinstance(label, int) and 0 <= label < num_classes for label in labels)
    ):
        raise SourceError(
            f"'{path}' is not a CIFAR-10 batch: expected 'data' uint8 (N, 3072) and 'labels', N "
            f"numbers below {num_classes}."
        )
    return pixels, labels


class _DataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not plain data")
        return super().find_class(module, name)


def _load(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = _DataUnpickler(file, encoding="latin1").load()
    except Exception as err:  # a damaged pickle raises nearly anything
        raise SourceError(f"Cannot read '{path}': {err or type(err).__name__}.") from err
    if not isinstance(content, dict):
        raise SourceError(f"'{path}' is not a CIFAR-10 file: expected a dict.")
    return content
