"""Does the exported file answer what the head answered? Measured on real images.

- raw images of the source, within the bound that the caller gives, because the graph's resize
  rounds some pixels otherwise than Pillow's;
- the same images resized by Pillow first, within float32 rounding, because nothing else may differ;
- hard images made from them, within the bound again;
- images in batches against alone.

A file in another precision than the features' has no bound on logits: there the share of images
with the same class counts, and the accuracy. What a class is here, are tags or numbers elsewhere:
``heads.tasks`` tells.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from featx.classifier.agreement import Accuracy, typical_size
from featx.classifier.runner import run_images
from featx.classifier.session import Classifier
from featx.errors import ParityError
from featx.heads.tasks import task_of
from featx.images.preprocess import resize

NUM_IMAGES = 64
NUM_RESIZED = 16
BATCH_SIZES = (1, 3, 8)
_ROUNDING = 1e-3
"""Share of the logits' typical size that the order of float32 sums may change."""
_COARSER = 20
"""How much more of it fp16 and int8 may change."""
_HARDER = 5
"""How much more the logits of hard images may differ: the head has seen none like them, and where
it is sure of nothing, a grey level counts for more. A wrong orientation is far beyond it."""


class Hard(NamedTuple):
    """A hard image.

    Attributes:
        kind: What is hard about it.
        name: The image it was made from.
        pixels: ``(height, width, 3)`` uint8, RGB.
        logits: What the head answers for it, ``(num_classes,)``.
    """

    kind: str
    name: str
    pixels: np.ndarray
    logits: np.ndarray


