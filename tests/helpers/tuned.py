"""Feature files at a cut, and heads with a tail that seems trained, made from plain features."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from feature_files import publish_batch
from PIL import Image

from featx.backbones.network import build_network
from featx.backbones.spec import BackboneSpec
from featx.backbones.tails import tail_shapes
from featx.backbones.weights import open_origin
from featx.classifier.tails import features_through
from featx.features.file import open_features
from featx.features.records import Batch, RowLayout
from featx.heads.head import Head, save_head
from featx.images.preprocess import preprocess
from featx.images.sources import SPLITS, Sample
from featx.images.views import ViewsSpec
from featx.training.fitting import fit_heads
from featx.training.options import TrainOptions
from featx.training.record import head_header, made_from

CHOICE: dict[str, Any] = {
    **{"head": "linear", "solver": "finetune", "scratch": False, "best_epoch": 2},
    "recipe": {"optimizer": "adamw", "lr": 1e-3, "layer_decay": 0.9, "batch_size": 64},
    "learning_rates": [{"lr": 1e-3, "held_out": 0.5}, {"lr": 3e-3, "held_out": 0.6}],
    "epochs": [{"number": i, "loss": 0.9 / i, "held_out": 0.8 / i} for i in (1, 2, 3)],
}


def write_cut(
    path: Path,
    plain: Path,
    source: Path,
    cut: str,
    *,
    dtype: str = "float16",
    num_views: int = 0,
) -> Path:
    """Write the activations at a cut of the images that a file of vectors was made from.

    Views are all like the image itself.
    """
    file = open_features(plain)
    origin = file.header.details["weights"]
    vectors = BackboneSpec.from_dict(file.header.spec)
    weights = open_origin(vectors.backbone, origin)
    stem, spec = build_network(vectors.backbone, weights, vectors.preprocess, cut=cut)
    crops = [
        preprocess(np.asarray(Image.open(source / name).convert("RGB")), spec.preprocess)
        for name in file.sample_ids
    ]
    pixels = np.stack(crops)
    dtype = "uint8" if cut == "input" else dtype
    with torch.inference_mode():
        rows = pixels if cut == "input" else stem(torch.from_numpy(pixels)).numpy()
    details = {k: v for k, v in file.header.details.items() if k not in ("sha256", "num_rows")}
    details |= {"dtype": dtype}
    header = replace(file.header, spec=spec.to_dict(), details=details)
    if num_views:
        details["views"] = ViewsSpec(num_views, augment=()).to_dict()
    layout = RowLayout(spec.row_shape, dtype, num_views)
    samples = [
        Sample(name, int(label), SPLITS[split])
        for name, label, split in zip(file.sample_ids, file.labels, file.splits, strict=True)
    ]
    flat = rows.reshape(len(rows), -1).astype(dtype)
    views = np.repeat(flat[:, None], num_views, axis=1) if num_views else None
    reasons = ("",) * len(file)
    batch = Batch(file.sample_ids, file.stamps, file.digests, reasons, flat, views)
    return publish_batch(path, header, samples, batch, layout)


def write_tuned(
    path: Path, features: Path, *, options: TrainOptions | None = None, strength: float = 0.3
) -> Head:
    """Write a head whose tail differs from the weights' own, fitted on that tail's features."""
    cache, options = open_features(features), options or TrainOptions()
    spec = BackboneSpec.from_dict(cache.header.spec)
    weights = open_origin(spec.backbone, str(cache.header.details["weights"]))
    random = np.random.default_rng(0)
    tail = {}
    for name in tail_shapes(spec):
        value = weights.state[name].float().numpy()
        tail[name] = (value * (1 + strength * random.random(value.shape))).astype(np.float32)
    head = Head(cache.header, (), tail)
    trained = fit_heads(features_through(head, cache), options)[0]
    counts = {"trained": sum(v.size for v in tail.values()), "all": 688_000}
    choice = CHOICE | {"cut": spec.cut, "parameters": counts}
    probe = fit_heads(features_through(None, cache), options)[0]
    metrics = {split: scores.to_dict() for split, scores in probe.metrics.items()}
    header = head_header(
        cache,
        replace(trained, choice=choice),
        made_from(cache, {}),
        class_weight=None,
        more={
            "probe": {"choice": probe.choice, "metrics": metrics},
            "comparison": {"num_only_probe": 1, "num_only_tuned": 4, "p_value": 0.375},
        },
    )
    return save_head(path, Head(header, trained.layers, tail), overwrite=True)
