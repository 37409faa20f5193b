"""Answers of ``featx predict``: unknown images, and copies in folders of classes."""

from __future__ import annotations

import filecmp
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from featx.errors import SourceError

if TYPE_CHECKING:
    from featx.classifier.prediction import Prediction

UNKNOWN = "unknown"
_UNSAFE = re.compile(r'[/\\:*?"<>|\x00-\x1f]')


def with_unknown(prediction: Prediction, below: float | None) -> Prediction:
    """Return the answer, which is ``unknown`` where its probability is below a limit.

    The class that was most probable is then the second one, with the same probability.
    """
    probability = prediction.probability
    if below is None or probability is None or probability >= below:
        return prediction
    return replace(prediction, top=((UNKNOWN, probability), *prediction.top))


def copy_into_class(image: str, label: str, folder: Path) -> Path:
    """Copy a picture into the folder of its class, and return where it is.

    One that is there with the same content stays; of another one the copy gets a number.

    Raises:
        SourceError: The picture is not a file, or cannot be copied.
    """
    from featx.artifact import publishing

    source, target = Path(image), folder / folder_name(label) / Path(image).name
    try:
        if not source.is_file():
            raise SourceError(
                f"'{image}' is not a file of its own; copying needs pictures in folders."
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        number = 1
        while target.exists():
            if filecmp.cmp(source, target, shallow=False):
                return target
            number += 1
            target = target.with_name(f"{source.stem}-{number}{source.suffix}")
        with publishing(target, overwrite=False) as temporary:
            shutil.copyfile(source, temporary)
    except OSError as err:
        raise SourceError(f"'{image}' cannot be copied to '{target}' ({err.strerror}).") from err
    return target


def folder_name(label: str) -> str:
    """Return a name of a class that is one folder on any system.

    >>> folder_name("a/b"), folder_name("..")
    ('a_b', '_.')
    """
    safe = _UNSAFE.sub("_", label).rstrip(" .") or "_"
    return f"_{label[1:]}" if label in (".", "..") else f"_{safe[1:]}" if safe[0] == "." else safe
