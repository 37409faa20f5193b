"""A head in words: the fields that ``featx train-head`` and ``featx info`` print."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from featx.cli.output import human_count, print_table
from featx.errors import counted, listed

if TYPE_CHECKING:
    from featx.artifact import Header
    from featx.heads.tasks.scores import Scores

_CLASSES_SHOWN = 10


def data_fields(
    metrics: Mapping[str, Scores], classes: Sequence[str]
) -> Iterator[tuple[str, object]]:
    """Yield the training images of each class or tag, and what a constant answer would reach."""
    from featx.heads.tasks import TASKS
    from featx.heads.verdict import baselines, commonest

    train = metrics.get("train")
    outputs = TASKS[train.task].outputs if train else "classes"
    counts = [own.num_samples for own in getattr(train, "per_class", ())]
    yield outputs, describe_classes(classes, counts)
    shares = baselines(metrics)
    index = commonest(metrics)
    if index is not None and len(classes) > 1:
        held_out = {split: share for split, share in shares.items() if split != "train"} or shares
        scores = ", ".join(f"{split} {share:.4f}" for split, share in held_out.items())
        yield "baseline", f"always '{classes[index]}': {scores}"


def describe_classes(classes: Sequence[str], counts: Sequence[int] = ()) -> str:
    """Return the names of classes with their training images; of many, the number and the range.

    >>> describe_classes(["ants", "bees"], [24, 1])
    '2: ants 24, bees 1'
    >>> describe_classes([f"c{i}" for i in range(100)], range(5, 105))
    '100 of 5 to 104 training images; the fewest: c0 5, c1 6, c2 7'
    """
    names = [f"{name} {count:,}" for name, count in zip(classes, counts, strict=False)]
    if len(classes) <= _CLASSES_SHOWN or not counts:
        return f"{len(classes):,}: {listed(names or classes, _CLASSES_SHOWN)}"
    order = sorted(range(len(names)), key=lambda i: counts[i])
    fewest = ", ".join(names[i] for i in order[:3])
    return (
        f"{len(classes):,} of {min(counts):,} to {max(counts):,} training images; the fewest: "
        f"{fewest}"
    )


def head_fields(header: Header) -> Iterator[tuple[str, object]]:
    """Yield how a head was trained, by its header or by that of a model."""
    from featx.heads.describe import describe_training

    details = header.details
    choice = details.get("choice" if header.kind == "head" else "head", {})
    task = details.get("task", "single-label")
    if task != "single-label":
        yield "task", task
    if (described := describe_choice(choice)) and not describe_training(choice):
        yield "head", described
        if header.kind == "head":
            yield "parameters", _parameters(header, choice)
    if blocks := choice.get("in_blocks"):
        size = f"{blocks['bytes_read'] / 1e9:.1f} GB read in blocks"
        yield "features", f"{size}, {blocks['kept']:,} samples kept in memory"
    if few := details.get("few_shot"):
        yield "shots", f"{few['shots']} of each class, {counted(few['repeats'], 'draw')}"
    if (weight := details.get("class_weight")) is not None:
        names = weight if isinstance(weight, str) else ", ".join(map(_weight, weight.items()))
        yield "weights of", f"classes: {names}"
    if excluded := details.get("excluded"):
        yield "excluded", counted(len(excluded), "training image")
    if views := choice.get("views"):
        yield "views", _describe_views(views)
    if crossed := details.get("cross_validated"):
        folds, count = crossed["num_folds"], crossed["metrics"]["num_samples"]
        images = counted(count, "training image")
        how = "scored by a head without it"
        yield (
            "cross-val.",
            f"{images} in {folds} folds, each {how}" if folds else f"{images}, each {how}",
        )
    if calibration := details.get("calibration"):
        yield "calibration", describe_calibration(calibration)


def describe_calibration(values: Mapping[str, Any]) -> str:
    """Return temperature and calibration error of a head in words."""
    errors = f"held-out ECE {values['ece_before']:.4f} → {values['ece_after']:.4f}"
    return f"temperature {values['temperature']:.3g}, {errors}"


def _weight(pair: tuple[str, float]) -> str:
    return f"{pair[0]} {pair[1]:g}"


def _parameters(header: Header, choice: Mapping[str, Any]) -> str:
    """Return the parameters that a head has learnt, and those of its frozen backbone."""
    from featx.backbones.table import backbone_table

    sizes = [header.spec["num_features"], *choice.get("hidden", ()), len(header.classes)]
    learnt = sum((a + 1) * b for a, b in itertools.pairwise(sizes))
    text, name = f"{human_count(learnt)} learnt", header.spec["backbone"]
    for row in backbone_table():
        if row.name == name:
            text += f"; {name}, {human_count(row.num_parameters)} with its own head, is frozen"
    return text


def describe_choice(choice: Mapping[str, Any]) -> str:
    """Return kind, solver and chosen hyperparameters of a head; empty where they are not known."""
    if choice.get("head") == "mlp":
        return _describe_mlp(choice)
    if "head" not in choice or choice.get("solver") == "finetune":
        return ""
    if choice["solver"] == "centroid":
        return "linear, nearest centroid by cosine"
    if choice["solver"] == "sgd":
        return f"linear, SGD for {counted(choice['epochs'], 'epoch')}"
    text = f"linear, {'ridge, ' if choice['solver'] == 'ridge' else ''}C = {choice['strength']:g}"
    path = choice.get("path", [])
    if len(path) < 2:
        return text
    folds = choice.get("num_folds") or 0
    how = {0: "by leave-one-out", 1: "on a hold-out"}.get(
        folds, f"by {folds}-fold cross-validation"
    )
    return f"{text}, the best of {len(path)} {how}{_score_of(path, choice['strength'])}"


def _score_of(path: Sequence[Mapping[str, Any]], chosen: float) -> str:
    """Return the score that chose a strength."""
    for point in path:
        if point["strength"] == chosen:
            for name in ("log_loss", "error"):
                if point.get(name) is not None:
                    return f": {_PATH_COLUMNS[name][0]} {point[name]:.4f}"
    return ""


def _describe_mlp(choice: Mapping[str, Any]) -> str:
    sizes = "-".join(str(size) for size in choice["hidden"])
    epochs = counted(choice["num_epochs"], "epoch")
    stopped = f"trained for {epochs}"
    if choice.get("held_out_loss") is not None:
        stopped = (
            f"stopped at epoch {choice['num_epochs']}: held-out loss {choice['held_out_loss']:.4f}"
        )
    text = f"MLP with hidden {sizes}, {stopped}"
    if len(choice["candidates"]) > 1:
        text += (
            f", the best of {len(choice['candidates'])}: learning rate "
            f"{choice['learning_rate']:g}, weight decay {choice['weight_decay']:g}, dropout "
            f"{choice['dropout']:g}"
        )
    return text


def _describe_views(views: Mapping[str, Any]) -> str:
    """Return the scores of held-out images without and with views, in words."""
    count = f"{counted(views['num_views'], 'view')} of each image"
    if not (views["with"] and views["without"]):
        return f"{count}; nothing was held out to compare"
    titles = {"mean_average_precision": "mAP", "mae": "MAE", "r2": "R²", "top1": "top-1"}
    scores = (
        f"{titles.get(name, name.replace('_', ' '))} {without:.4f} → {views['with'][name]:.4f}"
        for name, without in views["without"].items()
        if name in views["with"]
    )
    return f"{count}, held out: {', '.join(scores)} with them"


_PATH_COLUMNS = {
    "log_loss": ("held-out log loss", ".4f"),
    "error": ("left-out error", ".4f"),
    "top1": ("top-1", ".4f"),
    "objective": ("objective", ".5f"),
    "gradient_norm": ("gradient", ".0e"),
}


def print_path(choice: Mapping[str, Any]) -> bool:
    """Print every strength that was solved, the chosen one with a star; return whether any was."""
    path, chosen = choice.get("path", []), choice.get("strength")
    if len(path) < 2:
        return False
    known = {
        name: column for name, column in _PATH_COLUMNS.items() if path[0].get(name) is not None
    }
    rows = [
        [
            f"{point['strength']:g}{' *' if point['strength'] == chosen else ''}",
            *(format(point[name], form) for name, (_, form) in known.items()),
        ]
        for point in path
    ]
    at = next((i for i, point in enumerate(path) if point["strength"] == chosen), None)
    print_table(["C", *(title for title, _ in known.values())], rows, chosen=at)
    return True
