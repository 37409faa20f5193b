"""Comparing heads: paired with the first one, on the same images only."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from caches import separable, write_cache
from commands import featx_cli

from featx.errors import ArtifactMismatch, ConfigError
from featx.features.file import open_features
from featx.stages.compare import Timing, compare_heads
from featx.stages.train import train_head
from featx.training.finetune.outcome import Comparison
from featx.training.options import TrainOptions

STRONG, WEAK = TrainOptions(strengths=(0.1,)), TrainOptions(strengths=(1e-5,))


@pytest.fixture
def heads(tmp_path: Path) -> tuple[Path, Path]:
    """Two heads of one feature file."""
    cache = write_cache(tmp_path / "features.h5", **separable())
    paths = tmp_path / "weak.safetensors", tmp_path / "strong.safetensors"
    for path, options in zip(paths, (WEAK, STRONG), strict=True):
        train_head(cache, path, options)
    return paths


def test_each_head_is_compared_with_the_first_on_the_same_images(heads, tmp_path):
    report = compare_heads(heads, split="test", timings={heads[0]: Timing(2.0, 3.0)})
    cache = open_features(tmp_path / "features.h5")
    rows = cache.rows("test")
    again = [train_head(cache.path, path, o) for path, o in zip(heads, (WEAK, STRONG), strict=True)]
    right = [
        each.head.logits(cache.features[rows]).argmax(axis=1) == cache.labels[rows]
        for each in again
    ]
    first, second = report.heads
    assert (first.comparison, first.difference) == (None, None)
    assert second.comparison == Comparison.of(*right)
    assert second.difference == pytest.approx(right[1].mean() - right[0].mean())
    assert [head.metrics for head in report.heads] == [each.metrics["test"] for each in again]
    assert (first.cut, first.start, first.num_trained) == ("penultimate", "pretrained", 3 * 7)
    assert (first.timing.total, second.timing.total) == (5.0, None)
    values = json.loads(json.dumps(report.to_dict()))
    assert values["heads"][1]["comparison"]["p_value"] == second.comparison.p_value


def test_heads_of_other_images_are_refused(heads, tmp_path):
    made = separable()
    other = made | {"splits": np.where(np.arange(150) == 6, 0, made["splits"])}
    cache = write_cache(tmp_path / "other.h5", **other)
    train_head(cache, tmp_path / "other.safetensors", STRONG)
    with pytest.raises(ArtifactMismatch, match="has other splits than"):
        compare_heads([*heads, tmp_path / "other.safetensors"])


@pytest.mark.parametrize("chosen", [(0,), (0, 0)])
def test_two_heads_are_needed(heads, chosen):
    with pytest.raises(ConfigError, match="two or more heads, each once"):
        compare_heads([heads[number] for number in chosen])


def test_the_command_fits_eighty_columns(heads):
    result = featx_cli("compare", *heads, "--no-onnx")
    assert result.exit_code == 0, result.output
    assert "difference" in result.stdout
    assert "cost" not in result.stdout  # nothing was measured
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_heads_and_feature_files_are_not_mixed(heads, tmp_path):
    result = featx_cli("compare", *heads, tmp_path / "features.h5", "--no-onnx")
    assert result.exit_code == 1
    assert "features.h5' is not a head" in result.stderr


@pytest.mark.parametrize(
    ("task", "scores"),
    [("single-label", ["log_loss", "ece"]), ("multi-label", ["log_loss", "ece"])],
)
def test_differences_are_those_of_the_scores_and_have_a_test(task, scores, tmp_path):
    made = separable()
    if task == "multi-label":
        made["classes"] = ("a|b", "b", "a|c")
    cache = write_cache(tmp_path / "features.h5", **made)
    paths = tmp_path / "weak.safetensors", tmp_path / "strong.safetensors"
    for path, strength in zip(paths, (1e-5, 0.1), strict=True):
        train_head(cache, path, task=task, strengths=(strength,))
    first, second = compare_heads(paths, split="test").heads
    assert (list(first.differences), list(second.differences)) == ([], scores)
    for name, found in second.differences.items():
        expected = getattr(second.metrics, name) - getattr(first.metrics, name)
        assert found.value == pytest.approx(expected, abs=1e-6)
        assert 0 < found.p_value <= 1
    assert json.loads(json.dumps(second.to_dict()))["differences"].keys() == set(scores)
