"""``featx push``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from featx.cli import options
from featx.cli.completion import files
from featx.cli.help import Command
from featx.cli.output import human_bytes, next_command, print_fields, print_json, print_text

if TYPE_CHECKING:
    from featx.stages.push import Upload


@click.command(cls=Command)
@click.argument("names", nargs=-1, required=True, metavar="[MODEL] USER/NAME", shell_complete=files)
@click.option("--public", is_flag=True, help="Let everybody see it; else it is private.")
@click.option(
    "--space",
    is_flag=True,
    help="Make a static Space of the same name as well: a page that runs the model in the browser.",
)
@click.option(
    "--licence",
    metavar="NAME",
    help="Licence of the model, as the hub names it: mit, apache-2.0.  [that of the weights]",
)
@click.option("--overwrite", is_flag=True, help="Replace a card that was edited on the hub.")
@click.option("-y", "--yes", is_flag=True, help="Send without asking, as scripts do.")
@options.as_json
@options.no_notes
def push(
    names: tuple[str, ...],
    public: bool,
    space: bool,
    licence: str | None,
    overwrite: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Send MODEL to Hugging Face's hub as USER/NAME, with a model card.

    What is sent is shown first: model.onnx and README.md, which are made for it; no folder is, and
    no path. A new repository is private, and one that exists stays what it is. MODEL is
    artifacts/model.onnx by default, and its seal has to be intact.
    """
    from featx.artifact.hub import load_hub
    from featx.errors import HubError
    from featx.stages.push import prepare_push

    if len(names) > 2:
        raise click.UsageError("Give a model and USER/NAME, nothing else.")
    model = Path(names[0]) if len(names) == 2 else options.MODEL
    upload = prepare_push(
        model, names[-1], public=public, space=space, licence=licence, overwrite=overwrite
    )
    if not as_json:
        for line in _lines(upload):
            print_text(line)
        click.echo()
    if not yes:
        _ask()
    if not sys.stderr.isatty():
        load_hub(names[-1], "hub", HubError).utils.disable_progress_bars()
    report = upload.send()
    address = f"hf:{report.repo}@{report.commit}"
    if as_json:
        print_json(vars(report) | {"model": address})
        return
    fields = {"up to date" if report.is_unchanged else "written": report.url}
    if report.space:
        fields["page"] = report.space
    fields["next"] = next_command("predict", Path(f"hf:{report.repo}"), options.MODEL, "IMAGE")
    print_fields(fields | {"exactly": f"{address}#{report.seal[:16]}"})


def _ask() -> None:
    if not _is_interactive():
        raise click.UsageError("Nothing was sent. Give --yes to send it without a question.")
    if not click.confirm("Send it?"):
        print_text("Nothing was sent.")
        sys.exit(1)


def _lines(upload: Upload) -> Iterator[str]:
    """Yield what is to be sent where, and what there is to know before."""
    width = max(len(name) for part in upload.parts for name in (*part.files, *part.kept))
    for part in upload.parts:
        seen = "private" if part.is_private else "PUBLIC: everybody can see it"
        there = "is made" if part.is_new else "is there"
        kind = "static Space" if part.kind == "Space" else "model"
        yield f"{part.url}  ({kind}, {there}, {seen})"
        for name, content in part.files.items():
            yield f"  {name:<{width}}  {human_bytes(len(content)):>9}"
        for name in part.kept:
            yield f"  {name:<{width}}  was edited there and stays; --overwrite replaces it"
    yield f"licence  {upload.licence or 'none is said; give one with --licence'}"
    if upload.warning:
        yield f"Warning: {upload.warning}"


def _is_interactive() -> bool:
    return sys.stdin.isatty()
