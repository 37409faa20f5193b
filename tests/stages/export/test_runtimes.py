"""Files for one shape, one batch, and a named runtime."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
from commands import featx_cli

import featx
from featx.backbones.graph_builder import GraphBuilder
from featx.classifier.image_nodes import add_geometry
from featx.classifier.runtimes import RUNTIMES, Runtime
from featx.classifier.session import open_classifier
from featx.errors import ConfigError, ExportError, ParityError
from featx.images.preprocess import PreprocessSpec
from featx.stages.check import check
from featx.stages.evaluate import evaluate
from featx.stages.export import ExportOptions, export_onnx
from featx.stages.predict import Predictor

COMPUTED = {"Shape", "Where", "Equal", "Round", "Resize", "Greater"}


def photo(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


def sides(model: onnx.ModelProto) -> list[str]:
    """Return the symbols in the shapes of inputs, outputs and what lies between."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = (*graph.input, *graph.output, *graph.value_info)
    dims = [side for value in values for side in value.type.tensor_type.shape.dim]
    return [side.dim_param for side in dims if not side.HasField("dim_value")]


def test_a_file_of_one_shape_answers_as_predict_does_and_takes_no_other(trained):
    export_onnx(trained.head, trained.model)
    fixed = trained.folder / "fixed.onnx"
    report = export_onnx(trained.head, fixed, runtime="tract", image_shape=(48, 64))
    assert report.header.details["contract"]["image_shape"] == [48, 64]
    assert report.header.details["runtime"] == "tract"
    assert report.proof is not None
    assert report.proof.hard["64×48"] < 1e-4
    images = [photo((48, 64), seed) for seed in range(5)]
    for own, free in zip(
        Predictor(fixed).predict(images), Predictor(trained.model).predict(images), strict=True
    ):
        assert own.label == free.label
        assert abs(own.probability - free.probability) < 1e-5
    [other] = Predictor(fixed).predict_each([photo((64, 48))])
    assert "images of 64×48 pixels alone; this one has 48×64" in str(other.error)
    assert not {node.op_type for node in onnx.load(fixed).graph.node} & COMPUTED


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_one_shape_and_one_image_go_with_every_precision(trained, precision):
    options = {"precision": precision, "max_drop": 100, "input": "image"}
    export_onnx(trained.head, trained.model, **options)
    fixed = trained.folder / "fixed.onnx"
    export_onnx(trained.head, fixed, image_shape=(48, 64), batch=1, **options)
    assert sides(onnx.load(fixed)) == []
    images = [photo((48, 64), seed) for seed in range(3)]
    both = [Predictor(path).predict(images) for path in (fixed, trained.model)]
    for own, free in zip(*both, strict=True):
        assert abs(dict(own.top)[free.label] - free.probability) < 2e-2


def test_the_proof_of_a_file_of_one_shape_can_be_repeated(trained):
    export_onnx(trained.head, trained.model, image_shape=(48, 64))
    repeated = check(trained.model, str(trained.source)).repeated
    assert repeated is not None
    assert repeated.holds
    assert repeated.num_found == 16
    assert repeated.max_difference is not None
    assert repeated.max_difference < 1e-4


def test_a_fixed_batch_answers_any_number_of_images(trained):
    export_onnx(trained.head, trained.model, input="tensor")
    images = [photo((50, 60), seed) for seed in range(7)]
    expected = Predictor(trained.model).predict(images)
    for batch in (1, 3, 8):
        fixed = trained.folder / f"{batch}.onnx"
        export_onnx(trained.head, fixed, input="tensor", batch=batch)
        found = Predictor(fixed).predict(images)
        assert [own.label for own in found] == [own.label for own in expected]
        close = [abs(a.probability - b.probability) for a, b in zip(found, expected, strict=True)]
        assert max(close) < 1e-5


@pytest.mark.parametrize(
    "options", [{"input": "tensor"}, {"input": "crop"}, {"image_shape": (48, 64)}], ids=str
)
def test_with_one_image_at_once_every_size_in_the_file_is_a_number(trained, options):
    export_onnx(trained.head, trained.model, batch=1, **options)
    model = onnx.load(trained.model)
    assert sides(model) == []
    assert not {node.op_type for node in model.graph.node} & COMPUTED
    constants = {tensor.name for tensor in model.graph.initializer}
    slices = [node for node in model.graph.node if node.op_type == "Slice"]
    assert all(set(node.input[1:]) <= constants for node in slices)


