"""The head that a fine-tuning starts from, as a module, and back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from featx.artifact import differing_settings
from featx.backbones.spec import BackboneSpec
from featx.errors import ArtifactMismatch, listed
from featx.features.file import FeatureFile
from featx.heads.head import Head, Layer
from featx.heads.tasks import Targets
from featx.heads.tasks.task import Encoding
from featx.training.trained import Trained


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
