"""How closely the exported file follows head(features): writes the tables of docs/parity.md.

    python benchmarks/parity.py [--data ../shared/data] [--backbone NAME]…

For each backbone a default head is trained on the hymenoptera training photos; the 153 validation
photos go through the file of each contract and, in parallel, through Pillow, the engine that
extracts features, and the head. Logit differences are given as a share of the largest logit.
A second table has the files of the fine-tuned SqueezeNet at each precision, with their accuracy on
the same photos and the milliseconds that one crop takes; a third compares the pixels of the resize
in the graph with Pillow's.
"""

import statistics
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import numpy as np
import onnxruntime as ort
from report import ROOT, table, write_measured

from featx.backbones.engines import OnnxEngine
from featx.backbones.graph_builder import GraphBuilder
from featx.backbones.int8 import calibrate, quantize_graph
from featx.backbones.onnx_graph import build_graph
from featx.classifier.contract import Contract
from featx.classifier.graph import build_classifier, with_header
from featx.classifier.image_nodes import add_geometry
from featx.classifier.session import Classifier, load_classifier
from featx.extraction.backbone import open_backbone
from featx.extraction.options import ExtractOptions
from featx.heads.head import Layer, apply_layers
from featx.heads.samples.data import TrainingData
from featx.heads.solvers.linear import fit_linear
from featx.images.decode import decode_image
from featx.images.preprocess import PreprocessSpec, preprocess

sys.path.insert(0, str(ROOT / "tests" / "helpers"))
from headers import complete_header

CLASSES = ("ants", "bees")
ROUNDS = 50
CONTRACTS = ("image", "crop", "tensor")
LIMITS = {"crop": 1e-4, "tensor": 1e-4, "image": 1e-2}
MEDIAN_LIMIT = 1e-3


@dataclass(frozen=True, eq=False)
class Measured:
    """One backbone with its head on the photos.

    Attributes:
        name: For the table.
        graph: From pixels to features.
        layer: The head.
        spec: Of the backbone, JSON values.
        geometry: Before it.
        crops: Of the training photos.
        expected: The head's logits for the validation photos.
    """

    name: str
    graph: bytes
    layer: Layer
    spec: dict[str, object]
    geometry: PreprocessSpec
    crops: list[np.ndarray]
    expected: np.ndarray


def cases(data: Path) -> dict[str, ExtractOptions]:
    """Return the backbones; without downloads most have random weights."""
    mango = str(data / "weights" / "squeezenet1_1-mango-c10.pth")
    random = (
        *("resnet18", "mobilenet_v3_small", "densenet121", "efficientnet_b0"),
        *("vit_b_16", "swin_t", "convnext_tiny"),
    )
    return {
        "squeezenet1_1": ExtractOptions(backbone="squeezenet1_1", weights=mango),
        "tiny": ExtractOptions(backbone="tiny"),
        "vgg16": ExtractOptions(backbone="vgg16", weights="none", layer="features", image_size=32),
        **{name: ExtractOptions(backbone=name, weights="none") for name in random},
    }


def photos(folder: Path) -> tuple[list[np.ndarray], np.ndarray]:
    """Return all photos and their labels."""
    paths = [(path, i) for i, name in enumerate(CLASSES) for path in (folder / name).glob("*.jpg")]
    paths.sort()
    images = [decode_image(path.read_bytes(), sample_id=path.name) for path, _ in paths]
    return images, np.array([label for _, label in paths])


def prepare(name: str, options: ExtractOptions, data: Path) -> Measured:
    """Return a backbone with a head, and the head's answers."""
    network, spec, _ = open_backbone(options.resolved())
    geometry = spec.preprocess
    graph = build_graph(network, image_size=geometry.image_size)
    engine = OnnxEngine(graph)

    def features(crops: list[np.ndarray]) -> np.ndarray:
        return np.concatenate([engine.features(crop[None]) for crop in crops])

    images, labels = photos(data / "hymenoptera_data" / "train")
    crops = [preprocess(image, geometry) for image in images]
    few = slice(None) if name in ("squeezenet1_1", "tiny") else slice(None, None, 4)
    cached = features(crops[few])
    (layer,) = fit_linear(TrainingData(cached, labels[few], 2, np.ones(len(cached)))).layers
    held_out, _ = photos(data / "hymenoptera_data" / "val")
    expected = features([preprocess(image, geometry) for image in held_out])
    logits = apply_layers([layer], expected)
    return Measured(name, graph, layer, spec.to_dict(), geometry, crops, logits)


def file_of(
    case: Measured, contract: Contract, *, graph: bytes | None = None, half: bool = False
) -> bytes:
    """Return the content of an exported file."""
    model = build_classifier(graph or case.graph, [case.layer], case.geometry, contract, half=half)
    details = {"contract": contract.to_dict()}
    header = complete_header("classifier", case.spec, CLASSES, details)
    return with_header(model, header)


