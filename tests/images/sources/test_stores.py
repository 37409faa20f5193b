"""Images in stores and on the web: the same as in a folder, whatever a network does."""

from __future__ import annotations

import gzip
import itertools
import pickle
import sys
import threading
import time
import tracemalloc
from email.utils import formatdate
from io import BytesIO

import h5py
import numpy as np
import pytest
from archives import archive_of
from commands import featx_cli
from PIL import Image
from stores import Between, Site, every

import featx
from featx.errors import ImageError, SourceError
from featx.extraction.plan import make_plan
from featx.features.publish import ExistingImages
from featx.images.decode import content_digest
from featx.images.reading import read_together
from featx.images.sources import objects, open_source, remote
from featx.images.sources.remote import Entry, without_secrets
from featx.images.sources.selection import select

KEYS = ["a+b", "a%b", "a%2Fb", "a b", "a#b", "a?b", "é", "e\u0301", "x[1]", "x*", "y", "z"]


def png(number):
    file = BytesIO()
    Image.fromarray(np.full((8, 8, 3), number % 256, np.uint8)).save(file, "PNG")
    return (file.getvalue() + str(number).encode()).ljust(100)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(remote, "_FIRST_WAIT", 0.001)
    monkeypatch.setattr(remote, "TIMEOUT_S", 1.0)
    monkeypatch.setattr(objects, "TIMEOUT_S", 1.0)


def contents(source):
    found = read_together(source, range(len(source.samples)))
    return {source.samples[i].sample_id: content for i, _, content in found}


def test_a_prefix_is_as_a_folder_with_literal_keys_and_no_markers(bucket):
    names = {f"{split}/{key}.png": png(i) for i, key in enumerate(KEYS) for split in ("c", "d")}
    for name, content in names.items():
        bucket.put_object(Bucket="photos", Key=f"set/{name}", Body=content)
    for name in ("set/", "set/c/", "set2/c/other.png"):
        bucket.put_object(Bucket="photos", Key=name, Body=b"")
    source = open_source("s3://photos/set")
    assert source.uri == "s3://photos/set/"
    assert source.classes == ("c", "d")
    assert contents(source) == names
    assert open_source(source.uri).samples == source.samples


def test_rows_are_those_of_the_folder_and_a_second_run_reads_nothing(bucket, tmp_path, monkeypatch):
    for i, name in enumerate(f"{label}/{i}.png" for label in "ab" for i in range(4)):
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(i * 9))
        bucket.put_object(Bucket="photos", Key=f"set/{name}", Body=path.read_bytes())
    options = featx.ExtractOptions(backbone="tiny")
    featx.extract("s3://photos/set", tmp_path / "s3.h5", options)
    featx.extract(str(tmp_path / "set"), tmp_path / "local.h5", options)
    with h5py.File(tmp_path / "s3.h5") as one, h5py.File(tmp_path / "local.h5") as other:
        for name in ("features", "digests", "labels", "sample_ids"):
            assert np.array_equal(one[name][...], other[name][...])
    monkeypatch.setattr(objects.ObjectStore, "get", None)
    featx.extract(None, tmp_path / "s3.h5")
    assert featx.check(tmp_path / "s3.h5").source == "s3://photos/set/"


def test_an_object_replaced_after_listing_is_that_images_error(bucket):
    bucket.put_object(Bucket="photos", Key="c/1.png", Body=png(1))
    source = open_source("s3://photos/")
    before = source.stamp(0)
    bucket.put_object(Bucket="photos", Key="c/1.png", Body=png(2))
    with pytest.raises(ImageError, match="replaced"):
        source.read(0)
    assert open_source("s3://photos/").stamp(0) != before


def test_what_is_missing_is_said(bucket, monkeypatch):
    bucket.put_object(Bucket="photos", Key="birds/c/1.png", Body=png(1))
    with pytest.raises(SourceError, match=r"nothing below 's3://photos/bird/'.*birds"):
        open_source("s3://photos/bird/")
    with pytest.raises(SourceError, match="no bucket"):
        open_source("s3://nowhere/c/")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(SourceError, match="No connection"):
        open_source("s3://photos/gone/")


