"""Fixtures of the classifier tests: a plain backbone, real ones exported once, photos."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from headers import complete_header
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from solving import fit_linear

from featx.artifact import Header
from featx.backbones.catalog import default_preprocess
from featx.backbones.graph_builder import NORMALISED
from featx.backbones.graph_cache import OPSET
from featx.backbones.network import build_network
from featx.backbones.onnx_graph import export_network
from featx.backbones.torch_engine import TorchEngine
from featx.backbones.weights import open_weights
from featx.classifier.graph import build_classifier, with_header
from featx.classifier.session import Classifier, load_classifier
from featx.heads.head import Layer, apply_layers
from featx.images.decode import decode_image
from featx.images.preprocess import PreprocessSpec, preprocess

CLASSES = ("ants", "bees")


@pytest.fixture(scope="session")
def spec() -> PreprocessSpec:
    """A small geometry with a real crop."""
    return PreprocessSpec(image_size=8, resize=10, mean=(0, 0, 0), std=(1, 1, 1))


@pytest.fixture(scope="session")
def flat() -> Callable[[int], onnx.ModelProto]:
    """Return a maker of the plainest backbone: the crop's pixels, as floats, are the features."""

    def make(size: int) -> onnx.ModelProto:
        graph = helper.make_graph(
            [
                helper.make_node("Transpose", ["pixels"], ["first"], perm=[0, 3, 1, 2]),
                helper.make_node("Cast", ["first"], ["values"], to=TensorProto.FLOAT),
                helper.make_node("Div", ["values", "levels"], [NORMALISED]),
                helper.make_node("Mul", [NORMALISED, "levels"], ["levels_of"]),
                helper.make_node("Round", ["levels_of"], ["whole"]),
                helper.make_node("Transpose", ["whole"], ["last"], perm=[0, 2, 3, 1]),
                helper.make_node("Flatten", ["last"], ["features"], axis=1),
            ],
            "flat",
            [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["n", size, size, 3])],
            [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", size**2 * 3])],
            [numpy_helper.from_array(np.array(255, np.float32), "levels")],
        )
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10
        )

    return make


@pytest.fixture(scope="session")
def layer() -> Layer:
    """A head of two classes for the plainest backbone at 8 pixels."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(2, 192)).astype(np.float32) / 255
    return weight, np.array([0.5, -0.25], np.float32)


@pytest.fixture(scope="session")
def header(spec: PreprocessSpec) -> Header:
    return complete_header("classifier", {"preprocess": spec.to_dict()}, CLASSES)


@pytest.fixture(scope="session")
def plain(
    flat: Callable[[int], onnx.ModelProto], layer: Layer, spec: PreprocessSpec
) -> onnx.ModelProto:
    """A whole classifier graph, small and quickly built, without a header."""
    return build_classifier(flat(8), [layer], spec)


@pytest.fixture(scope="session")
def content(plain: onnx.ModelProto, header: Header) -> bytes:
    """The same as a file's content."""
    return with_header(plain, header)


@pytest.fixture(scope="session")
def classifier(content: bytes) -> Classifier:
    return load_classifier(content, path=Path("plain.onnx"), threads=1)


@pytest.fixture(scope="session")
def photos_of_insects(data: Path) -> list[tuple[np.ndarray, int]]:
    """Real photos with their labels, ``(height, width, 3)`` uint8 each, classes in turn."""
    pairs = []
    for label, name in enumerate(CLASSES):
        files = sorted((data / "hymenoptera_data" / "val" / name).glob("*.jpg"))[:10]
        pairs.append([(decode_image(f.read_bytes(), sample_id=f.name), label) for f in files])
    return [pair for both in zip(*pairs, strict=True) for pair in both]


@dataclass(frozen=True, eq=False)
class Exported:
    """A real backbone with a head fitted on real photos, and the file made of them.

    Attributes:
        backbone: The backbone alone, as ONNX.
        layer: The head.
        preprocess: The geometry.
        classifier: The whole file, opened.
        features: Features by torch of raw images of any size.
    """

    backbone: onnx.ModelProto
    layer: Layer
    preprocess: PreprocessSpec
    classifier: Classifier
    features: Callable[[list[np.ndarray]], np.ndarray]

    def logits(self, images: list[np.ndarray]) -> np.ndarray:
        """Return what the head answers on torch's features."""
        return apply_layers([self.layer], self.features(images))


Case = tuple[str, str, str | None, int | None]


@pytest.fixture(scope="session")
def export(photos_of_insects: list[tuple[np.ndarray, int]]) -> Callable[[Case], Exported]:
    """Return a function that exports a case (backbone, weights, layer, size); small ones once."""
    made: dict[Case, Exported] = {}

    def make(case: Case) -> Exported:
        if case in made:
            return made[case]
        exported = _export(case, photos_of_insects)
        if exported.backbone.ByteSize() < 16 * 2**20:  # vit_b_16 takes 330 MiB, several times over
            made[case] = exported
        return exported

    return make


def _export(case: Case, photos: list[tuple[np.ndarray, int]]) -> Exported:
    name, weights, layer_name, size = case
    geometry = default_preprocess(name).with_overrides(image_size=size, resize=None, crop=None)
    network, spec = build_network(name, open_weights(name, weights), geometry, layer=layer_name)
    engine = TorchEngine(network, device="cpu")

    def features(images: list[np.ndarray]) -> np.ndarray:
        return engine.features(np.stack([preprocess(image, geometry) for image in images]))

    train = photos[6:14]
    labels = np.array([label for _, label in train])
    layer = fit_linear(features([image for image, _ in train]), labels, 2).layer
    backbone = export_network(network, image_size=geometry.image_size)
    graph = build_classifier(backbone, [layer], geometry)
    header = complete_header("classifier", spec.to_dict(), CLASSES)
    classifier = load_classifier(with_header(graph, header), path=Path(f"{name}.onnx"))
    return Exported(backbone, layer, geometry, classifier, features)


@pytest.fixture(scope="session")
def at_size() -> Callable[[np.ndarray, tuple[int, int]], np.ndarray]:
    """Return a function that gives a photo another raw size (width, height)."""

    def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))

    return resize