def answers(classifier: Classifier, images: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([classifier.logits(classifier.prepare(image)[None]) for image in images])


def contract_rows(case: Measured, images: list[np.ndarray]) -> list[list[str]]:
    """Return one line for each contract."""
    rows = []
    largest = np.abs(case.expected).max()
    for name in CONTRACTS:
        content = file_of(case, Contract(name))
        found = answers(load_classifier(content, path=Path("m.onnx")), images)
        share = np.abs(found - case.expected).max(axis=1) / largest
        gap = np.ptp(case.expected, axis=1) / largest
        same = found.argmax(1) == case.expected.argmax(1)
        settled = same | (gap <= LIMITS[name])
        fine = share.max() <= LIMITS[name] and np.median(share) <= MEDIAN_LIMIT and settled.all()
        held = "yes" if fine else "NO"
        figures = [f"{share.max():.1e}", f"{np.median(share):.1e}", f"{same.mean():.1%}"]
        rows.append([case.name, name, *figures, held])
        print(*rows[-1], flush=True)
    return rows


def precision_rows(case: Measured, images: list[np.ndarray], labels: np.ndarray) -> list[list[str]]:
    """Return one line for each precision."""
    ranges = calibrate(case.graph, [np.stack(case.crops[::2][:128])])
    make = partial(file_of, case, Contract("crop"))
    files = {
        "fp32": make(),
        "fp16": make(half=True),
        "int8": make(graph=quantize_graph(case.graph, ranges)),
    }
    opened = {name: load_classifier(own, path=Path("m.onnx")) for name, own in files.items()}
    times = latencies(opened, images[0])
    rows = []
    for name, content in files.items():
        found = answers(opened[name], images)
        right = (found.argmax(1) == labels).mean()
        same = (found.argmax(1) == case.expected.argmax(1)).mean()
        share = np.abs(found - case.expected).max() / np.abs(case.expected).max()
        rows.append([name, f"{len(content) / 1e6:.2f} MB", f"{right:.4f}", f"{same:.1%}",
                     f"{share:.1e}", f"{1000 * times[name]:.1f} ms"])  # fmt: skip
        print(*rows[-1], flush=True)
    return rows


def latencies(opened: dict[str, Classifier], image: np.ndarray) -> dict[str, float]:
    """Return the median seconds that each file takes for one crop, on all cores, in turn."""
    taken: dict[str, list[float]] = {name: [] for name in opened}
    for number in range(3 + ROUNDS):
        for name, classifier in opened.items():
            crop = classifier.prepare(image)[None]
            start = time.perf_counter()
            classifier.run(crop)
            if number >= 3:  # the first ones warm up
                taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def pixel_rows(images: list[np.ndarray]) -> list[list[str]]:
    """Return one line for each filter: the resize in the graph against Pillow's."""
    from onnx import TensorProto, helper

    rows = []
    for filter_name in ("bilinear", "bicubic"):
        spec = PreprocessSpec(
            image_size=224,
            resize=256,
            mean=(0, 0, 0),
            std=(1, 1, 1),
            interpolation=filter_name,  # type: ignore[arg-type]
        )
        builder = GraphBuilder()
        add_geometry(builder, spec, image="image", output="pixels")
        graph = helper.make_graph(
            builder.nodes,
            "geometry",
            [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", "h", "w", 3])],
            [helper.make_tensor_value_info("pixels", TensorProto.UINT8, None)],
            initializer=builder.initializers,
        )
        opset = [helper.make_opsetid("", 20)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=10)
        session = ort.InferenceSession(
            model.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        shrinking = [image for image in images if min(image.shape[:2]) > spec.resize]
        found = [session.run(None, {"image": i[None]})[0][0].astype(int) for i in shrinking]
        away = [np.abs(f - preprocess(i, spec)) for f, i in zip(found, shrinking, strict=True)]
        values = np.concatenate([part.ravel() for part in away])
        rows.append([filter_name, f"{len(shrinking)}", f"{(values == 0).mean():.4%}",
                     f"{(values <= 1).mean():.4%}", f"{values.max()}"])  # fmt: skip
        print(*rows[-1], flush=True)
    return rows


@click.command()
@click.option("--data", type=click.Path(path_type=Path), default=ROOT.parent / "shared" / "data")
@click.option("--backbone", "names", multiple=True, help="Only these.")
def main(data: Path, names: tuple[str, ...]) -> None:
    """Measure and write docs/parity.md."""
    images, labels = photos(data / "hymenoptera_data" / "val")
    by_contract, by_precision = [], []
    for name, options in cases(data).items():
        if names and name not in names:
            continue
        case = prepare(name, options, data)
        by_contract += contract_rows(case, images)
        if name == "squeezenet1_1":
            by_precision = precision_rows(case, images, labels)
    pixels = pixel_rows(images)
    columns = ("backbone", "contract", "largest", "median", "same class", "held")
    parts = [
        table(columns, by_contract),
        "\nPrecision, `crop`, squeezenet1_1 fine-tuned from ImageNet:\n\n",
        table(("precision", "file", "top-1", "same class", "largest", "one crop"), by_precision),
        "\nPixels of the resize in the graph, photos that are shrunk to 256 and cropped to "
        "224:\n\n",
        table(("filter", "photos", "equal", "within 1 level", "largest"), pixels),
    ]
    write_measured("docs/parity.md", "".join(parts))


if __name__ == "__main__":
    main()
