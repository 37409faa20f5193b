"""Fine-tune: from a feature file with a cut to a tail and head that are ready to be written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from featx.features.file import FeatureFile
from featx.heads.head import Head
from featx.training.finetune.options import FinetuneOptions
from featx.training.finetune.outcome import Events, Tuned


def fit_tail(
    cache: FeatureFile,
    options: FinetuneOptions,
    *,
    start: Head | None,
    tensors: Mapping[str, Tensor] | None,
    checkpoint: Path,
    events: Events,
) -> Tuned:
    """Train the tail behind a cut, and the head behind it."""
    raise NotImplementedError
