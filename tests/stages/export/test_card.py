"""The model card says what the file is, and its programs run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from featx.classifier.contract import Contract
from featx.classifier.session import open_classifier
from featx.heads.samples.selection import FewShot
from featx.images.decode import decode_image
from featx.images.preprocess import PreprocessSpec
from featx.reporting.card import licence, snippets
from featx.stages.export import ExportOptions, export_onnx
from featx.stages.train import train_head
from featx.training.options import TrainOptions

CLIENTS = Path(__file__).parents[2] / "clients"
INPUTS: Any = ("image", "crop", "tensor")
OUTPUTS = ("logits", "probabilities", "features", "top-2")


def code(card: str, language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```$", card, re.MULTILINE | re.DOTALL)
    assert found
    return found[1]


def printed(output: str) -> dict[str, list[float]]:
    lines = [line.split(" ", 1) for line in output.splitlines() if " [" in line]
    return {name: json.loads(values) for name, values in lines}


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photo on its side, which its EXIF orientation says."""
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    rng, exif = np.random.default_rng(2), Image.Exif()
    exif[0x0112] = 6
    small = Image.fromarray(rng.integers(0, 256, (12, 20, 3), dtype=np.uint8))
    small.resize((90, 61), Image.Resampling.BICUBIC).save(path, exif=exif)
    return path


def pixels_of(photo: Path) -> np.ndarray:
    with Image.open(photo) as image:
        return np.asarray(image.transpose(Image.Transpose.ROTATE_270))


@pytest.fixture(params=INPUTS)
def exported(request: pytest.FixtureRequest, trained: Any) -> tuple[Path, str]:
    """A model of each contract and its card."""
    card = trained.folder / "card.md"
    options = ExportOptions(input=request.param, outputs=OUTPUTS, card=card)
    report = export_onnx(trained.head, trained.model, options)
    assert report.card == card
    return trained.model, card.read_text()


def test_the_python_program_gives_what_featx_gives(exported, photo):
    require_program(*exported, photo)


def test_of_a_file_of_one_shape_and_several_images_it_does_too(trained, photo):
    card, (height, width) = trained.folder / "card.md", pixels_of(photo).shape[:2]
    options = ExportOptions(image_shape=(height, width), batch=2, outputs=OUTPUTS, card=card)
    export_onnx(trained.head, trained.model, options)
    require_program(trained.model, card.read_text(), photo)
    assert f"images of {width}×{height} pixels alone" in card.read_text()
    assert "2 of them, one after the other" in code(card.read_text(), "javascript")


def require_program(model: Path, card: str, photo: Path) -> None:
    """Run the Python program of a card, and compare what it prints with what featx answers."""
    program = model.with_name("use.py")
    program.write_text(code(card, "python"))
    done = subprocess.run(
        [sys.executable, "-I", program.name, str(photo)],
        cwd=model.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    classifier = open_classifier(model)
    expected = classifier.run(classifier.prepare(pixels_of(photo))[None])
    found = printed(done.stdout)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values[0], rtol=1e-4, atol=1e-4)
    best = classifier.classes[int(expected["probabilities"].argmax())]
    assert done.stdout.splitlines()[-1] == best
    assert "featx" not in code(card, "python")


def encoded(folder: Path) -> list[Path]:
    """Write small images of all modes that files have."""
    rng = np.random.default_rng(5)
    rgba = rng.integers(0, 256, (18, 31, 4), dtype=np.uint8)
    grey16 = rng.integers(0, 65536, (18, 31)).astype(np.uint16)
    rgb, on_side = Image.fromarray(rgba[..., :3]), Image.Exif()
    on_side[0x0112] = 6
    keyed = rgb.quantize(16)
    images: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "rgb.png": (rgb, {}),
        "rgb.jpg": (rgb, {"exif": on_side}),
        "rgba.png": (Image.fromarray(rgba), {}),
        "rgba on its side.png": (Image.fromarray(rgba), {"exif": on_side}),
        "rgba.webp": (Image.fromarray(rgba), {"lossless": True}),
        "clear.png": (Image.fromarray(np.zeros_like(rgba)), {}),
        "grey and alpha.png": (Image.fromarray(rgba).convert("LA"), {}),
        "grey.png": (rgb.convert("L"), {}),
        "bits.png": (rgb.convert("1"), {}),
        "grey16.png": (Image.fromarray(grey16), {}),
        "grey16 on its side.png": (Image.fromarray(grey16), {"exif": on_side}),
        "grey16.tif": (Image.fromarray(grey16), {}),
        "palette.png": (keyed, {}),
        "palette, one clear.png": (keyed, {"transparency": 3}),
        "palette, some clear.png": (keyed, {"transparency": bytes(range(0, 256, 16))}),
        "one clear.gif": (keyed, {"transparency": 3}),
        "one colour clear.png": (rgb, {"transparency": rgb.getpixel((3, 3))}),
        "one grey clear.png": (rgb.convert("L"), {"transparency": 7}),
        "cmyk.jpg": (rgb.convert("CMYK"), {}),
        "cmyk.tif": (rgb.convert("CMYK"), {}),
        "ycc.tif": (rgb.convert("YCbCr"), {}),
        "rgb.bmp": (rgb, {}),
    }
    for name, (image, settings) in images.items():
        image.save(folder / name, **settings)
    return sorted(folder.iterdir())


