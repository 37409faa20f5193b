"""The model card: one Markdown page for whoever gets the file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from featx.artifact import CARD_SIGN, Header, free_path, publish, require_replaceable
from featx.backbones.licences import licence_warning
from featx.classifier.contract import Contract, Value, steps
from featx.errors import ArtifactExists
from featx.features.file import FeatureFile
from featx.heads.describe import describe_training
from featx.heads.tasks import Labels, Task, task_of
from featx.images.preprocess import PreprocessSpec
from featx.images.views import ViewsSpec, describe_views
from featx.reporting.templates import markdown, markdown_table, render, safe

_CLASSES_SHOWN = 100


def write_card(
    path: Path, model: Path, header: Header, cache: FeatureFile | None, *, overwrite: bool
) -> None:
    """Write the card of an exported file.

    ``cache`` has the features it was trained on; None where they are gone.

    Raises:
        ArtifactError: The disk refused; nothing is left behind.
    """
    text = card_text(model.name, header, cache).encode("utf-8", "backslashreplace")
    publish(path, _sign(text, model, header) + text, overwrite=overwrite)


def require_card_replaceable(path: Path, *, overwrite: bool) -> bool:
    """Check that a card may be written; return whether there is an earlier one.

    Raises:
        ArtifactExists: Something else lies there; or a card that was edited, without ``overwrite``.
        ArtifactError: It cannot be written.
    """
    exists = require_replaceable(path, "card")
    if exists and not overwrite and not _is_unedited(path.read_bytes()):
        raise ArtifactExists(
            path,
            f"The model card '{path}' was edited since featx wrote it. Use overwrite=True to "
            f"replace it, or give another path, such as '{free_path(path)}'.",
        )
    return exists


def is_card_of(path: Path, model: Path, header: Header) -> bool:
    """Return whether a card is as it was written for this model."""
    try:
        content = path.read_bytes()
    except OSError:
        return False
    _, _, text = content.partition(b"\n")
    return content.startswith(_sign(text, model, header))


def _is_unedited(content: bytes) -> bool:
    sign, _, text = content.partition(b"\n")
    return _sha256(text).encode() in sign


def _sign(text: bytes, model: Path, header: Header) -> bytes:
    """Return the first line of a card: the sha256 of its text, and of the model's name and header.

    The first shows whether a card was edited, the second whether it belongs to the model.
    """
    of = _sha256(f"{model.name}\n{header.to_json()}".encode("utf-8", "surrogateescape"))
    return f"{CARD_SIGN}: text {_sha256(text)}, model {of} -->\n".encode()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def card_text(
    model: str, header: Header, cache: FeatureFile | None = None, *, repo: str = ""
) -> str:
    """Return the text of a card, Markdown.

    Args:
        model: Name of the file.
        header: Its header.
        cache: As ``write_card``.
        repo: ``USER/NAME`` on the hub, for which the card has commands.
    """
    details, spec = header.details, header.spec
    geometry, task = PreprocessSpec.from_dict(spec["preprocess"]), task_of(details)
    contract = Contract.from_dict(details["contract"], task=task)
    if contract.image_shape:  # a JPEG that is decoded scaled would have another one
        geometry = replace(geometry, decode="full")
    results = contract.output_values(
        num_classes=len(header.classes), num_features=spec["num_features"]
    )
    tensors = [("input", contract.input_value(geometry)), *(("output", each) for each in results)]
    choice, views = details["head"], details.get("views")
    return render(
        "card.md",
        {
            "model": model,
            "repo": repo,
            "task": task.name,
            "contract": contract,
            "stale": details.get("stale"),
            "details": details,
            "spec": spec,
            "counts": cache and _counts(header, cache, task),
            "few_shot": details.get("few_shot"),
            "num_groups": len(np.unique(cache.groups[cache.groups >= 0])) if cache else 0,
            "num_classes": len(header.classes),
            "classes": header.classes[:_CLASSES_SHOWN],
            "licence": licence(details["weights"], details.get("licence")),
            "choice": ", ".join(
                str(choice[name]) if name == "head" else f"{name} {choice[name]}"
                for name in ("head", "solver", "strength", "hidden", "seed")
                if name in choice
            ),
            "training": describe_training(choice),
            "views": describe_views(ViewsSpec.from_dict(views)) if views else "",
            "steps": steps(geometry, "tensor"),
            "tensors": markdown_table(
                ("", "name", "type", "shape", "meaning"), [_tensor(*each) for each in tensors]
            ),
            "intervals": "95 % Wilson intervals" if task.has_classes else "of 95 %",
            "scores": _scores(task, details["metrics"]),
            "proof": details["proof"],
            "programs": snippets(model, contract, geometry),
        },
    )


def _tensor(role: str, value: Value) -> list[object]:
    shape = f"({', '.join(map(str, value.shape))})"
    return [role, *map(safe, (f"`{value.name}`", value.dtype, shape, value.text))]


def _counts(header: Header, cache: FeatureFile, task: Task) -> str:
    """Return a table of the images of each class and split."""
    labels = Labels(cache.classes, cache.labels, cache.sample_ids, str(cache.path))
    targets = task.read(labels, names=header.classes)
    rows = {
        name: targets.labelled & task.has(targets.values, index)
        for index, name in enumerate(header.classes[:_CLASSES_SHOWN])
    }
    splits = range(len(cache.split_names))
    counts = [
        [name, *(f"{int((cache.splits[chosen] == i).sum()):,}" for i in splits)]
        for name, chosen in [*rows.items(), ("all", np.ones(len(cache), bool))]
    ]
    return markdown_table([task.output, *cache.split_names], counts)


def _scores(task: Task, metrics: Mapping[str, Any]) -> str:
    """Return a table of the scores of each split."""
    scores = {split: task.scores_from_dict(own) for split, own in metrics.items()}
    rows = [
        [split, *(safe(column.text(own)) for column in task.columns)]
        for split, own in scores.items()
    ]
    return markdown_table(["split", *(column.title for column in task.columns)], rows)


def licence(origin: str, recorded: str | None = None) -> str:
    """Return the licence of weights from some origin, as far as it is known or recorded."""
    scheme, _, name = origin.partition(":")
    if recorded and (scheme, recorded) != ("bundled", "MIT"):
        warning = licence_warning("this model", recorded)
        return markdown(f"{recorded}. {warning}" if warning else recorded)
    if scheme == "torchvision":
        return (
            f"torchvision's {markdown(name)}. torchvision's code is BSD-3-Clause; its weights may "
            "have terms of their own that come from the data they were trained on (mostly "
            "ImageNet, for non-commercial research). See "
            "https://github.com/pytorch/vision#pre-trained-model-license"
        )
    if scheme == "bundled":
        return "featx's own, MIT; trained on CIFAR-10"
    if scheme == "random":
        return "random numbers, none needed"
    return "not known: a file of the user's"


def snippets(model: str, contract: Contract, spec: PreprocessSpec) -> dict[str, str]:
    """Return Markdown blocks of code that use a file without featx: Python, JavaScript and C#.

    Each is a whole program that prints the file's outputs. What the file does not do itself, the
    Python program does with Pillow: it takes the path of an image of 8 bits, or of grey of 16. The
    others take the path of raw numbers, prepared as their comment says.
    """
    size, batch = spec.image_size, contract.batch or 1
    shapes = {
        "image": f"{batch}, HEIGHT, WIDTH, 3",
        "crop": f"{batch}, {size}, {size}, 3",
        "tensor": f"{batch}, 3, {size}, {size}",
    }
    raw_inputs = {
        "image": "path, height and width of RGB bytes, row by row: decoded to 8 bits, upright, "
        "transparency laid on white",
        "crop": f"path of RGB bytes of {size}×{size} pixels, made as 'Preprocessing' says",
        "tensor": f"path of 3×{size}×{size} floats, made as 'Preprocessing' says",
    }
    ranked = [name for name in ("probabilities", "logits") if name in contract.outputs]
    values = {
        "model": json.dumps(model),
        "contract": contract,
        "spec": spec,
        "size": size,
        "shape": shapes[contract.input],
        "raw_input": raw_inputs[contract.input]
        + (f"; {batch} of them, one after the other" if batch > 1 else ""),
        "best": ranked[0] if ranked else None,
    }
    return {
        name: f"```{fence}\n{render(f'use.{suffix}.jinja', values)}```"
        for name, fence, suffix in (
            ("Python", "python", "py"),
            ("JavaScript", "javascript", "mjs"),
            ("C#", "csharp", "cs"),
        )
    }
