"""What is decided over all parts: in bounded memory, also of very many images."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featx.features.contents import number_contents

MANY = """
import resource
from types import SimpleNamespace
import numpy as np
from featx.features.settle import _copies
from featx.features.splits import assign_splits

count = 20_000_000
random = np.random.default_rng(0)
digests = [random.integers(0, 2**64, (count, 2), np.uint64).view(np.uint8).reshape(count, 16)]
digests[0][-1000:] = digests[0][:1000]
parts = tuple(SimpleNamespace(num_rows=count // 16) for _ in range(16))
assert _copies(parts, digests[0]).tolist() == [[count - 1000 + i, i] for i in range(1000)]
labels, own = random.integers(0, 100, count), np.zeros(count, np.uint8)
classes = [str(number) for number in range(100)]
splits = assign_splits(digests.pop(), labels, own, classes=classes, fraction=0.2)
assert (splits[:1000] == splits[-1000:]).all()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@given(st.lists(st.binary(min_size=16, max_size=16) | st.sampled_from([b"a" * 16, b"b" * 16])))
def test_contents_are_numbered_by_their_hashes(hashes):
    digests = np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, 16)
    numbers, firsts = number_contents(digests)
    different = sorted(set(hashes))
    assert numbers.tolist() == [different.index(each) for each in hashes]
    assert firsts.tolist() == [hashes.index(each) for each in different]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="measures memory as Linux counts it")
def test_twenty_million_images_are_settled_in_two_gigabytes():
    run = subprocess.run(
        [sys.executable, "-c", MANY], capture_output=True, text=True, check=True, timeout=900
    )
    assert int(run.stdout) <= 2e9
