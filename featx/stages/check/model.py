"""Repeat the proof of a model with nothing but the model and images.

The proof holds the head's logits for a few images, which are recognised by content. They are run
through the file again; so is the validation split, if the images are labelled.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featx.classifier.proof import answers
from featx.classifier.references import find_references, references_of
from featx.classifier.session import Classifier, run_images
from featx.errors import ArtifactMismatch, ConfigError, ImageError
from featx.features.contents import HeldOut
from featx.heads.tasks import Labels
from featx.heads.tasks.single_label import is_top_class
from featx.images.edge_cases import in_shape
from featx.images.reading import read_digests, read_images, spread
from featx.images.sources import ImageSource, open_source

_TWICE = 2
"""Factor on the difference in a proof, where it has no bound."""
_SMALLEST = 1e-3


@dataclass(frozen=True)
class Repeated:
    """The result of a proof that was repeated."""

    source: str
    num_witnesses: int
    num_found: int
    max_difference: float | None  # of logits; None where the file gives no scores
    bound: float
    num_agreeing: int  # found images with the head's class, ties within the bound included
    num_scored: int  # labelled images that the file was run on
    accuracy: float | None  # on these, in [0, 1]; None without labels that it knows
    recorded_accuracy: float | None  # on the validation split, in the proof

    @property
    def holds(self) -> bool:
        """Whether the file gives the proof's results for all images that were found."""
        within = self.max_difference is None or self.max_difference <= self.bound
        return within and self.num_agreeing == self.num_found


def repeat_proof(path: Path, classifier: Classifier, source: str, *, max_images: int) -> Repeated:
    """Run a model on the images of its proof, and score it on labelled ones.

    Raises:
        ArtifactMismatch: The source holds none of the proof's images.
        ConfigError: The model has no proof, or gives nothing to compare.
        SourceError: The source or an image cannot be used.
    """
    images = open_source(source)
    proof = classifier.header.details.get("proof")
    if proof is None:
        raise ConfigError(f"'{path}' was exported without a proof; there is nothing to repeat.")
    if not (references := references_of(classifier.header.details)):
        raise ConfigError(
            f"'{path}' comes from an earlier featx: its proof holds no images that could be run "
            "again. Export it once more."
        )
    found = find_references(references, images)
    if not found:
        raise ArtifactMismatch(
            path,
            f"'{images.uri}' holds none of the {len(references)} images of the proof of '{path}', "
            "or they have changed. Give the images that the head was trained on.",
        )
    indices = [index for index, _ in found]
    expected = np.stack([reference.logits for _, reference in found])
    pixels = list(_pixels(classifier, images, indices))
    bound, accuracy = proof["bound"], proof.get("accuracy")
    if bound is None:
        bound = max(_SMALLEST, _TWICE * proof["max_difference"])
    difference, same = _compare(classifier, pixels, expected, bound, proof.get("untrained", []))
    held_out = HeldOut.from_text(classifier.header.details.get("held_out", ""), path=path)
    rows, targets = _labelled(classifier, images, held_out, max_images)
    return Repeated(
        source=images.uri,
        num_witnesses=len(references),
        num_found=len(found),
        max_difference=difference,
        bound=float(bound),
        num_agreeing=int(same.sum()),
        num_scored=len(rows),
        accuracy=_score(classifier, _pixels(classifier, images, rows), targets) if rows else None,
        recorded_accuracy=None if accuracy is None else float(accuracy["file"]),
    )


def _pixels(
    classifier: Classifier, images: ImageSource, indices: Sequence[int]
) -> Iterator[np.ndarray]:
    """Yield pixels ``(height, width, 3)`` uint8, decoded for a classifier, read ahead.

    For a file of one shape they are brought to it, as at export.
    """
    shape = classifier.contract.image_shape
    found = read_images(images, indices, np.asarray, preprocess=classifier.preprocess)
    with closing(found):
        for _, _, image in found:
            if isinstance(image, ImageError):
                raise image
            yield image if shape is None else in_shape(image, shape)