@pytest.mark.parametrize("decode", ["full", "scaled"])
@pytest.mark.parametrize("crop", ["center", "none"])
def test_the_python_program_decodes_every_mode_as_featx_does(tmp_path, decode, crop):
    size = {"image_size": 3, "resize": 4 if crop == "center" else 3}
    spec = PreprocessSpec(mean=(0, 0, 0), std=(1, 1, 1), decode=decode, crop=crop, **size)
    program = snippets("m.onnx", Contract(), spec)["Python"]
    start, end = program.index("import json"), program.index("session =")
    names: dict[str, Any] = {}
    exec(compile(program[start:end], "card", "exec"), names)
    for path in encoded(tmp_path):
        expected = decode_image(path.read_bytes(), sample_id=path.name, preprocess=spec)
        found = np.asarray(names["read_rgb"](BytesIO(path.read_bytes())))
        assert (found.shape, found.tobytes()) == (expected.shape, expected.tobytes()), path.name
    for mode, reason in (("I", "32-bit grey"), ("LAB", "CIELab is not read")):
        Image.new(mode, (9, 9)).save(tmp_path / "odd.tif")
        with pytest.raises(SystemExit, match=reason):
            names["read_rgb"](BytesIO((tmp_path / "odd.tif").read_bytes()))


def test_programs_without_a_decoder_say_what_they_take():
    spec = PreprocessSpec(image_size=8, resize=10, mean=(0, 0, 0), std=(1, 1, 1))
    for language in ("JavaScript", "C#"):
        told = [snippets("m.onnx", Contract(each), spec)[language] for each in INPUTS]
        assert "height and width of RGB bytes, row by row: decoded to 8 bits, upright" in told[0]
        assert "8×8 pixels, made as 'Preprocessing' says" in told[1]
        assert "3×8×8 floats" in told[2]


def test_the_javascript_program_gives_what_featx_gives(exported, photo):
    modules = CLIENTS / "node_modules"
    if not (modules / "onnxruntime-web").is_dir():
        pytest.skip("onnxruntime-web is not installed; 'make test' installs it where it can")
    model, card = exported
    (model.parent / "node_modules").symlink_to(modules)
    program = model.with_name("use.mjs")
    program.write_text(code(card, "javascript"))
    classifier = open_classifier(model)
    pixels = pixels_of(photo)
    prepared = classifier.prepare(pixels)
    raw = model.with_name("input.bin")
    raw.write_bytes(np.ascontiguousarray(prepared).tobytes())
    size = map(str, pixels.shape[:2]) if classifier.contract.input == "image" else ()
    done = subprocess.run(
        ["node", program.name, raw.name, *size],
        cwd=model.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    expected, found = classifier.run(prepared[None]), printed(done.stdout)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values[0], rtol=1e-3, atol=1e-3)


def test_the_csharp_program_follows_the_contract(exported):
    """Nothing here runs C#; its names and types are those of the file."""
    model, card = exported
    contract, text = open_classifier(model).contract, code(card, "csharp")
    assert f'CreateFromTensor("{contract.input_name}"' in text
    kind = "float" if contract.input == "tensor" else "byte"
    assert f"DenseTensor<{kind}>" in text
    assert json.dumps(model.name) in text
    assert text.count("{") == text.count("}")
    assert text.count("(") == text.count(")")


