"""Write some handwritten digits that no head was trained on as PNG files.

    python tools/digit_images.py artifacts/demo/features.h5 artifacts/demo/images

Each is named by its digit: ``7-digits-0042.png``.
"""

from pathlib import Path

import click
from PIL import Image

from featx.features.file import open_features
from featx.images.sources import open_source


@click.command()
@click.argument("features", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--count", default=10, show_default=True)
def main(features: Path, folder: Path, count: int) -> None:
    """Write the first COUNT validation digits of FEATURES into FOLDER."""
    source, cache = open_source("digits:"), open_features(features)
    index_of = {sample.sample_id: index for index, sample in enumerate(source.samples)}
    folder.mkdir(parents=True, exist_ok=True)
    for row in cache.rows("val")[:count].tolist():
        name = cache.sample_ids[row]
        digit = cache.classes[cache.labels[row]]
        pixels = source.read(index_of[name])
        Image.fromarray(pixels).save(folder / f"{digit}-{name.replace('/', '-')}.png")


if __name__ == "__main__":
    main()
