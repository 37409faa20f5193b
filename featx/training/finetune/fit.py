"""Fine-tune: from a feature file with a cut to a tail and head that are ready to be written.

Training starts from a head that was fitted to the unchanged tail's features (LP-FT: Kumar et al.,
"Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution", 2022). A tenth
of the training images is held out: it chooses learning rate and epoch, and calibrates, so the head
of the start is fitted without it. The head that is reported beside the tuned one is that of
train-head, fitted to all training images as they are evaluated, or to as many as fit into memory;
where no epoch is better than the start, it is the one that is kept. Validation and test images
choose nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from featx.artifact import describe_environment
from featx.backbones.engines import resolve_device
from featx.backbones.network import Network, Tail, build_parts, tensors_of
from featx.backbones.spec import BackboneSpec
from featx.backbones.tails import features_of, tail_shapes
from featx.errors import BackboneError, ConfigError, listed
from featx.features.blocks import Activations, reading_activations
from featx.features.file import FeatureFile
from featx.heads.head import Fitted, Head, Layer, silence_absent
from featx.heads.samples.folds import HeldOut
from featx.heads.tasks.calibration import fold_temperature, restore_shares
from featx.training.finetune.checkpoint import Checkpoint, epoch_to_dict
from featx.training.finetune.data import CachedData
from featx.training.finetune.heads import (
    Probe,
    array_of,
    as_trained,
    fit_probe,
    layers_in,
    layers_of_start,
    module_of,
    require_fitting_start,
    row_bytes,
    score_through,
)
from featx.training.finetune.loop import State
from featx.training.finetune.options import FinetuneOptions, Recipe
from featx.training.finetune.outcome import Comparison, Events, Tuned
from featx.training.finetune.problem import Problem, evaluate
from featx.training.finetune.training import Training, repeatable
from featx.training.options import memory_for
from featx.training.trained import Trained, finish_head

_PRIOR_SAMPLES = 15
"""Beside the held-out images, which may be a handful."""


def fit_tail(
    cache: FeatureFile,
    options: FinetuneOptions,
    *,
    start: Head | None,
    tensors: Mapping[str, Tensor] | None,
    checkpoint: Path,
    events: Events,
    finish: bool = False,
) -> Tuned:
    """Train the tail behind a cut, and the head behind it.

    A killed run is resumed from the checkpoint, after its last epoch, and comes to the same bits.
    Two runs on one machine with as many threads do too.

    Args:
        cache: A feature file with a cut; training images to leave out have no label.
        options: How.
        start: The head to start from, and the one to compare with; None fits one. It may have seen
            the held-out images, so it is never the best epoch itself.
        tensors: Of the network, by the names of the whole model. None where all come from
            ``start``, or from scratch: then nothing is compared.
        checkpoint: Where the progress is kept; left there for the caller to remove.
        events: What is called on the way.
        finish: Train no further than the checkpoint.

    Raises:
        ConfigError: The file has no cut, an option does not fit, or there is nothing to finish.
        SourceError: The samples cannot train a head.
        BackboneError: Tensors are missing or do not fit.
        ArtifactMismatch: ``start`` or the checkpoint is of something else.
        ArtifactInvalid: The file was changed or is damaged.
        TrainingError: Training diverges from the first epoch on.
    """
    spec = BackboneSpec.from_dict(cache.header.spec)
    if spec.cut is None:
        raise ConfigError(
            f"'{cache.path}' holds vectors: there is nothing behind them to train. Extract with a "
            "cut, or train a head alone with featx train-head."
        )
    if options.scratch and start is not None:
        raise ConfigError("scratch=True starts from random weights: leave out start=….")
    device = resolve_device(options.device)
    problem = Problem.of(cache, options, start)
    if start is not None:
        require_fitting_start(start, cache, problem.targets)
    with repeatable(device, options.seed), reading_activations(cache) as activations:
        stem, tail = _network(spec, options, start, tensors)
        run = _Run(options, problem, spec, tail, activations, device, checkpoint, events, finish)
        return run.fit(
            start, num_others=0 if stem is tail else sum(size for _, size in _sizes(stem))
        )


def _network(
    spec: BackboneSpec,
    options: FinetuneOptions,
    start: Head | None,
    tensors: Mapping[str, Tensor] | None,
) -> tuple[Network, Tail]:
    """Return stem and tail, with the tensors they start from."""
    found = {} if options.scratch else dict(tensors or {})
    found |= {
        name: torch.from_numpy(own.copy()) for name, own in (start.tail if start else {}).items()
    }
    shapes = tail_shapes(spec)
    missing = [name for name in shapes if name not in found]
    if missing and not options.scratch:
        raise BackboneError(
            f"Tensors behind the cut '{spec.cut}' are missing: {listed(missing, 5)}. Give the "
            "weights that the features were extracted with."
        )
    if start and (before := [name for name in start.tail if name not in shapes]):
        raise BackboneError(
            f"The head to start from was trained from an earlier cut: its {listed(before, 3)} lie "
            f"before '{spec.cut}'. Cut the network where that head did, or earlier."
        )
    return build_parts(spec, found)


@dataclass(frozen=True, eq=False)
class _Run:
    """A fine-tuning under way; the tail is changed."""

    options: FinetuneOptions
    problem: Problem
    spec: BackboneSpec
    tail: Tail
    activations: Activations
    device: torch.device
    path: Path
    events: Events
    finish: bool

    def fit(self, start: Head | None, *, num_others: int) -> Tuned:
        """Return the outcome; ``num_others`` are the parameters before the cut."""
        begin, data = time.perf_counter(), self._data()
        checkpoint = self._checkpoint(data, start)
        progress = checkpoint.load()
        if self.finish and progress.state is None:
            raise ConfigError(
                f"There is nothing to finish: '{self.path}' has no epoch of this training. Train "
                "without finish=True."
            )
        probe, layers = self._start(start)
        self.tail.to(self.device).to(memory_format=torch.channels_last)
        head = module_of(layers).to(self.device)
        sizes = [(name.removeprefix("trunk."), size) for name, size in _sizes(self.tail)]
        sizes += [(f"head.{name}", size) for name, size in _sizes(head)]
        num_trained = sum(size for _, size in sizes)
        self.events.on_parameters(sizes, num_trained + num_others)
        training = Training(
            *(self.options, self.tail, head, data, self.problem.goal, checkpoint, self.events),
            finish=self.finish,
        )
        # a start that was given may have seen the held-out images
        keep_start = probe is not None and start is None
        recipe, rates, state = training.run(progress, keep_start=keep_start)
        choice = self._describe(recipe, rates, state) | {
            "head": "mlp" if len(layers) > 1 else "linear",
            "parameters": {"trained": num_trained, "all": num_trained + num_others},
        }
        if keep_start and probe and not state.best_epoch:
            fitted = {name: n for name, n in probe.head.choice.items() if name == "num_fitted"}
            trained = replace(self._in_their_shares(probe.head), choice=choice | fitted)
        else:
            trained = self._calibrated(head, data, choice)
        return self._scored(replace(trained, seconds=time.perf_counter() - begin), probe)

    def _describe(
        self, recipe: Recipe, rates: Mapping[float, float], state: State
    ) -> dict[str, Any]:
        """Return rates, recipe and epochs of the training, JSON values."""
        return {
            "solver": "finetune",
            "cut": self.spec.cut,
            "scratch": self.options.scratch,
            "recipe": recipe.to_dict(),
            "learning_rates": [
                {"lr": rate, "held_out": None if math.isinf(loss) else loss}
                for rate, loss in sorted(rates.items())
            ],
            "epochs": [epoch_to_dict(epoch) for epoch in state.epochs],
            "best_epoch": state.best_epoch,
            "num_held_out": int(self.problem.is_held_out.sum()),
            "num_threads": torch.get_num_threads(),
        }

    def _data(self) -> CachedData:
        cache, problem = self.problem.cache, self.problem
        return CachedData(
            source=self.activations,
            rows=problem.rows,
            positions=np.searchsorted(cache.rows("train"), problem.rows),
            targets=problem.tensor,
            weights=torch.from_numpy(problem.weights.astype(np.float32)),
            is_held_out=problem.is_held_out,
            names=[cache.sample_ids[row] for row in problem.rows.tolist()],
            num_views=cache.num_views,
            row_bytes=row_bytes(self.activations),
            memory=memory_for(self.options.memory),
            device=self.device,
        )

    def _checkpoint(self, data: CachedData, start: Head | None) -> Checkpoint:
        settings = {
            "features": self.problem.cache.inputs_sha256,
            "samples": self.problem.digest,
            "options": self.options.to_dict(),
            "start": start.sha256 if start else None,
            "shuffled_together": data.pool_rows,
        }
        own = {"threads": str(torch.get_num_threads()), "on": self.device.type}
        return Checkpoint(self.path, settings, describe_environment("torch", "numpy") | own)

    def _start(self, start: Head | None) -> tuple[Probe | None, tuple[Layer, ...]]:
        """Return the head to compare with, and the layers that training starts from."""
        problem = self.problem
        if self.options.scratch:
            linear = nn.Linear(self.spec.num_features, problem.encoding.num_outputs)
            (layer,) = layers_in(nn.Sequential(linear))
            if problem.task.has_classes:
                layer = silence_absent(layer, problem.encoding.values)
            return None, (layer,)
        self.events.on_step("Running the unchanged network")
        if start is None:
            return fit_probe(
                *(problem, self.options, self.activations, self._network(), self.events.on_step)
            )
        scored = self._score(as_trained(start, problem.targets))
        return scored, layers_of_start(start, problem.targets.names, problem.encoding)

    def _network(self) -> Callable[[np.ndarray], np.ndarray]:
        """Return the tail as it is now, from stored activations to features."""
        return features_of(deepcopy(self.tail), self.spec.num_features, device=str(self.device))

    def _score(self, head: Trained) -> Probe:
        """Return a head on the network as it is now, with scores of all splits."""
        return score_through(head, self.problem, self.activations, self._network())

    def _in_their_shares(self, head: Trained) -> Trained:
        """Return the head of train-head, with the shares of the classes that weights moved."""
        held_out, targets = head.held_out, self.problem.targets
        calibrate = targets.task.calibrate
        weighted = self.options.class_weight is not None and self.options.calibrate
        if held_out is None or calibrate is None or not weighted:
            return head
        values = targets.values[self.problem.rows]
        shift = restore_shares(held_out.logits, held_out.labels, values)
        logits = held_out.logits + shift
        *others, (weight, bias) = head.layers
        calibration = calibrate(HeldOut(logits, held_out.labels, held_out.num_folds))
        last = fold_temperature(weight, bias + shift.astype(np.float32), calibration.temperature)
        moved = replace(held_out, logits=logits / calibration.temperature)
        return replace(head, layers=(*others, last), held_out=moved, calibration=calibration)

    def _calibrated(self, head: nn.Sequential, data: CachedData, choice: dict[str, Any]) -> Trained:
        """Return the tuned head, calibrated on the held-out images, without scores."""
        problem, layers, held_out = self.problem, layers_in(head), None
        calibrate, values = self.options.calibrate, problem.encoding.values
        if problem.is_held_out.any():
            _, logits = evaluate(self.tail, head, data, problem.goal, self.options.batch_size)
            labels = values[problem.is_held_out]
            if self.options.class_weight is not None and calibrate:
                shift = restore_shares(logits, labels, values, prior_samples=_PRIOR_SAMPLES)
                shift = shift.astype(np.float32)
                *others, (weight, bias) = layers
                layers, logits = (*others, (weight, bias + shift)), logits + shift
            held_out = HeldOut(logits, labels)
        fitted = Fitted(layers, choice, held_out)
        return finish_head(
            *(fitted, problem.targets, problem.encoding),
            calibrate=calibrate,
            prior_samples=_PRIOR_SAMPLES,
        )

    def _scored(self, trained: Trained, probe: Probe | None) -> Tuned:
        """Return the outcome, with scores of all splits."""
        self.events.on_step("Scoring")
        tuned, comparison = self._score(trained), None
        if probe is not None and len(probe.right):
            comparison = Comparison.of(probe.right, tuned.right)
        size = self.spec.preprocess.image_size
        tensors = tensors_of(self.tail, self.spec.backbone, size)
        return Tuned(
            trained=tuned.head,
            tail={
                name: array_of(value)
                for name, value in tensors.items()
                if value.is_floating_point()
            },
            probe=probe.head if probe else None,
            comparison=comparison,
        )


def _sizes(part: nn.Module) -> list[tuple[str, int]]:
    return [(name, value.numel()) for name, value in part.named_parameters()]
