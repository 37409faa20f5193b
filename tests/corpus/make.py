"""Make the malformed files of this folder: ``python tests/corpus/make.py``.

Each is refused for its structure, before its header is read, so that they stay as they are when the
schema changes. Attacks inside a valid schema are made in ``test_attacks.py``, from fresh files.
"""

from __future__ import annotations

import hashlib
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FOLDER = Path(__file__).parent
ENTRY = '"layers.0.bias":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'

# --- HDF5 ---------------------------------------------------------------------------------------


def hdf5(change: Callable[[h5py.File], object]) -> bytes:
    path = FOLDER / "making.h5"
    try:
        with h5py.File(path, "w", libver=("v108", "v110")) as file:
            change(file)
        return path.read_bytes()
    finally:
        path.unlink(missing_ok=True)


def header(file: h5py.File, value: object, **options: object) -> None:
    file.attrs.create("header", value, **options)


def links_only(file: h5py.File) -> None:
    file["features"] = h5py.ExternalLink("/etc/passwd", "/features")
    file["labels"] = h5py.SoftLink("/labels")


def header_in_group(file: h5py.File) -> None:
    file.create_group("header")
    header(file, file["header"].ref, dtype=h5py.ref_dtype)


def header_of_numbers(file: h5py.File) -> None:
    numbers = np.empty((), dtype=h5py.vlen_dtype(np.int64))
    numbers[()] = np.arange(3)
    header(file, numbers, dtype=numbers.dtype)


FEATURES = {
    "foreign": lambda file: file.create_dataset("data", data=np.arange(4)),
    "links-only": links_only,
    "header-vlen-string": lambda file: header(file, "{}"),
    "header-vlen-numbers": header_of_numbers,
    "header-reference": header_in_group,
    "header-number": lambda file: header(file, 7),
    "header-array": lambda file: header(file, np.array([b"{}", b"{}"])),
    "header-empty": lambda file: header(file, h5py.Empty("S10")),
    "header-compound": lambda file: header(file, np.zeros((), [("a", "S2"), ("b", "<i4")])),
    "header-no-json": lambda file: header(file, np.bytes_(b"{")),
    "header-deep-json": lambda file: header(file, np.bytes_(b"[" * 2000)),
    "header-no-text": lambda file: header(file, np.bytes_(b"\xff\xfe\x80")),
}

# --- heads --------------------------------------------------------------------------------------


def head(text: str | bytes, data: bytes = bytes(8)) -> bytes:
    text = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(text)) + text + data


class _Touch:
    """What a pickle can do: run a function of the attacker's choice, here a harmless one."""

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, ("featx-was-here", "w")


HEADS = {
    "pickle": pickle.dumps(_Touch()),
    "empty": b"",
    "length-2^63": struct.pack("<Q", 2**63) + b"{}",
    "length-100-MB": struct.pack("<Q", 100_000_000) + b"{}",
    "length-beyond-end": struct.pack("<Q", 100) + b"{}",
    "no-json": head("{"),
    "no-utf-8": head(b'{"\xff":1}'),
    "deep-json": head("[" * 2000),
    "a-list": head("[]"),
    "foreign": head(f"{{{ENTRY}}}"),
    "metadata-no-text": head(f'{{"__metadata__":{{"featx":1}},{ENTRY}}}'),
    "metadata-twice": head(f'{{"__metadata__":{{"featx":"{{}}","featx":"{{}}"}},{ENTRY}}}'),
    "tensor-twice": head(f'{{"__metadata__":{{"featx":"{{}}"}},{ENTRY},{ENTRY}}}'),
}

# --- classifiers --------------------------------------------------------------------------------


def sealed(content: bytes) -> bytes:
    """As ``featx.classifier.seal.seal``, written once more: an attacker can do so, too."""
    digest = hashlib.sha256(content).hexdigest()
    entry = onnx.StringStringEntryProto(key="sha256", value=digest)
    return content + onnx.ModelProto(metadata_props=[entry]).SerializeToString()


def outside(location: str) -> TensorProto:
    tensor = TensorProto(
        name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL
    )
    tensor.external_data.add(key="location", value=location)
    return tensor


def model(*nodes: onnx.NodeProto, **graph: object) -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    return helper.make_model(
        helper.make_graph(
            [*nodes, helper.make_node("Add", ["image", "w"], ["logits"])],
            "attack",
            [value("image", TensorProto.FLOAT, ["n"])],
            [value("logits", TensorProto.FLOAT, ["n"])],
            **graph,
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )


def custom_domain() -> onnx.ModelProto:
    made = model(helper.make_node("EPContext", [], ["w"], domain="com.microsoft"))
    made.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return made


def with_function() -> onnx.ModelProto:
    made = model(helper.make_node("F", [], ["w"], domain="mine"))
    constant = helper.make_node("Constant", [], ["w"], value=outside("/etc/passwd"))
    imports = [helper.make_opsetid("", 20)]
    made.functions.append(helper.make_function("mine", "F", [], ["w"], [constant], imports))
    made.opset_import.append(helper.make_opsetid("mine", 1))
    return made


def with_training() -> onnx.ModelProto:
    made = model(initializer=[numpy_helper.from_array(np.zeros(4, np.float32), "w")])
    made.training_info.add().algorithm.initializer.append(outside("/etc/passwd"))
    return made


def foreign() -> onnx.ModelProto:
    return model(initializer=[numpy_helper.from_array(np.zeros(4, np.float32), "w")])


HARMLESS = foreign().SerializeToString()
MODELS = {
    "custom-domain": custom_domain(),
    "function": with_function(),
    "training": with_training(),
}
BYTES = {
    "empty": b"",
    "no-graph": b"\x08\x0a",
    "groups": b"\x3b\x3c" * 100,
    "length-beyond-end": b"\x3a\xff\xff\xff\x7f",
    "foreign": HARMLESS,
    "foreign-sealed": sealed(HARMLESS),
    "seal-broken": sealed(HARMLESS + onnx.ModelProto(
        metadata_props=[onnx.StringStringEntryProto(key="featx", value="{}")]
    ).SerializeToString())[:-1] + b"g",
    "ort-format": sealed(b"\x12\x7f\x00\x00ORTM" + bytes(121) + HARMLESS),
}  # fmt: skip


def main() -> None:
    for name, change in FEATURES.items():
        (FOLDER / f"{name}.h5").write_bytes(hdf5(change))
    for name, content in HEADS.items():
        (FOLDER / f"{name}.safetensors").write_bytes(content)
    contents = {name: sealed(made.SerializeToString()) for name, made in MODELS.items()} | BYTES
    for name, content in contents.items():
        (FOLDER / f"{name}.onnx").write_bytes(content)


if __name__ == "__main__":
    main()
