"""Write some handwritten digits that no head was trained on as PNG files.

    python tools/digit_images.py artifacts/demo/images

Each is named by its digit: ``7-digits-0042.png``.
"""

from pathlib import Path

import click
from PIL import Image

from featx.images.sources import assign_validation, open_source


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--count", default=10, show_default=True)
def main(folder: Path, count: int) -> None:
    """Write the first COUNT validation digits into FOLDER."""
    source = open_source("digits:")
    samples = assign_validation(source.samples, 0.2)
    held_out = [index for index, sample in enumerate(samples) if sample.split == "val"]
    folder.mkdir(parents=True, exist_ok=True)
    for index in held_out[:count]:
        sample = samples[index]
        name = f"{source.classes[sample.label]}-{sample.sample_id.replace('/', '-')}.png"
        Image.fromarray(source.read(index)).save(folder / name)


if __name__ == "__main__":
    main()
