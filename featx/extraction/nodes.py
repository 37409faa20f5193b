"""A connection to a Ray cluster, and what its nodes are: the same versions, the same processors.

A cluster is joined, never started, and nothing is sent to it but what ``workers`` has: no folder,
no environment. Versions are compared before featx's own code runs anywhere.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from featx.errors import ClusterError, ConfigError, first_line, listed, printable
from featx.extraction.tokens import (
    address_for_init,
    asks_for_token,
    only_local_address,
    sends_token,
)
from featx.packages import install_command, needed

log = logging.getLogger(__name__)

CONNECT_SECONDS = 20.0
_CLIENT = "ray://"
_CLIENT_PORT, _PORT = 10001, 6379
_PROBE_SECONDS = 60.0
_GPU = "accelerator_type:"
_asking = set[str]()
"""Addresses of clusters that asked for a token; others refuse one that is sent."""
_ALWAYS = ("featx", "python")
"""Versions that must be alike even in a mixed cluster."""


@dataclass(frozen=True)
class Node:
    """A node that is alive.

    Attributes:
        key: Ray's id.
        name: Address, with some of the id where several are at one.
        cpus: That it has.
        gpus: That it has.
        gpu: Their kind, as Ray calls it; empty where it knows none.
    """

    key: str
    name: str
    cpus: float
    gpus: float
    gpu: str = ""


def import_ray() -> Any:
    """Return Ray, which is imported where it is asked for.

    Raises:
        ClusterError: It is not installed.
    """
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # it would upload this folder
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as err:
        raise ClusterError(f"ray=… needs {needed(err, 'ray', install_command('ray'))}") from err
    return ray


def find_address(address: str) -> str:
    """Return where a cluster is: ``HOST:PORT`` or ``ray://HOST:PORT``, for ``"auto"`` as well.

    Raises:
        ClusterError: None runs on this machine, or several do, or it does not answer within 20 s.
    """
    import_ray()
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", "") or only_local_address()
    is_client = address.startswith(_CLIENT)
    host, _, port = address.removeprefix(_CLIENT).rstrip("/").rpartition(":")
    if not host and not port.isdigit():
        host, port = port, str(_CLIENT_PORT if is_client else _PORT)
    if not host or not port.isdigit() or "/" in host:
        raise ConfigError(
            f"ray must be 'auto', HOST:PORT or ray://HOST:{_CLIENT_PORT}; got '{address}'."
        )
    address = f"{_CLIENT if is_client else ''}{host}:{port}"
    _require_answer(address, host.strip("[]"), int(port))
    return address


def _require_answer(address: str, host: str, port: int) -> None:
    """Check that something at an address speaks gRPC, as Ray itself would wait for minutes."""
    deadline = time.monotonic() + CONNECT_SECONDS
    advice = "Is the cluster running, and may this machine reach it? See: ray status."
    try:
        with socket.create_connection((host, port), timeout=CONNECT_SECONDS):
            pass
    except OSError as err:
        reason = "it does not answer" if isinstance(err, TimeoutError) else err.strerror or err
        raise ClusterError(f"No Ray cluster at '{address}' ({reason}). {advice}") from err
    try:
        import grpc
    except ImportError as err:  # plain ray has none, and its address needs no client
        if address.startswith(_CLIENT):
            why = needed(err, "grpcio", install_command("ray"))
            raise ClusterError(f"'{address}' is reached by {why}") from err
        return
    with grpc.insecure_channel(f"{host}:{port}") as channel:
        try:
            left = max(1.0, deadline - time.monotonic())
            grpc.channel_ready_future(channel).result(timeout=left)
        except grpc.FutureTimeoutError as err:
            raise ClusterError(
                f"What answers at '{address}' is not a Ray cluster, or is not ready. {advice}"
            ) from err
        if asks_for_token(grpc, channel, CONNECT_SECONDS):
            if not sends_token(address):
                raise ClusterError(
                    f"The Ray cluster at '{address}' asks for its token. Set RAY_AUTH_MODE=token "
                    "here, where ~/.ray/auth_token or RAY_AUTH_TOKEN is that of its head."
                )
            _asking.add(address)


@contextlib.contextmanager
def connected(address: str) -> Iterator[Any]:
    """Yield Ray, connected to a cluster that answers; a connection of the caller's is kept.

    Raises:
        ClusterError: Ray refuses the connection.
    """
    ray = import_ray()
    if ray.is_initialized():
        yield ray
        return
    try:
        ray.init(
            address=address_for_init(address) if address in _asking else address,
            log_to_driver=False,
            configure_logging=False,
            logging_level=logging.ERROR,
        )
    except Exception as err:  # of many kinds: other versions, no raylet on this machine, …
        hint = "" if address.startswith(_CLIENT) else _not_a_node(address, str(err))
        lines = " ".join(str(err).split())[:300]
        raise ClusterError(f"Ray at '{address}' refuses: {printable(lines)}{hint}") from err
    worker: Any = getattr(getattr(ray, "_private", None), "worker", None)
    if worker is not None:  # or news of nodes would be printed among results
        worker._worker_logs_enabled = False
    try:
        yield ray
    finally:
        ray.shutdown()
        if worker is not None:
            worker._worker_logs_enabled = True


def _not_a_node(address: str, text: str) -> str:
    if "raylet" not in text.lower() and "node" not in text.lower():
        return ""
    host = address.rpartition(":")[0]
    return f" From a machine that is not a node of it, use ray='{_CLIENT}{host}:{_CLIENT_PORT}'."


def alive_nodes(ray: Any) -> list[Node]:
    """Return the nodes of the cluster, by name."""
    found = [
        Node(
            node["NodeID"],
            str(node["NodeManagerAddress"]),
            node["Resources"].get("CPU", 0.0),
            node["Resources"].get("GPU", 0.0),
            " ".join(
                sorted(name[len(_GPU) :] for name in node["Resources"] if name.startswith(_GPU))
            ),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]
    several = {name for name, count in Counter(node.name for node in found).items() if count > 1}
    named = [
        replace(node, name=f"{node.name} ({node.key[:6]})") if node.name in several else node
        for node in found
    ]
    return sorted(named, key=lambda node: (node.name, node.key))


@dataclass(frozen=True)
class Alike:
    """What nodes are to be: versions of packages, kinds of processors."""

    versions: Mapping[str, str]
    kinds: tuple[str, ...]
    allow_mixed: bool

    def problem_here(self) -> str:
        """Return how this process differs in versions; empty where it does not."""
        return "; ".join(self.wrong_versions(describe_here(*self.versions)))

    def with_kind(self, kinds: list[str], node: str, kind: str) -> None:
        """Add the processor of a node that joined to those that there are.

        Raises:
            ClusterError: It is of another kind, and none other is allowed.
        """
        if kinds and kind not in kinds and not self.allow_mixed:
            raise ClusterError(
                f"{node} joined with a processor of another kind ({kind}) than the others "
                f"({kinds[0]}), whose last bits differ. Use nodes of one kind, or allow_mixed=True."
            )
        if kind not in kinds:
            kinds.append(kind)

    def wrong_versions(self, values: Mapping[str, Any], *, strict: bool = True) -> list[str]:
        """Return versions that must not differ, or with ``strict=False`` those that may."""
        found = values["versions"]
        return [
            f"it has {name} {found.get(name, 'none')}, expected {version}"
            for name, version in self.versions.items()
            if found.get(name) != version and (name in _ALWAYS or not self.allow_mixed) == strict
        ]


def kind_with(gpu: str, processor: str) -> str:
    """Return the kind of what computes: a processor, with the kind of its GPU where there is one.

    >>> kind_with("A100", "x86_64 avx2"), kind_with("", "x86_64 avx2")
    ('A100 beside x86_64 avx2', 'x86_64 avx2')
    """
    return f"{gpu} beside {processor}" if gpu else processor


def require_alike(
    ray: Any,
    nodes: Sequence[Node],
    *,
    engine: str = "none",
    with_gpus: bool = False,
    allow_mixed: bool,
) -> Alike:
    """Check that nodes have this machine's versions, and one kind of processor among them.

    Args:
        ray: Connected.
        nodes: Those that workers may run on.
        engine: What runs the backbone there.
        with_gpus: Whether it does on their GPUs, which are of one kind then.
        allow_mixed: Other processors, and other versions of libraries than featx, only give a
            warning.

    Returns:
        What nodes that join later are to be.

    Raises:
        ClusterError: They differ.
    """
    packages = ("torch",) if engine == "torch" else ()
    found = _on_each(ray, nodes, _description(*packages))
    kinds: dict[str, str] = {}
    for node, values in found:
        kinds.setdefault(kind_with(node.gpu if with_gpus else "", values["kind"]), node.name)
    alike = Alike(describe_here(*packages)["versions"], tuple(sorted(kinds)), allow_mixed)
    wrong, mixed = (
        [
            f"{node.name}: {text}"
            for node, values in found
            for text in alike.wrong_versions(values, strict=strict)
        ]
        for strict in (True, False)
    )
    if wrong:
        raise ClusterError(
            f"Nodes of the cluster do not run what this machine does. {listed(wrong, 4, '; ')}. "
            "Install the same versions everywhere, with pip or in the nodes' image."
        )
    if len(kinds) > 1:
        shown = [f"{name}: {kind}" for kind, name in kinds.items()]
        text = f"The nodes have processors of {len(kinds)} kinds ({listed(shown, 4, '; ')})"
        if not allow_mixed:
            raise ClusterError(
                f"{text}, whose last bits differ. Use nodes of one kind, or allow_mixed=True."
            )
        mixed.append(text)
    if mixed:
        log.warning("Features may differ in their last bits. %s.", listed(mixed, 4, "; "))
    return alike


def on_node(node: Node, *, soft: bool = True) -> Any:
    """Return Ray's strategy that places a task on a node; ``soft`` elsewhere when it is gone."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node.key, soft=soft)


