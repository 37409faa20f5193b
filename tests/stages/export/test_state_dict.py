"""State dicts: compared before they are written, and nothing else is replaced."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from commands import featx_cli

from featx.backbones import with_head
from featx.backbones.tiny import Tiny
from featx.errors import ArtifactExists, BackboneError, ConfigError, ExportError, SourceError
from featx.features.file import open_features
from featx.heads.head import open_head
from featx.stages.export import ExportOptions, export_state_dict
from featx.stages.train import train_head
from featx.training.options import TrainOptions


def logits_of(path, cache, photos):
    """Return what the model itself answers for images, by hand."""
    from featx.images.preprocess import PreprocessSpec, preprocess

    model = Tiny(num_classes=2)
    model.load_state_dict(torch.load(path, weights_only=True), strict=True)
    spec = PreprocessSpec.from_dict(cache.header.spec["preprocess"])
    crops = np.stack([preprocess(pixels, spec) for pixels in photos]) / np.float32(255)
    images = (crops - np.float32(spec.mean)) / np.float32(spec.std)
    with torch.inference_mode():
        return model.eval()(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()


def test_the_model_gives_the_heads_logits_of_the_images(trained):
    from PIL import Image

    output = trained.folder / "out.pth"
    report = export_state_dict(trained.head, output)
    assert report.num_images == 16
    assert report.max_difference <= 1e-4
    assert report.load == "featx.backbones.tiny.Tiny(num_classes=2)"
    assert report.num_bytes == output.stat().st_size
    cache, head = open_features(trained.features), open_head(trained.head)
    photos = [np.asarray(Image.open(trained.source / name)) for name in cache.sample_ids]
    expected = head.logits(cache.features)
    found = logits_of(output, cache, photos)
    assert np.abs(found - expected).max() <= 1e-3 * np.abs(expected).max()


def test_a_file_that_is_there_is_replaced_only_when_asked(trained):
    output = trained.folder / "out.safetensors"
    output.write_bytes(b"mine")
    with pytest.raises(ArtifactExists):
        export_state_dict(trained.head, output)
    assert output.read_bytes() == b"mine"
    export_state_dict(trained.head, output, ExportOptions(overwrite=True))
    assert output.stat().st_size > 10**6
    with pytest.raises(ConfigError, match="would replace"):
        export_state_dict(
            trained.head, trained.head, ExportOptions(overwrite=True)
        )  # ends in .safetensors as well
    open_head(trained.head)


def test_what_cannot_be_written_is_a_sentence_and_leaves_nothing(trained, monkeypatch):
    output = trained.folder / "out.pth"
    with pytest.raises(ConfigError, match=r"must end in \.pth, \.pt or \.safetensors"):
        export_state_dict(trained.head, trained.folder / "out.bin")
    train_head(trained.features, trained.folder / "mlp.safetensors", TrainOptions(head="mlp"))
    with pytest.raises(ConfigError, match="one last layer, and this head has 2"):
        export_state_dict(trained.folder / "mlp.safetensors", output)
    with pytest.raises(SourceError):
        export_state_dict(trained.head, output, ExportOptions(source=str(trained.folder / "gone")))
    with pytest.raises(BackboneError, match="have sha256"):
        export_state_dict(trained.head, output, ExportOptions(weights="none", verify=False))
    monkeypatch.setattr(with_head, "largest_difference", lambda *_: 2e-4)
    with pytest.raises(ExportError, match=r"gives other logits .* was not written"):
        export_state_dict(trained.head, output)
    assert not output.exists()


def test_on_the_command_line_it_is_written_alone_or_beside_the_model(trained):
    output = trained.folder / "out.pt"
    done = featx_cli("export", trained.head, "--state-dict", output)
    assert done.exit_code == 0, done.output
    assert "state dict" in done.output
    assert "featx.backbones.tiny.Tiny(num_classes=2)" in done.output
    assert output.exists()
    assert not trained.model.exists()
    done = featx_cli("export", trained.head, "--state-dict", output, "--onnx", trained.model)
    assert done.exit_code == 1
    assert "--overwrite" in done.output
    arguments = ("--state-dict", output, "--onnx", trained.model, "--overwrite", "--no-verify")
    done = featx_cli("export", trained.head, *arguments)
    assert done.exit_code == 0, done.output
    assert "random pixels" in done.output
    assert trained.model.exists()
