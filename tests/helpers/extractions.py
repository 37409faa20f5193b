"""Extractions that start no process, but for tests that ask for ``as_is``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
from feature_files import InThisProcess

from featx.extraction import backbone
from featx.extraction.options import ResolvedOptions


@functools.cache
def _built(options: ResolvedOptions, build: Callable[[ResolvedOptions], Any]) -> Any:
    return build(options)


@pytest.fixture(autouse=True)
def fast_extraction(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verify in this process, and build a backbone once, but for tests that ask for ``as_is``.

    To start a process that imports h5py takes about half a second, to trace a network the same,
    and these tests extract some hundred times. What the process is worth is what the tests of
    publishing look at; those of the command line have both as they are.
    """
    if "as_is" in request.fixturenames:
        return
    build = backbone.open_backbone

    def build_once(options: ResolvedOptions, progress: object = None) -> Any:
        plain = ResolvedOptions(**vars(options.request), dtype=options.dtype)
        return _built(plain, build)

    monkeypatch.setattr(backbone, "open_backbone", build_once)
    monkeypatch.setattr("featx.extraction.run.start_verifier", InThisProcess)
    monkeypatch.setattr("featx.features.merge.start_verifier", InThisProcess)


@pytest.fixture
def as_is() -> None:
    """Change nothing about an extraction."""
