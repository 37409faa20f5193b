"""Features of parts that a Ray cluster reads: solvers get sums of each part, in order.

Ray's tasks are pure: a part, and what is to be done with its rows. So Ray may repeat one whose
process or node ended. A part goes to the same node in each pass, whose memory may still have it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Any, TypeVar

import numpy as np

from featx.errors import (
    ArtifactError,
    ClusterError,
    ConfigError,
    FeatxError,
    counted,
    first_line,
)
from featx.extraction.nodes import (
    Node,
    alive_nodes,
    ask_each,
    connected,
    find_address,
    on_node,
    require_alike,
)
from featx.features.blocks import reading_part
from featx.features.file import FeatureFile
from featx.features.part_columns import Part

log = logging.getLogger(__name__)

T = TypeVar("T")


@contextmanager
def reading_on_cluster(
    cache: FeatureFile, address: str, *, allow_mixed: bool = False, use_views: bool = False
) -> Iterator[PartRows]:
    """Yield all rows of opened parts, read by the nodes of a cluster.

    Raises:
        ConfigError: The features are in one file, not vectors, or have views that are to be used.
        ClusterError: There is no cluster, or its nodes cannot do this.
    """
    if not cache.parts:
        raise ConfigError(
            f"ray=… reads parts on several machines, and '{cache.path}' is one file. Leave it out, "
            "or extract in parts."
        )
    if cache.cut is not None:
        raise ConfigError(f"ray=… reads vectors; '{cache.path}' holds the cut '{cache.cut}'.")
    if cache.num_views and use_views:
        raise ConfigError("ray=… trains without views: add use_views=False, or leave it out.")
    parts = [part._replace(path=part.path.absolute()) for part in cache.parts]
    with connected(find_address(address)) as ray:
        nodes = [node for node in alive_nodes(ray) if node.cpus >= 1]
        if not nodes:
            raise ClusterError(f"No node of the Ray cluster at {address} has a CPU.")
        cpus = counted(int(sum(node.cpus for node in nodes)), "CPU")
        log.info("Ray at %s: %s, %s.", address, counted(len(nodes), "node"), cpus)
        require_alike(ray, nodes, allow_mixed=allow_mixed)
        ask_each(ray, nodes, unreadable, parts)
        yield PartRows(ray, _places(nodes, len(parts)), parts, cache.num_features)


def unreadable(parts: Sequence[Part]) -> str:
    """Return why a part cannot be read here, or nothing."""
    for part in parts:
        try:
            with part.opened():
                pass
        except ArtifactError as err:
            return str(err)
    return ""


def _places(nodes: Sequence[Node], num_parts: int) -> list[Node]:
    """Return the node of each part; neighbours are on one, and each has parts as it has CPUs.

    >>> nodes = [Node("1", "a", 1, 0), Node("2", "b", 3, 0)]
    >>> "".join(node.name for node in _places(nodes, 8))
    'aabbbbbb'
    """
    ends = np.cumsum([node.cpus for node in nodes])
    middles = (np.arange(num_parts) + 0.5) / num_parts * ends[-1]
    return [nodes[place] for place in np.searchsorted(ends, middles).tolist()]


class PartRows:
    """Some rows of parts, as ``heads.samples.data.Blocks``, of which sums can be had.

    Attributes:
        bytes_read: Bytes of features that were read, by all made from one.
    """

    def __init__(
        self, ray: Any, places: Sequence[Node], parts: Sequence[Part], num_features: int
    ) -> None:
        self._ray, self._places, self._parts = ray, places, parts
        self._num_features, self._num_bytes = num_features, [0]
        self._task = ray.remote(num_cpus=1, max_retries=5)(_do)
        self._sums: list[np.ndarray | None] = [None] * len(parts)
        self._choose(np.arange(parts[-1].first + parts[-1].num_rows))

    def _choose(self, rows: np.ndarray) -> None:
        self._rows = rows
        firsts = [part.first for part in self._parts]
        self._bounds = [*np.searchsorted(rows, firsts).tolist(), len(rows)]
        self._sent: dict[int, tuple[np.ndarray, list[Any]]] = {}

    @property
    def bytes_read(self) -> int:
        return self._num_bytes[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows, and features of a row."""
        return len(self._rows), self._num_features

    @property
    def num_pieces(self) -> int:
        """Number of parts."""
        return len(self._parts)

    def only(self, rows: np.ndarray) -> PartRows:
        """Return some of these rows; ``rows`` ``(n,)`` are their positions here, ascending."""
        some = copy(self)
        some._choose(self._rows[rows])
        return some

    def blocks(self, order: np.ndarray | None = None) -> Iterator[tuple[slice, np.ndarray]]:
        """Raise ``ConfigError``: rows stay where they are read."""
        raise ConfigError("ray=… gives sums over parts, not their rows.")

    def each_part(
        self,
        work: Callable[..., T],
        *columns: np.ndarray,
        step: Callable[[str], None] = lambda _: None,
    ) -> Iterator[T]:
        """Yield ``work(blocks, *columns)`` of each part in order, as ``Blocks.each_part`` says.

        Raises:
            ArtifactError: A part is damaged or was replaced.
            ClusterError: The cluster could not do it.
        """
        shared, refs = self._ray.put(work), dict[int, Any]()
        for number, part in enumerate(self._parts):
            if self._bounds[number] < self._bounds[number + 1]:
                own = [self._send(column, number) for column in (self._rows, *columns)]
                there = self._task.options(scheduling_strategy=on_node(self._places[number]))
                refs[number] = there.remote(shared, part, self._sums[number], *own)
        for number, ref in refs.items():
            found, num_bytes, self._sums[number] = self._get(number, ref)
            self._num_bytes[0] += num_bytes
            step(f"{self._bounds[number + 1]:,} of {len(self._rows):,} samples")
            yield found

    def _send(self, column: np.ndarray, number: int) -> Any:
        """Return a part's values of a column, which is sent once."""
        if id(column) not in self._sent:  # the column is kept, and with it its id
            pieces = np.split(column, self._bounds[1:-1])
            self._sent[id(column)] = column, [self._ray.put(piece) for piece in pieces]
        return self._sent[id(column)][1][number]

    def _get(self, number: int, ref: Any) -> Any:
        errors = self._ray.exceptions
        try:
            return self._ray.get(ref)
        except errors.RayTaskError as err:
            if isinstance(err.cause, FeatxError):
                raise err.cause from None
            raise
        except (errors.RayError, ConnectionError) as err:
            raise ClusterError(
                f"'{self._parts[number].path}' could not be read on the cluster: "
                f"{first_line(err)}. Run the command again."
            ) from err


def _do(
    work: Callable[..., T],
    part: Part,
    sums: np.ndarray | None,
    rows: np.ndarray,
    *columns: np.ndarray,
) -> tuple[T, int, np.ndarray | None]:
    """Return what is made of rows of a part, the bytes read, and sums to know them again by."""
    with reading_part(part, sums) as features:
        found = work(features.only(rows - part.first), *columns)
        return found, features.bytes_read, features.sums
