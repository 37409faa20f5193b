"""What a file's header says of its export, looked at before anybody shows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from featx.errors import ConfigError

_NUMBERS = ("num_images", "top1_agreement", "max_difference")
_ACCURACY = ("num_images", "num_available", "file", "head")


def check_recorded(details: Mapping[str, Any]) -> None:
    """Check that proof, precision and opset are as some featx writes them; each may be missing.

    Raises:
        ConfigError: One of them is something else.
    """
    if not isinstance(details.get("precision", "fp32"), str):
        raise ConfigError("its precision is no name")
    if not isinstance(details.get("opset", 20), int):
        raise ConfigError("its opset is no number")
    proof = details.get("proof")
    if proof is None:
        return
    if not isinstance(proof, Mapping) or not _are_numbers(proof, _NUMBERS):
        raise ConfigError("its proof lacks figures")
    if "bound" not in proof or not (proof["bound"] is None or _are_numbers(proof, ("bound",))):
        raise ConfigError("the bound of its proof is no number")
    untrained = proof.get("untrained", [])
    if not isinstance(untrained, list) or not all(type(i) is int and i >= 0 for i in untrained):
        raise ConfigError("its proof does not list outputs that were not trained")
    hard, accuracy = proof.get("hard", {}), proof.get("accuracy")
    if not isinstance(hard, Mapping) or not _are_numbers(hard, hard):
        raise ConfigError("its proof lacks figures of hard images")
    known = accuracy is None or isinstance(accuracy, Mapping)
    if not known or (accuracy is not None and not _are_numbers(accuracy, _ACCURACY)):
        raise ConfigError("its proof lacks figures of accuracy")
    if accuracy is not None and not isinstance(accuracy.get("measure", ""), str):
        raise ConfigError("its proof has no name for accuracy")
    task = "single-label"
    if proof.get("task", task) != details.get("task", task):
        raise ConfigError("its proof is of another task")
    if not isinstance(proof.get("date", ""), str):
        raise ConfigError("its proof has no date")


def _are_numbers(values: Mapping[str, Any], names: Any) -> bool:
    return all(
        isinstance(values.get(name), (int, float)) and not isinstance(values[name], bool)
        for name in names
    )
