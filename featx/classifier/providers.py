"""Execution providers of ONNX Runtime: which are asked for, which are here, and which started."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from featx.errors import ConfigError

Provider = str | tuple[str, Mapping[str, Any]]
"""A name, ``"CUDAExecutionProvider"``, or a name and options, ``("…", {"device_id": 1})``."""

_CPU = "CPUExecutionProvider"


def require_providers(
    providers: Sequence[Provider] | None, available: Sequence[str]
) -> list[Provider]:
    """Return the providers as ONNX Runtime takes them, the CPU where there are none.

    Raises:
        ConfigError: It is not a list, or one of them is not available.
    """
    if providers is None:
        return [_CPU]
    if isinstance(providers, str) or not providers:
        raise ConfigError(f"providers must be a list of names, at least one; got {providers!r}.")
    for name in map(_provider_name, providers):
        if name not in available:
            raise ConfigError(
                f"ONNX Runtime has no provider {name!r} here. It has {', '.join(available)}; "
                "others come with other builds of it, CUDAExecutionProvider with onnxruntime-gpu."
            )
    return list(providers)


def require_started(started: Sequence[str], providers: Sequence[Provider]) -> None:
    """Refuse a session that goes without a provider, as one does whose libraries are missing.

    Raises:
        ConfigError: One of the providers is not among those that started.
    """
    for name in map(_provider_name, providers):
        if name not in started:
            raise ConfigError(
                f"The provider '{name}' does not start here: its driver or libraries are missing "
                f"or of another version. Started: {', '.join(started)}."
            )


def _provider_name(provider: Provider) -> Any:
    return provider[0] if isinstance(provider, tuple) and provider else provider
