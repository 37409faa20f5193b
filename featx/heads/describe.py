"""Heads and their training in words, as headers hold them; without the library of head files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_MAIN_SCORES = ("top1", "mean_average_precision", "mae")


def describe_head(choice: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """Return the kind of a head, its strength and main score, as a header holds them.

    >>> describe_head({"head": "linear", "strength": 0.1}, {"val": {"top1": 0.94117}})
    'linear, C = 0.1, val 0.9412'
    >>> describe_head({"head": "linear", "solver": "finetune", "cut": "layer4"}, {})
    'finetune at layer4'
    """
    parts = [str(choice.get("head", "head"))]
    if choice.get("solver") == "finetune":
        way = "from scratch" if choice.get("scratch") else "finetune"
        parts = [f"{way} at {choice.get('cut', 'a cut')}"]
    elif choice.get("solver") not in (None, "lbfgs"):
        parts.append(str(choice["solver"]))
    if isinstance(strength := choice.get("strength"), int | float):
        parts.append(f"C = {strength:g}")
    for split in ("val", "test", "train"):
        scores = metrics.get(split)
        if isinstance(scores, Mapping):
            found = [own for name in _MAIN_SCORES if isinstance(own := scores.get(name), float)]
            return ", ".join([*parts, *(f"{split} {score:.4f}" for score in found[:1])])
    return ", ".join(parts)


def describe_training(choice: Mapping[str, Any]) -> str:
    """Return how the network behind a cut was trained with a head; empty where it was not.

    >>> parameters = {"trained": 8393728, "all": 11177538}
    >>> tuned = {"solver": "finetune", "parameters": parameters, "epochs": [{}] * 11}
    >>> describe_training(tuned | {"best_epoch": 7})
    '8,393,728 of 11,177,538 parameters (75.1 %), epoch 7 of 11'
    >>> describe_training(tuned | {"best_epoch": 0, "parameters": None})
    'as it was: no better epoch of 11'
    """
    if choice.get("solver") != "finetune":
        return ""
    parts = ["from random weights"] if choice.get("scratch") else []
    if counts := choice.get("parameters"):
        trained, every = counts["trained"], counts["all"]
        share = 100 * trained / max(1, every)
        parts.append(f"{trained:,} of {every:,} parameters ({share:.1f} %)")
    if epochs := choice.get("epochs"):
        best, count = choice.get("best_epoch", len(epochs)), len(epochs)
        parts.append(
            f"epoch {best} of {count}" if best else f"as it was: no better epoch of {count}"
        )
    return ", ".join(parts)
