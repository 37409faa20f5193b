"""Cuts: split a network at the input of one of its modules, into a stem and a tail.

The stem runs once over the images and its activations are cached; the tail is trained on them. A
module is a cut where everything behind depends on the image through its input alone: a residual
block is, one branch of it is not.
"""

from __future__ import annotations

import difflib
import operator
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.feature_extraction import NodePathTracer

from featx.backbones.catalog import build_skeleton, penultimate_layer
from featx.backbones.spec import INPUT, PENULTIMATE, Pool
from featx.backbones.timm_features import ending_at_features
from featx.backbones.with_timm import FEATURES, is_timm_model, tracing
from featx.errors import BackboneError, listed

_FEW_CUTS = 4
"""So many names near the top, or fewer, are containers of all the blocks: look inside."""


@dataclass(frozen=True)
class Cut:
    """A place where a network can be split.

    Attributes:
        name: Module whose input is cached, or ``"input"``.
        shape: Of one image's activations: ``(H, W, 3)`` at the input, else as the module takes it.
        num_parameters: Trainable parameters from here to the penultimate layer.
        share: Part of the network's multiplications done behind the cut, in ``[0, 1]``.
    """

    name: str
    shape: tuple[int, ...]
    num_parameters: int
    share: float

    @property
    def num_bytes(self) -> int:
        """Size of one image's activations: float16, or uint8 pixels."""
        return (1 if self.name == INPUT else 2) * torch.Size(self.shape).numel()


def split_model(
    model: nn.Module, cut: str, *, layer: str, pool: Pool = "none", image_size: int | None = None
) -> tuple[nn.Module, nn.Module]:
    """Return stem and tail, sharing the model's modules, in eval mode.

    Args:
        model: Whole model; takes normalised images ``(N, 3, H, W)``.
        cut: A module that ``list_cuts`` names, or one with the same input.
        layer: Node of the model's graph where the tail ends.
        pool: That of a timm model's features, where the layer is that.
        image_size: With it, parts of a timm model may fit no other size.

    Returns:
        Images to ``{"features": …}`` with the activations at the cut, and activations to
        ``{"features": …}`` with the layer's output. The tail leaves its input unchanged: nothing in
        it works in place. Names of tensors are the model's.

    Raises:
        BackboneError: The model cannot be split there; the message says why.
    """
    traced = _Traced(model, layer, image_size, pool)
    model = traced.model
    value = traced.input_of(cut)
    if value is traced.image:
        raise BackboneError(
            f"What enters '{cut}' is the image itself; choose '{INPUT}', which keeps its pixels."
        )
    stem, tail = fx.Graph(), fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in traced.needed_for(value):
        copies[node] = stem.node_copy(node, copies.__getitem__)
    stem.output({"features": copies[value]})
    copies = {value: tail.placeholder("activations")}
    for node in traced.needed_for(traced.end, given=value):
        copies[node] = _out_of_place(tail.node_copy(node, copies.__getitem__))
    tail.output({"features": copies[traced.end]})
    modules = fx.GraphModule(model, stem).eval(), fx.GraphModule(model, tail).eval()
    for module in modules[1].modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]
    return modules


def find_shape(backbone: str, image_size: int, cut: str, *, layer: str) -> tuple[int, ...]:
    """Return the shape of an image's activations at a cut; ``BackboneError`` if there is none."""
    if cut == INPUT:
        return (image_size, image_size, 3)
    model = build_skeleton(backbone, image_size)
    with torch.device("meta"):
        stem, _ = split_model(model, cut, image_size=image_size, layer=layer)
        activations = stem(torch.empty(2, 3, image_size, image_size))["features"]
    if not isinstance(activations, Tensor) or activations.shape[0] != 2:
        raise BackboneError(f"What enters '{cut}' is not a tensor per image; choose another.")
    return tuple(activations.shape[1:])


def list_cuts(backbone: str, image_size: int, *, layer: str | None = None) -> list[Cut]:
    """Return the cuts of a backbone in order of computation, the shortest name for each.

    Worked out from shapes: no weights are loaded.

    Raises:
        BackboneError: Unknown backbone or layer, or an image size it does not take.
    """
    model = build_skeleton(backbone, image_size)
    layer = layer or penultimate_layer(model)
    traced = _Traced(model, layer, image_size)
    model = traced.model
    images = torch.empty(1, 3, image_size, image_size, device="meta")
    runner = _Counting(fx.GraphModule(model, traced.graph))
    try:
        with runner.counter:
            runner.run(images)
    except (RuntimeError, AssertionError, ValueError) as err:
        reason = str(err).strip().partition("\n")[0].rstrip(".")
        raise BackboneError(
            f"{backbone} does not take images of {image_size} pixels ({reason})."
        ) from err
    whole = sum(runner.flops.get(node, 0) for node in traced.needed_for(traced.end))
    learnt = sum(parameter.numel() for parameter in traced.parameters(traced.nodes))
    cuts = [Cut(INPUT, (image_size, image_size, 3), learnt, 1.0)]
    for name, value in traced.cuts().items():
        behind = traced.needed_for(traced.end, given=value)
        shape = runner.shapes.get(value)
        if shape is None or shape[0] != 1:
            continue
        count = sum(parameter.numel() for parameter in traced.parameters(behind))
        share = sum(runner.flops.get(node, 0) for node in behind) / max(whole, 1)
        cuts.append(Cut(name, shape[1:], count, share))
    return cuts


