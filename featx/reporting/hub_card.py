"""README files of Hugging Face's hub: a card with the metadata that the hub reads, as YAML."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from featx.artifact import CARD_SIGN, Header
from featx.backbones.licences import FREE, UNKNOWN
from featx.heads.tasks import task_of
from featx.reporting.card import card_text

_MAX_CLASSES = 1000
_KNOWN = FREE | {
    *("cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-4.0"),
    *("gpl-2.0", "gpl-3.0", "lgpl-3.0", "agpl-3.0", "mpl-2.0", "bsd", "apple-amlr", "openrail"),
}
"""Licences of weights that the hub knows by this name."""
_METRICS: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "single-label": {
        "top1": ("accuracy", "accuracy"),
        "balanced_accuracy": ("accuracy", "balanced accuracy"),
        "macro_f1": ("f1", "macro F1"),
    },
    "multi-label": {
        "mean_average_precision": ("mean_average_precision", "mean average precision"),
        "micro_f1": ("f1", "micro F1"),
        "macro_f1": ("f1", "macro F1"),
    },
    "regression": {"mae": ("mae", "MAE"), "rmse": ("rmse", "RMSE"), "r2": ("r_squared", "R²")},
}
"""By task and name of a score: the hub's type of it, and its name."""
_SIGN = re.compile(rf"^{re.escape(CARD_SIGN)}: text (?P<sha256>[0-9a-f]{{64}}) -->\n", re.MULTILINE)


def model_metadata(header: Header, repo: str, licence: str | None) -> dict[str, Any]:
    """Return the hub's metadata of a model: strings, numbers, lists and mappings, no null.

    Args:
        header: Of the model.
        repo: ``USER/NAME``.
        licence: The hub's name of one; None takes that of the weights, where it is recorded.

    Source: https://huggingface.co/docs/hub/model-cards, its metadata specification.
    """
    details, task = header.details, task_of(header.details)
    is_classifier = task.activation is not None  # no regression
    found: dict[str, Any] = {"library_name": "onnx"}
    if is_classifier:
        found["pipeline_tag"] = "image-classification"
    found |= licence_metadata(details, licence)
    scheme, _, name = str(details["weights"]).partition(":")
    if scheme == "timm":
        found["base_model"] = f"timm/{name}"
    found["tags"] = ["featx", "onnx", *(["multi-label"] if task.name == "multi-label" else [])]
    found["tags"].append(str(header.spec["backbone"]).partition("/")[2] or header.spec["backbone"])
    if is_classifier:
        found["classes"] = list(header.classes[:_MAX_CLASSES])
    if results := list(_results(details, task.name)):
        found["model-index"] = [{"name": repo.partition("/")[2], "results": results}]
    return found


def _results(details: Mapping[str, Any], task: str) -> Iterator[dict[str, Any]]:
    """Yield the scores on each held-out split, as the hub lists them."""
    kind = "other" if task == "regression" else "image-classification"
    source = str(details["source"]).removesuffix(":") or "images"
    for split in ("val", "test"):
        own = details["metrics"].get(split, {})
        metrics = [
            {"type": type_, "name": name, "value": round(float(own[score]), 6)}
            for score, (type_, name) in _METRICS[task].items()
            if own.get(score) is not None and math.isfinite(own[score])
        ]
        if metrics:
            yield {
                "task": {"type": kind},
                "dataset": {"type": "images", "name": source, "split": split},
                "metrics": metrics,
            }


def licence_metadata(details: Mapping[str, Any], licence: str | None) -> dict[str, str]:
    """Return the licence as the hub names it: the given one, else that of the weights, if known."""
    name, _, link = (licence or str(details.get("licence") or "")).partition(", ")
    name = name.strip().lower()
    if licence or name in _KNOWN:
        return {"license": name} if name else {}
    if not name:
        return {}
    slug = re.sub(r"[^a-z0-9.]+", "-", name).strip("-.") or UNKNOWN
    own = {"license": "other", "license_name": slug}
    return own | ({"license_link": link} if link.startswith("https://") else {})


def model_readme(header: Header, repo: str, licence: str | None) -> str:
    """Return the README of a model's repository; ``is_edited`` tells whether it was changed."""
    text = card_text("model.onnx", header, repo=repo)
    return _signed(model_metadata(header, repo, licence), text)


def space_readme(header: Header, repo: str, licence: str | None) -> str:
    """Return the README of a static Space with the model's page."""
    metadata = {
        **{"title": repo.partition("/")[2], "sdk": "static", "app_file": "index.html"},
        **{"pinned": False, "models": [repo]},
        **licence_metadata(header.details, licence),
    }
    link = f"[{repo}](https://huggingface.co/{repo})"
    return _signed(
        metadata, f"This page runs {link} in the browser: images do not leave the device.\n"
    )


def _signed(metadata: Mapping[str, Any], text: str) -> str:
    front = f"---\n{yaml_text(metadata)}---\n\n"
    return f"{front}{CARD_SIGN}: text {_sha256(front + text)} -->\n{text}"


def is_edited(readme: str) -> bool:
    """Return whether a README differs from what featx wrote, or was never written by it."""
    readme = readme.replace("\r\n", "\n")
    sign = _SIGN.search(readme)
    return sign is None or sign["sha256"] != _sha256(readme.replace(sign[0], "", 1))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


def yaml_text(metadata: Mapping[str, Any]) -> str:
    r"""Return metadata as YAML that YAML 1.1 and 1.2 read alike: every string is in quotes.

    >>> print(yaml_text({"tags": ["no", "a: b"], "x": [{"v": 1e-07}]}), end="")
    tags:
    - "no"
    - "a: b"
    x:
    - v: 1.0e-07
    """
    return "".join(f"{line}\n" for line in _lines(metadata))


def _lines(metadata: Mapping[str, Any]) -> Iterator[str]:
    for key, value in metadata.items():
        if isinstance(value, Mapping):
            yield f"{key}:"
            yield from (f"  {line}" for line in _lines(value))
        elif isinstance(value, list):
            yield f"{key}:" if value else f"{key}: []"
            for each in value:
                lines = list(_lines(each)) if isinstance(each, Mapping) else [_scalar(each)]
                yield f"- {lines[0]}"
                yield from (f"  {line}" for line in lines[1:])
        else:
            yield f"{key}: {_scalar(value)}"


def _scalar(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    if isinstance(value, float) and "e" in text and "." not in text:
        return text.replace("e", ".0e")  # else YAML 1.1 takes it for text
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in text)
