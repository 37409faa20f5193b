"""The same images wherever they lie: the same rows, head, checks and predictions."""

from __future__ import annotations

import csv
import io
import itertools
import shutil
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from archives import archive_of, pack
from commands import featx_cli
from safetensors.numpy import load_file
from stores import Site, certificate, put_folder

import featx
from featx.features.file import open_features
from featx.images.sources import open_source
from featx.images.sources.stores import StoreSource

OPTIONS = featx.ExtractOptions(backbone="tiny", engine="torch", workers=1)
LAYOUT = {"train/ants": 4, "train/bees": 4, "val/ants": 3, "val/bees": 3}


def _folder(folder: Path, place: Path, request: Any) -> str:
    return f"file://{folder}"


def _zip(folder: Path, place: Path, request: Any) -> str:
    return str(pack(folder, place / "photos.zip"))


def _tar(folder: Path, place: Path, request: Any) -> str:
    return str(pack(folder, place / "photos.tar"))


def _shards(folder: Path, place: Path, request: Any) -> str:
    for split in ("train", "val"):
        contents = {}
        for path in sorted((folder / split).rglob("*.*")):
            contents[f"{path.parent.name}/{path.name}"] = path.read_bytes()
            contents[f"{path.parent.name}/{path.stem}.cls"] = path.parent.name.encode()
        archive_of(place / f"{split}-0.tar", contents)
    return f"{place}/{{train,val}}-{{0..0}}.tar"


def _parquet(folder: Path, place: Path, request: Any) -> str:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for split in ("train", "val"):
        paths = sorted((folder / split).rglob("*.*"))
        columns = {
            "image": [{"bytes": path.read_bytes(), "path": path.name} for path in paths],
            "label": [path.parent.name for path in paths],
        }
        pq.write_table(pa.table(columns), place / f"{split}.parquet", row_group_size=3)
    return f"{place}/{{train,val}}.parquet"


def _s3(folder: Path, place: Path, request: Any) -> str:
    put_folder(request.getfixturevalue("bucket"), folder, "set/")
    return "s3://photos/set"


def _table(folder: Path) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["filename", "label", "split"])
    for path in sorted(folder.rglob("*.*")):
        name = path.relative_to(folder).as_posix()
        writer.writerow([name, path.parent.name, name.split("/")[0]])
    return text.getvalue().encode()


def _https(folder: Path, place: Path, request: Any) -> str:
    monkeypatch = request.getfixturevalue("monkeypatch")
    path, context = certificate(place)
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    monkeypatch.setattr(urllib.request, "_opener", None)  # keeps its certificates
    site = Site(context)
    request.addfinalizer(site.close)
    files = (each for each in folder.rglob("*.*"))
    site.files = {f"/{path.relative_to(folder).as_posix()}": path.read_bytes() for path in files}
    site.files["/images.csv"] = _table(folder)
    site.files |= {f"/{path.name}": path.read_bytes() for path in place.glob("*.zip")}
    return f"{site.url}/images.csv"


def _https_zip(folder: Path, place: Path, request: Any) -> str:
    packed = pack(folder, place / "photos.zip")
    return _https(folder, place, request).replace("images.csv", packed.name)


def _s3_tar(folder: Path, place: Path, request: Any) -> str:
    packed = pack(folder, place / "photos.tar")
    bucket = request.getfixturevalue("bucket")
    bucket.put_object(Bucket="photos", Key=packed.name, Body=packed.read_bytes())
    return f"s3://photos/{packed.name}"


KINDS = (_folder, _zip, _tar, _shards, _parquet, _s3, _https, _https_zip, _s3_tar)


@pytest.fixture
def small(photos: Callable[..., Path]) -> Path:
    return photos(LAYOUT)


@pytest.fixture
def few_photos(data: Path, tmp_path: Path) -> Path:
    """A few real photos of ants and bees."""
    for name, count in LAYOUT.items():
        (tmp_path / "few" / name).mkdir(parents=True)
        for path in sorted((data / "hymenoptera_data" / name).glob("*.jpg"))[:count]:
            shutil.copy(path, tmp_path / "few" / name)
    return tmp_path / "few"


