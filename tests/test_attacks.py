"""Hostile files: each is refused by name, and what it points at is not even opened.

The kernel (inotify) is the witness that nothing foreign is touched; for each attack that reaches
out, the library that featx uses is first let run into it, so that the witness is known to see.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import safetensors.numpy
from headers import complete_header
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from featx.artifact import Header
from featx.classifier.seal import seal
from featx.classifier.session import open_classifier
from featx.errors import ArtifactError, ArtifactInvalid
from featx.extraction.options import ExtractOptions
from featx.features.file import FeatureFile, open_features
from featx.heads.head import Head, open_head, save_head
from featx.isolation.call import Limits, call_isolated
from featx.stages.extract import extract

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


@pytest.fixture
def watch() -> Iterator[Callable[[Path], Callable[[], bool]]]:
    """Watch a file; the function that comes back says if anyone has opened it since it was last
    asked."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptors: list[int] = []

    def start(path: Path) -> Callable[[], bool]:
        descriptor = libc.inotify_init1(os.O_NONBLOCK)
        if descriptor < 0:
            pytest.skip("no inotify here")
        descriptors.append(descriptor)
        assert libc.inotify_add_watch(descriptor, os.fsencode(path), 0x1 | 0x20) >= 0

        def was_opened() -> bool:
            try:
                return bool(os.read(descriptor, 2**16))
            except BlockingIOError:
                return False

        return was_opened

    yield start
    for descriptor in descriptors:
        os.close(descriptor)


def refused(path: Path, match: str) -> None:
    with pytest.raises(ArtifactInvalid, match=match) as caught:
        OPEN[path.suffix](path)
    assert caught.value.path == path


# --- the corpus ---------------------------------------------------------------------------------

CROOKED = "is not a head, or is damaged"
NO_MODEL = "is not an ONNX model, or is damaged"
NOT_TEXT = "its featx header is not text of fixed length"
OUTSIDE = "has weights in another file, which no exported classifier has"

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
    "external-absolute.onnx": OUTSIDE,
    "external-relative.onnx": OUTSIDE,
    "external-parent.onnx": OUTSIDE,
    "external-memory.onnx": OUTSIDE,
    "external-constant.onnx": OUTSIDE,
    "external-in-branch.onnx": OUTSIDE,
    "external-sparse.onnx": OUTSIDE,
    "external-sparse-constant.onnx": OUTSIDE,
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


def test_the_corpus_is_whole_small_and_described() -> None:
    files = [path for path in CORPUS.iterdir() if path.suffix in OPENERS]
    assert {path.name for path in files} == set(EXPECTED)
    assert sum(path.stat().st_size for path in files) < 100_000
    text = (CORPUS / "README.md").read_text()
    assert [name for name in EXPECTED if f"`{name}`" not in text] == []


@pytest.mark.parametrize("name", EXPECTED)
def test_a_malformed_file_is_refused_by_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a pickle that is run would leave something here
    refused(CORPUS / name, EXPECTED[name])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", [name for name in EXPECTED if name.endswith(".onnx")])
def test_no_check_of_a_model_needs_its_seal(name: str) -> None:
    if name != "seal-broken.onnx":
        with pytest.raises(ArtifactInvalid):
            open_classifier(CORPUS / name, verify=False)


# --- feature files ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole feature file of 12 images."""
    folder = tmp_path_factory.mktemp("published")
    for number in range(12):
        kind = folder / "photos" / ("ants" if number % 2 else "bees")
        kind.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(kind / f"{number}.png")
    extract(folder / "photos", folder / "features.h5", ExtractOptions(backbone="tiny"))
    return folder / "features.h5"


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


COLUMNS = ("features", "labels", "splits", "sample_ids", "digests", "stamps", "groups")
every_column = pytest.mark.parametrize("name", COLUMNS)


def test_every_column_is_attacked(published: Path) -> None:
    with h5py.File(published) as file:
        assert set(file) == set(COLUMNS)


@every_column
@pytest.mark.parametrize(
    ("attack", "match"),
    [
        (external_link, "is missing, or a link to somewhere else"),
        (raw_storage, "keeps its values in another file"),
        (virtual_dataset, "keeps its values in another file"),
    ],
)
def test_references_to_other_files_are_not_followed(
    *, attack: Callable[..., None], match: str, name: str, victim: Path, foreign: Path, watch: Any
) -> None:
    with h5py.File(victim, "r+") as file:
        attack(file, name, foreign)
    was_opened = watch(foreign)
    with h5py.File(victim) as file:
        assert len(file[name][:]) == 12  # h5py alone follows it
    assert was_opened()
    for verify in (True, False):
        with pytest.raises(ArtifactInvalid, match=f"column '{name}' {match}"):
            open_features(victim, verify=verify)
    with pytest.raises(ArtifactInvalid, match=f"column '{name}' {match}"):
        call_isolated(OPENERS[".h5"], victim, limits=LIMITS)
    assert not was_opened()


