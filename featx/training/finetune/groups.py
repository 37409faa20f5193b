"""Which parameters are trained, with which learning rate and weight decay."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from torch import nn

from featx.training.finetune.options import Recipe

_ATTENTION = re.compile(r"(^|[._])attn|attention")
_NESTED = re.compile(r"(?:blocks\.|layers\.)?(?:\d+|\D*layer\d+|block\d+-\d+)(?=\.)")
"""Names of blocks inside a numbered module, and not of the layers of a block."""
_NOT_DECAYED = (nn.Embedding, nn.LayerNorm)
"""Layers whose weight may be a table; tracing leaves no type of many others."""


def set_modes(model: nn.Module, *, train_bn: bool) -> None:
    """Put a model into eval mode, batch norms into train mode where their statistics may move.

    Parameters of batch norms in eval mode are trained; their statistics stay.
    """
    model.eval().requires_grad_(True)
    for norm in batch_norms(model):
        norm.train(train_bn)


def batch_norms(model: nn.Module) -> list[nn.Module]:
    """Return the modules that have running statistics."""
    return [each for each in model.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]


def is_transformer(model: nn.Module) -> bool:
    """Return whether a model has attention; by names too: traced modules have lost their types."""
    return any(
        isinstance(module, nn.MultiheadAttention) or _ATTENTION.search(name)
        for name, module in model.named_modules()
    )


def parameter_groups(tail: nn.Module, head: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Return the optimizer's groups, with the highest rate and the weight decay of each.

    A block has ``layer_decay`` times the rate of the next one, the head the whole rate, so a block
    has the same rate wherever the network is cut before it. What comes before the first block, as
    embeddings do, has one rate.
    """
    names = [name for name, _ in tail.named_parameters()]
    depths = dict(zip(names, _depths(names), strict=True))
    decayed = set(_decayed(tail)) | set(_decayed(head))
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for part in (tail, head):
        for name, parameter in part.named_parameters():
            rate = recipe.lr
            if part is tail:
                flat = recipe.backbone_lr
                rate = recipe.lr * recipe.layer_decay ** depths[name] if flat is None else flat
            decay = recipe.weight_decay if parameter in decayed else 0.0
            groups.setdefault((rate, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "highest": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]


def _decayed(model: nn.Module) -> Iterator[nn.Parameter]:
    """Yield weights of convolutions, linear layers and attention; all else does not decay."""
    for module in model.modules():
        if not isinstance(module, _NOT_DECAYED):
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.ndim > 1 and name.endswith("weight"):
                    yield parameter


def _depths(names: Sequence[str]) -> list[int]:
    """Return how many blocks before the head each parameter of a tail lies, at least 1.

    Runs of names without a number are blocks of their own; before the first block they are one.
    """
    blocks = [block_of(name) for name in names]
    numbered = [any(character.isdigit() for character in block) for block in blocks]
    first = numbered.index(True) if True in numbered else len(blocks)
    runs = [len(list(run)) for _, run in groupby(["", *blocks[first:]] if first else blocks)]
    if first:
        runs[0] = first
    return [len(runs) - number for number, count in enumerate(runs) for _ in range(count)]


def block_of(name: str) -> str:
    """Return the block that a parameter belongs to: a numbered module, or a numbered one in it.

    >>> block_of("layer4.0.conv1.weight"), block_of("stages.3.blocks.0.conv_dw.weight")
    ('layer4.0', 'stages.3.blocks.0')
    """
    first = re.match(r"(?:[^.]+\.)*?[^.]*\d[a-z]?\.", name)
    if first is None:
        return name.partition(".")[0]
    nested = _NESTED.match(name, first.end())
    return name[: nested.end() if nested else first.end() - 1]
