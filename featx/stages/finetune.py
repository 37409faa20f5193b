"""Fine-tune: open the activations, train tail and head, score, write."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack

from featx.artifact import Header, beside, require_apart, require_replaceable, run_files
from featx.artifact.bars import Drawing, drawing
from featx.artifact.keywords import by_keyword, record_of
from featx.artifact.shown import Cells
from featx.backbones.spec import BackboneSpec
from featx.errors import ArtifactMismatch, ConfigError
from featx.features.file import FeatureFile, open_features
from featx.features.lock import locked
from featx.heads.head import Head, open_head, save_head
from featx.heads.tasks.scores import Scores
from featx.heads.tasks.tables import score_cells
from featx.training.finetune.options import FinetuneKeywords, FinetuneOptions
from featx.training.finetune.outcome import Comparison, Epoch, Events, Tuned
from featx.training.record import (
    HeadReport,
    describe_replaced,
    find_head,
    head_header,
    is_made_from,
    made_from,
)
from featx.training.samples import exclude, warn_of_leaks, warn_of_random_weights, with_excluded


@dataclass(frozen=True, repr=False)
class FinetuneReport(HeadReport):
    """A tuned head, with the tensors of the trained tail, and the scores of the probe beside it.

    Attributes:
        is_resumed: An earlier run had been interrupted, and was finished.
    """

    is_resumed: bool = False

    @cached_property
    def probe(self) -> dict[str, Scores]:
        """Scores of the head that train-head fits on the unchanged tail, or of ``start``.

        Empty from scratch.
        """
        return self._scores(self.head.header.details.get("probe", {"metrics": {}})["metrics"])

    @property
    def comparison(self) -> Comparison | None:
        """Both on the validation split.

        None without one, from scratch, and for tasks other than one class each.
        """
        found = self.head.header.details.get("comparison")
        return Comparison(**found) if found else None

    def _cells(self) -> Cells:
        return score_cells(
            self.metrics | {f"{split}, probe": own for split, own in self.probe.items()}
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return super().to_dict() | {
            "cut": self.head.cut,
            "probe": {split: scores.to_dict() for split, scores in self.probe.items()},
            "comparison": asdict(self.comparison) if self.comparison else None,
            "is_resumed": self.is_resumed,
        }


@by_keyword(FinetuneOptions)
def finetune(
    features: str | Path,
    output: str | Path,
    options: FinetuneOptions | None = None,
    *,
    start: str | Path | None = None,
    weights: str | None = None,
    restart: bool = False,
    finish: bool = False,
    events: Events | None = None,
    progress: bool | None = None,
    **keywords: Unpack[FinetuneKeywords],
) -> FinetuneReport:
    """Train the network behind a cut, and a head on it, from cached activations; write the head.

    What is not written yet is kept beside the output after each epoch, and a run that was
    interrupted is resumed. A head that was made from the same activations with the same options
    and start is left as it is.

    Args:
        features: The feature file, extracted with a cut.
        output: The head file.
        options: What is trained, and how.
        start: A linear head to start from, of the same backbone and classes; one is fitted where
            none is given.
        weights: Where the pretrained weights are now, where they have moved.
        restart: Train again, and forget an interrupted run.
        finish: Train no further: write the best epoch of an interrupted run, which cannot be
            resumed then.
        events: Called while it trains.
        progress: None shows steps and epochs in a terminal or notebook, unless there are
            ``events``; False shows nothing.
        keywords: The options by name: ``max_epochs=5``. ``exclude`` may be a file, as of ``featx
            finetune``.

    Raises:
        ArtifactError: A file cannot be used, or the output is not a head.
        ArtifactMismatch: The feature file has no cut, or ``start`` is of other features.
        ArtifactBusy: Another process is writing the output.
        BackboneError: The pretrained weights cannot be found, or are others.
        SourceError: The samples cannot train a head.
        ConfigError: An option does not fit, or there is nothing to finish.
        TrainingError: The loss is not finite.
    """
    output = Path(output)
    if finish and restart:
        raise ConfigError("restart=True forgets the run that finish=True would write.")
    options = record_of(FinetuneOptions, options, with_excluded(keywords, features))
    with locked(output), drawing(progress if events is None else False) as draw:
        checkpoint = beside(output, ".partial")
        _require_apart(output, Path(features), start)
        cache = open_features(features, features_later=True)
        _require_cut(cache, options)
        first = None if start is None else open_head(start)
        if first is None and not options.scratch:
            warn_of_random_weights(cache, "training starts from them")
        exists = require_replaceable(output, "head")
        warn_of_leaks(cache)
        inputs, existing = _inputs(cache, options, first), find_head(output) if exists else None
        if existing and not restart and is_made_from(existing, output, inputs):
            with suppress(KeyError, TypeError, AttributeError):  # not as featx writes it
                report = FinetuneReport(output, existing, is_unchanged=True)
                report.to_dict()  # reads all of the header
                return report
        if restart:
            checkpoint.unlink(missing_ok=True)
        is_resumed = checkpoint.exists()
        cache = exclude(open_features(features), options.exclude)
        tensors = None if options.scratch else _pretrained(cache, first, weights)
        from featx.training.finetune.fit import fit_tail  # torch, only where it is needed

        with _noting(checkpoint):
            tuned = fit_tail(
                cache,
                options,
                start=first,
                tensors=tensors,
                checkpoint=checkpoint,
                events=events or _shown_by(draw),
                finish=finish,
            )
        head = Head(_header(cache, options, tuned, inputs), tuned.trained.layers, tuned.tail)
        head = save_head(output, head, overwrite=exists)
        checkpoint.unlink(missing_ok=True)
    replaced = describe_replaced(existing) if exists else ""
    seconds = tuned.trained.seconds
    return FinetuneReport(output, head, seconds, replaced=replaced, is_resumed=is_resumed)


@contextmanager
def _noting(checkpoint: Path) -> Iterator[None]:
    """Let an interrupt say where the progress is kept."""
    try:
        yield
    except KeyboardInterrupt as stop:
        if checkpoint.exists():
            stop.add_note(
                f"The progress is kept in '{checkpoint}': run the same command again to resume, or "
                "finetune with finish=True to write the best of the epochs that are done."
            )
        raise


def _shown_by(draw: Drawing) -> Events:
    """Return events that show the step or epoch under way."""
    tell = draw.steps(None, "Fine-tune")

    def on_epoch(epoch: Epoch, _seconds: float, _speed: float) -> None:
        is_held_out = epoch.held_out is not None
        loss = epoch.held_out if epoch.held_out is not None else epoch.loss
        tell(f"epoch {epoch.number}, {'held-out ' if is_held_out else ''}loss {loss:.4f}")

    return Events(on_step=tell, on_epoch=on_epoch)


def _require_apart(output: Path, features: Path, start: str | Path | None) -> None:
    others = run_files(features)
    if start is not None:
        others |= {f"the head to start from '{start}'": Path(start)}
    outputs = {"the head": output, "the unfinished training": beside(output, ".partial")}
    require_apart(outputs, others)


def _require_cut(cache: FeatureFile, options: FinetuneOptions) -> None:
    """Refuse vectors, behind which there is nothing to train."""
    spec = BackboneSpec.from_dict(cache.header.spec)
    if spec.cut is None:
        what = "from scratch at the input, with cut='input'" if options.scratch else "with cut=…"
        raise ArtifactMismatch(
            cache.path,
            f"'{cache.path}' holds the vectors of the last layer, behind which there is nothing to "
            f"train. Extract activations {what}; 'featx backbones {spec.backbone}' lists the cuts.",
        )


def _inputs(cache: FeatureFile, options: FinetuneOptions, start: Head | None) -> dict[str, Any]:
    chosen = {name: value for name, value in options.to_dict().items() if name != "exclude"}
    digest = start.sha256 if start else None
    return made_from(cache, chosen, excluded=options.exclude, start=digest)


def _pretrained(
    cache: FeatureFile, start: Head | None, weights: str | None
) -> Mapping[str, Any] | None:
    """Return the tensors of the pretrained network, by name; None where ``start`` has them all."""
    from featx.backbones.network import tensors_for
    from featx.backbones.weights import open_recorded

    spec = BackboneSpec.from_dict(cache.header.spec)
    if start is not None and start.tail and start.cut == spec.cut:
        return None
    return tensors_for(spec, open_recorded(spec, str(cache.header.details["weights"]), weights))


def _header(
    cache: FeatureFile, options: FinetuneOptions, tuned: Tuned, inputs: Mapping[str, Any]
) -> Header:
    more: dict[str, Any] = {}
    if tuned.probe:
        metrics = {split: scores.to_dict() for split, scores in tuned.probe.metrics.items()}
        more["probe"] = {"choice": tuned.probe.choice, "metrics": metrics}
    if tuned.comparison:
        more["comparison"] = asdict(tuned.comparison)
    return head_header(cache, tuned.trained, inputs, class_weight=options.class_weight, more=more)
