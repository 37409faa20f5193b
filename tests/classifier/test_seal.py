"""The seal covers every byte, and the walk sees every place where a model can reach out."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from featx.artifact import Header
from featx.backbones import seal as module
from featx.backbones.seal import SEAL_BYTES, NotOnnx, is_sealed, read_entry, unwanted_parts
from featx.classifier.graph import with_header
from featx.classifier.seal import seal

# --- the seal -----------------------------------------------------------------------------------


def test_every_reader_takes_a_sealed_file(content, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    onnx.checker.check_model(str(path), full_check=True)
    assert [entry.key for entry in model.metadata_props] == [
        *("featx", "classes", "preprocess", "contract", "sha256")
    ]
    entries = ort.InferenceSession(path).get_modelmeta().custom_metadata_map
    assert entries["sha256"] == model.metadata_props[-1].value
    assert model.SerializeToString()[-SEAL_BYTES:] == content[-SEAL_BYTES:]


def test_the_seal_is_a_metadata_entry_of_fixed_length():
    model = onnx.ModelProto()
    model.ParseFromString(seal(b"")[-SEAL_BYTES:])
    (entry,) = model.metadata_props
    assert (entry.key, len(entry.value)) == ("sha256", 64)
    assert model.SerializeToString() == seal(b"")
    assert len(seal(b"x" * 1000)) == 1000 + SEAL_BYTES


@given(body=st.binary(max_size=300), place=st.integers(0, 2**20), bit=st.integers(0, 7))
def test_no_byte_can_change_unseen(body, place, bit):
    sealed = bytearray(seal(body))
    assert is_sealed(bytes(sealed))
    sealed[place % len(sealed)] ^= 1 << bit
    assert not is_sealed(bytes(sealed))


@given(body=st.binary(max_size=100), extra=st.binary(min_size=1, max_size=100), cut=st.integers(1))
def test_nothing_can_be_added_or_cut_unseen(body, extra, cut):
    sealed = seal(body)
    assert not is_sealed(sealed + extra)
    assert not is_sealed(extra + sealed)
    assert not is_sealed(sealed[: -1 - cut % len(sealed)])


def test_a_seal_around_a_seal_is_one():
    assert is_sealed(seal(seal(b"x")))
    assert not is_sealed(seal(b"x") + seal(b""))


@pytest.mark.parametrize("short", [b"", b"r", b"rJ\n\x06sha256\x12@"])
def test_what_is_shorter_than_a_seal(short):
    assert not is_sealed(short)


def test_metadata_entries_are_found(content, plain):
    assert read_entry(content, "featx") is not None
    assert read_entry(content[:-SEAL_BYTES], "featx") is not None
    assert read_entry(content, "feat") is None
    assert read_entry(plain.SerializeToString(), "featx") is None


# --- the walk -----------------------------------------------------------------------------------


def test_an_exported_model_has_nothing_unwanted(content, plain):
    assert unwanted_parts(content) == []
    assert unwanted_parts(plain.SerializeToString()) == []


def messages(start: type) -> Iterator[tuple[str, int, str]]:
    """Yield each field of ONNX's messages that holds a message: (message, number, message)."""
    pending, seen = [start.DESCRIPTOR], set()  # type: ignore[attr-defined]
    while pending:
        message = pending.pop()
        if message.name in seen:
            continue
        seen.add(message.name)
        for field in message.fields:
            if field.message_type is not None:
                yield message.name, field.number, field.message_type.name
                pending.append(field.message_type)


def test_the_walk_goes_wherever_a_tensor_or_an_operator_can_stand():
    """The table of messages is ONNX's own; a version with new places fails here."""
    goals = {"TensorProto", "SparseTensorProto", "NodeProto", "GraphProto", "AttributeProto",
             "OperatorSetIdProto"}  # fmt: skip
    refused = {"TrainingInfoProto", "FunctionProto"}  # whole, so nobody need look inside
    places = {
        (name, number, inside)
        for name, number, inside in messages(onnx.ModelProto)
        if inside in goals and name not in refused
    }
    walked = {
        (name, number, inside) for name, fields in module._INSIDE.items()
        for number, inside in fields.items()
    }  # fmt: skip
    assert places == walked
    for name, number in [*module._REFUSED, *module._DOMAIN_FIELDS, module._OPERATOR]:
        message = getattr(onnx, name).DESCRIPTOR
        assert message.fields_by_number[number].name in {
            *("training_info", "functions", "external_data", "data_location", "domain", "op_type")
        }