def _compare(
    classifier: Classifier,
    images: Sequence[np.ndarray],
    expected: np.ndarray,
    bound: float,
    untrained: Sequence[int],
) -> tuple[float | None, np.ndarray]:
    """Return the largest logit difference, None without scores, and who agrees, ``(n,)`` bool."""
    if not _gives_all(classifier):
        classes = _classes(classifier, images)
        return None, is_top_class(classes, expected, bound)
    found = answers(classifier, images)
    same = classifier.task.settled(found, expected, bound, classifier.header.details)
    found, expected = (np.delete(each, untrained, axis=1) for each in (found, expected))
    if "logits" in classifier.contract.outputs or not classifier.task.shift_invariant:
        return float(np.abs(found - expected).max()), same
    found = found - found.max(axis=1, keepdims=True)  # known but for a constant in each row
    expected = expected - expected.max(axis=1, keepdims=True)
    lowest = np.log(np.finfo(np.float32).tiny)  # of a probability
    difference = np.maximum(found, lowest) - np.maximum(expected, lowest)
    return float(np.abs(difference).max()) / 2, same  # two logits are off in each


def _gives_all(classifier: Classifier) -> bool:
    """Return whether a file gives an output for each class, tag or target."""
    return classifier.gives_scores or "values" in classifier.contract.outputs


def _score(
    classifier: Classifier, images: Iterable[np.ndarray], targets: np.ndarray
) -> float | None:
    """Return the accuracy on labelled images; None where the file gives only some tags."""
    if _gives_all(classifier):
        found = answers(classifier, images)
        return classifier.task.accuracy(found, targets, classifier.header.details)
    if not classifier.task.has_classes:
        return None
    return float((_classes(classifier, images) == targets).mean())


def _classes(classifier: Classifier, images: Iterable[np.ndarray]) -> np.ndarray:
    """Return the class of each raw image, ``(n,)`` int64."""

    def answer(inputs: np.ndarray) -> np.ndarray:
        if classifier.contract.top_k:
            best: np.ndarray = classifier.run(inputs)["top_classes"][:, 0]
            return best
        classes: np.ndarray = classifier.logits(inputs).argmax(axis=1)
        return classes

    return np.array(list(run_images(map(classifier.prepare, images), answer)))


def _labelled(
    classifier: Classifier, images: ImageSource, held_out: HeldOut, max_images: int
) -> tuple[list[int], np.ndarray]:
    """Return labelled validation images, or any if there are none, and what is true of them.

    Images with labels that the model does not know are passed over.
    """
    details, samples = classifier.header.details, images.samples
    index = np.array([sample.label for sample in samples], np.int64)
    task, classes = classifier.task, classifier.classes
    known = np.array([task.knows(label, classes) for label in images.classes] or [False])
    index[(index >= 0) & ~known[index]] = -1
    labelled = np.flatnonzero(index >= 0).tolist()
    own = [i for i in labelled if samples[i].split == "val"]
    chosen = [] if own else _find_held_out(images, labelled, held_out, max_images)
    chosen = chosen or spread(np.array(own or labelled, np.int64), max_images).tolist()
    if not chosen:
        return [], np.zeros(0)
    names = [samples[i].sample_id for i in chosen]
    labels = Labels(images.classes, index[chosen], names, images.uri)
    return chosen, task.comparable(task.read(labels, names=classes).values, details)


def _find_held_out(images: ImageSource, rows: list[int], held_out: HeldOut, most: int) -> list[int]:
    """Return at most so many held-out rows, ascending, reading images in random order."""
    order = np.random.default_rng(0).permutation(rows if len(held_out.prefixes) else [])
    found = list[int]()
    with closing(read_digests(images, order.astype(int).tolist())) as digests:
        for row, digest in digests:
            if isinstance(digest, ImageError):
                continue
            if held_out.contains(np.frombuffer(digest, np.uint8)[None])[0]:
                found.append(row)
            if len(found) == most:
                break
    return sorted(found)
