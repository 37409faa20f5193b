"""How fast an exported file answers: rounds in turn, medians into docs/measurements.

    python benchmarks/latency.py [--rounds 15] [--rounds-of-32 5]

A ResNet-18 with random weights, exported with a head of two classes. Photos are decoded before the
clock starts; what is timed is everything from pixels to answers. Each figure stands beside what it
is held to, from the same rounds. Ratios are medians over rounds of the ratio within a round, so
that a busy moment of the machine counts on both sides. Processor time counts all threads; unlike
the clock it hardly depends on what else the machine does.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np
import onnxruntime as ort
import torch
from extraction import described
from PIL import Image
from report import table, write_measured
from torchvision import models

import featx
from featx.backbones.catalog import default_preprocess
from featx.backbones.network import build_network
from featx.backbones.onnx_graph import export_network
from featx.backbones.weights import open_weights
from featx.classifier.session import Classifier, open_classifier
from featx.images.preprocess import preprocess
from featx.images.reading import num_cores

SMALL, LARGE = (500, 375), (4000, 3000)
BATCH = 32
BARE, CROPS = "the backbone's bare graph, on a crop", "the file for crops, on a crop"
EAGER = "torch eager, forward pass alone"


@dataclass
class Timed:
    """A piece of work, and the seconds that each round of it took: by the clock, by processors."""

    work: Callable[[], object]
    clock: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)

    def once(self) -> None:
        """Do it, and note how long it took."""
        processor, clock = time.process_time(), time.perf_counter()
        self.work()
        self.clock.append(time.perf_counter() - clock)
        self.processor.append(time.process_time() - processor)


def photo(size: tuple[int, int]) -> Image.Image:
    """Return a decoded photo-like image: smooth, with some noise."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
    smooth = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), np.int16)
    noisy = smooth + rng.integers(-8, 9, smooth.shape, np.int16)
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def exported(folder: Path) -> tuple[Path, Path]:
    """Return two files of the same classifier: for images, and for crops."""
    for number in range(12):
        path = folder / "photos" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), (9 * number, 90, 120 * (number % 2))).save(path)
    options = featx.ExtractOptions(backbone="resnet18", weights="none")
    featx.extract(folder / "photos", folder / "f.h5", options)
    featx.train_head(folder / "f.h5", folder / "h.safetensors")
    image, crop = folder / "image.onnx", folder / "crop.onnx"
    for path, contract in ((image, "image"), (crop, "crop")):
        options = featx.ExportOptions(input=contract, verify=False)  # type: ignore[assignment, arg-type]
        featx.export_onnx(folder / "h.safetensors", path, options)  # type: ignore[arg-type]
    return image, crop


def bare_graph() -> Callable[[np.ndarray], object]:
    """Return a function that runs the backbone's graph, as torch exports it, on crops."""
    geometry = default_preprocess("resnet18")
    network, _ = build_network("resnet18", open_weights("resnet18", "none"), geometry)
    options = ort.SessionOptions()
    options.intra_op_num_threads = num_cores()
    # Else its threads take the cores from what is timed next, for half a second.
    options.add_session_config_entry("session.intra_op.spin_duration_us", "50")
    graph = export_network(network, image_size=geometry.image_size).SerializeToString()
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return lambda crops: session.run(None, {"pixels": crops})


def eager(batch: np.ndarray, layout: torch.memory_format) -> Callable[[], object]:
    """Return torchvision's own model in torch, on a batch that is normalised already."""
    model = models.get_model("resnet18", weights=None).eval().to(memory_format=layout)
    values = torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 255
    tensor = values.contiguous(memory_format=layout)

    def run() -> object:
        with torch.inference_mode():
            return model(tensor)

    return run