def test_a_table_in_a_store_is_read_with_paths_beside_it(bucket):
    table = "path,label\nx/1.png,a\ns3://photos/y/2.png,b\nx/gone.png,b\n"
    bucket.put_object(Bucket="photos", Key="t/images.csv", Body=table.encode())
    bucket.put_object(Bucket="photos", Key="t/x/1.png", Body=png(1))
    bucket.put_object(Bucket="photos", Key="y/2.png", Body=png(2))
    source = open_source("s3://photos/t/images.csv")
    found = contents(source)
    assert found["x/1.png"] == png(1)
    assert found["s3://photos/y/2.png"] == png(2)
    assert isinstance(found["x/gone.png"], ImageError)


def test_a_table_on_this_machine_may_list_addresses(bucket, site, tmp_path):
    bucket.put_object(Bucket="photos", Key="y/2.png", Body=png(2))
    site.files = {"/1.png?X-Amz-Signature=s3cret": png(1), "/2.jpg": png(2)}
    table = tmp_path / "images.csv"
    table.write_text(
        f"label,url\na,{site.url}/1.png?X-Amz-Signature=s3cret\nb,{site.url}/2.jpg\n"
        "b,http://127.0.0.1:9/3.png\n"
    )
    source = open_source(f"{table}?path_column=url")
    found = contents(source)
    assert [found.pop(f"{site.url}/{name}") for name in ("1.png", "2.jpg")] == [png(1), png(2)]
    assert isinstance(found.pop("http://127.0.0.1:9/3.png"), ImageError)  # the others are read
    assert not found
    assert source.uri == f"{table}?path_column=url"
    part = pickle.loads(pickle.dumps(select(source, [1])))
    assert (part.read(0), part.samples[0].sample_id) == (png(2), f"{site.url}/2.jpg")
    table.write_text("path,label\ns3://photos/y/2.png,b\n")
    assert contents(open_source(str(table))) == {"s3://photos/y/2.png": png(2)}
    for line, message in (
        ("1.png", "lists addresses, but '1.png' is none"),
        ("gs://b/1", "another"),
    ):
        table.write_text(f"path,label\ns3://photos/y/2.png,b\n{line},b\n")
        with pytest.raises(SourceError, match=message):
            open_source(str(table))


def test_files_of_a_table_of_addresses_keep_no_signature(site, photos, tmp_path):
    lines = ["path,label"]
    for path in sorted(photos({"ants": 4, "bees": 4}).rglob("*.*")):
        name = f"/{path.parent.name}-{path.name}?X-Amz-Signature=s3cret"
        site.files[name] = path.read_bytes()
        lines.append(f"{site.url}{name},{path.parent.name}")
    table, output = tmp_path / "images.csv", tmp_path / "f.h5"
    table.write_text("\n".join(lines))
    result = featx_cli("extract", table, "-o", output, "-b", "tiny")
    assert result.exit_code == 0, result.output
    assert b"s3cret" not in output.read_bytes() + result.output.encode()
    site.asked.clear()
    assert featx.extract(None, output).is_unchanged
    assert {method for method, _ in site.asked} == {"HEAD"}


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("s3://", "names no bucket"),
        ("s3:///x/", "names no bucket"),
        ("s3://photos/c/1.png", "It is one object: give the folder"),
    ],
)
def test_addresses_that_are_no_folder_are_told_apart(bucket, address, message):
    bucket.put_object(Bucket="photos", Key="c/1.png", Body=png(1))
    with pytest.raises(SourceError, match=message):
        open_source(address)


