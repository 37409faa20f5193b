"""The fields of a header that readers use, with types and ranges, for each kind of artifact.

Fields that are not declared are ignored, except where a mapping decides what features mean. A field
that older files lack is optional.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from featx.artifact.schema import (
    Rule,
    Unfit,
    digest,
    flag,
    items,
    list_of,
    mapping_of,
    nullable,
    number,
    path_text,
    record,
    text,
    whole,
)

_SHARE = number(0, 1)
_TASK = text("single-label", "multi-label", "regression")
_POOL = text("auto", "none", "avg", "max", "cls", "flatten", "cls+avg", "map")
_PRECISION = text("fp32", "tf32", "bf16", "fp16", "int8")
_CROP, _DECODE = text("center", "none", "squash", "border"), text("full", "scaled")
_MAX_VALUES = 2**31
"""Values in one image's features, at most."""
_MAX_CUT_VALUES = 2**28
"""Values in one image's activations at a cut, at most: a gigabyte in float32."""
_INT64 = whole(-(2**63), 2**63 - 1)
_TAKES = {"input": text("image", "crop", "tensor"), "outputs": list_of(text())}
_FIXED = {"image_shape": list_of(whole(1), length=2), "batch": whole(1)}
_COLUMNS = ("features", "labels", "splits", "sample_ids", "digests", "stamps")


def require_fields(
    kind: str, spec: Any, classes: tuple[str, ...], details: Any, environment: Any
) -> None:
    """Check what a header of some kind says."""
    _spec(spec, "spec")
    list_of(text())(classes, "classes")
    mapping_of(text())(environment, "environment")
    if kind == "features":
        _FEATURES(details, "details")
        _require_same_parts(spec, details)
        return
    record({}, {"task": _TASK})(details, "details")
    task = details.get("task", "single-label")
    of_kind = _head if kind == "head" else _classifier
    of_kind(task, len(classes))(details, "details")


# --- what features mean ---------------------------------------------------------------------------


def _preprocess(value: Any, name: str) -> None:
    channels = list_of(number(-1e6, 1e6), length=3)
    record(
        {
            "image_size": whole(1, 4096),
            "resize": whole(1, 4 * 4096),
            "crop": _CROP,
            "interpolation": text("bilinear", "bicubic"),
            "mean": channels,
            "std": list_of(number(1e-6, 1e6), length=3),
        },
        {"decode": _DECODE, "pad": flag},
        closed=True,
    )(value, name)
    size = value["image_size"]
    lowest = 1 if value.get("pad") or value["crop"] == "border" else size
    whole(lowest, size if value["crop"] == "none" else 4 * 4096)(value["resize"], f"{name}.resize")


def _spec(value: Any, name: str) -> None:
    ranges = mapping_of(items(number(), number()))
    calibration = record({"scheme": whole(), "ranges": ranges}, closed=True)
    fields = {
        "backbone": path_text,
        "weights_sha256": digest(),
        "layer": path_text,
        "pool": _POOL,
        "num_features": whole(1, _MAX_VALUES),
        "preprocess": _preprocess,
        "precision": _PRECISION,
    }
    known = value if isinstance(value, Mapping) else {}
    if known.get("precision") == "int8":
        fields["calibration"] = calibration
    elif "cut" in known or "shape" in known:
        fields |= {"cut": path_text, "shape": _shape}
    record(fields, closed=True)(value, name)
    size = value["preprocess"]["image_size"]
    if value.get("cut") == "input" and list(value["shape"]) != [size, size, 3]:
        raise Unfit(f"{name}.shape", f"[{size}, {size}, 3] at the input", value["shape"])


def _shape(value: Any, name: str) -> None:
    list_of(whole(1, _MAX_CUT_VALUES), at_least=1)(value, name)
    if len(value) > 4 or math.prod(value) > _MAX_CUT_VALUES:
        raise Unfit(name, f"1 to 4 numbers whose product is at most {_MAX_CUT_VALUES:,}", value)


# --- features -------------------------------------------------------------------------------------

_REQUEST = record(
    {
        "backbone": path_text,
        "weights": path_text,
        "layer": nullable(path_text),
        "pool": _POOL,
        "image_size": nullable(whole(1)),
        "resize": nullable(whole(1)),
        "crop": nullable(_CROP),
        "seed": _INT64,
    },
    {"decode": _DECODE, "precision": _PRECISION, "cut": path_text},
    closed=True,
)

_SKIPPED_IMAGE = (path_text, text(), list_of(_INT64, length=3))


def _skipped_image(value: Any, name: str) -> None:
    """Check id, reason, stamp and content hash of an image; version 2 has no hash."""
    is_old = isinstance(value, list | tuple) and len(value) == len(_SKIPPED_IMAGE)
    items(*_SKIPPED_IMAGE, *(() if is_old else (digest(32),)))(value, name)


