"""Arrays as sources: the digits of scikit-learn, and CIFAR-10 as its authors ship it, in pickles.

A pickle can run code when it is read. This reader admits arrays, lists, dicts, strings and numbers
and nothing else. Even numpy's own classes are kept out: they read any memory a pickle points at.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from featx.errors import SourceError
from featx.images.sources.sample import ArraySource, Sample, Stamp, stamp_of

_BATCHES = {**{f"data_batch_{i}": "train" for i in range(1, 6)}, "test_batch": "test"}


def open_digits() -> ArraySource:
    """Return the 1,797 digits of scikit-learn, 8×8 pixels in 16 greys, as one training split."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = np.round(digits.images / 16 * 255).astype(np.uint8)  # (1797, 8, 8)
    samples = tuple(
        Sample(f"digits/{row:04d}", int(label), "train") for row, label in enumerate(digits.target)
    )
    images = np.repeat(grey[..., None], 3, axis=3)
    return ArraySource("digits:", tuple("0123456789"), samples, images)


def open_cifar10(folder: Path) -> ArraySource:
    """Return the samples of the batches in ``folder`` or its ``cifar-10-batches-py``."""
    root = folder.resolve()
    if (root / "cifar-10-batches-py").is_dir():
        root = root / "cifar-10-batches-py"
    if not (root / "batches.meta").is_file():
        raise SourceError(
            f"'{root}' holds no CIFAR-10: no file 'batches.meta'. Unpack cifar-10-python.tar.gz "
            "and give its folder."
        )
    classes = _class_names(root / "batches.meta")
    images: list[np.ndarray] = []
    samples: list[Sample] = []
    stamps: dict[str, Stamp] = {}
    for batch, split in _BATCHES.items():
        if (root / batch).is_file():
            stamps[batch] = stamp_of(f"{root}/{batch}")  # before its content, or it may be too new
            planes, labels = _read_batch(root / batch, len(classes))
            images.append(planes)
            samples += [
                Sample(f"{batch}/{row:05d}", label, split) for row, label in enumerate(labels)
            ]
    if not samples:
        raise SourceError(f"'{root}' has no batches: none of {', '.join(_BATCHES)}.")
    pixels = np.concatenate(images).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return ArraySource(f"cifar10:{root}", classes, tuple(samples), pixels, stamps)


def _class_names(path: Path) -> tuple[str, ...]:
    names = _load(path).get("label_names")
    names = tuple(map(_text, names)) if isinstance(names, list) else ()
    are_texts = all(isinstance(name, str) for name in names)
    if not names or not are_texts or len(set(names)) < len(names):
        raise SourceError(f"'{path}' has no list of different label names.")
    return names


def _read_batch(path: Path, num_classes: int) -> tuple[np.ndarray, list[int]]:
    batch = _load(path)
    pixels, labels = batch.get("data"), batch.get("labels")
    if (
        not isinstance(pixels, np.ndarray)
        or not isinstance(labels, list)
        or pixels.shape != (len(labels), 3072)
        or not all(isinstance(label, int) and 0 <= label < num_classes for label in labels)
    ):
        raise SourceError(
            f"'{path}' is not a CIFAR-10 batch: expected 'data' uint8 (N, 3072) and 'labels', N "
            f"numbers below {num_classes}."
        )
    return pixels, labels


def _load(path: Path) -> dict[str, Any]:
    """Return a pickled dict; bytes among its keys become strings, its uint8 arrays real ones."""
    try:
        with path.open("rb") as file:
            content = _DataUnpickler(file, encoding="latin1").load()
        if not isinstance(content, dict):
            raise pickle.UnpicklingError("it is not a dict")
        return {
            _text(key): value.to_numpy() if isinstance(value, _Array) else value
            for key, value in content.items()
        }
    except Exception as err:  # a damaged pickle raises nearly anything
        raise SourceError(f"Cannot read '{path}': {err or type(err).__name__}.") from err


class _DataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        stand_in = _STAND_INS.get((module.replace("numpy.core", "numpy._core"), name))
        if stand_in is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not plain data")
        return stand_in


class _Array:
    """An array, as a pickle describes it."""

    def __init__(self, *_: object) -> None:
        self.state: Any = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def to_numpy(self) -> np.ndarray:
        """Return the array; only bytes are made, so that no pickle can point anywhere."""
        _, shape, dtype, fortran, data = self.state
        if dtype.code != "u1":
            raise pickle.UnpicklingError(f"it holds an array of '{dtype.code}', expected uint8")
        content = data.encode("latin1") if isinstance(data, str) else data
        return np.frombuffer(content, np.uint8).reshape(shape, order="F" if fortran else "C")


class _DType:
    """The type of an array, as a pickle describes it."""

    def __init__(self, code: object, *_: object) -> None:
        self.code = _text(code)

    def __setstate__(self, state: object) -> None:
        """Pass over the byte order: bytes have none."""


def _array_of_buffer(data: object, dtype: object, shape: object, order: object) -> _Array:
    array = _Array()
    array.state = (1, shape, dtype, order == "F", data)
    return array


def _latin1_bytes(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it holds bytes in the encoding {encoding!r}")
    return text.encode("latin1")


def _text(value: Any) -> Any:
    return value.decode("latin1") if isinstance(value, bytes) else value


_STAND_INS: dict[tuple[str, str], Callable[..., object]] = {
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.numeric", "_frombuffer"): _array_of_buffer,  # protocol 5
    ("numpy", "ndarray"): _Array,  # only handed to _reconstruct
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): _latin1_bytes,  # bytes, as Python 3 writes them up to protocol 2
}
