"""What timm calls the features of a model: how they are pooled, their width, and what they cost."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from featx.backbones.with_timm import build_timm, timm_preprocess
from featx.errors import BackboneError, ConfigError, first_line

_SHOWN = 3


def ending_at_features(model: nn.Module, pool: str = "none") -> nn.Module:
    """Return timm's model, changed in place, without classifier and with features as its output.

    Args:
        model: As ``build_timm`` returns it. Its tensors keep their names.
        pool: ``"none"`` for timm's own features; else one of ``pools_of``.

    Returns:
        A module from normalised images ``(N, 3, size, size)`` to ``{"features": (N, D)}``.

    Raises:
        ConfigError: The model has no such pooling.
    """
    pools = (*pools_of(model), *(["avg"] if _averages(model) else []))
    model.reset_classifier(0)  # type: ignore[operator]
    if pool_of(model, pool) not in pools_of(model):
        own = ", ".join(("auto", *(one for one in pools if one != "none")))
        raise ConfigError(
            f"this backbone's features have no pooling '{pool}'; it can have {own}. Choose one of "
            "these, or another pooling of a layer=…."
        )
    return _restored(type(model), vars(model) | {"featx_pool": pool}).eval()


def pools_of(model: nn.Module) -> tuple[str, ...]:
    """Return the poolings that features of a timm model can have, ``"none"`` for its own."""
    if not (hasattr(model, "num_prefix_tokens") and hasattr(model, "fc_norm")):
        return ("none",)
    found: list[str] = ["none", "avg"]
    place = getattr(model, "embeds", model)  # NaFlex keeps it there
    if getattr(place, "cls_token", None) is not None and model.num_prefix_tokens:
        found += ["cls", "cls+avg"]
    if getattr(model, "attn_pool", None) is not None:
        found.append("map")
    return tuple(found)


def pool_of(model: nn.Module, pool: str) -> str:
    """Return the pooling that a choice means for a timm model's features; ``"none"`` is its own."""
    return "none" if pool == "auto" or (pool == "avg" and _averages(model)) else pool


def _averages(model: nn.Module) -> bool:
    if pools_of(model) != ("none",):
        return False
    places = (model, getattr(model, "head", None))
    found = [getattr(place, "global_pool", None) for place in places]
    return "avg" in [getattr(own, "pool_type", own) for own in found]


def _features(model: Any, images: Tensor, pool: str) -> Tensor:
    tokens = model.forward_features(images)
    if pool == "none":
        features: Tensor = model.forward_head(tokens, pre_logits=True)
        return features
    patches = tokens[:, model.num_prefix_tokens :]
    if pool == "map":
        whole = getattr(model, "pool_include_prefix", True)
        return model.fc_norm(model.attn_pool(tokens if whole else patches))  # type: ignore[no-any-return]
    parts = {"cls": lambda: tokens[:, 0], "avg": lambda: patches.mean(1)}
    return torch.cat([model.fc_norm(parts[part]()) for part in pool.split("+")], 1)


@cache
def _ends_at_features(kind: type[nn.Module]) -> type[nn.Module]:
    """Return a class of timm's that gives features; another module would rename the tensors."""

    def forward(self: Any, images: Tensor) -> dict[str, Tensor]:
        return {"features": _features(self, images, self.featx_pool)}

    def reduce(self: nn.Module, *_: object) -> Any:
        return _restored, (kind, vars(self))

    return type(kind.__name__, (kind,), {"forward": forward, "__reduce_ex__": reduce})


def _restored(kind: type[nn.Module], values: dict[str, Any]) -> nn.Module:
    cls = _ends_at_features(kind)  # type: ignore[arg-type]
    model = cls.__new__(cls)
    vars(model).update(values)
    return model


def features_width(backbone: str, image_size: int, skeleton: nn.Module, pool: str) -> int:
    """Return the width of a backbone's features; ``BackboneError`` names the sizes it takes."""
    try:
        return _width(skeleton, image_size, pool)
    except ConfigError:
        raise
    except (RuntimeError, AssertionError, ValueError, IndexError):
        try:  # some keep tensors that are not buffers, which shapes alone do not do for
            return _width(build_timm(backbone, image_size), image_size, pool)
        except (RuntimeError, AssertionError, ValueError, IndexError) as err:
            reason = first_line(err).rstrip(".")
    raise BackboneError(_no_such_size(backbone, image_size, reason))


def _width(model: nn.Module, image_size: int, pool: str) -> int:
    device = next(model.parameters()).device
    trunk = ending_at_features(model, pool)
    with torch.inference_mode():
        output = trunk(torch.zeros(2, 3, image_size, image_size, device=device))["features"]
    if output.ndim != 2 or output.shape[0] != 2:
        raise BackboneError(
            f"timm's features of this backbone are not vectors (output {tuple(output.shape)} for "
            "two images); choose another backbone."
        )
    return int(output.shape[1])


def _no_such_size(backbone: str, image_size: int, reason: str) -> str:
    return (
        f"{backbone} does not take images of {image_size} pixels ({reason}). Sizes near it that "
        f"go: {', '.join(map(str, _sizes_that_go(backbone, image_size)))}."
    )


def _sizes_that_go(backbone: str, image_size: int) -> list[int]:
    own = timm_preprocess(backbone).image_size
    near = {
        max(1, image_size // step + more) * step for step in (14, 16, 32, 64) for more in (0, 1)
    }
    found = []
    for size in sorted(near - {own, image_size}, key=lambda size: abs(size - image_size)):
        try:
            _width(build_timm(backbone, size), size, "none")
        except (BackboneError, RuntimeError, AssertionError, ValueError, IndexError):
            continue
        found.append(size)
        if len(found) == _SHOWN - 1:
            break
    return sorted([*found, own])


def relative_cost(backbone: str, image_size: int, base: int = 224) -> float:
    """Return how much more work an image is than one of ``base`` pixels, by multiplications.

    By pixels where the backbone does not take that size, or cannot be counted.
    """
    from torch.utils.flop_counter import FlopCounterMode

    counts = []
    try:
        for size in (image_size, base):
            with FlopCounterMode(display=False) as counter:
                _width(build_timm(backbone, size).to("meta"), size, "none")
            counts.append(counter.get_total_flops())
    except (BackboneError, RuntimeError, AssertionError, ValueError, IndexError, TypeError):
        return (image_size / base) ** 2
    return float(counts[0] / max(counts[1], 1))
