"""Opening a classifier file and running it: ONNX Runtime and numpy, no torch."""

from __future__ import annotations

import ctypes
import json
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnxruntime as ort
from PIL import Image

from featx.artifact import Header, other_kind, require_file
from featx.backbones.engines import default_batch_size, session_options
from featx.backbones.seal import NotOnnx, is_sealed, read_entry, unwanted_parts
from featx.classifier.contract import Contract, Value, find_fault
from featx.classifier.hub import MAX_BYTES, local_model
from featx.classifier.providers import Provider, require_providers, require_started
from featx.classifier.seal import HEADER_KEY
from featx.errors import ArtifactInvalid, ConfigError, ImageError, first_line, require_at_least
from featx.heads.tasks import Task, task_of
from featx.images.preprocess import PreprocessSpec, resized_square
from featx.images.reading import num_cores

R = TypeVar("R")
_MAX_BATCH = 16
_SPIN_US = "50"
_ORT_TYPES = {"uint8": "tensor(uint8)", "float32": "tensor(float)", "int64": "tensor(int64)"}

_open_sessions: weakref.WeakSet[ort.InferenceSession] = weakref.WeakSet()


def _abandon_sessions() -> None:
    """Keep a forked process from closing its parent's sessions.

    Closing one waits for its threads, and a fork takes none of them along: the process would hang
    when it exits. A reference that nobody gives back keeps each of them open.
    """
    for session in _open_sessions:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_sessions)


