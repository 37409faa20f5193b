"""Pages of models, served and opened in Chromium, and their answers."""

from __future__ import annotations

import base64
import contextlib
import functools
import http.server
import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from chromium import in_chromium
from PIL import Image

from featx.extraction.options import ExtractOptions
from featx.stages.export import ExportOptions, export_onnx
from featx.stages.extract import extract
from featx.stages.predict import Predictor
from featx.stages.train import train_head
from featx.training.options import TrainOptions


def chain(folder: Path, table: str, *, task: str = "auto", **export: object) -> Path:
    """Return a model of the images in a table."""
    (folder / "images.csv").write_text(table)
    options = ExtractOptions(backbone="tiny", val_fraction=0.25)
    extract(folder / "images.csv", folder / "f.h5", options)
    train_head(folder / "f.h5", folder / "h.safetensors", TrainOptions(task=task))  # type: ignore[arg-type]
    export_onnx(folder / "h.safetensors", folder / "m.onnx", ExportOptions(**export))
    return folder / "m.onnx"


def draw(folder: Path, count: int = 16) -> list[Path]:
    rng, paths = np.random.default_rng(0), []
    for number in range(count):
        low = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
        low[..., number % 2] //= 4
        size = (60 + 11 * number, 50 + 7 * number)
        path = folder / f"{number}.{('jpg', 'png', 'webp')[number % 3]}"
        Image.fromarray(low).resize(size, Image.Resampling.BICUBIC).save(path)
        paths.append(path)
    return paths


class Quiet(http.server.SimpleHTTPRequestHandler):
    own_headers: Mapping[str, str] = {}

    def log_message(self, *_: object) -> None:
        pass

    def end_headers(self) -> None:
        for name, value in self.own_headers.items():
            self.send_header(name, value)
        super().end_headers()

    def guess_type(self, path: object) -> str:
        """As a server that knows nothing of WebAssembly and models."""
        name = str(path)
        return "text/html" if name.endswith(".html") else "application/octet-stream"


@contextlib.contextmanager
def served(folder: Path, *, headers: Mapping[str, str] | None = None) -> Iterator[str]:
    """Serve a folder on this machine; yield its address."""
    own = type("Own", (Quiet,), {"own_headers": headers or {}})
    handler = functools.partial(own, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def answers(address: str, paths: list[Path], **how: int) -> dict[str, object]:
    """Return the page's probabilities of images, what it shows of the last, and its requests."""
    files = {path.name: base64.b64encode(path.read_bytes()).decode() for path in paths}

    async def use(tab):
        await tab.wait_for("globalThis.featx !== undefined")
        state = await tab.run("document.getElementById('state').textContent")
        found = await tab.run(
            f"""(async () => {{
              const found = {{}}, carrier = new DataTransfer();
              let file;
              for (const [name, text] of Object.entries({json.dumps(files)})) {{
                const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
                file = new File([bytes], name);
                found[name] = await featx.predict(file);
              }}
              carrier.items.add(file);
              document.dispatchEvent(new DragEvent("drop", {{ dataTransfer: carrier }}));
              return found;
            }})()"""
        )
        await tab.wait_for("document.querySelectorAll('.bar').length > 0")
        shown = await tab.run("document.getElementById('results').textContent")
        wide = await tab.run("document.documentElement.scrollWidth <= innerWidth")
        return {
            "state": state,
            "found": found,
            "shown": shown,
            "fits": wide,
            "requests": tab.requests,
            "errors": tab.errors,
        }

    return in_chromium(address, use, **how)


def require_equal(found: dict[str, list[float]], model: Path, paths: list[Path]) -> None:
    expected = Predictor(model).predict([str(path) for path in paths])
    for path, prediction in zip(paths, expected, strict=True):
        own = found[path.name]
        index = Predictor(model).classes.index(prediction.label)
        assert int(np.argmax(own)) == index, path
        assert abs(own[index] - prediction.probability) < 1e-3, path
