"""The state of an unfinished training: a file that is replaced after each epoch.

A safetensors file: tensors of the model, of its best epoch, of the average and of the optimizer,
each with a prefix; what else there is to know stands in its metadata.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from featx.artifact import canonical_json, differing_settings, publishing
from featx.errors import ArtifactError, ArtifactExists, ArtifactMismatch, listed
from featx.training.finetune.loop import State
from featx.training.finetune.outcome import Epoch

log = logging.getLogger(__name__)

_KEY, _CHECKSUM = "featx-training", "sha256"


@dataclass(frozen=True, eq=False)
class Progress:
    """Progress of an unfinished training."""

    rates: Mapping[float, float] = field(default_factory=dict)  # held-out losses of those tried
    state: State | None = None  # after the last epoch; None before the first


@dataclass(frozen=True)
class Checkpoint:
    """Where the progress of a training is kept."""

    path: Path
    settings: Mapping[str, Any]  # what the training depends on, JSON values by name
    environment: Mapping[str, Any]  # what its last bits depend on; a difference is logged

    def load(self) -> Progress:
        """Return the progress, none where no file is there or where it is damaged.

        Raises:
            ArtifactMismatch: It is that of another training; the message says what differs.
            ArtifactExists: The file is something else.
            ArtifactError: It cannot be read.
        """
        try:
            with safetensors.safe_open(self.path, "pt") as file:
                texts = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = json.loads(texts[_KEY])
            if texts[_CHECKSUM] != _checksum(texts[_KEY], tensors):
                raise ValueError("its checksum differs")
            settings, environment = dict(metadata["settings"]), dict(metadata["environment"])
            progress = _parsed(metadata, tensors)
        except FileNotFoundError:
            return Progress()
        except (safetensors.SafetensorError, KeyError, ValueError, TypeError) as err:
            raise ArtifactExists(
                self.path,
                f"'{self.path}' is not the state of an unfinished training, or is damaged "
                f"({err}). Move it, or use restart=True to replace it.",
            ) from err
        except OSError as err:
            raise ArtifactError(
                self.path, f"Cannot read '{self.path}': {err.strerror or err}."
            ) from err
        self._require_same(settings)
        if lines := differing_settings(environment, json.loads(canonical_json(self.environment))):
            log.warning(
                "Resumed in another environment, so the last digits may differ: %s.",
                listed(lines, 3, "; "),
            )
        return progress

    def save(self, progress: Progress) -> None:
        """Write the progress; a reader finds the old or the new one.

        Raises:
            ArtifactError: The disk refused.
        """
        state, tensors = progress.state, {}
        metadata: dict[str, Any] = {
            "settings": self.settings,
            "environment": self.environment,
            "rates": [[rate, _finite(loss)] for rate, loss in progress.rates.items()],
        }
        if state is not None:
            tensors = {name: value.cpu().contiguous() for name, value in _named(state)}
            metadata["state"] = {
                "epochs": [epoch_to_dict(epoch) for epoch in state.epochs],
                "step": state.step,
                "best_epoch": state.best_epoch,
                "best_loss": _finite(state.best_loss),
            }
        with publishing(self.path, overwrite=True) as temporary:
            text = json.dumps(metadata)
            texts = {_KEY: text, _CHECKSUM: _checksum(text, tensors)}
            try:
                safetensors.torch.save_file(tensors, temporary, texts)
            except safetensors.SafetensorError as err:  # of a full disk too
                raise ArtifactError(self.path, f"Cannot write '{self.path}': {err}.") from err

    def _require_same(self, settings: Mapping[str, Any]) -> None:
        if lines := differing_settings(settings, json.loads(canonical_json(self.settings))):
            options = [line.removeprefix("options.") for line in lines]
            raise ArtifactMismatch(
                self.path,
                f"'{self.path}' is the state of an unfinished training with other settings: "
                f"{listed(options, 3, '; ')}. Run it as before to finish it, or use restart=True "
                "to start anew.",
            )


def _checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    """Return the digest of metadata and tensors, so that a damaged state is not trained on."""
    digest = hashlib.sha256(text.encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def epoch_to_dict(epoch: Epoch) -> dict[str, Any]:
    """Return an epoch as JSON values; an infinite loss is null."""
    return asdict(epoch) | {"held_out": _finite(epoch.held_out)}


def _finite(loss: float | None) -> float | None:
    return None if loss is None or math.isinf(loss) else loss


def _named(state: State) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a state by their names in the file; the best ones once."""
    for name, value in state.model.items():
        yield f"model.{name}", value
    for name, value in state.average.items():
        yield f"average.{name}", value
    for name, moments in state.optimizer.items():
        for key, value in moments.items():
            yield f"optimizer.{key}.{name}", value
    if state.best_epoch != len(state.epochs):
        for name, value in state.best.items():
            yield f"best.{name}", value


def _parsed(metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Progress:
    rates = {rate: math.inf if loss is None else loss for rate, loss in metadata["rates"]}
    if "state" not in metadata:
        return Progress(rates)
    values = metadata["state"]
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}, "best": {}}
    optimizer: dict[str, dict[str, Tensor]] = {}
    for full, value in tensors.items():
        part, _, name = full.partition(".")
        if part == "optimizer":
            key, _, parameter = name.partition(".")
            optimizer.setdefault(parameter, {})[key] = value
        else:
            parts[part][name] = value
    if not parts["best"]:  # the last epoch is the best
        kept = parts["model"] | parts["average"]
        parts["best"] = {name: value.clone() for name, value in kept.items()}
    best_loss = values["best_loss"]
    state = State(
        epochs=tuple(Epoch(**epoch) for epoch in values["epochs"]),
        step=values["step"],
        optimizer=optimizer,
        best_epoch=values["best_epoch"],
        best_loss=math.inf if best_loss is None else best_loss,
        **parts,
    )
    return Progress(rates, state)