def test_odd_keys_are_ids_as_they_are_and_make_no_class_without_a_name(bucket):
    keys = ["c//1.png", "c/4..5.png", "c/2.png", "/3.png", "d/%2e%2e/5.png"]
    for number, key in enumerate(keys):
        bucket.put_object(Bucket="photos", Key=f"set/{key}", Body=png(number))
    bucket.put_object(Bucket="photos", Key="set/d/empty.png", Body=b"")
    source = open_source("s3://photos/set/")
    assert source.classes == ("c", "d")
    assert contents(source) == {"d/empty.png": b""} | {k: png(n) for n, k in enumerate(keys)}
    assert {s.sample_id: s.label for s in source.samples}["/3.png"] == -1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_flaky_server_gives_every_image_in_the_end(site):
    names = [f"{i}.png" for i in range(150)]
    site.files = {f"/{name}": png(i) for i, name in enumerate(names)}
    table = "path,label\n" + "".join(f"{name},{i % 2}\n" for i, name in enumerate(names))
    site.files["/images.csv"] = table.encode()
    site.faults = every(31)
    source = open_source(f"{site.url}/images.csv")
    assert contents(source) == {name: png(i) for i, name in enumerate(names)}


def test_signed_addresses_are_sent_as_they_are_and_never_shown(site):
    query = "?X-Amz-Credential=a%2Fb&X-Amz-Signature=s3cret"
    site.files[f"/1.png{query}"] = png(1)
    rows = f"{site.url}/1.png{query},a\n{site.url}/2.png{query},b\n"
    site.files["/images.csv"] = f"path,label\n{rows}".encode()
    source = open_source(f"{site.url}/images.csv")
    found = contents(source)
    assert found[f"{site.url}/1.png"] == png(1)
    assert "s3cret" not in str(found[f"{site.url}/2.png"]) + str(source.samples) + source.uri
    with pytest.raises(SourceError, match="user and password") as caught:
        open_source("https://me:s3cret@host/images.csv")
    assert "s3cret" not in str(caught.value)
    assert without_secrets("http://h/a?size=1") == "http://h/a?size=1"


@pytest.fixture
def signed(site, photos):
    """The address of a signed table of signed images, by paths that are refused without."""
    query = "?X-Amz-Credential=a%2Fb&X-Amz-Signature=s3cret"
    lines = ["path,kind"]
    for path in sorted(photos({"ants": 4, "bees": 4}).rglob("*.*")):
        site.files[f"/{path.name}-{path.parent.name}{query}"] = path.read_bytes()
        lines.append(f"{site.url}/{path.name}-{path.parent.name}{query},{path.parent.name}")
    site.files[f"/images.csv{query}"] = "\n".join(lines).encode()
    site.unknown = 403
    return f"{site.url}/images.csv{query}"


def test_no_signature_is_kept_and_reading_again_without_one_is_a_sentence(site, signed, tmp_path):
    output, head, page = (tmp_path / name for name in ("f.h5", "h.safetensors", "r.html"))
    for command in (
        ["extract", signed, "--label-column", "kind", "-o", output, "-b", "tiny"],
        ["train-head", output, "-o", head],
        ["report", head, "-o", page, "--source", f"{signed}?label_column=kind"],
    ):
        result = featx_cli(*command)
        assert result.exit_code == 0, result.output
        assert "s3cret" not in result.output
    for path in tmp_path.iterdir():
        assert path.is_dir() or b"s3cret" not in path.read_bytes(), path
    assert featx.check(output, f"{signed}?label_column=kind").is_fresh
    assert featx.check(output, f"{signed}?label_column=kind").source.endswith(
        "/images.csv?label_column=kind"
    )
    for command in (["extract", "-o", output], ["check", output], ["export", head]):
        result = featx_cli(*command)
        told = " ".join(result.output.split())
        assert result.exit_code == 1
        assert "answers 403 Forbidden: it may need a signature" in told
        assert told.count("Error") == 1