def main_cuts(cuts: list[Cut]) -> list[Cut]:
    """Return the cuts that are worth a choice: the input, and the borders of blocks.

    Left out are names that lie deeper than the blocks, cuts behind which next to nothing is
    trained, and those where a later cut takes no more space and leaves the same work.

    Args:
        cuts: All cuts of a backbone, as ``list_cuts`` returns them.
    """
    whole = cuts[0].num_parameters
    trained = [cut for cut in cuts if cut.num_parameters > whole / 1000]
    found: list[Cut] = []
    for depth in range(2, 5):
        near = [cut for cut in trained if cut.name.count(".") < depth]
        found = [
            cut
            for number, cut in enumerate(near)
            if cut.name == INPUT or not any(_replaces(later, cut, whole) for later in near[number:])
        ]
        if len(found) > _FEW_CUTS:
            break
    return found


def _replaces(later: Cut, cut: Cut, whole: int) -> bool:
    """Return whether a later cut takes no more space and leaves the same work and parameters."""
    return (
        later is not cut
        and later.num_bytes <= cut.num_bytes
        and cut.share - later.share < 1 / 500
        and cut.num_parameters - later.num_parameters < whole / 1000
    )


class _Traced:
    """A model's graph up to one node, with the path of the module that each node belongs to."""

    def __init__(
        self, model: nn.Module, layer: str, image_size: int | None, pool: Pool = "none"
    ) -> None:
        at_features = layer == FEATURES and is_timm_model(model)
        if at_features:
            model = ending_at_features(model, pool)
        with tracing(model) as options:
            tracer = NodePathTracer(**options)
            tracer._autowrap_search += _timm_modules(model)
            self.graph = tracer.trace(model.eval())
            if image_size is not None and is_timm_model(model):
                _fix_sizes(self.graph, model, image_size)
        self.paths: dict[fx.Node, str] = {
            node: path for node, path in tracer.node_to_qualname.items() if path
        }
        if at_features:
            output = next(node for node in self.graph.nodes if node.op == "output")
            self.paths[output.all_input_nodes[0]] = layer
        ends = [node for node, path in self.paths.items() if path == layer]
        if not ends:
            raise BackboneError(f"The model has no node '{layer}'.")
        self.model, self.end = model, ends[-1]
        self.nodes = self.needed_for(self.end)
        self.image = next(node for node in self.graph.nodes if node.op == "placeholder")
        self._of_image = {self.image}  # values that depend on the image
        self._alone: set[fx.Node] = set()  # those of them that all behind depends on
        position = {node: number for number, node in enumerate(self.nodes)}
        last_use = 0
        for number, node in enumerate(self.nodes):
            if node is self.image or self._of_image & set(node.all_input_nodes):
                self._of_image.add(node)
                if last_use <= number:
                    self._alone.add(node)
                users = [position[user] for user in node.users if user in position]
                last_use = max(last_use, *users, number)

    def needed_for(self, value: fx.Node, *, given: fx.Node | None = None) -> list[fx.Node]:
        """Return the nodes that a value is computed from, in order, but for those of ``given``."""
        needed = {value}
        for node in reversed(self.graph.nodes):
            if node in needed and node is not given:
                needed.update(node.all_input_nodes)
        return [node for node in self.graph.nodes if node in needed and node is not given]

    def parameters(self, nodes: list[fx.Node]) -> Iterator[nn.Parameter]:
        """Yield the trainable parameters that nodes read, each once."""
        seen: set[int] = set()
        for node in nodes:
            for parameter in _parameters_of(self.model, node):
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    yield parameter

    def cuts(self) -> dict[str, fx.Node]:
        """Return the value at each cut by the shortest name of a module that reads it."""
        names: dict[fx.Node, str] = {}
        for name, _ in self.model.named_modules():
            try:
                value = self.input_of(name) if name else None
            except BackboneError:
                continue
            if value is not None and value is not self.image:
                names.setdefault(value, name)  # named_modules gives a module before its parts
        return {names[value]: value for value in self.nodes if value in names}

    def input_of(self, cut: str) -> fx.Node:
        """Return the value that enters a module.

        Raises:
            BackboneError: No such module, or the model cannot be split there.
        """
        inside = [node for node in self.nodes if f"{self.paths.get(node)}.".startswith(f"{cut}.")]
        if not inside:
            modules = [name for name, _ in self.model.named_modules() if name]
            if cut in modules:
                raise BackboneError(f"Module '{cut}' computes nothing before the last layer.")
            near = difflib.get_close_matches(cut, [INPUT, PENULTIMATE, *modules], n=3)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            named = [name for name in self.cuts() if "." not in name]
            if len(named) < _FEW_CUTS:
                named = [name for name in self.cuts() if name.count(".") < 2]
            raise BackboneError(
                f"The network has no module '{cut}'.{hint} Cuts are {INPUT}, {listed(named, 8)}, "
                f"and {PENULTIMATE}; 'featx backbones NAME' lists all of them."
            )
        if sum(node.op == "call_module" and node.target == cut for node in self.nodes) > 1:
            raise BackboneError(f"Module '{cut}' runs more than once in a pass; choose another.")
        members = set(inside)
        sources = {
            source
            for node in inside
            for source in node.all_input_nodes
            if source in self._of_image and source not in members
        }
        crossing = f"More than the input of '{cut}' is needed behind it"
        if len(sources) != 1:
            raise BackboneError(f"{crossing}: it takes {len(sources)} values; choose another cut.")
        (value,) = sources
        if value not in self._alone:
            raise BackboneError(
                f"{crossing}: another branch of the network runs beside it; choose another cut."
            )
        return value


