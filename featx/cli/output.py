"""Print results on stdout and progress on stderr."""

from __future__ import annotations

import contextlib
import json
import math
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featx.cli.layout import cells, padded, table_lines
from featx.cli.streams import columns, drawing, print_line
from featx.errors import counted, printable

if TYPE_CHECKING:
    from featx.heads.tasks.scores import Scores
    from featx.stages.export import ExportReport
    from featx.stages.finetune import FinetuneReport
    from featx.stages.report import ReportPage
    from featx.stages.train import TrainReport

Progressed = Callable[[int, int], None]
_SKIPPED_SHOWN = 10


def print_json(value: object, *, indent: int | None = 2) -> None:
    """Print a value as JSON in UTF-8; control characters and invalid text as its escapes."""
    try:
        text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    except ValueError:  # JSON has no NaN and no infinity
        text = json.dumps(_finite(value), indent=indent, ensure_ascii=False)
    click.echo("\n".join(map(_json_escaped, text.split("\n"))).encode())


def _json_escaped(line: str) -> str:
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in line)


def _finite(value: object) -> object:
    """Return a JSON value with null for numbers that are not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(own) for key, own in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(own) for own in value]
    return value


def print_text(text: object) -> None:
    """Print one line; line breaks and control characters in it are shown as escapes."""
    click.echo(printable(str(text)))


_OPTION = re.compile(
    r"(?<![\w=])'[^'\n]*'"  # a quoted name, which stays as it is
    r"|^(?P<subject>[a-z]+(?:_[a-z]+)*)(?= must be )"
    r"|(?<![\w/.'-])([a-z]+(?:_[a-z]+)*)(?:=(True|False|…|'[\w/]+'))?(?![\w/-]|\.\w)"
)
_flags: dict[str, str] = {}


def note_flags(command: click.Command) -> None:
    """Note the flags of a command, by the options that they set."""
    options = [option for option in command.params if isinstance(option, click.Option)]
    _flags.update({str(option.name): max(option.opts, key=len) for option in options})


PREFIX = "featx.prefix"
"""Key in the ``meta`` of a command's context: what notes and errors begin with."""


def with_flags(text: str) -> str:
    """Return a text of the library with its options, like ``overwrite=True``, as flags."""

    def flag(match: re.Match[str]) -> str:
        if match["subject"] in _flags:
            return _flags[match["subject"]]
        name, value = match[2], match[3]
        name = f"no_{name}" if value == "False" else name
        if name not in _flags or not (value or "_" in name):
            return match[0]
        return f"{_flags[name]} {value[1:-1]}" if value and value[0] == "'" else _flags[name]

    return _OPTION.sub(flag, text)


def print_fields(fields: Mapping[str, object]) -> None:
    """Print ``name  value`` lines, the values aligned."""
    width = max(map(cells, fields), default=0)
    for name, value in fields.items():
        line = printable(f"{padded(name, width)}  {value}")
        print_line(line, _FIELD_COLOURS.get(name, ""))


_FIELD_COLOURS = {
    **dict.fromkeys(("written", "replaced", "up to date", "fresh"), "good"),
    **dict.fromkeys(("stale", "outdated", "missing", "bad images"), "warning"),
    **{"verdict": "warning", "next": "strong"},
}


def print_table(
    titles: Sequence[str], rows: Sequence[Sequence[str]], *, chosen: int | None = None
) -> None:
    """Print a table whose first column is text and whose others are numbers, right-aligned.

    Columns without content are left out; ``chosen`` is the row that is coloured.
    """
    shown = [[printable(cell) for cell in row] for row in (titles, *rows)]
    for line, row in table_lines(shown[0], shown[1:], columns()):
        print_line(line, "chosen" if row is not None and row == chosen else "")


def print_metrics(metrics: Mapping[str, Scores]) -> None:
    """Print a row for each split."""
    from featx.heads.tasks.tables import score_cells

    print_table(*score_cells(metrics))


def print_per_class(metrics: Mapping[str, Scores], classes: Sequence[str]) -> None:
    """Print a row for each class, tag or target, for each split."""
    from featx.heads.tasks import TASKS

    for split, scores in metrics.items():
        task = TASKS[scores.task]
        rows = [
            [name, *(column.text(own) for column in task.output_columns)]
            for name, own in zip(classes, getattr(scores, task.scores[2]), strict=True)
        ]
        titles = (column.title for column in task.output_columns)
        print_table([f"{task.output} ({split})", *titles], rows)
        click.echo()


def headline(scores: Scores) -> dict[str, str]:
    """Return the main scores, by the title of their column."""
    from featx.heads.tasks import TASKS

    columns = TASKS[scores.task].columns
    return {column.title: column.text(scores) for column in columns if column.is_main}


