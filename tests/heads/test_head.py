"""The head's file: exact weights or a refusal; folding keeps logits."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from headers import complete_header
from hypothesis import given, settings
from hypothesis import strategies as st

from featx.artifact import MAX_HEADER_BYTES, Header
from featx.errors import ArtifactError, ArtifactExists, ArtifactInvalid, ArtifactMissing
from featx.heads import head as head_module
from featx.heads.head import (
    Head,
    Layer,
    apply_layers,
    fold_standardisation,
    open_head,
    save_head,
)
from featx.heads.samples.statistics import standardisation

EPS = float(np.finfo(np.float32).eps)


def head_of(*widths: int, seed: int = 0, **details: Any) -> Head:
    """A head with random layers of these widths, features first."""
    random = np.random.default_rng(seed)
    layers = tuple(
        (
            random.normal(size=(out, inputs)).astype(np.float32),
            random.normal(size=out).astype(np.float32),
        )
        for inputs, out in pairwise(widths)
    )
    classes = tuple(f"class {i}" for i in range(widths[-1]))
    spec = {"backbone": "tiny", "num_features": widths[0]}
    return Head(complete_header("head", spec, classes, details), layers)


def zeros(*shape: int, dtype: str = "<f4") -> np.ndarray:
    return np.zeros(shape, dtype)


def checksum(layers: tuple[Layer, ...]) -> str:
    content = b"".join(part.tobytes() for layer in layers for part in layer)
    return hashlib.sha256(content).hexdigest()


# --- write, then read ---------------------------------------------------------------------------


@pytest.mark.parametrize("widths", [(5, 2), (1, 1), (7, 4, 3), (6, 5, 4, 3, 2)])
def test_what_is_written_is_read(tmp_path, widths):
    head = head_of(*widths)
    saved = save_head(tmp_path / "h.safetensors", head)
    opened = open_head(str(tmp_path / "h.safetensors"))
    assert opened.header == saved.header
    assert opened.classes == head.classes
    assert len(opened.layers) == len(widths) - 1
    for found, written in zip(opened.layers, head.layers, strict=True):
        assert [part.tobytes() for part in found] == [part.tobytes() for part in written]
        assert [part.dtype for part in found] == [np.float32, np.float32]


def test_every_finite_bit_pattern_survives(tmp_path):
    head = head_of(3, 2)
    odd = np.array([[0x7F7FFFFF, 0xFF7FFFFF, 0x80000000], [1, 0x007FFFFF, 0]], np.uint32)
    head = replace(head, layers=((odd.view(np.float32), head.layers[0][1]),))
    save_head(tmp_path / "h", head)
    assert open_head(tmp_path / "h").layers[0][0].tobytes() == odd.tobytes()


def test_other_layouts_and_types_are_stored_as_float32(tmp_path):
    head = head_of(4, 3)
    weight = np.asfortranarray(head.layers[0][0].astype(np.float64))
    save_head(tmp_path / "h", replace(head, layers=((weight, head.layers[0][1]),)))
    assert np.array_equal(open_head(tmp_path / "h").layers[0][0], head.layers[0][0])


def test_anyone_can_read_it(tmp_path):
    head = head_of(6, 4, 3)
    save_head(tmp_path / "h.safetensors", head)
    tensors = safetensors.numpy.load_file(tmp_path / "h.safetensors")
    assert set(tensors) == {
        "layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias",
    }  # fmt: skip
    assert np.array_equal(tensors["layers.1.weight"], head.layers[1][0])
    size = struct.unpack("<Q", (tmp_path / "h.safetensors").read_bytes()[:8])[0]
    raw = json.loads((tmp_path / "h.safetensors").read_bytes()[8 : 8 + size])
    header = json.loads(raw["__metadata__"]["featx"])
    assert (header["kind"], header["classes"]) == ("head", ["class 0", "class 1", "class 2"])
    assert header["details"]["choice"] == {"head": "linear", "solver": "lbfgs"}


def test_equal_heads_give_equal_bytes(tmp_path):
    for name in ("a", "b"):
        save_head(tmp_path / name, head_of(50, 20, 10))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    save_head(tmp_path / "b", open_head(tmp_path / "a"), overwrite=True)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_overwrite_rule(tmp_path):
    save_head(tmp_path / "h", head_of(3, 2))
    before = (tmp_path / "h").read_bytes()
    with pytest.raises(ArtifactExists):
        save_head(tmp_path / "h", head_of(3, 2, seed=1))
    assert (tmp_path / "h").read_bytes() == before
    save_head(tmp_path / "h", head_of(3, 2, seed=1), overwrite=True)
    assert (tmp_path / "h").read_bytes() != before
    assert os.listdir(tmp_path) == ["h"]


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def fail(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(ArtifactError, match="No space left on device") as caught:
        save_head(tmp_path / "h", head_of(3, 2))
    assert caught.value.path == tmp_path / "h"
    assert os.listdir(tmp_path) == []


# --- applying -----------------------------------------------------------------------------------


def test_logits_are_torchs():
    head = head_of(9, 7, 5, 3)
    modules: list[torch.nn.Module] = []
    for weight, bias in head.layers:
        linear = torch.nn.Linear(*weight.shape[::-1])
        linear.load_state_dict({"weight": torch.tensor(weight), "bias": torch.tensor(bias)})
        modules += [linear, torch.nn.ReLU()]
    features = np.random.default_rng(0).normal(size=(11, 9)).astype(np.float32)
    with torch.inference_mode():
        expected = torch.nn.Sequential(*modules[:-1])(torch.tensor(features)).numpy()
    logits = head.logits(features)
    assert logits.dtype == np.float32
    assert np.allclose(logits, expected, atol=1e-5)
    assert (logits < 0).any()  # no ReLU after the last


def test_applying_leaves_features_alone():
    features = np.random.default_rng(0).normal(size=(4, 9)).astype(np.float32)
    before = features.copy()
    head_of(9, 7, 3).logits(features)
    assert np.array_equal(features, before)
    assert head_of(9, 3).logits(features.astype(np.float16)).dtype == np.float32
    assert head_of(9, 3).logits(features[:0]).shape == (0, 3)


# --- a trained tail ------------------------------------------------------------------------------


def tuned(tail: dict[str, np.ndarray], *widths: int, cut: str = "stage2") -> Head:
    """A head with tensors of the network behind a cut."""
    head = head_of(*(widths or (4, 3)))
    shape = [32, 32, 3] if cut == "input" else [4, 8, 8]
    spec = dict(head.header.spec) | {"cut": cut, "shape": shape}
    return replace(head, header=replace(head.header, spec=spec, schema_version=3), tail=tail)


names = st.from_regex(r"[a-z0-9_]{1,5}(\.[a-z0-9_]{1,5}){0,3}", fullmatch=True)
shapes = st.lists(st.integers(1, 4), max_size=4).map(tuple)


@settings(max_examples=50, deadline=None)
@given(tensors=st.dictionaries(names, shapes, max_size=6), seed=st.integers(0, 99))
def test_a_tail_that_is_written_is_read(tmp_path_factory, tensors, seed):
    random = np.random.default_rng(seed)
    tail = {name: random.normal(size=shape).astype(np.float32) for name, shape in tensors.items()}
    path = tmp_path_factory.mktemp("tail") / "h"
    saved, opened = save_head(path, tuned(tail)), open_head(path)
    assert opened.header == saved.header
    assert opened.tail.keys() == tail.keys()
    for name, value in tail.items():
        assert opened.tail[name].shape == value.shape
        assert opened.tail[name].tobytes() == value.tobytes()
    save_head(path.with_name("again"), opened)
    assert path.read_bytes() == path.with_name("again").read_bytes()


def test_tied_and_transposed_tensors_are_written_and_come_back_equal(tmp_path):
    weight = np.arange(12, dtype=np.float32).reshape(3, 4)
    tail = {"a.weight": weight, "b.weight": weight, "c.weight": weight.T, "d": weight[::2, 1:]}
    tail |= {"e": torch.arange(6.0).view(2, 3).T.numpy(), "f": np.float32(3), "g": weight[:0]}
    save_head(tmp_path / "h", tuned(tail))
    opened = open_head(tmp_path / "h")
    assert opened.cut == "stage2"
    for name, value in tail.items():
        assert np.array_equal(opened.tail[name], value), name
        assert opened.tail[name].shape == np.shape(value), name


def test_a_head_without_a_tail_is_written_as_before(tmp_path):
    head = head_of(5, 2)
    saved = save_head(tmp_path / "h", head)
    assert (saved.header.schema_version, saved.cut, saved.made_by) == (3, None, "train-head")
    assert saved.header.details["sha256"] == checksum(head.layers)
    tensors = {"layers.0.weight": head.layers[0][0], "layers.0.bias": head.layers[0][1]}
    expected = safetensors.numpy.save(tensors, {"featx": saved.header.to_json()})
    assert (tmp_path / "h").read_bytes() == expected


def test_a_head_with_a_cut_is_refused_by_its_version_where_only_older_ones_are_read(tmp_path):
    saved = save_head(tmp_path / "h", tuned({}))
    assert saved.header.schema_version == 4
    assert save_head(tmp_path / "t", tuned({"a": zeros(2)})).made_by == "finetune"


def test_a_tail_without_a_cut_is_neither_written_nor_read(tmp_path):
    head = replace(head_of(4, 3), tail={"a.weight": zeros(2)})
    with pytest.raises(ArtifactInvalid, match=r"not written: it has tensors .* names no cut"):
        save_head(tmp_path / "h", head)
    assert os.listdir(tmp_path) == []
    saved = save_head(tmp_path / "h", head_of(4, 3))
    tensors, header = parts(tmp_path / "h")
    craft(tmp_path / "h", tensors | {"tail.a.weight": zeros(2)}, header)
    refused(tmp_path / "h", "behind a cut, but its header names no cut")
    assert saved.tail == {}


@pytest.mark.parametrize(
    "name", ["", ".", "a..b", ".a", "a.", "../a", "a/b", "a b", "\u00e9", "a\n", "a" * 256, "٣"]
)
def test_names_that_no_state_dict_has(tmp_path, name):
    with pytest.raises(ArtifactInvalid, match="is not a name of a tensor"):
        save_head(tmp_path / "h", tuned({name: zeros(2)}))
    save_head(tmp_path / "h", tuned({}))
    tensors, header = parts(tmp_path / "h")
    craft(tmp_path / "h", tensors | {f"tail.{name}": zeros(2)}, header)
    refused(tmp_path / "h", "is not a name of a tensor")


def test_more_tensors_than_a_network_has(tmp_path):
    tail = dict.fromkeys(map(str, range(2**14 + 1)), zeros(1))
    with pytest.raises(ArtifactInvalid, match="16385 tensors behind the cut; 16384 are the most"):
        save_head(tmp_path / "h", tuned(tail))


def test_a_tail_that_no_reader_would_take_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(head_module, "_MAX_BYTES", head_module._MAX_JSON_BYTES + 2**10)
    with pytest.raises(ArtifactInvalid, match="not written: its tensors have 2108 bytes"):
        save_head(tmp_path / "h", tuned({"a.weight": zeros(2**9)}))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_a_tail_that_diverged_is_neither_written_nor_read(tmp_path, value):
    with pytest.raises(ArtifactInvalid, match=r"not written: 'tail\.a\.b' has weights .* diverged"):
        save_head(tmp_path / "h", tuned({"a.b": np.array([1, value])}))
    save_head(tmp_path / "h", tuned({"a.b": zeros(2)}))
    tensors, header = parts(tmp_path / "h")
    with np.errstate(over="ignore"):
        craft(tmp_path / "h", tensors | {"tail.a.b": np.float32([1, value])}, header)
    with pytest.raises(ArtifactInvalid, match=r"'tail\.a\.b' has weights that are not finite"):
        open_head(tmp_path / "h", verify=False)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors | {"tail.a": tensors["tail.a"] + 1},
        lambda tensors: tensors | {"tail.a": tensors["tail.a"].reshape(2, 1)},
        lambda tensors: tensors | {"tail.a": tensors["tail.b"], "tail.b": tensors["tail.a"]},
        lambda tensors: tensors | {"tail.c": zeros(1)},
        lambda tensors: {name: value for name, value in tensors.items() if name != "tail.b"},
        lambda tensors: {name.replace("tail.b", "tail.c"): v for name, v in tensors.items()},
    ],
    ids=["a value", "a shape", "two swapped", "one more", "one less", "a name"],
)
def test_a_tail_that_was_altered_is_refused(tmp_path, change):
    save_head(tmp_path / "h", tuned({"a": np.float32([1, 2]), "b": np.float32([3, 4])}))
    tensors, header = parts(tmp_path / "h")
    craft(tmp_path / "h", change(tensors), header)
    refused(tmp_path / "h", "do not have the sha256.* Run featx")


def test_a_tensor_of_another_type_or_outside_the_tail(tmp_path):
    save_head(tmp_path / "h", tuned({"a": zeros(2)}))
    tensors, header = parts(tmp_path / "h")
    craft(tmp_path / "h", tensors | {"tail.a": np.zeros(2, np.int64)}, header)
    refused(tmp_path / "h", r"'tail\.a' is I64, expected F32")
    craft(tmp_path / "h", tensors | {"body.a": zeros(2), "body.b": zeros(2)}, header)
    refused(tmp_path / "h", "other tensors than a head's layers")


# --- standardisation ----------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    num_samples=st.integers(2, 30),
    num_features=st.integers(1, 20),
    num_outputs=st.integers(1, 6),
    offset=st.sampled_from([0, 1, 100]),
    spread=st.sampled_from([1e-4, 1, 1e4]),
    seed=st.integers(0, 2**32),
)
def test_folding_keeps_logits(*, num_samples, num_features, num_outputs, offset, spread, seed):
    random = np.random.default_rng(seed)
    features = (random.normal(size=(num_samples, num_features)) + offset) * spread
    features = features.astype(np.float32)
    mean, scale = standardisation(features)
    weight, bias = random.normal(size=(num_outputs, num_features)), random.normal(size=num_outputs)
    expected = ((features - mean) / scale) @ weight.T + bias
    folded = fold_standardisation((weight, bias), mean, scale)
    assert [part.dtype for part in folded] == [np.float32, np.float32]
    size = np.abs(weight / scale)  # each product is rounded, and each of the sums
    bound = np.abs(features) @ size.T + size @ np.abs(mean) + np.abs(bias)
    bound = EPS * (num_features + 4) * bound
    assert (np.abs(apply_layers([folded], features) - expected) <= bound).all()
    exact = features.astype(np.float64) @ folded[0].astype(np.float64).T + folded[1]
    assert (np.abs(exact - expected) <= bound / (num_features + 4) * 2).all()


def test_standardised_features_have_mean_0_and_deviation_1():
    features = np.random.default_rng(0).normal(5, 3, size=(100_000, 4)).astype(np.float32)
    mean, scale = standardisation(features)
    assert (mean.dtype, scale.dtype) == (np.float64, np.float64)
    standardised = (features - mean) / scale
    assert np.allclose(standardised.mean(axis=0), 0, atol=1e-12)
    assert np.allclose(standardised.std(axis=0), 1, atol=1e-4)


@pytest.mark.parametrize("value", [0, 0.1, -7.3, 1e-30, 1e6, 3e38])
def test_a_constant_feature_has_the_usual_scale(value):
    features = np.full((333, 2), value, dtype=np.float32)
    features[:, 1] = np.arange(333)
    mean, scale = standardisation(features)
    assert scale[0] == pytest.approx(scale[1])
    assert scale[1] == pytest.approx(np.arange(333).std())
    assert mean[0] == pytest.approx(np.float32(value))


def test_one_sample_has_scale_1_everywhere():
    assert (standardisation(np.ones((1, 4), np.float32))[1] == 1).all()


def test_a_huge_feature_does_not_make_its_neighbours_constant():
    random = np.random.default_rng(0)
    features = random.normal(size=(50, 2)).astype(np.float32) * np.float32([1, 1e3])
    features[:, 1] += 1e9
    assert standardisation(features)[1][0] == pytest.approx(features[:, 0].std(), rel=0.05)


def test_few_samples_that_agree_in_a_feature_do_not_make_it_count_for_much():
    random = np.random.default_rng(0)
    features = random.normal(size=(3, 50)).astype(np.float32)
    features[:, 0] = 2 + np.float32([0, 1e-6, -1e-6])
    features[:, 1] = [0, 0, 1e-20]
    _, scale = standardisation(features)
    usual = np.median(features.std(axis=0))
    assert (scale > usual / 2).all()
    assert (scale < 3 * usual).all()


def test_samples_that_hardly_differ_at_all_are_not_blown_up():
    features = np.random.default_rng(0).normal(1, 1e-6, size=(3, 50)).astype(np.float32)
    _, scale = standardisation(features)
    assert (scale > 5e-4).all()


def test_many_samples_have_their_own_scale():
    features = np.random.default_rng(0).normal(size=(20_000, 3)) * [0.05, 1, 20]
    _, scale = standardisation(features)
    assert scale == pytest.approx(features.std(axis=0), rel=0.05)


@pytest.mark.parametrize("unit", [1e-9, 1e6])
def test_the_unit_of_all_features_scales_them_alike(unit):
    features = np.random.default_rng(0).normal(2, 3, size=(20, 5))
    mean, scale = standardisation(features)
    own_mean, own_scale = standardisation(features * unit)
    assert own_mean == pytest.approx(mean * unit)
    assert own_scale == pytest.approx(scale * unit)


# --- not a head ---------------------------------------------------------------------------------


def refused(
    path: Path, match: str | None = None, kind: type[ArtifactError] = ArtifactInvalid
) -> None:
    with pytest.raises(kind, match=match) as caught:
        open_head(path)
    assert type(caught.value) is kind
    assert caught.value.path == path
    assert str(path) in str(caught.value)


def craft(
    path: Path, tensors: dict[str, np.ndarray], header: Header | None, **metadata: str
) -> None:
    if header is not None:
        metadata["featx"] = header.to_json()
    path.write_bytes(safetensors.numpy.save(tensors, metadata or None))


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    path = tmp_path / "head.safetensors"
    save_head(path, head_of(6, 4, 3))
    return path


def parts(path: Path) -> tuple[dict[str, np.ndarray], Header]:
    return safetensors.numpy.load_file(path), open_head(path).header


def test_missing_and_folder(tmp_path):
    refused(tmp_path / "h", r"does not exist\. Make it with 'featx train-head'", ArtifactMissing)
    refused(tmp_path, "is not a file")


@pytest.mark.parametrize("content", [b"path,label\n", b"\x89HDF\r\n\x1a\n" + bytes(100), bytes(8)])
def test_other_content(tmp_path, content):
    (tmp_path / "h").write_bytes(content)
    refused(tmp_path / "h", "not a head")


def test_foreign_safetensors(tmp_path, whole):
    tensors, _ = parts(whole)
    craft(whole, tensors, None, format="pt")
    refused(whole, "is a safetensors file, but not a head of featx's")
    craft(whole, tensors, None, featx="no json")
    refused(whole, "no readable featx header")


def test_a_header_of_other_features_kind(whole):
    tensors, header = parts(whole)
    craft(whole, tensors, replace(header, kind="features"))
    refused(whole, "holds cached features, but a head is needed here")


def test_an_altered_header(whole):
    content = whole.read_bytes()
    assert content.count(b"class 1") == 1
    whole.write_bytes(content.replace(b"class 1", b"class 9"))
    refused(whole, "does not match its checksum")


@pytest.mark.parametrize("name", ["layers.0.weight", "layers.0.bias", "layers.1.bias"])
def test_an_altered_tensor(whole, name):
    tensors, header = parts(whole)
    tensors[name].reshape(-1)[0] += 1
    craft(whole, tensors, header)
    refused(whole, "do not have the sha256 they were written with")


@pytest.mark.parametrize("sha256", [None, 7, [], "x"])
def test_a_header_without_the_checksum(whole, sha256):
    tensors, header = parts(whole)
    craft(whole, tensors, replace(header, details=header.details | {"sha256": sha256}))
    refused(whole, "sha256")


def with_layers(whole: Path, *layers: tuple[Any, Any], **changes: Any) -> None:
    """Write other layers into the head, with a right checksum."""
    _, header = parts(whole)
    tensors = {}
    for i, (weight, bias) in enumerate(layers):
        tensors |= {f"layers.{i}.weight": np.asarray(weight), f"layers.{i}.bias": np.asarray(bias)}
    single = tuple(tuple(np.asarray(part, "<f4") for part in layer) for layer in layers)
    details = header.details | {"sha256": checksum(single)}
    header = replace(header, details=details, **changes)  # type: ignore[arg-type]
    craft(whole, tensors, header)


def test_crafted_layers_that_fit_are_read(whole):
    with_layers(whole, (zeros(3, 6), zeros(3)))
    assert len(open_head(whole).layers) == 1


@pytest.mark.parametrize(
    ("layers", "match"),
    [
        ([(zeros(3, 5), zeros(3))], "expected 6 inputs"),
        ([(zeros(4, 6), zeros(4))], "has 4 outputs, but 3 classes"),
        ([(zeros(3, 6), zeros(4))], "layer 0 is"),
        ([(zeros(3, 6), zeros(3, 1))], "layer 0 is"),
        ([(zeros(6), zeros(3))], "layer 0 is"),
        ([(zeros(3, 6, 1), zeros(3))], "layer 0 is"),
        ([(zeros(4, 6), zeros(4)), (zeros(3, 5), zeros(3))], "layer 1 is"),
        ([(zeros(3, 6, dtype="<f8"), zeros(3))], "'layers.0.weight' is F64"),
        ([(zeros(3, 6, dtype="<f2"), zeros(3))], "is F16, expected F32"),
        ([(zeros(3, 6, dtype="<i4"), zeros(3))], "is I32, expected F32"),
        ([(zeros(3, 6), zeros(3, dtype="<f8"))], "'layers.0.bias' is F64"),
        ([(zeros(0, 6), zeros(0)), (zeros(3, 0), zeros(3))], None),
    ],
)
def test_layers_of_another_shape_or_type(whole, layers, match):
    with_layers(whole, *layers)
    if match is None:  # odd, but a head: constant logits
        assert open_head(whole).logits(zeros(2, 6)).shape == (2, 3)
    else:
        refused(whole, match)


@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3", "BOOL", "I64"])
def test_types_numpy_may_not_know(whole, dtype):
    _, header = parts(whole)
    size = {"BF16": 2, "F8_E4M3": 1, "BOOL": 1, "I64": 8}[dtype]
    raw = json.dumps(
        {
            "__metadata__": {"featx": header.to_json()},
            "layers.0.weight": {
                "dtype": dtype, "shape": [3, 6], "data_offsets": [0, 18 * size],
            },
            "layers.0.bias": {
                "dtype": dtype, "shape": [3], "data_offsets": [18 * size, 21 * size],
            },
        }
    ).encode()  # fmt: skip
    raw += b" " * (-len(raw) % 8)
    whole.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(21 * size))
    refused(whole, f"'layers.0.bias' is {dtype}, expected F32")


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors | {"extra": zeros(1)},
        lambda tensors: tensors | {"layers.2.weight": zeros(3, 3)},
        lambda tensors: {name: t for name, t in tensors.items() if name != "layers.1.bias"},
        lambda tensors: {name.replace("layers.1", "layers.2"): t for name, t in tensors.items()},
        lambda tensors: {name.replace("layers.0", "layers.00"): t for name, t in tensors.items()},
        lambda _: {},
        lambda _: {"a": zeros(1), "b": zeros(1)},
        lambda _: {f"layers.{i}.{p}": zeros(1) for i in range(65) for p in ("weight", "bias")},
    ],
    ids=["extra", "half a layer", "one less", "a gap", "00", "none", "others", "65 layers"],
)
def test_other_tensors_than_layers(whole, change):
    tensors, header = parts(whole)
    craft(whole, change(tensors), header)
    refused(whole, "holds other tensors than a head's layers")


def test_more_outputs_than_classes(whole):
    with_layers(whole, (zeros(3, 6), zeros(3)), classes=("a", "b"))
    refused(whole, "has 3 outputs, but 2 classes")


def test_features_without_a_width(whole):
    with_layers(whole, (zeros(3, 6), zeros(3)), spec={"backbone": "tiny"})
    refused(whole, r"spec\.\w+ is missing")


# --- damage -------------------------------------------------------------------------------------


def test_no_byte_can_change_unseen(tmp_path):
    path = tmp_path / "small"
    save_head(path, head_of(2, 2))
    content = path.read_bytes()
    for place in range(len(content)):
        for bit in (place % 8, (place + 5) % 8):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            with pytest.raises(ArtifactInvalid):
                open_head(path)


def test_without_the_check_of_the_checksum(whole):
    tensors, header = parts(whole)
    tensors["layers.0.bias"][0] += 1
    craft(whole, tensors, header)
    refused(whole, "do not have the sha256")
    assert open_head(whole, verify=False).layers[0][1][0] == tensors["layers.0.bias"][0]
    tensors["layers.0.bias"][0] = np.nan
    craft(whole, tensors, header)
    with pytest.raises(ArtifactInvalid, match="not finite"):
        open_head(whole, verify=False)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("part", [0, 1])
def test_weights_that_are_not_finite(whole, value, part):
    layers = [(zeros(4, 6), zeros(4)), (zeros(3, 4), zeros(3))]
    layers[1][part].reshape(-1)[2] = value
    with_layers(whole, *layers)
    refused(whole, "layer 1 has weights that are not finite")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_head_that_diverged_is_not_written(tmp_path, value):
    head = head_of(3, 4, 2)
    head.layers[0][0][1, 1] = value
    with pytest.raises(ArtifactInvalid, match=r"not written: layer 0.*diverged") as caught:
        save_head(tmp_path / "h", head)
    assert caught.value.path == tmp_path / "h"
    assert os.listdir(tmp_path) == []


def test_a_list_of_tensors_that_is_too_long(whole):
    text = b" " * (2 * MAX_HEADER_BYTES + 2**16 + 1)
    whole.write_bytes(struct.pack("<Q", len(text)) + text)
    refused(whole, "list of tensors has 33619969 bytes, over")


def test_the_longest_header_fits(tmp_path):
    quotes = '"' * (MAX_HEADER_BYTES // 2 - 1000)  # which take most room in JSON of JSON
    save_head(tmp_path / "h", head_of(3, 2, padding=quotes))
    assert open_head(tmp_path / "h").header.details["padding"] == quotes


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Change the JSON of a safetensors file."""
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    text = change(content[8 : 8 + size])
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace(b'"__metadata__":{', b'"__metadata__":{"featx":"{}",'),
        lambda text: text.replace(b'"layers.0.bias"', b'"layers.0.bias":{},"layers.0.bias"', 1),
        lambda text: text.replace(b'{"__metadata__"', b'{"__metadata__":{},"__metadata__"', 1),
        lambda text: text.replace(b'"dtype"', b'"dtype":"F64","dtype"', 1),
    ],
    ids=["metadata", "a tensor", "the metadata", "a field"],
)
def test_names_that_occur_twice(whole, change):
    rewrite(whole, change)
    refused(whole, "a name occurs twice")


