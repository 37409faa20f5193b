"""Stage 3: stitch preprocessing, backbone and head into one ONNX file that proves itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featx.artifact import (
    Header,
    describe_environment,
    publishing,
    require_same_features,
    require_writable,
)
from featx.backbones.graph_cache import OPSET
from featx.backbones.network import Network, build_network
from featx.backbones.onnx_graph import export_network
from featx.backbones.spec import BackboneSpec
from featx.backbones.weights import Weights, open_origin, open_weights, require_sha256
from featx.classifier.contract import Contract, Input, output_names
from featx.classifier.graph import build_classifier, with_header
from featx.classifier.proof import NUM_IMAGES, Proof, prove
from featx.classifier.session import load_classifier
from featx.errors import ArtifactMissing, ConfigError, ExportError, SourceError
from featx.features.file import FeatureFile, open_features
from featx.heads.head import Head, open_head
from featx.images.decode import content_digest, pixels_of
from featx.images.read_ahead import read_ahead
from featx.images.sources import ImageSource, open_source

DEFAULT_RTOL = 0.02
"""Largest logit difference allowed by default, as a share of the largest logit (at least 1).

The resize in the graph rounds some pixels to another grey level than Pillow's; docs/parity.md has
what that does to logits.
"""


@dataclass(frozen=True)
class ExportOptions:
    """How to export.

    Attributes:
        features: The feature file the head was trained on; None takes the path the head recorded.
        source: The images; None takes the source the features recorded.
        weights: The backbone's weights, as ``extract`` takes them; None takes the recorded ones.
        atol: Largest absolute logit difference to head(cached features) that is allowed; None takes
            ``DEFAULT_RTOL`` of the largest logit.
        verify: Prove the file on images before it is published.
        overwrite: Replace the output.
        quiet: No download bar.
        input: What the file takes: ``"image"``, ``"crop"`` or ``"tensor"``; see ``Contract``.
        outputs: What it gives: any of ``"logits"``, ``"probabilities"``, ``"features"`` and
            ``"top-K"``.
    """

    features: str | Path | None = None
    source: str | None = None
    weights: str | None = None
    atol: float | None = None
    verify: bool = True
    overwrite: bool = False
    quiet: bool = False
    input: Input = "image"
    outputs: Sequence[str] = ("logits", "probabilities")

    def __post_init__(self) -> None:
        if self.atol is not None and not 0 < self.atol < float("inf"):
            raise ConfigError(f"atol must be above 0; got {self.atol}.")
        self.contract  # noqa: B018 names that are unknown are the first thing to hear of

    @property
    def contract(self) -> Contract:
        """What the file takes and gives."""
        return Contract(self.input, output_names(self.outputs))


@dataclass(frozen=True)
class ExportReport:
    """What an export made.

    Attributes:
        path: The ONNX file.
        header: What it says about itself.
        proof: What was compared; None where verification was left out.
        num_bytes: Size of the file.
        seconds: All in all.
    """

    path: Path
    header: Header
    proof: Proof | None
    num_bytes: int
    seconds: float


def export_onnx(
    head: str | Path,
    output: str | Path,
    options: ExportOptions | None = None,
    *,
    progress: Callable[[str], None] | None = None,
) -> ExportReport:
    """Write one ONNX file that maps raw images to logits and probabilities, and prove it.

    Args:
        head: The head file.
        output: The ONNX file.
        options: Where things are, and how strict to be.
        progress: Called with the name of each step.

    Raises:
        ArtifactError: The head or feature file cannot be used, or the output exists.
        BackboneError: The weights are gone or are others.
        SourceError: The images are gone or have changed.
        ExportError: The backbone cannot be exported.
        ParityError: The file does not answer what the head answers; nothing was written.
    """
    options, output, start = options or ExportOptions(), Path(output), time.perf_counter()
    tell = progress or (lambda _: None)
    trained = open_head(head)
    require_writable(output, overwrite=options.overwrite)
    evidence = _gather_evidence(trained, options) if options.verify else None
    tell("Exporting the backbone")
    network, spec = _rebuild(trained, options)
    graph = build_classifier(
        export_network(network, image_size=spec.preprocess.image_size),
        trained.layers,
        spec.preprocess,
        options.contract,
    )
    proof = None
    if evidence:
        tell(f"Comparing {len(evidence.images)} images")
        draft = load_classifier(with_header(graph, _header(trained, options, None)), path=output)
        bound = options.atol or DEFAULT_RTOL * max(1.0, float(np.abs(evidence.logits).max()))
        proof = prove(draft, evidence.images, evidence.names, evidence.logits, bound=bound)
    header = _header(trained, options, proof)
    content = with_header(graph, header)
    with publishing(output, overwrite=options.overwrite) as temporary:
        temporary.write_bytes(content)
    return ExportReport(output, header, proof, len(content), time.perf_counter() - start)


def _rebuild(head: Head, options: ExportOptions) -> tuple[Network, BackboneSpec]:
    """Return the network that made the features, with the very same weights.

    Raises:
        BackboneError: The weights are gone or have another sha256.
    """
    spec = BackboneSpec.from_dict(head.header.spec)
    weights = _find_weights(spec, str(head.header.details["weights"]), options)
    require_sha256(weights, spec.weights_sha256)
    network, rebuilt = build_network(
        spec.backbone,
        weights,
        spec.preprocess,
        layer=spec.layer,
        pool=spec.pool,
    )
    if rebuilt != spec:
        raise ExportError(
            f"The backbone {spec.backbone} built here differs from the one the features were made "
            "with. Use the versions of torch and torchvision that extracted them."
        )
    return network, spec


def _find_weights(spec: BackboneSpec, origin: str, options: ExportOptions) -> Weights:
    if options.weights is None:
        return open_origin(spec.backbone, origin, progress=not options.quiet)
    return open_weights(spec.backbone, options.weights, progress=not options.quiet)


@dataclass(frozen=True, eq=False)
class _Evidence:
    """Real images and what the head answered for them.

    Attributes:
        images: Raw pixels, ``(height, width, 3)`` uint8 each.
        names: Sample id of each.
        logits: Of the head on the cached features, ``(num_images, num_classes)``.
    """

    images: list[np.ndarray]
    names: list[str]
    logits: np.ndarray


def _gather_evidence(head: Head, options: ExportOptions) -> _Evidence:
    """Return at least 64 images of the source (all, if fewer) with the head's logits.

    Raises:
        ArtifactError: The feature file is gone or belongs to another head.
        SourceError: The images are gone or have changed.
    """
    path = Path(options.features or head.header.details["features"])
    if not path.exists():
        raise ArtifactMissing(
            path,
            f"The feature file '{path}' is not there to compare with. Give it with --features, or "
            "export unproven with --no-verify.",
        )
    cache = open_features(path)
    require_same_features(head.header, cache.header, path=path)
    rows = np.unique(np.linspace(0, len(cache) - 1, NUM_IMAGES).round().astype(int))
    try:
        source = open_source(options.source or str(cache.header.details["source"]))
        images = _read_unchanged(source, cache, rows)
    except SourceError as err:
        raise SourceError(
            f"{err} The images are needed to prove the exported file; give their place with "
            "--source, or export unproven with --no-verify."
        ) from err
    return _Evidence(
        images, [cache.sample_ids[row] for row in rows], head.logits(cache.features[rows])
    )


def _read_unchanged(source: ImageSource, cache: FeatureFile, rows: np.ndarray) -> list[np.ndarray]:
    """Return the pixels of some rows' images.

    Raises:
        SourceError: One is missing, unreadable, or has changed since its features were cached.
    """
    index_of = {sample.sample_id: index for index, sample in enumerate(source.samples)}

    def read(row: int) -> np.ndarray:
        name = cache.sample_ids[row]
        if name not in index_of:
            raise SourceError(f"'{source.uri}' no longer holds the image '{name}'.")
        content = source.read(index_of[name])
        if content_digest(content) != cache.digests[row].tobytes():
            raise SourceError(
                f"The image '{name}' of '{source.uri}' has changed since its features were cached."
            )
        return pixels_of(content, sample_id=name)

    with closing(read_ahead(lambda i: read(rows[i]), len(rows))) as ahead:
        return [future.result() for future in ahead]


def _header(head: Head, options: ExportOptions, proof: Proof | None) -> Header:
    details: dict[str, Any] = {
        "source": head.header.details["source"],
        "val_fraction": head.header.details["val_fraction"],
        "weights": head.header.details["weights"],
        "head_sha256": head.header.details["sha256"],
        "head": head.header.details["choice"],
        "metrics": head.header.details["metrics"],
        "contract": options.contract.to_dict(),
        "proof": proof.to_dict() if proof else None,
        "opset": OPSET,
    }
    return Header(
        kind="classifier",
        spec=head.header.spec,
        classes=head.classes,
        details=details,
        environment=describe_environment("torch", "torchvision", "onnx", "onnxruntime", "pillow"),
    )