def proof_fields(proof: Mapping[str, Any] | None) -> dict[str, str]:
    """Describe the proof of a model; files of earlier versions say less."""
    if proof is None:
        return {"proof": "none: exported with --no-verify"}
    from featx.heads.tasks import task_of

    bound, task, agreement = proof["bound"], task_of(proof), proof["top1_agreement"]
    same = "largest difference, in deviations of the target,"
    if task.activation:  # its outputs are logits
        same = f"same {task.answer} in {agreement:.0%}, largest logit difference"
    allowed = "" if bound is None else f" ({bound:.2g} allowed)"
    fields = {
        "proof": f"{counted(proof['num_images'], 'image')}: {same} "
        f"{proof['max_difference']:.1e}{allowed}"
    }
    if cases := proof.get("hard"):
        worst = max(cases, key=cases.__getitem__)
        fields["edge cases"] = f"{', '.join(cases)}: at most {cases[worst]:.1e} ({worst})"
    if "max_full_difference" in proof:
        fields["full decode"] = (
            f"same {task.answer} in {proof['full_top1_agreement']:.0%}, largest logit difference "
            f"{proof['max_full_difference']:.1e}"
        )
    if accuracy := proof.get("accuracy"):
        available = counted(accuracy["num_available"], "validation image")
        others = round(accuracy["num_images"] * (1 - accuracy.get("agreement", 1)))
        more = f"; {others:,} with {task.other_answer}" if others and task.activation else ""
        fields[short_measure(accuracy)] = (
            f"{accuracy['file']:.4f} through the file, {accuracy['head']:.4f} by the head, "
            f"{accuracy['num_images']:,} of {available}{more}"
        )
    return fields


def describe_fixed(details: Mapping[str, Any]) -> str:
    """Describe what a model takes alone, and what it was made for; empty where it takes any."""
    contract, runtime = details.get("contract") or {}, details.get("runtime")
    parts = []
    if shape := contract.get("image_shape"):
        parts.append(f"images of {shape[1]}×{shape[0]} pixels alone")
    if batch := contract.get("batch"):
        parts.append(f"{counted(batch, 'image')} at once")
    if runtime:
        tried = details.get("tried", f"made for {runtime}, not tried in it")
        return "; ".join([", ".join(parts), tried] if parts else [tried])
    return ", ".join(parts)


def short_measure(accuracy: Mapping[str, Any]) -> str:
    """Return the name of the measure of a proof's accuracy, in a word or two."""
    long = accuracy.get("measure", "accuracy")
    return str(long) if len(long) < 10 else "right tags"


def written(report: TrainReport | FinetuneReport | ExportReport | ReportPage) -> dict[str, str]:
    """Return the field for an output that was kept, replaced or written."""
    if report.is_unchanged:
        return {"up to date": str(report.path)}
    if report.replaced:
        return {"replaced": f"{report.path}  (was {report.replaced})"}
    return {"written": str(report.path)}


def next_command(name: str, path: Path, default: Path, *more: str) -> str:
    """Return the command that takes a file next; the file is left out where it is the default."""
    words = [name, *([] if path == default else [str(path)]), *more]
    return f"featx {shlex.join(words)}"


def print_skipped(skipped: Sequence[tuple[str, str]], *, rest: str) -> None:
    """Print the first images that were left out, and why; the command ``rest`` shows the others."""
    for sample_id, reason in skipped[:_SKIPPED_SHOWN]:
        print_text(f"  {sample_id}: {reason}")
    if len(skipped) > _SKIPPED_SHOWN:
        click.echo(f"  … and {len(skipped) - _SKIPPED_SHOWN:,} more ({rest})")


@contextlib.contextmanager
def progress_bars(*, quiet: bool) -> Iterator[Callable[..., Progressed | None]]:
    """Yield a function that makes a callback ``(done, total)``, which draws a bar on stderr.

    It returns None where nothing should be drawn: with ``quiet``, or when stderr is not a terminal.
    """
    with drawing(quiet=quiet) as draw:
        yield lambda title, **form: draw.bar(None, title, **form) if draw else None


@contextlib.contextmanager
def step_status(*, quiet: bool) -> Iterator[Callable[[str], None] | None]:
    """Yield a callback that shows the step under way on stderr, None where nothing is drawn."""
    with drawing(quiet=quiet) as draw:
        tell = draw.steps(None, "") if draw else None
        yield (lambda step: tell(f"{step} …")) if tell else None


def human_bytes(count: int) -> str:
    """Return a size like ``"45.2 MB"``, in powers of 1000."""
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


def human_count(number: int) -> str:
    """Return a number of parameters like ``"1,026"`` or ``"8.39 M"``."""
    return f"{number:,}" if number < 100_000 else f"{number / 1e6:.2f} M"


def human_seconds(seconds: float) -> str:
    """Return a duration like ``"0.8 s"`` or ``"12 min 5 s"``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60} s"
