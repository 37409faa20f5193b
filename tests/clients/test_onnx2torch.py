"""onnx2torch: refuses what featx writes, since it knows no operators of opset 18."""

from __future__ import annotations

import pytest

onnx2torch = pytest.importorskip(
    "onnx2torch", reason="needs onnx2torch: pip install 'featx[dev]'", exc_type=ImportError
)


@pytest.mark.parametrize("source", ["image", "crop", "tensor"])
def test_it_says_which_operator_it_lacks(export, source):
    with pytest.raises(NotImplementedError, match="Converter is not implemented"):
        onnx2torch.convert(str(export(source, "logits")))
