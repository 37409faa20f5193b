"""Running an exported file in another runtime than ONNX Runtime, where that is installed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from featx.classifier.session import Classifier
from featx.errors import ExportError, ParityError, counted
from featx.packages import installed

_CLOSE, _COARSE = 1e-4, 2e-2
"""Largest difference allowed, as a share of the largest logit: of fp32, of fp16 and int8."""
_MAX_REASON = 200


class _Runtime(NamedTuple):
    module: str
    package: str
    run: Callable[[Any, str, np.ndarray, str, str], Any]
    """Of the module, the file's path, its input, and the names of input and output."""


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
    return core.compile_model(core.read_model(path), "CPU", exact)([inputs])[0]


_RUNTIMES = {
    "tract": _Runtime("tract", "tract", _in_tract),
    "opencv": _Runtime("cv2", "opencv-python-headless", _in_opencv),
    "openvino": _Runtime("openvino", "openvino", _in_openvino),
}


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
        runtime: Name, as ``runtimes.RUNTIMES`` has it.
        content: The file's bytes.
        classifier: The same file in ONNX Runtime.
        images: RGB ``(height, width, 3)`` uint8 each, as the file takes them.
        coarse: The backbone is in fp16 or int8, where a last bit may become a step.

    Raises:
        ExportError: The runtime does not run the file.
        ParityError: It gives other outputs.
    """
    own = _RUNTIMES.get(runtime)
    if own is None or find_spec(own.module) is None:
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
