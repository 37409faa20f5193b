"""Workers, nodes and the machine that commits are killed at random; the file has the same bytes."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

psutil = pytest.importorskip("psutil")

pytestmark = pytest.mark.filterwarnings(  # files that Ray's helper leaves to the end
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)

KILLS = int(os.environ.get("FEATX_KILLS", "6"))
"""60 is what a release is held to; it takes a quarter of an hour."""
NUM_IMAGES = 1200


class Nodes:
    """A cluster whose nodes can be killed and come back."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 2**27}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.nodes = [self.add(), self.add()]
        self.address = str(self.cluster.address)

    def add(self) -> Any:
        return self.cluster.add_node(num_cpus=2, object_store_memory=2**27)

    def workers(self) -> list[Any]:
        """Return the processes of workers on the nodes that are there."""
        found = []
        for node in self.nodes:
            for info in node.all_processes.get("raylet", []):
                with contextlib.suppress(psutil.Error):
                    children = psutil.Process(info.process.pid).children(recursive=True)
                    found += [each for each in children if is_worker(each)]
        return found

    def replace(self, number: int) -> None:
        node = self.nodes[number]
        raylet = node.all_processes["raylet"][0].process
        raylet.kill()
        with contextlib.suppress(Exception):  # part of it is gone already
            self.cluster.remove_node(node, allow_graceful=False)
        self.nodes[number] = self.add()


def is_worker(process: Any) -> bool:
    with contextlib.suppress(psutil.Error):
        return "ray::Worker" in " ".join(process.cmdline())
    return False


@pytest.fixture(scope="module")
def nodes():
    pytest.importorskip("ray")
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory(prefix="fx", dir="/tmp", ignore_cleanup_errors=True) as folder,
    ):
        patch.setenv("RAY_TMPDIR", folder)
        found = Nodes()
        try:
            yield found
        finally:
            found.cluster.shutdown()


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    """Return photos that take a while to decode, each with a content of its own."""
    folder = tmp_path_factory.mktemp("many")
    rng = np.random.default_rng(0)
    small = PIL.Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8))
    for number in range(NUM_IMAGES):
        path = folder / ("ants" if number % 2 else "bees") / f"{number:04d}.jpg"
        path.parent.mkdir(exist_ok=True)
        small.putpixel((number % 40, number // 40), (number % 256, 0, 0))
        small.resize((1600, 1200)).save(path, quality=60)
    return folder


def command(source: Path, output: Path, *more: str) -> list[str]:
    own = (*("extract", str(source), "-b", "tiny"), *("-o", str(output), "--quiet"))
    return [sys.executable, "-m", "featx", *own, *more]


@pytest.mark.slow
def test_whatever_is_killed_the_file_has_the_same_bytes(nodes, many, tmp_path):
    plain, output = tmp_path / "plain.h5", tmp_path / "own.h5"
    subprocess.run(command(many, plain), check=True)
    rng, killed, start = random.Random(7), dict.fromkeys(("worker", "node", "driver"), 0), 0.0
    driver: subprocess.Popen[bytes] | None = None
    left, tries, is_made = KILLS, 0, False
    while left or not is_made:
        if driver is None:
            more = ["--ray", nodes.address] + (["--restart"] if is_made else [])
            is_made = False
            driver, start = subprocess.Popen(command(many, output, *more)), time.monotonic()
            tries += 1
            assert tries < 4 * KILLS + 10
        time.sleep(rng.uniform(0.2, 3.0))
        if driver.poll() is not None:
            assert driver.returncode == 0, killed
            assert output.read_bytes() == plain.read_bytes(), killed
            driver, is_made = None, True
        elif left and time.monotonic() - start > 5:
            what = rng.choice(list(killed))
            if what == "driver":
                driver.kill()
                driver.wait()
                driver = None
            elif what == "node":
                nodes.replace(rng.randrange(2))
            elif workers := nodes.workers():
                rng.choice(workers).kill()
            else:
                continue
            killed[what] += 1
            left -= 1
    assert output.read_bytes() == plain.read_bytes()
    assert sum(killed.values()) == KILLS


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_no_worker_outlives_the_driver(nodes, many, tmp_path, how):
    driver = subprocess.Popen(command(many, tmp_path / "f.h5", "--ray", nodes.address))
    end = time.monotonic() + 120
    while not nodes.workers():
        assert driver.poll() is None
        assert time.monotonic() < end
        time.sleep(0.2)
    driver.send_signal(how)
    driver.wait(timeout=60)
    end = time.monotonic() + 60
    while nodes.workers():
        assert time.monotonic() < end, "workers are still there after 60 s"
        time.sleep(0.5)
