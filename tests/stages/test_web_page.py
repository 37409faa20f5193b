"""The page that runs a model in the browser: the answers of predict, without the network."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path

import pytest
from chromium import CHROMIUM, in_chromium
from commands import featx_cli
from PIL import Image
from web_pages import answers, chain, draw, require_equal, served

from featx.errors import ArtifactExists, ArtifactInvalid, ConfigError
from featx.reporting import classify
from featx.stages.export import ExportOptions, export_onnx
from featx.stages.web_page import write_web_page

WEB = Path(classify.__file__).parent / "web"
needs_runtime = pytest.mark.skipif(
    not (WEB / "ort.wasm").exists(), reason="onnxruntime-web is not here; make web fetches it"
)
needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="Chromium is not installed; make system installs it"
)
pytestmark = needs_runtime
NASTY = "<b>bees</b></script><!--\u202e" + 200 * "w"  # turned round from there on, and long


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    folder = tmp_path_factory.mktemp("page")
    paths = draw(folder)
    names = ("ants", NASTY)
    lines = [f'{path.name},"{names[number % 2]}"' for number, path in enumerate(paths)]
    return chain(folder, "\n".join(["path,label", *lines])), paths


@needs_browser
def test_one_file_from_disk_answers_as_predict_and_asks_for_nothing(made, tmp_path):
    model, paths = made
    page = write_web_page(model, tmp_path / "my page.html", single_file=True)
    answer = answers(page.path.as_uri(), paths, width=360)
    assert answer["state"] == "Ready."
    require_equal(answer["found"], model, paths)
    assert NASTY in answer["shown"]
    assert answer["fits"]
    asked = [each for each in answer["requests"] if not each.startswith(("data:", "blob:"))]
    assert asked == [page.path.as_uri()]
    assert not answer["errors"]


@needs_browser
def test_a_served_folder_answers_as_predict_and_asks_its_own_server_alone(made, tmp_path):
    model, paths = made
    write_web_page(model, tmp_path / "sub folder" / "page")
    with served(tmp_path) as root:
        address = f"{root}/sub%20folder/page/"
        answer = answers(address, paths)
    require_equal(answer["found"], model, paths)
    asked = [each for each in answer["requests"] if not each.startswith(("data:", "blob:"))]
    assert asked == [address, f"{address}ort.wasm", f"{address}model.onnx"]
    assert not answer["errors"]


@needs_browser
def test_each_orientation_of_exif_and_transparency_are_predicts(made, tmp_path):
    model, paths = made
    tried = []
    with Image.open(paths[1]) as photo:
        for orientation in range(1, 9):
            exif = Image.Exif()
            exif[0x0112] = orientation
            tried.append(tmp_path / f"o{orientation}.jpg")
            photo.convert("RGB").save(tried[-1], exif=exif, quality=95)
        for alpha in (1, 128, 255):
            tried.append(tmp_path / f"a{alpha}.png")
            layer = photo.convert("RGB")
            layer.putalpha(alpha)
            layer.save(tried[-1])
    page = write_web_page(model, tmp_path / "p.html", single_file=True)
    require_equal(answers(page.path.as_uri(), tried)["found"], model, tried)


@needs_browser
def test_what_is_no_picture_is_said_and_the_page_stays_usable(made, tmp_path):
    model, paths = made
    page = write_web_page(model, tmp_path / "p.html", single_file=True)
    good = base64.b64encode(paths[0].read_bytes()).decode()

    async def use(tab):
        await tab.wait_for("document.getElementById('state')?.textContent === 'Ready.'")
        said = []
        for content, kind in (
            ("", ""),
            ("%PDF-1.7", "application/pdf"),
            ("<svg/>", "image/svg+xml"),
        ):
            said.append(
                await tab.run(
                    f"featx.predict(new File([{json.dumps(content)}], 'f', {{type: '{kind}'}}))"
                    ".catch((error) => error.message)"
                )
            )
        again = await tab.run(
            "featx.predict(new Blob([Uint8Array.from(atob("
            f"{json.dumps(good)}), (c) => c.charCodeAt(0))]))"
        )
        return said, again

    said, again = in_chromium(page.path.as_uri(), use)
    assert [text.split()[0] for text in said] == ["This", "This", "SVG"]
    require_equal({paths[0].name: again}, model, paths[:1])


def test_nothing_of_the_page_leads_elsewhere(made, tmp_path):
    model, _ = made
    page = write_web_page(model, tmp_path / "page").path.read_text("utf-8")
    own = page[: page.index('<script type="module">')]
    assert "http" not in own.replace("http-equiv", "")
    assert "connect-src 'self'" in own
    single = write_web_page(model, tmp_path / "p.html", single_file=True).path.read_text("utf-8")
    assert "connect-src 'none'" in single
    assert single.count("</script") == 4
    assert NASTY not in single


def test_the_same_model_gives_the_same_page_and_replaces_an_earlier_one(made, tmp_path):
    model, _ = made
    for output, single in ((tmp_path / "p.html", True), (tmp_path / "page", False)):
        first = write_web_page(model, output, single_file=single)
        content = first.path.read_bytes()
        assert write_web_page(model, output, single_file=single) == first
        assert first.path.read_bytes() == content


def test_what_featx_did_not_write_is_left_as_it_is(made, tmp_path):
    model, _ = made
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "index.html").write_text("mine")
    (tmp_path / "mine.html").write_text("mine")
    with pytest.raises(ArtifactExists):
        write_web_page(model, tmp_path / "mine")
    with pytest.raises(ArtifactExists):
        write_web_page(model, tmp_path / "mine.html", single_file=True)
    assert (tmp_path / "mine.html").read_text() == "mine"
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["index.html"]


def test_a_file_that_is_too_large_is_refused_with_the_reason(made, tmp_path, monkeypatch):
    monkeypatch.setattr("featx.stages.web_page._MAX_SINGLE", 1_000_000)
    with pytest.raises(ConfigError, match="browsers on phones fail"):
        write_web_page(made[0], tmp_path / "p.html", single_file=True)
    assert not (tmp_path / "p.html").exists()


def test_models_that_take_or_give_something_else_are_refused(made, tmp_path):
    head = made[0].with_name("h.safetensors")
    for change, match in (
        ({"input": "crop"}, "takes 'crop'"),
        ({"outputs": ("features",)}, "probabilities or logits"),
    ):
        export_onnx(head, tmp_path / "other.onnx", ExportOptions(**change))
        with pytest.raises(ConfigError, match=match):
            write_web_page(tmp_path / "other.onnx", tmp_path / "page")
        assert not (tmp_path / "page").exists()


def test_an_altered_model_is_refused(made, tmp_path):
    content = bytearray(made[0].read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "altered.onnx").write_bytes(content)
    with pytest.raises(ArtifactInvalid):
        write_web_page(tmp_path / "altered.onnx", tmp_path / "page")


def test_without_the_runtime_a_sentence_says_what_to_do(made, tmp_path, monkeypatch):
    monkeypatch.setattr(classify.resources, "files", lambda _: tmp_path)
    with pytest.raises(ConfigError, match="make web"):
        write_web_page(made[0], tmp_path / "page")


def test_the_command(made, tmp_path):
    model = Path(shutil.copy(made[0], tmp_path / "model.onnx"))
    result = featx_cli("page", model, "--single-file")
    assert result.exit_code == 0, result.output
    assert "double click" in result.output
    assert (tmp_path / "page.html").is_file()
    result = featx_cli("page", model)
    assert "http.server" in result.output
    assert sorted(path.name for path in (tmp_path / "page").iterdir()) == [
        *("index.html", "model.onnx", "ort.wasm")
    ]