_PAIR = items(number(0, above=True), number(0, above=True))
_VIEWS_SPEC = record(
    {
        "num_views": whole(1, 1000),
        "augment": list_of(text("crop", "flip", "color")),
        "scale": _PAIR,
        "ratio": _PAIR,
        "jitter": _SHARE,
        "version": whole(1),
    },
    closed=True,
)
_FEATURES = record(
    {
        "num_rows": whole(1),
        "sha256": record(
            dict.fromkeys(_COLUMNS, digest()), {"groups": digest(), "views": digest()}
        ),
        "source": path_text,
        "weights": path_text,
        "request": _REQUEST,
        "dtype": text("float32", "float16", "uint8"),
        "max_pixels": whole(1),
        "val_fraction": _SHARE,
        "skipped": list_of(_skipped_image),
    },
    {
        "ignored": mapping_of(whole()),
        "label_kind": text("tags", "classes"),
        "own_validation": flag,
        "views": _VIEWS_SPEC,
        "licence": text(),
    },
)


def _require_same_parts(spec: Any, details: Any) -> None:
    """Check that views have a column, and that pixels alone are stored as whole numbers."""
    if ("views" in details) != ("views" in details["sha256"]):
        raise Unfit("details.sha256", "views where details.views describes them", details["sha256"])
    if (details["dtype"] == "uint8") != (spec.get("cut") == "input"):
        raise Unfit("details.dtype", "uint8 for pixels, and for nothing else", details["dtype"])


# --- heads ----------------------------------------------------------------------------------------

_INTERVALS = {
    f"{name}{bound}": nullable(_SHARE)
    for name in ("precision", "recall")
    for bound in ("", "_low", "_high")
}
_COUNTS = {"num_samples": whole(), "num_predicted": whole()}
_PROBABILITIES = {"log_loss": number(0), "ece": _SHARE}


def _single_label(each: Callable[[dict[str, Rule]], Rule]) -> dict[str, Rule]:
    names = ("top1", "top1_low", "top1_high", "balanced_accuracy", "macro_f1")
    of_all = {**dict.fromkeys(names, _SHARE), "top5": nullable(_SHARE), **_PROBABILITIES}
    return {**of_all, "per_class": each({**_COUNTS, **_INTERVALS})}


def _multi_label(each: Callable[[dict[str, Rule]], Rule]) -> dict[str, Rule]:
    shares = dict.fromkeys(("micro_f1", "macro_f1", "exact", "exact_low", "exact_high"), _SHARE)
    of_all = {"mean_average_precision": nullable(_SHARE), **shares, **_PROBABILITIES}
    own = {"threshold": _SHARE, "average_precision": nullable(_SHARE)}
    return {**of_all, "per_class": each({**_COUNTS, **own, **_INTERVALS})}


def _regression(each: Callable[[dict[str, Rule]], Rule]) -> dict[str, Rule]:
    errors = {"mae": number(0), "rmse": number(0), "r2": nullable(number(high=1))}
    bounds = {"mae_low": number(0), "mae_high": number(0)}
    bounds |= dict.fromkeys(("r2_low", "r2_high"), nullable(number(high=1)))
    return {**errors, **bounds, "per_target": each(errors)}


_SCORES = {"single-label": _single_label, "multi-label": _multi_label, "regression": _regression}


def _scores(task: str, num_outputs: int) -> Rule:
    """Return the rule of the scores on one split."""
    fields = _SCORES[task](lambda own: list_of(record(own), length=num_outputs))
    return record({"num_samples": whole(), **fields})


def _of_task(task: str, num_outputs: int) -> dict[str, Rule]:
    """Return the fields that a head of some task has beside those of every head."""
    mean, scale = (list_of(rule, num_outputs) for rule in (number(), number(0, above=True)))
    own: dict[str, dict[str, Rule]] = {
        "multi-label": {"thresholds": list_of(_between_0_and_1, length=num_outputs)},
        "regression": {"unit": record({"mean": mean, "scale": scale})},
    }
    return {"metrics": mapping_of(_scores(task, num_outputs)), **own.get(task, {})}


def _between_0_and_1(value: Any, name: str) -> None:
    number(0, 1, above=True)(value, name)
    if value == 1:
        raise Unfit(name, "a number below 1", value)


_POSITIVE = number(0, above=True)
_RECIPE = record(
    {},
    {
        **dict.fromkeys(("lr", "layer_decay", "gamma"), _POSITIVE),
        **dict.fromkeys(("backbone_lr", "clip"), nullable(_POSITIVE)),
        **dict.fromkeys(("weight_decay", "momentum", "warmup"), number(0)),
        **dict.fromkeys(("max_epochs", "patience", "batch_size"), whole(1)),
        **dict.fromkeys(("optimizer", "average"), text()),
        "step_size": nullable(whole(1)),
        "train_bn": flag,
    },
)
_HELD_OUT = {"held_out": nullable(number()), "accuracy": nullable(number(high=1))}
_FINETUNED = {
    "cut": path_text,
    "scratch": flag,
    "recipe": _RECIPE,
    "learning_rates": list_of(record({"lr": _POSITIVE}, _HELD_OUT)),
    "epochs": list_of(record({"number": whole(1)}, {"loss": nullable(number()), **_HELD_OUT})),
    "best_epoch": whole(),
    "parameters": record({"trained": whole(), "all": whole()}),
}
"""Choice of a head that was trained with the network behind a cut."""

