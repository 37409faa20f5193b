"""Data sets of the hub, from a server on this machine that answers as the hub does."""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence
from pathlib import Path

import h5py
import pytest
from commands import featx_cli
from hub_server import hub_on_this_machine

import featx
from featx.errors import SourceError
from featx.images.sources import open_source

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
constants = pytest.importorskip("huggingface_hub.constants")

COMMIT, CONVERTED = "a" * 40, "b" * 40
PINNED = f"hf:me/bees@{COMMIT}"


def parquet(tmp_path: Path, *labels: str, images: Sequence[bytes] = ()) -> bytes:
    images = images or [b"image of " + label.encode() for label in labels]
    columns = {"image": images, "label": labels}
    pq.write_table(pa.table(columns), tmp_path / "made")
    return (tmp_path / "made").read_bytes()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    yield from hub_on_this_machine(monkeypatch, tmp_path)


def test_a_data_set_is_read_at_a_commit_and_not_downloaded_again(hub, tmp_path, monkeypatch):
    files = {
        "README.md": b"",
        "bees.py": b"raise SystemExit",
        "data/train-00000-of-00002.parquet": parquet(tmp_path, "bee", "ant"),
        "data/train-00001-of-00002.parquet": parquet(tmp_path, "ant"),
        "data/test-00000-of-00001.parquet": parquet(tmp_path, "bee"),
    }
    hub.add("main", COMMIT, files)
    source = open_source("hf:me/bees?label_column=label")
    assert source.uri == f"{PINNED}?label_column=label"
    assert source.classes == ("ant", "bee")
    assert [s.split for s in source.samples] == ["test", "train", "train", "train"]
    assert source.samples[0].sample_id == "data/test-00000-of-00001.parquet/0"
    assert source.read(0) == b"image of bee"
    assert not any("bees.py" in path for path in hub.asked)
    hub.asked.clear()
    assert open_source(source.uri).samples == source.samples
    assert not any("resolve" in path for path in hub.asked)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.asked.clear()
    for uri in (source.uri, "hf:me/bees?label_column=label"):
        offline = open_source(uri)
        assert (offline.uri, offline.samples) == (source.uri, source.samples)
    with pytest.raises(SourceError, match=r"HF_HUB_OFFLINE is set, and it is not in the cache"):
        open_source("hf:me/others")
    assert not hub.asked


def test_the_conversion_is_read_where_there_are_no_files_and_a_partial_one_on_demand(hub, tmp_path):
    hub.add("main", COMMIT, {"bees.py": b"raise SystemExit"})
    with pytest.raises(SourceError, match="no conversion"):
        open_source("hf:me/bees")
    content = parquet(tmp_path, "bee", "ant")
    hub.add("refs/convert/parquet", CONVERTED, {"default/train/0000.parquet": content})
    assert open_source("hf:me/bees").uri == f"hf:me/bees@{CONVERTED}"
    assert len(open_source("hf:me/bees:default").samples) == 2
    with pytest.raises(SourceError, match="'small'"):
        open_source("hf:me/bees:small")
    partial = {"default/partial-train/0000.parquet": content}
    hub.add("refs/convert/parquet", "c" * 40, partial)
    with pytest.raises(SourceError, match="partial, the first 5 GB"):
        open_source("hf:me/bees")
    assert len(open_source("hf:me/bees@refs/convert/parquet").samples) == 2


