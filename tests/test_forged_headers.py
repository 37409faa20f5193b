"""Headers with right checksums and wrong values: refused by name where they are opened, or usable.

Each field of the header of each kind of file is deleted, and replaced by values of other types and
ranges. What the reader still takes goes through every stage that reads it.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args

import h5py
import numpy as np
import onnx
import pytest
import safetensors.numpy
from commands import featx_cli
from headers import complete_header
from tuned import CHOICE

from featx.artifact import Header
from featx.artifact.fields import require_fields
from featx.artifact.schema import Unfit
from featx.backbones.spec import BackboneRequest, BackboneSpec, Pool, Precision
from featx.classifier.seal import seal
from featx.cli.info import training_fields
from featx.errors import ArtifactInvalid, FeatxError
from featx.extraction.options import ExtractOptions
from featx.features.file import open_features
from featx.heads.describe import describe_head
from featx.heads.head import open_head
from featx.heads.tasks import TASKS, task_of
from featx.images.preprocess import Crop, Decode, Interpolation, PreprocessSpec
from featx.stages.check import check
from featx.stages.evaluate import evaluate
from featx.stages.export import ExportOptions, export_onnx
from featx.stages.extract import extract
from featx.stages.predict import Predictor
from featx.stages.report import ReportOptions, write_report
from featx.stages.train import train_head
from featx.training.options import TrainOptions

DELETED = object()
DEEP: Any = 1
for _ in range(300):
    DEEP = {"a": DEEP}
VALUES: list[Any] = [
    *(DELETED, None, True, -1, 0, 1.5, 2**63, 10**400, -1e300, 1e300),
    *("", "x", "a\0b", "\ud800", "x" * 5000),
    *([], {}, [1], [[]], {"a": 1}, DEEP),
]


@dataclass(frozen=True)
class Files:
    """A file of each kind, made one from another."""

    folder: Path
    photos: Path

    def __getitem__(self, kind: str) -> Path:
        return (
            self.folder
            / {"features": "f.h5", "head": "h.safetensors", "classifier": "m.onnx"}[kind]
        )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Files:
    from PIL import Image

    folder = tmp_path_factory.mktemp("forged")
    files = Files(folder, folder / "photos")
    rng = np.random.default_rng(0)
    for number in range(24):
        path = files.photos / ("train", "val")[number % 4 == 3] / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
    (files.photos / "train" / "a" / "bad.png").write_bytes(b"no image")
    extract(files.photos, files["features"], ExtractOptions(backbone="tiny", on_error="skip",
                                                            max_bad=0.5))  # fmt: skip
    train_head(files["features"], files["head"], TrainOptions(strengths=(0.01, 0.1)))
    export_onnx(files["head"], files["classifier"])
    return files


def header_in(path: Path, kind: str) -> dict[str, Any]:
    """Return the JSON of a file's header."""
    if kind == "features":
        with h5py.File(path) as file:
            return json.loads(bytes(file.attrs["header"]))
    if kind == "head":
        with safetensors.safe_open(path, "np") as file:
            return json.loads(file.metadata()["featx"])
    return json.loads({p.key: p.value for p in onnx.load(path).metadata_props}["featx"])


def json_of(raw: dict[str, Any]) -> str:
    """Return a header with a checksum that is right."""
    names = ("kind", "spec", "classes", "details", "environment")
    return Header(**{name: raw[name] for name in names}).to_json()


def forge(path: Path, target: Path, kind: str, raw: dict[str, Any]) -> None:
    """Write a file with another header, whose checksum is right."""
    text = json_of(raw)
    if kind == "features":
        target.write_bytes(path.read_bytes())
        with h5py.File(target, "r+") as file:
            file.attrs["header"] = np.bytes_(text.encode())
    elif kind == "head":
        with safetensors.safe_open(path, "np") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        target.write_bytes(safetensors.numpy.save(tensors, {"featx": text}))
    else:
        model = onnx.load(path)
        entries = [(entry.key, entry.value) for entry in model.metadata_props]
        del model.metadata_props[:]
        changed = {"featx": text, "classes": json.dumps(raw["classes"])}
        for key, value in entries:
            if key != "sha256":
                model.metadata_props.add(key=key, value=changed.get(key, value))
        target.write_bytes(seal(model.SerializeToString()))


