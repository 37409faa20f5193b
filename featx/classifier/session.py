"""Opening a classifier file and running it: ONNX Runtime and numpy, no torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort

from featx.artifact import Header, require_file
from featx.errors import ArtifactInvalid, ConfigError
from featx.images.preprocess import PreprocessSpec
from featx.images.read_ahead import num_cores

_MAX_BYTES = 2**31


class Classifier:
    """An opened model file.

    Attributes:
        header: What the file says about itself.
        preprocess: What its graph does before the backbone.
    """

    def __init__(self, session: ort.InferenceSession, header: Header) -> None:
        self._session = session
        self.header = header
        self.preprocess = PreprocessSpec.from_dict(header.spec["preprocess"])

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in index order."""
        return self.header.classes

    def run(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return logits and probabilities, ``(batch, num_classes)`` float32 each.

        Args:
            images: RGB, ``(batch, height, width, 3)`` uint8, any height and width.

        Raises:
            ConfigError: The array is of another type or shape.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise ConfigError(
                "images must be uint8 of shape (batch, height, width, 3); "
                f"got {images.dtype} {images.shape}."
            )
        logits, probabilities = self._session.run(
            ["logits", "probabilities"], {"image": np.ascontiguousarray(images)}
        )
        return logits, probabilities


def open_classifier(path: str | Path, *, threads: int | None = None) -> Classifier:
    """Open a classifier file and check that it is one of featx's.

    The file is read into memory first: ONNX Runtime then refuses to follow references to other
    files.

    Args:
        path: The ONNX file.
        threads: For one image or batch; None takes all cores.

    Raises:
        ArtifactMissing: The file is not there.
        ArtifactInvalid: It is not a featx classifier, or is damaged.
    """
    path = Path(path)
    require_file(path, made_by="featx export --onnx")
    if path.stat().st_size > _MAX_BYTES:
        raise ArtifactInvalid(path, f"'{path}' is larger than an ONNX file can be (2 GiB).")
    return load_classifier(path.read_bytes(), path=path, threads=threads)


def load_classifier(content: bytes, *, path: Path, threads: int | None = None) -> Classifier:
    """Return the classifier of a file's content; as ``open_classifier``."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads or num_cores()
    try:
        session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as err:  # ONNX Runtime's errors have no common base below Exception
        reason = str(err).strip().partition("\n")[0]
        raise ArtifactInvalid(path, f"'{path}' is not an ONNX model that runs: {reason}") from err
    text = session.get_modelmeta().custom_metadata_map.get("featx")
    if text is None:
        raise ArtifactInvalid(path, f"'{path}' is an ONNX model, but not one of featx's.")
    header = Header.from_json(text, path=path, kind="classifier")
    names = [value.name for value in session.get_inputs()]
    outputs = {value.name: value.shape for value in session.get_outputs()}
    if names != ["image"] or not {"logits", "probabilities"} <= outputs.keys():
        raise ArtifactInvalid(
            path, f"'{path}' has other inputs or outputs than a featx classifier."
        )
    if outputs["logits"][1] != len(header.classes):
        raise ArtifactInvalid(
            path, f"'{path}' has {outputs['logits'][1]} outputs, but {len(header.classes)} classes."
        )
    return Classifier(session, header)
