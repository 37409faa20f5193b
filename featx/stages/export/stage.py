"""Export: from a head to a published file, proven on images."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from featx.artifact import (
    Header,
    describe_environment,
    publish,
    require_apart,
    require_replaceable,
    run_files,
    without_folders,
)
from featx.artifact.bars import drawing
from featx.artifact.keywords import by_keyword, record_of
from featx.backbones.engines import OnnxEngine
from featx.backbones.graph_cache import cache_graph, read_graph
from featx.backbones.int8 import calibrate, quantize_graph
from featx.backbones.seal import graph_sha256
from featx.backbones.spec import BackboneSpec, has_sha256, weights_file
from featx.classifier.contract import Contract
from featx.classifier.graph import Model, build_classifier, with_header
from featx.classifier.prediction import choose_unknown_below
from featx.classifier.proof import (
    NUM_IMAGES,
    Proof,
    answers,
    measure_accuracy,
    prove,
    prove_edge_cases,
    require_accuracy,
    require_same_outputs,
)
from featx.classifier.runtimes import tried_in
from featx.classifier.seal import read_sealed_header
from featx.classifier.session import Classifier, load_classifier
from featx.classifier.staleness import Staleness, find_features
from featx.errors import ArtifactError, BackboneError, ConfigError, ExportError
from featx.features.file import FeatureFile
from featx.heads.describe import describe_head
from featx.heads.head import Head, open_head
from featx.heads.tasks import TASKS
from featx.images.preprocess import PreprocessSpec
from featx.images.reading import spread
from featx.reporting.card import is_card_of, require_card_replaceable, write_card
from featx.stages.export.evidence import Evidence, open_evidence, staleness_if_there
from featx.stages.export.options import (
    DEFAULT_RTOL,
    ExportKeywords,
    ExportOptions,
    ExportReport,
    Precision,
    is_current,
    made_from,
    warn_of_licence,
)

Progress = Callable[[str], None]

_NUM_CALIBRATION = 128
"""Training images whose activations give int8 its ranges."""
_COPIED = ("few_shot", "held_out", "licence", "task", "thresholds", "unit", "views")
"""Details of the head that the file has as well, where there are any."""


@by_keyword(ExportOptions)
def export_onnx(
    head: str | Path,
    output: str | Path,
    options: ExportOptions | None = None,
    *,
    progress: Progress | bool | None = None,
    **keywords: Unpack[ExportKeywords],
) -> ExportReport:
    """Write one ONNX file that maps images to logits and probabilities, and prove it.

    An existing model is replaced; one that was exported from the same head with the same options is
    left as it is.

    Args:
        head: The head file.
        output: The ONNX file.
        options: Where things are, what the file takes and gives, and how strict to be.
        keywords: The options by name: ``verify=False``.
        progress: Called with the name of each step. None shows it in a terminal or notebook, False
            nowhere.

    Raises:
        ArtifactError: The head or feature file cannot be used; or an output is something else than
            a model, or a card that was edited.
        ArtifactMismatch: The rows that trained the head have changed, and ``stale`` is not set.
        BackboneError: The weights are gone or are others.
        SourceError: The images are gone or have changed.
        ConfigError: An option does not fit the head.
        ExportError: The backbone cannot be exported.
        ParityError: The file does not answer what the head answers, or loses too much accuracy;
            nothing was written.
    """
    options, start = record_of(ExportOptions, options, keywords), time.perf_counter()
    output = Path(output)
    card = None if options.card is None else Path(options.card)
    trained = open_head(head)
    read = {f"the head '{head}'": Path(head)}
    read |= run_files(find_features(trained, Path(head), options.features))
    if options.source is not None:
        read[f"the source '{options.source}'"] = Path(options.source)
    if options.weights is not None and (weights := weights_file(options.weights)):
        read[f"the weights '{options.weights}'"] = weights
    require_apart({"the model": output} | ({"the model card": card} if card else {}), read)
    exists = require_replaceable(output, "classifier")
    card_exists = card is not None and require_card_replaceable(card, overwrite=options.overwrite)
    existing = None
    if exists:
        with suppress(ArtifactError):  # damaged
            existing = read_sealed_header(output)
    has_card = card is None or (existing is not None and is_card_of(card, output, existing))
    if existing and has_card and is_current(existing, trained, Path(head), options):
        size = output.stat().st_size
        return ExportReport(output, existing, None, size, 0.0, card, is_unchanged=True)
    replaced = "a model that cannot be read" if exists else ""
    if existing:
        details = existing.details
        replaced = describe_head(details.get("head", {}), details.get("metrics", {}))
    warn_of_licence(trained)
    with drawing(progress) as draw:
        tell = draw.steps(progress, "Export")
        made = _Export(trained, Path(head), options, progress=tell)
        proof, header, content = made.run(output)
    publish(output, content, overwrite=exists)
    if card is not None:
        write_card(card, output, header, made.cache, overwrite=card_exists)
    return ExportReport(
        path=output,
        header=header,
        proof=proof,
        num_bytes=len(content),
        seconds=time.perf_counter() - start,
        card=card,
        replaced=replaced,
    )


def _proof_date(head: Path) -> str:
    """Return the date of a proof, UTC: ``SOURCE_DATE_EPOCH`` of reproducible builds, or the head's.

    So a second export gives the same bytes.
    """
    given = os.environ.get("SOURCE_DATE_EPOCH")
    try:
        seconds = int(head.stat().st_mtime) if given is None else int(given)
        date = datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError) as err:
        raise ConfigError(f"SOURCE_DATE_EPOCH must be seconds since 1970; got {given!r}.") from err
    return date.strftime("%Y-%m-%dT%H:%M:%SZ")


class _Export:
    """One export under way."""

    def __init__(
        self, head: Head, path: Path, options: ExportOptions, *, progress: Progress
    ) -> None:
        self._head, self._path, self._options, self._progress = head, path, options, progress
        self._unknown_below: float | None = None
        self._date = _proof_date(path)
        self._ranges = BackboneSpec.from_dict(head.header.spec).calibration
        own: Precision = "fp32" if self._ranges is None else "int8"
        self._precision = options.precision or own
        self._repeats_features = repeats_features(head, self._precision)
        self.cache: FeatureFile | None = None  # where the export needs it
        self._staleness = Staleness(known=False)

    def run(self, output: Path) -> tuple[Proof | None, Header, bytes]:
        """Return the proof, the header and the file's content."""
        contract = self._options.contract.for_task(TASKS[self._head.task])
        if self._options.verify:
            self._staleness = self._evidence.staleness  # what is gone is told first
        else:
            self._staleness = staleness_if_there(self._head, self._path, self._options)
        self._progress("Exporting the backbone")
        plain = float_graph(self._head, self._options, self._progress)
        backbone = plain
        if self._precision == "int8":
            backbone = quantize_graph(plain, self._ranges or calibrate(plain, self._crops()))
        if not self._options.verify:
            header = self._header(contract, None)
            content = with_header(self._model(backbone, contract), header)
            load_classifier(content, path=output)
            return None, header, content
        open_contract = contract.with_outputs(contract.task.raw_output)
        free_contract = replace(open_contract, image_shape=None)  # for the images as they are

        def opened(contract: Contract) -> Classifier:
            content = with_header(self._model(backbone, contract), self._header(contract, None))
            return load_classifier(content, path=output)

        draft = opened(free_contract)
        rows = spread(np.arange(len(self._evidence.cache)), NUM_IMAGES)
        images, logits = list(self._evidence.images(rows)), self._evidence.logits(rows)
        self._progress(f"Comparing {len(rows)} images")
        same = plain if self._ranges is None else quantize_graph(plain, self._ranges)
        engine = OnnxEngine(same)
        proof = self._prove(draft, rows, images, logits, engine)
        proof = self._with_accuracy(draft, proof)
        if shape := contract.image_shape:
            cases = self._evidence.shaped(rows, images, shape, engine.features)
            draft, images = opened(open_contract), [case.pixels for case in cases]
            logits = np.stack([case.logits for case in cases])  # which anyone can repeat
            trained = self._evidence.trained()
            own = prove_edge_cases(draft, cases, bound=proof.bound, trained=trained)
            proof = replace(proof, hard=proof.hard | own)
        require_accuracy(proof, max_drop=self._options.max_drop)
        names = self._options.with_names
        references = self._evidence.references(rows, logits, with_names=names)
        model = self._model(backbone, contract)
        graph = graph_sha256(model.SerializeToString(deterministic=True))
        header = self._header(contract, proof, references=references, graph=graph)
        content = with_header(model, header)
        if contract != free_contract:
            final = load_classifier(content, path=output)
            require_same_outputs(final, draft, images[:4])
        if runtime := self._options.runtime:
            self._progress(f"Running {runtime}")
            final, coarse = load_classifier(content, path=output), self._precision != "fp32"
            if tried := tried_in(runtime, content, final, images[:4], coarse=coarse):
                header = replace(header, details={**header.details, "tried": tried})
                content = with_header(model, header)
        return proof, header, content

    @cached_property
    def _evidence(self) -> Evidence:
        evidence = open_evidence(self._head, self._path, self._options)
        self.cache = evidence.cache
        return evidence

    def _crops(self) -> Iterator[np.ndarray]:
        rows = self._evidence.cache.rows("train")
        return self._evidence.crops(spread(rows, _NUM_CALIBRATION))

    def _prove(
        self,
        draft: Classifier,
        rows: np.ndarray,
        images: list[np.ndarray],
        logits: np.ndarray,
        engine: OnnxEngine,
    ) -> Proof:
        bound, trained = None, self._evidence.trained()
        if self._repeats_features:
            size = TASKS[self._head.task].typical_size(logits, trained)
            bound = self._options.atol or DEFAULT_RTOL * size
        is_scaled = self._evidence.preprocess.decode == "scaled"
        cache = self._evidence.cache
        return prove(
            draft,
            images,
            self._evidence.names(rows),
            logits,
            bound=bound,
            edge_cases=self._evidence.edge_cases(rows, images, engine.features),
            coarse=self._precision != "fp32",
            halved=cache.cut is not None and cache.dtype == "float16",
            full=self._evidence.images(rows, in_full=True) if is_scaled else None,
            trained=trained,
        )

    def _with_accuracy(self, draft: Classifier, proof: Proof) -> Proof:
        available = self._evidence.validation()
        if not len(available):
            return proof
        rows = spread(available, self._options.max_images)
        self._progress(f"Measuring accuracy on {len(rows)} images")
        found, targets = answers(draft, self._evidence.images(rows)), self._evidence.targets(rows)
        if self._head.task == "single-label":
            self._unknown_below = choose_unknown_below(found, targets)
        accuracy = measure_accuracy(
            found,
            self._evidence.logits(rows),
            targets,
            num_available=len(available),
            details=self._head.header.details,
        )
        return replace(proof, accuracy=accuracy)

    def _model(self, backbone: bytes, contract: Contract) -> Model:
        geometry = PreprocessSpec.from_dict(self._head.header.spec["preprocess"])
        return build_classifier(
            backbone, self._head.layers, geometry, contract, half=self._precision == "fp16"
        )

    def _header(
        self,
        contract: Contract,
        proof: Proof | None,
        *,
        references: list[dict[str, Any]] | None = None,
        graph: str | None = None,
    ) -> Header:
        own = self._head.header
        environment = describe_environment("torch", "torchvision", "onnx", "onnxruntime", "pillow")
        details: dict[str, Any] = {
            name: own.details[name] for name in ("source", "val_fraction", "weights", "metrics")
        }
        if not self._options.with_names:  # the file is made to be handed on
            details |= {name: without_folders(details[name]) for name in ("source", "weights")}
        details |= {name: own.details[name] for name in _COPIED if name in own.details}
        provenance = own.details.get("provenance")
        if provenance and not provenance["drawn"]:  # else images alone do not tell the rows
            details["trained_on"] = provenance["trained"]
        details |= {
            "head_sha256": own.details["sha256"],
            "head": own.details["choice"],
            "contract": contract.to_dict(),
            "precision": self._precision,
            "opset": self._options.own_opset,
            "proof": None,
            "made_from": made_from(self._head, self._options),
        }
        if self._options.runtime is not None:
            details["runtime"] = self._options.runtime
        if self._unknown_below is not None:
            details["unknown_below"] = self._unknown_below
        if changes := self._staleness.changes:
            details["stale"] = str(changes)
        if proof is not None:
            details["proof"] = proof.to_dict() | {
                "task": self._head.task,
                "date": self._date,
                "weights_sha256": own.spec["weights_sha256"],
                "head_sha256": own.details["sha256"],
                "versions": environment,
                "witnesses": references,
                "graph_sha256": graph,
            }
        return Header(
            kind="classifier",
            spec=own.spec,
            classes=self._head.classes,
            details=details,
            environment=environment,
        )