@dataclass(frozen=True)
class Proof:
    """What was compared and how it came out.

    Attributes:
        num_images: Raw images sent through the file.
        num_sizes: Different sizes among them.
        max_difference: Largest absolute logit difference to head(cached features).
        median_difference: Median over images of the same.
        max_resized_difference: The largest for images that Pillow has resized first.
        bound: What was allowed; None where the precision is another than the features'.
        top1_agreement: Share of images with the same top class, or the same tags, in [0, 1]; with
            a bound, below 1 only where two tie within it. Of numbers the share of the variance that
            file and head have in common.
        max_batch_difference: Largest absolute logit difference between an image alone and in a
            batch.
        hard: Largest absolute logit difference for each kind of hard image.
        accuracy: On the validation split; None where it has no labels.
        max_full_difference: As ``max_difference``, of a file whose features are of JPEGs decoded
            scaled, for the same images decoded in full; None where both are the same.
        full_top1_agreement: As ``top1_agreement``, likewise.
        untrained: Outputs without training rows, or with the same in all of them. Their logits are
            in no difference; what they decide is compared.
    """

    num_images: int
    max_difference: float
    max_resized_difference: float
    bound: float | None
    top1_agreement: float
    max_batch_difference: float
    num_sizes: int = 1
    median_difference: float = 0.0
    hard: Mapping[str, float] | None = None
    accuracy: Accuracy | None = None
    max_full_difference: float | None = None
    full_top1_agreement: float | None = None
    untrained: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the proof as JSON values, differences to three digits."""
        values = asdict(self)
        if self.max_full_difference is None:
            del values["max_full_difference"], values["full_top1_agreement"]
        for name in values:
            if name.endswith("difference"):
                values[name] = _short(values[name])
        hard = {kind: _short(difference) for kind, difference in (self.hard or {}).items()}
        lists = {"batch_sizes": list(BATCH_SIZES), "untrained": list(self.untrained)}
        return values | {"hard": hard} | lists


def _short(value: float) -> float:
    return float(f"{value:.3g}")


def prove(
    classifier: Classifier,
    images: Sequence[np.ndarray],
    names: Sequence[str],
    expected: np.ndarray,
    *,
    bound: float | None,
    hard: Sequence[Hard] = (),
    coarse: bool = False,
    full: Iterable[np.ndarray] | None = None,
    trained: np.ndarray | None = None,
) -> Proof:
    """Return the proof that the file answers as expected.

    Args:
        classifier: Opened from the bytes that will be published.
        images: Raw pixels, ``(height, width, 3)`` uint8 each, of any size.
        names: Of the images, for the error message.
        expected: Logits of the head on cached features, ``(num_images, num_classes)``.
        bound: Largest absolute logit difference allowed; None allows any that is finite.
        hard: Hard images with the head's logits.
        coarse: The backbone is in fp16 or int8, where a last bit may become a step.
        full: The images decoded in full, where ``images`` were decoded scaled. What the file
            answers for these is measured, not bounded: a client that cannot decode scaled should
            know, and who chose to decode scaled has accepted it.
        trained: Outputs whose logits are compared, ``(num_classes,)`` bool; None compares all.

    Raises:
        ParityError: A logit, a top class, or a batch differs by more; or a class is predicted that
            was never trained.
    """
    details, task = classifier.header.details, classifier.task
    trained = np.ones(expected.shape[1], bool) if trained is None else trained
    limit = float(np.finfo(np.float32).max) if bound is None else bound
    strict = _ROUNDING * typical_size(task, expected, trained)
    strict *= _COARSER if coarse else 1
    rounding = limit if bound is None else strict
    answered = answers(classifier, images)
    _require_untrained(details, answered, expected, names, trained)
    kept = np.flatnonzero(trained)
    difference = _require_close(
        answered[:, kept], expected[:, kept], names, bound=limit, hint=" (--atol)"
    )
    if bound is not None:
        _require_same_answers(details, answered, expected, names, bound)
    few = range(0, len(images), -(-len(images) // NUM_RESIZED))
    resized = answers(classifier, [resize(images[i], classifier.preprocess) for i in few])
    others = None if full is None else answers(classifier, full)
    return Proof(
        num_images=len(images),
        num_sizes=len({image.shape for image in images}),
        max_difference=difference,
        median_difference=float(np.median(np.abs(answered - expected)[:, kept].max(axis=1))),
        max_resized_difference=_require_close(
            resized[:, kept],
            expected[few][:, kept],
            [names[i] for i in few],
            bound=rounding,
            hint=" once the image is resized",
        ),
        bound=bound,
        top1_agreement=float(task.agree(answered, expected, details).mean()),
        max_batch_difference=_check_batches(classifier, images, kept, bound=strict),
        hard=_check_hard(classifier, hard, kept, bound=limit if bound is None else _HARDER * limit),
        max_full_difference=None
        if others is None
        else float(np.abs(others - expected)[:, kept].max()),
        full_top1_agreement=None
        if others is None
        else float(task.agree(others, expected, details).mean()),
        untrained=tuple(np.flatnonzero(~trained).tolist()),
    )


def answers(classifier: Classifier, images: Iterable[np.ndarray]) -> np.ndarray:
    """Return what a file says of each raw image alone, comparable, ``(n, num_classes)``."""
    inputs = map(classifier.prepare, images)
    return np.array(list(run_images(inputs, partial(_answer, classifier))))


def _answer(classifier: Classifier, inputs: np.ndarray) -> np.ndarray:
    return classifier.task.comparable(classifier.logits(inputs), classifier.header.details)


def require_accuracy(proof: Proof, *, max_drop: float) -> None:
    """Check that the file is hardly worse than the head.

    Without labels, the share of images with another class stands in for the drop, where no bound
    on the logits has been held.

    Args:
        proof: With the accuracy, if there is one.
        max_drop: Points that may be lost.

    Raises:
        ParityError: It loses more.
    """
    if proof.accuracy is None:
        lost = 0.0 if proof.bound is not None else 100 * (1 - proof.top1_agreement)
        what = f"gives {lost:.2f} % of {proof.num_images} images another answer than the head"
    else:
        lost, own = proof.accuracy.drop, proof.accuracy
        what = (
            f"gets {own.file:.2%} of {own.num_images} validation images right, the head "
            f"{own.head:.2%}"
            if own.measure == "accuracy"
            else f"has a {own.measure} of {own.file:.4f} on {own.num_images} validation images, "
            f"the head {own.head:.4f}"
        )
    if not lost <= max_drop + 1e-9:
        raise ParityError(
            f"The exported file {what}; a loss of {max_drop:g} points is allowed (--max-drop). "
            "Nothing was written.",
            difference=lost,
            bound=max_drop,
        )


def require_same_outputs(
    final: Classifier, draft: Classifier, images: Sequence[np.ndarray]
) -> None:
    """Check that a file gives for some images what one with more outputs gives.

    Each number is compared by its own size: one that is absurdly large widens no other's bound.

    Raises:
        ParityError: An output differs.
    """
    for image in images:
        found, expected = (one.run(one.prepare(image)[None]) for one in (final, draft))
        for name, values in found.items():
            sizes = np.abs(expected[name])
            sizes = np.maximum(sizes, max(1, np.median(sizes)))
            difference = float((np.abs(values - expected[name]) / sizes).max())
            if not difference <= _ROUNDING:
                raise ParityError(
                    f"The exported file's {name} differ by {difference:.3g} of their size from "
                    f"those that were proven; {_ROUNDING:.3g} is allowed. Nothing was written.",
                    difference=difference,
                    bound=_ROUNDING,
                )


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


def _require_untrained(
    details: Mapping[str, Any],
    answered: np.ndarray,
    expected: np.ndarray,
    names: Sequence[str],
    trained: np.ndarray,
) -> None:
    """Check outputs whose logits are not compared: they are finite, and decide as in the head.

    Raises:
        ParityError: They do not; the message names the image.
    """
    others = np.flatnonzero(~trained)
    if not len(others):
        return
    wrong = ~np.isfinite(answered[:, others]).all(axis=1)
    task = task_of(details)
    wrong |= ~task.same_untrained(answered, expected, others, _ROUNDING, details)
    if wrong.any():
        name = names[int(np.argmax(wrong))]
        raise ParityError(
            f"The exported file gives '{name}' another answer than the head for a "
            f"{task.output} that was not trained. Nothing was written.",
            difference=float(np.abs(answered - expected)[:, others].max()),
            bound=_ROUNDING,
        )


def _require_same_answers(
    details: Mapping[str, Any],
    answered: np.ndarray,
    expected: np.ndarray,
    names: Sequence[str],
    bound: float,
) -> None:
    """Check that the class or the tags of each image are the same, or a tie within the bound.

    Raises:
        ParityError: They are not; the message names the image.
    """
    task = task_of(details)
    same = task.settled(answered, expected, bound, details)
    if not same.all():
        name = names[int(np.argmin(same))]
        difference = float(np.abs(answered - expected).max())
        raise ParityError(
            f"The exported file gives '{name}' {task.other_answer} than the head. "
            "Nothing was written.",
            difference=difference,
            bound=bound,
        )


def _check_hard(
    classifier: Classifier, hard: Sequence[Hard], kept: np.ndarray, *, bound: float
) -> dict[str, float]:
    """Return the largest logit difference of each kind, of outputs ``kept``.

    Raises:
        ParityError: It is beyond the bound; the message names the kind.
    """
    found: dict[str, float] = {}
    for kind in dict.fromkeys(image.kind for image in hard):
        some = [image for image in hard if image.kind == kind]
        found[kind] = _require_close(
            answers(classifier, [image.pixels for image in some])[:, kept],
            np.stack([image.logits for image in some])[:, kept],
            [image.name for image in some],
            bound=bound,
            hint=f" for its {kind} version (--atol)",
        )
    return found


def _check_batches(
    classifier: Classifier, images: Sequence[np.ndarray], kept: np.ndarray, *, bound: float
) -> float:
    """Return the largest logit difference between an image alone and in a batch, of ``kept``.

    The images are cut to one size first, as a batch must have one; each cut image is also run
    alone.

    Raises:
        ParityError: It is beyond the bound.
    """
    several = [images[i % len(images)] for i in range(max(BATCH_SIZES))]
    height = min(image.shape[0] for image in several)
    width = min(image.shape[1] for image in several)
    cut = [image[:height, :width] for image in several]
    alone, inputs = answers(classifier, cut), np.stack([classifier.prepare(i) for i in cut])
    worst = 0.0
    for size in BATCH_SIZES[1:]:
        together = _answer(classifier, inputs[:size])
        difference = float(np.abs(together - alone[:size])[:, kept].max())
        if not difference <= bound:
            raise ParityError(
                f"The exported file answers differently in a batch of {size}: a logit differs by "
                f"{difference:.3g}, {bound:.3g} is allowed. Nothing was written.",
                difference=difference,
                bound=bound,
            )
        worst = max(worst, difference)
    return worst
