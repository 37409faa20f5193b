"""Models that are sent to a hub on this machine: what goes out, and what never does."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import yaml
from commands import featx_cli
from hub_server import hub_on_this_machine
from PIL import Image

import featx
from featx.errors import ArtifactInvalid, ConfigError, HubError
from featx.extraction.options import ExtractOptions
from featx.reporting import classify
from featx.stages.export import ExportOptions, export_onnx
from featx.stages.extract import extract
from featx.stages.predict import Predictor
from featx.stages.push import prepare_push, push
from featx.stages.train import train_head

pytest.importorskip("huggingface_hub")
# of huggingface_hub, which uploads by an argument that its HTTP library has renamed
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
TOKEN = "hf_PlantedTokenPlantedTokenPlanted"
HOME, HOST = "/home/planted-user", "planted-host.example.org"
IMAGE = "planted-image"
needs_runtime = pytest.mark.skipif(
    not (Path(classify.__file__).parent / "web" / "ort.wasm").exists(),
    reason="onnxruntime-web is not here; make web fetches it",
)


def chain(folder: Path, *classes: str) -> Path:
    """Return the head of a table of images; folder, root and images have names of their own."""
    for number in range(16):
        name = folder / "secret-folder" / f"{IMAGE}-{number}.png"
        name.parent.mkdir(exist_ok=True)
        Image.effect_noise((40 + number, 36), 40 + 150 * (number % 2)).convert("RGB").save(name)
    lines = [f'{IMAGE}-{n}.png,"{classes[n % len(classes)]}"' for n in range(16)]
    (folder / "table.csv").write_text("\n".join(["path,label", *lines]))
    source = f"{folder / 'table.csv'}?root={folder / 'secret-folder'}"
    extract(source, folder / "f.h5", ExtractOptions(backbone="tiny", val_fraction=0.25))
    train_head(folder / "f.h5", folder / "h.safetensors")
    return folder / "h.safetensors"


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chain(tmp_path_factory.mktemp("secret-place"), "no", "a: b")


@pytest.fixture(scope="module")
def model(head: Path) -> Path:
    export_onnx(head, head.parent / "model.onnx")
    return head.parent / "model.onnx"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield from hub_on_this_machine(monkeypatch, tmp_path)


def front(readme: bytes) -> dict:
    return yaml.safe_load(readme.decode().split("---\n")[1])


def test_a_model_is_sent_with_its_card_and_read_back(hub, model):
    report = push(model, "me/bees")
    repo = hub.repos["model", "me/bees"]
    assert repo.private
    assert set(repo.files) == {"README.md", "model.onnx", ".gitattributes"}
    assert repo.files["model.onnx"] == model.read_bytes()
    metadata = front(repo.files["README.md"])
    assert metadata["classes"] == ["a: b", "no"]
    assert metadata["pipeline_tag"] == "image-classification"
    assert metadata["license"] == "mit"
    accuracy = metadata["model-index"][0]["results"][0]["metrics"][0]
    assert accuracy["type"] == "accuracy"
    assert 0 <= accuracy["value"] <= 1
    card = repo.files["README.md"].decode()
    assert "featx predict hf:me/bees photo.jpg" in card
    assert report.seal == model.read_bytes()[-64:].decode()
    assert Predictor(f"hf:me/bees@{report.commit}#{report.seal}").classes == ("a: b", "no")
    assert not report.is_unchanged
    assert push(model, "me/bees").is_unchanged
    assert featx.push is push


def test_nothing_private_is_in_what_the_hub_gets(hub, head, monkeypatch):
    monkeypatch.setenv("HOME", HOME)
    monkeypatch.setenv("SECRET_OF_THE_ENVIRONMENT", TOKEN)
    monkeypatch.setattr(socket, "gethostname", lambda: HOST)
    monkeypatch.chdir(head.parent)
    export_onnx(Path(head.name), Path("again.onnx"))
    has_page = (Path(classify.__file__).parent / "web" / "ort.wasm").exists()
    push(head.parent / "again.onnx", "me/bees", space=has_page)
    sent = hub.received + b"".join(hub.uploads.values())
    assert len(sent) > 100_000
    folder = head.parent
    planted = [TOKEN, HOME, HOST, IMAGE, "secret-folder", "secret-place", str(folder)]
    planted += [str(Path.cwd()), "planted-user"]
    planted += [text.replace("/", "%2F") for text in planted if "/" in text]
    assert [text for text in planted if text.encode() in sent] == []


def test_a_model_with_names_or_folders_is_refused(hub, head):
    named = head.parent / "named.onnx"
    export_onnx(head, named, ExportOptions(with_names=True))
    result = featx_cli("push", named, "me/bees", "--yes")
    assert result.exit_code == 1
    assert "holds names of images or of folders, as --with-names writes" in result.stderr
    assert not hub.asked


def test_the_token_and_the_home_folder_are_looked_for_in_what_is_sent(hub, model, monkeypatch):
    text = "An image classifier"
    for name in ("HF_TOKEN", "HOME"):
        with monkeypatch.context() as now:
            now.setenv(name, text)
            with pytest.raises(HubError, match=r"'README.md' would hold the (token|home folder)"):
                prepare_push(model, "me/bees")
    assert not hub.asked


def test_an_altered_model_is_refused(hub, model, tmp_path):
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ArtifactInvalid, match="altered after export"):
        push(tmp_path / "m.onnx", "me/bees")
    assert not hub.asked


def test_what_is_sent_is_shown_first_and_scripts_say_yes(hub, model):
    result = featx_cli("push", model, "me/bees")
    assert result.exit_code == 2
    assert "Nothing was sent. Give --yes" in result.stderr
    shown = result.stdout.splitlines()
    assert shown[0].endswith("/me/bees  (model, is made, private)")
    assert [line.split()[0] for line in shown[1:3]] == ["README.md", "model.onnx"]
    assert "licence  MIT, that of the weights" in shown
    assert not hub.repos
    assert hub.posted == ["/api/validate-yaml"]
    result = featx_cli("push", model, "me/bees", "--yes", "--licence", "apache-2.0")
    assert result.exit_code == 0, result.output
    assert "featx predict hf:me/bees IMAGE" in result.stdout
    assert not result.stderr  # no bars where nobody looks
    assert all(len(line) <= 80 for line in result.stdout.splitlines() if "exactly" not in line)
    files = hub.repos["model", "me/bees"].files
    assert front(files["README.md"])["license"] == "apache-2.0"


@pytest.mark.parametrize(("answer", "sent"), [("y\n", True), ("n\n", False)])
def test_a_person_is_asked(hub, model, monkeypatch, answer, sent):
    from click.testing import CliRunner

    from featx.cli import main

    monkeypatch.setattr("featx.cli.push._is_interactive", lambda: True)
    result = CliRunner().invoke(main, ["push", str(model), "me/bees"], input=answer)
    assert result.exit_code == (0 if sent else 1)
    assert bool(hub.repos) is sent


def test_visibility_of_what_exists_never_changes(hub, model):
    for private in (True, False):
        hub.repos.clear()
        repo = hub.add("main", "0" * 40, {}, kind="model", private=private)
        if not private:
            with pytest.raises(HubError, match="is public: everybody would see"):
                push(model, "me/bees")
        push(model, "me/bees", public=True)
        assert repo.private is private
    assert "/api/repos/create" not in hub.posted
    assert not any("settings" in path for path in hub.asked)
    hub.repos.clear()
    push(model, "me/bees", public=True)
    assert not hub.repos["model", "me/bees"].private


def test_a_card_that_was_edited_on_the_hub_stays(hub, model):
    push(model, "me/bees")
    _, files = hub.repos["model", "me/bees"].revisions["main"]
    files["README.md"] += b"\nMy own words.\n"
    hub.add("main", "e" * 40, files, kind="model")
    result = featx_cli("push", model, "me/bees", "--yes")
    assert "README.md   was edited there and stays; --overwrite replaces it" in result.stdout
    assert hub.repos["model", "me/bees"].files["README.md"].endswith(b"My own words.\n")
    push(model, "me/bees", overwrite=True)
    assert b"My own words" not in hub.repos["model", "me/bees"].files["README.md"]


def test_a_card_that_the_hub_refuses_stops_everything_before_it_begins(hub, model):
    hub.bad_cards = '"license" must be one of [apache-2.0, mit]'
    with pytest.raises(HubError, match=r"refuses the card of 'me/bees': .*must be one of"):
        push(model, "me/bees", licence="my-own")
    assert not hub.repos
    assert not hub.uploads


def test_refusals_of_the_hub_and_a_missing_network_are_sentences(hub, model, monkeypatch):
    for status, part in ((401, "is private"), (403, "token that may write"), (500, "500")):
        hub.refused["/api/repos/create"] = status, {}
        with pytest.raises(HubError, match=part):
            push(model, "me/bees")
    hub.refused = {"/commit/": (507, {})}
    with pytest.raises(HubError, match="507"):
        push(model, "me/bees")
    hub.refused.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match=r"Nothing was sent.*HF_HUB_OFFLINE is set"):
        push(model, "me/bees")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match=r"Nothing was sent.*cannot be reached"):
        push(model, "me/bees")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match=r"Nobody is logged in.*hf auth login"):
        push(model, "me/bees")
    for wrong in ("bees", "me/bees/x", "me/..", "../x", "hf:me/bees", "me/ "):
        with pytest.raises(ConfigError, match="repo must be USER/NAME"):
            push(model, wrong)


@needs_runtime
def test_a_space_has_the_page_and_one_of_somebody_else_is_left_alone(hub, model):
    report = push(model, "me/bees", space=True)
    space = hub.repos["space", "me/bees"]
    assert (space.private, space.sdk) == (True, "static")
    assert set(space.files) >= {"README.md", "index.html", "model.onnx", "ort.wasm"}
    about = front(space.files["README.md"])
    assert (about["sdk"], about["models"]) == ("static", ["me/bees"])
    assert space.files["model.onnx"] == model.read_bytes()
    assert report.space == f"{hub.url}/spaces/me/bees"
    assert push(model, "me/bees", space=True).is_unchanged
    hub.add("main", "c" * 40, {"README.md": b"# my app", "app.py": b""}, kind="space")
    with pytest.raises(HubError, match="The Space 'me/bees' is there and was not made by featx"):
        push(model, "me/bees", space=True)


@needs_runtime
def test_a_space_needs_a_model_of_whole_images(hub, head):
    crop = head.parent / "crop.onnx"
    export_onnx(head, crop, ExportOptions(input="crop", verify=False))
    with pytest.raises(ConfigError, match="needs a model that takes whole"):
        push(crop, "me/bees", space=True)
    assert not hub.asked
