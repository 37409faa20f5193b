"""Fixtures that many tests share."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

# As in a pipe, lines are as long as they are; pytest-xdist would have them 80 columns wide.
os.environ.pop("COLUMNS", None)

# Tests run side by side, each worker on one core: threads that wait for each other across workers
# would take many times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})

# Neither reads nor fills the user's own cache; downloaded weights stay where they are.
os.environ.setdefault("TORCH_HOME", str(Path("~/.cache/torch").expanduser()))
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="featx-cache-")

import hypothesis
import numpy as np
import pytest
from PIL import Image

pytest_plugins = ["feature_files", "stores"]

atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)

# The same examples each time, so that a commit passes or fails for good; others are tried by
# `make test-random`.
hypothesis.settings.register_profile(
    "featx",
    deadline=None,
    max_examples=50,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.register_profile(
    "random", hypothesis.settings.get_profile("featx"), derandomize=False
)
hypothesis.settings.load_profile("featx")


@pytest.fixture(autouse=True)
def messages_are_heard_again() -> Iterator[None]:
    """Undo --quiet, which lasts for the process, also after the fixture of a module."""
    log = logging.getLogger("featx")
    log.setLevel(logging.NOTSET)
    yield
    log.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def data() -> Path:
    """The shared test data; skips where it is missing. Mark the test ``real_data``."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("FEATX_DATA", beside))
    if not (folder / "README.md").is_file():
        pytest.skip(f"no test data in '{folder}'; set FEATX_DATA to its folder")
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a folder of small images of various sizes and formats.

    ``photos({"train/ants": 3, "train/bees": 2})`` gives each folder that many images; those of one
    folder share a colour, so that they can be told apart. ``"."`` is the folder itself.
    """

    def write(
        layout: Mapping[str, int] | None = None, *, name: str = "photos", seed: int = 0
    ) -> Path:
        rng = np.random.default_rng(seed)
        root = tmp_path / name
        for folder, count in (layout or {"ants": 6, "bees": 6}).items():
            (root / folder).mkdir(parents=True, exist_ok=True)
            colour = np.random.default_rng(list(Path(folder).name.encode())).integers(0, 256, 3)
            for number in range(count):
                image = Image.fromarray(_photo(rng, colour))
                suffix = ".png" if number % 3 == 2 else ".jpg"
                image.save(root / folder / f"{number:03d}{suffix}")
        return root

    return write


def _photo(rng: np.random.Generator, colour: np.ndarray) -> np.ndarray:
    """Return a gradient with noise, ``(20 to 60, 20 to 60, 3)`` uint8."""
    height, width = rng.integers(20, 60, 2)
    shade = np.linspace(0.5, 1, height)[:, None] * np.linspace(1, 0.6, width)  # (H, W)
    noise = rng.normal(0, 12, (height, width, 3))
    return np.clip(shade[:, :, None] * colour + noise, 0, 255).astype(np.uint8)
