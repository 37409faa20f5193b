"""featx, and the ceilings of its engines: what benchmarks/extraction.py starts.

    python benchmarks/ours.py VARIANT SOURCE BACKBONE WEIGHTS IMAGES

featx is timed from opening the source to the published and verified file, without the time in which
the engine loads the network, as that of the peers is loaded before they start (beside a GPU, the
processes that decode start in that time); for int8 the ranges of activations were measured by a run
before. Where the variant says ``first``, they are measured within, and all of it counts. A ceiling
is the forward passes of as many images, over pixels that are in memory.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from photos import jpegs_of
from timed import timed

from featx.backbones.engines import Engine, OnnxEngine, default_batch_size
from featx.backbones.graph_cache import read_graph
from featx.backbones.spec import BackboneSpec
from featx.extraction.backbone import LazyBackbone
from featx.extraction.options import ExtractOptions
from featx.images.reading import num_cores
from featx.stages.extract import extract

Run = Callable[[], int]


def options_of(variant: str, backbone: str, weights: str) -> ExtractOptions:
    """Return what a variant like ``onnxruntime int8 scaled`` extracts with."""
    engine, *more = variant.split()
    options = ExtractOptions(
        backbone=backbone,
        weights=weights,
        engine=engine,  # type: ignore[arg-type]
        device="cuda:0" if "cuda" in more else "cpu",
    )
    if "scaled" in more:
        options = replace(options, decode="scaled")
    for precision in {"int8", "bf16"} & set(more):
        options = replace(options, precision=precision)  # type: ignore[arg-type]
    return options


def extraction(
    source: Path, options: ExtractOptions, folder: Path, *, first: bool
) -> tuple[Run, Callable[[], float]]:
    """Return an extraction, after one that kept what the next can use, and how long it built.

    Args:
        source: The images.
        options: How they are extracted.
        folder: For files.
        first: Let int8 measure its ranges in it. Otherwise they stand in the file that it replaces
            all rows of.
    """
    output, again = before(source, options, folder), replace(options, restart=True)
    if options.precision != "int8" or first:
        output = folder / "f.h5"
    building = 0.0

    def run() -> int:
        nonlocal building
        start = time.perf_counter()
        report = extract(source, output, again)
        if not first:  # where calibrating is a part of it
            building = time.perf_counter() - start - report.seconds
        return report.num_images

    return run, lambda: building


def before(source: Path, options: ExtractOptions, folder: Path) -> Path:
    """Extract all images in int8, which has to be calibrated with them, or else one."""
    if options.precision != "int8":
        source, first = folder / "one", jpegs_of(source)[0]
        (source / "a").mkdir(parents=True)
        (source / "a" / first.name).write_bytes(first.read_bytes())
    return extract(source, folder / "before.h5", options).path


def ceiling(source: Path, options: ExtractOptions, folder: Path, images: int) -> Run:
    """Return the forward passes of as many images, batches as large as the engine takes them."""
    before(source, options, folder)
    runner, size = engine(options, folder / "before.h5")
    batch = default_batch_size(runner.name, size, device=runner.device)
    pixels = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), np.uint8)
    rounds = -(-images // batch)
    runner.features(pixels)

    def run() -> int:
        with ThreadPoolExecutor(num_cores()) as pool:
            list(pool.map(lambda _: runner.features(pixels), range(rounds)))
        return rounds * batch

    return run


def engine(options: ExtractOptions, made: Path) -> tuple[Engine, int]:
    """Return the engine that made a file, and the size of its images."""
    import featx

    spec = BackboneSpec.from_dict(featx.open_features(made).header.spec)
    if options.engine == "torch":
        return LazyBackbone(options.resolved()).engine(spec), spec.preprocess.image_size
    graph = read_graph(spec)
    if graph is None:
        raise SystemExit(f"no graph of {spec.backbone} is kept")
    return OnnxEngine(graph), spec.preprocess.image_size


def main(arguments: list[str]) -> None:
    """Time one variant."""
    variant, source, backbone, weights, images = arguments
    kind, _, rest = variant.partition(" ")
    options = options_of(rest, backbone, weights)
    with tempfile.TemporaryDirectory() as temporary:
        if kind == "featx":
            first = "first" in rest.split()
            run, built = extraction(Path(source), options, Path(temporary), first=first)
            timed(run, built=built)
        else:
            timed(ceiling(Path(source), options, Path(temporary), int(images)))


if __name__ == "__main__":
    main(sys.argv[1:])
