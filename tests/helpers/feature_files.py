"""Small feature files, whole and crafted, and what an extraction of made-up rows needs."""

from __future__ import annotations

import ctypes
import hashlib
import os
import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np
import pytest
from headers import complete_header

from featx.artifact import Header
from featx.errors import ImageError
from featx.extraction.plan import Plan, keep_touched, make_plan
from featx.features.file import verify_features
from featx.features.journal import Journal
from featx.features.publish import ExistingRows, publish_features
from featx.features.records import Batch, RowLayout
from featx.features.skipped import SkippedImage
from featx.images.decode import content_digest
from featx.images.sources import NO_FILE, SPLITS, Sample, Stamp

NUM_ROWS, NUM_FEATURES = 60, 8
CLASSES = ("ant", "bee", "wasp")


class InThisProcess:
    """Stands in for ``start_verifier``'s process: the same function, called in this one.

    A process that imports h5py takes about half a second to start, and hundreds of tests publish.
    Those about the process itself take a real one.
    """

    def __init__(self, _num_bytes: int = 0) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, path: Path) -> None:
        verify_features(path)


verifier = InThisProcess()


def make_columns(
    num_rows: int, *, num_classes: int = len(CLASSES), seed: int = 0
) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    return {
        "labels": generator.integers(-1, num_classes, num_rows),
        "splits": generator.integers(0, 3, num_rows).astype(np.uint8),
        "sample_ids": [f"train/ant/{row:04d}.jpg" for row in range(num_rows)],
        "digests": generator.integers(0, 256, (num_rows, 16)).astype(np.uint8),
        "stamps": generator.integers(0, 2**62, (num_rows, 3)),
    }


def make_header(num_features: int, classes: tuple[str, ...] = CLASSES, **details: Any) -> Header:
    return complete_header(
        "features", {"num_features": num_features}, classes, details, {"python": "3"}
    )


def make_samples(columns: dict[str, Any]) -> list[Sample]:
    groups = columns.get("groups") or [""] * len(columns["sample_ids"])
    return [
        Sample(name, int(label), SPLITS[split], group)
        for name, label, split, group in zip(
            columns["sample_ids"], columns["labels"], columns["splits"], groups, strict=True
        )
    ]


def append_rows(journal: Journal, features: np.ndarray, columns: dict[str, Any], step: int) -> None:
    """Append rows in batches of ``step``."""
    for start in range(0, len(features), step):
        part = slice(start, start + step)
        journal.append(
            Batch(
                sample_ids=tuple(columns["sample_ids"][part]),
                stamps=columns["stamps"][part],
                digests=columns["digests"][part],
                reasons=("",) * len(features[part]),
                features=features[part],
            )
        )


def write_features(
    path: Path,
    features: np.ndarray,
    *,
    header: Header | None = None,
    step: int = 1000,
    dtype: str = "float32",
    overwrite: bool = False,
    verifier: Any = None,
    **columns: Any,
) -> Header:
    """Publish a file; columns that are not given are made up."""
    columns = make_columns(len(features)) | columns
    with Journal(path, layout=RowLayout((features.shape[1],))) as journal:
        journal.begin({"made": "up"})
        append_rows(journal, features, columns, step)
        written = publish_features(
            path,
            header or make_header(features.shape[1]),
            ExistingRows(None, journal),
            samples=make_samples(columns),
            rows=np.arange(len(features)),
            verifier=verifier or InThisProcess(),
            dtype=dtype,
            overwrite=overwrite,
        )
        journal.remove()
    return written


def publish_batch(
    path: Path,
    header: Header,
    samples: Sequence[Sample],
    batch: Batch,
    layout: RowLayout,
    *,
    overwrite: bool = True,
) -> Path:
    """Publish a file whose rows are one batch, in its order."""
    with Journal(path, layout=layout) as journal:
        journal.begin({})
        journal.append(batch)
        publish_features(
            path,
            header,
            ExistingRows(None, journal),
            samples=samples,
            rows=np.arange(len(samples)),
            verifier=InThisProcess(),
            dtype=layout.dtype,
            overwrite=overwrite,
        )
        journal.remove()
    return path


def same_batch(a: Batch, b: Batch) -> bool:
    return (
        (a.sample_ids, a.reasons) == (b.sample_ids, b.reasons)
        and np.array_equal(a.stamps, b.stamps)
        and np.array_equal(a.digests, b.digests)
        and a.features.tobytes() == b.features.tobytes()
    )


