"""What an audit says of classes as a whole, each with its name and its number of images."""

from __future__ import annotations

import numpy as np
import pytest
from caches import write_cache
from commands import featx_cli

from featx.stages.audit import audit, write_audit_page


def test_classes_that_cannot_be_told_apart_are_named_with_their_sizes(tmp_path):
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [50, 40, 30])
    features = random.normal(size=(120, 8)).astype(np.float32)
    features[:50] += 6  # the ants; bees and wasps look alike
    path = write_cache(tmp_path / "f.h5", features, labels, np.zeros(120, np.uint8))
    report = audit(path)
    (pair,) = report.alike
    assert pair[:4] == ("bee", "wasp", 40, 30)
    assert 0.3 < pair.accuracy < 0.7
    assert "bee (40) / wasp (30)" in featx_cli("audit", path, "--no-html", "-q").output
    page = write_audit_page(report, tmp_path / "audit.html")
    assert "bee (40) and wasp (30)" in page.read_text()


def test_the_curve_rises_with_more_images_and_names_the_class_that_lacks_them(tmp_path):
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [100, 100, 100])
    features = random.normal(size=(300, 40))
    features[:100, 0] += 12  # ants are known from a few
    features[100:200, 1:25] += 0.9  # bees and wasps from many
    path = write_cache(
        tmp_path / "f.h5", features.astype(np.float32), labels, np.zeros(300, np.uint8)
    )
    report = audit(path)
    assert [point.num_images for point in report.curve] == sorted(
        point.num_images for point in report.curve
    )
    assert report.curve[-1].num_images == pytest.approx(0.8 * 300, abs=2)
    assert report.curve[-1].accuracy > report.curve[0].accuracy + 0.05
    assert {gain.name for gain in report.gains} <= {"bee", "wasp"}
    assert all(gain.num_images == 100 and 0 < gain.gain <= 1 for gain in report.gains)
    line = featx_cli("audit", path, "--no-html", "-q").output
    assert f"240: {report.curve[-1].accuracy:.1%}" in " ".join(line.split())


def test_leaks_are_worth_what_the_copies_add_to_the_score(tmp_path):
    random = np.random.default_rng(0)
    labels = np.tile(np.arange(3), 60)
    splits = np.repeat(np.array([0, 1], np.uint8), 90)
    features = random.normal(size=(180, 400)).astype(np.float32)  # noise, learnt by heart
    contents = np.arange(180) + 1
    features[90:135], contents[90:135] = features[:45], contents[:45]
    path = write_cache(tmp_path / "f.h5", features, labels, splits, contents=contents)
    (worth,) = audit(path).leaks
    assert worth[:3] == ("val", 90, 45)
    right = [worth.accuracy * 90, worth.accuracy_without * 45]
    assert right == pytest.approx(np.round(right))
    assert worth.accuracy_without < 0.55 < worth.accuracy
