"""The backbone of a run: built when somebody asks, so that a run without work never loads torch."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from featx.artifact import describe_environment
from featx.errors import BackboneError
from featx.stages.extract.options import ExtractOptions

if TYPE_CHECKING:
    from featx.backbones.engines import TorchEngine
    from featx.backbones.network import Network
    from featx.backbones.spec import BackboneSpec
    from featx.backbones.weights import Weights


class LazyBackbone:
    """The network that the options ask for, and the engine that runs it.

    Attributes:
        device: What the engine runs on; None as long as there is none.
        seconds: That building it took.
    """

    def __init__(self, options: ExtractOptions) -> None:
        self._options = options
        self._built: tuple[Network, BackboneSpec, Weights] | None = None
        self.device: str | None = None
        self.seconds = 0.0

    def spec(self) -> BackboneSpec:
        """Return what its features mean.

        Raises:
            BackboneError: Backbone or weights cannot be used.
            ConfigError: An option does not fit the backbone.
        """
        return self._build()[1]

    def origin(self) -> str:
        """Return where its weights are from. Raises as ``spec``."""
        return self._build()[2].origin

    def engine(self, expected: BackboneSpec) -> TorchEngine:
        """Return what runs it.

        Raises:
            BackboneError: As ``spec``, or its features mean something else than expected.
            ConfigError: As ``spec``, or the device is not there.
        """
        from featx.backbones.engines import TorchEngine

        network, spec, _ = self._build()
        if spec.fingerprint != expected.fingerprint:
            raise BackboneError(
                f"The backbone {spec.backbone} is not the one that the features there are were "
                "made with: its weights changed meanwhile."
            )
        engine = TorchEngine(network, device=self._options.device)
        self.device = str(engine.device)
        return engine

    def environment(self) -> dict[str, str]:
        """Return the versions and the device of the engine."""
        versions = describe_environment("torch", "torchvision", "pillow", "h5py")
        return versions | {"device": str(self.device), "engine": "torch"}

    def _build(self) -> tuple[Network, BackboneSpec, Weights]:
        if self._built is None:
            start = time.perf_counter()
            self._built = open_backbone(self._options)
            self.seconds = time.perf_counter() - start
        return self._built


def open_backbone(options: ExtractOptions) -> tuple[Network, BackboneSpec, Weights]:
    """Return the frozen network that the options ask for.

    Raises:
        BackboneError: Backbone or weights cannot be used.
        ConfigError: An option does not fit the backbone.
    """
    from featx.backbones.catalog import default_preprocess
    from featx.backbones.network import build_network
    from featx.backbones.weights import open_weights

    weights = open_weights(
        options.backbone, options.weights, seed=options.seed, progress=not options.quiet
    )
    scheme, _, name = weights.origin.partition(":")
    own = default_preprocess(options.backbone, name if scheme == "torchvision" else None)
    geometry = own.with_overrides(
        image_size=options.image_size, resize=options.resize, crop=options.crop
    )
    network, spec = build_network(
        options.backbone, weights, geometry, layer=options.layer, pool=options.pool
    )
    return network, spec, weights