def _on_each(
    ray: Any, nodes: Sequence[Node], function: Callable[[], Any]
) -> list[tuple[Node, Any]]:
    """Return what a function gives on each node that answers; it may not need featx.

    Raises:
        ClusterError: It fails on a node.
    """
    task = ray.remote(num_cpus=0, max_retries=2)(function)
    refs = []
    for node in nodes:
        there = on_node(node, soft=False)
        refs.append(task.options(scheduling_strategy=there).remote())
    results, problems = list[tuple[Node, Any]](), list[str]()
    deadline = time.monotonic() + _PROBE_SECONDS
    for node, ref in zip(nodes, refs, strict=True):
        try:
            left = max(1.0, deadline - time.monotonic())
            results.append((node, ray.get(ref, timeout=left)))
        except ray.exceptions.RayTaskError as err:
            raise ClusterError(
                f"The node {node.name} cannot be used: {first_line(err.cause)}"
            ) from err
        except ray.exceptions.RayError as err:
            problems.append(f"{node.name}: {first_line(err)}")
    if problems:  # it is going; workers that start there after all are checked by themselves
        log.info("A node of the cluster does not answer: %s", listed(problems, 2, "; "))
    return results


def ask_each(ray: Any, nodes: Sequence[Node], function: Callable[..., str], *args: Any) -> None:
    """Call a function of featx on each node; raise where one returns a problem.

    Raises:
        ClusterError: It names the node.
    """
    for node, problem in _on_each(ray, nodes, lambda: function(*args)):
        if problem:
            raise ClusterError(f"The node {node.name} cannot be used: {problem}")


def describe_here(*packages: str) -> Mapping[str, Any]:
    """Return versions, of packages as well, and the kind of processor of this process."""
    return _description(*packages)()


def _description(*packages: str) -> Callable[[], Mapping[str, Any]]:
    """Return a function that needs nothing of featx, and so is sent as a whole."""
    names = {"numpy", "pillow", "onnxruntime", *packages} - set(_ALWAYS)

    def describe() -> Mapping[str, Any]:
        import importlib
        import platform
        from importlib import metadata

        versions = {"python": platform.python_version()}
        try:
            versions["featx"] = importlib.import_module("featx").__version__
        except ImportError:
            versions["featx"] = "none"
        for name in sorted(names):
            try:
                versions[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                versions[name] = "none"
        wanted = (
            *("fma", "avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni"),
            *("amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "sve", "i8mm", "bf16"),
        )
        flags: set[str] = set()
        try:
            with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123 sent alone
                for line in file:
                    if line.partition(":")[0].strip() in ("flags", "Features"):
                        flags = set(line.partition(":")[2].split())
                        break
        except OSError:
            pass
        able = [name for name in wanted if name in flags]
        return {"versions": versions, "kind": " ".join([platform.machine(), *able])}

    return describe
