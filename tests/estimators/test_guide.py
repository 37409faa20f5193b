"""The code of the guide runs as it stands, with the bundled backbone in place of ResNet-18."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "scikit-learn.md"


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_code_of_the_guide_runs(photos, tmp_path, monkeypatch, capsys):
    photos({"ants": 9, "bees": 9})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    text = GUIDE.read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block.replace('"resnet18"', '"tiny"'), GUIDE.name, "exec"), names)
    printed = capsys.readouterr().out
    assert "ants" in printed
    assert "logisticregression__C" in printed
    assert (tmp_path / "model.onnx").is_file()