@pytest.mark.parametrize(
    "text", [b"[]", b"null", b'"featx"', b'{"__metadata__": []}', b'{"__metadata__": {"featx": 1}}']
)
def test_json_that_lists_no_tensors(whole, text):
    rewrite(whole, lambda _: text)
    refused(whole, "not a head")


@pytest.mark.parametrize("entry", [1, None, [], {}, {"dtype": 4}, {"dtype": ["F32"]}])
def test_tensors_that_are_none(whole, entry):
    def change(text: bytes) -> bytes:
        return json.dumps(json.loads(text) | {"layers.1.bias": entry}).encode()

    rewrite(whole, change)
    refused(whole, "expected F32")


@pytest.mark.parametrize(
    "shape",
    [[2**62, 4], [2**63, 0], [2**64], [-3], [3, -1], [1.5], [10**9, 10**9], [3] + [1] * 100, "3"],
    ids=str,
)
def test_shapes_that_cannot_be(whole, shape):
    def change(text: bytes) -> bytes:
        listing = json.loads(text)
        listing["layers.1.bias"]["shape"] = shape
        return json.dumps(listing).encode()

    rewrite(whole, change)
    refused(whole, "is not a head, or is damaged")


@pytest.mark.parametrize(
    "offsets", [[0, 12], [100, 112], [12, 0], [0, 2**63], [4, 16], [-4, 8]], ids=str
)
def test_tensors_that_overlap_leave_holes_or_are_not_there(whole, offsets):
    def change(text: bytes) -> bytes:
        listing = json.loads(text)
        assert listing["layers.1.bias"]["data_offsets"] not in (offsets, [])
        listing["layers.1.bias"]["data_offsets"] = offsets
        return json.dumps(listing).encode()

    rewrite(whole, change)
    refused(whole, "is not a head, or is damaged")


def test_a_file_larger_than_a_head_can_be(tmp_path):
    with (tmp_path / "h").open("wb") as sparse:
        sparse.truncate(2**31 + 1)
    refused(tmp_path / "h", "larger than a head can be")


def test_bytes_after_the_end(whole):
    whole.write_bytes(whole.read_bytes() + b"\0")
    refused(whole)