@every_column
@pytest.mark.parametrize("target", ["/elsewhere", "/nowhere", "/{name}", "/a", "."])
def test_soft_links_are_not_followed(name: str, target: str, victim: Path) -> None:
    with h5py.File(victim, "r+") as file:
        file.move(name, "elsewhere")
        file[name] = h5py.SoftLink(target.format(name=name))
        file["a"], file["b"] = h5py.SoftLink("/b"), h5py.SoftLink("/a")
    refused(victim, f"column '{name}' is missing, or a link to somewhere else")


def column(name: str, **dataset: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, **dataset)

    return change


def committed_type(file: h5py.File) -> None:
    del file["labels"]
    file["labels"] = np.dtype("<i8")


def dataset_of_committed_type(file: h5py.File) -> None:
    file["type"] = np.dtype([("a", "<i8")])
    column("labels", shape=(12,), dtype=file["type"])(file)


VLEN = h5py.vlen_dtype(np.int64)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (column("labels", data=np.zeros(12, ">i8")), "has type >i8"),
        (column("features", data=np.zeros((12, 3), ">f4")), "has shape"),
        (column("labels", shape=(12,), dtype=VLEN), r"has type \|O"),
        (column("sample_ids", data=["a"] * 12, dtype=h5py.string_dtype()), r"has type \|O"),
        (column("labels", shape=(12,), dtype=h5py.ref_dtype), r"has type \|O"),
        (column("labels", shape=(12,), dtype=h5py.regionref_dtype), r"has type \|O"),
        (column("labels", shape=(12,), dtype=[("a", "<i8")]), r"has type \|V8"),
        (column("sample_ids", shape=(12,), dtype="V20"), r"has type \|V20"),
        (column("labels", shape=(12,), dtype=h5py.enum_dtype({"a": 1}, "i4")), "has type <i4"),
        (column("labels", shape=(10**9, 10**4), dtype="<f8", chunks=(1, 10**4)), "has shape"),
        (column("labels", shape=(10**15,), dtype="<i8", chunks=(1000,)), "has shape"),
        (column("labels", shape=(12,), dtype="<i8", chunks=(12,)), "declares values that"),
        (column("labels", data=np.zeros(12, "<i8"), compression="gzip"), "uses a filter"),
        (column("labels", data=np.zeros(12, "<i8"), compression="lzf"), "uses a filter"),
        (column("labels", data=np.zeros(12, "<i8"), chunks=(12,), scaleoffset=0), "uses a filter"),
        (
            column("labels", shape=(12,), dtype="<i8", chunks=(12,), compression=32015,
                   allow_unknown_filter=True),
            "uses a filter that featx does not write",
        ),
        (lambda file: file.__delitem__("labels"), "is missing"),
        (committed_type, "is not a dataset"),
        (dataset_of_committed_type, r"has type \|V8"),
    ],
    ids=["endianness", "shape", "vlen", "strings", "reference", "region", "compound", "opaque",
         "enum", "shape bomb", "long bomb", "nothing stored", "gzip", "lzf", "scaleoffset",
         "plugin", "gone", "a type", "committed compound"],
)  # fmt: skip
def test_columns_that_are_not_the_schemas(
    change: Callable[[h5py.File], None], match: str, victim: Path
) -> None:
    with h5py.File(victim, "r+") as file:
        change(file)
    refused(victim, f"column '[a-z_]+' {match}")


def with_header(path: Path, header: Header) -> None:
    """Give a file another header with a right checksum, as an attacker would."""
    with h5py.File(path, "r+") as file:
        del file.attrs["header"]
        file.attrs["header"] = np.bytes_(header.to_json().encode())


@pytest.mark.parametrize("options", [{}, {"compression": "gzip"}], ids=["shape bomb", "gzip bomb"])
def test_bombs_with_a_header_that_fits_take_no_memory(
    options: dict[str, Any], victim: Path
) -> None:
    """Every column says a billion rows, the header as well; hardly anything is stored."""
    num_rows, opened = 10**9, open_features(victim)
    details = dict(opened.header.details) | {"num_rows": num_rows}
    with h5py.File(victim, "r+") as file:
        for name in COLUMNS:
            (_, *inner), dtype = shape_and_type(name, file)
            del file[name]
            chunks = (2**20, *inner)
            made = file.create_dataset(name, (num_rows, *inner), dtype, chunks=chunks, **options)
            made[0] = made[0]
    with_header(victim, replace(opened.header, details=details))
    with pytest.raises(ArtifactInvalid, match=r"column 'features' (declares values|uses a filter)"):
        call_isolated(OPENERS[".h5"], victim, limits=Limits(2**30, 60))


