"""Whether the head at an output is the one that training would write again."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from featx.artifact import describe_environment
from featx.errors import ArtifactError
from featx.features.file import FeatureFile
from featx.heads.calibration import Calibration
from featx.heads.head import Head, describe_head, open_head
from featx.heads.samples.few_shot import FewShotScores, Spread
from featx.heads.tasks import TASKS
from featx.training.options import CrossValidated, TrainOptions, TrainReport


def made_from(cache: FeatureFile, options: TrainOptions) -> dict[str, Any]:
    """Return what decides a head, JSON values: the features by their sha256, and the options."""
    chosen = {name: value for name, value in asdict(options).items() if name != "overwrite"}
    return {
        "features": cache.inputs_sha256,
        "options": json.loads(json.dumps(chosen)),
        "featx": describe_environment()["featx"],
    }


def open_earlier(output: Path) -> Head | None:
    """Return the head at an output; None where it is damaged."""
    try:
        return open_head(output)
    except ArtifactError:
        return None


def describe_earlier(head: Head | None) -> str:
    """Return a head that is replaced in a few words."""
    if head is None:
        return "a head that cannot be read"
    details = head.header.details
    return describe_head(details.get("choice", {}), details.get("metrics", {}))


def report_if_current(
    output: Path, head: Head, cache: FeatureFile, options: TrainOptions
) -> TrainReport | None:
    """Return the report of an earlier head that was made from the same; None where it was not."""
    details = head.header.details
    if details.get("features") != str(cache.path.resolve()):
        return None
    if details.get("made_from") != made_from(cache, options):
        return None
    try:
        calibration, few_shot = details["calibration"], details.get("few_shot", {"metrics": {}})
        return TrainReport(
            path=output,
            head=head,
            metrics={
                split: TASKS[head.task].scores_from_dict(own)
                for split, own in details["metrics"].items()
            },
            seconds=0.0,
            choice=details["choice"],
            calibration=Calibration(**calibration) if calibration else None,
            few_shot={
                split: FewShotScores(**{name: Spread(**own) for name, own in scores.items()})
                for split, scores in few_shot["metrics"].items()
            },
            cross_validated=_cross_validated(head),
            is_unchanged=True,
        )
    except (KeyError, TypeError, AttributeError):  # not as featx writes it: trained again
        return None


def _cross_validated(head: Head) -> CrossValidated | None:
    details = head.header.details.get("cross_validated")
    if details is None:
        return None
    return CrossValidated(
        TASKS[head.task].scores_from_dict(details["metrics"]), details["num_folds"]
    )
