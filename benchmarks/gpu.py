"""What a GPU could do beyond what featx has it do, into docs/measurements/performance.md.

    python benchmarks/gpu.py [--data ../shared/data]

- The forward pass alone in bf16, pixels already there: operation by operation, as featx runs it, by
  CUDA graphs and by ``torch.compile``, which first takes its time.
- Decoding and resizing JPEGs, by Pillow in threads and, as featx has it beside a GPU, in processes;
  and by nvJPEG through torchvision with its resize on the GPU; and by how much pixels differ.

Without a GPU only Pillow is measured, and nothing written. Weights are random.
"""

from __future__ import annotations

import io
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from photos import jpegs_of
from PIL import Image, JpegImagePlugin
from report import ROOT, machine, table, write_measured

if TYPE_CHECKING:
    from featx.extraction.crops import Decoders

DATA = ROOT.parent / "shared" / "data"
BACKBONES = ("resnet18", "mobilenet_v3_small", "vit_b_16")
COMPILED = ("resnet18",)
BATCH = 32
SAMPLINGS = {0: "4:4:4", 1: "4:2:2", 2: "4:2:0"}


def rate(run: Callable[[], object], count: int, seconds: float = 0.5) -> float:
    """Return images a second, each run one of ``count``: the median of the runs of some time."""
    import torch

    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    took = list[float]()
    run()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or not took:
        wait()
        start = time.perf_counter()
        run()
        wait()
        took.append(time.perf_counter() - start)
    return count / statistics.median(took)


def forwards(backbone: str) -> list[list[str]]:
    """Return the line of a backbone."""
    import torch

    from featx.backbones.catalog import default_preprocess
    from featx.backbones.network import build_network
    from featx.backbones.weights import open_weights

    spec = default_preprocess(backbone)
    network: Any = build_network(backbone, open_weights(backbone, "none"), spec)[0]
    network = network.to(memory_format=torch.channels_last).cuda()
    shape = (BATCH, spec.image_size, spec.image_size, 3)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, device="cuda")

    def run(model: Any) -> Callable[[], object]:
        def forward() -> object:
            with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
                return model(pixels)

        return forward

    plain, graph = rate(run(network), BATCH), torch.cuda.CUDAGraph()
    with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
        beside = torch.cuda.Stream()
        with torch.cuda.stream(beside):
            network(pixels)
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            network(pixels)
    line = [backbone, f"{plain:,.0f}", f"{rate(graph.replay, BATCH):,.0f}"]
    if backbone not in COMPILED:
        return [[*line, "", ""]]
    start, compiled = time.perf_counter(), run(torch.compile(network))
    compiled()
    torch.cuda.synchronize()
    first = time.perf_counter() - start
    return [[*line, f"{rate(compiled, BATCH):,.0f}", f"{first:.1f} s"]]


