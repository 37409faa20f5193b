"""timm's models as backbones: their names, how they are built and what they preprocess with.

A backbone ``timm/NAME.TAG`` is timm's model ``NAME`` with the configuration that belongs to the
weights ``TAG``. Its features are what timm itself calls so: ``forward_head(forward_features(x),
pre_logits=True)``. ``lite0`` is one of them under a name of featx's own.
"""

from __future__ import annotations

import importlib.util
import math
import sys
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, get_args

import torch
from torch import Tensor, nn

from featx.errors import BackboneError, ConfigError, first_line
from featx.images.preprocess import Crop, PreprocessSpec
from featx.packages import install_command

PREFIX = "timm/"
LITE0, LITE0_MODEL = "lite0", "timm/tf_efficientnet_lite0.in1k"
FEATURES = "pre_logits"
"""The layer that gives timm's features, which is no module of most models."""
_SHOWN = 3


def is_timm(name: str) -> bool:
    """Return whether a backbone is one of timm's, by its name."""
    return name.startswith(PREFIX)


def uses_timm(name: str) -> bool:
    """Return whether timm builds a backbone: one of its own, or ``lite0``."""
    return is_timm(name) or name == LITE0


def is_timm_model(model: nn.Module) -> bool:
    """Return whether timm built a model."""
    return hasattr(model, "pretrained_cfg") and hasattr(model, "forward_head")


def require_timm() -> None:
    """Check that timm is installed.

    Raises:
        BackboneError: It is not; the message says how to install it.
    """
    if importlib.util.find_spec("timm") is None:
        raise BackboneError(f"Backbones of timm need the package timm: {install_command('timm')}.")


@cache
def full_name(name: str) -> str:
    """Return ``timm/NAME.TAG`` for a name, with the tag of timm's default weights if it has none.

    A name without weights of its own stays without a tag.

    Raises:
        BackboneError: timm is missing, or has no such model or tag; the message offers names.
    """
    require_timm()
    from timm.models import is_model, split_model_name_tag

    plain = (LITE0_MODEL if name == LITE0 else name).removeprefix(PREFIX)
    architecture, tag = split_model_name_tag(plain)
    if not is_model(architecture):
        raise BackboneError(f"timm has no model '{architecture}'.{_did_you_mean(architecture)}")
    tags = list(_configurations(architecture))
    if tag and tag not in tags:
        known = ", ".join(one for one in tags if one) or "none"
        raise BackboneError(f"timm's {architecture} has no weights '{tag}'; it has {known}.")
    tag = tag or next(iter(tags), "")
    return f"{PREFIX}{architecture}.{tag}" if tag else f"{PREFIX}{architecture}"


def _did_you_mean(name: str) -> str:
    import difflib

    from timm import list_models

    names = list_models()
    longer = sorted((each for each in names if name and name in each), key=len)
    near = list(dict.fromkeys((*longer, *difflib.get_close_matches(name, names, n=_SHOWN))))
    if not near:
        return " timm.list_models() lists them all."
    return f" Did you mean {' or '.join(PREFIX + one for one in near[:_SHOWN])}?"


def _configurations(architecture: str) -> Mapping[str, Any]:
    """Return timm's configurations of an architecture by tag, the default one first."""
    from timm.models import get_pretrained_cfg
    from timm.models._registry import get_arch_pretrained_cfgs

    default = get_pretrained_cfg(architecture)
    if default is None:
        return {}
    found = {default.tag or "": default}
    for full, one in get_arch_pretrained_cfgs(architecture).items():
        found.setdefault(full.partition(".")[2], one)
    return found


def pretrained_cfg(name: str) -> dict[str, Any]:
    """Return timm's configuration of a backbone's weights; empty where there is none."""
    architecture, _, tag = full_name(name).removeprefix(PREFIX).partition(".")
    found = _configurations(architecture).get(tag)
    return {} if found is None else dict(found.to_dict())