def replace_column(path: Path, name: str, **dataset: Any) -> None:
    """Make a column of a file anew, or leave it out."""
    with h5py.File(path, "r+") as file:
        del file[name]
        if dataset:
            file.create_dataset(name, **dataset)


def flip(path: Path, place: int) -> None:
    """Change a bit of the byte at a place."""
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 0x10]))


@pytest.fixture
def values() -> np.ndarray:
    """The features of ``published``, (60, 8) float32."""
    rows = np.random.default_rng(1).normal(size=(NUM_ROWS, NUM_FEATURES))
    return rows.astype(np.float32)


@pytest.fixture
def published(tmp_path: Path, values: np.ndarray) -> Path:
    """A whole feature file, alone in its folder."""
    path = tmp_path / "whole" / "features.h5"
    path.parent.mkdir()
    write_features(path, values)
    return path


def set_header(path: Path, header: Header) -> None:
    """Give a file another header with a right checksum, as an attacker would."""
    with h5py.File(path, "r+") as file:
        del file.attrs["header"]
        file.attrs["header"] = np.bytes_(header.to_json().encode())


def as_version_2(path: Path) -> None:
    """Make of a file what featx wrote before it recorded change times and groups."""
    with h5py.File(path, "r+") as file:
        stamps = file["stamps"][:, :2]
        del file["groups"], file["stamps"]
        file.create_dataset("stamps", data=stamps, chunks=stamps.shape, fletcher32=True)
        text = bytes(file.attrs["header"])
    header = Header.from_json(text, path=path, kind="features")
    sha256 = dict(header.details["sha256"])
    del sha256["groups"]
    sha256["stamps"] = hashlib.sha256(np.ascontiguousarray(stamps).data).hexdigest()
    skipped = [values[:3] for values in header.details["skipped"]]
    details = dict(header.details) | {"sha256": sha256, "skipped": skipped}
    set_header(path, replace(header, schema_version=2, details=details))


def with_details(header: Header, **details: Any) -> Header:
    return replace(header, details=dict(header.details) | details)


def batch_of(
    names: Sequence[str],
    *,
    num_features: int = NUM_FEATURES,
    bad: Sequence[str] = (),
    seed: int = 0,
) -> Batch:
    """Return a maker of batches: ``batch_of(["a", "b"], bad={"b"})`` has one row of two images.

    Everything about an image follows from its name and ``seed``, so that a batch that comes back
    can be compared with one made anew.
    """
    rows = [row_of(name, num_features, seed) for name in names if name not in bad]
    return Batch(
        sample_ids=tuple(names),
        stamps=np.array([stamp_for(name, seed) for name in names], np.int64).reshape(-1, 3),
        digests=np.array(
            [[0] * 16 if name in bad else list(digest_for(name, seed)) for name in names],
            dtype=np.uint8,
        ).reshape(-1, 16),
        reasons=tuple(f"{name} is broken" if name in bad else "" for name in names),
        features=np.array(rows, dtype=np.float32).reshape(-1, num_features),
    )


def digest_for(name: str, seed: int) -> bytes:
    return content_digest(f"{name} {seed}".encode("utf-8", "surrogateescape"))