def test_the_card_says_what_the_file_is(exported):
    model, card = exported
    header = open_classifier(model).header
    proof = header.details["proof"]
    assert "| ants | " in card
    assert header.details["head_sha256"] in card
    assert header.spec["weights_sha256"] in card
    assert proof["date"] in card
    assert f"{proof['accuracy']['file']:.4f} through the file" in card
    assert f"{header.details['metrics']['val']['top1_low']:.4f}–" in card
    assert "featx's own, MIT" in card


def test_names_of_classes_are_no_markdown(make_trained, photos, tmp_path):
    trained = make_trained(tmp_path, photos({"a|b": 4, "<script>": 4}))
    train_head(trained.features, trained.head, TrainOptions(task="single-label", overwrite=True))
    card = tmp_path / "card.md"
    export_onnx(trained.head, trained.model, ExportOptions(verify=False, card=card))
    text = card.read_text()
    assert r"a\|b" in text
    assert "<script>" not in text.replace(r"\<script", "")
    assert "without comparing it with its head" in text


def test_the_card_says_what_shots_and_groups_did(make_trained, photos, tmp_path):
    folder = photos({"ants": 8, "bees": 8})
    names = sorted(path.relative_to(folder) for path in folder.rglob("*.*"))
    table = folder / "images.csv"
    lines = [f"{name},{name.parts[0]},plant{i // 2}" for i, name in enumerate(names)]
    table.write_text("\n".join(["path,label,group", *lines]))
    trained = make_trained(tmp_path, table, val_fraction=0.25)
    card = tmp_path / "card.md"
    export_onnx(trained.head, trained.model, ExportOptions(card=card))
    assert "8 groups of images that belong together" in card.read_text()
    assert "random draw" not in card.read_text()
    few = TrainOptions(few_shot=FewShot(2, 3), overwrite=True)
    train_head(trained.features, trained.head, few)
    export_onnx(trained.head, trained.model, ExportOptions(card=card))
    assert "2 images of each class, the first of 3 random draws" in card.read_text()


def test_a_card_is_not_written_over_another(trained):
    card = trained.folder / "card.md"
    card.write_text("mine")
    from featx.errors import ArtifactExists

    with pytest.raises(ArtifactExists):
        export_onnx(trained.head, trained.model, ExportOptions(card=card))
    with pytest.raises(ArtifactExists):
        export_onnx(trained.head, trained.model, ExportOptions(card=card, overwrite=True))
    assert card.read_text() == "mine"
    assert not trained.model.exists()


def test_an_edited_card_is_replaced_only_if_asked_to(trained):
    from featx.errors import ArtifactExists

    card, options = trained.folder / "card.md", ExportOptions(verify=False, max_images=1)
    export_onnx(trained.head, trained.model, replace(options, card=card))
    text = card.read_text()
    card.write_text(f"{text}\nTried on the fields of 2024.\n")
    with pytest.raises(ArtifactExists, match=r"was edited.*overwrite=True.*card-2\.md"):
        export_onnx(trained.head, trained.model, replace(options, card=card))
    assert "fields of 2024" in card.read_text()
    report = export_onnx(trained.head, trained.model, replace(options, card=card, overwrite=True))
    assert not report.is_unchanged
    assert card.read_text() == text
    other = replace(options, card=card, opset=19)  # unedited, so it may go
    assert not export_onnx(trained.head, trained.model, other).is_unchanged
    assert card.read_text() != text


@pytest.mark.parametrize(
    ("origin", "match"),
    [("torchvision:IMAGENET1K_V1", "BSD-3-Clause"), ("torchvision:<img>", r"\<img\>"),
     ("bundled", "MIT"), ("random:0", "none"), ("file:/x.pth", "not known")],
)  # fmt: skip
def test_licences(origin, match):
    assert match in licence(origin)


@pytest.mark.parametrize("given", INPUTS)
@pytest.mark.parametrize("crop", ["center", "none"])
def test_python_programs_of_every_geometry_compile(given, crop):
    spec = PreprocessSpec(
        image_size=32, resize=32, crop=crop, mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3)
    )
    for outputs in (("logits",), ("features",), ("top-1",)):
        block = snippets('a "b".onnx', Contract(given, outputs), spec)["Python"]
        compile(code(block, "python"), "card", "exec")
