"""Running a classifier over images: in order, in batches, a bad image as its error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar

import numpy as np
from PIL import Image

from featx.backbones.engines import default_batch_size
from featx.classifier.session import Classifier
from featx.errors import ImageError
from featx.images.preprocess import resized_square

R = TypeVar("R")
_MAX_BATCH = 16


def run_images(
    inputs: Iterable[np.ndarray | ImageError],
    answer: Callable[[np.ndarray], Iterable[R]],
    *,
    batch_size: int = 1,
) -> Iterator[R | ImageError]:
    """Yield what a classifier answers for each image, or the error in its place.

    Args:
        inputs: What the file takes of each image, all of one shape unless ``batch_size`` is 1; an
            error of an image that cannot be used.
        answer: From a batch of these to one answer for each.
        batch_size: Images that are taken at once.
    """
    waiting = iter(inputs)
    while batch := list(islice(waiting, batch_size)):
        usable = [one for one in batch if not isinstance(one, ImageError)]
        answers = iter(answer(np.stack(usable)) if usable else ())
        for one in batch:
            yield one if isinstance(one, ImageError) else next(answers)


def resized_input(classifier: Classifier, image: Image.Image | np.ndarray) -> np.ndarray:
    """Return the input for an image that Pillow resizes and crops first.

    That is exact, cheaper for large photos than the file's own resize, and gives images of all
    sizes to the graph in one batch.

    Args:
        classifier: The file.
        image: As ``images.decode.decoded`` gives it for the file's preprocessing.
    """
    return classifier.prepare(resized_square(image, classifier.preprocess))


def batch_size_of(classifier: Classifier) -> int:
    """Return how many images a batch has at most."""
    return min(default_batch_size("onnxruntime", classifier.preprocess.image_size), _MAX_BATCH)
