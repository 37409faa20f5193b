"""The proof that an exported file answers what the head answered, on real images.

A file in another precision than the features' has no bound on logits: there the share of images
with the same answer counts, and the accuracy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from featx.classifier.session import Classifier, run_images
from featx.errors import ParityError
from featx.heads.tasks import task_of
from featx.images.preprocess import resize

NUM_IMAGES = 64
NUM_RESIZED = 16
BATCH_SIZES = (1, 3, 8)
_ROUNDING = 1e-3
"""Share of the logits' typical size that the order of float32 sums may change."""
_COARSER = 20
"""Factor on that share for fp16 and int8."""
_HALVED = 5
"""Factor for activations stored as float16; docs/parity.md has what they change."""
_EDGE_CASES = 5
"""Factor for edge cases: on images unlike those of training, one grey level changes logits more. A
wrong orientation changes them far more than this."""


class EdgeCase(NamedTuple):
    """An image that is unusual in one way, made from the one called ``name``."""

    kind: str
    name: str
    pixels: np.ndarray  # (height, width, 3) uint8, RGB
    logits: np.ndarray  # (num_classes,), of the head


@dataclass(frozen=True)
class Accuracy:
    """Accuracy through the file, next to the head's own on the same images."""

    split: str
    num_images: int
    num_available: int
    file: float
    head: float
    agreement: float
    measure: str = "accuracy"

    @property
    def drop(self) -> float:
        """Points that the file loses."""
        return 100 * (self.head - self.file)


def measure_accuracy(
    found: np.ndarray,
    expected: np.ndarray,
    labels: np.ndarray,
    *,
    num_available: int,
    details: Mapping[str, Any],
) -> Accuracy:
    """Return the accuracy of file and head, on comparable outputs ``(num_images, num_outputs)``.

    ``labels``, ``(num_images,)``, are class indices; else tags or comparable numbers.
    """
    task = task_of(details)
    return Accuracy(
        split="val",
        num_images=len(labels),
        num_available=num_available,
        file=task.accuracy(found, labels, details),
        head=task.accuracy(expected, labels, details),
        agreement=float(task.agree(found, expected, details).mean()),
        measure=task.score,
    )


