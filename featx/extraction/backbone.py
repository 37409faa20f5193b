"""The backbone of a run, built when it is first needed: a run without new images loads no torch."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from featx import system
from featx.artifact import describe_environment
from featx.backbones.engines import (
    Engine,
    EngineName,
    OnnxEngine,
    PixelEngine,
    SideBySide,
    choose_engine,
    default_batch_size,
    resolve_device,
    resolve_devices,
)
from featx.backbones.graph_cache import ResolvedRequest, cache_graph, recall, remember
from featx.backbones.graphs import graph_of
from featx.backbones.spec import INPUT, spec_from
from featx.backbones.torch_engine import SeveralEngine, TorchEngine
from featx.errors import BackboneError, ExportError, SourceError
from featx.extraction.options import ResolvedOptions
from featx.images.preprocess import PreprocessSpec, preprocess
from featx.images.reading import read_images, spread
from featx.images.sources import ImageSource
from featx.packages import require_torch

if TYPE_CHECKING:
    from featx.backbones.network import Network
    from featx.backbones.spec import BackboneSpec
    from featx.backbones.weights import Progress, Weights

log = logging.getLogger(__name__)

_NUM_CALIBRATED, _NUM_COMPARED = 128, 32


@dataclass(frozen=True)
class RemoteEngine:
    """What runs on other machines; ``graph`` is empty where ONNX Runtime does not run it."""

    name: EngineName
    device: str
    graph: bytes

    def features(self, pixels: np.ndarray) -> np.ndarray:
        raise BackboneError(f"{len(pixels)} crops came here, but the backbone runs elsewhere.")


class LazyBackbone:
    """The network that the options ask for, and the engine that runs it; ``seconds`` it took both.

    Methods raise ``BackboneError`` where backbone or weights cannot be used, and ``ConfigError``
    where an option does not fit the backbone.
    """

    def __init__(self, options: ResolvedOptions, progress: Progress | None = None) -> None:
        self._options, self._progress = options, progress
        # What it resolves to in fp32 is cached; the ranges of int8 depend on the source, too.
        self._request = replace(options.request, precision="fp32")
        self._found: ResolvedRequest | None = None
        self._network: Network | None = None
        self._engine: Engine | None = None
        self.seconds = 0.0
        self.kinds: Sequence[str] = ()
        """Of the processors that ran it, where they are other machines'."""

    @property
    def device(self) -> str | None:
        return None if self._engine is None else self._engine.device

    @property
    def engine_name(self) -> str | None:
        return None if self._engine is None else self._engine.name

    def spec(self) -> BackboneSpec:
        """Return the spec of its features, in fp32 where int8 is yet to be calibrated."""
        spec, precision = self._find().spec, self._options.precision
        return spec if precision == "int8" else replace(spec, precision=precision)

    def calibrated(self, pixels: np.ndarray) -> BackboneSpec:
        """Return the spec of its features in int8, calibrated with ``(n, size, size, 3)`` uint8."""
        from featx.backbones.int8 import calibrate, narrowed, quantize_graph

        with self._timed():
            spec = self._find().spec
            log.info("Calibrating %s for int8 with %d images, once.", spec.backbone, len(pixels))
            graph = self.graph(spec.in_float32)
            some = pixels[:: -(-len(pixels) // _NUM_COMPARED)]
            calibration = narrowed(graph, calibrate(graph, [pixels]), some, spec.backbone)
            spec = replace(spec, precision="int8", calibration=calibration)
            cache_graph(spec, quantize_graph(graph, calibration))
            return spec

    def origin(self) -> str:
        return self._find().origin

    def is_for_gpu(self) -> bool:
        """Return whether a GPU of this machine will run it, before there is an engine."""
        if self._options.ray:
            return False
        with self._timed():
            return self._chosen() == "torch" and resolve_device(self._options.device).type != "cpu"

    def engine(self, expected: BackboneSpec) -> Engine:
        with self._timed():
            if self._options.ray:
                self._engine = self._remote_engine(expected)
            elif self._chosen() == "none":
                self._engine = PixelEngine()
            else:
                build = self._torch_engine if self._chosen() == "torch" else self._onnx_engine
                self._engine = build(expected)
            return self._engine

    def environment(self) -> dict[str, str]:
        library = ("onnxruntime",) if self.engine_name == "onnxruntime" else ()
        builders = spec_from(self._options.backbone)[1:]
        versions = describe_environment(*builders, "pillow", "h5py", *library)
        kinds = {"processors": "; ".join(self.kinds)} if len(self.kinds) > 1 else {}
        return versions | {"device": str(self.device), "engine": str(self.engine_name)} | kinds

    def _chosen(self) -> EngineName:
        options = self._options
        if options.cut == INPUT:
            return "none"
        if not options.ray:
            return choose_engine(options.engine, options.device, options.precision)
        if options.device.startswith("cuda"):
            return "torch"
        return choose_engine(options.engine, "cpu", options.precision)

    def _remote_engine(self, expected: BackboneSpec) -> RemoteEngine:
        """Return the engine of other machines, with the graph that they run."""
        name, device = self._chosen(), "cpu"
        if self._options.device.startswith("cuda") and name == "torch":
            device = "cuda:0"
        try:
            graph = self.graph(expected) if name == "onnxruntime" else b""
        except ExportError as err:
            if self._options.engine != "auto" or expected.calibration is not None:
                raise
            log.warning("torch runs this backbone: %s", err)
            name, graph = "torch", b""
        return RemoteEngine(name, device, graph)

    def _torch_engine(self, expected: BackboneSpec) -> Engine:
        network, devices = self._build(expected), resolve_devices(self._options.device)
        if len(devices) > 1 and system.can_pass_files():
            log.info("Starting a process for each of %s.", ", ".join(devices))
            return SeveralEngine(network, expected, devices=devices)
        return TorchEngine(network, device=devices[0], precision=expected.precision)

    def _onnx_engine(self, expected: BackboneSpec) -> Engine:
        try:
            return OnnxEngine(self.graph(expected))
        except ExportError as err:
            if self._options.engine != "auto" or expected.calibration is not None:
                raise
            log.warning("torch runs this backbone: %s", err)
            return TorchEngine(self._build(expected), device="cpu")

    def graph(self, expected: BackboneSpec) -> bytes:
        """Return the graph that ONNX Runtime runs; ``ExportError`` where there can be none."""
        return graph_of(expected, self._build)

    def _find(self) -> ResolvedRequest:
        if self._found is None:
            self._found = recall(self._request) or self._build_anew()
        return self._found

    def _build(self, expected: BackboneSpec) -> Network:
        if self._network is None:
            self._found = self._build_anew()
        if self._find().spec != expected.in_float32 or self._network is None:
            raise BackboneError(
                f"The backbone {expected.backbone} is not the one that the features there are were "
                "made with: its weights changed meanwhile."
            )
        return self._network

    def _build_anew(self) -> ResolvedRequest:
        with self._timed():
            self._network, spec, weights = open_backbone(self._options, self._progress)
        found = ResolvedRequest(spec, weights.origin)
        remember(self._request, found)
        return found

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Count the time of a block once, however many such blocks are in it."""
        start, before = time.perf_counter(), self.seconds
        try:
            yield
        finally:
            self.seconds = before + time.perf_counter() - start


def engine_of_several(parts: Sequence[tuple[LazyBackbone, BackboneSpec]]) -> Engine | None:
    """Return an engine with the features of several layers side by side, each as alone.

    Each layer's features are, to the bit, those of its own engine. ONNX Runtime calculates once
    what the layers have in common, if it then gives the same bits; torch runs each layer's network.
    None where the layers are not run by one library.
    """
    engines = [backbone.engine(spec) for backbone, spec in parts]
    if len({engine.name for engine in engines}) > 1:
        return None
    each = SideBySide(engines)
    if each.name != "onnxruntime":
        return each
    from featx.backbones.onnx_graph import merge_graphs

    size = parts[0][1].preprocess.image_size
    shape = (default_batch_size(each.name, size), size, size, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    try:
        once = OnnxEngine(merge_graphs([backbone.graph(spec) for backbone, spec in parts]))
        if np.array_equal(once.features(pixels), each.features(pixels)):
            return once
        reason = "together their last bits would be others."
    except BackboneError as err:
        reason = str(err)
    log.info("ONNX Runtime runs each layer by itself: %s", reason)
    return each


def open_backbone(
    options: ResolvedOptions, progress: Progress | None = None
) -> tuple[Network, BackboneSpec, Weights]:
    require_torch(f"Building {options.backbone}, of which no graph is cached,")
    from featx.backbones.catalog import default_preprocess
    from featx.backbones.network import build_network
    from featx.backbones.timm_features import relative_cost
    from featx.backbones.weights import open_weights
    from featx.backbones.with_timm import larger_size, timm_preprocess, uses_timm

    weights = open_weights(options.backbone, options.weights, seed=options.seed, progress=progress)
    scheme, _, name = weights.origin.partition(":")
    own = default_preprocess(options.backbone, name if scheme == "torchvision" else None)
    size = options.image_size
    if uses_timm(options.backbone):  # another input keeps the same share of the image, as timm's
        own, size = timm_preprocess(options.backbone, size), None
    geometry = own.with_overrides(
        image_size=size,
        resize=options.resize,
        crop=options.crop,
        decode=options.decode,
    )
    network, spec = build_network(
        options.backbone,
        weights,
        geometry,
        layer=options.layer,
        pool=options.pool,
        cut=options.request.cut,
    )
    if uses_timm(spec.backbone):
        pixels = spec.preprocess.image_size
        cost = relative_cost(spec.backbone, pixels) if pixels > 224 else 1
        more = f", {cost:.1f} times the work of 224" if pixels > 224 else ""
        other = larger_size(spec.backbone)
        if other and options.image_size is None:
            more += f"; timm tests it with {other} as well: image_size={other}"
        log.info("%s takes images of %d pixels%s.", spec.backbone, pixels, more)
    return network, spec, weights


def calibration_pixels(images: ImageSource, spec: PreprocessSpec, *, max_pixels: int) -> np.ndarray:
    """Return usable images, spread evenly over those for training, ``(n, size, size, 3)`` uint8.

    At most 128. They are read before it is settled which training images become validation.
    """
    samples = images.samples
    own = [number for number, sample in enumerate(samples) if sample.split == "train"]
    chosen = spread(np.array(own or range(len(samples))), _NUM_CALIBRATED).tolist()
    read = read_images(
        images,
        chosen,
        lambda image: preprocess(image, spec),
        preprocess=spec,
        max_pixels=max_pixels,
    )
    found = [image for _, _, image in read]
    usable = [crop for crop in found if isinstance(crop, np.ndarray)]
    if not usable:
        raise SourceError(
            f"'{images.uri}': none of the {len(chosen)} images to calibrate int8 with can be used. "
            f"{found[0]}"
        )
    return np.stack(usable)
