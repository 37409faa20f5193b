from __future__ import annotations

import pytest

from featx.classifier.contract import Contract
from featx.classifier.runtimes import RUNTIMES, newest_opset, require_fit
from featx.errors import ConfigError


@pytest.mark.parametrize(
    ("runtime", "opset"),
    [
        *(("onnxruntime==1.15", 18), ("onnxruntime==1.15.1", 18), ("onnxruntime==1.16", 19)),
        *(("onnxruntime==1.17", 20), ("onnxruntime==1.31", 20), ("onnxruntime", 20)),
        *(("onnxruntime-web==1.16", 19), ("onnxruntime==2.0", 20), ("tract", 20)),
    ],
)
def test_the_opset_is_the_newest_that_the_runtime_reads(runtime, opset):
    assert newest_opset(runtime) == opset


@pytest.mark.parametrize(
    ("runtime", "match"),
    [
        ("onnxruntime==1.14", "needs? version 1.15 or newer"),
        ("onnxruntime==0.9", "too old"),
        ("tensorrt", "runtime must be onnxruntime.*got 'tensorrt'"),
        ("onnxruntime>=1.17", "runtime must be"),
        ("tract==0.23", "runtime must be"),
        ("", "runtime must be"),
    ],
)
def test_what_is_unknown_or_too_old_is_refused_with_what_there_is(runtime, match):
    with pytest.raises(ConfigError, match=match):
        newest_opset(runtime)


@pytest.mark.parametrize("runtime", [name for name, own in RUNTIMES.items() if own.fixed_images])
def test_whole_images_need_one_shape_where_the_runtime_resizes_otherwise(runtime):
    with pytest.raises(ConfigError, match="image_shape=…"):
        require_fit(runtime, Contract(), opset=None)
    require_fit(runtime, Contract(image_shape=(48, 64)), opset=None)
    require_fit(runtime, Contract("crop"), opset=None)
    require_fit(runtime, Contract("tensor"), opset=None)


def test_a_newer_opset_than_the_runtime_reads_is_refused():
    with pytest.raises(ConfigError, match="reads opset 18 at most; opset=20"):
        require_fit("onnxruntime==1.15", Contract(), opset=20)
    require_fit("onnxruntime==1.15", Contract(), opset=18)