def build_timm(
    name: str, image_size: int | None = None, num_classes: int | None = None
) -> nn.Module:
    """Return timm's model with random weights, in eval mode; nothing is downloaded.

    Args:
        name: ``timm/NAME``, with or without a tag, or ``lite0``.
        image_size: Of its input, pixels; by default that of the weights.
        num_classes: Of its head; by default those of the weights.

    Raises:
        BackboneError: timm is missing, has no such model, or has none for this size.
    """
    name = full_name(name)
    import timm

    options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    size = pretrained_cfg(name).get("input_size", (3, 0, 0))[-1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if image_size in (None, size):
            model = _created(timm.create_model, name, options)
        else:
            try:
                model = _created(timm.create_model, name, options | {"img_size": image_size})
            except TypeError:  # convolutional ones take images of any size
                model = _created(timm.create_model, name, options)
    return model.eval()


def _created(create: Callable[..., nn.Module], name: str, options: dict[str, Any]) -> nn.Module:
    try:
        return create(name.removeprefix(PREFIX), pretrained=False, **options)
    except (AssertionError, RuntimeError, ValueError, ZeroDivisionError, IndexError) as err:
        size = options.get("img_size")
        taken = f" for images of {size} pixels" if size else ""
        raise BackboneError(f"timm cannot build {name}{taken}: {first_line(err)}") from err


def timm_preprocess(name: str, image_size: int | None = None) -> PreprocessSpec:
    """Return the preprocessing of a backbone's weights, as timm's own evaluation transform does it.

    Args:
        name: ``timm/NAME``, with or without a tag, or ``lite0``.
        image_size: Another input size; what is cut off of the image stays the same share.

    Raises:
        BackboneError: timm does not say how, or in a way that featx does not have.
    """
    name = full_name(name)
    cfg = pretrained_cfg(name)
    absent = [key for key in ("input_size", "mean", "std", "crop_pct") if not cfg.get(key)]
    if absent:
        raise BackboneError(
            f"timm does not say how images are prepared for {name}: its configuration has no "
            f"{' and no '.join(absent)}. Choose a name whose weights have one."
        )
    channels, height, width = cfg["input_size"]
    if height != width or channels != 3:
        raise BackboneError(
            f"{name} takes images of {height}×{width} pixels with {channels} channels; featx has "
            "square RGB input only. Choose another backbone."
        )
    crop, interpolation = cfg.get("crop_mode") or "center", cfg.get("interpolation") or "bicubic"
    if crop not in get_args(Crop) or interpolation not in ("bilinear", "bicubic"):
        raise BackboneError(
            f"{name} is prepared with crop '{crop}' and interpolation '{interpolation}', which "
            "featx does not have. Choose another backbone."
        )
    size = image_size or height
    resize = math.floor(size / cfg["crop_pct"])
    return PreprocessSpec.from_dict(
        {
            "image_size": size,
            "resize": resize,
            "mean": map(float, cfg["mean"]),
            "std": map(float, cfg["std"]),
            "crop": crop,
            "interpolation": interpolation,
            "pad": crop == "center" and resize < size,
        }
    )


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
    model.reset_classifier(0)  # type: ignore[operator]
    if pool not in pools_of(model):
        own = ", ".join(("auto", *(one for one in pools_of(model) if one != "none")))
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
    """Return the width of a backbone's features for images of a size.

    Raises:
        BackboneError: It does not take this size; the message names sizes that it takes.
    """
    try:
        return _width(skeleton, image_size, pool)
    except ConfigError:
        raise
    except (RuntimeError, AssertionError, ValueError, IndexError):
        try:  # some keep tensors that are no buffers, which shapes alone do not do for
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
            f"timm's features of this backbone are no vectors (output {tuple(output.shape)} for "
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


def adapted(
    model: nn.Module, needed: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> Mapping[str, Tensor]:
    """Return a file's tensors as a timm model takes them; unchanged where they fit as they are.

    timm's own filter of checkpoints brings the names of originals to timm's, and resamples position
    embeddings to the model's size.
    """
    if all(name in state and state[name].shape == own.shape for name, own in needed.items()):
        return state
    change = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if change is None:
        return state
    try:
        found: Mapping[str, Tensor] = change(dict(state), model)
    except (KeyError, IndexError, RuntimeError, AssertionError, ValueError, TypeError):
        return state
    return found if isinstance(found, Mapping) else state


def classifier_of(model: nn.Module) -> str | None:
    """Return the name of a timm model's classifier, None where it is no single ``Linear``."""
    last = model.get_classifier()  # type: ignore[operator]
    if not isinstance(last, nn.Linear):
        return None
    return next((name for name, module in model.named_modules() if module is last), None)


def trace_options(model: nn.Module) -> dict[str, Any]:
    """Return what tracing a model needs to know: of timm's, which parts it must not look into."""
    if not is_timm_model(model):
        return {}
    from timm.models import _features_fx as known

    return {
        "leaf_modules": known.get_notrace_modules(),  # type: ignore[no-untyped-call]
        "autowrap_functions": tuple(known.get_notrace_functions()),  # type: ignore[no-untyped-call]
    }


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