def test_extract_records_the_commit_and_the_next_run_downloads_nothing(hub, photos, tmp_path):
    folder, output = photos({"ants": 3, "bees": 3}), tmp_path / "f.h5"
    paths = sorted(folder.rglob("*.*"))
    labels, images = [path.parent.name for path in paths], [path.read_bytes() for path in paths]
    name = "data/train-00000-of-00001.parquet"
    hub.add("main", COMMIT, {name: parquet(tmp_path, *labels, images=images)})
    result = featx_cli("extract", "hf:me/bees", "-o", output, "-b", "tiny")
    assert result.exit_code == 0, result.stderr
    assert featx.check(output).source == PINNED
    hub.asked.clear()
    hub.add("main", "d" * 40, {name: parquet(tmp_path, "cat")})  # the record stays at its commit
    assert featx.extract(None, output).is_unchanged
    assert not any("resolve" in path for path in hub.asked)
    with h5py.File(output) as file:
        assert [each.decode() for each in file["sample_ids"]] == [f"{name}/{i}" for i in range(6)]


def test_missing_packages_are_a_sentence_with_the_command(monkeypatch, tmp_path):
    (tmp_path / "a.parquet").write_bytes(parquet(tmp_path, "bee"))
    for module, source in (
        ("pyarrow", tmp_path / "a.parquet"),
        ("huggingface_hub", "hf:b"),
    ):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            result = featx_cli("extract", source, "-o", tmp_path / "f.h5", "-b", "tiny")
        assert result.exit_code == 1
        told = " ".join(result.stderr.split())
        assert "pip install 'featx[parquet]'" in told
        assert told.count("Error") == 1


def test_several_configurations_are_asked_for(hub, tmp_path):
    names = ("big/train-0.parquet", "small/train-0.parquet")
    hub.add("main", COMMIT, dict.fromkeys(names, parquet(tmp_path, "bee")))
    with pytest.raises(SourceError, match="hf:me/bees:big"):
        open_source("hf:me/bees")
    assert open_source("hf:me/bees:small").uri == f"hf:me/bees:small@{COMMIT}"


@pytest.mark.parametrize(
    ("status", "headers", "message"),
    [
        (401, {}, "does not exist, or is private"),
        (403, {"X-Error-Code": "GatedRepo"}, "Accept its terms"),
        (404, {"X-Error-Code": "RepoNotFound"}, "does not exist on the hub"),
        (404, {"X-Error-Code": "RevisionNotFound"}, "no revision 'v9'"),
    ],
)
def test_refusals_are_different_sentences(hub, status, headers, message):
    hub.refused["me/bees"] = status, headers
    with pytest.raises(SourceError, match=message):
        open_source("hf:me/bees@v9")


def test_a_hub_that_is_down_is_read_from_the_cache(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)
    hub.add("main", COMMIT, {"data/train-00000-of-00001.parquet": parquet(tmp_path, "bee")})
    samples = open_source("hf:me/bees").samples
    hub.refused |= {"me/bees": (503, {}), "me/wasps": (503, {})}
    assert open_source("hf:me/bees").samples == samples
    with pytest.raises(
        SourceError, match=r"answers with an error \(503\), and it is not in the cache"
    ):
        open_source("hf:me/wasps")


@pytest.mark.parametrize("uri", ["hf:", "hf:../x", "hf:a/b/c", "hf:me/bees@", "hf:me/bees:"])
def test_what_is_no_name_is_refused(hub, uri):
    with pytest.raises(SourceError):
        open_source(uri)


def test_only_faults_of_the_network_are_called_that(hub, tmp_path, monkeypatch):
    def fails_with(err):
        def fail(*_, **__):
            raise err

        monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", fail)
        return lambda: open_source("hf:me/bees")

    with pytest.raises(TypeError, match="of our own"):
        fails_with(TypeError("of our own"))()
    with pytest.raises(SourceError, match=r"cannot be kept in the cache '.*': No space left"):
        fails_with(OSError(errno.ENOSPC, "No space left on device"))()
    for err in (TimeoutError(), ConnectionResetError(104, "reset"), OSError("TLS")):
        with pytest.raises(SourceError, match=f"cannot be reached .{type(err).__name__}"):
            fails_with(err)()
    monkeypatch.undo()
    with pytest.raises(SourceError, match=r"not a possible name of the hub"):
        open_source("hf:me/bees..x")