def places(value: Any, where: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to each field and to the first item of each list."""
    children: list[Any] = []
    if isinstance(value, dict):
        children = list(value)
    elif isinstance(value, list) and value:
        children = [0]
    for child in children:
        yield (*where, child)
        yield from places(value[child], (*where, child))


def changed(raw: dict[str, Any], where: tuple[Any, ...], value: Any) -> dict[str, Any]:
    raw = copy.deepcopy(raw)
    inner = raw
    for key in where[:-1]:
        inner = inner[key]
    if value is DELETED:
        del inner[where[-1]]
    else:
        inner[where[-1]] = value
    return raw


def forgeries(raw: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the header with each field deleted, and with some other values in its place."""
    ways = [
        way for part in ("spec", "details", "environment") for way in places(raw[part], (part,))
    ]
    ways.append(("classes", 0))
    for number, way in enumerate(ways):
        yield changed(raw, way, DELETED)
        for step in range(6):
            yield changed(raw, way, VALUES[1 + (7 * number + 5 * step) % (len(VALUES) - 1)])


def use(kind: str, path: Path, files: Files, scratch: Path) -> None:
    """Read a file in every stage that takes it; what is not usable is a ``FeatxError``."""
    photos = files.photos
    features, head = files["features"], files["head"]
    stages: list[Callable[[], object]] = {
        "features": [
            lambda: train_head(path, scratch / "h", TrainOptions(strengths=(1.0,))),
            lambda: check(path),
            lambda: check(path, photos),
            lambda: extract(photos, path, ExtractOptions(backbone="tiny", on_error="skip")),
        ],
        "head": [
            lambda: export_onnx(path, scratch / "m", ExportOptions(
                features=features, source=str(photos), card=scratch / "card.md")),
            lambda: export_onnx(path, scratch / "m", ExportOptions(verify=False)),
            lambda: write_report(path, scratch / "r.html", ReportOptions(map="none")),
        ],
        "classifier": [
            lambda: check(path, photos),
            lambda: evaluate(path, photos),
            lambda: Predictor(path).predict([np.zeros((9, 9, 3), np.uint8)]),
        ],
    }[kind]  # type: ignore[assignment]  # fmt: skip
    assert head.exists()
    for stage in stages:
        with suppress(FeatxError):
            stage()


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read files here: a process for each of hundreds would take a minute."""

    def call(target: str, path: Path, **_: object) -> None:
        {"verify_features": open_features, "open_head": open_head}.get(
            target.rpartition(":")[2], lambda _: None
        )(path)

    monkeypatch.setattr("featx.stages.check.stage.call_isolated", call)


def is_taken(raw: dict[str, Any], kind: Any) -> bool:
    """Return whether a header is taken; one that is not is refused with its path and a field."""
    text = json_of(raw)
    try:
        Header.from_json(text, path=Path("some/file"), kind=kind)
    except ArtifactInvalid as err:
        message = str(err)
    else:
        return True
    assert message.startswith("'some/file'")
    field = r" (details|spec|environment|classes)[.\[\]\w]*.* is .*, expected "
    assert re.search(field, message) or "classes are not a list of names" in message
    return False


NUM_USED = 4


@pytest.mark.parametrize("kind", ["features", "head", "classifier"])
@pytest.mark.usefixtures("in_process")
def test_any_changed_field_is_refused_by_name_or_usable(kind, made, tmp_path):
    forged = list(forgeries(header_in(made[kind], kind)))
    taken = [raw for raw in forged if is_taken(raw, kind)]
    assert len(forged) > 2 * len(taken) > 2 * NUM_USED
    path = tmp_path / made[kind].name
    for raw in taken[:: len(taken) // NUM_USED]:
        forge(made[kind], path, kind, raw)
        done = featx_cli("info", path)
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        use(kind, path, made, tmp_path)


def head_of(task: str, metrics: Any, **details: Any) -> dict[str, Any]:
    scores = json.loads(json.dumps(asdict(metrics)))
    details |= {"task": task, "metrics": {"val": scores}}
    return json.loads(complete_header("head", details=details).to_json())


def of_other_tasks() -> dict[str, dict[str, Any]]:
    """Return headers of heads of tags and of numbers, with scores."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20, 2)).astype(np.float32)
    tags = TASKS["multi-label"].measure(logits, rng.integers(0, 2, (20, 2)), thresholds=(0.5, 0.4))
    numbers = TASKS["regression"].measure(logits, rng.normal(size=(20, 2)))
    unit = {"mean": [0.5, 1.5], "scale": [1.0, 2.0]}
    return {
        "multi-label": head_of("multi-label", tags, thresholds=[0.5, 0.4]),
        "regression": head_of("regression", numbers, unit=unit),
    }


@pytest.mark.parametrize("task", ["multi-label", "regression"])
def test_heads_of_other_tasks(task):
    raw = of_other_tasks()[task]
    assert is_taken(raw, "head")
    for forged in forgeries(raw):
        if is_taken(forged, "head"):
            for scores in forged["details"]["metrics"].values():
                task_of(forged["details"]).scores_from_dict(scores)


def test_what_is_said_of_a_training_behind_a_cut_is_refused_by_name_or_shown():
    raw = of_other_tasks()["multi-label"]
    spec = raw["spec"] | {"cut": "stage3", "shape": [128, 8, 8]}
    probe = {"choice": raw["details"]["choice"], "metrics": raw["details"]["metrics"]}
    comparison = {"num_only_probe": 1, "num_only_tuned": 4, "p_value": 0.375}
    parameters = {"trained": 3, "all": 7}
    details = raw["details"] | {
        "choice": CHOICE | {"cut": "stage3", "parameters": parameters},
        **{"probe": probe, "comparison": comparison},
    }
    raw = json.loads(complete_header("head", spec, raw["classes"], details).to_json())
    assert is_taken(raw, "head")
    for forged in forgeries(raw):
        if is_taken(forged, "head"):
            header = Header.from_json(json_of(forged), path=Path("h"), kind="head")
            fields = dict(training_fields(header))
            assert "cut" in fields
            describe_head(header.details["choice"], header.details["metrics"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"val_fraction": 2}, "details.val_fraction is 2, expected a number from 0 to 1"),
        ({"choice": "linear"}, "details.choice is 'linear', expected a mapping"),
        ({"sha256": "AB" * 32}, "details.sha256 is 'ABAB"),
        ({"source": "a\0b"}, "details.source is 'a\\x00b', expected text without NUL"),
        ({"task": "poem"}, "details.task is 'poem', expected one of single-label, multi-label"),
        ({"calibration": {"temperature": 1}}, "details.calibration.num_samples is missing"),
        ({"metrics": {"val": {"num_samples": 1}}}, "details.metrics.val.top1 is missing"),
    ],
)
def test_a_refusal_names_field_expected_and_found(change, message):
    raw = complete_header("head", details=change).to_json()
    with pytest.raises(ArtifactInvalid, match=re.escape(message)):
        Header.from_json(raw, path=Path("h"), kind="head")