def test_a_login_page_is_neither_table_nor_image_and_one_sentence(site):
    page = b"<!DOCTYPE html><html>Log in</html>"
    site.files = {"/images.csv": page, "/t.csv": b"path,label\n1.png,a\n2.png,b\n"}
    site.files |= {"/1.png": page, "/2.png": png(1)}
    with pytest.raises(SourceError, match="web page"):
        open_source(f"{site.url}/images.csv")
    source = open_source(f"{site.url}/t.csv")
    assert source.read(1) == png(1)
    with pytest.raises(ImageError, match="web page"):
        source.read(0)
    source.read(1)
    names = [f"{i}.png" for i in range(90)]
    site.files |= {f"/{name}": page for name in names}
    site.files["/t.csv"] = "\n".join(["path,label", *(f"{n},a" for n in names)]).encode()
    with pytest.raises(SourceError, match=r"No image of .* can be read.*got a web page") as caught:
        contents(open_source(f"{site.url}/t.csv"))
    assert not isinstance(caught.value, ImageError)
    site.files["/3.png"] = png(1)
    assert sum(
        isinstance(each, bytes) for each in contents(open_source(f"{site.url}/t.csv")).values()
    )


def test_a_compressed_answer_is_unpacked_and_its_length_is_not_the_images(site):
    site.files = {"/t.csv": b"path,label\n1.png,a\n"}
    source = open_source(f"{site.url}/t.csv")
    site.files["/1.png"] = gzip.compress(png(1))
    site.headers = {"Content-Encoding": "gzip", "ETag": "x"}
    assert source.stamp(0).size == 0
    assert source.read(0) == png(1)


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_an_image_is_known_again_where_head_is_refused_and_get_is_not(site, method):
    site.files = {"/t.csv": b"path,label\n1.png,a\n2.png,a\n", "/1.png": png(1)}
    source, site.refused = open_source(f"{site.url}/t.csv"), {method}
    if method == "HEAD":
        assert source.read(0) == png(1)
        stamp = source.stamp(0)
        assert (stamp.size, open_source(f"{site.url}/t.csv").stamp(0)) == (len(png(1)), stamp)
    else:
        with pytest.raises(ImageError, match="405"):
            source.read(0)


def test_redirects_lead_to_other_hosts_without_a_word_of_this_one_and_loops_end(site):
    other = Site()
    site.files["/t.csv"] = b"path,label\n1.png,a\n2.png,b\n"
    site.moved = {"/1.png": f"{other.url}/x.png", "/2.png": f"{site.url}/2.png"}
    other.files["/x.png"] = png(1)
    try:
        source = open_source(f"{site.url}/t.csv")
        assert source.read(0) == png(1)
        with pytest.raises(ImageError, match="infinite loop"):
            source.read(1)
    finally:
        other.close()
    assert sum(count for (_, path), count in site.asked.items() if path == "/2.png") <= 24


def test_a_body_that_ends_early_without_a_length_is_that_images_error(site):
    site.files = {"/t.csv": b"path,label\n1.png,a\n", "/1.png": png(1)}
    source = open_source(f"{site.url}/t.csv")
    assert source.stamp(0).size == len(png(1))
    site.cuts = True
    with pytest.raises(ImageError, match="50 of 100 bytes came") as caught:
        source.read(0)
    assert not caught.value.is_permanent


def test_listings_are_read_page_by_page_and_a_page_that_fails_alone_again(
    bucket, s3_server, monkeypatch
):
    for number in range(20):
        bucket.put_object(Bucket="photos", Key=f"set/{number:02d}.png", Body=png(number))
    between = Between(s3_server)
    monkeypatch.setenv("AWS_ENDPOINT_URL", between.url)
    monkeypatch.setattr(objects, "_PAGE_KEYS", 3)
    between.faults = every(4, kinds=("503", "reset"))
    try:
        source = open_source("s3://photos/set")
        assert [sample.sample_id for sample in source.samples] == [
            f"{i:02d}.png" for i in range(20)
        ]
        assert 7 < between.asked.total() < 12
    finally:
        between.close()