def decoding(contents: list[bytes]) -> list[list[str]]:
    """Return a line for each way to decode and resize."""
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg
    from torchvision.transforms.v2 import functional

    from featx.backbones.catalog import default_preprocess
    from featx.extraction.crops import Decoders
    from featx.images.decode import MAX_PIXELS, decoded
    from featx.images.preprocess import preprocess

    spec = default_preprocess("resnet18")

    def with_pillow(content: bytes) -> np.ndarray:
        return preprocess(decoded(content, sample_id="", preprocess=spec), spec)

    def with_nvjpeg() -> None:
        for image in decode_jpeg(encoded, mode=ImageReadMode.RGB, device="cuda"):
            small = functional.resize(image, [spec.resize], antialias=True)
            functional.center_crop(small, [spec.image_size])

    def alone() -> None:
        decode_jpeg(encoded, mode=ImageReadMode.RGB, device="cuda")

    def by(pool: ThreadPoolExecutor, decoders: Decoders, turns: int) -> Callable[[], object]:
        shape = (BATCH, spec.image_size, spec.image_size, 3)
        batches = [contents[start : start + BATCH] for start in range(0, len(contents), BATCH)]

        def crops(batch: list[bytes]) -> None:
            decoders.crops(batch, np.empty(shape, np.uint8))

        return lambda: list(pool.map(crops, turns * batches))

    rows, cores = [], len(os.sched_getaffinity(0))
    for threads in sorted({1, 4, 8, cores}):
        with ThreadPoolExecutor(threads) as pool:
            speed = rate(lambda pool=pool: list(pool.map(with_pillow, contents)), len(contents))
        rows.append([f"Pillow, threads: {threads}", f"{speed:,.0f}"])
    for processes in sorted({1, 4, 8, cores}):
        with ThreadPoolExecutor(processes) as pool:
            decoders = Decoders(spec, MAX_PIXELS, batch_size=BATCH, workers=processes)
            speed = rate(by(pool, decoders, processes), processes * len(contents))
        rows.append([f"Pillow, processes: {processes}", f"{speed:,.0f}"])
    if not torch.cuda.is_available():
        return rows
    encoded = [torch.frombuffer(bytearray(content), dtype=torch.uint8) for content in contents]
    rows.append(["nvJPEG, without resize", f"{rate(alone, len(contents)):,.0f}"])
    rows.append(["nvJPEG and resize on the GPU", f"{rate(with_nvjpeg, len(contents)):,.0f}"])
    return rows


def differences(contents: list[bytes]) -> list[list[str]]:
    """Return a line for each way to store colours: how pixels differ from Pillow's, undivided."""
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    rows, found = [], dict[tuple[str, str], list[np.ndarray]]()
    for content in contents:
        image = Image.open(io.BytesIO(content)).convert("RGB")
        own = Image.open(io.BytesIO(content))
        sampling = SAMPLINGS.get(JpegImagePlugin.get_sampling(own), "other")
        copies = {("as they are", sampling): content}
        for number, name in SAMPLINGS.items():
            again = io.BytesIO()
            image.save(again, "JPEG", quality=90, subsampling=number)
            copies["encoded again", name] = again.getvalue()
        for key, copy in copies.items():
            encoded = torch.frombuffer(bytearray(copy), dtype=torch.uint8)
            theirs = decode_jpeg(encoded, mode=ImageReadMode.RGB, device="cuda").permute(1, 2, 0)
            ours = np.asarray(Image.open(io.BytesIO(copy)).convert("RGB")).astype(int)
            found.setdefault(key, []).append(np.abs(theirs.cpu().numpy() - ours).ravel())
    for (kind, sampling), parts in sorted(found.items()):
        values = np.concatenate(parts)
        beyond = f"{100 * (values > 1).mean():.2f} %"
        rows.append([f"{sampling}, {kind}", f"{len(parts)}", f"{values.max()}", beyond])
    return rows


@click.command()
@click.option("--data", type=click.Path(path_type=Path), default=DATA)
@click.option("--photos", default=96, show_default=True, help="To decode.")
@click.option(
    "--write/--no-write", default=True, help="Put the tables into docs/measurements/performance.md."
)
def main(data: Path, photos: int, write: bool) -> None:
    """Measure and print the tables."""
    paths = jpegs_of(data / "hymenoptera_data" / "train")[:photos]
    contents = [path.read_bytes() for path in paths]
    import torch

    if not torch.cuda.is_available():
        print(table(("decode and resize to 224 px", "images/s"), decoding(contents)))
        return
    speeds = ("bf16, batches of 32, images/s", "as it is", "CUDA graph", "compiled", "compiling")
    parts = [
        machine("torch", "torchvision", "pillow") + ".\n",
        table(("decode and resize to 224 px", "images/s"), decoding(contents)),
        table(
            ("nvJPEG, colours stored", "photos", "largest difference, grey levels", "beyond one"),
            differences(contents),
        ),
        table(speeds, [line for backbone in BACKBONES for line in forwards(backbone)]),
    ]
    text = "\n".join(parts)
    print(text)
    if write:
        write_measured("docs/measurements/performance.md", text, name="gpu alternatives")


if __name__ == "__main__":
    main()
