"""Help texts: options in groups, an example for each command, an overview of the commands."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import click

_REST = "Other options"
_SOURCE = (
    *("split", "val_fraction", "resplit", "source", "features", "exclude", "on_error", "max_bad"),
    *("max_pixels", "verify_content", "report"),
)
_TABLES = (
    *("path_column", "label_column", "split_column", "group_column", "root", "suffix", "encoding"),
)
_OUTPUT = (
    *(
        "output",
        "overwrite",
        "restart",
        "finish",
        "stale",
        "html",
        "no_html",
        "table",
        "csv_table",
        "card",
    ),
    *(
        "per_class",
        "verbose",
        "list_all",
        "profile",
        "as_json",
        "quiet",
        "_click_default_help",
        "format",
    ),
)
_GROUPS: Mapping[str, Sequence[str]] = {
    "Source and splits": _SOURCE,
    "Tables and archives": _TABLES,
    "Backbone": ("backbone", "weights", "layer", "cut", "pool", "dtype", "seed", "start"),
    "Preprocessing": ("image_size", "resize", "crop", "decode", "views", "augment"),
    "Speed": (
        *("precision", "device", "engine", "batch_size", "workers", "memory", "threads"),
        *("part", "parts"),
        *("ray", "ray_workers", "allow_mixed"),
    ),
    "Output": _OUTPUT,
}
_OWN_GROUPS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "train-head": {
        "Head and labels": ("head", "task", "class_weight", "no_calibrate", "seed"),
        "Training images": ("exclude", "shots", "repeats", "no_use_views", "memory", "weights"),
        "Linear head": ("solver", "strengths"),
        "MLP": ("hidden", "dropout", "weight_decay", "seeds"),
        "MLP and SGD": ("learning_rate", "batch_size", "epochs"),
        "SGD": ("momentum", "step_size", "gamma"),
        "Cluster, for parts": ("ray", "allow_mixed"),
        "Output": _OUTPUT,
    },
    "finetune": {
        "Training": ("task", "start", "scratch", "max_epochs", "patience", "batch_size", "seed"),
        "Optimiser": (
            *("lr", "backbone_lr", "layer_decay", "optimizer", "momentum", "weight_decay"),
            *("warmup", "step_size", "gamma", "clip", "train_bn", "average"),
        ),
        "Classes and probabilities": ("class_weight", "no_calibrate"),
        **_GROUPS,
    },
    "serve": {
        "Address and access": ("host", "port", "name", "token_file"),
        "Speed": ("workers", "threads"),
        "Limits": ("max_body", "max_pixels", "queue", "timeout", "grace"),
    },
    "audit": {
        "What is looked at": ("task", "source", "marks", "seed"),
        "Output": ("top", "fail_on", "groups", *_OUTPUT),
    },
    "predict": {
        "Answers": ("top_k", "unknown_below", "copy_to", "max_pixels"),
        "Speed": ("threads", "providers"),
        "Output": _OUTPUT,
    },
    "export": {
        "What the file takes and gives": (
            *("input", "outputs", "precision"),
            *("runtime", "image_shape", "batch", "opset"),
        ),
        "Proof": ("features", "source", "weights", "atol", "max_drop", "max_images", "no_verify"),
        "Output": ("state_dict", "with_names", *_OUTPUT),
    },
}
_SHORT_DEFAULT = re.compile(r"\[default: [^\]]{1,16}\]$")
_HYPHEN, _SPACE = "\N{NON-BREAKING HYPHEN}", "\N{NO-BREAK SPACE}"
_FLAGS = 26
_FEW = 8
"""Up to so many options are listed without groups."""

EXAMPLES: Mapping[str, Sequence[str]] = {
    "extract": ("featx extract photos/ -b lite0", "featx extract"),
    "train-head": ("featx train-head", "featx train-head --head mlp --hidden 256,128"),
    "finetune": ("featx finetune photos/ -b resnet18 --cut layer4",),
    "export": ("featx export", "featx export --card artifacts/model.md"),
    "predict": ("featx predict holiday.jpg", "featx predict model.onnx inbox/ --format csv"),
    "page": ("featx page --single-file", "featx page artifacts/model.onnx -o page/"),
    "push": ("featx push artifacts/model.onnx me/bees", "featx push me/bees --space --public"),
    "serve": ("featx serve", "featx serve model.onnx --workers 4 --token-file token.txt"),
    "run": ("featx run photos/ -b lite0", "featx run"),
    "status": ("featx status",),
    "audit": ("featx audit --csv audit.csv",),
    "relabel": ("featx relabel audit.csv -o relabelled.csv",),
    "similar": ("featx similar holiday.jpg -k 5",),
    "compare": (
        "featx compare photos/ -b resnet18 -b lite0",
        "featx compare artifacts/head.safetensors artifacts/tuned.safetensors",
    ),
    "evaluate": ("featx evaluate artifacts/model.onnx photos/test",),
    "report": ("featx report",),
    "check": ("featx check artifacts/features.h5", "featx check artifacts/model.onnx photos/"),
    "info": ("featx info artifacts/model.onnx",),
    "backbones": ("featx backbones vit --max-params 30M --sort top1", "featx backbones resnet18"),
    "merge": ("featx merge big.parts -o features.h5",),
    "help": ("featx help extract",),
    "completion": ("featx completion bash > ~/.local/share/bash-completion/completions/featx",),
    "doctor": ("featx doctor artifacts/ --network",),
}
_SECTIONS: Mapping[str, Sequence[str]] = {
    "From images to answers": (
        "run",
        "extract",
        "train-head",
        "finetune",
        "export",
        "predict",
        "page",
        "push",
        "serve",
    ),
    "Scores and comparisons": ("evaluate", "report", "compare"),
    "Images and labels": ("audit", "relabel", "similar"),
    "Files": ("status", "check", "info", "merge"),
    "Help": ("backbones", "doctor", "completion", "help"),
}
_METAVARS = re.compile(r"\b(?:INTEGER RANGE|INTEGER|FLOAT RANGE|FLOAT)\b")
_RANGES = re.compile(r"; [0-9.]*[<>x=]+[0-9.<>x=]*\]|  \[[0-9.]*<?=?x[<>][^\]]*\]")
_DEFAULT = re.compile(r"  \[(?!default: |required)([^\]]+)\]$")


class Command(click.Command):
    """A command whose help has its options in groups, and examples."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        records: dict[str, tuple[str, str]] = {}
        for parameter in self.get_params(ctx):
            if not isinstance(parameter, click.Option):
                continue
            if (record := parameter.get_help_record(ctx)) is not None:
                records[str(parameter.name)] = _tidied(*record)
        groups: dict[str, list[tuple[str, str]]] = {}
        if len(records) > _FEW:
            for title, names in _OWN_GROUPS.get(str(self.name), _GROUPS).items():
                groups[title] = [records.pop(name) for name in names if name in records]
        groups[_REST if any(groups.values()) else "Options"] = list(records.values())
        for title, rows in groups.items():
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows, col_max=_FLAGS)

    def get_help(self, ctx: click.Context) -> str:
        return super().get_help(ctx).replace(_HYPHEN, "-").replace(_SPACE, " ")

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if examples := EXAMPLES.get(str(self.name)):
            with formatter.section("Example" if len(examples) == 1 else "Examples"):
                for example in examples:
                    formatter.write(f"{'':>{formatter.current_indent}}{example}\n")


