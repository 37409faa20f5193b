"""A head with its network as an ordinary state dict, for programs that know the model."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

import numpy as np

from featx.artifact import publish, require_apart, require_writable, run_files
from featx.artifact.keywords import by_keyword, record_of
from featx.backbones.spec import BackboneSpec
from featx.classifier.staleness import find_features
from featx.errors import ConfigError, ExportError
from featx.heads.head import Head, open_head
from featx.images.reading import spread
from featx.stages.export.evidence import open_evidence
from featx.stages.export.options import ExportKeywords, ExportOptions, warn_of_licence

MAX_DIFFERENCE = 1e-4
"""Of the model's logits from those of network and head, as a share of the largest."""
_SUFFIXES = (".pth", ".pt", ".safetensors")
_NUM_IMAGES = 16


@dataclass(frozen=True)
class StateDictReport:
    """Result of writing a state dict.

    Attributes:
        path: The file.
        load: Python expression of the model that takes it, with ``strict=True``.
        max_difference: Of that model's logits from those of network and head, as a share of the
            largest logit.
        num_images: Images that were compared; 0 where they were random pixels.
        num_bytes: Size of the file.
        seconds: All in all.
    """

    path: Path
    load: str
    max_difference: float
    num_images: int
    num_bytes: int
    seconds: float


@by_keyword(ExportOptions)
def export_state_dict(
    head: str | Path,
    output: str | Path,
    options: ExportOptions | None = None,
    *,
    progress: Callable[[str], None] | None = None,
    **keywords: Unpack[ExportKeywords],
) -> StateDictReport:
    """Write a head's network, with the head as its last layer, as a state dict of the whole model.

    torchvision's model with as many classes as the head has outputs takes it strictly. It gives
    logits; of a regression, values. They are compared on real images before the file is written.

    Args:
        head: The head file, of one linear layer.
        output: Ends in ``.pth`` or ``.pt``, for ``torch.load``; or in ``.safetensors``.
        options: Of these, ``features``, ``source``, ``weights``, ``verify``, ``stale`` and
            ``overwrite`` count here; without ``verify`` random pixels are compared.
        keywords: The options by name: ``verify=False``.
        progress: Called with each step.

    Raises:
        ArtifactExists: A file is there, and ``overwrite`` is not set.
        ArtifactError: Head or features cannot be used, or the file cannot be written.
        BackboneError: The weights are gone or others, or the model cannot have this head.
        ConfigError: The head is not a linear layer, or the output has another ending.
        ExportError: The model gives other logits; nothing is written.
        SourceError: The images are gone.
    """
    start = time.perf_counter()
    options, output = record_of(ExportOptions, options, keywords), Path(output)
    report = progress or (lambda _: None)
    trained = open_head(head)
    _require_fit(trained, output)
    read = {f"the head '{head}'": Path(head)}
    read |= run_files(find_features(trained, Path(head), options.features))
    require_apart({"the state dict": output}, read)
    require_writable(output, overwrite=options.overwrite)

    from featx.backbones import with_head
    from featx.stages.export.network import network_of

    spec = BackboneSpec.from_dict(trained.header.spec)
    with_head.require_last_layer(spec)
    warn_of_licence(trained)
    crops = _crops(trained, Path(head), options)
    report("Building the model")
    network = network_of(trained, options.weights, report)
    model = with_head.build_whole(spec, network, *trained.layers[0])
    difference = with_head.largest_difference(model, network, crops)
    if not difference <= MAX_DIFFERENCE:
        raise ExportError(
            f"The whole {spec.backbone} gives other logits than its network with the head: they "
            f"differ by {difference:.1e} of the largest, at most {MAX_DIFFERENCE:.0e} is allowed. "
            f"'{output}' was not written."
        )
    content = with_head.state_dict_bytes(model, suffix=output.suffix)
    publish(output, content, overwrite=options.overwrite)
    return StateDictReport(
        path=output,
        load=with_head.how_to_load(spec, len(trained.classes)),
        max_difference=difference,
        num_images=len(crops) if options.verify else 0,
        num_bytes=len(content),
        seconds=time.perf_counter() - start,
    )


def _require_fit(head: Head, output: Path) -> None:
    if len(head.layers) != 1:
        raise ConfigError(
            f"A state dict has one last layer, and this head has {len(head.layers)}. Train a "
            "linear head, or export an ONNX file."
        )
    if output.suffix not in _SUFFIXES:
        raise ConfigError(
            f"state_dict must end in {', '.join(_SUFFIXES[:-1])} or {_SUFFIXES[-1]}; got "
            f"'{output}'."
        )


def _crops(head: Head, path: Path, options: ExportOptions) -> np.ndarray:
    """Return what the network sees of some images, ``(n, size, size, 3)`` uint8."""
    if options.verify:
        evidence = open_evidence(head, path, options)
        rows = spread(np.arange(len(evidence.cache)), _NUM_IMAGES)
        return np.concatenate(list(evidence.crops(rows)))
    size = head.header.spec["preprocess"]["image_size"]
    return np.random.default_rng(0).integers(0, 256, (_NUM_IMAGES, size, size, 3), np.uint8)
