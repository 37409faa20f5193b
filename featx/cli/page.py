"""``featx page``."""

from __future__ import annotations

from pathlib import Path

import click

from featx.cli import options
from featx.cli.help import Command
from featx.cli.output import human_bytes, print_fields, print_json


@click.command(cls=Command)
@click.argument("model", type=options.FILE, default=options.MODEL, required=False)
@click.option(
    "-o",
    "--output",
    type=options.FILE,
    help="The folder to write; with --single-file the file.  [artifacts/page/, or page.html]",
)
@click.option(
    "--single-file",
    is_flag=True,
    help="Write one HTML file with everything inside, which opens from disk.",
)
@options.as_json
@options.no_notes
def page(model: Path, output: Path | None, single_file: bool, as_json: bool) -> None:
    """Write a web page that runs MODEL in the browser.

    Images are dropped, pasted, chosen or taken by the camera, and stay on the device. A folder has
    to be served, by any web server; one file opens by a double click.
    """
    from featx.classifier.hub import is_on_hub
    from featx.stages.web_page import write_web_page

    if output is None:
        beside = Path() if is_on_hub(model) else model.parent
        output = beside / ("page.html" if single_file else "page")
    written = write_web_page(model, output, single_file=single_file)
    if as_json:
        print_json({"page": str(written.path), "bytes": written.num_bytes})
        return
    serve = f"python -m http.server --directory {output}"
    print_fields(
        {
            "size": human_bytes(written.num_bytes),
            "written": written.path,
            "open": "by a double click" if single_file else f"served, for instance by: {serve}",
        }
    )
