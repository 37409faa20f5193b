"""Finding a network's tensors in a checkpoint, under whatever names a trainer gave them.

Trainers nest the state dict in others (``state_dict``, ``model_ema``) and put prefixes before the
names (``module.``, ``_orig_mod.``, ``backbone.``). What fits is known by names and shapes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torchvision import models

from featx.backbones.catalog import backbone_names, build_skeleton

Shapes = Mapping[str, tuple[int, ...]]

_ORDER = (
    *("state_dict", "model", "model_state_dict", "net", "network", "module", "backbone", "encoder"),
    *("state_dict_ema", "model_ema", "ema", "teacher", "student"),
)
"""Order in which networks that fit equally well are taken; other names come last."""
_LAST = re.compile(r"optim|^(?:exp_avg(?:_sq)?|momentum_buffer|master_weights?)$")
"""Keys of what an optimiser keeps, with the names and shapes of the weights."""
_MAX_DEPTH = 6
_WRAPPERS = re.compile(r"\b(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""Parts of names that come from wrapping a part of a network."""
_DENSENET_OLD = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)$")
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_NUM_GUESSES = 8
_LOOKS_LIKE = 0.8
"""Share of an architecture's tensors that a file must have to be taken for it."""


@dataclass(frozen=True)
class StateDict:
    """The tensors of a checkpoint that fit a network best."""

    tensors: Mapping[str, Tensor]
    place: str
    others: tuple[str, ...]
    num_matching: int


@cache
def shapes_of(backbone: str) -> Shapes:
    """Return name and shape of each parameter and buffer of a whole model."""
    return {n: tuple(tensor.shape) for n, tensor in build_skeleton(backbone).state_dict().items()}


def find_state(content: object, backbone: str) -> StateDict | None:
    """Return the tensors that fit a backbone best; None where a file has no named tensors."""
    known = shapes_of(backbone)
    candidates = []
    for path, tensors in _mappings(content):
        for prefix, num_matching in _prefixes(tensors, known):
            inside = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
            place = " → ".join((*path, prefix) if prefix else path)
            rank = (num_matching, -_rank(path), len(inside) if not num_matching else 0)
            candidates.append((rank, StateDict(inside, place, (), num_matching)))
    if not candidates:
        return None
    rank, best = max(candidates, key=lambda candidate: candidate[0])
    others = tuple(
        found.place
        for _, found in candidates
        if found.num_matching == best.num_matching > 0 and found.place != best.place
    )
    return StateDict(best.tensors, best.place, others, best.num_matching)


def _mappings(
    content: object, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Yield every dict with named tensors in it, and the keys that lead there."""
    if not isinstance(content, dict) or len(path) > _MAX_DEPTH:
        return
    tensors = {
        _DENSENET_OLD.sub(r"\1\2", _WRAPPERS.sub("", name)): value
        for name, value in content.items()
        if isinstance(name, str) and isinstance(value, Tensor)
    }
    if tensors:
        yield path, tensors
    for name, value in content.items():
        if isinstance(name, str):
            yield from _mappings(value, (*path, name))


def _rank(path: tuple[str, ...]) -> int:
    if any(_LAST.search(name) for name in path):
        return len(_ORDER) + 1
    ranks = [_ORDER.index(name) if name in _ORDER else len(_ORDER) for name in path]
    return max(ranks, default=-1)


def _prefixes(tensors: Mapping[str, Tensor], known: Shapes) -> list[tuple[str, int]]:
    """Return the prefixes under which a network's tensors may be, with how many match.

    A prefix that most names do not have is one only where half of the network is behind it.
    """
    counts = Counter[str]()
    for name, tensor in tensors.items():
        shape = shape_of(tensor)
        start = 0
        while start >= 0:
            if known.get(name[start:]) == shape:
                counts[name[:start]] += 1
            start = name.find(".", start) + 1 or -1
    found = [
        (prefix, count)
        for prefix, count in counts.items()
        if prefix == ""
        or count >= len(known) / 2
        or sum(name.startswith(prefix) for name in tensors) >= len(tensors) - 1
    ]
    most = max((count for _, count in found), default=0)
    best = sorted((prefix for prefix, count in found if count == most), key=len)
    return [(prefix, most) for prefix in best] or [("", 0)]


def shape_of(tensor: Tensor) -> tuple[int, ...] | None:
    """Return the shape of a tensor of any shape ``(*,)``; None where it is nested and has none."""
    try:
        return tuple(tensor.shape)
    except RuntimeError:  # a nested tensor
        return None


def unusable(found: Tensor, expected: Tensor) -> str | None:
    """Return why a tensor ``(*,)`` of a file cannot be like the expected one; None where it can."""
    kinds = {
        "a sparse or nested tensor": found.is_nested or found.layout is not torch.strided,
        "a quantised tensor": found.is_quantized,
        "a tensor without values (on the meta device)": found.is_meta,
    }
    if odd := [kind for kind, is_so in kinds.items() if is_so]:
        return odd[0]
    dtype = str(found.dtype).removeprefix("torch.")
    if not expected.is_floating_point():
        whole = not (found.is_floating_point() or found.is_complex())
        return None if whole else f"of type {dtype}, expected whole numbers"
    if found.dtype not in _FLOATS:
        return f"of type {dtype}, expected float16, bfloat16, float32 or float64"
    return None if bool(torch.isfinite(found.float()).all()) else "not finite in float32"


def describe_tensors(tensors: Mapping[str, Tensor], *, shown: int = 4) -> str:
    """Return how many tensors there are, and the names and shapes of the first."""
    some = [f"{name} {shape_of(tensor)}" for name, tensor in list(tensors.items())[:shown]]
    more = f" and {len(tensors) - shown} more" if len(tensors) > shown else ""
    return f"{len(tensors)} tensor{'' if len(tensors) == 1 else 's'}: {', '.join(some)}{more}"


def guess_backbone(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the backbone of about as many parameters whose tensors these seem to be."""
    size = sum(tensor.numel() for tensor in tensors.values() if shape_of(tensor) is not None)
    near = sorted(backbone_names(), key=lambda name: abs(_num_parameters(name) - size))
    best, name = max(
        (max(count for _, count in _prefixes(tensors, known)) / len(known), name)
        for name in near[:_NUM_GUESSES]
        if (known := shapes_of(name))
    )
    return name if best >= _LOOKS_LIKE else None


def _num_parameters(name: str) -> int:
    if name == "tiny":
        return sum(torch.Size(shape).numel() for shape in shapes_of(name).values())
    return int(models.get_model_weights(name).DEFAULT.meta["num_params"])
