from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from headers import complete_header
from onnx import TensorProto, helper, numpy_helper

from featx.artifact import Header
from featx.classifier.graph import build_classifier
from featx.classifier.seal import seal
from featx.classifier.session import load_classifier, open_classifier
from featx.errors import ArtifactInvalid, ArtifactMissing, ConfigError
from featx.images.preprocess import PreprocessSpec

PATH = Path("somewhere/model.onnx")
OUTPUTS = ("logits", "probabilities")


@pytest.fixture
def file(content: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    return path


def _images(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


# Opening


def test_what_was_written_is_what_is_opened(file, header, spec):
    opened = open_classifier(str(file))
    assert opened.classes == ("ants", "bees")
    assert opened.header.to_json() == header.to_json()
    assert opened.preprocess == spec
    assert opened.path == file


def test_threads_do_not_change_the_answer(content):
    image = _images(1, 40, 30, 3)
    one, two = (load_classifier(content, path=PATH, threads=n).logits(image) for n in (1, 2))
    np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5)


def test_a_missing_file_names_the_command(tmp_path):
    with pytest.raises(ArtifactMissing, match=r"gone\.onnx' does not exist.*featx export"):
        open_classifier(tmp_path / "gone.onnx")


def test_a_folder(tmp_path):
    with pytest.raises(ArtifactInvalid, match="not a file"):
        open_classifier(tmp_path)


def test_a_file_larger_than_onnx_can_be(tmp_path):
    path = tmp_path / "large.onnx"
    with path.open("wb") as sparse:
        sparse.truncate(2**31 + 1)
    with pytest.raises(ArtifactInvalid, match="larger than an ONNX file can be"):
        open_classifier(path)


@pytest.mark.parametrize(
    "junk", [b"", b"\0" * 100, b"\x89HDF\r\n\x1a\n" + b"\0" * 500, b"<html></html>", b"\xff" * 999]
)
def test_what_is_no_onnx(junk, tmp_path, capfd):
    path = tmp_path / "junk.onnx"
    path.write_bytes(junk)
    with pytest.raises(ArtifactInvalid, match=r"junk\.onnx' is not an ONNX model"):
        open_classifier(path)
    assert capfd.readouterr().out == ""


def test_a_foreign_onnx_model(plain):
    with pytest.raises(ArtifactInvalid, match="but not one of featx's"):
        load_classifier(plain.SerializeToString(), path=PATH)


ALTERED = "was altered after export, or is damaged; export it again with featx export"


def test_a_file_that_another_tool_has_changed(plain, content):
    model = onnx.load_from_string(content)
    weight = next(t for t in model.graph.initializer if t.name == "featx_head_0_bias")
    weight.raw_data = np.array([5, -5], np.float32).tobytes()
    for changed in (model.SerializeToString(), content + b"\x72\x00", content[: -len(seal(b""))]):
        with pytest.raises(ArtifactInvalid, match=ALTERED):
            load_classifier(changed, path=PATH)
        assert load_classifier(changed, path=PATH, verify=False).classes == ("ants", "bees")


def test_a_file_that_is_checked_before_it_is_run(content, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("ONNX Runtime was given a damaged file")

    monkeypatch.setattr(ort, "InferenceSession", fail)
    damaged = bytearray(content)
    damaged[content.index(b"featx_head_0_bias") - 20] ^= 1
    with pytest.raises(ArtifactInvalid, match=ALTERED):
        load_classifier(bytes(damaged), path=PATH)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize(
    ("fields", "unwanted"),
    [
        ({"domain": "com.microsoft"}, r"operators of the domain 'com\.microsoft'"),
        ({"op_type": "Loop"}, r"control flow \(Loop\), which no exported classifier has"),
    ],
)
def test_what_featx_never_writes_is_refused_with_a_right_seal(
    plain, header, verify, fields, unwanted, monkeypatch
):
    monkeypatch.setattr(ort, "InferenceSession", None)
    model = onnx.ModelProto()
    model.CopyFrom(plain)
    model.graph.node[0].MergeFrom(onnx.NodeProto(**fields))
    with pytest.raises(ArtifactInvalid, match=f"has {unwanted}"):
        load_classifier(_stamped(model, header), path=PATH, verify=verify)


# Damage


def test_every_truncation_is_refused(content):
    rng = np.random.default_rng(0)
    for end in [1, 2, 3, len(content) - 1, *rng.integers(4, len(content) - 1, 60)]:
        with pytest.raises(ArtifactInvalid):
            load_classifier(content[:end], path=PATH)


def test_every_changed_byte_of_the_header_is_refused(content, header):
    text = header.to_json().encode()
    start = content.index(text)
    rng = np.random.default_rng(1)
    for place in rng.integers(start, start + len(text), 150):
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(rng.integers(8))
        with pytest.raises(ArtifactInvalid, match=str(PATH)):
            load_classifier(bytes(damaged), path=PATH)


def test_no_bit_flip_escapes_as_another_error(content, capfd):
    rng, image, refused = np.random.default_rng(2), _images(1, 9, 12, 3), 0
    for _ in range(200):
        damaged = bytearray(content)
        damaged[rng.integers(len(damaged))] ^= 1 << int(rng.integers(8))
        try:
            opened = load_classifier(bytes(damaged), path=PATH, threads=1)
            assert all(len(values) == 1 for values in opened.run(image).values())
        except ArtifactInvalid:
            refused += 1
    assert refused > 0
    assert capfd.readouterr().out == ""  # ONNX Runtime would announce a second try


# Foreign content in our clothes


def _stamped(model: onnx.ModelProto, header: Header) -> bytes:
    stamped = onnx.ModelProto()
    stamped.CopyFrom(model)
    helper.set_model_props(stamped, {"featx": header.to_json()})
    return seal(stamped.SerializeToString())


def _header(preprocess: PreprocessSpec, **changes: Any) -> Header:
    values: dict[str, Any] = {
        "kind": "classifier",
        "spec": {"preprocess": preprocess.to_dict()},
        "classes": ("ants", "bees"),
    }
    return complete_header(**(values | changes))


@pytest.mark.parametrize("classes", [(), ("ants",), ("ants", "bees", "wasps")])
def test_another_number_of_classes(classes, plain, spec):
    content = _stamped(plain, _header(spec, classes=classes))
    with pytest.raises(ArtifactInvalid, match=rf"but has {len(classes)} classes"):
        load_classifier(content, path=PATH)


@pytest.mark.parametrize("kind", ["head", "features"])
def test_the_header_of_another_kind(kind, plain, spec):
    with pytest.raises(ArtifactInvalid, match="a classifier is needed"):
        load_classifier(_stamped(plain, _header(spec, kind=kind)), path=PATH)


@pytest.mark.parametrize("values", [{}, {"preprocess": None}, {"preprocess": {"image_size": 0}}])
def test_a_header_without_usable_preprocessing(values, plain, spec):
    header = _header(spec)
    header = replace(header, spec=dict(header.spec) | {"preprocess": None} | values)
    with pytest.raises(ArtifactInvalid, match="header is damaged"):
        load_classifier(_stamped(plain, header), path=PATH)


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [(("picture",), OUTPUTS), (("image", "mask"), OUTPUTS), (("image",), ("logits",)),
     (("image",), ("scores", "probabilities"))],
)  # fmt: skip
def test_other_inputs_or_outputs(inputs, outputs, spec):
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Cast", [inputs[0]], ["values"], to=TensorProto.FLOAT),
        *(helper.make_node("ReduceMean", ["values"], [name], keepdims=0) for name in outputs),
    ]
    graph = helper.make_graph(
        nodes,
        "other",
        [value(name, TensorProto.UINT8, ["batch", "height", "width", 3]) for name in inputs],
        [value(name, TensorProto.FLOAT, []) for name in outputs],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    with pytest.raises(ArtifactInvalid, match="other inputs or outputs"):
        load_classifier(_stamped(model, _header(spec)), path=PATH)


@pytest.mark.parametrize(
    ("input_type", "output_type", "message"),
    [(TensorProto.FLOAT, TensorProto.FLOAT, "other inputs"),
     (TensorProto.UINT8, TensorProto.DOUBLE, r"gives logits as tensor\(double\)")],
)  # fmt: skip
def test_other_types(input_type, output_type, message, spec):
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["image"], ["values"], to=output_type),
            helper.make_node("Slice", ["values", "start", "end", "axes"], ["few"]),
            helper.make_node("ReduceMean", ["few", "last"], ["logits"], keepdims=0),
            helper.make_node("Identity", ["logits"], ["probabilities"]),
        ],
        "types",
        [value("image", input_type, ["batch", "height", "width", 3])],
        [value(name, output_type, ["batch", 2]) for name in OUTPUTS],
        initializer=[
            numpy_helper.from_array(np.array(numbers, np.int64), name)
            for name, numbers in {"start": [0], "end": [2], "axes": [3], "last": [1, 2]}.items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    with pytest.raises(ArtifactInvalid, match=message):
        load_classifier(_stamped(model, _header(spec)), path=PATH)


def test_outputs_of_another_rank(spec):
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["image"], ["values"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["values"], ["logits"], keepdims=0),
            helper.make_node("Identity", ["logits"], ["probabilities"]),
        ],
        "scalar",
        [value("image", TensorProto.UINT8, ["batch", "height", "width", 3])],
        [value(name, TensorProto.FLOAT, []) for name in OUTPUTS],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    with pytest.raises(ArtifactInvalid, match="but has 2 classes"):
        load_classifier(_stamped(model, _header(spec)), path=PATH)


