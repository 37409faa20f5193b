"""The Ray clusters of this machine, and whether a cluster asks for a token."""

from __future__ import annotations

import os
from typing import Any

from featx.errors import ClusterError, counted, listed


def only_local_address() -> str:
    """Return the address of the cluster that runs on this machine."""
    found = _local_addresses()
    if len(found) == 1:
        return found[0]
    if not found:
        raise ClusterError(
            "ray='auto' finds no Ray cluster on this machine. Start one, as docs/scale.md says, or "
            "give the address of one: HOST:6379 from its nodes, ray://HOST:10001 from elsewhere."
        )
    raise ClusterError(
        f"{counted(len(found), 'Ray cluster')} run on this machine: {listed(found)}. Say which, "
        f"such as ray='{found[0]}'."
    )


def asks_for_token(grpc: Any, channel: Any, seconds: float) -> bool:
    """Return whether a cluster refuses a call without a token, for which Ray would try long."""
    call = channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")
    try:
        call(b"", timeout=seconds)
    except grpc.RpcError as err:
        return bool(err.code() == grpc.StatusCode.UNAUTHENTICATED)
    return False


def sends_token(address: str) -> bool:
    """Return whether Ray sends its token, as it does unasked to the cluster of this machine."""
    return (
        os.environ.get("RAY_AUTH_MODE", "").lower() == "token"
        or address_for_init(address) == "auto"
    )


def address_for_init(address: str) -> str:
    """Return the address for Ray itself: ``"auto"`` for the only cluster of this machine."""
    is_only = not os.environ.get("RAY_ADDRESS") and _local_addresses() == [address]
    return "auto" if is_only else address


def _local_addresses() -> list[str]:
    """Return the addresses of the clusters that run on this machine."""
    from ray._private import services

    find: Any = services.find_gcs_addresses
    if clear := getattr(find, "cache_clear", None):
        clear()  # a notebook may have seen a cluster that has ended
    return sorted(map(str, find()))
