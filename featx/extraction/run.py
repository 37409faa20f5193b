"""One output of an extraction: what it lacks, the rows to make, the file to publish."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass, field, replace
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from featx import system
from featx.artifact import Header
from featx.backbones.engines import Engine
from featx.backbones.spec import INPUT, BackboneSpec
from featx.extraction.backbone import LazyBackbone, RemoteEngine
from featx.extraction.bad_images import (
    bad_images,
    report_bad,
    too_many_are_bad,
    warn_of_temporary,
)
from featx.extraction.crops import Decoders
from featx.extraction.options import ExtractReport, ResolvedOptions
from featx.extraction.pipeline import Extracted, Target, run_backbone, start_decoders, work_for
from featx.extraction.plan import (
    Plan,
    is_current,
    keep_touched,
    make_plan,
    num_relabelled,
    require_views,
)
from featx.extraction.resume import Settings
from featx.extraction.space import log_size, require_space
from featx.extraction.splitting import Splitting
from featx.features.publish import (
    ExistingRows,
    publish_features,
    required_bytes,
    start_verifier,
)
from featx.images.sources import SPLITS, ImageSource
from featx.images.sources.sample import list_digest
from featx.isolation.call import IsolatedCall

log = logging.getLogger(__name__)

_TRAIN = SPLITS.index("train")
Progress = Callable[[int, int], None]
"""Called with how many are done and the number of all."""


@dataclass
class OutputRun:
    """A run with settled options for one output: ``begin``, then ``finish``.

    In between, ``fill`` may make rows of several outputs at once.
    """

    output: Path
    images: ImageSource
    options: ResolvedOptions
    settings: Settings
    existing: ExistingRows
    backbone: LazyBackbone
    splitting: Splitting
    retry_skipped: bool
    part_details: Callable[[Iterable[int]], dict[str, Any]] | None = None
    """Of a part: what its header says besides, given the positions of skipped images."""
    plan: Plan = field(init=False)
    may_train: np.ndarray = field(init=False)
    """Which samples may train, ``(N,)`` bool."""
    _before: Plan = field(init=False)
    _is_unchanged: bool = field(init=False)
    _extracted: list[Extracted] = field(default_factory=list, init=False)

    def begin(self) -> None:
        """Find out what is missing."""
        file, journal, options = self.existing.file, self.existing.journal, self.options
        begun = journal.settings or {}
        if journal.num_images and begun.get("sample_ids_sha256") != list_digest(
            self.images.samples
        ):
            log.info("The list of images has changed since the unfinished extraction was begun.")
        plan = self.plan = make_plan(
            self.images,
            self.existing.images(),
            file,
            verify_content=options.verify_content,
            retry_skipped=self.retry_skipped,
            workers=options.workers,
        )
        self._before = replace(plan, rows=plan.rows.copy())
        self.may_train = self._require_views(plan)
        self._is_unchanged = (
            file is not None
            and self._is_noted_in(file.header)
            and is_current(file, plan, self.images.samples, self.images.classes)
            and self.splitting.is_current(file, plan.rows)
        )

    def finish(self, progress: Progress | None) -> ExtractReport:
        """Compute what is missing, publish if anything changed, and report."""
        file, plan, count = self.existing.file, self.plan, len(self.images.samples)
        _, num_bytes = required_bytes(self.settings.layout, count, int(self.may_train.sum()))
        with nullcontext() if self._is_unchanged else start_verifier(num_bytes) as verifier:
            self._fill(self.may_train, progress)
            self.report_bad()
            warn_of_temporary(plan)
            if verifier:
                digests, splits = self._split(plan, progress)
                self.splitting.warn_of_labels(plan.rows, digests, splits)
                self._publish(plan, splits, verifier)
            elif file:
                splits = self.splitting.own.copy()
                splits[plan.rows >= 0] = file.splits
        return self._report(splits)

    def report_bad(self) -> None:
        report_bad(self.plan, self.images, self.output, self.options)

    def _require_views(self, plan: Plan) -> np.ndarray:
        """Return which samples may train, ``(N,)`` bool; with views, leave rows without to be done.

        Rows there are keep their split mostly; images without a row may become training images.
        """
        may_train = np.asarray(self.splitting.own == _TRAIN)
        kept = np.flatnonzero((plan.rows >= 0) & may_train)
        if self.settings.views is None or self.existing.has_views[plan.rows[kept]].all():
            return may_train
        splits = self.splitting.splits(plan.rows, self.existing.digests())
        may_train[kept] = splits[kept] == _TRAIN
        require_views(plan, self.images, self.existing, may_train)
        return may_train

    def _split(self, plan: Plan, progress: Progress | None) -> tuple[np.ndarray, np.ndarray]:
        """Return the content hash of each row and the split of each sample.

        New images may make training images of others; those get their views now.
        """
        while True:
            digests = self.existing.digests()
            splits = self.splitting.splits(plan.rows, digests)
            kept = np.flatnonzero((plan.rows >= 0) & (splits == _TRAIN))
            if self.settings.views is None or self.existing.has_views[plan.rows[kept]].all():
                return digests, splits
            require_views(plan, self.images, self.existing, splits == _TRAIN)
            self._fill(splits == _TRAIN, progress)
            self.report_bad()

    def _is_noted_in(self, header: Header) -> bool:
        """Return whether a header has all that the next update needs; old ones have less."""
        settings = self.settings
        noted = {name: getattr(settings, name) for name in ("source", "weights", "max_pixels")}
        noted |= self.options.handling
        return all(header.details.get(name, value) == value for name, value in noted.items())

    def _fill(self, with_views: np.ndarray, progress: Progress | None) -> None:
        """Bring the journal to where the plan has nothing left to do."""
        todo = self.plan.todo()
        if len(todo):
            fill([self], todo, self.backbone.engine, with_views=with_views, progress=progress)
        elif len(self.plan.touched):
            self.open_journal()

    def open_journal(self) -> None:
        """Have the journal begun, and the rows of files that look changed in it."""
        if not self.existing.journal.num_images:
            self.existing.journal.begin(self._record())
        keep_touched(self.plan, self.images, self.existing)

    def require_space(self, todo: np.ndarray, with_views: np.ndarray) -> None:
        """Check that the disk holds the rows to be made, where they are large."""
        if self.settings.spec.cut is None and self.settings.views is None:
            return
        counts = len(self.plan.rows), int(with_views.sum())
        log_size(self.settings, *counts)
        require_space(
            self.output,
            self.settings,
            todo=(len(todo), int(with_views[todo].sum())),
            all_images=counts,
        )

    def add(self, extracted: Extracted) -> None:
        """Note rows that were made."""
        self._extracted.append(extracted)

    def _report(self, splits: np.ndarray) -> ExtractReport:
        plan, before, made = self.plan, self._before, self._extracted
        samples, kept = self.images.samples, np.flatnonzero(plan.rows >= 0)
        file, num_in_file = self.existing.file, self.existing.num_in_file
        was_in_file = (before.rows >= 0) & (before.rows < num_in_file)  # views may be new
        others = (plan.rows >= num_in_file) & ~was_in_file
        others[before.touched] = False
        names_in_file = set(file.sample_ids) if file else set()
        num_changed = sum(
            sample.sample_id in names_in_file for sample in compress(samples, others) if file
        )
        sizes = np.bincount(splits[kept], minlength=len(SPLITS)).tolist()
        return ExtractReport(
            path=self.output,
            spec=self.settings.spec,
            classes=self.images.classes,
            split_sizes={name: size for name, size in zip(SPLITS, sizes, strict=True) if size},
            num_unlabelled=sum(sample.label < 0 for sample in compress(samples, plan.rows >= 0)),
            ignored=self.images.ignored,
            skipped=bad_images(plan),
            dtype=self.settings.dtype,
            views=self.settings.view_spec,
            num_viewed=int((splits[kept] == _TRAIN).sum()) if self.settings.views else 0,
            num_extracted=sum(part.num_rows for part in made),
            num_resumed=int((before.rows >= num_in_file).sum()),
            num_new=int(others.sum()) - num_changed if file else 0,
            num_changed=num_changed,
            num_removed=plan.num_removed,
            num_relabelled=(
                num_relabelled(file, before.rows, samples, self.images.classes, splits=splits)
                if file
                else 0
            ),
            num_duplicates=sum(part.num_duplicates for part in made),
            num_animated=sum(part.num_animated for part in made),
            is_unchanged=self._is_unchanged,
            seconds=0.0,
            device=self.backbone.device,
            engine=self.backbone.engine_name,
            profile=made[0].profile if made else None,
        )

    def _environment(self) -> dict[str, str]:
        """Return that of this run, or of the existing rows where no backbone ran."""
        if self.backbone.device is None:
            return dict(self.settings.environment)
        return self.backbone.environment()

    def _record(self) -> dict[str, Any]:
        """Return the first record of a journal."""
        return {
            "settings": replace(self.settings, environment=self._environment()).to_dict(),
            "handling": self.options.handling,
            "num_samples": len(self.images.samples),
            "sample_ids_sha256": list_digest(self.images.samples),
        }

    def _publish(self, plan: Plan, splits: np.ndarray, verifier: IsolatedCall) -> None:
        header = Header(
            kind="features",
            spec=self.settings.spec.to_dict(),
            classes=self.images.classes,
            details={
                "source": self.settings.source,
                **self.settings.origin_details,
                "request": self.settings.request,
                "dtype": self.settings.dtype,
                **({"views": self.settings.views} if self.settings.views else {}),
                "max_pixels": self.settings.max_pixels,
                "splits": list(SPLITS),
                **self.options.handling,
                "own_validation": self.splitting.own_validation,
                "label_kind": "tags" if self.images.has_tags else "classes",
                "ignored": dict(self.images.ignored),
                "skipped": [image.to_list() for _, image in sorted(plan.skipped.items())],
                **(self.part_details(plan.skipped) if self.part_details else {}),
            },
            environment=self._environment(),
        )
        publish_features(
            self.output,
            header,
            self.existing,
            samples=self.images.samples,
            splits=splits,
            rows=plan.rows,
            verifier=verifier,
            dtype=self.options.dtype,
            overwrite=True,
        )


def fill(
    runs: Sequence[OutputRun],
    todo: np.ndarray,
    make_engine: Callable[[BackboneSpec], Engine],
    *,
    with_views: np.ndarray,
    progress: Progress | None,
) -> None:
    """Make rows for one output, or for several at once.

    Args:
        runs: Begun; of several only layers differ.
        todo: Positions of the samples, ascending, int64; each run has them to be done.
        make_engine: Gives the engine, which has the runs' rows side by side.
        with_views: Which samples are to have views, ``(N,)`` bool.
        progress: As of an extraction.
    """
    run, left = runs[0], len(todo)
    for each in runs:
        each.require_space(todo, with_views)
    decoders: Decoders | None = None
    if run.backbone.is_for_gpu() and system.can_pass_files():
        decoders = start_decoders(left, run.settings.spec.preprocess, run.options)
    targets = [Target(each.existing, each.plan) for each in runs]
    with ExitStack() as stack:
        if decoders:
            stack.enter_context(closing(decoders))
        engine, cluster = make_engine(run.settings.spec), None
        if isinstance(engine, RemoteEngine):
            from featx.extraction.cluster import opened

            work = work_for(engine, targets, run.settings, run.options)
            note = getattr(progress, "note", None)
            place = opened(run.images, todo, run.settings.spec, work, engine, note=note)
            cluster = stack.enter_context(place)
            run.backbone.kinds = cluster.kinds
        for each in runs:
            each.open_journal()
        scheme, _, seed = run.settings.weights.partition(":")
        if scheme == "random" and run.settings.spec.cut != INPUT:
            log.warning(
                "Random weights (seed %s): features are a baseline, not a pretrained one.", seed
            )

        def after_batch(num_images: int) -> None:
            nonlocal left
            left -= num_images
            if too_many_are_bad(run.plan, run.options):
                run.report_bad()
            if progress:
                progress(len(run.plan.rows) - left, len(run.plan.rows))

        extracted = run_backbone(
            engine,
            run.images,
            targets,
            todo,
            settings=run.settings,
            options=run.options,
            decoders=decoders,
            with_views=with_views,
            after_batch=after_batch,
            cluster=cluster,
        )
    for each in runs:
        each.add(extracted)
