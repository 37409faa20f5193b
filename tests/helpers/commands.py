"""Commands of featx in this process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from click.testing import CliRunner, Result
from PIL import Image

from featx.cli import main


def featx_cli(*arguments: object) -> Result:
    """Run a command; arguments are turned into text."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def draw_tinted(root: Path) -> Path:
    """Draw photos of two classes that differ in colour, in class folders."""
    random = np.random.default_rng(0)
    for name, tint in (("leaves", (0, 40, 0)), ("petals", (40, 0, 30))):
        (root / name).mkdir(parents=True)
        for number in range(20):
            pixels = random.integers(0, 215, (36, 40, 3)) + np.array(tint)
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{number:02d}.png")
    return root
