"""``featx similar``."""

from __future__ import annotations

from pathlib import Path

import click

from featx.cli import options
from featx.cli.help import Command
from featx.cli.output import print_fields, print_json, print_table, print_text


@click.command(cls=Command)
@click.argument("images", nargs=-1, required=True, type=options.FILE)
@options.features("The feature file whose images are searched.")
@click.option(
    "-k",
    type=click.IntRange(min=1),
    default=9,
    show_default=True,
    help="Images that are shown for each one.",
)
@click.option("--html", type=options.FILE, help="Write a page with pictures there.")
@options.backbone("weights", show_defaults=False)
@options.as_json
@options.no_notes
def similar(
    images: tuple[Path, ...],
    features: Path,
    k: int,
    html: Path | None,
    weights: str | None,
    as_json: bool,
) -> None:
    """Show the images of a feature file that are most like each of IMAGES.

    Similarity is the cosine of the angle between features less their mean, 1 for the same image.
    """
    from featx.artifact import require_replaceable
    from featx.stages.similar import similar as run
    from featx.stages.similar import write_similar_page

    if html is not None:
        require_replaceable(html, "page")
    found = run(features, images, k, weights=weights)
    if html is not None:
        write_similar_page(features, images, found, html)
    if as_json:
        pairs = zip(images, found, strict=True)
        print_json({str(image): [each._asdict() for each in near] for image, near in pairs})
        return
    for number, (image, near) in enumerate(zip(images, found, strict=True)):
        if len(images) > 1:
            if number:
                click.echo()
            print_text(image)
        rows = [[each.sample_id, each.label, each.split, f"{each.similarity:.3f}"] for each in near]
        print_table(["image", "label", "split", "similarity"], rows)
    if html is not None:
        print_fields({"page": html})
