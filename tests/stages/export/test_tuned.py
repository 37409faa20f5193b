"""Heads with the network behind a cut: one file that answers what head and cache answer."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from commands import featx_cli
from tuned import write_cut, write_tuned

from featx.backbones import tails, weights
from featx.backbones.graph_cache import graph_path, read_graph
from featx.backbones.spec import BackboneSpec
from featx.backbones.tiny import Tiny
from featx.classifier.session import open_classifier
from featx.classifier.staleness import open_features_of
from featx.classifier.tails import features_through
from featx.errors import ArtifactMismatch, BackboneError
from featx.features.file import open_features
from featx.heads.head import open_head, save_head
from featx.heads.tasks import TASKS, Labels
from featx.heads.tasks.single_label import is_top_class
from featx.stages.check import check
from featx.stages.evaluate import evaluate
from featx.stages.export import ExportOptions, export_onnx, export_state_dict
from featx.stages.export.evidence import open_evidence
from featx.stages.export.stage import float_graph
from featx.stages.finetune import finetune
from featx.stages.predict import Predictor
from featx.stages.report import ReportOptions, write_report
from featx.training.finetune.options import FinetuneOptions
from featx.training.options import TrainOptions


class Tuned:
    """A source, its activations at a cut, and a head with a trained tail, in one folder."""

    def __init__(self, trained, cut, **options):
        self.folder, self.source, self.plain = trained.folder, trained.source, trained.features
        self.features = write_cut(self.folder / f"features-{cut}.h5", self.plain, self.source, cut)
        self.head, self.model = self.folder / "tuned.safetensors", self.folder / "tuned.onnx"
        write_tuned(self.head, self.features, **options)


@pytest.fixture(params=["stage2", "input"])
def tuned(request, trained):
    return Tuned(trained, request.param)


@pytest.fixture
def at_stage3(trained):
    return Tuned(trained, "stage3")


def softmax(logits):
    values = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return values / values.sum(axis=1, keepdims=True)


def test_the_file_answers_what_the_head_answers_on_every_validation_image(tuned):
    report = export_onnx(tuned.head, tuned.model)
    assert report.proof.bound is not None
    assert report.proof.top1_agreement == 1
    assert report.proof.max_difference <= report.proof.bound
    assert report.proof.accuracy.file == report.proof.accuracy.head
    head = open_head(tuned.head)
    evidence = open_evidence(head, tuned.head, ExportOptions())
    rows = evidence.validation()
    classifier, logits = open_classifier(tuned.model), evidence.logits(rows)
    for pixels, expected in zip(evidence.images(rows), logits, strict=True):
        found = classifier.run(classifier.prepare(pixels)[None])
        assert is_top_class(found["logits"].argmax(axis=1), expected[None], 0).all()
        wanted = softmax(expected[None])
        assert np.allclose(found["probabilities"], wanted, atol=0.02)
    assert report.header.spec == head.header.spec
    assert report.header.schema_version == 4


def test_the_network_differs_from_the_weights_own(at_stage3):
    """Else these tests would pass with a tail that nobody used."""
    head = open_head(at_stage3.head)
    cache = open_features(at_stage3.features)
    own = features_through(None, cache).features
    moved = features_through(head, cache).features
    assert np.abs(own - moved).max() > 0.1 * np.abs(own).max()
    graph = float_graph(head, ExportOptions(), print)
    assert graph != float_graph(replace(head, tail={}), ExportOptions(), print)


def test_activations_give_the_features_of_the_whole_network(trained):
    plain = open_features(trained.features).features
    for cut, dtype in [("stage2", "float16"), ("stage2", "float32"), ("input", "uint8")]:
        path = trained.folder / f"{cut}-{dtype}.h5"
        write_cut(path, trained.features, trained.source, cut, dtype=dtype)
        cache = open_features(path)
        with pytest.raises(ArtifactMismatch):
            _ = cache.features
        found = features_through(None, cache).features
        rtol = 2e-3 if dtype == "float16" else 1e-4
        assert np.abs(found - plain).max() <= rtol * np.abs(plain).max()
    assert features_through(None, open_features(trained.features)).through is None


def test_weights_are_opened_only_where_they_are_needed(trained, monkeypatch):
    at_input, behind = Tuned(trained, "input"), write_cut(
        trained.folder / "s.h5", trained.features, trained.source, "stage3"
    )  # fmt: skip
    plain = train_cut_head(trained.folder / "plain.safetensors", behind)
    monkeypatch.setattr(weights, "read_tensors", lambda *_: pytest.fail("the weights were read"))
    export_onnx(at_input.head, at_input.model)
    tail = open_head(at_input.head)
    assert open_features_of(tail, at_input.features, allow_stale=False)[0].features.shape[1] == 192
    cache, _ = open_features_of(plain, behind, allow_stale=False)
    with pytest.raises(pytest.fail.Exception, match="weights were read"):
        _ = cache.features


def train_cut_head(path, features):
    """Write a plain head on the features of the unchanged tail."""
    from featx.heads.head import Head
    from featx.training.fitting import fit_heads
    from featx.training.record import head_header, made_from

    cache = open_features(features)
    found = fit_heads(features_through(None, cache), TrainOptions())[0]
    header = head_header(cache, found, made_from(cache, {}), class_weight=None, more={})
    return save_head(path, Head(header, found.layers))


def test_other_weights_than_the_features_own_are_refused(at_stage3):
    cache = features_through(None, open_features(at_stage3.features), "none")
    with pytest.raises(BackboneError, match="sha256"):
        _ = cache.features
    with pytest.raises(BackboneError, match="sha256"):
        export_onnx(at_stage3.head, at_stage3.model, ExportOptions(weights="none"))
    assert not at_stage3.model.exists()


def test_a_tail_of_another_cut_is_refused_with_numbers(at_stage3):
    head = open_head(at_stage3.head)
    broken = dict(list(head.tail.items())[1:])
    save_head(at_stage3.head, replace(head, tail=broken), overwrite=True)
    for verify in (True, False):
        with pytest.raises(BackboneError, match="4 of 4 fit, and 5 are needed: missing: stage3"):
            export_onnx(at_stage3.head, at_stage3.model, ExportOptions(verify=verify))
    assert not at_stage3.model.exists()


def test_a_plain_head_on_activations_shares_the_graph_of_plain_features(trained):
    features = write_cut(trained.folder / "s.h5", trained.features, trained.source, "stage2")
    head = trained.folder / "plain.safetensors"
    train_cut_head(head, features)
    opened = open_head(head)
    spec = BackboneSpec.from_dict(opened.header.spec)
    assert float_graph(opened, ExportOptions(), print) == read_graph(spec.without_cut)
    report = export_onnx(head, trained.folder / "plain.onnx")
    assert report.proof.top1_agreement == 1
    assert report.proof.max_difference <= report.proof.bound


def test_a_graph_with_a_trained_tail_is_not_cached_as_that_of_the_weights(at_stage3):
    head = open_head(at_stage3.head)
    spec = BackboneSpec.from_dict(head.header.spec)
    paths = [graph_path(each, opset=18) for each in (spec, spec.without_cut)]
    before = [path.exists() and path.read_bytes() for path in paths]  # by other tests
    float_graph(head, ExportOptions(opset=18), print)
    assert [path.exists() and path.read_bytes() for path in paths] == before


def test_batches_of_other_sizes_than_the_traced_one_agree(at_stage3):
    export_onnx(at_stage3.head, at_stage3.model, ExportOptions(input="crop", verify=False))
    classifier, head = open_classifier(at_stage3.model), open_head(at_stage3.head)
    spec = BackboneSpec.from_dict(head.header.spec)
    network = tails.build_tuned(spec, head.tail, weights.open_origin("tiny", "bundled"))
    for count in (1, 3, 64):
        pixels = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8)
        with torch.inference_mode():
            expected = head.logits(network(torch.from_numpy(pixels)).numpy())
        found = classifier.run(pixels)
        assert np.allclose(found["logits"], expected, atol=1e-3)
        assert np.allclose(found["probabilities"], softmax(expected), atol=1e-4)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_other_precisions_and_contracts(at_stage3, precision):
    options = ExportOptions(
        precision=precision, outputs=("logits", "features", "top-2"), max_drop=100
    )
    report = export_onnx(at_stage3.head, at_stage3.model, options)
    assert report.header.details["precision"] == precision
    assert report.proof.accuracy.num_images > 0
    classifier = open_classifier(at_stage3.model)
    found = classifier.run(np.zeros((2, 40, 50, 3), np.uint8))
    assert found["features"].shape == (2, 192)


def test_it_is_exported_again_only_where_something_changed(at_stage3):
    options = ExportOptions(verify=False)
    export_onnx(at_stage3.head, at_stage3.model, options)
    assert export_onnx(at_stage3.head, at_stage3.model, options).is_unchanged
    write_tuned(at_stage3.head, at_stage3.features, strength=0.2)
    again = export_onnx(at_stage3.head, at_stage3.model, options)
    assert not again.is_unchanged
    assert again.replaced.startswith("finetune at stage3, val ")


def test_every_command_takes_the_file_as_it_is(at_stage3):
    folder = at_stage3.folder
    export_onnx(at_stage3.head, at_stage3.model, ExportOptions(card=folder / "card.md"))
    answers = Predictor(at_stage3.model).predict(sorted(at_stage3.source.rglob("*.jpg")))
    assert {answer.label for answer in answers} <= {"ants", "bees"}
    scores = evaluate(at_stage3.model, at_stage3.source).metrics
    recorded = open_head(at_stage3.head).header.details["metrics"]
    assert scores.keys() == recorded.keys()
    assert scores["val"].top1 == recorded["val"]["top1"]
    again = check(at_stage3.model, at_stage3.source)
    assert again.repeated.holds
    assert check(at_stage3.head).is_fresh
    page = write_report(at_stage3.head, folder / "r.html", ReportOptions(map="none"))
    for text in (page.path.read_text(), (folder / "card.md").read_text()):
        assert "stage3" in text
        assert "epoch 2 of 3" in text


def test_info_says_how_it_was_trained(at_stage3):
    done = featx_cli("info", at_stage3.head)
    assert done.exit_code == 0, done.output
    for text in (
        "stage3, 128×8×8",
        "of 688,000 parameters (",
        "epoch 2 of 3",
        "adamw, lr 0.001 (of 2 tried), layer decay 0.9, batch 64",
        "linear, C = ",
        "4 validation images right that the probe has wrong, 1 the other way round (p = 0.38)",
    ):
        assert text in done.output, text
    values = json.loads(featx_cli("info", at_stage3.head, "--json").output)
    assert values["spec"]["cut"] == "stage3"
    assert values["details"]["choice"]["best_epoch"] == 2


def test_a_state_dict_gives_the_tuned_logits(at_stage3):
    output = at_stage3.folder / "out.pth"
    report = export_state_dict(at_stage3.head, output)
    assert report.max_difference <= 1e-4
    model = Tiny(num_classes=2)
    state = torch.load(output, weights_only=True)
    model.load_state_dict(state, strict=True)
    head = open_head(at_stage3.head)
    for name, value in head.tail.items():
        assert np.array_equal(state[name].numpy(), value)
    evidence = open_evidence(head, at_stage3.head, ExportOptions())
    rows = evidence.validation()
    spec = evidence.preprocess
    pixels = np.concatenate(list(evidence.crops(rows))) / np.float32(255)
    images = torch.from_numpy((pixels - np.float32(spec.mean)) / np.float32(spec.std))
    with torch.inference_mode():
        found = model.eval()(images.permute(0, 3, 1, 2)).numpy()
    expected = evidence.logits(rows)  # of activations that were stored as float16
    assert np.abs(found - expected).max() <= 2e-3 * np.abs(expected).max()


@pytest.mark.parametrize("cut", ["stage3", "input"])
def test_the_scores_of_a_fine_tuning_are_those_of_the_head_that_it_wrote(trained, cut):
    path, output = trained.folder / "f-cut.h5", trained.folder / "t.safetensors"
    write_cut(path, trained.features, trained.source, cut)
    recorded = finetune(path, output, FinetuneOptions(max_epochs=1, lr=1e-3)).metrics
    head = open_head(output)
    cache, _ = open_features_of(head, path, allow_stale=False)
    labels = Labels(cache.classes, cache.labels, cache.sample_ids, str(path))
    task = TASKS["single-label"]
    values = task.read(labels, names=head.classes).values
    found = task.measure_splits(head.logits(cache.features), values, cache.splits)
    for split, scores in recorded.items():
        assert found[split].log_loss == pytest.approx(scores.log_loss, rel=1e-4)
