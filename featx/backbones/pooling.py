"""Pooling: one vector for each image, of maps or of tokens."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from featx.backbones.spec import Pool
from featx.errors import BackboneError, ConfigError


class Form(NamedTuple):
    """How a layer's output is laid out.

    Attributes:
        channels_last: Maps are ``(N, H, W, C)``.
        num_prefix: Tokens before those of the patches, which means and maxima leave out.
    """

    channels_last: bool = False
    num_prefix: int = 0


MAPS = Form()


class Tokens(NamedTuple):
    """What a layer's tokens have before those of the patches."""

    num_prefix: int
    has_class: bool
    is_default: bool
    """The class token is what stands for the image where nothing else is asked for."""


def tokens_of(model: nn.Module, shape: tuple[int, ...]) -> Tokens:
    """Return which tokens of a timm model a layer's output ``(N, T, C)`` has before the patches.

    None where the output is not tokens, or those of the patches alone.
    """
    num_prefix = getattr(model, "num_prefix_tokens", 0)
    num_patches = getattr(getattr(model, "patch_embed", None), "num_patches", None)
    if len(shape) != 3 or not num_prefix or shape[1] != num_prefix + (num_patches or 0):
        return Tokens(0, has_class=False, is_default=False)
    has_class = getattr(model, "cls_token", None) is not None
    own = getattr(model, "global_pool", None)
    return Tokens(num_prefix, has_class, is_default=has_class and own == "token")


def resolve_pool(pool: Pool, shape: tuple[int, ...], layer: str, tokens: Tokens) -> Pool:
    """Return the pooling that a choice means for a layer whose output for two images is ``shape``.

    Raises:
        BackboneError: The layer gives nothing that can be pooled.
        ConfigError: It cannot be pooled so; the message says how.
    """
    if shape[0] != 2:
        raise BackboneError(
            f"Layer '{layer}' mixes the images of a batch (output {shape} for two images); choose "
            "another."
        )
    if len(shape) == 2:
        if pool not in ("auto", "none", "flatten"):
            raise ConfigError(
                f"layer '{layer}' gives a vector already, there is nothing to pool by '{pool}'. "
                "Leave out pool=…, or choose an earlier layer."
            )
        return "none"
    if pool == "none":
        raise ConfigError(f"layer '{layer}' gives {shape[1:]}, no vector; leave out pool=….")
    if pool == "flatten":
        return pool
    if len(shape) not in (3, 4):
        raise BackboneError(
            f"Layer '{layer}' gives neither maps nor tokens (output {shape} for two images); "
            "choose another, or pool='flatten'."
        )
    has_class = tokens.has_class and len(shape) == 3
    if pool in ("cls", "cls+avg") and not has_class:
        raise ConfigError(
            f"layer '{layer}' has no class token (output {shape} for two images); "
            "use pool='avg' or 'max'."
        )
    if pool == "map":
        raise ConfigError(
            f"layer '{layer}' has no attention pooling, which only the features of some of timm's "
            "models have; leave out pool=…, or use pool='avg' or 'max'."
        )
    if pool == "auto":
        return "cls" if has_class and tokens.is_default else "avg"
    return pool


def pooled(output: Tensor, pool: Pool, form: Form = MAPS) -> Tensor:
    """Return one vector per image ``(N, D)`` of ``(N, C)``, tokens ``(N, T, C)`` or maps."""
    if pool == "none":
        return output
    if pool == "flatten":
        return output.flatten(1)
    if pool == "cls":
        return output[:, 0]
    if pool == "cls+avg":
        return torch.cat([output[:, 0], output[:, max(form.num_prefix, 1) :].mean(1)], 1)
    if form.num_prefix:
        output = output[:, form.num_prefix :]
    dims = (1,) if output.ndim == 3 else (1, 2) if form.channels_last else (2, 3)
    return output.mean(dims) if pool == "avg" else output.amax(dims)
