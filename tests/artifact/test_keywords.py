"""Options by keyword: names, nearest names, and what type checkers see."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import math
import re
from contextlib import suppress
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest

import featx
from featx.artifact.keywords import names_of, record_of, require_names
from featx.backbones.spec import BackboneKeywords, BackboneOptions
from featx.errors import ConfigError, FeatxError
from featx.extraction.options import ExtractKeywords, ExtractOptions
from featx.heads.samples.selection import FewShot
from featx.heads.solvers.mlp import MLPOptions
from featx.heads.solvers.sgd import SGDOptions
from featx.stages.check.stage import CheckKeywords, CheckOptions
from featx.stages.export import ExportKeywords, ExportOptions
from featx.stages.report import ReportKeywords, ReportOptions
from featx.training.finetune.options import FinetuneKeywords, FinetuneOptions
from featx.training.options import TrainKeywords, TrainOptions, train_options

ROOT = Path(featx.__file__).parent


@pytest.mark.parametrize(
    ("keywords", "records"),
    [
        (BackboneKeywords, [BackboneOptions]),
        (ExtractKeywords, [ExtractOptions]),
        (TrainKeywords, [TrainOptions, MLPOptions, SGDOptions, FewShot]),
        (FinetuneKeywords, [FinetuneOptions]),
        (ExportKeywords, [ExportOptions]),
        (CheckKeywords, [CheckOptions]),
        (ReportKeywords, [ReportOptions]),
    ],
)
def test_type_checkers_know_every_option_by_its_name(keywords, records):
    assert set(get_type_hints(keywords)) == {name for each in records for name in names_of(each)}


def test_keywords_make_a_record_and_count_before_a_given_one():
    assert record_of(ExtractOptions, None, {"backbone": "tiny"}) == ExtractOptions(backbone="tiny")
    given = ExtractOptions(backbone="tiny", seed=1)
    assert record_of(ExtractOptions, given, {"seed": 2}) == ExtractOptions(backbone="tiny", seed=2)
    with pytest.raises(ConfigError, match="options must be a ExtractOptions; got dict"):
        record_of(ExtractOptions, {"backbone": "tiny"}, {})


def test_an_unknown_name_is_one_sentence_with_the_nearest():
    with pytest.raises(ConfigError, match=r"no option 'bakbone'\. Did you mean 'backbone'"):
        featx.extract("photos", "f.h5", bakbone="tiny")
    with pytest.raises(ConfigError, match=r"no option 'hiden'\. Did you mean 'hidden'"):
        featx.train_head("f.h5", "h.safetensors", head="mlp", hiden=3)
    with pytest.raises(ConfigError, match="There are a, b"):
        require_names(["xyz"], ["b", "a"])


def test_options_of_an_mlp_of_sgd_and_of_draws_go_to_their_records():
    mlp = train_options(None, {"head": "mlp", "hidden": [256, 64], "learning_rate": 0.01})
    assert mlp.mlp == MLPOptions(hidden=(256, 64), learning_rate=0.01)
    assert train_options(None, {"head": "mlp", "hidden": 256}).mlp.hidden == (256,)
    sgd = train_options(None, {"solver": "sgd", "learning_rate": 0.01, "epochs": 3})
    assert sgd.sgd == SGDOptions(learning_rate=0.01, epochs=3)
    assert train_options(None, {"shots": 5}).few_shot == FewShot(5)
    given = TrainOptions(head="mlp", mlp=MLPOptions((7,)))
    assert train_options(given, {"dropout": 0.5}).mlp == MLPOptions((7,), dropout=0.5)
    assert train_options(None, {"strengths": 0.1}).strengths == (0.1,)


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"hidden": 3}, r"hidden=… has no meaning here; it needs head='mlp'\."),
        ({"learning_rate": 0.1}, r"it needs head='mlp' or solver='sgd'\."),
        ({"head": "mlp", "momentum": 0.1}, r"it needs solver='sgd'\."),
        ({"repeats": 3}, r"it needs shots=…\."),
    ],
)
def test_options_of_another_head_are_refused(keywords, said):
    with pytest.raises(ConfigError, match=said):
        train_options(None, keywords)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        ("extract", "backbone"),
        ("train_head", "hidden"),
        ("finetune", "max_epochs"),
        ("export_onnx", "verify"),
        ("check", "verify_content"),
        ("compare", "solver"),
        ("write_report", "map"),
    ],
)
def test_help_and_notebooks_list_the_options(function, name):
    parameter = inspect.signature(getattr(featx, function)).parameters[name]
    assert parameter.kind is parameter.KEYWORD_ONLY


def test_the_whole_way_by_keywords(photos, tmp_path):
    root = photos({"ants": 8, "bees": 8})
    features, head, model = (tmp_path / name for name in ("f.h5", "h.safetensors", "m.onnx"))
    report = featx.extract(root, features, backbone="tiny", report=str(tmp_path / "bad.json"))
    assert report.spec.backbone == "tiny"
    excluded = tmp_path / "out.txt"
    excluded.write_text(featx.open_features(features).sample_ids[-1])
    trained = featx.train_head(
        features, head, head="mlp", hidden=(16,), max_epochs=5, exclude=excluded
    )
    assert trained.head.layers[0][0].shape == (16, 192)
    assert trained.head.header.details["excluded"] == [excluded.read_text()]
    assert featx.export_onnx(head, model, verify=False).proof is None
    assert featx.check(features, root, verify_content=True).is_fresh


# --- errors of the library --------------------------------------------------------------------

FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
ALLOWED = {"--sparse"}  # of tar, which packs the images


def test_errors_and_warnings_of_the_library_name_no_flags_of_commands():
    """The command line turns names of options into flags; Python shows them as they are."""
    wrong = []
    for path in ROOT.rglob("*.py"):
        if path.relative_to(ROOT).parts[0] == "cli":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            is_error = isinstance(node, ast.Raise)
            is_log = isinstance(node, ast.Call) and ast.unparse(node.func).startswith("log.")
            if is_error or is_log:
                texts = [each.value for each in ast.walk(node) if isinstance(each, ast.Constant)]
                flags = {flag for text in map(str, texts) for flag in FLAG.findall(text)}
                wrong += [f"{path.name}:{node.lineno}: {flag}" for flag in flags - ALLOWED]
    assert not wrong


RECORDS = (
    *(ExtractOptions, CheckOptions, ExportOptions, ReportOptions),
    *(TrainOptions, MLPOptions, SGDOptions, FewShot, FinetuneOptions),
)
ODD = (None, "x", -1, 1.5, math.nan, 10**400, True, b"x", [], (), {}, [None], object())


@pytest.mark.parametrize("record", RECORDS)
def test_values_that_an_option_cannot_have_are_errors_of_featx(record):
    needed = {"shots": 1} if record is FewShot else {}
    for field in dataclasses.fields(record):
        for value in ODD:
            with suppress(FeatxError):
                record(**needed | {field.name: value})


@pytest.mark.parametrize(
    ("record", "values", "message"),
    [
        (TrainOptions, {"seed": "1"}, "seed must be a whole number; got '1'"),
        (TrainOptions, {"head": None}, "head must be one of linear, mlp; got None"),
        (TrainOptions, {"calibrate": "no"}, "calibrate must be True or False; got 'no'"),
        (TrainOptions, {"class_weight": 2}, "must be one of balanced or a mapping; got 2"),
        (MLPOptions, {"dropout": ["a"]}, "must be a number or a list, each item a number"),
        (ExtractOptions, {"batch_size": 1.5}, "batch_size must be a whole number; got 1.5"),
        (ExportOptions, {"card": 1}, "card must be a text or a path; got 1"),
    ],
)
def test_a_value_of_another_type_is_one_sentence(record, values, message):
    with pytest.raises(ConfigError, match=message):
        record(**values)


def test_numbers_and_arrays_of_numpy_become_pythons_own():
    options = TrainOptions(strengths=np.float32([0.5, 2]), seed=np.int64(3))
    assert (options.strengths, options.seed) == ((0.5, 2.0), 3)
    assert json.loads(json.dumps([options.strengths, options.seed])) == [[0.5, 2.0], 3]
    assert MLPOptions(hidden=[np.int64(8)]).hidden == (8,)