class Classifier:
    """An opened model file.

    Attributes:
        path: Where it came from, for messages.
        header: What the file says about itself.
        preprocess: From an image to the backbone's input, in the file or before it.
        contract: What goes in and comes out.
        batch_size: Images that a batch has at most.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        *,
        path: Path,
        header: Header,
        preprocess: PreprocessSpec,
        contract: Contract,
    ) -> None:
        self._session = session
        self.path = path
        self.header = header
        self.preprocess = preprocess
        self.contract = contract
        self._input = contract.input_value(preprocess)
        self.outputs = contract.output_values(
            num_classes=len(header.classes), num_features=header.spec["num_features"]
        )
        self._names = [value.name for value in self.outputs]
        size = preprocess.image_size
        usual = min(default_batch_size("onnxruntime", size), _MAX_BATCH)
        self.batch_size = contract.batch or usual
        if contract.image_shape:  # a JPEG that is decoded scaled would have another one
            self.preprocess = replace(preprocess, decode="full")

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in index order."""
        return self.header.classes

    @property
    def task(self) -> Task:
        """Task of the head: classes, tags or numbers."""
        return self.contract.task

    @property
    def thresholds(self) -> tuple[float, ...]:
        """From which probability on each tag is given; empty unless it is multi-label."""
        return self.task.thresholds_of(self.header.details, len(self.classes))

    @property
    def gives_scores(self) -> bool:
        """Whether there are logits or probabilities of all classes."""
        return bool({"logits", "probabilities"} & set(self._names))

    @property
    def providers(self) -> list[str]:
        """Execution providers that run it, in the order that operators are given to them."""
        return list(self._session.get_providers())

    def prepare(self, pixels: np.ndarray) -> np.ndarray:
        """Return one raw image, RGB ``(height, width, 3)`` uint8, as one of a batch of ``run``."""
        return self.contract.prepare(pixels, self.preprocess)

    def prepare_resized(self, image: Image.Image | np.ndarray) -> np.ndarray:
        """Return one decoded image, resized and cropped by Pillow, as one of a batch of ``run``.

        That is exact, cheaper for large photos than the file's own resize, and gives images of all
        sizes to the graph in one batch. A file for images of one shape takes the image itself.
        """
        if self.contract.image_shape:
            return self.prepare(np.asarray(image))
        return self.prepare(resized_square(image, self.preprocess))

    def require_contract(self) -> None:
        """Check names, types and shapes of what the graph takes and gives."""
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        wanted = [(self._input.name, _ORT_TYPES[self._input.dtype])]
        if (
            [(value.name, value.type) for value in inputs] != wanted
            or [value.name for value in outputs] != self._names
            or not _has_shape(inputs[0].shape, self._input)
        ):
            raise ArtifactInvalid(
                self.path, f"'{self.path}' has other inputs or outputs than a featx classifier."
            )
        for value, found in zip(self.outputs, outputs, strict=True):
            fault = ""
            if not _has_shape(found.shape, value):
                fault = (
                    f"{found.shape}, but has {len(self.classes)} classes and "
                    f"{self.header.spec['num_features']} features"
                )
            elif found.type != _ORT_TYPES[value.dtype]:
                fault = f"as {found.type}, expected {_ORT_TYPES[value.dtype]}"
            if fault:
                raise ArtifactInvalid(self.path, f"'{self.path}' gives {value.name} {fault}.")

    def run(self, inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Return the file's outputs by name; ``contract`` has shapes and types.

        Args:
            inputs: A batch of what the contract takes: ``(batch, height, width, 3)`` uint8 for
                images of one size, ``(batch, size, size, 3)`` uint8 for crops,
                ``(batch, 3, size, size)`` float32 for tensors. A file of a fixed batch is run as
                often as it takes.

        Raises:
            ConfigError: The array is of another type or shape, or an image has no pixels.
            ArtifactInvalid: The file's graph does not run on it, or gives what the contract rules
                out: other shapes, numbers that are not finite, no probabilities.
        """
        wanted = self._input
        fits = inputs.dtype == wanted.dtype and inputs.ndim == len(wanted.shape)
        sides = zip(inputs.shape[1:], wanted.shape[1:], strict=False)
        if not fits or not all(n == side if isinstance(side, int) else n for n, side in sides):
            shape = ", ".join(map(str, wanted.shape))
            raise ConfigError(
                f"images must be {wanted.dtype} of shape ({shape}); "
                f"got {inputs.dtype} {inputs.shape}."
            )
        if (batch := self.contract.batch) and len(inputs) != batch:
            return self._run_in_batches(inputs, batch)
        try:
            values = self._session.run(self._names, {wanted.name: np.ascontiguousarray(inputs)})
        except Exception as err:  # ONNX Runtime's errors have no common base below Exception
            raise ArtifactInvalid(
                self.path, f"'{self.path}' cannot be run on {inputs.shape}: {first_line(err)}"
            ) from err
        for value, found in zip(self.outputs, values, strict=True):
            fault = find_fault(value, found, num_rows=len(inputs), num_classes=len(self.classes))
            if fault:
                raise ArtifactInvalid(
                    self.path,
                    f"'{self.path}' gives {value.name} that cannot be: {fault}. Its graph is "
                    "damaged, or was never one of featx's; export it again.",
                )
        return dict(zip(self._names, values, strict=True))

    def _run_in_batches(self, inputs: np.ndarray, size: int) -> dict[str, np.ndarray]:
        """Return the outputs of any number of images, the last batch filled up with zeros."""
        missing = -len(inputs) % size if len(inputs) else size
        filled = np.pad(inputs, [(0, missing), *[(0, 0)] * (inputs.ndim - 1)])
        parts = [self.run(filled[start : start + size]) for start in range(0, len(filled), size)]
        return {
            name: np.concatenate([part[name] for part in parts])[: len(inputs)]
            for name in self._names
        }

    def logits(self, inputs: np.ndarray) -> np.ndarray:
        """Return logits or a regression's values, ``(batch, num_classes)`` float32; as ``run``.

        Where the file gives probabilities alone, these are the logits but for a constant in each
        row, which neither the order of the classes nor a softmax depends on.

        Raises:
            ConfigError: The file gives neither.
        """
        name, values = self._scores(inputs, (self.contract.task.raw_output, "probabilities"))
        return self.task.logits(values) if name == "probabilities" else values

    def probabilities(self, inputs: np.ndarray) -> np.ndarray:
        """Return probabilities, ``(batch, num_classes)`` float32, as ``logits``.

        Multi-label probabilities are independent; a regression has none.
        """
        name, values = self._scores(inputs, ("probabilities", "logits"))
        return values if name == "probabilities" else self.task.probabilities(values)

    def _scores(self, inputs: np.ndarray, names: tuple[str, str]) -> tuple[str, np.ndarray]:
        """Return the first of two outputs that the file has, with its name."""
        name = next((name for name in names if name in self._names), None)
        if name is None:
            raise ConfigError(
                f"'{self.path}' gives {', '.join(self._names)}, but neither {names[0]} nor "
                f"{names[1]}; export it with outputs='{self.contract.task.raw_output}'."
            )
        return name, self.run(inputs)[name]


def run_images(
    inputs: Iterable[np.ndarray | ImageError],
    answer: Callable[[np.ndarray], Iterable[R]],
    *,
    batch_size: int = 1,
) -> Iterator[R | ImageError]:
    """Yield what a classifier answers for each image in order, or the error in its place.

    Args:
        inputs: What the file takes of each image, all of one shape unless ``batch_size`` is 1; an
            error of an image that cannot be used.
        answer: From a batch of these to one answer for each.
        batch_size: Images that are taken at once.
    """
    waiting = iter(inputs)
    while batch := list(islice(waiting, batch_size)):
        usable = [one for one in batch if not isinstance(one, ImageError)]
        answers = iter(answer(np.stack(usable)) if usable else ())
        for one in batch:
            yield one if isinstance(one, ImageError) else next(answers)


def open_classifier(
    path: str | Path,
    *,
    threads: int | None = None,
    providers: Sequence[Provider] | None = None,
    verify: bool = True,
) -> Classifier:
    """Open a classifier file and check that it is one of featx's, as it was exported.

    What featx never writes is refused before ONNX Runtime sees it: weights in another file,
    operators that are not ONNX's own, control flow.

    Args:
        path: The ONNX file, or hf:USER/NAME[@REVISION].
        threads: For one image or batch, at least 1; None takes all cores.
        providers: As ``require_providers`` takes them; None takes the CPU.
        verify: Compare the file with its sha256; leave out only for a file you have verified, or
            have changed yourself.

    Raises:
        ArtifactMissing: The file is not there.
        ArtifactInvalid: It is not a featx classifier, altered, damaged, or reaches beyond itself.
        ConfigError: ``threads`` is below 1, or a provider is not here.
    """
    return load_classifier(
        read_classifier(path), path=Path(path), threads=threads, providers=providers, verify=verify
    )


def read_classifier(path: str | Path) -> bytes:
    """Return a classifier file's content, unchecked but for its size."""
    path = local_model(path)
    require_file(path, made_by="featx export")
    if path.stat().st_size > MAX_BYTES:
        raise ArtifactInvalid(path, f"'{path}' is larger than an ONNX file can be (2 GiB).")
    return path.read_bytes()


def load_classifier(
    content: bytes,
    *,
    path: Path,
    threads: int | None = None,
    providers: Sequence[Provider] | None = None,
    verify: bool = True,
) -> Classifier:
    """Return the classifier of a file's content; as ``open_classifier``."""
    require_at_least("threads", threads, 1)
    wanted = require_providers(providers, available_providers())
    _require_own_content(content, path, verify=verify)
    session = _start(content, path, threads, wanted)
    try:
        metadata: dict[str, str] = session.get_modelmeta().custom_metadata_map
    except UnicodeDecodeError as err:
        raise ArtifactInvalid(path, f"'{path}': its metadata is damaged ({err}).") from err
    if HEADER_KEY not in metadata:
        raise _not_ours(path)
    header = Header.from_json(metadata[HEADER_KEY], path=path, kind="classifier")
    if metadata.get("classes", json.dumps(header.classes)) != json.dumps(header.classes):
        raise ArtifactInvalid(path, f"'{path}': its list of classes is not its header's; altered.")
    try:
        preprocess = PreprocessSpec.from_dict(header.spec["preprocess"])
        contract = Contract.from_dict(header.details.get("contract"), task=task_of(header.details))
        classifier = Classifier(
            session, path=path, header=header, preprocess=preprocess, contract=contract
        )
    except ConfigError as err:
        raise ArtifactInvalid(path, f"'{path}': its featx header is damaged ({err}).") from err
    classifier.require_contract()
    return classifier


def _require_own_content(content: bytes, path: Path, *, verify: bool) -> None:
    """Check, on the bytes alone, that a model is as exported and holds all it needs."""
    try:
        unwanted = unwanted_parts(content)
        if verify and not is_sealed(content):
            if read_entry(content, HEADER_KEY) is None:
                raise _not_ours(path)
            raise ArtifactInvalid(
                path,
                f"'{path}' was altered after export, or is damaged; export it again with "
                "featx export.",
            )
    except NotOnnx as err:
        raise ArtifactInvalid(
            path,
            f"'{path}' is not an ONNX model, or is damaged: {err}.{other_kind(path, 'classifier')}",
        ) from err
    if unwanted:
        raise ArtifactInvalid(
            path, f"'{path}' has {', '.join(unwanted)}, which no exported classifier has."
        )


def _not_ours(path: Path) -> ArtifactInvalid:
    return ArtifactInvalid(path, f"'{path}' is an ONNX model, but not one of featx's.")


def _start(
    content: bytes, path: Path, threads: int | None, providers: list[Provider]
) -> ort.InferenceSession:
    """Return a session that runs the graph."""
    options = session_options(threads=threads or num_cores())
    # Between operators threads look for work without rest; after a run they would for up to 0.5 s.
    options.add_session_config_entry("session.intra_op.spin_duration_us", _SPIN_US)
    # The same bytes could be a model in ONNX Runtime's own format, too, unseen by our checks.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    # ONNX Runtime takes references to other files from here; below this there are none.
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", os.devnull
    )
    try:
        session = ort.InferenceSession(
            content,
            options,
            providers=providers,
            enable_fallback=0,  # it would print, and try the same provider again
        )
    except Exception as err:  # ONNX Runtime's errors have no common base below Exception
        raise ArtifactInvalid(
            path, f"'{path}' is not an ONNX model that runs: {first_line(err)}"
        ) from err
    _open_sessions.add(session)
    require_started(session.get_providers(), providers)
    return session


def _has_shape(found: Sequence[object], value: Value) -> bool:
    """Return whether a declared shape has the rank and the fixed sides of the contract's."""
    sides = zip(found, value.shape, strict=False)
    fits = all(side == wanted for side, wanted in sides if isinstance(wanted, int))
    return fits and len(found) == len(value.shape)


def available_providers() -> list[str]:
    """Return the execution providers of the ONNX Runtime that is installed."""
    return list(ort.get_available_providers())
