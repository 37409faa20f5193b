"""Photos as large cameras give them, made of the small ones there are."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

LARGE = (4000, 3000)


def jpegs_of(source: Path) -> list[Path]:
    """Return the JPEGs below a folder, in the order of their paths."""
    return sorted(source.rglob("*.jpg"))


def evenly(paths: list[Path], count: int) -> list[Path]:
    """Return some of the paths, spread evenly over all."""
    numbers = np.linspace(0, len(paths) - 1, min(count, len(paths))).round().astype(int)
    return [paths[number] for number in numbers]


def repeated(source: Path, folder: Path, *, count: int) -> Path:
    """Write JPEGs again and again, each time with another comment, so that no two are the same.

    Args:
        source: Folder of class folders of JPEGs.
        folder: Gets them, in class folders of the same names.
        count: Files.

    Returns:
        The folder.
    """
    paths = jpegs_of(source)
    for number in range(count):
        path, comment = paths[number % len(paths)], str(number).encode()
        target = folder / path.parent.relative_to(source) / f"{number}-{path.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        content, length = path.read_bytes(), (2 + len(comment)).to_bytes(2, "big")
        target.write_bytes(content[:2] + b"\xff\xfe" + length + comment + content[2:])
    return folder


def enlarge(source: Path, folder: Path, *, count: int, noise: float = 0) -> Path:
    """Write photos of 4000×3000, or 3000×4000, in the class folders of their originals.

    Args:
        source: Folder of class folders of JPEGs.
        folder: Gets those that are not there yet.
        count: Photos, spread evenly over the source.
        noise: Standard deviation of what is added to each pixel, grey levels. Enlarged photos are
            smoother than a camera's.

    Returns:
        The folder.
    """

    def write(path: Path) -> None:
        target = folder / path.relative_to(source)
        if target.exists():
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            size = LARGE if image.width >= image.height else LARGE[::-1]
            large = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
        if noise:
            grain = np.random.default_rng(len(path.name)).normal(0, noise, (size[1], size[0]))
            pixels = np.asarray(large) + grain.astype(np.float32)[:, :, None]
            large = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        large.save(target, quality=90)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, evenly(jpegs_of(source), count)))
    return folder