def test_the_default_file_says_nothing_of_it_and_names_its_free_sides(trained):
    details = export_onnx(trained.head, trained.model).header.details
    assert "runtime" not in details
    assert details["contract"].keys() == {"input", "outputs"}
    assert set(sides(onnx.load(trained.model))) >= {"batch", "height", "width"}


@pytest.mark.parametrize(
    ("crop", "digest"),
    [
        ("center", "df6029d6b751ca96"),
        ("none", "80357c9ce9eb2d08"),
        ("squash", "7d5a0fd2c84c6ef7"),
        ("border", "2857fbf026230d63"),
    ],
)
def test_the_nodes_of_the_default_resize_are_those_that_shipped_files_have(crop, digest):
    """Other nodes may be as good, but change the bits of every file: say so in the changelog."""
    resize = 224 if crop == "none" else 256
    spec = PreprocessSpec(224, resize, (0.4, 0.5, 0.6), (0.2, 0.2, 0.2), crop=crop)
    builder = GraphBuilder()
    add_geometry(builder, spec, image="image", output="pixels")
    parts = [part.SerializeToString() for part in (*builder.nodes, *builder.initializers)]
    assert hashlib.sha256(b"".join(parts)).hexdigest()[:16] == digest


def test_ir_and_opset_do_not_depend_on_the_installed_onnx(trained, monkeypatch):
    monkeypatch.setattr(onnx, "IR_VERSION", 99)
    monkeypatch.setattr(onnx.helper, "find_min_ir_version_for", lambda *_, **__: 99)
    for runtime, ir_version, opset in (
        *(("onnxruntime==1.15", 8, 18), ("onnxruntime==1.16", 9, 19)),
        *(("onnxruntime==1.17", 9, 20), (None, 9, 20)),
    ):
        export_onnx(trained.head, trained.model, runtime=runtime, verify=False)
        model = onnx.load(trained.model)
        assert (model.ir_version, model.opset_import[0].version) == (ir_version, opset)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"runtime": "tract"}, r"image_shape=…\), or export with input='crop'"),
        ({"image_shape": (48, 64), "input": "crop"}, "image_shape is for input='image'"),
        ({"image_shape": (0, 64)}, "1 to 8192 pixels each"),
        ({"image_shape": (48,)}, "height and width"),
        ({"image_shape": (10, 2000)}, "too narrow"),
        ({"batch": 0}, "batch must be 1 to 1024"),
        ({"runtime": "onnxruntime==1.15", "opset": 19}, "reads opset 18 at most"),
    ],
    ids=str,
)
def test_options_that_do_not_fit_are_refused_before_anything_is_read(options, match):
    with pytest.raises(ConfigError, match=match):
        ExportOptions(**options)


def test_evaluate_says_which_shape_the_file_takes(trained):
    export_onnx(trained.head, trained.model, image_shape=(48, 64))
    with pytest.raises(featx.FeatxError, match="images of 64×48 pixels alone"):
        evaluate(trained.model, str(trained.source))


def test_the_command_takes_shape_and_runtime_and_info_shows_them(trained, monkeypatch):
    monkeypatch.chdir(trained.folder)
    result = featx_cli(
        *("export", trained.head, "--onnx", "m.onnx"),
        *("--for", "opencv", "--image-shape", "48x64", "--batch", "2"),
    )
    assert result.exit_code == 0, result.output
    shown = "images of 64×48 pixels alone, 2 images at once; "
    assert shown in result.output
    assert shown in featx_cli("info", "m.onnx").output
    again = featx_cli(
        *("export", trained.head, "--onnx", "m.onnx"),
        *("--for", "opencv", "--image-shape", "48x64", "--batch", "2"),
    )
    assert "up to date" in again.output
    wrong = featx_cli("export", trained.head, "--image-shape", "48")
    assert wrong.exit_code == 2
    assert "height and width like 480x640" in wrong.output
    refused = featx_cli("export", trained.head, "--for", "tract")
    assert "(--image-shape), or export with --input crop" in refused.output