def single(folder: Path, rounds: int) -> str:
    """Return the table of one image at a time."""
    image, crop = exported(folder)
    predictor, on_crops = featx.Predictor(image), open_classifier(crop)
    in_graph, spec = open_classifier(image), on_crops.preprocess
    photos = {size: photo(size) for size in (SMALL, LARGE)}
    square = preprocess(photos[SMALL], spec)[None]
    bare = bare_graph()
    timed = {
        BARE: Timed(lambda: bare(square)),
        CROPS: Timed(lambda: on_crops.run(square)),
    }
    for size, picture in photos.items():
        timed |= for_a_photo("×".join(map(str, size)), picture, predictor, in_graph)
    run_in_turn(timed, rounds)
    rows = []
    for name, own in timed.items():
        against = ["", ""]
        if "×" in name and "Pillow" not in name:
            pillow = timed[f"Pillow's preprocessing, {name.rpartition(', ')[2]}"]
            models = (timed[BARE], timed[CROPS])
            against = [f"{ratio(own, model, pillow):.2f} ×" for model in models]
        fastest = f"{1e3 * min(own.clock):.1f} ms"
        rows.append([name, milliseconds(own.clock), fastest, *against])
    columns = ("ResNet-18, batch 1", "median", "fastest")
    held = ("against Pillow + bare graph", "against Pillow + file for crops")
    return table([*columns, *held], rows)


def for_a_photo(
    name: str, photo: Image.Image, predictor: featx.Predictor, in_graph: Classifier
) -> dict[str, Timed]:
    """Return the ways that a photo can go."""
    pixels, spec = np.asarray(photo)[None], in_graph.preprocess
    return {
        f"Pillow's preprocessing, {name}": Timed(lambda: preprocess(photo, spec)),
        f"`Predictor`, {name}": Timed(lambda: predictor.predict([photo])),
        f"the file for images, its own resize, {name}": Timed(lambda: in_graph.run(pixels)),
    }


def run_in_turn(timed: dict[str, Timed], rounds: int) -> None:
    """Do each piece of work once to warm up, then once a round."""
    for number in range(-1, rounds):
        for one in timed.values():
            one.once()
            if number < 0:
                one.clock.clear()
                one.processor.clear()


def milliseconds(seconds: list[float]) -> str:
    return f"{1e3 * statistics.median(seconds):.1f} ms"


def ratio(one: Timed, *others: Timed) -> float:
    """Return the median over rounds of a time as a multiple of others' sum."""
    sums = map(sum, zip(*(other.clock for other in others), strict=True))
    return statistics.median(a / b for a, b in zip(one.clock, sums, strict=True))


def many(folder: Path, rounds: int) -> str:
    """Return the table of 32 images at a time."""
    image, crop = folder / "image.onnx", folder / "crop.onnx"
    predictor, on_crops = featx.Predictor(image), open_classifier(crop)
    photos = [photo(SMALL)] * BATCH
    square = preprocess(photos[0], on_crops.preprocess)
    crops = np.stack([square] * BATCH)
    timed = {
        EAGER: Timed(eager(crops, torch.contiguous_format)),
        f"{EAGER}, channels_last": Timed(eager(crops, torch.channels_last)),
        "the file for crops, one batch": Timed(lambda: on_crops.run(crops)),
        "`Predictor`, on photos of 500×375": Timed(lambda: predictor.predict(photos)),
    }
    run_in_turn(timed, rounds)
    rows = [
        [
            name,
            f"{BATCH / statistics.median(own.clock):.0f}",
            milliseconds([seconds / BATCH for seconds in own.processor]),
            f"{ratio(timed[EAGER], own):.2f} ×",
        ]
        for name, own in timed.items()
    ]
    columns = (f"ResNet-18, {BATCH} at a time", "images/s", "processor time an image")
    return table([*columns, "against torch eager"], rows)


@click.command()
@click.option("--rounds", default=15, show_default=True)
@click.option("--rounds-of-32", default=5, show_default=True)
@click.option("--write/--no-write", default=True, help="Put the tables into the docs.")
def main(rounds: int, rounds_of_32: int, write: bool) -> None:
    """Time everything in turn and print the tables."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tables = [single(folder, rounds), many(folder, rounds_of_32)]
    text = "\n".join([described(rounds), *tables])
    print(text)
    if write:
        write_measured("docs/measurements/performance.md", text, name="latency")


if __name__ == "__main__":
    main()
