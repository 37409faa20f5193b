"""Execution providers: never another one silently."""

from __future__ import annotations

import pytest

from featx.classifier.session import require_providers, require_started
from featx.errors import ConfigError

CPU = "CPUExecutionProvider"


def test_none_is_the_cpu():
    assert require_providers(None) == [CPU]


def test_names_and_options_are_taken_as_they_are():
    wanted = [(CPU, {"arena_extend_strategy": "kSameAsRequested"})]
    assert require_providers(wanted) == wanted
    assert require_providers((CPU,)) == [CPU]


@pytest.mark.parametrize("providers", [[], (), CPU, ""])
def test_what_is_no_list(providers):
    with pytest.raises(ConfigError, match="must be a list of names, at least one"):
        require_providers(providers)


@pytest.mark.parametrize("provider", ["cuda", "", 3, (), ("TPU", {}), None])
def test_a_provider_that_is_not_here(provider):
    with pytest.raises(ConfigError, match=f"no provider .* here. It has .*{CPU}"):
        require_providers([CPU, provider])


class Session:
    """Says which providers run it."""

    def __init__(self, *names: str) -> None:
        self._names = list(names)

    def get_providers(self) -> list[str]:
        return self._names


def test_a_provider_that_did_not_start_is_an_error_not_a_slower_run():
    require_started(Session("CUDAExecutionProvider", CPU), [("CUDAExecutionProvider", {})])
    with pytest.raises(ConfigError, match=f"'CUDAExecutionProvider' does not start.*{CPU}"):
        require_started(Session(CPU), ["CUDAExecutionProvider"])