@pytest.mark.parametrize("location", ["secret.bin", "../secret.bin", "absolute", "symlink.bin"])
def test_weights_in_another_file_are_refused(location, plain, header, tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    folder.mkdir()
    name = str(tmp_path / "secret.bin") if location == "absolute" else location
    secret = tmp_path / "secret.bin" if location != "secret.bin" else folder / "secret.bin"
    secret.write_bytes(b"\x00\x01\x02\x03" * 4096)
    (folder / "symlink.bin").symlink_to(secret)
    monkeypatch.chdir(folder)
    model = onnx.ModelProto()
    model.CopyFrom(plain)
    weight = next(t for t in model.graph.initializer if t.name == "featx_head_0_weight")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    entry = weight.external_data.add()
    entry.key, entry.value = "location", name
    path = folder / "model.onnx"
    path.write_bytes(_stamped(model, header))
    with pytest.raises(ArtifactInvalid):
        open_classifier(path)


def test_weights_in_another_file_are_out_of_reach_even_where_no_check_finds_them(
    plain, header, tmp_path, monkeypatch
):
    """ONNX Runtime itself finds no file: a second line of defence behind the inspection."""
    model = onnx.ModelProto()
    model.CopyFrom(plain)
    weight = next(t for t in model.graph.initializer if t.name == "featx_head_0_weight")
    (tmp_path / "weights.bin").write_bytes(weight.raw_data)
    size = len(weight.raw_data)
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "weights.bin"), ("offset", "0"), ("length", str(size))):
        entry = weight.external_data.add()
        entry.key, entry.value = key, value
    path = tmp_path / "model.onnx"
    path.write_bytes(_stamped(model, header))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("featx.classifier.session.unwanted_parts", lambda _: [])
    with pytest.raises(ArtifactInvalid, match="is not an ONNX model that runs"):
        open_classifier(path)


