from __future__ import annotations

import pytest

from featx.classifier.providers import require_providers, require_started
from featx.errors import ConfigError

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


def test_none_is_the_cpu():
    assert require_providers(None, [CPU]) == [CPU]


def test_names_and_options_are_taken_as_they_are():
    wanted = [(CPU, {"arena_extend_strategy": "kSameAsRequested"})]
    assert require_providers(wanted, [CPU]) == wanted
    assert require_providers((CPU,), [CPU]) == [CPU]


@pytest.mark.parametrize("providers", [[], (), CPU, ""])
def test_what_is_no_list(providers):
    with pytest.raises(ConfigError, match="must be a list of names, at least one"):
        require_providers(providers, [CPU])


@pytest.mark.parametrize("provider", ["cuda", "", 3, (), ("TPU", {}), None])
def test_a_provider_that_is_not_here(provider):
    with pytest.raises(ConfigError, match=f"no provider .* here. It has .*{CPU}"):
        require_providers([CPU, provider], [CPU])


def test_a_provider_that_did_not_start_is_an_error_not_a_slower_run():
    require_started([CUDA, CPU], [(CUDA, {})])
    with pytest.raises(ConfigError, match=f"'{CUDA}' does not start.*{CPU}"):
        require_started([CPU], [CUDA])