def changed(model: onnx.ModelProto, change: Callable[[onnx.ModelProto], object]) -> bytes:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    change(copy)
    content: bytes = copy.SerializeToString()
    return content


def test_other_domains_are_named(plain):
    def change(model: onnx.ModelProto) -> None:
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
        model.graph.node[0].domain = "org.evil"

    assert unwanted_parts(changed(plain, change)) == [
        "operators of the domain 'com.microsoft'",
        "operators of the domain 'org.evil'",
    ]
    allowed = changed(plain, lambda m: m.opset_import.append(helper.make_opsetid("ai.onnx", 20)))
    assert unwanted_parts(allowed) == []


def test_domains_in_subgraphs_are_seen(plain):
    inner = helper.make_graph([helper.make_node("F", [], ["x"], domain="deep")], "inner", [], [])
    for _ in range(3):
        node = helper.make_node("If", ["c"], ["x"], then_branch=inner, else_branch=inner)
        inner = helper.make_graph([node], "inner", [], [])
    found = unwanted_parts(changed(plain, lambda m: m.graph.node.extend(inner.node)))
    assert found == ["control flow (If)", "operators of the domain 'deep'"]


@pytest.mark.parametrize("operator", ["If", "Loop", "Scan", "SequenceMap"])
def test_control_flow_is_refused(operator, plain):
    """Featx writes none of it, and a few bytes of it could run for ever."""
    unwanted = [f"control flow ({operator})"]
    assert unwanted_parts(changed(plain, lambda m: m.graph.node.add(op_type=operator))) == unwanted
    body = onnx.GraphProto(node=[onnx.NodeProto(op_type=operator, domain="ai.onnx")])
    assert unwanted_parts(changed(plain, in_attribute(g=body))) == unwanted
    twice = onnx.NodeProto(op_type=operator).SerializeToString() + b"\x22\x04Relu"
    node = b"\x0a" + varint(len(twice)) + twice  # the last of two names counts
    graph = b"\x3a" + varint(len(node)) + node
    assert unwanted_parts(plain.SerializeToString() + graph) == unwanted


def test_a_domain_that_is_no_text(plain):
    content = plain.SerializeToString() + b"\x42\x06\x0a\x04\xff\xfe\xfd\xfc"
    assert unwanted_parts(content) == ["operators of the domain '����'"]


def test_functions_and_training_are_refused(plain):
    def change(model: onnx.ModelProto) -> None:
        model.functions.add().name = "f"
        model.training_info.add()

    assert unwanted_parts(changed(plain, change)) == ["functions of its own", "training steps"]


def external(name: str = "w") -> TensorProto:
    return TensorProto(name=name, data_location=TensorProto.EXTERNAL, dims=[1], data_type=1)


def in_attribute(**fields: object) -> Callable[[onnx.ModelProto], object]:
    def change(model: onnx.ModelProto) -> None:
        model.graph.node.add(op_type="Constant").attribute.append(onnx.AttributeProto(**fields))

    return change