def _made(source: str, place: Path) -> tuple[list[bytes], dict[str, bytes]]:
    """Return the columns of the feature file and the tensors of the head that a source gives."""
    featx.extract(source, place / "f.h5", OPTIONS)
    featx.train_head(place / "f.h5", place / "h.safetensors")
    file = open_features(place / "f.h5")
    columns = (file.features, file.labels, file.splits, file.digests)
    tensors = load_file(place / "h.safetensors")
    return (
        [file.classes, *(np.asarray(column).tobytes() for column in columns)],
        {name: tensor.tobytes() for name, tensor in tensors.items()},
    )


def _rows_and_head_are_the_folders(kind, folder, place, request):
    (place / "local").mkdir()
    expected = _made(str(folder), place / "local")
    source = kind(folder, place, request)
    assert _made(source, place) == expected
    before = (place / "f.h5").read_bytes()
    images = open_source(source)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(images), "read", None)
        assert featx.extract(source, place / "f.h5", OPTIONS).is_unchanged
        assert featx.extract(None, place / "f.h5").is_unchanged
        assert featx.check(place / "f.h5").is_fresh
    assert (place / "f.h5").read_bytes() == before


@pytest.mark.parametrize("kind", KINDS)
def test_rows_and_head_are_those_of_the_folder_and_a_second_run_opens_nothing(
    kind, small, tmp_path, request
):
    _rows_and_head_are_the_folders(kind, small, tmp_path, request)


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.parametrize("kind", KINDS)
def test_rows_and_head_of_photos_are_those_of_the_folder(kind, few_photos, tmp_path, request):
    _rows_and_head_are_the_folders(kind, few_photos, tmp_path, request)


@pytest.mark.parametrize("kind", [_zip, _s3, _https])
def test_export_report_check_and_predict_read_a_source_again(
    kind, small, photos, tmp_path, request
):
    bee = photos({"bees": 1}, name="other", seed=1) / "bees" / "000.jpg"
    shutil.move(bee, small / "val" / "ants" / "wrong.jpg")  # for the report to show
    source = kind(small, tmp_path, request)
    _made(source, tmp_path)
    head, model = tmp_path / "h.safetensors", tmp_path / "m.onnx"
    assert featx.export_onnx(head, model).proof
    page = featx.write_report(head, tmp_path / "r.html")
    assert "data:image/jpeg" in page.path.read_text()
    images = open_source(source)
    assert featx.check(model, source).is_fresh
    assert featx.evaluate(model, source).metrics["val"].num_samples == 7
    found = featx_cli("predict", model, source, "--format", "csv")
    lines = list(csv.DictReader(found.stdout.splitlines()))[::2]
    assert [line["image"] for line in lines] == [sample.sample_id for sample in images.samples]
    local = featx_cli("predict", model, small, "--format", "csv")
    expected = list(csv.DictReader(local.stdout.splitlines()))[::2]
    assert [line["probability"] for line in lines] == [line["probability"] for line in expected]


@pytest.mark.parametrize("kind", [_zip, _parquet])
def test_a_source_that_cannot_be_reached_any_more_is_one_sentence(kind, small, tmp_path, request):
    _made(kind(small, tmp_path, request), tmp_path)
    for path in itertools.chain(tmp_path.glob("*.zip"), tmp_path.glob("*.parquet")):
        path.unlink()
    head = tmp_path / "h.safetensors"
    for command in (
        ["export", head, "--onnx", tmp_path / "m.onnx"],
        ["check", tmp_path / "f.h5"],
        ["extract", "-o", tmp_path / "f.h5"],
    ):
        result = featx_cli(*command)
        assert result.exit_code
        assert not result.exception or isinstance(result.exception, SystemExit)
        assert "does not exist" in result.stderr.replace("\n", " ")
        assert len(result.stderr.strip().split("\n\n")) == 1
    assert not (tmp_path / "m.onnx").exists()


def test_a_store_reads_its_images_for_predict_many_at_a_time(small, tmp_path, request, monkeypatch):
    from featx.images.given import find_given, name_of, read_ahead

    found = find_given([_s3(small, tmp_path, request)])
    at_once, most = 0, 0
    read = StoreSource.read

    def counted(self, index):
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        try:
            return read(self, index)
        finally:
            at_once -= 1

    monkeypatch.setattr(StoreSource, "read", counted)
    contents = dict(read_ahead(((name_of(image, 0), image) for image in found), found))
    names = [path.relative_to(small).as_posix() for path in sorted(small.rglob("*.*"))]
    assert list(contents) == names
    assert all(contents[name] == (small / name).read_bytes() for name in names)
    assert most > 1
