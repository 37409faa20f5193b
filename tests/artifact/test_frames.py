"""Results as pandas frames."""

from __future__ import annotations

import sys

import pytest

from featx.artifact.frames import frame_of
from featx.errors import FeatxError


def test_columns_keep_names_order_and_values():
    pytest.importorskip("pandas")
    frame = frame_of({"image": ["a.jpg", "b.jpg"], "label": ["ant", None]})
    assert list(frame.columns) == ["image", "label"]
    assert frame["image"].tolist() == ["a.jpg", "b.jpg"]


def test_a_column_can_name_the_rows():
    pytest.importorskip("pandas")
    frame = frame_of({"image": ["a.jpg", "b.jpg"], "size": [1, 2]}, index="image")
    assert frame.loc["b.jpg", "size"] == 2


def test_without_pandas_one_sentence_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    monkeypatch.delitem(sys.modules, "pandas")
    monkeypatch.setattr(sys, "meta_path", [_Without("pandas"), *sys.meta_path])
    with pytest.raises(FeatxError, match="pip install pandas"):
        frame_of({"image": []})


def test_a_broken_pandas_shows_its_own_error(monkeypatch):
    monkeypatch.delitem(sys.modules, "pandas", raising=False)
    monkeypatch.setattr(sys, "meta_path", [_Without("pandas", "dateutil"), *sys.meta_path])
    with pytest.raises(ModuleNotFoundError, match="dateutil"):
        frame_of({"image": []})


class _Without:
    """Finds a package only to say that it, or what it needs, is not installed."""

    def __init__(self, name, missing=None):
        self._name, self._missing = name, missing or name

    def find_spec(self, name, path=None, target=None):
        if name == self._name:
            raise ModuleNotFoundError(f"No module named '{self._missing}'", name=self._missing)
