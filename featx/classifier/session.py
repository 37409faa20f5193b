"""Opening a classifier file and running it: ONNX Runtime and numpy, no torch."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import onnxruntime as ort

from featx.artifact import Header, require_file
from featx.classifier.seal import NotOnnx, has_entry, is_sealed, unwanted_parts
from featx.errors import ArtifactInvalid, ConfigError
from featx.images.preprocess import PreprocessSpec
from featx.images.read_ahead import num_cores

_MAX_BYTES = 2**31
_METADATA_KEY = "featx"
_OUTPUTS = ("logits", "probabilities")


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
                list(_OUTPUTS), {"image": np.ascontiguousarray(images)}
            )
        except Exception as err:  # ONNX Runtime's errors have no common base below Exception
            raise ArtifactInvalid(
                self.path, f"'{self.path}' cannot be run on {images.shape}: {_first_line(err)}"
            ) from err
        return logits, probabilities


def open_classifier(
    path: str | Path, *, threads: int | None = None, verify: bool = True
) -> Classifier:
    """Open a classifier file and check that it is one of featx's, as it was exported.

    Whatever reaches beyond the file is refused before ONNX Runtime sees it: weights in another
    file, operators that are not ONNX's own. A model from elsewhere could read with them what it
    should not.

    Args:
        path: The ONNX file.
        threads: For one image or batch; None takes all cores.
        verify: Compare the file with its sha256; leave out only for a file you have verified, or
            have changed yourself.

    Raises:
        ArtifactMissing: The file is not there.
        ArtifactInvalid: It is not a featx classifier, altered, damaged, or reaches beyond itself.
    """
    path = Path(path)
    require_file(path, made_by="featx export --onnx")
    if path.stat().st_size > _MAX_BYTES:
        raise ArtifactInvalid(path, f"'{path}' is larger than an ONNX file can be (2 GiB).")
    return load_classifier(path.read_bytes(), path=path, threads=threads, verify=verify)


def load_classifier(
    content: bytes, *, path: Path, threads: int | None = None, verify: bool = True
) -> Classifier:
    """Return the classifier of a file's content; as ``open_classifier``."""
    _require_own_content(content, path, verify=verify)
    session = _start(content, path, threads)
    header, metadata = _read_header(session, path)
    _require_contract(session, header, path)
    if metadata.get("classes", json.dumps(header.classes)) != json.dumps(header.classes):
        raise ArtifactInvalid(path, f"'{path}': its list of classes is not its header's; altered.")
    try:
        preprocess = PreprocessSpec.from_dict(header.spec["preprocess"])
    except (KeyError, ConfigError) as err:
        raise ArtifactInvalid(path, f"'{path}': its featx header is damaged ({err}).") from err
    return Classifier(session, path=path, header=header, preprocess=preprocess)


def _require_own_content(content: bytes, path: Path, *, verify: bool) -> None:
    """Check, on the bytes alone, that a model is as exported and holds all it needs.

    Raises:
        ArtifactInvalid: It is not.
    """
    try:
        unwanted = unwanted_parts(content)
        if verify and not is_sealed(content):
            if not has_entry(content, _METADATA_KEY):
                raise _not_ours(path)
            raise ArtifactInvalid(
                path,
                f"'{path}' was altered after export, or is damaged; export it again with "
                "featx export.",
            )
    except NotOnnx as err:
        raise ArtifactInvalid(
            path, f"'{path}' is not an ONNX model, or is damaged: {err}."
        ) from err
    if unwanted:
        raise ArtifactInvalid(
            path, f"'{path}' has {', '.join(unwanted)}, which no exported classifier has."
        )


def _not_ours(path: Path) -> ArtifactInvalid:
    return ArtifactInvalid(path, f"'{path}' is an ONNX model, but not one of featx's.")


def _start(content: bytes, path: Path, threads: int | None) -> ort.InferenceSession:
    """Return a session that runs the graph.

    Raises:
        ArtifactInvalid: ONNX Runtime does not take it.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads or num_cores()
    # As the backbone's engine has it: int8 features are the same on every processor.
    options.add_session_config_entry("session.x64quantprecision", "1")
    # The same bytes could be a model in ONNX Runtime's own format, too, unseen by our checks.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    # ONNX Runtime takes references to other files from here; below this there are none.
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", os.devnull
    )
    try:
        return ort.InferenceSession(
            content,
            options,
            providers=["CPUExecutionProvider"],
            enable_fallback=0,  # it would print, and try the same provider again
        )
    except Exception as err:  # ONNX Runtime's errors have no common base below Exception
        raise ArtifactInvalid(
            path, f"'{path}' is not an ONNX model that runs: {_first_line(err)}"
        ) from err


def _read_header(session: ort.InferenceSession, path: Path) -> tuple[Header, dict[str, str]]:
    """Return the header and all metadata entries."""
    try:
        metadata: dict[str, str] = session.get_modelmeta().custom_metadata_map
    except UnicodeDecodeError as err:
        raise ArtifactInvalid(path, f"'{path}': its metadata is damaged ({err}).") from err
    text = metadata.get(_METADATA_KEY)
    if text is None:
        raise _not_ours(path)
    return Header.from_json(text, path=path, kind="classifier"), metadata


def _require_contract(session: ort.InferenceSession, header: Header, path: Path) -> None:
    """Check names, types and shapes of what goes in and comes out.

    Raises:
        ArtifactInvalid: They are not those of ``classifier.graph``.
    """
    inputs = [(value.name, value.type) for value in session.get_inputs()]
    outputs = {value.name: value for value in session.get_outputs()}
    if inputs != [("image", "tensor(uint8)")] or not set(_OUTPUTS) <= outputs.keys():
        raise ArtifactInvalid(
            path, f"'{path}' has other inputs or outputs than a featx classifier."
        )
    for name in _OUTPUTS:
        shape = outputs[name].shape
        if len(shape) != 2 or shape[1] != len(header.classes):
            raise ArtifactInvalid(
                path, f"'{path}' gives {name} {shape}, but has {len(header.classes)} classes."
            )
        if outputs[name].type != "tensor(float)":
            raise ArtifactInvalid(
                path, f"'{path}' gives {name} as {outputs[name].type}, expected tensor(float)."
            )


def _first_line(err: Exception) -> str:
    return str(err).strip().partition("\n")[0]
