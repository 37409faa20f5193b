"""Hostile files: each is refused by name, and what it points at is not even opened.

The kernel (inotify) is the witness that nothing foreign is touched; for each attack that reaches
out, the library that featx uses is first let run into it, so that the witness is known to see.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from headers import complete_header
from onnx import TensorProto, helper, numpy_helper

from featx.classifier.seal import seal
from featx.classifier.session import open_classifier
from featx.errors import ArtifactInvalid
from featx.features.file import open_features
from featx.features.schema import COLUMNS
from featx.heads.head import Head, open_head, save_head
from featx.isolation.call import Limits, call_isolated

CORPUS = Path(__file__).parent / "corpus"
OPENERS = {
    ".h5": "featx.features.file:open_features",
    ".safetensors": "featx.heads.head:open_head",
    ".onnx": "featx.classifier.session:open_classifier",
}
OPEN: dict[str, Callable[[Path], Any]] = {
    ".h5": open_features, ".safetensors": open_head, ".onnx": open_classifier
}  # fmt: skip
LIMITS = Limits(memory_bytes=2 * 2**30, seconds=60)


def refused(path: Path, match: str) -> None:
    with pytest.raises(ArtifactInvalid, match=match) as caught:
        OPEN[path.suffix](path)
    assert caught.value.path == path


# --- the corpus ---------------------------------------------------------------------------------

CROOKED = "is not a head, or is damaged"
NO_MODEL = "is not an ONNX model, or is damaged"
NOT_TEXT = "its featx header is not text of fixed length"
OUTSIDE = "weights in another file, which no exported classifier has"

EXPECTED = {
    "foreign.h5": "is an HDF5 file, but not one of featx's",
    "links-only.h5": "is an HDF5 file, but not one of featx's",
    "header-vlen-string.h5": NOT_TEXT,
    "header-vlen-numbers.h5": NOT_TEXT,
    "header-reference.h5": NOT_TEXT,
    "header-number.h5": NOT_TEXT,
    "header-array.h5": NOT_TEXT,
    "header-empty.h5": NOT_TEXT,
    "header-compound.h5": NOT_TEXT,
    "header-no-json.h5": "no readable featx header",
    "header-deep-json.h5": "no readable featx header",
    "header-no-text.h5": "no readable featx header",
    "pickle.safetensors": CROOKED,
    "empty.safetensors": CROOKED,
    "length-2^63.safetensors": "its list of tensors has 9223372036854775808 bytes, over",
    "length-100-MB.safetensors": "its list of tensors has 100000000 bytes, over",
    "length-beyond-end.safetensors": "its list of tensors has 100 bytes, the file 10",
    "no-json.safetensors": CROOKED,
    "no-utf-8.safetensors": CROOKED,
    "deep-json.safetensors": CROOKED,
    "a-list.safetensors": "it has no list of tensors",
    "foreign.safetensors": "is a safetensors file, but not a head of featx's",
    "metadata-no-text.safetensors": "is a safetensors file, but not a head of featx's",
    "metadata-twice.safetensors": "a name occurs twice",
    "tensor-twice.safetensors": "a name occurs twice",
    "custom-domain.onnx": r"operators of the domain 'com\.microsoft', which no exported",
    "function.onnx": "has functions of its own, operators of the domain 'mine', which no",
    "training.onnx": "has training steps, which no exported classifier has",
    "empty.onnx": NO_MODEL,
    "no-graph.onnx": NO_MODEL,
    "groups.onnx": NO_MODEL,
    "length-beyond-end.onnx": NO_MODEL,
    "foreign.onnx": "is an ONNX model, but not one of featx's",
    "foreign-sealed.onnx": "is an ONNX model, but not one of featx's",
    "ort-format.onnx": "is an ONNX model, but not one of featx's",
    "seal-broken.onnx": "was altered after export, or is damaged",
}


def test_the_corpus_is_whole_small_and_described():
    files = [path for path in CORPUS.iterdir() if path.suffix in OPENERS]
    assert {path.name for path in files} == set(EXPECTED)
    assert sum(path.stat().st_size for path in files) < 100_000
    text = (CORPUS / "README.md").read_text()
    assert [name for name in EXPECTED if f"`{name}`" not in text] == []


@pytest.mark.parametrize("name", EXPECTED)
def test_a_malformed_file_is_refused_by_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a pickle that is run would leave something here
    refused(CORPUS / name, EXPECTED[name])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", [name for name in EXPECTED if name.endswith(".onnx")])
def test_no_check_of_a_model_needs_its_seal(name):
    if name != "seal-broken.onnx":
        with pytest.raises(ArtifactInvalid):
            open_classifier(CORPUS / name, verify=False)


# --- feature files ------------------------------------------------------------------------------


@pytest.fixture
def victim(published: Path, tmp_path: Path) -> Path:
    """A copy to be changed."""
    (tmp_path / "work").mkdir()
    return Path(shutil.copy(published, tmp_path / "work" / "features.h5"))


@pytest.fixture
def foreign(published: Path, tmp_path: Path) -> Path:
    """A file that the victim may point at: a feature file, so that every reference works."""
    return Path(shutil.copy(published, tmp_path / "foreign.h5"))


def shape_and_type(name: str, file: h5py.File) -> tuple[tuple[int, ...], Any]:
    return file[name].shape, file[name].dtype


def external_link(file: h5py.File, name: str, foreign: Path) -> None:
    del file[name]
    file[name] = h5py.ExternalLink(str(foreign), f"/{name}")


def raw_storage(file: h5py.File, name: str, foreign: Path) -> None:
    shape, dtype = shape_and_type(name, file)
    size = int(np.prod(shape)) * dtype.itemsize
    del file[name]
    file.create_dataset(name, shape, dtype, external=[(str(foreign), 0, size)])


def virtual_dataset(file: h5py.File, name: str, foreign: Path) -> None:
    shape, dtype = shape_and_type(name, file)
    layout = h5py.VirtualLayout(shape, dtype)
    layout[:] = h5py.VirtualSource(str(foreign), name, shape=shape)
    del file[name]
    file.create_virtual_dataset(name, layout)


every_column = pytest.mark.parametrize("name", COLUMNS)


@every_column
@pytest.mark.parametrize(
    ("attack", "match"),
    [
        (external_link, "is missing, or a link to somewhere else"),
        (raw_storage, "keeps its values in another file"),
        (virtual_dataset, "keeps its values in another file"),
    ],
)
def test_references_to_other_files_are_not_followed(*, attack, match, name, victim, foreign, watch):
    with h5py.File(victim, "r+") as file:
        attack(file, name, foreign)
    was_opened = watch(foreign)
    with h5py.File(victim) as file:
        assert len(file[name][:]) == 60  # h5py alone follows it
    assert was_opened()
    for verify in (True, False):
        with pytest.raises(ArtifactInvalid, match=f"column '{name}' {match}"):
            open_features(victim, verify=verify)
    with pytest.raises(ArtifactInvalid, match=f"column '{name}' {match}"):
        call_isolated(OPENERS[".h5"], victim, limits=LIMITS)
    assert not was_opened()


@every_column
@pytest.mark.parametrize("target", ["/elsewhere", "/nowhere", "/{name}", "/a", "."])
def test_soft_links_are_not_followed(name, target, victim):
    with h5py.File(victim, "r+") as file:
        file.move(name, "elsewhere")
        file[name] = h5py.SoftLink(target.format(name=name))
        file["a"], file["b"] = h5py.SoftLink("/b"), h5py.SoftLink("/a")
    refused(victim, f"column '{name}' is missing, or a link to somewhere else")


# --- classifiers --------------------------------------------------------------------------------


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret.bin"
    np.arange(100, 164, dtype=np.float32).tofile(path)
    return path


def outside(location: str, **where: object) -> TensorProto:
    tensor = TensorProto(
        name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL
    )
    for key, value in {"location": location, **where}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


PLACES = ["initializer", "constant", "branch", "sparse", "sparse constant"]


def model_with(tensor: TensorProto, place: str) -> onnx.ModelProto:
    """Return a model that adds a tensor to its input; the tensor stands at some place of it."""
    value = helper.make_tensor_value_info
    constant = helper.make_node("Constant", [], ["w"], value=tensor)
    nodes, initializers, sparse = [], [], []
    places = numpy_helper.from_array(np.arange(4), "places")
    if place == "initializer":
        initializers = [tensor]
    elif place == "constant":
        nodes = [constant]
    elif place == "branch":
        out = value("w", TensorProto.FLOAT, [4])
        branch = helper.make_graph([constant], "branch", [], [out])
        initializers = [numpy_helper.from_array(np.array(True), "yes")]
        nodes = [helper.make_node("If", ["yes"], ["w"], then_branch=branch, else_branch=branch)]
    else:
        sparse = [onnx.SparseTensorProto(values=tensor, indices=places, dims=[4])]
        if place == "sparse constant":
            node, kind = helper.make_node("Constant", [], ["w"]), onnx.AttributeProto.SPARSE_TENSOR
            node.attribute.add(name="sparse_value", type=kind, sparse_tensor=sparse.pop())
            nodes = [node]
    graph = helper.make_graph(
        [*nodes, helper.make_node("Add", ["image", "w"], ["logits"])],
        "attack",
        [value("image", TensorProto.FLOAT, ["n"])],
        [value("logits", TensorProto.FLOAT, ["n"])],
        initializer=initializers,
        sparse_initializer=sparse,
    )
    opset = [helper.make_opsetid("", 20)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=opset, ir_version=10)
    return model


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("way", ["relative", "absolute", "parent", "symlink", "hardlink"])
def test_weights_in_other_files_are_not_read(place, way, secret, watch, monkeypatch):
    folder = secret.parent / "folder"
    folder.mkdir()
    (folder / "symlink").symlink_to(secret)
    (folder / "hardlink").hardlink_to(secret)
    shutil.copy(secret, folder / "relative")
    location = {"absolute": str(secret), "parent": "../secret.bin"}.get(way, way)
    path = folder / "model.onnx"
    path.write_bytes(seal(model_with(outside(location), place).SerializeToString()))
    monkeypatch.chdir(folder)
    was_opened = watch(folder / way if way == "relative" else secret)
    if way == "relative" or (way == "hardlink" and place != "branch"):  # ONNX Runtime reads it
        answer = ort.InferenceSession(str(path)).run(None, {"image": np.zeros(4, np.float32)})
        np.testing.assert_array_equal(answer[0], [100, 101, 102, 103])
        assert was_opened()
    for verify in (True, False):
        with pytest.raises(ArtifactInvalid, match=OUTSIDE):
            open_classifier(path, verify=verify)
    with pytest.raises(ArtifactInvalid, match=OUTSIDE):
        call_isolated(OPENERS[".onnx"], path, limits=LIMITS)
    assert not was_opened()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("marker", ["*/_ORT_MEM_ADDR_/*", "*/_ORT_LE_MEM_ADDR_/*"])
def test_weights_in_our_memory_are_not_read(place, marker, tmp_path):
    values = np.full(4, 7, np.float32)
    tensor = outside(marker, offset=values.ctypes.data, length=16)
    path = tmp_path / "model.onnx"
    path.write_bytes(seal(model_with(tensor, place).SerializeToString()))
    refused(path, OUTSIDE)


def bomb_of_zeros(num_values: int) -> onnx.ModelProto:
    """Return a model whose tensor is made when it is opened, as constants are folded then."""
    model = model_with(numpy_helper.from_array(np.array([num_values]), "size"), "initializer")
    model.graph.node.insert(0, helper.make_node("ConstantOfShape", ["size"], ["w"]))
    return model


@pytest.mark.parametrize("dims", [[2**40], [2**62, 4], [2**33, 2**33], [-1], [5]], ids=str)
def test_tensors_that_declare_more_than_there_is(dims, tmp_path):
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims, raw_data=bytes(16))
    path = tmp_path / "model.onnx"
    model = model_with(tensor, "initializer")
    path.write_bytes(seal(_named(model)))
    with pytest.raises(ArtifactInvalid, match="is not an ONNX model that runs"):
        call_isolated(OPENERS[".onnx"], path, limits=LIMITS)


def test_a_tensor_that_takes_all_memory(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(seal(_named(bomb_of_zeros(2**31))))  # 8 GiB
    with pytest.raises(ArtifactInvalid):
        call_isolated(OPENERS[".onnx"], path, limits=LIMITS)


def _named(model: onnx.ModelProto) -> bytes:
    """Return a model with an entry where the header should be: read only after the tensors."""
    model.metadata_props.add(key="featx", value="{}")
    content: bytes = model.SerializeToString()
    return content


def test_nothing_is_opened_besides_the_file(tmp_path):
    """Python's own view, for the files that python itself opens: an audit of all opens."""
    path, layer = tmp_path / "h.safetensors", (np.ones((2, 4), np.float32), np.zeros(2, np.float32))
    save_head(path, Head(complete_header("head"), (layer,)))
    opened: list[str] = []
    watching = True

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and event == "open" and isinstance(arguments[0], str):
            opened.append(arguments[0])

    sys.addaudithook(audit)  # cannot be taken away again, only silenced
    open_head(path)
    watching = False
    assert opened == [str(path)]
