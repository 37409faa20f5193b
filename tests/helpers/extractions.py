"""Extractions that start no process, but for tests that ask for ``as_is``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from feature_files import InThisProcess

import featx.extraction.run
import featx.features.given
import featx.stages.merge
from featx.extraction import backbone
from featx.extraction.options import ResolvedOptions

_VERIFYING = (featx.extraction.run, featx.features.given, featx.stages.merge)
_START_VERIFIER, _OPEN_BACKBONE = featx.extraction.run.start_verifier, backbone.open_backbone


@functools.cache
def _built(options: ResolvedOptions, build: Callable[[ResolvedOptions], Any]) -> Any:
    return build(options)


def _build_once(options: ResolvedOptions, progress: object = None) -> Any:
    plain = ResolvedOptions(**vars(options.request), dtype=options.dtype)
    return _built(plain, _OPEN_BACKBONE)


@pytest.fixture(scope="module", autouse=True)
def fast_extraction() -> Iterator[None]:
    """Verify in this process, and build a backbone once, but for tests that ask for ``as_is``.

    To start a process that imports h5py takes about half a second, to trace a network the same,
    and these tests extract some hundred times. What the process is worth is what the tests of
    publishing look at; the pipeline and the README's commands have both as they are.
    """
    with pytest.MonkeyPatch.context() as patch:
        _use(patch, InThisProcess, _build_once)
        yield


@pytest.fixture
def as_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Change nothing about an extraction."""
    _use(monkeypatch, _START_VERIFIER, _OPEN_BACKBONE)


def _use(patch: pytest.MonkeyPatch, verifier: object, build: object) -> None:
    for module in _VERIFYING:
        patch.setattr(module, "start_verifier", verifier)
    patch.setattr(backbone, "open_backbone", build)
