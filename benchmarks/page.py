"""How soon the page of `featx page` answers in Chromium: writes docs/guides/predict.md.

    python benchmarks/page.py [--data ../shared/data]

Pages of `tiny` and of a SqueezeNet with heads on hymenoptera photos, as a file from disk and as a
folder that is served. A photo of 375 x 500 pixels is answered. Times are from the opening of the
page until it is ready, of the first answer behind that, and the median of ten more; memory is what
all processes of Chromium have for themselves after the first answer.
"""

import base64
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
from report import ROOT, machine, table, write_measured

import featx

sys.path.insert(0, str(ROOT / "tests" / "helpers"))

from chromium import in_chromium
from web_pages import served

MEASURE = """(async () => {{
  const bytes = Uint8Array.from(atob({photo}), (c) => c.charCodeAt(0)), times = [];
  for (let i = 0; i < {count}; i++) {{
    const start = performance.now();
    await featx.predict(new File([bytes], "photo"));
    times.push((performance.now() - start) / 1000);
  }}
  return times;
}})()"""


def measured(address: str, photo: Path) -> list[str]:
    """Return the figures of a page as cells."""
    text = json.dumps(base64.b64encode(photo.read_bytes()).decode())

    async def use(tab: Any) -> tuple[float, list[float], float, list[float]]:
        await tab.wait_for("document.getElementById('state')?.textContent === 'Ready.'")
        ready = await tab.run("performance.now()") / 1000
        first = await tab.run(MEASURE.format(photo=text, count=1))
        memory = await tab.memory()
        return ready, first, memory, await tab.run(MEASURE.format(photo=text, count=10))

    ready, first, memory, more = in_chromium(address, use)
    return [f"{ready:.1f} s", f"{first[0]:.2f} s", f"{sorted(more)[5]:.2f} s", f"{memory:.0f} MB"]


@click.command()
@click.option("--data", type=click.Path(path_type=Path), default=ROOT.parent / "shared" / "data")
@click.option("--write/--no-write", default=True, help="Put the table into the guide.")
def main(data: Path, write: bool) -> None:
    """Measure every page and print the table."""
    weights = str(data / "weights" / "squeezenet1_1-mango-c10.pth")
    photos = data / "hymenoptera_data"
    photo = sorted((photos / "val" / "ants").glob("*.jpg"))[0]
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for backbone, own in (("tiny", None), ("squeezenet1_1", weights)):
            features, head = folder / f"{backbone}.h5", folder / f"{backbone}.safetensors"
            featx.extract(photos, features, featx.ExtractOptions(backbone=backbone, weights=own))
            featx.train_head(features, head)
            model = folder / f"{backbone}.onnx"
            featx.export_onnx(head, model)
            single = featx.write_web_page(model, folder / f"{backbone}.html", single_file=True)
            size = f"{single.num_bytes / 1e6:.1f} MB"
            rows.append([backbone, "file", size, *measured(single.path.as_uri(), photo)])
            several = featx.write_web_page(model, folder / backbone)
            with served(folder) as root:
                figures = measured(f"{root}/{backbone}/", photo)
            rows.append([backbone, "folder", f"{several.num_bytes / 1e6:.1f} MB", *figures])
            print(*rows[-2:], sep="\n", flush=True)
    columns = ("model", "page", "size", "ready after", "first answer", "later ones", "memory")
    text = table(columns, rows) + f"\nOn {machine('onnxruntime')}.\n"
    print(text)
    if write:
        write_measured("docs/guides/predict.md", text, name="page")


if __name__ == "__main__":
    main()