@pytest.mark.parametrize(
    "value",
    [h5py.Empty("<i8"), np.zeros(0), np.array([1, 0]), "yes", np.bytes_(b""), np.nan],
    ids=["empty", "no value", "two values", "text", "no text", "nan"],
)
def test_a_mark_of_completion_that_is_none(value: Any, victim: Path) -> None:
    """Taken or refused, but in words of featx."""
    with h5py.File(victim, "r+") as file:
        del file.attrs["complete"]
        file.attrs["complete"] = value
    with contextlib.suppress(ArtifactError):
        assert isinstance(open_features(victim), FeatureFile)


# --- heads --------------------------------------------------------------------------------------


def head_file(path: Path, change: Callable[[dict[str, np.ndarray]], object]) -> Path:
    """Write a head whose tensors were changed after its header was made."""
    spec = {"backbone": "tiny", "num_features": 3}
    layers = ((np.ones((2, 3), np.float32), np.zeros(2, np.float32)),)
    saved = save_head(path, Head(complete_header("head", spec), layers))
    tensors = safetensors.numpy.load_file(path)
    change(tensors)
    path.write_bytes(safetensors.numpy.save(tensors, {"featx": saved.header.to_json()}))
    return path


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.update({"extra": np.zeros(1)}), "holds other tensors"),
        (lambda t: t.update({f"layers.{i}.{p}": t["layers.0.bias"] for i in range(1, 70)
                             for p in ("weight", "bias")}), "holds other tensors"),
        (lambda t: t.update({"layers.0.bias": np.zeros(2)}), "is F64, expected F32"),
        (lambda t: t.update({"layers.0.bias": np.zeros(3, np.float32)}), "layer 0 is"),
        (lambda t: t["layers.0.bias"].__setitem__(0, 1), "do not have the sha256"),
    ],
    ids=["extra", "70 layers", "another type", "another shape", "another value"],
)  # fmt: skip
def test_heads_that_are_not_the_schemas(
    change: Callable[[dict[str, np.ndarray]], object], match: str, tmp_path: Path
) -> None:
    refused(head_file(tmp_path / "h.safetensors", change), match)


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


@pytest.mark.parametrize("place", ["initializer", "constant", "branch", "sparse"])
@pytest.mark.parametrize("way", ["relative", "absolute", "parent", "symlink", "hardlink"])
def test_weights_in_other_files_are_not_read(
    place: str, way: str, secret: Path, watch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
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


@pytest.mark.parametrize("place", ["initializer", "constant", "branch", "sparse"])
@pytest.mark.parametrize("marker", ["*/_ORT_MEM_ADDR_/*", "*/_ORT_LE_MEM_ADDR_/*"])
def test_weights_in_our_memory_are_not_read(place: str, marker: str, tmp_path: Path) -> None:
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
def test_tensors_that_declare_more_than_there_is(dims: list[int], tmp_path: Path) -> None:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims, raw_data=bytes(16))
    path = tmp_path / "model.onnx"
    model = model_with(tensor, "initializer")
    path.write_bytes(seal(_named(model)))
    with pytest.raises(ArtifactInvalid, match="is not an ONNX model that runs"):
        call_isolated(OPENERS[".onnx"], path, limits=LIMITS)


def test_a_tensor_that_takes_all_memory(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(seal(_named(bomb_of_zeros(2**31))))  # 8 GiB
    with pytest.raises(ArtifactInvalid):
        call_isolated(OPENERS[".onnx"], path, limits=LIMITS)


def _named(model: onnx.ModelProto) -> bytes:
    """Return a model with an entry where the header should be: read only after the tensors."""
    model.metadata_props.add(key="featx", value="{}")
    content: bytes = model.SerializeToString()
    return content


def test_nothing_is_opened_besides_the_file(published: Path, tmp_path: Path) -> None:
    """Python's own view, for the files that python itself opens: an audit of all opens."""
    path = head_file(tmp_path / "h.safetensors", lambda _: None)
    opened: list[str] = []
    watching = True

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and event == "open" and isinstance(arguments[0], str):
            opened.append(arguments[0])

    sys.addaudithook(audit)  # cannot be taken away again, only silenced
    open_head(path)
    watching = False
    assert opened == [str(path)]
