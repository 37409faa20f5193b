"""How closely the exported file follows head(features): writes the table of docs/parity.md.

    python benchmarks/parity.py [--data ../shared/data]

For each backbone a default head is trained on 60 hymenoptera photos; 24 others, at four raw sizes,
go through the file and, in parallel, through Pillow, torch and the head. "resized" photos have
been resized by Pillow first, so that the resize in the graph has nothing left to do; "raw" ones
have not. The figures are absolute logit differences as a share of the largest logit.
"""

from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from PIL import Image
from report import ROOT, table, write_measured

from featx.artifact import Header
from featx.backbones.engines import TorchEngine
from featx.backbones.onnx_graph import export_network
from featx.classifier.graph import build_classifier, with_header
from featx.classifier.session import Classifier, load_classifier
from featx.heads.head import apply_layers
from featx.heads.linear import fit_linear
from featx.images.decode import decode_image
from featx.images.preprocess import preprocess, resize
from featx.stages.extract import ExtractOptions
from featx.stages.extract.backbone import open_backbone

SIZES = (None, (320, 240), (640, 640), (1600, 1200))


@dataclass(frozen=True)
class Row:
    """Of one backbone, over all sizes: shares of the largest logit, and of images."""

    name: str
    exact: float
    raw_median: float
    raw_largest: float
    same_class: float


def cases(data: Path) -> dict[str, ExtractOptions]:
    """Return the backbones; without downloads most have random weights."""
    mango = str(data / "weights" / "squeezenet1_1-mango-c10.pth")
    random = (
        *("resnet18", "mobilenet_v3_small", "densenet121", "efficientnet_b0"),
        *("vit_b_16", "swin_t", "convnext_tiny"),
    )
    return {
        "squeezenet1_1, ImageNet fine-tune": ExtractOptions(
            backbone="squeezenet1_1", weights=mango
        ),
        "tiny": ExtractOptions(backbone="tiny"),
        "vgg16 at 32 px, layer features, random": ExtractOptions(
            backbone="vgg16", weights="none", layer="features", image_size=32
        ),
        **{f"{name}, random": ExtractOptions(backbone=name, weights="none") for name in random},
    }


def photos(folder: Path, count: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the first photos of each class and their labels."""
    images, labels = [], []
    for label, name in enumerate(("ants", "bees")):
        for path in sorted((folder / name).glob("*.jpg"))[: count // 2]:
            images.append(decode_image(path.read_bytes(), sample_id=path.name))
            labels.append(label)
    return images, np.array(labels)


def at_size(image: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    """Return the photo as a camera of another resolution would have given it."""
    if size is None:
        return image
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def measure(name: str, options: ExtractOptions, data: Path) -> Row:
    """Return the figures of one backbone."""
    network, spec, _ = open_backbone(options)
    engine = TorchEngine(network, device="cpu")

    def features(images: list[np.ndarray]) -> np.ndarray:
        pixels = np.stack([preprocess(image, spec.preprocess) for image in images])
        batches = [pixels[start : start + 8] for start in range(0, len(pixels), 8)]
        return np.concatenate([engine.features(batch) for batch in batches])

    images, labels = photos(data / "hymenoptera_data" / "train", 60)
    layers = (fit_linear(features(images), labels, 2).layer,)
    graph = build_classifier(
        export_network(network, image_size=spec.preprocess.image_size), layers, spec.preprocess
    )
    header = Header(kind="classifier", spec=spec.to_dict(), classes=("ants", "bees"))
    classifier = load_classifier(with_header(graph, header), path=Path("model.onnx"))
    held_out, _ = photos(data / "hymenoptera_data" / "val", 24)
    exact, raw, same = [], [], []
    for size in SIZES:
        seen = [at_size(image, size) for image in held_out]
        expected = apply_layers(layers, features(seen))
        largest = np.abs(expected).max()
        answered = run(classifier, seen)
        ready = run(classifier, [resize(image, spec.preprocess) for image in seen])
        raw.append(np.abs(answered - expected).max(axis=1) / largest)
        exact.append(np.abs(ready - expected).max() / largest)
        same.append((answered.argmax(1) == expected.argmax(1)).mean())
    return Row(
        name,
        max(exact),
        float(np.median(raw)),
        float(np.max(raw)),
        float(np.mean(same)),
    )


def run(classifier: Classifier, images: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([classifier.run(image[None])[0] for image in images])


COLUMNS = ("backbone", "resized, largest", "raw, median", "raw, largest", "same class")


def cells(row: Row) -> list[str]:
    """Return one line of the table."""
    shares = (row.exact, row.raw_median, row.raw_largest)
    return [row.name, *(f"{share:.1e}" for share in shares), f"{row.same_class:.0%}"]


@click.command()
@click.option("--data", type=click.Path(path_type=Path), default=ROOT.parent / "shared" / "data")
def main(data: Path) -> None:
    """Measure and write docs/parity.md."""
    rows = []
    for name, options in cases(data).items():
        rows.append(measure(name, options, data))
        print(rows[-1], flush=True)
    write_measured("docs/parity.md", table(COLUMNS, [cells(row) for row in rows]))


if __name__ == "__main__":
    main()