def _fake(monkeypatch: pytest.MonkeyPatch, answer: object) -> None:
    """Put another runtime in the place of tract."""
    own = Runtime(module="json", package="numpy", run=answer)  # type: ignore[arg-type]
    monkeypatch.setitem(RUNTIMES, "tract", own)


def test_a_runtime_that_answers_otherwise_is_found_out_before_anything_is_written(
    trained, monkeypatch
):
    export_onnx(trained.head, trained.folder / "other.onnx", input="crop")
    session = open_classifier(trained.folder / "other.onnx")

    def wrong(_: object, path: str, inputs: np.ndarray, *names: str) -> np.ndarray:
        assert onnx.load(path).graph.input[0].name == names[0]
        return session.run(inputs)["logits"] * 1.001

    _fake(monkeypatch, wrong)
    with pytest.raises(
        ParityError, match=r"tract .* gives other logits than ONNX Runtime, by 1.0e"
    ):
        export_onnx(trained.head, trained.model, input="crop", runtime="tract")
    assert not trained.model.exists()

    def refuses(*_: object) -> np.ndarray:
        raise RuntimeError("no Softmax\n here Stack backtrace: 0: somewhere")

    _fake(monkeypatch, refuses)
    with pytest.raises(ExportError, match=r"does not run the file: no Softmax here\. .*batch=1"):
        export_onnx(trained.head, trained.model, input="crop", runtime="tract")
    assert not trained.model.exists()


def test_a_runtime_that_is_not_installed_leaves_the_file_untried(trained, monkeypatch):
    own = Runtime(module="not_installed_at_all", run=lambda *_: np.zeros(1))
    monkeypatch.setitem(RUNTIMES, "tract", own)
    report = export_onnx(trained.head, trained.model, input="crop", runtime="tract")
    assert "tried" not in report.header.details
    assert "made for tract, not tried in it" in featx_cli("info", trained.model).output


def test_one_that_agrees_is_named_with_its_version(trained):
    pytest.importorskip("tract", reason="needs tract: pip install 'featx[dev]'")
    report = export_onnx(trained.head, trained.model, runtime="tract", image_shape=(48, 64))
    assert re.fullmatch(
        r"tract [\d.]+ answers 4 images as ONNX Runtime does", report.header.details["tried"]
    )


_RUN = """
import json, sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
with numpy.load(sys.argv[2]) as images:
    found = [session.run(["logits"], {session.get_inputs()[0].name: images[name]})[0].tolist()
             for name in images.files]
print(json.dumps([onnxruntime.__version__, found]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("version", ["1.15", "1.16", "1.17"])
def test_that_very_version_of_onnx_runtime_gives_the_same_answers(trained, tmp_path, version):
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    installed = subprocess.run(
        [python, "-m", "pip", "install", "-q", f"onnxruntime=={version}.*", "numpy<2"],
        check=False, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    if installed.returncode:
        pytest.skip(f"onnxruntime {version} cannot be installed: {installed.stderr[-200:]}")
    try:
        for precision in ("fp32", "fp16"):
            export_onnx(
                *(trained.head, trained.model),
                ExportOptions(runtime=f"onnxruntime=={version}", precision=precision, max_drop=100),
            )
            classifier = open_classifier(trained.model)
            images = [photo(shape)[None] for shape in ((32, 32), (375, 500), (40, 30))]
            np.savez(tmp_path / "images.npz", *images)
            done = subprocess.run(
                [python, "-c", _RUN, trained.model, tmp_path / "images.npz"],
                check=False, capture_output=True, text=True, timeout=120,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            found_version, found = json.loads(done.stdout)
            assert found_version.startswith(version)
            close = 1e-5 if precision == "fp32" else 1e-2
            for image, answer in zip(images, found, strict=True):
                expected = classifier.run(image)["logits"]
                assert np.abs(answer - expected).max() <= close * np.abs(expected).max()
    finally:
        shutil.rmtree(tmp_path / "venv")