def test_unknown_details_are_ignored_and_unknown_settings_are_not():
    header = complete_header("head", details={"of a later featx": [1, {"a": None}]})
    Header.from_json(header.to_json(), path=Path("h"), kind="head")
    header = complete_header("head", {"stride": "layer3"})
    with pytest.raises(ArtifactInvalid, match=r"spec\.stride is 'layer3', expected no such field"):
        Header.from_json(header.to_json(), path=Path("h"), kind="head")


def test_scores_of_a_later_featx_are_read():
    raw = of_other_tasks()["multi-label"]["details"]["metrics"]["val"]
    more = raw | {"new": 1, "per_class": [own | {"new": 1} for own in raw["per_class"]]}
    assert TASKS["multi-label"].scores_from_dict(more) == TASKS["multi-label"].scores_from_dict(raw)


def taken_values(
    change: Callable[[Any], tuple[dict[str, Any], dict[str, Any]]], values: Any
) -> Any:
    """Return for each value whether a header with it follows the rules."""
    found = {}
    for value in values:
        spec, details = change(value)
        header = complete_header("features", spec, details=details)
        try:
            require_fields("features", header.spec, (), header.details, {})
        except Unfit:
            found[value] = False
        else:
            found[value] = True
    return found


@pytest.mark.parametrize(
    ("values", "change"),
    [
        (get_args(Pool), lambda v: ({"pool": v}, {})),
        (set(get_args(Precision)) - {"int8"}, lambda v: ({"precision": v}, {})),
        (get_args(Crop), lambda v: ({"preprocess": {"crop": v}}, {})),
        (get_args(Interpolation), lambda v: ({"preprocess": {"interpolation": v}}, {})),
        (get_args(Decode), lambda v: ({"preprocess": {"decode": v}}, {})),
    ],
)
def test_every_choice_that_featx_has_is_taken(values, change):
    assert all(taken_values(change, values).values())
    assert taken_values(change, ["poem"]) == {"poem": False}


def test_every_field_of_spec_and_request_is_known():
    names = {field.name for field in fields(BackboneSpec)} - {"calibration", "cut", "shape"}
    spec = complete_header("features").spec
    assert names == spec.keys()
    assert {field.name for field in fields(PreprocessSpec)} - {"decode", "pad"} == spec[
        "preprocess"
    ].keys()
    request = BackboneRequest("tiny", decode="scaled", precision="bf16").to_dict()
    header = complete_header("features", details={"request": request})
    Header.from_json(header.to_json(), path=Path("f"), kind="features")