def test_a_bucket_without_the_right_to_list_it_is_a_sentence(site, bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", site.url)
    site.unknown = 403
    with pytest.raises(SourceError, match="No right to list 's3://photos/set/'"):
        open_source("s3://photos/set")


@pytest.fixture
def refusing(bucket, monkeypatch):
    """Have a store refuse all but some anonymous requests, where a machine may have a role.

    Returns a function of how many it allows and of the error without a role, which gives the list
    of the file systems that are opened.
    """
    opened = objects._opened

    def prepare(allowed, role_error=None):
        made, asked = [], itertools.count()

        def limited(address, *, anonymous):
            store = opened(address, anonymous=False)
            call = store._call_s3

            async def answer(method, *args, **more):
                if anonymous and next(asked) >= allowed:
                    raise PermissionError("Forbidden")
                if not anonymous and role_error:
                    raise role_error
                return await call(method, *args, **more)

            store._call_s3 = answer
            made.append(anonymous)
            return store

        monkeypatch.setattr(objects, "_opened", limited)
        monkeypatch.setattr(objects, "_is_anonymous", lambda _: True)
        return made

    return prepare


def test_a_listing_refused_in_its_middle_goes_on_there_by_the_role(bucket, refusing, monkeypatch):
    monkeypatch.setattr(objects, "_PAGE_KEYS", 3)
    for number in range(20):
        bucket.put_object(Bucket="photos", Key=f"set/{number:02d}.png", Body=png(number))
    made = refusing(3)
    found = [path for path, _ in objects.ObjectStore("s3://photos/set/").listed("photos/set/")]
    assert found == [f"photos/set/{number:02d}.png" for number in range(20)]
    assert made == [True, False]


@pytest.mark.parametrize("name", ["a.csv", "a.zip", ""])
def test_what_is_refused_without_credentials_is_read_by_the_role(bucket, refusing, tmp_path, name):
    archive_of(tmp_path / "a.zip", {f"{i}.png": png(i) for i in range(9)})
    bucket.put_object(Bucket="photos", Key="a.zip", Body=(tmp_path / "a.zip").read_bytes())
    table = "path,label\n" + "".join(f"{i}.png,a\n" for i in range(9))
    bucket.put_object(Bucket="photos", Key="a.csv", Body=table.encode())
    for number in range(9):
        bucket.put_object(Bucket="photos", Key=f"{number}.png", Body=png(number))
    made = refusing(0)
    assert contents(open_source(f"s3://photos/{name}")) == {f"{i}.png": png(i) for i in range(9)}
    assert made == [True, False]


def test_a_machine_without_a_role_is_asked_for_one_once(bucket, refusing):
    bucket.put_object(Bucket="photos", Key="a.csv", Body=b"path,label\n1.png,a\n2.png,a\n")
    made = refusing(1, OSError("Unable to locate credentials"))
    with pytest.raises(SourceError, match=r"No image of .*Forbidden"):
        contents(open_source("s3://photos/a.csv"))
    assert made == [True, False]


def test_the_same_bytes_under_another_tag_are_not_done_again(site):
    site.files = {"/t.csv": b"path,label\n1.png,a\n", "/1.png": png(1)}
    site.headers = {"ETag": "one"}
    source = open_source(f"{site.url}/t.csv")
    digest = np.frombuffer(content_digest(source.read(0)), np.uint8)[None]
    seen = ExistingImages(("1.png",), np.arange(1), np.array([source.stamp(0)]), digest, ("",))
    site.headers = {"ETag": "other"}
    plan = make_plan(open_source(f"{site.url}/t.csv"), [seen], None)
    assert (plan.todo().tolist(), plan.touched.tolist()) == ([], [0])


def test_without_credentials_access_is_anonymous_at_once(bucket, monkeypatch, tmp_path):
    bucket.put_bucket_acl(Bucket="photos", ACL="public-read")
    bucket.put_object(Bucket="photos", Key="c/1.png", Body=png(1), ACL="public-read")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    looked = []
    monkeypatch.setattr("aiobotocore.utils.AioIMDSFetcher._get_request", looked.append)
    source = open_source("s3://photos/")
    assert source.remote._fs.anon
    assert contents(source) == {"c/1.png": png(1)}
    assert not looked


_TOLD = {"tag": None, "time": {"Last-Modified": "Sat, 01 Jan 2022 00:00:00 GMT"}, "nothing": {}}


@pytest.mark.parametrize("told", [*_TOLD, "young time", "changing time"])
def test_a_change_of_equal_size_is_noticed_whatever_the_server_tells(site, told):
    ids = [f"{i}.png" for i in range(6)]
    site.files["/t.csv"] = "\n".join(["path,label", *(f"{name},a" for name in ids)]).encode()
    site.files |= {f"/{name}": png(i) for i, name in enumerate(ids)}
    seconds = itertools.count()

    def headers():
        if told in _TOLD:
            return _TOLD[told]
        return {"Last-Modified": formatdate(time.time() - 86400 * next(seconds) * ("c" in told))}

    def existing(source):
        found = list(read_together(source, range(6)))
        digests = [np.frombuffer(content_digest(content), np.uint8) for _, _, content in found]
        stamps = np.array([stamp for _, stamp, _ in found], np.int64)
        return ExistingImages(ids, np.arange(6), stamps, np.array(digests), ("",) * 6)

    def to_do():
        site.headers = headers()
        return make_plan(open_source(f"{site.url}/t.csv"), [seen], None).todo().tolist()

    site.headers = headers()
    seen = existing(open_source(f"{site.url}/t.csv"))
    assert to_do() == []
    for changed in ([2], [0, 5], list(range(6))):
        site.files |= {f"/{ids[i]}": png(i + 7) for i in changed}
        assert to_do() == changed
        site.files |= {f"/{ids[i]}": png(i) for i in changed}
        assert to_do() == []


def test_a_store_without_tags_gives_the_rows_of_what_lies_there_now(tmp_path):
    import fsspec

    store, names = fsspec.filesystem("memory"), [f"{label}/{i}.png" for label in "ab" for i in "01"]
    options = featx.ExtractOptions(backbone="tiny", engine="torch", workers=1)
    for i in range(6):
        store.pipe_file(f"/all/c/{i}.png", png(40 * i))
    featx.extract("memory://all", tmp_path / "all.h5", options)
    with h5py.File(tmp_path / "all.h5") as file:
        expected = file["features"][...]
    for numbers in ([0, 1, 2, 3], [0, 4, 2, 3], [4, 0, 3, 5], [4, 0, 3, 5]):
        for name, number in zip(names, numbers, strict=True):
            store.pipe_file(f"/set/{name}", png(40 * number))
        featx.extract("memory://set", tmp_path / "f.h5", options)
        with h5py.File(tmp_path / "f.h5") as file:
            assert np.allclose(file["features"][...], expected[numbers], atol=1e-6)
    before = (tmp_path / "f.h5").read_bytes()
    assert featx.extract(None, tmp_path / "f.h5").is_unchanged
    assert (tmp_path / "f.h5").read_bytes() == before
    assert not np.allclose(expected[0], expected[1], atol=1e-3)


def test_an_unchanged_image_is_looked_up_and_not_read_again(site):
    site.files = {"/t.csv": b"path,label\n1.png,a\n", "/1.png": png(1)}
    stamp = open_source(f"{site.url}/t.csv").stamp(0)
    assert open_source(f"{site.url}/t.csv").stamp(0) == stamp
    assert len(make_plan(open_source(f"{site.url}/t.csv"), (), None).todo()) == 1
    assert not site.asked["GET", "/1.png"]


def test_a_missing_package_is_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(SourceError, match="pip install gcsfs"):
        open_source("gs://bucket/c/")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(SourceError, match=r"featx\[cloud\]"):
        open_source("s3://bucket/c/")


def test_a_store_with_one_connection_is_read_by_one_thread_at_a_time(monkeypatch):
    import fsspec

    fsspec.filesystem("memory").pipe({f"/alone/c/{i}.png": png(i) for i in range(20)})
    source = open_source("memory://alone")
    read, busy = source.remote._fs.cat_file, threading.Lock()

    def only_one(path):
        assert busy.acquire(blocking=False)
        time.sleep(0.002)
        content = read(path)
        busy.release()
        return content

    monkeypatch.setattr(source.remote._fs, "cat_file", only_one)
    assert list(contents(source).values()) == [png(i) for i in sorted(range(20), key=str)]


@pytest.fixture
def hosted():
    """A kind of store whose paths have no host, as of FTP; ``failing`` is what it cannot list."""
    import fsspec

    class Hosted(fsspec.get_filesystem_class("memory")):
        protocol, store, pseudo_dirs, failing = "hosted", {}, [""], {}
        find = fsspec.AbstractFileSystem.find

        def __init__(self, host, port=None, **options):
            super().__init__(**options)
            assert (host, port) == ("there", 2121)

        def ls(self, path, *args, **more):
            if self.failing.get(path, 0):
                self.failing[path] -= 1
                raise OSError("connection lost")
            return super().ls(path, *args, **more)

        @staticmethod
        def _get_kwargs_from_urls(address):
            host, _, port = address.partition("://")[2].partition("/")[0].partition(":")
            return {"host": host, "port": int(port)}

        @classmethod
        def _strip_protocol(cls, path):
            path = path.partition("://")[2].partition("/")[2] if "://" in path else path
            return f"/{path.strip('/')}".rstrip("/")

    fsspec.register_implementation("hosted", Hosted, clobber=True)
    store = Hosted("there", 2121)
    store.pipe({f"/set/{label}/{i}.png": png(i) for i in range(4) for label in "ab"})
    store.pipe({"/set/t.csv": b"path,label\na/1.png,x\nhosted://there:2121/set/b/2.png,y\n"})
    return Hosted


def test_a_store_of_a_host_is_read_by_its_address(hosted):
    source = open_source("hosted://there:2121/set")
    assert contents(source) == {f"{label}/{i}.png": png(i) for label in "ab" for i in range(4)}
    part = pickle.loads(pickle.dumps(select(source, [5])))
    assert part.read(0) == png(1)
    table = contents(open_source("hosted://there:2121/set/t.csv"))
    assert list(table.values()) == [png(1), png(2)]
    with pytest.raises(SourceError, match=r"nothing below 'hosted://there:2121/st/'.*set"):
        open_source("hosted://there:2121/st")


def test_a_folder_of_a_store_that_cannot_be_listed_is_not_left_out(hosted):
    hosted.failing["/set/b"] = 2
    assert len(open_source("hosted://there:2121/set").samples) == 8
    hosted.failing["/set/b"] = 99
    with pytest.raises(
        SourceError, match="Cannot list 'hosted://there:2121/set/': connection lost"
    ):
        open_source("hosted://there:2121/set")


def test_a_user_in_an_address_is_no_password(monkeypatch):
    monkeypatch.setitem(sys.modules, "adlfs", None)
    with pytest.raises(SourceError, match="pip install adlfs"):
        open_source("abfs://photos@account.dfs.core.windows.net/birds/")
    for address in ("sftp://me:s3cret@host/x/", "https://me@host/x.csv"):
        with pytest.raises(SourceError, match="leave out user and password"):
            open_source(address)


def test_what_a_listing_takes_of_memory_for_each_key_is_bounded(monkeypatch):
    count = 20_000

    class Store:
        def __init__(self, _):
            pass

        def listed(self, prefix):
            for number in range(count):
                entry = Entry(10_000 + number, 1_700_000_000 * 10**9 + number, f"{number:032x}")
                yield f"{prefix}train/ants/{number:020}.jpg", entry

    monkeypatch.setattr("featx.images.sources.stores.ObjectStore", Store)
    tracemalloc.start()
    try:
        source = open_source("s3://photos/many/")
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(source.samples) == count
    assert kept < 450 * count
    assert peak < 600 * count
