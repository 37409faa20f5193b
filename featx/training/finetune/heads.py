"""Heads on the unchanged network: the probe, and the layers that training starts from."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from featx.artifact import differing_settings
from featx.backbones.spec import BackboneSpec
from featx.errors import ArtifactMismatch, listed, only_errors
from featx.features.blocks import Activations
from featx.features.file import FeatureFile
from featx.heads.head import Head, Layer, apply_layers
from featx.heads.samples.data import Step
from featx.heads.samples.selection import choose_subsample
from featx.heads.tasks import Targets
from featx.heads.tasks.task import Encoding
from featx.training.finetune.data import read_blocks
from featx.training.finetune.options import FinetuneOptions
from featx.training.finetune.problem import Problem
from featx.training.fitting import COPIES, fit_heads
from featx.training.options import TrainOptions, memory_for
from featx.training.trained import Trained, score_heads

log = logging.getLogger(__name__)

Through = Callable[[np.ndarray], np.ndarray]
"""A network, from stored activations ``(n, …)`` to features ``(n, num_features)``."""
_OF_THE_PROBLEM = ("featx.heads.tasks", "featx.training.samples")
_OF_FITTING = ("featx.heads.solvers", "featx.training.fitting")
"""Modules that warn, before a head is fitted and while it is."""


@dataclass(frozen=True, eq=False)
class Probe:
    """A head with its scores, and which labelled validation images it has right.

    ``right`` is ``(n,)`` bool; empty for tasks other than one class each.
    """

    head: Trained
    right: np.ndarray


def fit_probe(
    problem: Problem,
    options: FinetuneOptions,
    activations: Activations,
    network: Through,
    step: Step,
) -> tuple[Probe, tuple[Layer, ...]]:
    """Return the head that train-head fits to the unchanged network's features, and first layers.

    These were fitted without the held-out images. Where the features of all images do not fit into
    the memory that is allowed, some of the training images are taken, and a warning says how many.
    """
    asked = TrainOptions(
        task=problem.task.name,
        class_weight=options.class_weight,
        calibrate=options.calibrate,
        memory=options.memory,
        seed=options.seed,
        use_views=False,  # through the network they would take longer than an epoch
    )
    vectors, samples = problem.cache.with_network(network), np.arange(len(problem.rows))
    few = _fitting_samples(problem, asked)
    rows = problem.rows
    if few is not None:
        parts = read_blocks(activations, rows[few], row_bytes(activations))
        features = np.concatenate([network(values) for _, values in parts])
        vectors, rows, samples = vectors.only(rows[few], features), np.arange(len(few)), few
        asked = replace(asked, memory=len(few) * _bytes_to_fit(problem, asked))
    trained = rows[~problem.is_held_out[samples]]
    nothing_held_out = len(trained) == len(rows)  # which the training says
    with only_errors(*_OF_THE_PROBLEM, *(_OF_FITTING if nothing_held_out else ())):
        (probe,) = fit_heads(vectors, asked, step=step, rows=rows)
    with only_errors(*_OF_THE_PROBLEM, *_OF_FITTING):  # as the probe's
        (first,) = fit_heads(vectors, replace(asked, calibrate=False), step=step, rows=trained)
    *others, last = first.layers
    layers = (*others, encoded(last, problem.encoding))
    if few is not None:
        choice = probe.choice | {"num_fitted": len(few)}
        probe = replace(probe, choice=choice, cross_validated=None)
        return score_through(probe, problem, activations, network), layers
    validating = problem.validating
    right = _is_right(probe, problem, vectors.features[validating], validating)
    return Probe(probe, right), layers


def score_through(
    head: Trained, problem: Problem, activations: Activations, network: Through
) -> Probe:
    """Return a head with scores of every split, by one pass of a network over activations."""
    every, validating = np.arange(len(problem.cache)), problem.validating
    right = [np.zeros(0, bool)]

    def blocks() -> Iterator[tuple[slice, np.ndarray]]:
        for where, values in read_blocks(activations, every, row_bytes(activations)):
            features = network(values)
            low, high = np.searchsorted(validating, [where.start, where.start + len(values)])
            rows = validating[low:high]
            right.append(_is_right(head, problem, features[rows - where.start], rows))
            yield where, features

    (scores,) = score_heads([head], problem.cache, problem.targets, blocks())
    return Probe(replace(head, metrics=scores), np.concatenate(right))


def row_bytes(activations: Activations) -> int:
    """Return the bytes of an image's activations as they are stored."""
    return int(math.prod(activations.shape) * activations.dtype.itemsize)


def _is_right(
    head: Trained, problem: Problem, features: np.ndarray, rows: np.ndarray
) -> np.ndarray:
    """Return whether the class of each row is the top one, ``(n,)``; of other tasks nothing."""
    values = problem.targets.values
    if values.ndim > 1:
        return np.zeros(0, bool)
    return np.asarray(apply_layers(head.layers, features).argmax(axis=1) == values[rows])


