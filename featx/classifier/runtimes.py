"""What runs exported files besides this ONNX Runtime, and what each needs of a file."""

from __future__ import annotations

import re
from dataclasses import dataclass

from featx.classifier.contract import Contract
from featx.errors import ConfigError

_VERSIONS = {(1, 17): 20, (1, 16): 19, (1, 15): 18}
"""The newest opset that ONNX Runtime reads from each version on: the table of docs/Versioning.md
there. IR versions follow from the opset (``graph.IR_VERSIONS``)."""
_ONNX_RUNTIME = re.compile(r"(onnxruntime(?:-web)?)(?:==(\d{1,3})\.(\d{1,3})(?:\.\d{1,3})?)?")


@dataclass(frozen=True)
class Runtime:
    """What a runtime needs; measured with the versions that docs/clients.md names.

    Attributes:
        opset: The newest that it reads.
        fixed_images: It takes whole images of one shape alone.
        fixed_batch: It takes one number of images alone.
    """

    opset: int = 20
    fixed_images: bool = True
    fixed_batch: bool = False


RUNTIMES = {
    "onnxruntime": Runtime(fixed_images=False),
    "onnxruntime-web": Runtime(fixed_images=False),
    "openvino": Runtime(),
    "opencv": Runtime(),
    "tract": Runtime(),
}
"""By name; ONNX Runtime's with a version as well, ``onnxruntime==1.17``."""


def newest_opset(runtime: str) -> int:
    """Return the newest opset that a runtime reads.

    Raises:
        ConfigError: The runtime is unknown, or too old for what featx writes.
    """
    if match := _ONNX_RUNTIME.fullmatch(runtime):
        if match[2] is None:
            return RUNTIMES[match[1]].opset
        version = int(match[2]), int(match[3])
        found = [opset for least, opset in _VERSIONS.items() if version >= least]
        if not found:
            raise ConfigError(
                f"'{runtime}' is too old: files of featx need version "
                f"{'.'.join(map(str, min(_VERSIONS)))} or newer."
            )
        return max(found)
    if runtime not in RUNTIMES:
        raise ConfigError(
            f"runtime must be {', '.join(RUNTIMES)} or a version like onnxruntime==1.17; "
            f"got {runtime!r}."
        )
    return RUNTIMES[runtime].opset


def require_fit(runtime: str, contract: Contract, *, opset: int | None) -> None:
    """Refuse a file that a runtime cannot run.

    Args:
        runtime: Its name, as ``RUNTIMES`` has it.
        contract: Of the file.
        opset: That is asked for, if any is.

    Raises:
        ConfigError: The runtime is unknown, or needs another input, shape, batch or opset.
    """
    newest = newest_opset(runtime)
    needs = RUNTIMES[runtime.partition("==")[0]]
    if opset is not None and opset > newest:
        raise ConfigError(f"'{runtime}' reads opset {newest} at most; opset={opset} is newer.")
    if needs.fixed_images and contract.input == "image" and contract.image_shape is None:
        raise ConfigError(
            f"'{runtime}' does not resize images of any shape as featx does. Give the one shape "
            "of your images (image_shape=…), or export with input='crop' or input='tensor'."
        )
    if needs.fixed_batch and contract.batch is None:
        raise ConfigError(f"'{runtime}' takes a fixed number of images at once (batch=…).")