def row_of(name: str, num_features: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(list(digest_for(name, seed)))
    return generator.normal(size=num_features).astype(np.float32)


def stamp_for(name: str, seed: int) -> Stamp:
    return Stamp(
        len(name), *np.random.default_rng(list(digest_for(name, seed))).integers(1, 9**9, 2)
    )


@dataclass
class FakeSource:
    """A source in memory: ``files`` maps each name to content and stamp, None to nothing at all.

    Content that begins with ``bad`` cannot be used. ``num_read`` counts the files read.
    """

    files: dict[str, tuple[bytes | None, Stamp]]
    labels: dict[str, int]
    classes: tuple[str, ...] = CLASSES
    uri: str = "fake:"
    has_tags: bool = False
    ignored: dict[str, int] = field(default_factory=dict)
    num_read: int = 0

    @property
    def samples(self) -> list[Sample]:
        return [Sample(name, self.labels.get(name, 0), "train") for name in self.files]

    def read(self, index: int) -> bytes:
        self.num_read += 1
        name = list(self.files)[index]
        content = self.files[name][0]
        if content is None:
            raise ImageError(name, "does not exist.")
        return content

    def stamp(self, index: int) -> Stamp:
        content, stamp = list(self.files.values())[index]
        return NO_FILE if content is None else stamp


def fake_source(contents: dict[str, bytes | None], **settings: Any) -> FakeSource:
    """Return a maker of sources: ``fake_source({"a": b"content"})``, stamps made up."""
    files = {
        name: (content, Stamp(len(content or b""), 1000 + i, 2000 + i))
        for i, (name, content) in enumerate(contents.items())
    }
    return FakeSource(files, settings.pop("labels", {}), **settings)


def plan_of(source: FakeSource, known: ExistingRows, **options: Any) -> Plan:
    """Compare a source with all that is known."""
    return make_plan(source, known.images(), known.file, workers=1, **options)


def fill(
    source: FakeSource,
    known: ExistingRows,
    plan: Plan,
    *,
    batch_size: int = 3,
    stop_after: int | None = None,
) -> list[str]:
    """Do what a plan has left, as the extraction stage does; rows follow from the content.

    Returns the names that had to be done. ``stop_after`` so many batches it is interrupted.
    """
    todo = plan.todo().tolist()
    if (todo or len(plan.touched)) and not known.journal.num_images:
        known.journal.begin({"made": "up"})
    keep_touched(plan, source, known)
    names = [source.samples[i].sample_id for i in todo]
    num_features = known.journal.layout.size
    for start in range(0, len(todo), batch_size):
        if stop_after is not None and start >= stop_after * batch_size:
            raise KeyboardInterrupt
        positions = todo[start : start + batch_size]
        stamps = [source.stamp(i) for i in positions]
        reasons, digests, rows = [], [], []
        for i in positions:
            try:
                content = source.read(i)
                reasons.append("it is bad" if content.startswith(b"bad") else "")
                digests.append(list(content_digest(content)))
            except ImageError as err:
                reasons.append(err.reason)
                digests.append([0] * 16)
                continue
            if not reasons[-1]:
                rows.append(feature_of(content, num_features))
        row = known.next_row
        known.journal.append(
            Batch(
                sample_ids=tuple(source.samples[i].sample_id for i in positions),
                stamps=np.array(stamps, dtype=np.int64),
                digests=np.array(digests, dtype=np.uint8),
                reasons=tuple(reasons),
                features=np.array(rows, dtype=np.float32).reshape(-1, num_features),
            )
        )
        for i, stamp, reason, digest in zip(positions, stamps, reasons, digests, strict=True):
            if reason:
                name = source.samples[i].sample_id
                plan.skipped[i] = SkippedImage(name, reason, stamp, bytes(digest))
            else:
                plan.rows[i], row = row, row + 1
    return names


def feature_of(content: bytes, num_features: int) -> np.ndarray:
    generator = np.random.default_rng(list(content_digest(content)))
    return generator.normal(size=num_features).astype(np.float32)


def publish_plan(path: Path, source: FakeSource, known: ExistingRows, plan: Plan) -> Header:
    """Publish what a plan says, with the header that the extraction stage would give it."""
    skipped = [image.to_list() for _, image in sorted(plan.skipped.items())]
    return publish_features(
        path,
        make_header(known.journal.layout.size, source.classes, skipped=skipped),
        known,
        samples=source.samples,
        rows=plan.rows,
        verifier=InThisProcess(),
        overwrite=True,
    )


@contextmanager
def file_size_limit(num_bytes: int) -> Iterator[None]:
    """A disk that refuses bytes beyond a limit: writes fail with EFBIG, as they do when full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def descriptors_in(folder: Path) -> list[str]:
    """Return a function that lists this process's open files in a folder."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            target = str(Path(f"/proc/self/fd/{name}").readlink())
        except OSError:
            continue
        if target.startswith(str(folder)):
            found.append(target)
    return found


@pytest.fixture
def watch() -> Iterator[Callable[[Path], Callable[[], bool]]]:
    """Watch a file through the kernel; the function that comes back says if anyone has opened it
    since it was last asked."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptors: list[int] = []

    def start(path: Path) -> Callable[[], bool]:
        descriptor = libc.inotify_init1(os.O_NONBLOCK)
        if descriptor < 0:
            pytest.skip("no inotify here")
        descriptors.append(descriptor)
        assert libc.inotify_add_watch(descriptor, os.fsencode(path), 0x1 | 0x20) >= 0

        def was_opened() -> bool:
            try:
                return bool(os.read(descriptor, 2**16))
            except BlockingIOError:
                return False

        return was_opened

    yield start
    for descriptor in descriptors:
        os.close(descriptor)