def _tidied(flags: str, text: str) -> tuple[str, str]:
    """Return the two columns of an option with plain names of types, and defaults in one form."""
    flags = _METAVARS.sub("NUMBER", flags).replace(" PATH", " FILE")
    text = _RANGES.sub(lambda match: "]" if match[0].startswith(";") else "", text)
    text = _DEFAULT.sub(r"  [default: \1]", text).replace("-", _HYPHEN)
    return flags, _SHORT_DEFAULT.sub(lambda match: match[0].replace(" ", _SPACE), text)


def write_overview(group: click.Group, formatter: click.HelpFormatter) -> None:
    """Write the commands in sections, each with the first sentence of its help, whole."""
    left = {name: _first_sentence(own) for name, own in group.commands.items() if not own.hidden}
    sections = {
        title: [(name, left.pop(name)) for name in names if name in left]
        for title, names in _SECTIONS.items()
    }
    for title, rows in {**sections, "More": list(left.items())}.items():
        if rows:
            with formatter.section(title):
                formatter.write_dl([(f"{name:<10}", text) for name, text in rows])


def _first_sentence(command: click.Command) -> str:
    text = " ".join((command.help or "").partition("\n\n")[0].split())
    return text.partition(". ")[0].rstrip(".")


@click.command("help", cls=Command)
@click.argument("command", required=False)
@click.pass_context
def show_help(ctx: click.Context, command: str | None) -> None:
    """Show the help of featx, or of one COMMAND."""
    root = ctx.find_root()
    group = root.command
    if command is None or not isinstance(group, click.Group):
        click.echo(root.get_help())
        return
    name, found, _ = group.resolve_command(root, [command])
    if found is not None:
        with click.Context(found, info_name=name, parent=root) as own:
            click.echo(found.get_help(own))
