"""Does the exported file answer what the head answered? Measured on real images.

Three times: raw images, within the bound that the caller gives, because the graph's resize rounds
some pixels otherwise than Pillow's; the same images resized by Pillow first, within float32
rounding, because nothing else may differ; and in batches against alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from featx.classifier.session import Classifier
from featx.errors import ParityError
from featx.images.preprocess import resize

NUM_IMAGES = 64
_BATCH_SIZES = (1, 3)
_ROUNDING = 1e-3
"""Share of the largest logit (at least 1) that the order of float32 sums may change."""


@dataclass(frozen=True)
class Proof:
    """What was compared and how it came out.

    Attributes:
        num_images: Raw images sent through the file.
        max_difference: Largest absolute logit difference to head(cached features).
        max_resized_difference: The same for images that Pillow has resized first.
        bound: What was allowed.
        top1_agreement: Share of images with the same top class, in [0, 1]; below 1 only where two
            classes tie within the bound.
        max_batch_difference: Largest absolute logit difference between batch sizes 1 and 3.
    """

    num_images: int
    max_difference: float
    max_resized_difference: float
    bound: float
    top1_agreement: float
    max_batch_difference: float

    def to_dict(self) -> dict[str, Any]:
        """Return the proof as JSON values."""
        return asdict(self) | {"batch_sizes": list(_BATCH_SIZES)}


def prove(
    classifier: Classifier,
    images: Sequence[np.ndarray],
    names: Sequence[str],
    expected: np.ndarray,
    *,
    bound: float,
) -> Proof:
    """Return the proof that the file answers as expected.

    Args:
        classifier: Opened from the bytes that will be published.
        images: Raw pixels, ``(height, width, 3)`` uint8 each, of any size.
        names: Of the images, for the error message.
        expected: Logits of the head on cached features, ``(num_images, num_classes)``.
        bound: Largest absolute logit difference allowed.

    Raises:
        ParityError: A logit, a top class, or a batch differs by more.
    """
    rounding = _ROUNDING * max(1.0, float(np.abs(expected).max()))
    answered = _answers(classifier, images)
    difference = _require_close(answered, expected, names, bound=bound, hint=" (--atol)")
    settled = _top_class_is_settled(answered, expected, bound)
    if not settled.all():
        name = names[int(np.argmin(settled))]
        raise ParityError(
            f"The exported file gives '{name}' another class than the head. Nothing was written.",
            difference=difference,
            bound=bound,
        )
    resized = _answers(classifier, [resize(image, classifier.preprocess) for image in images])
    return Proof(
        num_images=len(images),
        max_difference=difference,
        max_resized_difference=_require_close(
            resized, expected, names, bound=rounding, hint=" once the image is resized"
        ),
        bound=bound,
        top1_agreement=float((answered.argmax(axis=1) == expected.argmax(axis=1)).mean()),
        max_batch_difference=_check_batches(classifier, images, bound=rounding),
    )


def _answers(classifier: Classifier, images: Iterable[np.ndarray]) -> np.ndarray:
    """Return the logits of each image alone, ``(num_images, num_classes)``."""
    return np.concatenate([classifier.logits(classifier.prepare(image)[None]) for image in images])


def _require_close(
    answered: np.ndarray, expected: np.ndarray, names: Sequence[str], *, bound: float, hint: str
) -> float:
    """Return the largest logit difference.

    Raises:
        ParityError: It is beyond the bound; the message names the image.
    """
    differences = np.abs(answered - expected).max(axis=1)
    worst = int(differences.argmax())
    largest = float(differences[worst])
    if not largest <= bound:  # NaN fails too
        raise ParityError(
            f"The exported file differs from the head by {largest:.3g} in a logit of "
            f"'{names[worst]}'; {bound:.3g} is allowed{hint}. Nothing was written.",
            difference=largest,
            bound=bound,
        )
    return largest


def _top_class_is_settled(answered: np.ndarray, expected: np.ndarray, bound: float) -> np.ndarray:
    """Return, for each image, whether the top class is the same or a tie within the bound."""
    rows = np.arange(len(expected))
    gap = expected.max(axis=1) - expected[rows, answered.argmax(axis=1)]
    settled: np.ndarray = gap <= bound
    return settled


def _check_batches(classifier: Classifier, images: Sequence[np.ndarray], *, bound: float) -> float:
    """Return the largest logit difference between an image alone and in a batch of three.

    The images are cut to one size first, as a batch must have one; each cut image is also run
    alone.

    Raises:
        ParityError: It is beyond the bound.
    """
    several = [images[i % len(images)] for i in range(max(_BATCH_SIZES))]
    height = min(image.shape[0] for image in several)
    width = min(image.shape[1] for image in several)
    cut = np.stack([image[:height, :width] for image in several])
    together = classifier.logits(np.stack([classifier.prepare(image) for image in cut]))
    difference = float(np.abs(together - _answers(classifier, cut)).max())
    if not difference <= bound:
        raise ParityError(
            f"The exported file answers differently in a batch of three: a logit differs by "
            f"{difference:.3g}, {bound:.3g} is allowed. Nothing was written.",
            difference=difference,
            bound=bound,
        )
    return difference
