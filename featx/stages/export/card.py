"""The model card: one Markdown page for whoever gets the file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from featx.artifact import CARD_SIGN, Header, free_path, publishing, require_replaceable
from featx.classifier.contract import Contract, Value, steps
from featx.errors import ArtifactExists, counted, printable
from featx.features.file import FeatureFile
from featx.heads.tasks.targets import Labels, read_targets
from featx.heads.tasks.task import Task, task_of
from featx.images.preprocess import PreprocessSpec
from featx.stages.export.snippets import snippets

_CLASSES_SHOWN = 100
_PUNCTUATION = frozenset("\\|*_`~<>[]()!#&@:.$")  # of Markdown, and of addresses that become links
_KIND: dict[Task, str] = {
    "single-label": "An image classifier of {} classes",
    "multi-label": "An image classifier of {} tags that do not exclude each other",
    "regression": "A model of {} numbers for each image",
}
_THING: dict[Task, str] = {"single-label": "class", "multi-label": "tag", "regression": "target"}
_SAME: dict[Task, str] = {
    "single-label": "same class in {:.2%}; logits",
    "multi-label": "same tags in {:.2%}; logits",
    "regression": "values, in deviations of their target,",
}
_COLUMNS: dict[Task, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "multi-label": (
        ("mAP", ("mean_average_precision",)),
        ("micro F1", ("micro_f1",)),
        ("macro F1", ("macro_f1",)),
        ("all tags right", ("exact",)),
        ("95 %", ("exact_low", "exact_high")),
        ("log loss", ("log_loss",)),
        ("ECE", ("ece",)),
    ),
    "regression": (
        ("MAE", ("mae",)),
        ("95 %", ("mae_low", "mae_high")),
        ("RMSE", ("rmse",)),
        ("R²", ("r2",)),
        ("95 %", ("r2_low", "r2_high")),
    ),
}


def write_card(
    path: Path, model: Path, header: Header, cache: FeatureFile | None, *, overwrite: bool
) -> None:
    """Write the card of an exported file.

    Args:
        path: Where to.
        model: The ONNX file.
        header: What it says about itself.
        cache: The features it was trained on, which have the counts; None where they are gone.
        overwrite: Replace what is there.

    Raises:
        ArtifactError: The disk refused; nothing is left behind.
    """
    text = "\n".join(_lines(model, header, cache)).encode("utf-8", "backslashreplace")
    with publishing(path, overwrite=overwrite) as temporary:
        temporary.write_bytes(_sign(text, model, header) + text)


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
            f"The model card '{path}' was edited since featx wrote it. Use --overwrite to replace "
            f"it, or give another path, such as '{free_path(path)}'.",
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

    By the one an edited card is told, by the other that of another model.
    """
    of = _sha256(f"{model.name}\n{header.to_json()}".encode("utf-8", "surrogateescape"))
    return f"{CARD_SIGN}: text {_sha256(text)}, model {of} -->\n".encode()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _lines(model: Path, header: Header, cache: FeatureFile | None) -> Iterator[str]:
    details, spec = header.details, header.spec
    geometry = PreprocessSpec.from_dict(spec["preprocess"])
    task = task_of(details)
    contract = Contract.from_dict(details["contract"], task=task)
    results = contract.output_values(
        num_classes=len(header.classes), num_features=spec["num_features"]
    )
    yield f"# {_plain(model.name)}\n"
    yield (
        f"{_KIND[task].format(len(header.classes))} in one ONNX file: "
        f"{contract.input} in, {', '.join(contract.outputs)} out.\n"
    )
    if "stale" in details:
        yield f"**The head was stale when this file was made: {_plain(details['stale'])}.**\n"
    yield from _data(header, cache)
    yield "## Backbone and head\n"
    layer = f"layer {_code(spec['layer'])}, {spec['num_features']} features"
    yield f"- backbone: {_plain(spec['backbone'])}, {layer}"
    yield f"- weights: {_code(details['weights'])}, sha256 `{spec['weights_sha256']}`"
    yield f"- licence of the weights: {licence(details['weights'])}"
    yield f"- head: {_choice(details['head'])}, sha256 `{details['head_sha256']}`"
    yield f"- precision of the file: {details['precision']}; ONNX opset {details['opset']}\n"
    yield "## Preprocessing\n"
    where = {
        "image": "The file does all of it but the first step.",
        "crop": "It has to be done before the file, but for the normalisation.",
        "tensor": "It has to be done before the file.",
    }
    yield f"{where[contract.input]}\n"
    yield from (f"{i}. {step}" for i, step in enumerate(steps(geometry, "tensor"), start=1))
    yield "\n## Inputs and outputs\n"
    yield from _table(
        ("", "name", "type", "shape", "meaning"),
        [
            [where, f"`{value.name}`", value.dtype, _shape(value), value.text]
            for where, value in [
                ("input", contract.input_value(geometry)),
                *(("output", result) for result in results),
            ]
        ],
    )
    yield from _metrics(task, details["metrics"])
    yield from _proof(details["proof"], task)
    yield "## Use\n"
    for language, code in snippets(model.name, contract, geometry).items():
        yield f"### {language}\n\n{code}"


