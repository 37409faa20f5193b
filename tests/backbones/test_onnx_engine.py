"""Products of uint8 and int8 are exact on every processor, at the full speed of those that can."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from featx.backbones import engines as module
from featx.backbones.engines import session_options

WIDER = "session.x64quantprecision"


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    module._sums_are_exact.cache_clear()
    yield
    module._sums_are_exact.cache_clear()


def has_wider_products(options: ort.SessionOptions) -> bool:
    return "1" in options.get_session_config_entry(WIDER) if _is_set(options) else False


def _is_set(options: ort.SessionOptions) -> bool:
    try:
        options.get_session_config_entry(WIDER)
    except RuntimeError:
        return False
    return True


def matrix(name: str, kind: int) -> object:
    return helper.make_tensor_value_info(name, kind, [None, None])


def test_the_product_is_what_onnx_writes():
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["a", "b"], ["c"])],
        "g",
        [matrix("a", TensorProto.UINT8), matrix("b", TensorProto.INT8)],
        [matrix("c", TensorProto.INT32)],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8, producer_name=""
    )
    assert model.SerializeToString(deterministic=True) == module._PRODUCT


@pytest.mark.parametrize(("sums_are_exact", "wider"), [(True, False), (False, True)])
def test_products_are_wider_only_where_sums_overflow(sums_are_exact, wider, monkeypatch):
    class Processor:
        """Adds pairs of products in 16 bits, as x86 does without VNNI, or as it should."""

        def __init__(self, *_: object, **__: object) -> None:
            pass

        def run(self, _: None, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            left, right = (inputs[name].astype(np.int64) for name in "ab")
            pairs = [left[:, i : i + 2] @ right[i : i + 2] for i in range(0, left.shape[1], 2)]
            limit = 2**31 if sums_are_exact else 2**15
            return [np.sum([np.clip(pair, -limit, limit - 1) for pair in pairs], axis=0)]

    monkeypatch.setattr(ort, "InferenceSession", Processor)
    assert has_wider_products(session_options(threads=1)) == wider


def test_what_is_set_gives_exact_sums_here():
    session = ort.InferenceSession(
        module._PRODUCT, session_options(threads=1), providers=["CPUExecutionProvider"]
    )
    rng = np.random.default_rng(0)
    for _ in range(20):
        rows, depth, columns = rng.integers(1, 130, 3)
        a = rng.integers(200, 256, (rows, depth), np.uint8)
        b = rng.choice(np.array([-128, -127, 127], np.int8), (depth, columns))
        (found,) = session.run(None, {"a": a, "b": b})
        assert (found == a.astype(np.int64) @ b.astype(np.int64)).all()


def test_threads_and_silence():
    options = session_options(threads=3)
    assert (options.intra_op_num_threads, options.log_severity_level) == (3, 4)