def _fitting_samples(problem: Problem, options: TrainOptions) -> np.ndarray | None:
    """Return the samples, ``(n,)``, whose features fit into memory; None where all rows do."""
    cache, values, memory = problem.cache, problem.encoding.values, memory_for(options.memory)
    row = _bytes_to_fit(problem, options)
    if row * len(cache) <= memory:
        return None
    some = choose_subsample(
        *(values, cache.num_features, problem.encoding.num_outputs),
        memory=memory,
        seed=options.seed,
        at_most=1 << max(0, (memory // row).bit_length() - 1),
    )
    if values.ndim == 1:  # one of each class that trains
        _, first = np.unique(values + problem.is_held_out * (values.max() + 1), return_index=True)
        some = np.union1d(some, first)
    log.warning(
        "The features of all images behind the cut need more memory than may be taken: the probe, "
        "from which training starts, is fitted to %s of %s training images. Allow more by "
        "memory=….",
        *(f"{len(some):,}", f"{len(values):,}"),
    )
    return some


def _bytes_to_fit(problem: Problem, options: TrainOptions) -> int:
    """Return the bytes that fitting takes for the features of an image."""
    return 4 * problem.cache.num_features * COPIES[options.solver_for(problem.task)]


# --- a head that was given, and heads as modules --------------------------------------------------


def require_fitting_start(start: Head, cache: FeatureFile, targets: Targets) -> None:
    """Check that a head was trained on the network of a file, for the same task and classes."""
    ours, theirs = (
        BackboneSpec.from_dict(spec).without_cut.to_dict()
        for spec in (cache.header.spec, start.header.spec)
    )
    lines = differing_settings(ours, theirs)
    if start.task != targets.task.name:
        lines.append(f"task: expected {targets.task.name}, found {start.task}")
    elif set(start.classes) != set(targets.names):
        other = sorted(set(start.classes) ^ set(targets.names))
        lines.append(f"{targets.task.outputs}: {listed(other, 3)} in one of them only")
    if lines:
        raise ArtifactMismatch(
            cache.path,
            f"The head to start from does not fit '{cache.path}': {listed(lines, 6, '; ')}. Train "
            "one on the same backbone and classes, or leave out start=….",
        )


def as_trained(start: Head, targets: Targets) -> Trained:
    """Return a head as if it had just been trained, its outputs in the order of the targets."""
    order = [start.classes.index(name) for name in targets.names]
    *others, (weight, bias) = start.layers
    details = start.header.details
    unit = details.get("unit")
    return Trained(
        task=targets.task,
        names=targets.names,
        layers=(*others, (weight[order], bias[order])),
        choice=dict(details["choice"]),
        calibration=None,
        thresholds=tuple(start.thresholds[number] for number in order) if start.thresholds else (),
        unit=(unit["mean"], unit["scale"]) if unit else None,
        held_out=None,
        seconds=0.0,
        drawn=None,
    )


def layers_of_start(start: Head, names: Sequence[str], encoding: Encoding) -> tuple[Layer, ...]:
    """Return a head's layers as training takes them: outputs in the order of ``names``.

    The temperature is unfolded, numbers are standardised.
    """
    *others, (weight, bias) = start.layers
    temperature = float(start.header.details.get("temperature", 1.0))
    order = [start.classes.index(name) for name in names]
    last = encoded((weight[order] * temperature, bias[order] * temperature), encoding)
    return (*others, last)


def encoded(layer: Layer, encoding: Encoding) -> Layer:
    """Return a last layer with outputs as the targets are encoded: ``decode_layer`` undone."""
    if encoding.unit is None:
        return layer
    mean, scale = (np.array(part, np.float64) for part in encoding.unit)
    weight, bias = (part.astype(np.float64) for part in layer)
    standardised = weight / scale[:, None], (bias - mean) / scale
    return standardised[0].astype(np.float32), standardised[1].astype(np.float32)


def module_of(layers: Sequence[Layer]) -> nn.Sequential:
    """Return layers, with ReLU between them, as a module."""
    modules: list[nn.Module] = []
    for weight, bias in layers:
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(np.ascontiguousarray(weight)))
            linear.bias.copy_(torch.from_numpy(np.ascontiguousarray(bias)))
        modules += [nn.ReLU(), linear] if modules else [linear]
    return nn.Sequential(*modules)


def layers_in(head: nn.Sequential) -> tuple[Layer, ...]:
    """Return the layers of a module, float32."""
    return tuple(
        (array_of(module.weight), array_of(module.bias))
        for module in head
        if isinstance(module, nn.Linear)
    )


def array_of(tensor: torch.Tensor) -> np.ndarray:
    """Return a copy of a tensor, float32."""
    return tensor.detach().to("cpu", torch.float32, copy=True).contiguous().numpy()
