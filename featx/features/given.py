"""Feature files of rows that a caller has: in memory alone, or published."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from featx.artifact import Header
from featx.features.file import TRAIN, FeatureFile
from featx.features.journal import Journal
from featx.features.publish import ExistingRows, publish_features, start_verifier
from featx.features.records import Batch, RowLayout
from featx.images.decode import DIGEST_BYTES
from featx.images.sources import SPLITS, UNKNOWN_TIME, Sample

_AT_ONCE = 4096


def in_memory(
    name: str,
    header: Header,
    features: np.ndarray,
    *,
    labels: np.ndarray,
    digests: Sequence[bytes],
) -> FeatureFile:
    """Return training rows as a feature file that is on no disk.

    Args:
        name: Of the rows in messages.
        header: Spec, classes, and the details that training reads.
        features: ``(N, num_features)`` float32.
        labels: Index into the header's classes, ``(N,)`` int64.
        digests: Content hash of each image.
    """
    count = len(features)
    file = FeatureFile(
        path=Path(name),
        header=header,
        labels=labels,
        splits=np.full(count, TRAIN, np.uint8),
        sample_ids=tuple(f"image {row}" for row in range(count)),
        digests=_digests(digests),
        stamps=np.full((count, 3), UNKNOWN_TIME, np.int64),
        groups=np.full(count, -1, np.int64),
    )
    vars(file)["features"] = features  # what is else read when it is first asked for
    return file


def publish_rows(
    path: Path,
    header: Header,
    features: np.ndarray,
    *,
    labels: np.ndarray,
    digests: Sequence[bytes],
    sample_ids: Sequence[str],
) -> None:
    """Write training rows to a new feature file.

    Args:
        path: Where to.
        header: All but row count and checksums.
        features: ``(N, num_features)`` float32.
        labels: Index into the header's classes, ``(N,)`` int64.
        digests: Content hash of each image.
        sample_ids: Name of each image, each once.
    """
    names, stored = list(sample_ids), _digests(digests)
    samples = [
        Sample(name, int(label), SPLITS[TRAIN]) for name, label in zip(names, labels, strict=True)
    ]
    with Journal(path, layout=RowLayout((features.shape[1],))) as journal:
        journal.begin({})
        for start in range(0, len(features), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            count = len(names[part])
            stamps = np.full((count, 3), UNKNOWN_TIME, np.int64)
            batch = Batch(tuple(names[part]), stamps, stored[part], ("",) * count, features[part])
            journal.append(batch)
        rows = np.arange(len(features))
        with start_verifier(features.nbytes) as verifier:
            publish_features(
                path,
                header,
                ExistingRows(None, journal),
                samples=samples,
                rows=rows,
                verifier=verifier,
            )
        journal.remove()


def _digests(digests: Sequence[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST_BYTES)
