"""What decoding large JPEGs scaled saves and changes: the table of docs/images.md.

    python benchmarks/decode.py [--data ../shared/data] [--images 120]

Photos of hymenoptera are enlarged to 4000×3000 and encoded again, once as they are and once with a
camera's noise. SqueezeNet with an ImageNet fine-tune makes features of both, decoded in full and
scaled; a default head of each is exported. Features are compared row by row; the file of the scaled
features gets the same photos decoded in full, as a client gives them that cannot do otherwise.
"""

import statistics
import tempfile
import time
from pathlib import Path

import click
import numpy as np
from photos import enlarge, evenly, jpegs_of
from report import ROOT, table, write_measured

import featx
from featx.artifact import Header
from featx.images.decode import decoded
from featx.images.preprocess import Decode, PreprocessSpec, preprocess

WAYS: tuple[Decode, Decode] = ("full", "scaled")
NOISE = {"smooth": 0.0, "with a camera's noise": 8.0}
COLUMNS = (
    *("photos of 4000×3000", "full", "scaled", "features, median", "largest", "smallest cosine"),
    *("logits, largest", "same class", "validation top-1, full / scaled"),
)


def milliseconds(paths: list[Path], spec: PreprocessSpec) -> float:
    """Return the median time to decode and preprocess a photo, in one thread."""
    took = []
    for path in paths:
        content, start = path.read_bytes(), time.perf_counter()
        preprocess(decoded(content, sample_id=path.name, preprocess=spec), spec)
        took.append(time.perf_counter() - start)
    return 1e3 * statistics.median(took)


def extracted(photos: Path, folder: Path, weights: Path, way: Decode) -> featx.FeatureFile:
    """Return the features of the photos."""
    options = featx.ExtractOptions(backbone="squeezenet1_1", weights=str(weights), decode=way)
    return featx.open_features(featx.extract(photos, folder / f"{way}.h5", options).path)


def exported(folder: Path, way: Decode) -> tuple[Header, float]:
    """Return the header of the file of a default head, and the head's validation top-1."""
    head = featx.train_head(folder / f"{way}.h5", folder / f"{way}.safetensors")
    report = featx.export_onnx(folder / f"{way}.safetensors", folder / f"{way}.onnx")
    return report.header, head.metrics["val"].top1


def row(name: str, photos: Path, folder: Path, weights: Path) -> list[str]:
    """Return one line of the table."""
    folder.mkdir()
    caches = {way: extracted(photos, folder, weights, way) for way in WAYS}
    full, scaled = (caches[way].features for way in WAYS)
    lengths = np.linalg.norm(full, axis=1), np.linalg.norm(scaled, axis=1)
    off = np.linalg.norm(scaled - full, axis=1) / lengths[0]
    cosines = (scaled * full).sum(axis=1) / (lengths[0] * lengths[1])
    (_, top1), (header, scaled_top1) = (exported(folder, way) for way in WAYS)
    proof = header.details["proof"]
    largest = float(np.abs(_logits(folder / "scaled.safetensors", scaled)).max())
    some = evenly(jpegs_of(photos), 20)
    spent = [
        milliseconds(some, PreprocessSpec.from_dict(caches[way].header.spec["preprocess"]))
        for way in WAYS
    ]
    return [
        name,
        *(f"{took:.0f} ms" for took in spent),
        f"{np.median(off):.1e}",
        f"{off.max():.1e}",
        f"{cosines.min():.4f}",
        f"{proof['max_full_difference'] / largest:.1e}",
        f"{proof['full_top1_agreement']:.0%}",
        f"{top1:.3f} / {scaled_top1:.3f}",
    ]


def _logits(head: Path, features: np.ndarray) -> np.ndarray:
    return featx.open_head(head).logits(features)


@click.command()
@click.option("--data", type=click.Path(path_type=Path), default=ROOT.parent / "shared" / "data")
@click.option("--images", default=120, show_default=True, help="Of each kind.")
@click.option("--write/--no-write", default=True, help="Put the table into docs/images.md.")
def main(data: Path, images: int, write: bool) -> None:
    """Measure, print, and write docs/images.md."""
    weights = data / "weights" / "squeezenet1_1-mango-c10.pth"
    with tempfile.TemporaryDirectory() as temporary:
        rows = []
        for number, (name, noise) in enumerate(NOISE.items()):
            folder = Path(temporary) / str(number)
            photos = Path(temporary) / f"photos{number}"
            enlarge(data / "hymenoptera_data" / "train", photos, count=images, noise=noise)
            rows.append(row(name, photos, folder, weights))
    text = table(COLUMNS, rows)
    print(text)
    if write:
        write_measured("docs/images.md", text)


if __name__ == "__main__":
    main()
