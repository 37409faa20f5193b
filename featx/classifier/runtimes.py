"""What else than this ONNX Runtime runs exported files: what it needs of them, and a trial."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featx.classifier.contract import Contract
from featx.errors import ConfigError, ExportError, ParityError, counted
from featx.packages import installed

if TYPE_CHECKING:
    from featx.classifier.session import Classifier

Runner = Callable[[Any, str, np.ndarray, str, str], Any]
"""Runs a file: the runtime's module, the path, an input, and the names of input and output."""

_VERSIONS = {(1, 17): 20, (1, 16): 19, (1, 15): 18}
"""The newest opset that ONNX Runtime reads from each version on: the table of docs/Versioning.md
there. IR versions follow from the opset (``graph.IR_VERSIONS``)."""
_ONNX_RUNTIME = re.compile(r"(onnxruntime(?:-web)?)(?:==(\d{1,3})\.(\d{1,3})(?:\.\d{1,3})?)?")


_CLOSE, _COARSE = 1e-4, 2e-2
"""Largest difference allowed, as a share of the largest output: of fp32, of fp16 and int8."""
_MAX_REASON = 200


@dataclass(frozen=True)
class Runtime:
    """What a runtime needs; measured with the versions that docs/clients.md names.

    Attributes:
        opset: The newest that it reads.
        fixed_images: It takes whole images of one shape alone.
        module: It is imported as that.
        package: It is installed as that.
        run: Runs a file in it; None where files are not tried.
    """

    opset: int = 20
    fixed_images: bool = True
    module: str = ""
    package: str = ""
    run: Runner | None = None


def _in_tract(tract: Any, path: str, inputs: np.ndarray, source: str, output: str) -> Any:
    model = tract.onnx().load(path)
    kind = {"uint8": "u8", "float32": "f32"}[str(inputs.dtype)]
    model.set_input_fact(0, f"{','.join(map(str, inputs.shape))},{kind}")
    return model.into_model().into_runnable().run([inputs])[0].to_numpy()


def _in_opencv(cv2: Any, path: str, inputs: np.ndarray, source: str, output: str) -> Any:
    network = cv2.dnn.readNetFromONNX(path)
    network.setInput(inputs, source)
    return network.forward(output)


def _in_openvino(openvino: Any, path: str, inputs: np.ndarray, source: str, output: str) -> Any:
    core = openvino.Core()
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    return core.compile_model(core.read_model(path), "CPU", exact)([inputs])[output]


RUNTIMES = {
    "onnxruntime": Runtime(fixed_images=False),
    "onnxruntime-web": Runtime(fixed_images=False),
    "openvino": Runtime(module="openvino", package="openvino", run=_in_openvino),
    "opencv": Runtime(module="cv2", package="opencv-python-headless", run=_in_opencv),
    "tract": Runtime(module="tract", package="tract", run=_in_tract),
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


def tried_in(
    runtime: str,
    content: bytes,
    classifier: Classifier,
    images: Sequence[np.ndarray],
    *,
    coarse: bool,
) -> str | None:
    """Return what a runtime was found to answer, in words; None where it is not installed.

    Args:
        runtime: Name, as ``newest_opset`` takes it.
        content: The file's bytes.
        classifier: The same file in ONNX Runtime.
        images: RGB ``(height, width, 3)`` uint8 each, as the file takes them.
        coarse: The backbone is in fp16 or int8, where a last bit may become a step.

    Raises:
        ExportError: The runtime does not run the file.
        ParityError: It gives other outputs.
    """
    own = RUNTIMES[runtime.partition("==")[0]]
    if own.run is None or find_spec(own.module) is None:
        return None
    module = import_module(own.module)
    version = installed(own.package) or getattr(module, "__version__", "")  # OpenCV has several
    name, bound = f"{runtime} {version}".strip(), _COARSE if coarse else _CLOSE
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(content)
        for image in images:
            inputs = np.stack([classifier.prepare(image)] * (classifier.contract.batch or 1))
            output, expected = next(iter(classifier.run(inputs).items()))
            names = classifier.contract.input_name, output
            try:
                found = np.reshape(own.run(module, str(path), inputs, *names), expected.shape)
            except Exception as err:  # each runtime has errors of its own
                hint = "" if classifier.contract.batch else " It may with batch=1."
                raise ExportError(
                    f"{name} does not run the file: {_reason(err)}. Nothing was written.{hint}"
                ) from err
            size = max(float(np.abs(expected).max()), 1e-30)
            difference = float(np.abs(found - expected).max()) / size
            if not difference <= bound:
                raise ParityError(
                    f"{name} gives other {output} than ONNX Runtime, by {difference:.1e} of the "
                    f"largest; {bound:.0e} is allowed. Nothing was written.",
                    difference=difference,
                    bound=bound,
                )
    return f"{name} answers {counted(len(images), 'image')} as ONNX Runtime does"


def _reason(err: Exception) -> str:
    """Return an error's message on one line, without a backtrace."""
    text = " ".join(str(err).partition("Stack backtrace")[0].split())
    return text if len(text) <= _MAX_REASON else f"{text[:_MAX_REASON]}…"