@dataclass(frozen=True)
class Proof:
    """Differences between file and head, and what was compared.

    Attributes:
        max_difference: Largest absolute logit difference to head(cached features) of raw images.
        max_resized_difference: The largest for images that Pillow has resized first.
        bound: What was allowed; None where the precision is another than the features'.
        top1_agreement: Share of images with the same class or tags, in [0, 1]; with a bound, below
            1 only where two tie within it. Of numbers the variance that both have in common.
        max_batch_difference: Largest difference between an image alone and in a batch.
        hard: Largest absolute logit difference for each kind of edge case.
        accuracy: On the validation split; None where it has no labels.
        max_full_difference: As ``max_difference``, for JPEGs decoded in full where the features are
            of images decoded scaled; else None.
        full_top1_agreement: As ``top1_agreement``, likewise.
        untrained: Outputs that training rows do not vary; only their decisions are compared.
    """

    num_images: int
    max_difference: float
    max_resized_difference: float
    bound: float | None
    top1_agreement: float
    max_batch_difference: float
    num_sizes: int = 1
    median_difference: float = 0.0
    hard: dict[str, float] = field(default_factory=dict)
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
        hard = {kind: _short(difference) for kind, difference in self.hard.items()}
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
    edge_cases: Sequence[EdgeCase] = (),
    coarse: bool = False,
    halved: bool = False,
    full: Iterable[np.ndarray] | None = None,
    trained: np.ndarray | None = None,
) -> Proof:
    """Return the proof that the file answers as expected.

    Raw images and edge cases must keep the bound, because the graph's resize rounds some pixels
    otherwise than Pillow's; images that Pillow has resized, and batches, float32 rounding.

    Args:
        classifier: Opened from the bytes that will be published.
        images: Raw pixels, ``(height, width, 3)`` uint8 each, of any size.
        names: Of the images, for the error message.
        expected: Logits of the head on cached features, ``(num_images, num_classes)``.
        bound: Largest absolute logit difference allowed; None allows any that is finite.
        edge_cases: With the head's logits.
        coarse: The backbone is in fp16 or int8, where a last bit may become a step.
        halved: The features are of activations stored as float16.
        full: The images decoded in full, where ``images`` were decoded scaled; what the file
            answers for these is measured, not bounded.
        trained: Outputs whose logits are compared, ``(num_classes,)`` bool; None compares all.

    Raises:
        ParityError: A logit, a top class, or a batch differs by more; or a class is predicted that
            was never trained.
    """
    details, task = classifier.header.details, classifier.task
    trained = np.ones(expected.shape[1], bool) if trained is None else trained
    limit = float(np.finfo(np.float32).max) if bound is None else bound
    strict = _ROUNDING * task.typical_size(expected, trained) * (_COARSER if coarse else 1)

    def differences(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:  # (num_images,)
        return np.asarray(np.abs(found - wanted)[:, trained].max(axis=1))

    answered, untrained = answers(classifier, images), np.flatnonzero(~trained)
    if len(untrained):
        _require_untrained(classifier, answered, expected, names, untrained)
    own = differences(answered, expected)
    difference = _require_close(own, names, bound=limit, hint=" (atol=…)")
    if bound is not None:
        same = task.settled(answered, expected, bound, details)  # the same, or a tie within it
        if not same.all():
            name, largest = names[int(np.argmin(same))], float(np.abs(answered - expected).max())
            raise _failure(f" gives '{name}' {task.other_answer} than the head", largest, bound)
    rounding = limit if bound is None else strict * (_HALVED if halved and not coarse else 1)
    few = range(0, len(images), -(-len(images) // NUM_RESIZED))
    resized = answers(classifier, [resize(images[i], classifier.preprocess) for i in few])
    off, few_names = differences(resized, expected[few]), [names[i] for i in few]
    hint = " once the image is resized"
    resized_difference = _require_close(off, few_names, bound=rounding, hint=hint)
    proof = Proof(
        num_images=len(images),
        num_sizes=len({image.shape for image in images}),
        max_difference=difference,
        median_difference=float(np.median(own)),
        max_resized_difference=resized_difference,
        bound=bound,
        top1_agreement=float(task.agree(answered, expected, details).mean()),
        max_batch_difference=_check_batches(classifier, images, trained, bound=strict),
        hard=prove_edge_cases(classifier, edge_cases, bound=bound, trained=trained),
        untrained=tuple(untrained.tolist()),
    )
    if full is None:
        return proof
    in_full = answers(classifier, full)
    return replace(
        proof,
        max_full_difference=float(differences(in_full, expected).max()),
        full_top1_agreement=float(task.agree(in_full, expected, details).mean()),
    )


def prove_edge_cases(
    classifier: Classifier,
    edge_cases: Sequence[EdgeCase],
    *,
    bound: float | None,
    trained: np.ndarray,
) -> dict[str, float]:
    """Return the largest logit difference for each kind of edge case.

    Args:
        classifier: That answers them.
        edge_cases: With the head's logits.
        bound: As ``prove`` takes it.
        trained: Outputs that are compared, ``(num_classes,)`` bool.

    Raises:
        ParityError: One is over a multiple of the bound.
    """
    hard: dict[str, float] = {}
    for kind in dict.fromkeys(case.kind for case in edge_cases):
        cases = [case for case in edge_cases if case.kind == kind]
        found = answers(classifier, [case.pixels for case in cases])
        wanted = np.stack([case.logits for case in cases])
        hard[kind] = _require_close(
            np.abs(found - wanted)[:, trained].max(axis=1),
            [case.name for case in cases],
            bound=float(np.finfo(np.float32).max) if bound is None else _EDGE_CASES * bound,
            hint=f" for its {kind} version (atol=…)",
        )
    return hard


def answers(classifier: Classifier, images: Iterable[np.ndarray]) -> np.ndarray:
    """Return a file's comparable outputs for raw images, each run alone, ``(n, num_classes)``."""
    inputs = map(classifier.prepare, images)
    return np.array(list(run_images(inputs, partial(_answer, classifier))))


def _answer(classifier: Classifier, inputs: np.ndarray) -> np.ndarray:
    return classifier.task.comparable(classifier.logits(inputs), classifier.header.details)


def require_accuracy(proof: Proof, *, max_drop: float) -> None:
    """Check that the file loses at most ``max_drop`` points of accuracy against the head.

    Without labels, the share of images with another answer stands in for the drop, where no bound
    on the logits has been held.
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
        allowed = f"a loss of {max_drop:g} points is allowed (max_drop)"
        raise _failure(f" {what}; {allowed}", lost, max_drop)


def require_same_outputs(
    final: Classifier, draft: Classifier, images: Sequence[np.ndarray]
) -> None:
    """Check that a file gives for some images what one with more outputs gives.

    Each number is compared by its own size: one that is absurdly large widens no other's bound.
    """
    for image in images:
        found, expected = (one.run(one.prepare(image)[None]) for one in (final, draft))
        for name, values in found.items():
            sizes = np.abs(expected[name])
            sizes = np.maximum(sizes, max(1, np.median(sizes)))
            difference = float((np.abs(values - expected[name]) / sizes).max())
            if not difference <= _ROUNDING:
                raise _failure(
                    f"'s {name} differ by {difference:.3g} of their size from those that were "
                    f"proven; {_ROUNDING:.3g} is allowed",
                    difference,
                    _ROUNDING,
                )


def _failure(problem: str, difference: float, bound: float) -> ParityError:
    return ParityError(
        f"The exported file{problem}. Nothing was written.", difference=difference, bound=bound
    )


def _require_close(
    differences: np.ndarray, names: Sequence[str], *, bound: float, hint: str
) -> float:
    """Return the largest of the images' logit differences ``(n,)``."""
    worst = int(differences.argmax())
    largest = float(differences[worst])
    if not largest <= bound:  # NaN fails too
        raise _failure(
            f" differs from the head by {largest:.3g} in a logit of '{names[worst]}'; {bound:.3g} "
            f"is allowed{hint}",
            largest,
            bound,
        )
    return largest


def _require_untrained(
    classifier: Classifier,
    answered: np.ndarray,
    expected: np.ndarray,
    names: Sequence[str],
    others: np.ndarray,
) -> None:
    """Check that outputs whose logits are not compared are finite, and decide as in the head."""
    task, details = classifier.task, classifier.header.details
    wrong = ~np.isfinite(answered[:, others]).all(axis=1)
    wrong |= ~task.same_untrained(answered, expected, others, _ROUNDING, details)
    if wrong.any():
        name = names[int(np.argmax(wrong))]
        raise _failure(
            f" gives '{name}' another answer than the head for a {task.output} that was not "
            "trained",
            float(np.abs(answered - expected)[:, others].max()),
            _ROUNDING,
        )


def _check_batches(
    classifier: Classifier, images: Sequence[np.ndarray], trained: np.ndarray, *, bound: float
) -> float:
    """Return the largest logit difference between an image alone and in a batch.

    The images are cut to one size first, as a batch must have one.
    """
    several = [images[i % len(images)] for i in range(max(BATCH_SIZES))]
    height = min(image.shape[0] for image in several)
    width = min(image.shape[1] for image in several)
    cut = [image[:height, :width] for image in several]
    alone, inputs = answers(classifier, cut), np.stack([classifier.prepare(i) for i in cut])
    worst = 0.0
    for size in BATCH_SIZES[1:]:
        together = _answer(classifier, inputs[:size])
        difference = float(np.abs(together - alone[:size])[:, trained].max())
        if not difference <= bound:
            raise _failure(
                f" answers differently in a batch of {size}: a logit differs by {difference:.3g}, "
                f"{bound:.3g} is allowed",
                difference,
                bound,
            )
        worst = max(worst, difference)
    return worst
