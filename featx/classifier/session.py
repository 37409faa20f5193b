"""Opening a classifier file and running it: ONNX Runtime and numpy, no torch."""

from __future__ import annotations

import json
import os
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
        path: Where it came from, for messages.
        header: What the file says about itself.
        preprocess: What its graph does before the backbone.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        *,
        path: Path,
        header: Header,
        preprocess: PreprocessSpec,
    ) -> None:
        self._session = session
        self.path = path
        self.header = header
        self.preprocess = preprocess

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in index order."""
        return self.header.classes

    def run(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return logits and probabilities, ``(batch, num_classes)`` float32 each.

        Args:
            images: RGB, ``(batch, height, width, 3)`` uint8, any height and width.

        Raises:
            ConfigError: The array is of another type or shape, or an image has no pixels.
            ArtifactInvalid: The file's graph does not run on it.
        """
        fits = images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] == 3
        if not fits or 0 in images.shape[1:3]:
            raise ConfigError(
                "images must be uint8 of shape (batch, height, width, 3); "
                f"got {images.dtype} {images.shape}."
            )
        try:
            logits, probabilities = self._session.run(
                ["logits", "probabilities"], {"image": np.ascontiguousarray(images)}
            )
        except Exception as err:  # ONNX Runtime's errors have no common base below Exception
            raise ArtifactInvalid(
                self.path, f"'{self.path}' cannot be run on {images.shape}: {_first_line(err)}"
            ) from err
        return logits, probabilities


def open_classifier(path: str | Path, *, threads: int | None = None) -> Classifier:
    """Open a classifier file and check that it is one of featx's.

    Weights that lie in another file are refused: a model from elsewhere could read with them what
    it should not.

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
    # ONNX Runtime takes references to other files from here; below this there are none.
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", os.devnull
    )
    try:
        session = ort.InferenceSession(
            content,
            options,
            providers=["CPUExecutionProvider"],
            enable_fallback=0,  # it would print, and try the same provider again
        )
    except Exception as err:  # ONNX Runtime's errors have no common base below Exception
        raise ArtifactInvalid(
            path, f"'{path}' is not an ONNX model that runs: {_first_line(err)}"
        ) from err
    try:
        metadata = session.get_modelmeta().custom_metadata_map
        text = metadata.get("featx")
    except UnicodeDecodeError as err:
        raise ArtifactInvalid(path, f"'{path}': its metadata is damaged ({err}).") from err
    if text is None:
        raise ArtifactInvalid(path, f"'{path}' is an ONNX model, but not one of featx's.")
    header = Header.from_json(text, path=path, kind="classifier")
    names = [value.name for value in session.get_inputs()]
    outputs = {value.name: value.shape for value in session.get_outputs()}
    if names != ["image"] or not {"logits", "probabilities"} <= outputs.keys():
        raise ArtifactInvalid(
            path, f"'{path}' has other inputs or outputs than a featx classifier."
        )
    for name in ("logits", "probabilities"):
        if len(outputs[name]) != 2 or outputs[name][1] != len(header.classes):
            raise ArtifactInvalid(
                path,
                f"'{path}' gives {name} {outputs[name]}, but has {len(header.classes)} classes.",
            )
    if metadata.get("classes", json.dumps(header.classes)) != json.dumps(header.classes):
        raise ArtifactInvalid(path, f"'{path}': its list of classes is not its header's; altered.")
    try:
        preprocess = PreprocessSpec.from_dict(header.spec["preprocess"])
    except (KeyError, ConfigError) as err:
        raise ArtifactInvalid(path, f"'{path}': its featx header is damaged ({err}).") from err
    return Classifier(session, path=path, header=header, preprocess=preprocess)


def _first_line(err: Exception) -> str:
    return str(err).strip().partition("\n")[0]
