"""A real kernel: outputs without escape codes, one bar, thumbnails, a clean state after Ctrl-C."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import featx

pytest.importorskip("ipykernel")
manager_of = pytest.importorskip("jupyter_client.manager")
pytestmark = pytest.mark.slow


class Kernel:
    """A kernel, and the outputs of what it ran."""

    def __init__(self, manager: Any, channels: Any) -> None:
        self._manager, self._channels = manager, channels

    def run(self, code: str, *, interrupt: float | None = None) -> list[dict[str, Any]]:
        """Return the outputs of a cell, those that were replaced left out."""
        sent, begun, found = self._channels.execute(code), time.monotonic(), []
        while time.monotonic() - begun < 120:
            if interrupt is not None and time.monotonic() - begun > interrupt:
                self._manager.interrupt_kernel()
                interrupt = None
            if not self._channels.iopub_channel.msg_ready():
                time.sleep(0.02)
                continue
            message = self._channels.get_iopub_msg()
            content, kind = message["content"], message["msg_type"]
            if message["parent_header"].get("msg_id") != sent:
                continue
            if kind == "status" and content["execution_state"] == "idle":
                return found
            if kind == "update_display_data":
                shown = content["transient"]["display_id"]
                place = [o.get("transient", {}).get("display_id") for o in found].index(shown)
                found[place] = content
            elif kind in ("stream", "error", "display_data", "execute_result"):
                found.append(content)
        raise AssertionError(f"{code} did not end")


@pytest.fixture(params=["", "1"], ids=["plain", "FORCE_COLOR"])
def kernel(request, tmp_path, monkeypatch) -> Iterator[Kernel]:
    monkeypatch.setenv("FORCE_COLOR", request.param)
    monkeypatch.setenv("PYTHONPATH", str(Path(featx.__file__).parent.parent))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    manager, channels = manager_of.start_new_kernel(cwd=str(tmp_path))
    try:
        yield Kernel(manager, channels)
    finally:
        channels.stop_channels()
        manager.shutdown_kernel(now=True)


def texts(outputs: list[dict[str, Any]]) -> list[str]:
    return [text for own in outputs for text in (own.get("data") or {"": own["text"]}).values()]


def test_cells_show_one_bar_thumbnails_and_no_escape_codes(kernel, photos):
    source = photos({"ants": 9, "bees": 9})
    assert kernel.run("import featx, featx.artifact.bars as b; b._FIRST_SECONDS = 0") == []
    bar, report = kernel.run(f"featx.extract({str(source)!r}, 'f.h5', backbone='tiny')")
    assert bar["data"]["text/plain"] == "Extracting  18/18"
    assert report["data"]["text/plain"].startswith("ExtractReport: f.h5\n")
    shown = [
        *kernel.run("featx.train_head('f.h5', 'h.safetensors')"),
        *kernel.run("featx.export_onnx('h.safetensors', 'm.onnx')"),
        *kernel.run("featx.audit('f.h5')"),
        *kernel.run("print(featx.open_head('h.safetensors'))"),
        *kernel.run(f"featx.evaluate('m.onnx', {str(source)!r})"),
    ]
    assert not any("error" in own.get("output_type", "") or "ename" in own for own in shown)
    assert not any("\x1b" in text for text in texts(shown))
    for code in (
        "featx.open_features('f.h5')",
        f"import pathlib; images = list(pathlib.Path({str(source)!r}).rglob('*.*'));"
        "featx.Predictor('m.onnx').predict(images[:12])",
        "featx.FeatureExtractor('tiny', cache='cache').fit_transform(images).shape",
    ):
        (*_, last) = kernel.run(code)
        html = last["data"].get("text/html", "")
        assert html.count('<img src="data:image/jpeg') == (0 if "Extractor" in code else 12)


def test_an_interrupted_cell_leaves_nothing_and_the_next_one_runs(kernel, photos, tmp_path):
    source = photos({"ants": 9, "bees": 9})
    kernel.run(f"import featx; featx.extract({str(source)!r}, 'f.h5', backbone='tiny')")
    endless = "featx.train_head('f.h5', 'h.safetensors', head='mlp', max_epochs=10**6, {})"
    *bars, stopped = kernel.run(endless.format("patience=10**6"), interrupt=5)
    assert stopped["ename"] == "KeyboardInterrupt"
    assert len(bars) == 1
    assert {path.name for path in tmp_path.iterdir()} >= {"f.h5"}
    assert not list(tmp_path.glob("h.safetensors*"))
    (*_, report) = kernel.run("featx.train_head('f.h5', 'h.safetensors')")
    assert report["data"]["text/plain"].startswith("TrainReport: h.safetensors")