_COMPARED = record(
    {}, dict.fromkeys(("log_loss", "mae", "top1", "mean_average_precision", "r2"), number())
)
_VIEWS = record(
    {"num_views": whole(1), "with": nullable(_COMPARED), "without": nullable(_COMPARED)},
    {"num_samples": whole()},
)


def _choice(value: Any, name: str) -> None:
    """Check how a head was fitted; where there is a path, its points have the same measure."""
    strength = _POSITIVE
    record({"head": text(), "solver": text()})(value, name)
    of_sgd = {"epochs": whole(1)} if value["solver"] == "sgd" else {}
    record({}, {"strength": strength, "views": _VIEWS, **_FINETUNED, **of_sgd})(value, name)
    list_of(record({"strength": strength}))(value.get("path", []), f"{name}.path")
    if not value.get("path"):
        return
    by_error = "error" in value["path"][0]
    measure = {"error" if by_error else "log_loss": number(0)}
    top1 = nullable(_SHARE) if value["path"][0].get("top1") is None else _SHARE
    point = record({"strength": strength, "top1": top1, **measure})
    record({"strength": strength, "path": list_of(point)})(value, name)


_CALIBRATION = record(
    {
        "temperature": number(0, above=True),
        "num_samples": whole(),
        **dict.fromkeys(("log_loss_before", "log_loss_after"), number(0)),
        **dict.fromkeys(("ece_before", "ece_after"), _SHARE),
    }
)

_COMPARISON = record({"num_only_probe": whole(), "num_only_tuned": whole(), "p_value": _SHARE})
_ROW_SET = record({"num_rows": whole(), "sha256": digest(), "labels_sha256": digest()})
_PROVENANCE = record(
    {
        "trained": _ROW_SET,
        "scored": mapping_of(_ROW_SET),
        "sample": text(),
        "columns": digest(),
        "drawn": flag,
    },
    {"views": digest()},
)
_MADE_FROM = record({}, {"features": text()})


def _head(task: str, num_outputs: int) -> Rule:
    folds = record({"num_folds": whole(), "metrics": _scores(task, num_outputs)})
    probe = {"choice": _choice, "metrics": mapping_of(_scores(task, num_outputs))}
    return record(
        {
            "sha256": digest(),
            "features": path_text,
            "source": path_text,
            "weights": path_text,
            "val_fraction": _SHARE,
            "choice": _choice,
            **_of_task(task, num_outputs),
        },
        {
            "cross_validated": nullable(folds),
            "calibration": nullable(_CALIBRATION),
            "probe": nullable(record(probe)),
            "comparison": nullable(_COMPARISON),
            "provenance": _PROVENANCE,
            "made_from": _MADE_FROM,
            "views": _VIEWS_SPEC,
            **dict.fromkeys(("held_out", "licence"), text()),
            "excluded": list_of(path_text),
        },
    )


# --- classifiers ----------------------------------------------------------------------------------


def _proof(task: str, num_outputs: int) -> Rule:
    accuracy = record(
        {
            **dict.fromkeys(("num_images", "num_available"), whole()),
            **dict.fromkeys(("file", "head"), number(high=1)),
        },
        {"measure": text()},
    )
    logits = list_of(number(-3.4e38, 3.4e38), length=num_outputs)
    reference = record({"digest": digest(32), "logits": logits}, {"sample_id": path_text})
    full = {"full_top1_agreement": number(high=1), "max_full_difference": number(0)}

    def rule(value: Any, name: str) -> None:
        is_of_scaled = isinstance(value, Mapping) and "max_full_difference" in value
        record(
            {
                "num_images": whole(),
                "top1_agreement": number(high=1),
                "max_difference": number(0),
                "bound": nullable(number(0)),
                **(full if is_of_scaled else {}),
            },
            {
                "task": text(task),
                **{"date": text(), "graph_sha256": digest(64)},
                "hard": mapping_of(number(0)),
                "accuracy": nullable(accuracy),
                "untrained": list_of(whole(0, num_outputs - 1)),
                "witnesses": nullable(list_of(reference, at_least=1)),
            },
        )(value, name)
        if value.get("task", "single-label") != task:
            raise Unfit(f"{name}.task", task, value.get("task"))

    return rule


def _classifier(task: str, num_outputs: int) -> Rule:
    return record(
        {
            "source": path_text,
            "weights": path_text,
            "val_fraction": _SHARE,
            **_of_task(task, num_outputs),
        },
        {
            "contract": nullable(record(_TAKES, _FIXED)),
            "opset": whole(1),
            "head": _choice,
            "made_from": _MADE_FROM,
            "views": _VIEWS_SPEC,
            **dict.fromkeys(
                ("held_out", "stale", "licence", "precision", "runtime", "tried"), text()
            ),
            "trained_on": _ROW_SET,
            "unknown_below": _SHARE,
            "proof": nullable(_proof(task, num_outputs)),
        },
    )