def repeats_features(head: Head, precision: Precision) -> bool:
    """Return whether a file in some precision calculates as the head's features were calculated.

    None does so for features in tf32, bf16 or fp16: what these leave out, no graph can repeat.
    """
    own = BackboneSpec.from_dict(head.header.spec).precision
    return precision == own and own in ("fp32", "int8")


def float_graph(head: Head, options: ExportOptions, progress: Callable[[str], None]) -> bytes:
    """Return the float32 graph ``pixels → features``: of the weights, with the head's tail if any.

    The graph of the weights alone is cached, whether the features were cut or not.
    """
    if head.tail:
        return _build_graph(head, options, progress)
    plain = BackboneSpec.from_dict(head.header.spec).in_float32.without_cut
    origin = str(head.header.details["weights"])
    if (graph := read_graph(plain, opset=options.own_opset)) is not None:
        file = None if options.weights is None else weights_file(options.weights)
        place = f"file:{file}" if file else origin
        if (file or options.weights is None) and has_sha256(place, plain.weights_sha256):
            return graph
    graph = _build_graph(head, options, progress)
    cache_graph(plain, graph, opset=options.own_opset)
    return graph


def _build_graph(head: Head, options: ExportOptions, progress: Callable[[str], None]) -> bytes:
    from featx.backbones.onnx_graph import build_graph
    from featx.stages.export.network import network_of

    network = network_of(head, options.weights, progress)
    size = BackboneSpec.from_dict(head.header.spec).preprocess.image_size
    try:
        return build_graph(network, image_size=size, opset=options.own_opset)
    except BackboneError as err:
        raise ExportError(str(err)) from err
