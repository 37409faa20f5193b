"""Models of the hub where a model's path may stand, from a server on this machine."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import featx_cli
from hub_server import hub_on_this_machine
from PIL import Image

import featx
from featx.classifier.hub import local_model, model_name
from featx.errors import ArtifactError, ArtifactInvalid, ArtifactMissing
from featx.extraction.options import ExtractOptions
from featx.reporting.classify import Runtime
from featx.stages.export import export_onnx
from featx.stages.extract import extract
from featx.stages.predict import Predictor
from featx.stages.train import train_head

constants = pytest.importorskip("huggingface_hub.constants")

COMMIT, LATER = "a" * 40, "b" * 40
PINNED = f"hf:me/bees@{COMMIT}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    extract("digits:", folder / "f.h5", ExtractOptions(backbone="tiny"))
    train_head(folder / "f.h5", folder / "h.safetensors")
    export_onnx(folder / "h.safetensors", folder / "model.onnx")
    (folder / "h.safetensors").unlink()
    return folder / "model.onnx"


@pytest.fixture
def content(model: Path) -> bytes:
    return model.read_bytes()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    yield from hub_on_this_machine(monkeypatch, tmp_path)


@pytest.fixture
def online(hub, content):
    """The hub with a model, and beside it what must not be fetched."""
    files = {"model.onnx": content, "README.md": b"card", "head.pkl": b"code", "x.py": b"code"}
    hub.add("main", COMMIT, files, kind="model")
    return hub


@pytest.fixture
def image(tmp_path: Path) -> Path:
    Image.new("RGB", (9, 8), "teal").save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_every_command_takes_a_model_of_the_hub(online, model, image):
    expected = featx_cli("predict", "--format", "csv", model, image).stdout
    result = featx_cli("predict", "--format", "csv", "hf:me/bees", image)
    assert result.stdout == expected
    assert f"'hf:me/bees' is hf:me/bees@{COMMIT}#" in result.stderr
    for words in (
        ("info", PINNED),
        ("check", PINNED),
        ("evaluate", PINNED, "digits:"),
        ("page", PINNED, "-o", image.parent / "page"),
    ):
        result = featx_cli(*words)
        if words[0] != "page" or "onnxruntime-web" not in result.output:
            assert result.exit_code == 0, result.output
    fetched = {path.rpartition("/")[2] for path in online.asked if "/resolve/" in path}
    assert fetched == {"model.onnx"}


def test_a_model_of_the_hub_is_served_and_read_again(online, image, tmp_path, monkeypatch):
    serving = pytest.importorskip("serving", exc_type=ImportError)  # where uvicorn is installed
    monkeypatch.setenv("HF_ENDPOINT", online.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    with serving.command("hf:me/bees@main") as server:
        assert server.get("/v2/models/bees").status == 200
        expected = Predictor("hf:me/bees").predict([image])[0].label
        assert server.predict(image.read_bytes()).json["top"][0]["label"] == expected
        online.asked.clear()
        server.process.send_signal(signal.SIGHUP)
        end = time.monotonic() + 20
        while not server.metrics()["featx_reloads_total"]:
            assert time.monotonic() < end
            time.sleep(0.05)
        assert online.asked


def test_a_page_of_a_model_of_the_hub_lies_in_the_current_folder(online, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("featx.stages.web_page.load_runtime", lambda: Runtime("", b""))
    before = set(tmp_path.iterdir())
    assert featx_cli("page", "hf:me/bees").exit_code == 0
    assert {path.name for path in set(tmp_path.iterdir()) - before} >= {"page"}
    assert not (tmp_path / "hf:me").exists()
    assert model_name(PINNED) == model_name("hf:me/bees@v1.0#0123456789") == "bees"


def test_a_model_of_the_hub_without_images_is_told_how_to_be_one(online, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = featx_cli("predict", "hf:me/bees")
    assert result.exit_code == 2
    assert "If it is a model, give images after it." in result.stderr
    assert not online.asked


def test_a_new_process_fetches_a_model_and_finds_it_offline(online, image, tmp_path):
    environment = os.environ | {"HF_ENDPOINT": online.url, "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "featx", "predict", "hf:me/bees", image]
    for offline in ("", "1"):
        result = subprocess.run(
            command,
            env=environment | {"HF_HUB_OFFLINE": offline},
            capture_output=True,
            text=True,
            check=True,
        )
        assert "a.png" in result.stdout
        (note,) = result.stderr.splitlines()
        assert note.startswith(f"'hf:me/bees' is hf:me/bees@{COMMIT}#")


def test_a_predictor_of_the_hub_is_copied_without_asking_again(online, image):
    predictor = Predictor("hf:me/bees")
    online.asked.clear()
    again = pickle.loads(pickle.dumps(predictor))
    assert again.predict([image]) == predictor.predict([image])
    assert not online.asked


@pytest.mark.parametrize("revision", ["main", "v1", "refs/pr/1", COMMIT])
def test_branch_tag_and_commit_are_told_as_a_commit_and_found_offline(
    hub, content, monkeypatch, caplog, revision
):
    hub.add(revision, COMMIT, {"model.onnx": content}, kind="model")
    caplog.set_level("INFO", "featx")
    address = f"hf:me/bees@{revision}"
    path = local_model(address)
    assert path.read_bytes() == content
    assert f"'{address}' is hf:me/bees@{COMMIT}#{content[-64:-48].decode()}" in caplog.text
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub.asked.clear()
    assert local_model(address) == local_model(PINNED) == path
    assert not hub.asked


def test_a_branch_that_moved_is_fetched_again_and_a_commit_is_not(online, content):
    online.add("main", LATER, {"model.onnx": content + b"more"}, kind="model")
    assert local_model("hf:me/bees").read_bytes() == content + b"more"
    assert local_model(PINNED).read_bytes() == content
    online.asked.clear()
    local_model(PINNED)
    assert not online.asked


def test_offline_names_the_commit_that_the_cache_has(online, monkeypatch):
    local_model(PINNED)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ArtifactMissing, match=f"HF_HUB_OFFLINE is set.*it has {PINNED}"):
        local_model("hf:me/bees")
    with pytest.raises(ArtifactMissing, match=r"HF_HUB_OFFLINE is set, and .* not in the cache"):
        local_model("hf:me/others")


def test_a_copied_cache_works_or_says_what_is_missing(online, monkeypatch, tmp_path, content):
    path = local_model("hf:me/bees")
    folder = Path(constants.HF_HUB_CACHE) / "models--me--bees"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (folder / "refs" / "main").write_text(f"{COMMIT}\r\n")
    assert local_model("hf:me/bees") == path
    if path.is_symlink():  # not on a file system without links
        shutil.rmtree(folder / "blobs")
        with pytest.raises(ArtifactMissing, match=r"model.onnx' is a link to .*blobs.* missing"):
            local_model("hf:me/bees")
        path.unlink()
        path.write_bytes(content)  # as where there are no links
    assert local_model("hf:me/bees").read_bytes() == content


def test_no_network_reads_the_cache_and_says_so(online, monkeypatch, caplog):
    path = local_model("hf:me/bees")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    caplog.set_level("INFO", "featx")
    assert local_model("hf:me/bees") == path
    assert "cannot be reached" in caplog.text
    assert "read from the cache" in caplog.text


def test_name_access_and_network_fail_with_sentences_of_their_own(online, monkeypatch):
    texts = []
    for name, status in (
        ("me/wasps", 404),
        ("me/hidden", 401),
        ("me/gated", 403),
        ("me/bees", 500),
    ):
        headers = {"X-Error-Code": "GatedRepo"} if status == 403 else {}
        online.refused[f"models/{name}"] = status, headers
        with pytest.raises(ArtifactError) as caught:
            local_model(f"hf:{name}")
        texts.append(str(caught.value))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ArtifactMissing) as caught:
        local_model("hf:me/bees")
    texts.append(str(caught.value))
    for text, part in zip(
        texts,
        ("not exist on the hub", "or is private", "access is refused", "(500)", "be reached"),
        strict=True,
    ):
        assert part in text
    assert len(set(texts)) == 5


def test_a_hub_that_never_answers_is_left_after_the_time_limit(hub, monkeypatch):
    monkeypatch.setattr("featx.classifier.hub.TIMEOUT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        with pytest.raises(ArtifactMissing, match="cannot be reached"):
            local_model("hf:me/bees")
        assert time.monotonic() - start < 5


def test_what_a_repository_lacks_is_named(online, content):
    online.add("main", COMMIT, {"a.onnx": content, "b.txt": b""}, kind="model")
    with pytest.raises(ArtifactMissing, match=r"no 'model.onnx'.*a.onnx; .* give hf:me/bees/a.onn"):
        local_model("hf:me/bees")
    assert local_model("hf:me/bees/a.onnx").name == "a.onnx"
    with pytest.raises(ArtifactMissing, match="has no revision 'v9'"):
        local_model("hf:me/bees@v9")
    for wrong in ("hf:bees", "hf:me/bees@", "hf:me/bees#xyz", "hf:"):
        with pytest.raises(ArtifactError, match="is not a model: expected"):
            local_model(wrong)


def test_files_that_are_too_large_are_not_fetched(online, content):
    online.sizes["model.onnx"] = 2**31 + 1
    with pytest.raises(ArtifactInvalid, match="larger than an ONNX file can be"):
        local_model("hf:me/bees")
    assert not any("/resolve/" in path for path in online.asked)
    online.sizes["model.onnx"] = len(content) - 1  # less than what comes
    with pytest.raises(ArtifactInvalid, match="larger than the hub says"):
        local_model("hf:me/bees")


def test_a_hostile_file_is_refused_as_a_local_one(online, content, image):
    altered = content[:1000] + bytes([content[1000] ^ 1]) + content[1001:]
    for number, bad in enumerate((altered, b"no model at all", b"\x80\x04pickle" * 50, b"")):
        online.add("main", f"{number:040x}", {"model.onnx": bad}, kind="model")
        for command in (("predict", "hf:me/bees", image), ("info", "hf:me/bees")):
            result = featx_cli(*command)
            assert result.exit_code == 1
            assert result.stderr.splitlines()[-1].startswith("Error: ")
            assert "Traceback" not in result.output


def test_a_pinned_seal_refuses_another_file(online, content):
    digest = content[-64:].decode()
    assert local_model(f"hf:me/bees#{digest[:16]}").read_bytes() == content
    online.add("main", LATER, {"model.onnx": content[:-1] + b"x"}, kind="model")
    with pytest.raises(ArtifactInvalid, match=r"is another file: its seal is .*, not"):
        local_model(f"hf:me/bees#{digest[:16]}")


def test_a_cache_that_cannot_be_written_is_named_as_that(online, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ArtifactError, match=r"cannot be kept in the cache '.*file/cache'"):
        local_model("hf:me/bees")


def test_a_missing_library_is_one_sentence(monkeypatch, image):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ArtifactError, match=r"huggingface_hub.*pip install 'featx.*\[hub\]'"):
        featx.Predictor("hf:me/bees")
