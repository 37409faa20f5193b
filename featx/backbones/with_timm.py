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
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from itertools import chain
from typing import Any, get_args

import torch
from torch import Tensor, nn

from featx.errors import BackboneError, first_line
from featx.images.preprocess import Crop, PreprocessSpec
from featx.packages import install_command

PREFIX = "timm/"
LITE0, LITE0_MODEL = "lite0", "timm/tf_efficientnet_lite0.in1k"
FEATURES = "pre_logits"
"""The layer that gives timm's features, which is not a module of most models."""
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


def require_timm(name: str = PREFIX) -> None:
    """Check that timm is installed; else ``BackboneError`` says how to install it."""
    if importlib.util.find_spec("timm") is None:
        what, extra = (LITE0, "imagenet") if name == LITE0 else ("A backbone of timm", "timm")
        raise BackboneError(f"{what} needs the package timm: {install_command(extra)}.")
    with warnings.catch_warnings():  # tqdm, in a notebook without ipywidgets
        warnings.filterwarnings("ignore", message="IProgress not found")
        import timm.models  # noqa: F401


@cache
def full_name(name: str) -> str:
    """Return ``timm/NAME.TAG`` for a name, with the tag of timm's default weights if it has none.

    A name without weights of its own stays without a tag.

    Raises:
        BackboneError: timm is missing, or has no such model or tag; the message offers names.
    """
    require_timm(name)
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


def larger_size(name: str) -> int | None:
    """Return the second input size, pixels, that timm tests a backbone's weights with, if any."""
    cfg = pretrained_cfg(name)
    size = cfg.get("test_input_size")
    return int(size[-1]) if size and size != cfg.get("input_size") else None


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


def adapted(
    model: nn.Module, needed: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> Mapping[str, Tensor]:
    """Return a file's tensors as a timm model takes them; unchanged where they fit as they are.

    timm's own filter of checkpoints brings the names of originals to timm's, and resamples position
    embeddings to the model's size.
    """
    known = model.state_dict()
    if all(name in known for name in state) and all(
        state[name].shape == own.shape for name, own in needed.items() if name in state
    ):
        return state
    change = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if change is None:
        return state
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about how timm resamples tables of positions
        try:
            found: Mapping[str, Tensor] = change(dict(state), model)
        except (KeyError, IndexError, RuntimeError, AssertionError, ValueError, TypeError):
            return state
    return found if isinstance(found, Mapping) else state


def as_timm_loads(
    name: str, content: object, known: Mapping[str, tuple[int, ...]]
) -> Mapping[str, Tensor]:
    """Return tensors as timm itself would load them into a model, renamed where it does that.

    Args:
        name: ``NAME.TAG`` as timm has it.
        content: Of timm's file of the weights.
        known: Shape of each of the model's tensors by name.

    Raises:
        BackboneError: They do not fit, or none of them was loaded.
    """
    tensors = dict(content) if isinstance(content, dict) else {}
    found = {each: t for each, t in tensors.items() if isinstance(t, Tensor)}
    if {each: tuple(tensor.shape) for each, tensor in found.items()} == known:
        return found
    import timm

    try:
        overlay = {"state_dict": tensors}
        model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay)
    except Exception as err:  # each of timm's filters of names has its own way to fail
        raise BackboneError(
            f"The weights of timm's {name} do not fit its model of timm {timm.__version__} "
            f"({type(err).__name__}: {first_line(err)})."
        ) from err
    loaded = model.eval().state_dict()
    nested = (each.values() for each in tensors.values() if isinstance(each, Mapping))
    given = [t for t in (*found.values(), *chain.from_iterable(nested)) if isinstance(t, Tensor)]
    if not any(_is_same(tensor, given) for tensor in loaded.values()):
        raise BackboneError(f"No tensor of the weights of timm's {name} was loaded.")
    return loaded


def _is_same(tensor: Tensor, among: Iterable[Tensor]) -> bool:
    equal_shape = (each for each in among if each.shape == tensor.shape)
    return any(torch.equal(each.to(tensor.dtype), tensor) for each in equal_shape)


def other_weights(name: str) -> str:
    """Return a sentence with other weights of ``NAME`` or ``NAME.TAG``, where it has some."""
    from timm import list_pretrained

    others = [each for each in list_pretrained(f"{name.partition('.')[0]}.*") if each != name]
    return f" There are timm/{', timm/'.join(others[:_SHOWN])}." if others else ""


def classifier_of(model: nn.Module) -> str | None:
    """Return the name of a timm model's classifier, None where it is not a single ``Linear``."""
    last = model.get_classifier()  # type: ignore[operator]
    if not isinstance(last, nn.Linear):
        return None
    return next((name for name, module in model.named_modules() if module is last), None)


@contextmanager
def tracing(model: nn.Module) -> Iterator[dict[str, Any]]:
    """Yield torchvision's options for tracing a model, in a block that does so.

    timm names parts of its models that must not be looked into.

    Raises:
        BackboneError: A model of timm's cannot be traced.
    """
    options: dict[str, Any] = {}
    if is_timm_model(model):
        from timm.models import _features_fx as known

        options["leaf_modules"] = known.get_notrace_modules()  # type: ignore[no-untyped-call]
        functions = known.get_notrace_functions()  # type: ignore[no-untyped-call]
        options["autowrap_functions"] = tuple(functions)
    with warnings.catch_warnings():
        # torchvision warns where train and eval mode differ; featx only ever runs eval mode.
        warnings.filterwarnings("ignore", message="NOTE: The nodes obtained by tracing")
        try:
            yield options
        except Exception as err:  # what fails in tracing may be of any kind
            if not is_timm_model(model):
                raise
            raise BackboneError(
                f"{type(model).__name__} cannot be traced, so it has no layers and cuts to choose "
                f"from ({first_line(err)}). Leave out layer=… and cut=…, or use cut='input'."
            ) from err