def _timm_modules(model: nn.Module) -> list[ModuleType]:
    """Return the modules that a model's classes are from, whose functions fx may have to wrap."""
    names = {kind.__module__ for kind in type(model).__mro__}
    return [sys.modules[name] for name in sorted(names) if name.startswith("timm.")]


def _fix_sizes(graph: fx.Graph, model: nn.Module, image_size: int) -> None:
    """Put numbers in place of the sizes of tensors, but for those that grow with the batch.

    A part that only needs the size of what is before a cut then does not depend on the image.
    """
    sizes = [node for node in graph.nodes if _is_size(node)]
    if not sizes:
        return
    place = next(model.parameters()).device
    found = []
    for count in (2, 3):
        runner = _Sizes(fx.GraphModule(model, graph), set(sizes))
        with FakeTensorMode(allow_non_fake_inputs=True):  # shapes alone
            runner.run(torch.empty(count, 3, image_size, image_size, device=place))
        found.append(runner.values)
    for node in sizes:
        value, other = (values.get(node) for values in found)
        if isinstance(value, int) and value == other:
            for user in list(node.users):
                user.args = fx.node.map_aggregate(user.args, _instead(node, value))


def _instead(node: fx.Node, value: int) -> Callable[[Any], Any]:
    return lambda each: value if each is node else each


def _is_size(node: fx.Node) -> bool:
    """Return whether a node is one number of a tensor's shape."""
    if node.op == "call_method" and node.target == "size":
        return len(node.args) == 2
    if node.op != "call_function" or node.target is not operator.getitem:
        return False
    source, index = node.args
    is_shape = isinstance(source, fx.Node) and (
        (source.target is getattr and source.args[1] == "shape")
        or (source.target == "size" and len(source.args) == 1)
    )
    return is_shape and isinstance(index, int)


class _Sizes(fx.Interpreter):
    """Runs a graph and keeps the values of some nodes."""

    def __init__(self, module: fx.GraphModule, nodes: set[fx.Node]) -> None:
        super().__init__(module)
        self.nodes, self.values = nodes, dict[fx.Node, object]()

    def run_node(self, n: fx.Node) -> object:
        result = super().run_node(n)
        if n in self.nodes:
            self.values[n] = result
        return result


class _Counting(fx.Interpreter):
    """Runs a graph on shapes and notes the shape and multiplications of each node."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}
        self.flops: dict[fx.Node, int] = {}
        self.counter = FlopCounterMode(display=False)

    def run_node(self, n: fx.Node) -> object:
        before = self.counter.get_total_flops()
        result = super().run_node(n)
        self.flops[n] = self.counter.get_total_flops() - before
        if isinstance(result, Tensor):
            self.shapes[n] = tuple(result.shape)
        return result


def _parameters_of(model: nn.Module, node: fx.Node) -> Iterator[nn.Parameter]:
    if node.op == "call_module":
        yield from model.get_submodule(str(node.target)).parameters()
    elif node.op == "get_attr":
        owner, _, name = str(node.target).rpartition(".")
        value = getattr(model.get_submodule(owner), name)
        if isinstance(value, nn.Parameter):
            yield value


def _out_of_place(node: fx.Node) -> fx.Node:
    if "inplace" in node.kwargs:
        node.kwargs = node.kwargs | {"inplace": False}
    return node