HERE = numpy_helper.from_array(np.zeros(1, np.float32), "v")
BRANCH = onnx.GraphProto(initializer=[external()])


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.graph.initializer.append(external()),
        lambda m: m.graph.initializer.add(name="w").external_data.add(key="location", value="x"),
        lambda m: m.graph.sparse_initializer.add(values=external(), indices=HERE),
        lambda m: m.graph.sparse_initializer.add(values=HERE, indices=external()),
        in_attribute(t=external()),
        in_attribute(tensors=[HERE, external()]),
        in_attribute(sparse_tensor=onnx.SparseTensorProto(values=external())),
        in_attribute(sparse_tensors=[onnx.SparseTensorProto(indices=external())]),
        in_attribute(g=BRANCH),
        in_attribute(graphs=[onnx.GraphProto(), BRANCH]),
    ],
    ids=["initializer", "no location field", "sparse values", "sparse indices", "constant",
         "tensors", "sparse constant", "sparse tensors", "subgraph", "subgraphs"],
)  # fmt: skip
def test_weights_in_another_file_are_seen_everywhere(change, plain):
    assert unwanted_parts(changed(plain, change)) == ["weights in another file"]


def test_a_field_that_is_given_twice_is_seen_twice(plain):
    second = onnx.ModelProto(graph=BRANCH).SerializeToString()
    assert unwanted_parts(plain.SerializeToString() + second) == ["weights in another file"]
    assert unwanted_parts(second + plain.SerializeToString()) == ["weights in another file"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "has no graph"),
        (b"\x08\x0a", "has no graph"),
        (b"\x38\x01", "has no graph"),  # field 7, but a number
        (b"\x08", "ends too early"),
        (b"\x3a\x05\x0a", "ends too early"),
        (b"\x3a\xff\xff\xff\xff\x0f", "ends too early"),
        (b"\x3a" + b"\xff" * 20, "ends too early"),
        (b"\x0d\x00\x00", "ends too early"),
        (b"\x09\x00\x00", "ends too early"),
        (b"\x02\x00", "starts no field"),  # number 0
        (b"\x3b\x3c", "starts no field"),  # groups
        (b"\x3e", "starts no field"),  # wire type 6
        (b"\xba\x80\x80\x80\x10\x00", "starts no field"),  # 7 in its lower 32 bits
        (b"ORTM" * 10, "starts no field"),
    ],
)
def test_what_is_no_model(content, reason):
    with pytest.raises(NotOnnx, match=reason):
        unwanted_parts(content)


def test_endlessly_many_parts(monkeypatch, plain):
    monkeypatch.setattr(module, "_MAX_PARTS", 100)
    with pytest.raises(NotOnnx, match="more than 100 parts"):
        unwanted_parts(plain.SerializeToString())


def varint(number: int) -> bytes:
    head = b""
    while number > 127:
        head, number = head + bytes([number & 127 | 128]), number >> 7
    return head + bytes([number])


def test_graphs_nested_without_end():
    content = external().SerializeToString()
    content = b"\x2a" + varint(len(content)) + content  # initializer
    for _ in range(3000):
        for tag in (b"\x32", b"\x2a", b"\x0a"):  # graph, of an attribute, of a node
            content = tag + varint(len(content)) + content
    assert unwanted_parts(b"\x3a" + varint(len(content)) + content) == ["weights in another file"]


@given(junk=st.binary(max_size=200))
def test_any_bytes_are_walked_or_refused(junk):
    try:
        unwanted_parts(junk)
    except NotOnnx:
        return


@given(place=st.integers(0, 2**30), byte=st.integers(0, 255))
def test_the_walk_refuses_or_reads_what_protobuf_reads(place, byte, content_case):
    """Whenever onnx takes damaged bytes and sees something external in them, the walk does too."""
    damaged = bytearray(content_case)
    damaged[place % len(damaged)] = byte
    model = onnx.ModelProto()
    try:
        model.ParseFromString(bytes(damaged))
    except Exception:  # protobuf's DecodeError, and others below it
        return
    outside = [t for t in model.graph.initializer if t.data_location or t.external_data]
    domains = {node.domain for node in model.graph.node} | {o.domain for o in model.opset_import}
    odd = outside or model.functions or model.training_info or domains - {"", "ai.onnx"}
    try:
        found = unwanted_parts(bytes(damaged))
    except NotOnnx:
        return
    assert bool(found) == bool(odd)


@pytest.fixture(scope="session")
def content_case(plain: onnx.ModelProto, header: Header) -> bytes:
    return with_header(plain, header)
