"""Draw the picture of the README: a terminal with its commands, and the page of the report.

``python tools/picture.py --data ../shared/data`` runs the commands as tools/transcripts.py does,
with colour, and lets Chromium photograph them beside artifacts/report.html.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.text import Text
from transcripts import BLOCK, ROOT, commands_of, link_data, record

PICTURE = ROOT / "docs" / "pictures" / "featx.png"
WIDTH, HEIGHT, TERMINAL_WIDTH, REPORT_WIDTH = 1400, 820, 590, 860

PAGE = """<!doctype html><meta charset="utf-8"><style>
body {{ margin: 0; width: {width}px; height: {height}px; display: flex; gap: 20px; padding: 20px;
  box-sizing: border-box; background: #e8ebef; }}
div {{ border-radius: 8px; overflow: hidden; box-shadow: 0 4px 16px #0003; }}
pre {{ margin: 0; padding: 16px; height: 100%; background: #16191d; color: #d8dde3;
  font: 11.5px/1.42 "DejaVu Sans Mono", monospace; }}
iframe {{ border: 0; width: {report}px; height: {tall}px; transform: scale({scale});
  transform-origin: 0 0; background: #fff; }}
</style>
<div style="flex: 0 0 {left}px">{terminal}</div>
<div style="flex: 1 1 0"><iframe src="report.html"></iframe></div>
"""


def terminal_of(shown: str) -> str:
    """Return what a terminal showed, colours included, as HTML."""
    console = Console(record=True, width=82, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(Text.from_ansi(shown))
    return console.export_html(inline_styles=True, code_format="<pre>{code}</pre>")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="images and weights")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        link_data(given.data, folder)
        (block,) = BLOCK.findall((ROOT / "README.md").read_text("utf-8"))
        shown = record(commands_of(block), folder, colour=True)
        record(["featx report"], folder)
        scale = (WIDTH - TERMINAL_WIDTH - 60) / REPORT_WIDTH
        page = PAGE.format(
            width=WIDTH,
            height=HEIGHT,
            left=TERMINAL_WIDTH,
            report=REPORT_WIDTH,
            tall=round((HEIGHT - 40) / scale),
            scale=scale,
            terminal=terminal_of(shown),
        )
        (folder / "artifacts" / "picture.html").write_text(page, "utf-8")
        subprocess.run(
            [
                *("chromium", "--headless", "--no-sandbox", "--hide-scrollbars"),
                *("--force-device-scale-factor=1.5", "--virtual-time-budget=5000"),
                f"--window-size={WIDTH},{HEIGHT}",
                f"--screenshot={folder / 'picture.png'}",
                f"file://{folder / 'artifacts' / 'picture.html'}",
            ],
            check=True,
            capture_output=True,
        )
        PICTURE.parent.mkdir(exist_ok=True)
        Image.open(folder / "picture.png").convert("RGB").quantize(192).save(PICTURE, optimize=True)
    print(f"wrote {PICTURE.relative_to(ROOT)}, {PICTURE.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