def _data(header: Header, cache: FeatureFile | None) -> Iterator[str]:
    yield "## Data\n"
    yield f"- source: {_code(header.details['source'])}"
    if cache is None:
        shown = ", ".join(map(_plain, header.classes[:_CLASSES_SHOWN]))
        yield f"- classes: {shown}\n"
        return
    task = task_of(header.details)
    labels = Labels(cache.classes, cache.labels, cache.sample_ids, str(cache.path))
    targets = read_targets(task, labels, names=header.classes)
    rows = []
    for index, name in enumerate(header.classes[:_CLASSES_SHOWN]):
        having = targets.labelled
        if task == "single-label":
            having = targets.values == index
        elif task == "multi-label":
            having = targets.labelled & (targets.values[:, index] > 0)
        rows.append([_plain(name), *_counts(cache.splits[having], cache)])
    yield "- images that the head was fitted on are those of the split `train`\n"
    yield from _table(
        (_THING[task], *cache.split_names), [*rows, ["all", *_counts(cache.splits, cache)]]
    )


def _counts(splits: np.ndarray, cache: FeatureFile) -> list[str]:
    return [f"{int((splits == i).sum()):,}" for i in range(len(cache.split_names))]


def _metrics(task: Task, metrics: Mapping[str, Any]) -> Iterator[str]:
    yield "## Scores\n"
    if task != "single-label":
        yield "Of the head on cached features; intervals are of 95 %.\n"
        columns = _COLUMNS[task]
        yield from _table(
            ("split", "images", *(title for title, _ in columns)),
            [
                [
                    _plain(split),
                    f"{own['num_samples']:,}",
                    *(_cell(own, names) for _, names in columns),
                ]
                for split, own in metrics.items()
            ],
        )
        return
    yield "Of the head on cached features; intervals are 95 % Wilson intervals.\n"
    yield from _table(
        ("split", "images", "top-1", "95 %", "balanced accuracy", "log loss", "ECE"),
        [
            [
                _plain(split),
                f"{scores['num_samples']:,}",
                f"{scores['top1']:.4f}",
                f"{scores['top1_low']:.4f}–{scores['top1_high']:.4f}",
                f"{scores['balanced_accuracy']:.4f}",
                f"{scores['log_loss']:.4f}",
                f"{scores['ece']:.4f}",
            ]
            for split, scores in metrics.items()
        ],
    )


def _cell(scores: Mapping[str, Any], names: Sequence[str]) -> str:
    """Return a score, or an interval of two."""
    values = [scores[name] for name in names]
    return "–".join("" if value is None else f"{value:.4g}" for value in values)


def _proof(proof: Mapping[str, Any] | None, task: Task) -> Iterator[str]:
    yield "## Proof\n"
    if proof is None:
        yield "None: the file was exported without comparing it with its head.\n"
        return
    allowed = "" if proof["bound"] is None else f", {proof['bound']:.2g} allowed"
    images, sizes = counted(proof["num_images"], "image"), counted(proof["num_sizes"], "size")
    yield (
        f"- {images} of {sizes} through the file and through the head: "
        f"{_SAME[task].format(proof['top1_agreement'])} differ by at most "
        f"{proof['max_difference']:.2g}, in the median {proof['median_difference']:.2g}{allowed}"
    )
    hard = ", ".join(f"{kind} {difference:.2g}" for kind, difference in proof["hard"].items())
    yield f"- largest difference on hard images: {hard}"
    if own := proof["accuracy"]:
        images = f"{own['num_images']:,} of {counted(own['num_available'], 'image')}"
        yield (
            f"- validation {own['measure']} on {images}: "
            f"{own['file']:.4f} through the file, {own['head']:.4f} by the head"
        )
    batches = ", ".join(map(str, proof["batch_sizes"]))
    versions = ", ".join(f"{name} {version}" for name, version in proof["versions"].items())
    yield f"- batches of {batches}: they differ by at most {proof['max_batch_difference']:.2g}"
    yield f"- {proof['date']}, {versions}"
    yield "- `featx check` with this file and the images repeats it\n"


def licence(origin: str) -> str:
    """Return what is known of the terms of weights from some origin."""
    scheme, _, name = origin.partition(":")
    if scheme == "torchvision":
        return (
            f"torchvision's {_plain(name)}. torchvision's code is BSD-3-Clause; its weights may "
            "have terms of their own that come from the data they were trained on (mostly "
            "ImageNet, for non-commercial research). See "
            "https://github.com/pytorch/vision#pre-trained-model-license"
        )
    if scheme == "bundled":
        return "featx's own, MIT; trained on CIFAR-10"
    if scheme == "random":
        return "random numbers, none needed"
    return "not known: a file of the user's"


def _choice(choice: object) -> str:
    """Return how the head was fitted, without what only its search says."""
    told = ("head", "solver", "strength", "hidden", "seed")
    if not isinstance(choice, Mapping):
        return _plain(choice)
    return ", ".join(
        _plain(choice[name]) if name == "head" else f"{name} {_plain(choice[name])}"
        for name in told
        if name in choice
    )


def _shape(value: Value) -> str:
    return f"({', '.join(map(str, value.shape))})"


def _plain(text: object) -> str:
    """Return text on one line that is no Markdown."""
    return "".join(f"\\{c}" if c in _PUNCTUATION else c for c in printable(str(text)))


def _code(text: object) -> str:
    return f"`{printable(str(text)).replace('`', ' ')}`"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    for row in (columns, ["---"] * len(columns), *rows):
        yield f"| {' | '.join(row)} |"
    yield ""