# Running


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 8, 8, 3), np.float32),
        np.zeros((1, 8, 8, 3), np.int8),
        np.zeros((1, 8, 8, 3), bool),
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((1, 3, 8, 8), np.uint8),
        np.zeros((1, 8, 8, 4), np.uint8),
        np.zeros((1, 8, 8, 1), np.uint8),
        np.zeros((1, 1, 8, 8, 3), np.uint8),
        np.zeros((1, 0, 8, 3), np.uint8),
        np.zeros((1, 8, 0, 3), np.uint8),
        np.zeros((1, 0, 0, 3), np.uint8),
    ],
    ids=lambda images: f"{images.dtype}{images.shape}",
)
def test_arrays_of_another_type_or_shape(images, classifier):
    with pytest.raises(ConfigError, match=r"images must be uint8 of shape \(batch") as caught:
        classifier.run(images)
    assert str(images.shape) in str(caught.value)


def test_no_images_give_no_answers(classifier):
    found = classifier.run(np.zeros((0, 8, 9, 3), np.uint8))
    assert {name: values.shape for name, values in found.items()} == dict.fromkeys(OUTPUTS, (0, 2))


def test_views_and_read_only_arrays(classifier):
    image = _images(2, 20, 16, 3)
    expected = classifier.logits(image[:, ::2, ::-1].copy())
    view = image[:, ::2, ::-1]
    view.setflags(write=False)
    np.testing.assert_array_equal(classifier.logits(view), expected)


@pytest.mark.parametrize("batch", [1, 2, 3, 17])
def test_the_batch_does_not_matter(batch, classifier):
    images = _images(batch, 21, 34, 3)
    together = classifier.logits(images)
    alone = np.concatenate([classifier.logits(image[None]) for image in images])
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-5)


def test_a_graph_that_fails_on_an_image_is_named(flat, layer, spec, header):
    model = build_classifier(flat(8), [layer], spec)
    size = next(t for t in model.graph.initializer if t.name == "featx_size")
    size.raw_data = np.array([9, 9], np.int64).tobytes()  # a crop the head does not fit
    opened = load_classifier(_stamped(model, header), path=PATH)
    with pytest.raises(ArtifactInvalid, match=rf"'{PATH}' cannot be run on \(1, 12, 12, 3\)"):
        opened.run(_images(1, 12, 12, 3))


# Light and readable


def test_opening_and_running_needs_no_heavy_library(file):
    script = (
        "import sys, numpy as np\n"
        "from featx.classifier.session import open_classifier\n"
        "model = open_classifier(sys.argv[1])\n"
        "print(model.logits(np.zeros((1, 5, 6, 3), np.uint8)).shape)\n"
        "heavy = {'torch', 'torchvision', 'onnx', 'h5py', 'sklearn', 'scipy'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(file)], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["(1, 2)", "[]"]


def test_the_file_works_with_plain_onnxruntime(file, classifier):
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    image = _images(1, 33, 21, 3)
    logits, probabilities = session.run(None, {"image": image})
    np.testing.assert_allclose(logits, classifier.logits(image), rtol=1e-5, atol=1e-5)
    classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
    assert len(classes) == probabilities.shape[1]
