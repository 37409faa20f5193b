"""Archives and Parquet files in stores and on the web, read in place: as those on this machine."""

from __future__ import annotations

import io
import pickle
import tarfile
import zipfile
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image
from stores import every

from featx.errors import ImageError, SourceError
from featx.images.reading import read_together
from featx.images.sources import objects, open_source, remote
from featx.images.sources.sample import NO_FILE
from featx.images.sources.selection import select

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
COUNT = 12


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(remote, "_FIRST_WAIT", 0.001)
    monkeypatch.setattr(remote, "TIMEOUT_S", 1.0)
    monkeypatch.setattr(objects, "TIMEOUT_S", 1.0)


def png(number: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (16, 12, 3), np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same images as a zip, a tar, a shard and a Parquet file."""
    made = tmp_path_factory.mktemp("parts")
    names = [f"train/{('ants', 'bees')[n % 2]}/{n:02}.png" for n in range(COUNT)]
    with zipfile.ZipFile(made / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for number, name in enumerate(names):
            file.writestr(name, png(number))
    with tarfile.open(made / "a.tar", "w") as tar, tarfile.open(made / "shard.tar", "w") as shard:
        for number, name in enumerate(names):
            add(tar, name, png(number))
            add(shard, f"{number:02}.png", png(number))
            add(shard, f"{number:02}.cls", str(number % 2).encode())
    columns = {"image": [png(n) for n in range(COUNT)], "label": [n.split("/")[1] for n in names]}
    pq.write_table(pa.table(columns), made / "a.parquet", row_group_size=5)
    return made


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


NAMES = ("a.zip", "a.tar", "shard.tar", "a.parquet")


def served(site, folder: Path, name: str) -> str:
    site.files[f"/{name}"] = (folder / name).read_bytes()
    return f"{site.url}/{name}"


def content_of(source) -> list[bytes]:
    return [source.read(index) for index in range(len(source.samples))]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_on_the_web_is_as_one_here(site, folder, name):
    here, there = open_source(str(folder / name)), open_source(served(site, folder, name))
    assert there.uri == f"{site.url}/{name}"
    assert there.samples == here.samples
    assert there.classes == here.classes
    assert content_of(there) == content_of(here)
    stamps = [there.stamp(index) for index in range(COUNT)]
    again = open_source(there.uri)
    site.asked.clear()
    assert [again.stamp(index) for index in range(COUNT)] == stamps
    assert not site.asked


@pytest.mark.parametrize("name", NAMES)
def test_a_file_in_a_store_is_as_one_here(bucket, folder, name):
    bucket.put_object(Bucket="photos", Key=f"x/{name}", Body=(folder / name).read_bytes())
    here, there = open_source(str(folder / name)), open_source(f"s3://photos/x/{name}")
    assert there.samples == here.samples
    assert content_of(there) == content_of(here)


@pytest.mark.parametrize("name", NAMES)
def test_a_flaky_server_gives_every_image_in_the_end(site, folder, name):
    address = served(site, folder, name)
    site.faults = every(5, kinds=("500", "short", "reset"))
    source = open_source(address)
    found = read_together(source, range(COUNT))
    assert [each for _, _, each in found] == content_of(open_source(str(folder / name)))


def test_a_member_of_a_zip_takes_one_request(site, folder):
    source = open_source(served(site, folder, "a.zip"))
    site.asked.clear()
    content_of(source)
    assert site.asked == {("GET", "/a.zip"): COUNT}


@pytest.mark.parametrize("name", NAMES)
def test_a_server_that_sends_no_parts_or_others_is_a_sentence(site, folder, name):
    address = served(site, folder, name)
    site.sends_parts = False
    with pytest.raises(SourceError, match=r"sends no parts of files.*Download it first"):
        open_source(address)
    site.sends_parts, site.shift = True, 1
    with pytest.raises(SourceError, match=r"sends another part|answers 416"):
        open_source(address)
    site.shift, site.headers = 0, {}
    with pytest.raises(SourceError, match="tells no size and nothing by which a change"):
        open_source(address)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_is_replaced_is_an_error_of_its_images(site, folder, name):
    source = open_source(served(site, folder, name))
    site.files[f"/{name}"] = site.files[f"/{name}"][::-1]
    for index in (0, COUNT - 1):
        with pytest.raises(ImageError, match="replaced since it was looked up") as caught:
            source.read(index)
        assert not caught.value.is_permanent


def test_what_is_not_there_or_signed_is_told_without_the_signature(site, folder):
    with pytest.raises(SourceError, match=r"Cannot read '.*/no.zip'.*404"):
        open_source(f"{site.url}/no.zip?X-Amz-Signature=secret")
    site.files["/a.zip?X-Amz-Signature=secret"] = (folder / "a.zip").read_bytes()
    source = open_source(f"{site.url}/a.zip?X-Amz-Signature=secret")
    assert source.uri == f"{site.url}/a.zip"
    assert len(content_of(source)) == COUNT
    with pytest.raises(SourceError, match=r"Cannot read '.*/a.zip'.*404"):
        open_source(source.uri)


def hostile(kind: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as made:
        if kind == "outside":
            made.writestr("../a.png", png(0))
        elif kind == "bomb":
            made.writestr("ants/a.png", bytes(2**27))
        else:
            made.writestr("ants/a.png", png(0))
    content = file.getvalue()
    return content[: len(content) // 2] if kind == "cut" else content


def test_hostile_archives_are_refused_as_those_here(site):
    for kind, match in (("outside", "leads out of the archive"), ("cut", "not a whole zip")):
        site.files["/bad.zip"] = hostile(kind)
        with pytest.raises(SourceError, match=match):
            open_source(f"{site.url}/bad.zip")
    site.files["/bad.zip"] = hostile("bomb")
    with pytest.raises(ImageError, match="a bomb"):
        open_source(f"{site.url}/bad.zip").read(0)


@pytest.mark.parametrize("name", NAMES)
def test_damaged_files_are_sentences_or_errors_of_images(site, folder, name):
    content, rng = (folder / name).read_bytes(), np.random.default_rng(1)
    for _ in range(6):
        bad = bytearray(content)
        for place in rng.integers(0, len(bad), 8):
            bad[place] ^= int(rng.integers(1, 256))
        site.files[f"/{name}"] = bytes(bad)
        try:
            source = open_source(f"{site.url}/{name}")
        except SourceError:
            continue
        for index in range(len(source.samples)):
            with suppress(ImageError):
                source.read(index)


def test_a_source_can_be_sent_to_another_process(site, folder):
    source = open_source(served(site, folder, "a.zip"))
    again = pickle.loads(pickle.dumps(select(source, [3, 1])))
    assert [again.read(0), again.read(1)] == [source.read(3), source.read(1)]
    assert again.parallel_reads == source.parallel_reads == 32


def files_of(folder: Path) -> dict[str, bytes]:
    """Two shards and two Parquet files for each split, with other images each."""
    made = dict[str, bytes]()
    for number, name in enumerate(("train-0", "train-1", "val-0", "val-1")):
        rows = range(4 * number, 4 * number + 4)
        with tarfile.open(folder / f"{name}.tar", "w") as tar:
            for row in rows:
                add(tar, f"{row:02}.png", png(row))
                add(tar, f"{row:02}.cls", "ab"[row % 2].encode())
        columns = {"image": list(map(png, rows)), "label": ["ab"[row % 2] for row in rows]}
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    made |= {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    return made


def put_all(where, files: dict[str, bytes], folder: str) -> str:
    """Put files into a bucket or on a site; return the address of their folder."""
    if hasattr(where, "url"):
        where.files |= {f"/{folder}/{quote(name)}": content for name, content in files.items()}
        return f"{where.url}/{folder}"
    for name, content in files.items():
        where.put_object(Bucket="photos", Key=f"{folder}/{name}", Body=content)
    return f"s3://photos/{folder}"


@pytest.mark.parametrize("where", ["bucket", "site"])
@pytest.mark.parametrize("ending", ["tar", "parquet"])
def test_names_with_braces_stand_for_several_files_as_here(where, ending, tmp_path, request):
    address = put_all(request.getfixturevalue(where), files_of(tmp_path), "x")
    name = f"{{train,val}}-{{0..1}}.{ending}"
    here, there = open_source(f"{tmp_path}/{name}"), open_source(f"{address}/{name}")
    assert there.uri == f"{address}/{name}"
    assert [s.split for s in there.samples] == ["train"] * 8 + ["val"] * 8
    assert (there.samples, there.classes) == (here.samples, here.classes)
    assert content_of(there) == content_of(here) == [png(row) for row in range(16)]
    part = pickle.loads(pickle.dumps(select(there, [9, 2])))
    assert [part.read(0), part.read(1)] == [png(9), png(2)]
    message = rf"Cannot read '{address}/train-2.{ending}'.*stands for 3 files"
    with pytest.raises(SourceError, match=message):
        open_source(f"{address}/train-{{0..2}}.{ending}")


def test_labels_of_shards_come_along_with_the_list_of_their_files(site, tmp_path):
    address = put_all(site, files_of(tmp_path), "x")
    open_source(f"{address}/train-{{0..1}}.tar")
    gets = {path: count for (method, path), count in site.asked.items() if method == "GET"}
    assert gets == {"/x/train-0.tar": 2, "/x/train-1.tar": 2}  # what it is, and all of it


def test_braces_in_a_name_that_is_there_are_read_as_they_stand(bucket, site, folder):
    name, content = "a-{0..1}.parquet", (folder / "a.parquet").read_bytes()
    for where in (bucket, site):
        source = open_source(f"{put_all(where, {name: content}, 'x')}/{name}")
        assert len(source.samples) == COUNT
        assert source.samples[0].sample_id == f"{name}/0"


def test_a_key_with_a_mark_of_addresses_is_one_archive(bucket, folder):
    content = (folder / "a.zip").read_bytes()
    source = open_source(f"{put_all(bucket, {'a#1.zip': content}, 'x')}/a#1.zip")
    assert source.read(0) == png(0)


def test_a_prefix_with_parquet_files_is_as_a_folder_of_them(bucket, tmp_path):
    files = {n: c for n, c in files_of(tmp_path).items() if n.endswith(".parquet")}
    address = put_all(bucket, {**files, "_metadata.parquet": b"no", "README.md": b""}, "set")
    for name, content in files.items():
        (tmp_path / "set").mkdir(exist_ok=True)
        (tmp_path / "set" / name).write_bytes(content)
    here, there = open_source(str(tmp_path / "set")), open_source(f"{address}?label_column=label")
    assert there.uri == f"{address}/?label_column=label"
    assert (there.samples, there.classes) == (here.samples, here.classes)
    assert content_of(there) == content_of(here)
    with pytest.raises(SourceError, match=r"'s3://photos/set/train-0.parquet' has no column"):
        open_source(f"{address}?label_column=odd")


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_a_store_that_tells_no_change_is_read_again(folder, name):
    import fsspec

    store = fsspec.filesystem("memory")
    store.pipe_file(f"/x/{name}", (folder / name).read_bytes())
    source = open_source(f"memory://x/{name}")
    assert source.stamp(0) == NO_FILE
    assert source.read(0) == png(0)
