"""Features and heads that ``featx compare`` makes of a source, as far as they are missing."""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from featx.cli import options
from featx.cli.extract import extract_layers_to, extract_to
from featx.cli.output import step_status
from featx.cli.run import train_to

if TYPE_CHECKING:
    from featx.extraction.options import ExtractReport
    from featx.stages.compare import Timing
    from featx.stages.finetune import FinetuneReport
    from featx.stages.train import TrainReport


_EPOCH = ", an epoch"


class Row(NamedTuple):
    """A row of the comparison: where the network is cut, and what is behind starts from.

    Where several backbones, layers or image sizes are compared, ``backbone`` is one of them.
    """

    cut: str
    scratch: bool = False
    backbone: str | None = None
    layer: str | None = None
    image_size: int | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """Options of the extraction."""
        own = {"cut": self.cut, "backbone": self.backbone, "image_size": self.image_size}
        if self.layer:
            own |= {"cut": None, "layer": None if self.layer == "penultimate" else self.layer}
        return {name: value for name, value in own.items() if value is not None}

    def features(self, folder: Path) -> Path:
        if self.backbone is None:
            return folder / options.features_path(self.cut).name
        size = f"{self.image_size}px" if self.image_size else None
        cut = None if self.cut == "penultimate" else self.cut
        parts = (part for part in (self.backbone, size, self.layer or cut) if part)
        return folder / options.path_of(options.FEATURES, *parts).name

    def head(self, folder: Path) -> Path:
        if self.scratch:
            return folder / "scratch.safetensors"
        kind = "head" if self.cut == "penultimate" else "tuned"
        name = self.features(folder).stem.replace("features", kind, 1)
        return folder / f"{name}.safetensors"


def rows_of(files: Sequence[str], given: dict[str, Any]) -> list[Row]:
    """Return the rows to compare, whose options are taken out of those given.

    Raises:
        click.UsageError: They are not several of one source.
    """
    from featx.artifact import is_own

    cuts, scratch = given.pop("cuts", ()), given.pop("scratch", False)
    several = [given.pop(name, ()) for name in ("backbone", "layer", "image_size")]
    for file in files:
        kind = next((kind for kind in ("head", "features") if is_own(Path(file), kind)), None)
        if kind or len(files) > 1:
            found = f"'{file}' is a {kind} file." if kind else f"there are {len(files)}."
            raise click.UsageError(
                "--cut, --backbone and other options of a SOURCE need one SOURCE of images; "
                f"{found}"
            )
    if several[1] and cuts:
        raise click.UsageError("--layer and --cut exclude each other.")
    if all(len(values) < 2 for values in several) and not several[1]:
        names = ("backbone", "layer", "image_size")
        given |= {name: own[0] for name, own in zip(names, several, strict=True) if own}
        rows = [*map(Row, dict.fromkeys(cuts)), *([Row("input", scratch=True)] if scratch else [])]
    else:
        if scratch:
            raise click.UsageError("--scratch is compared with the cuts of one backbone.")
        rows = _product(cuts, *several)
    if len(rows) < 2:
        raise click.UsageError(
            "A SOURCE needs two or more of --backbone, --layer, --image-size, --cut NAME or "
            "--scratch to compare; --cut penultimate is the head alone."
        )
    return rows


def _product(
    cuts: Sequence[str], backbones: Sequence[str], layers: Sequence[str], sizes: Sequence[int]
) -> list[Row]:
    """Return every combination, each once."""
    from featx.backbones.table import require_backbone
    from featx.extraction.options import ResolvedOptions

    names = [require_backbone(name) for name in backbones] or [ResolvedOptions.backbone]
    rows = (
        Row(cut, backbone=name, layer=layer, image_size=size)
        for name in names
        for size in (*sizes,) or (None,)
        for layer in (*layers,) or (None,)
        for cut in cuts or ("penultimate",)
    )
    return list(dict.fromkeys(rows))


class Maker:
    """Makes the missing files of a comparison, and records the seconds that each took.

    Those of earlier runs are kept in ``seconds.json``.
    """

    def __init__(
        self,
        source: str | None,
        folder: Path,
        extraction: Mapping[str, Any],
        training: Mapping[str, Any],
        *,
        quiet: bool,
    ) -> None:
        self._source, self._folder, self._quiet = source, folder, quiet
        self._extraction, self._training = dict(extraction), dict(training)
        self._device = self._extraction.get("device", "auto")
        self._notes = folder / "seconds.json"
        self._seconds: dict[str, float] = {}
        with suppress(OSError, ValueError, TypeError, AttributeError):
            known = json.loads(self._notes.read_text())
            self._seconds = {name: float(seconds) for name, seconds in known.items()}

    def make(self, rows: Sequence[Row]) -> dict[Path, Timing]:
        """Extract and train, as far as needed; return the seconds of both, for each head.

        Rows of which only layers differ are extracted together.
        """
        from featx.stages.compare import Timing

        timings = {}
        for _, group in itertools.groupby(rows, lambda row: row._replace(layer=None)):
            together = list(group)
            self._extract(together)
            for row in together:
                features, head = row.features(self._folder), row.head(self._folder)
                self._train(row, features, head)
                names = (features.name, head.name, head.name + _EPOCH)
                timings[head] = Timing(*map(self._seconds.get, names))
        return timings

    def _extract(self, rows: Sequence[Row]) -> None:
        paths = [row.features(self._folder) for row in rows]
        settings = self._extraction | rows[0].settings
        made: tuple[ExtractReport, ...]
        if len(rows) == 1:
            made = (extract_to(paths[0], self._source, settings, quiet=self._quiet),)
        else:
            settings.pop("layer", None)
            outputs = {str(row.layer): path for row, path in zip(rows, paths, strict=True)}
            made = extract_layers_to(outputs, self._source, settings, quiet=self._quiet)
        for path, report in zip(paths, made, strict=True):
            self._note(path, report, is_whole=not (report.num_resumed or report.changes))

    def _train(self, row: Row, features: Path, head: Path) -> None:
        own = {"scratch": row.scratch, "device": self._device}
        tuned = row.cut != "penultimate"
        chosen = self._training | own if tuned else dict(self._training)
        if not tuned:
            chosen.pop("max_epochs", None)
        epochs: list[float] = []
        with step_status(quiet=self._quiet) as tell:
            trained = train_to(features, head, chosen, tuned=tuned, tell=tell, epochs=epochs)
        epoch = statistics.median(epochs) if epochs else None
        is_whole = not getattr(trained, "is_resumed", False)
        self._note(head, trained, is_whole=is_whole, epoch=epoch)

    def _note(
        self,
        path: Path,
        report: ExtractReport | TrainReport | FinetuneReport,
        *,
        is_whole: bool,
        epoch: float | None = None,
    ) -> None:
        """Keep the seconds of a file that was made in this run; of a part they say nothing."""
        from featx.artifact import publish

        if report.is_unchanged:
            return
        taken = {path.name: report.seconds if is_whole else None, path.name + _EPOCH: epoch}
        self._seconds = {name: own for name, own in self._seconds.items() if name not in taken}
        self._seconds |= {name: own for name, own in taken.items() if own is not None}
        publish(self._notes, json.dumps(self._seconds, indent=2) + "\n", overwrite=True)
