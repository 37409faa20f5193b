"""READMEs of the hub: metadata that reads back the same, and what tells an edited one."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from headers import complete_header

from featx.artifact import Header
from featx.reporting.hub_card import model_metadata, yaml_text

STRANGE = (
    "no",
    "null",
    "1.0",
    "a: b",
    "1e3",
    "0o17",
    "- x",
    "# y",
    '"q"',
    "\u2028\x85\x07",
    "蜂🐝",
    "",
)


@pytest.mark.parametrize("text", STRANGE)
def test_strings_read_back_as_strings(text):
    metadata = {"tags": [text, text], "model-index": [{"name": text, "results": []}], "a": text}
    assert yaml.safe_load(yaml_text(metadata)) == metadata


def test_numbers_and_nested_values_read_back():
    value = {"a": [{"b": {"c": 0.25, "d": [1, True]}, "e": 1e-7}, {"f": 1e22}], "g": []}
    assert yaml.safe_load(yaml_text(value)) == value


def header(**details: Any) -> Header:
    return complete_header("classifier", classes=("no", "null"), details=details)


def test_no_value_is_null_and_a_licence_that_nobody_knows_is_named():
    found = model_metadata(
        header(licence="Foo Licence 2, https://x.org/l", metrics={}), "me/a", None
    )
    assert found["license"] == "other"
    assert found["license_name"] == "foo-licence-2"
    assert found["license_link"] == "https://x.org/l"
    assert found["classes"] == ["no", "null"]
    assert "model-index" not in found
    assert "null" not in yaml_text(found | {"classes": []})
    plain = model_metadata(header(licence=None, metrics={}), "me/a", None)
    assert "license" not in plain
    assert model_metadata(header(licence="MIT"), "me/a", None)["license"] == "mit"
    assert model_metadata(header(licence="MIT"), "me/a", "gpl-3.0")["license"] == "gpl-3.0"


def test_metrics_that_are_not_measured_are_left_out():
    scores = {"top1": 0.5, "balanced_accuracy": None, "macro_f1": float("nan")}
    found = model_metadata(header(metrics={"val": scores, "train": scores}), "me/bees", None)
    (result,) = found["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "accuracy", "name": "accuracy", "value": 0.5}]
    assert found["model-index"][0]["name"] == "bees"


def test_weights_of_the_hub_are_the_base_model():
    found = model_metadata(header(weights="timm:vit_small_patch14_dinov2.lvd142m"), "me/a", None)
    assert found["base_model"] == "timm/vit_small_patch14_dinov2.lvd142m"
    assert "base_model" not in model_metadata(header(weights="bundled"), "me/a", None)


@pytest.mark.parametrize(
    ("task", "scores", "kinds"),
    [
        ("multi-label", {"mean_average_precision": None, "micro_f1": 0.5, "macro_f1": 0.25}, 2),
        ("regression", {"mae": 1e-7, "rmse": 1e22, "r2": None}, 2),
    ],
)
def test_tags_and_numbers_have_scores_of_their_own(task, scores, kinds):
    found = model_metadata(header(task=task, metrics={"test": scores}), "me/a", None)
    (result,) = found["model-index"][0]["results"]
    assert len(result["metrics"]) == kinds
    assert result["dataset"]["split"] == "test"
    assert ("pipeline_tag" in found) == ("classes" in found) == (task == "multi-label")
    assert yaml.safe_load(yaml_text(found)) == found
