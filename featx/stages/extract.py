"""Extract features: lock the output, compare, compute what is missing, publish."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from featx.artifact import Header
from featx.backbones.engines import Engine
from featx.backbones.spec import INPUT
from featx.errors import SourceError, counted
from featx.extraction.backbone import LazyBackbone
from featx.extraction.bad_images import (
    bad_images,
    report_bad,
    require_own_files,
    require_report_path,
    too_many_are_bad,
    warn_of_temporary,
)
from featx.extraction.crops import Decoders
from featx.extraction.options import ExtractOptions, ExtractReport, ResolvedOptions
from featx.extraction.pipeline import Extracted, run_backbone, start_decoders
from featx.extraction.plan import (
    Plan,
    is_current,
    keep_touched,
    make_plan,
    num_relabelled,
    require_views,
)
from featx.extraction.resume import Settings, find_existing, recorded_source, settle
from featx.extraction.space import log_size, require_space
from featx.extraction.splitting import Splitting, brings_validation
from featx.features.journal import Journal
from featx.features.lock import locked
from featx.features.publish import (
    ExistingRows,
    publish_features,
    required_bytes,
    start_verifier,
)
from featx.images.sources import (
    SPLITS,
    ImageSource,
    open_source,
    warn_of_odd_classes,
    warn_of_split_groups,
)
from featx.isolation.call import IsolatedCall

log = logging.getLogger(__name__)

_TRAIN = SPLITS.index("train")
Progress = Callable[[int, int], None]
"""Called with how many are done and the number of all."""


def extract(
    source: str | Path | None,
    output: str | Path,
    options: ExtractOptions | None = None,
    *,
    progress: Progress | None = None,
    download_progress: Progress | None = None,
) -> ExtractReport:
    """Write the features of a source's images to an HDF5 file, or bring that file up to date.

    Rows there are already, in the file or in the journal of an unfinished extraction, are kept
    where image and settings are the same. Whatever ends a run, the next one resumes from there.
    Options that are not given are those that the file was made with.

    Args:
        source: Folder, ``.zip`` or ``.tar``, ``.csv`` or ``.tsv`` manifest, ``cifar10:FOLDER`` or
            ``digits:``; None takes the one that the output was made from.
        output: The feature file.
        options: Backbone, preprocessing and the rest.
        progress: Called after each batch, with images.
        download_progress: Called while weights are downloaded, with bytes.

    Raises:
        SourceError: The source is missing, empty or malformed; or a process that decodes images
            does not start, or is gone.
        BadImages: Images cannot be used (with ``on_error="skip"``: more than ``max_bad`` of them);
            what was made of the others is kept.
        BackboneError: Backbone or weights cannot be used, or give NaN or infinite features.
        ConfigError: An option does not fit.
        ArtifactBusy: Another process is writing the output.
        ArtifactMismatch: The output, or an unfinished extraction, was made with other settings.
        ArtifactError: The output is something else, or cannot be written.
    """
    given, output = options or ExtractOptions(), Path(output)
    images = _open_source(source, output)  # nothing is made before it is accepted
    require_own_files(images.uri, output, given)
    with locked(output):
        existing = find_existing(output, given)
        options = existing.resolve(given)
        if options.report:
            require_report_path(options.report)
        splitting = Splitting.of(images, existing.file, given, options)
        options = replace(options, val_fraction=splitting.fraction)
        start, backbone = time.perf_counter(), LazyBackbone(options, download_progress)
        settings = settle(options, images, existing.settings, backbone)
        file = existing.file_for(settings, options)
        with Journal(output, layout=settings.layout) as journal:
            if options.restart or not (journal.num_rows or existing.has_journal_for(settings)):
                journal.begin({})  # a journal of bad images alone blocks no other settings
            existing.require_journal_for(settings, journal.num_images)
            rows = ExistingRows(file, journal)
            retry = existing.had_lower_limit(settings)
            run = _Run(output, images, options, settings, rows, backbone, splitting, retry)
            try:
                report = run.finish(progress)
            except KeyboardInterrupt as stop:
                if journal.num_images:
                    stop.add_note(
                        f"{counted(journal.num_images, 'image is', 'images are')} kept in "
                        f"'{journal.path}'; run the same command again to resume."
                    )
                raise
            journal.remove()
    return replace(report, seconds=time.perf_counter() - start - backbone.seconds)


def _open_source(source: str | Path | None, output: Path) -> ImageSource:
    if source is not None:
        return open_source(str(source), output=output)
    recorded = recorded_source(output)
    try:
        return open_source(recorded, output=output)
    except SourceError as err:
        raise SourceError(
            f"{err} '{output}' was made from it. If the images were moved, give their new place, "
            "with verify_content=True."
        ) from err


@dataclass(frozen=True)
class _Run:
    """A run with settled options."""

    output: Path
    images: ImageSource
    options: ResolvedOptions
    settings: Settings
    existing: ExistingRows
    backbone: LazyBackbone
    splitting: Splitting
    retry_skipped: bool

    def finish(self, progress: Progress | None) -> ExtractReport:
        """Compute what is missing, publish if anything changed, and report."""
        file, journal, options = self.existing.file, self.existing.journal, self.options
        samples = self.images.samples
        warn_of_odd_classes(
            self.images.uri, self.images.classes, samples, has_tags=self.images.has_tags
        )
        warn_of_split_groups(self.images.uri, samples)
        begun = journal.settings or {}
        if journal.num_images and begun.get("sample_ids_sha256") != self._list_digest():
            log.info("The list of images has changed since the unfinished extraction was begun.")
        plan = make_plan(
            self.images,
            self.existing.images(),
            file,
            verify_content=options.verify_content,
            retry_skipped=self.retry_skipped,
            workers=options.workers,
        )
        before = replace(plan, rows=plan.rows.copy())
        may_train = self._require_views(plan)
        is_unchanged = (
            file is not None
            and self._is_noted_in(file.header)
            and is_current(file, plan, samples, self.images.classes)
            and self.splitting.is_current(file, plan.rows)
        )
        _, num_bytes = required_bytes(self.settings.layout, len(samples), int(may_train.sum()))
        with nullcontext() if is_unchanged else start_verifier(num_bytes) as verifier:
            extracted = self._fill(plan, may_train, progress)
            report_bad(plan, self.images, self.output, options)
            warn_of_temporary(plan)
            if verifier:
                digests, splits = self._split(plan, progress)
                self.splitting.warn_of_labels(plan.rows, digests, splits)
                self._publish(plan, splits, verifier)
            elif file:
                splits = self.splitting.own.copy()
                splits[plan.rows >= 0] = file.splits
        return self._report(plan, before, splits, extracted, is_unchanged=is_unchanged)

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
            self._fill(plan, splits == _TRAIN, progress)
            report_bad(plan, self.images, self.output, self.options)

    def _is_noted_in(self, header: Header) -> bool:
        """Return whether a header has all that the next update needs; old ones have less."""
        settings = self.settings
        noted = {name: getattr(settings, name) for name in ("source", "weights", "max_pixels")}
        noted |= self.options.handling
        return all(header.details.get(name, value) == value for name, value in noted.items())

    def _fill(
        self, plan: Plan, with_views: np.ndarray, progress: Progress | None
    ) -> Extracted | None:
        """Bring the journal to where the plan has nothing left to do."""
        journal, left = self.existing.journal, len(plan.todo())
        if not left and not len(plan.touched):
            return None
        if left and (self.settings.spec.cut or self.settings.views):
            self._require_space(plan, with_views)
        decoders = None
        if left and self.backbone.is_for_gpu():
            decoders = start_decoders(left, self.settings.spec.preprocess, self.options)
        with closing(decoders) if decoders else nullcontext():
            engine = self.backbone.engine(self.settings.spec) if left else None
            if not journal.num_images:
                journal.begin(self._record())
            keep_touched(plan, self.images, self.existing)
            return self._extract(plan, engine, decoders, with_views, progress) if engine else None

    def _require_space(self, plan: Plan, with_views: np.ndarray) -> None:
        counts = len(plan.rows), int(with_views.sum())
        todo = plan.todo()
        log_size(self.settings, *counts)
        require_space(
            self.output,
            self.settings,
            todo=(len(todo), int(with_views[todo].sum())),
            all_images=counts,
        )

    def _extract(
        self,
        plan: Plan,
        engine: Engine,
        decoders: Decoders | None,
        with_views: np.ndarray,
        progress: Progress | None,
    ) -> Extracted:
        left = len(plan.todo())
        scheme, _, seed = self.settings.weights.partition(":")
        if scheme == "random" and self.settings.spec.cut != INPUT:
            log.warning(
                "Random weights (seed %s): features are a baseline, not a pretrained one.", seed
            )

        def after_batch(num_images: int) -> None:
            nonlocal left
            left -= num_images
            if too_many_are_bad(plan, self.options):
                report_bad(plan, self.images, self.output, self.options)
            if progress:
                progress(len(plan.rows) - left, len(plan.rows))

        return run_backbone(
            engine,
            self.images,
            self.existing,
            plan,
            settings=self.settings,
            options=self.options,
            decoders=decoders,
            with_views=with_views,
            after_batch=after_batch,
        )

    def _report(
        self,
        plan: Plan,
        before: Plan,
        splits: np.ndarray,
        extracted: Extracted | None,
        *,
        is_unchanged: bool,
    ) -> ExtractReport:
        samples, kept = self.images.samples, np.flatnonzero(plan.rows >= 0)
        file, num_in_file = self.existing.file, self.existing.num_in_file
        was_in_file = (before.rows >= 0) & (before.rows < num_in_file)  # views may be new
        others = set(np.flatnonzero((plan.rows >= num_in_file) & ~was_in_file).tolist())
        others -= set(before.touched.tolist())
        names_in_file = set(file.sample_ids) if file else set()
        num_changed = sum(samples[i].sample_id in names_in_file for i in others)
        sizes = np.bincount(splits[kept], minlength=len(SPLITS)).tolist()
        return ExtractReport(
            path=self.output,
            spec=self.settings.spec,
            classes=self.images.classes,
            split_sizes={name: size for name, size in zip(SPLITS, sizes, strict=True) if size},
            num_unlabelled=sum(samples[i].label < 0 for i in kept.tolist()),
            ignored=self.images.ignored,
            skipped=bad_images(plan),
            dtype=self.settings.dtype,
            views=self.settings.view_spec,
            num_viewed=int((splits[kept] == _TRAIN).sum()) if self.settings.views else 0,
            num_extracted=extracted.num_rows if extracted else 0,
            num_resumed=int((before.rows >= num_in_file).sum()),
            num_new=len(others) - num_changed if file else 0,
            num_changed=num_changed,
            num_removed=plan.num_removed,
            num_relabelled=(
                num_relabelled(file, before.rows, samples, self.images.classes, splits=splits)
                if file
                else 0
            ),
            num_duplicates=extracted.num_duplicates if extracted else 0,
            num_animated=extracted.num_animated if extracted else 0,
            is_unchanged=is_unchanged,
            seconds=0.0,
            device=self.backbone.device,
            engine=self.backbone.engine_name,
            profile=extracted.profile if extracted else None,
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
            "sample_ids_sha256": self._list_digest(),
        }

    def _list_digest(self) -> str:
        digest = hashlib.sha256()
        for sample in self.images.samples:
            digest.update(sample.sample_id.encode("utf-8", "surrogateescape") + b"\0")
        return digest.hexdigest()

    def _publish(self, plan: Plan, splits: np.ndarray, verifier: IsolatedCall) -> None:
        header = Header(
            kind="features",
            spec=self.settings.spec.to_dict(),
            classes=self.images.classes,
            details={
                "source": self.settings.source,
                "weights": self.settings.weights,
                "request": self.settings.request,
                "dtype": self.settings.dtype,
                **({"views": self.settings.views} if self.settings.views else {}),
                "max_pixels": self.settings.max_pixels,
                "splits": list(SPLITS),
                **self.options.handling,
                "own_validation": brings_validation(self.splitting.own),
                "label_kind": "tags" if self.images.has_tags else "classes",
                "ignored": dict(self.images.ignored),
                "skipped": [image.to_list() for _, image in sorted(plan.skipped.items())],
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
