"""Every solver: what each returns."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from featx.heads.head import Fitted, apply_layers
from featx.heads.samples.data import TrainingData
from featx.heads.solvers.centroid import fit_centroid
from featx.heads.solvers.linear import fit_linear
from featx.heads.solvers.mlp import MLPOptions, fit_mlp
from featx.heads.solvers.ridge import fit_ridge
from featx.heads.solvers.sgd import SGDOptions, fit_sgd
from featx.heads.solvers.with_sklearn import fit_with_sklearn


def samples() -> TrainingData:
    random = np.random.default_rng(0)
    labels = np.arange(90) % 3
    features = (3 * random.normal(size=(3, 6))[labels] + random.normal(size=(90, 6))) * 4 + 9
    return TrainingData(features.astype(np.float32), labels, 3, random.uniform(0.5, 2, 90))


HEADS = {
    "lbfgs": lambda s: fit_linear(s, [0.01, 0.1]),
    "sklearn": lambda s: fit_with_sklearn(s, [0.01, 0.1]),
    "ridge": lambda s: fit_ridge(s, [0.01, 0.1]),
    "centroid": fit_centroid,
    "sgd": lambda s: fit_sgd(s, SGDOptions(epochs=15, batch_size=16)),
    "mlp": lambda s: fit_mlp(s, MLPOptions((8,), learning_rate=0.02, max_epochs=9)),
}


@pytest.mark.parametrize("name", HEADS)
def test_layers_choice_and_what_was_held_out(name: str) -> None:
    data = samples()
    fitted: Fitted = HEADS[name](data)
    logits = apply_layers(fitted.layers, data.features)
    assert logits.shape == (90, 3)
    assert (logits.argmax(axis=1) == data.targets).mean() > 0.8
    assert fitted.choice["solver"] in (name, "adamw")
    assert json.loads(json.dumps(fitted.choice, allow_nan=False)) == fitted.choice
    if name == "sgd":
        assert fitted.held_out is None
    else:
        assert fitted.held_out is not None
        assert fitted.held_out.logits.shape == (len(fitted.held_out.labels), 3)


def test_training_loads_neither_torch_nor_scikit_learn() -> None:
    code = "import sys, featx.stages.train; print({'torch', 'sklearn', 'scipy'} & set(sys.modules))"
    run = [sys.executable, "-c", code]
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout == "set()\n"
