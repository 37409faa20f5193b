"""Multi-label: tags that do not exclude each other, each given from its threshold on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial

import numpy as np

from featx.errors import SourceError
from featx.heads.tasks.calibration import calibrate, fit_tag_temperature
from featx.heads.tasks.losses import SIGMOID, binary_log_loss, sigmoid
from featx.heads.tasks.scores import (
    MultiLabelMetrics,
    TagScores,
    share_with_interval,
    wilson_interval,
)
from featx.heads.tasks.single_label import calibration_gap, calibration_gaps, logits_of
from featx.heads.tasks.task import (
    IMAGES,
    PRECISION_RECALL,
    Column,
    Details,
    Labels,
    Task,
    joined,
    quoted,
)
from featx.images.sources.labels import split_tags

log = logging.getLogger(__name__)

EVEN = 0.5
"""The threshold of a tag that no held-out sample has, or all have."""


def tag_names(labels: Sequence[str]) -> tuple[str, ...]:
    """Return the distinct tags of labels, sorted."""
    return tuple(sorted({tag for label in labels for tag in split_tags(label)}))


def _read(labels: Labels, names: Sequence[str] | None) -> np.ndarray:
    """Return which tags each sample has, ``(N, num_tags)`` uint8."""
    names = tag_names(labels.classes) if names is None else names
    index = {name: position for position, name in enumerate(names)}
    table = np.zeros((len(labels.classes) + 1, len(names)), np.uint8)  # the last: unlabelled
    unknown = set()
    for label in labels.used:
        own = split_tags(labels.classes[label])
        unknown |= set(own) - index.keys()
        table[label, [index[tag] for tag in own if tag in index]] = 1
    labels.require_known(sorted(unknown), names, "tags")
    return np.asarray(table[labels.index])


def _require_trainable(values: np.ndarray, names: Sequence[str], origin: str) -> None:
    counts = values.sum(axis=0, dtype=np.int64)
    never, always, once = (
        [name for name, hit in zip(names, each, strict=True) if hit]
        for each in (counts == 0, counts == len(values), counts == 1)
    )
    if len(never) + len(always) == len(names):
        raise SourceError(
            f"'{origin}' has no tag that some training images have and others lack; there is "
            "nothing to tell apart."
        )
    if never:
        log.warning("No training images have %s: never predicted.", quoted(never))
    if always:
        log.warning("All training images have %s: always predicted.", quoted(always))
    if once:
        log.warning("One training image alone has %s: learned, but never held out.", quoted(once))


class _VaryingTags:
    """The tags that some samples have and others lack; the others have no optimum.

    Their logit is that of ``(N + 1) / (N + 2)`` on the side where all samples are.
    """

    unit = None

    def __init__(self, tags: np.ndarray, num_tags: int) -> None:
        self._varies, self._constant = np.ptp(tags, axis=0) > 0, tags[0]
        self._sides = np.where(tags[0], 1, -1) * np.log(len(tags) + 1)
        self.values = tags[:, self._varies]
        self.num_outputs = int(self._varies.sum())

    def decode_layer(self, weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the layer ``(num_tags, in)``, ``(num_tags,)`` of all tags."""
        weights = np.zeros((len(self._varies), weight.shape[1]), np.float32)
        biases = self._sides.astype(np.float32)
        weights[self._varies], biases[self._varies] = weight, bias
        return weights, biases

    def decode(self, outputs: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return logits and tags of all tags, ``(n, num_tags)`` each."""
        logits, tags = (np.tile(each, (len(outputs), 1)) for each in (self._sides, self._constant))
        logits[:, self._varies], tags[:, self._varies] = outputs, values
        return logits, tags


def measure_tags(
    logits: np.ndarray, tags: np.ndarray, thresholds: Sequence[float]
) -> MultiLabelMetrics:
    """Return the scores of labelled samples ``(n, num_tags)``, at least one."""
    given = given_tags(logits, thresholds)
    logits, has = logits.astype(np.float64), tags.astype(bool)
    hits, samples, predicted = (each.sum(axis=0) for each in (has & given, has, given))
    exact = int((has == given).all(axis=1).sum())
    low, high = wilson_interval(exact, len(tags))
    per_class = []
    for tag, threshold in enumerate(thresholds):
        precision = share_with_interval(int(hits[tag]), int(predicted[tag]))
        recall = share_with_interval(int(hits[tag]), int(samples[tag]))
        area = average_precision(logits[:, tag], has[:, tag])
        per_class.append(
            TagScores(int(samples[tag]), int(predicted[tag]), threshold, area, *precision, *recall)
        )
    known = [own.average_precision for own in per_class if own.average_precision is not None]
    total = samples + predicted
    occurs = total > 0
    return MultiLabelMetrics(
        num_samples=len(tags),
        mean_average_precision=float(np.mean(known)) if known else None,
        micro_f1=float(2 * hits.sum() / total.sum()) if occurs.any() else 1.0,
        macro_f1=float((2 * hits[occurs] / total[occurs]).mean()) if occurs.any() else 1.0,
        exact=exact / len(tags),
        exact_low=low,
        exact_high=high,
        log_loss=binary_log_loss(logits, tags),
        ece=calibration_gap(sigmoid(logits).reshape(-1), has.reshape(-1)),
        per_class=tuple(per_class),
    )


def given_tags(logits: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """Return which tags are given from their thresholds on, ``(num_samples, num_tags)`` bool."""
    return np.asarray(sigmoid(logits.astype(np.float64)) >= np.asarray(thresholds))


def average_precision(scores: np.ndarray, has: np.ndarray) -> float | None:
    """Return the mean precision at the ranks where recall grows, None without positives.

    Samples of equal score count as one rank, as scikit-learn has it.

    >>> average_precision(np.array([0.9, 0.8, 0.1]), np.array([True, False, True]))
    0.8333333333333333
    """
    positives = int(has.sum())
    if not positives:
        return None
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # of each group of equals
    hits = np.cumsum(has[order])[last]
    precision = hits / (last + 1)
    return float((np.diff(hits, prepend=0) * precision).sum() / positives)


def _loss_and_error(logits: np.ndarray, tags: np.ndarray) -> tuple[float, float]:
    error = calibration_gap(sigmoid(logits).reshape(-1), tags.reshape(-1) > 0)
    return binary_log_loss(logits, tags), error


def _loss_and_gaps(logits: np.ndarray, tags: np.ndarray) -> np.ndarray:
    logits, has = logits.astype(np.float64), tags > 0
    losses = np.logaddexp(0, np.where(has, -logits, logits)).mean(axis=1)
    return np.column_stack([losses, calibration_gaps(sigmoid(logits), has)])


def choose_thresholds(logits: np.ndarray, tags: np.ndarray) -> tuple[float, ...]:
    """Return the threshold of each tag with the best F1 score, in (0, 1).

    A threshold is 0.5 where that lies between the same two neighbouring probabilities, else half
    way between them, so that rounding does not decide about a sample. Among equally good ones the
    nearest to 0.5 is taken; 0.5 where no sample has the tag, or all have it. Logits and tags are of
    samples that the head was not trained on, ``(num_samples, num_tags)``.
    """
    probabilities = sigmoid(logits.astype(np.float64))
    return tuple(
        _best_threshold(own, has > 0) for own, has in zip(probabilities.T, tags.T, strict=True)
    )


def _best_threshold(probabilities: np.ndarray, has: np.ndarray) -> float:
    positives = int(has.sum())
    if positives in (0, len(has)):
        return EVEN
    order = np.argsort(-probabilities, kind="stable")
    ranked = probabilities[order]
    cuts = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # last of those above
    below = np.append(ranked[1:], 0.0)[cuts]
    above = ranked[cuts]
    scores = 2 * np.cumsum(has[order])[cuts] / (cuts + 1 + positives)
    best = np.flatnonzero(scores == scores.max())
    away = np.maximum(0, np.maximum(below - EVEN, EVEN - above))[best]
    nearest = best[np.argmin(away)]
    low, high = float(below[nearest]), float(above[nearest])
    middle = (low + high) / 2
    return middle if low < middle < high and not low < EVEN <= high else EVEN


def thresholds_of(details: Details, num_tags: int) -> tuple[float, ...]:
    """Return the threshold of each tag in a header.

    Raises:
        ValueError: There are not as many as tags, or one is outside (0, 1).
    """
    found = details.get("thresholds")
    numbers = [t for t in found if isinstance(t, float | int)] if isinstance(found, list) else []
    if len(numbers) != num_tags or not all(0 < number < 1 for number in numbers):
        raise ValueError(f"it has no {num_tags} thresholds between 0 and 1")
    return tuple(map(float, numbers))


def _logits(probabilities: np.ndarray) -> np.ndarray:
    logits = logits_of(probabilities)
    logits -= np.log(np.maximum(1 - probabilities, np.finfo(np.float32).epsneg))
    return logits


def _same_tags(found: np.ndarray, expected: np.ndarray, details: Details) -> np.ndarray:
    """Return which tags are given in both, or in neither, ``(n, num_tags)`` bool."""
    thresholds = thresholds_of(details, expected.shape[1])
    return np.asarray(given_tags(found, thresholds) == given_tags(expected, thresholds))


def _agree(found: np.ndarray, expected: np.ndarray, details: Details) -> np.ndarray:
    return np.asarray(_same_tags(found, expected, details).all(axis=1), np.float64)


def _settled(found: np.ndarray, expected: np.ndarray, bound: float, details: Details) -> np.ndarray:
    at = np.array([np.log(t / (1 - t)) for t in thresholds_of(details, expected.shape[1])])
    fine = _same_tags(found, expected, details) | (np.abs(expected - at) <= bound)
    return np.asarray(fine.all(axis=1))


def _same_untrained(
    found: np.ndarray, expected: np.ndarray, others: np.ndarray, share: float, details: Details
) -> np.ndarray:
    sizes = np.maximum(1, np.abs(expected[:, others]))
    return np.asarray((np.abs(found - expected)[:, others] <= share * sizes).all(axis=1))


def _accuracy(logits: np.ndarray, tags: np.ndarray, details: Details) -> float:
    given = given_tags(logits, thresholds_of(details, logits.shape[1]))
    return float((given == tags).all(axis=1).mean())


MULTI_LABEL = Task(
    name="multi-label",
    output="tag",
    answer="tags",
    other_answer="other tags",
    raw_output="logits",
    activation="Sigmoid",
    shift_invariant=False,
    loss=SIGMOID,
    solvers=("lbfgs",),
    has_classes=False,
    not_held_out="each is the only one that has, or lacks, some tag",
    score="share of images with exactly the right tags",
    names_of=tag_names,
    read_values=_read,
    has=lambda values, output: values[:, output] > 0,
    canonical=lambda label: "|".join(split_tags(label)),
    knows=lambda label, names: set(split_tags(label)) <= set(names),
    require_trainable=_require_trainable,
    encode=_VaryingTags,
    calibrate=partial(calibrate, fit=fit_tag_temperature, loss_and_error=_loss_and_error),
    choose_thresholds=lambda held_out, num_tags: (
        choose_thresholds(held_out.logits, held_out.labels) if held_out else (EVEN,) * num_tags
    ),
    thresholds_of=thresholds_of,
    measure_parts=lambda parts, num_outputs, thresholds: measure_tags(*joined(parts), thresholds),
    statistics=_loss_and_gaps,
    scores=(MultiLabelMetrics, TagScores, "per_class"),
    columns=(
        IMAGES,
        Column("mAP", ("mean_average_precision",), is_main=True),
        Column("micro F1", ("micro_f1",), is_main=True),
        Column("macro F1", ("macro_f1",)),
        Column("exact", ("exact",)),
        Column("95 %", ("exact_low", "exact_high")),
        Column("log loss", ("log_loss",), is_main=True),
        Column("ECE", ("ece",)),
    ),
    output_columns=(
        IMAGES,
        Column("given", ("num_predicted",), ","),
        Column("from", ("threshold",), ".3f"),
        Column("AP", ("average_precision",)),
        *PRECISION_RECALL,
    ),
    rank=lambda scores: (-(scores.mean_average_precision or 0.0), scores.log_loss),
    probabilities=sigmoid,
    logits=_logits,
    agree=_agree,
    settled=_settled,
    same_untrained=_same_untrained,
    accuracy=_accuracy,
)
