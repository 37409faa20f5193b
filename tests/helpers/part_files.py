"""Folders of parts without images, and a Ray cluster on this machine."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from feature_files import make_header, write_features

from featx.artifact.parts import part_path
from featx.features.parts import PartsPlan
from featx.features.settle import complete_index


def write_parts(
    folder: Path, features: np.ndarray, labels: np.ndarray, count: int, **columns: Any
) -> Path:
    """Write parts and their index; columns that are not given are made up."""
    folder.mkdir(parents=True)
    plan = PartsPlan(count, len(features), "made up", "0" * 64, "0" * 64, {}, {})
    plan.fix(folder)
    digests = np.random.default_rng(0).integers(0, 256, (len(features), 16)).astype(np.uint8)
    splits = np.where(np.arange(len(features)) % 10 == 9, 2, 0).astype(np.uint8)
    columns = {"labels": labels, "splits": splits, "digests": digests} | columns
    classes = tuple(f"class {number}" for number in range(int(labels.max()) + 1))
    for number in range(1, count + 1):
        first, stop = plan.range(number)
        own = {"number": number, "of": count, "plan": plan.fingerprint, "skipped_at": []}
        write_features(
            part_path(folder, number),
            features[first:stop],
            header=make_header(
                *(features.shape[1], classes),
                **{"part": own, "own_validation": False, "label_kind": "classes"},
            ),
            sample_ids=[f"photos/{row:06d}.jpg" for row in range(first, stop)],
            **{name: values[first:stop] for name, values in columns.items()},
        )
    complete_index(folder)
    return folder


@contextmanager
def ray_cluster(*cpus: int) -> Iterator[Any]:
    """Yield a cluster of nodes with so many CPUs, the first of which is the head.

    Its folder is short: names of sockets have 107 characters at most.
    """
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    place = tempfile.TemporaryDirectory(prefix="fx", dir="/tmp", ignore_cleanup_errors=True)
    with place as name, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", name)
        head = {"num_cpus": cpus[0], "include_dashboard": False, "object_store_memory": 2**27}
        found = Cluster(initialize_head=True, head_node_args=head)
        try:
            for count in cpus[1:]:
                found.add_node(num_cpus=count, object_store_memory=2**27)
            yield found
        finally:
            found.shutdown()
