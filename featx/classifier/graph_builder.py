"""Nodes and initializers of a graph in the making."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper


class Pieces:
    """Nodes and initializers in the making; new names start with ``featx_``."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def take(self, graph: onnx.GraphProto) -> None:
        """Add what another graph is made of; its names must be others."""
        self.nodes.extend(graph.node)
        self.initializers.extend(graph.initializer)

    def constant(self, name: str, value: np.ndarray) -> str:
        """Add an initializer of any shape ``(*shape,)`` and return its name in the graph."""
        self.initializers.append(numpy_helper.from_array(value, f"featx_{name}"))
        return f"featx_{name}"

    def integers(self, name: str, *values: int) -> str:
        """Add an initializer of int64 and return its name in the graph."""
        return self.constant(name, np.array(values, dtype=np.int64))

    def node(
        self,
        op: str,
        inputs: Sequence[str],
        name: str,
        *,
        output: str | None = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> str:
        """Add a node and return the name of its output, ``featx_`` and ``name`` by default."""
        output = output or f"featx_{name}"
        self.nodes.append(
            helper.make_node(op, list(inputs), [output], f"featx_{name}_{op}", **(attributes or {}))
        )
        return output
